//! The first process of a guest: finds its disks, mounts its root, starts its entrypoint.
//!
//! A guest boots Debian's cloud kernel with an initramfs that holds this one static program, the
//! few kernel modules that a guest may need and an empty file system for blank disks (the recipe
//! is `boot-image guest`). There is no shell and no other tool. The program honours the guest
//! contract of the grid (`reference/zero-os.md` 4.7, `reference/flist.md` 1.4), then becomes the
//! guest's own init; or it says in one line what is missing, and powers off.
//!
//! ```text
//!   told:  cmdline   cidata (fat, yaml, zosrc)   startup (the image's own wishes)
//!                          │
//!   decide:     plan   disk   network   entry   etc   modules        pure, tested on the host
//!                          │
//!   do:         boot ──> sys (mounts, disks, links, root, switch)    thin, tested in a guest
//!                          │
//!   stays:      agent (heart, reseed)                                 a process beside the guest's init
//!
//!   written:    template + ext4 (blank disks)   netlink (addresses, routes)
//! ```
//!
//! Nothing that it reads is trusted: the node's `cidata` may be malformed, a disk may hold
//! anything, an image may hold any link. What it does not do: run scripts, ask for an address,
//! check or repair file systems, load modules on demand after the switch.

#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod agent;
mod boot;
mod bytes;
pub mod cidata;
pub mod cmdline;
pub mod disk;
pub mod entry;
pub mod etc;
pub mod ext4;
pub mod fat;
mod heart;
pub mod modules;
pub mod netlink;
pub mod network;
pub mod plan;
pub mod reseed;
pub mod startup;
mod sys;
pub mod template;
pub mod yaml;
pub mod zosrc;

pub use boot::run;
pub use sys::power::off as power_off;
