//! What boot loaders would do: from their configuration to the kernels that it offers.
//!
//! | file | boot loader | where |
//! |---|---|---|
//! | [`grub`] | GRUB | `grub.cfg`, a script, which is run; entries of [`bls`] by its `blscfg` |
//! | [`bls`] | systemd-boot | `loader/entries/*.conf` (UAPI Boot Loader Specification, type 1) |
//! | [`syslinux`] | syslinux, extlinux | `syslinux.cfg`, `extlinux.conf` |
//!
//! Each gives a list of [`Offer`]s, the one that would be booted first. What they name is looked for
//! later.

pub mod bls;
pub mod grub;
pub mod syslinux;

use crate::volumes::Place;

/// Most kernels that one configuration offers.
pub const OFFER_COUNT_MAX: usize = 256;
/// Most initial file systems of one kernel.
pub const INITRD_COUNT_MAX: usize = 16;

/// A kernel that a boot loader would start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// What its menu says.
    pub title: String,
    /// The kernel; none if the entry starts something else.
    pub kernel: Option<Place>,
    /// Its initial file systems, one behind the other.
    pub initrds: Vec<Place>,
    /// Its command line.
    pub cmdline: String,
}
