//! Booting a whole disk without firmware.
//!
//! The image of a cloud's machine is a disk: a partition table, file systems, a boot loader and its
//! configuration. Firmware would run the boot loader, in the guest, to find a kernel. We read the same
//! configuration on the host and hand kernel, initial file system and command line to a VMM, which
//! starts them directly: no firmware to emulate for, no boot loader's seconds, and a kernel that the
//! guest updates is what it boots next.
//!
//! ```text
//!   disk ──► source ──► table ──► filesystem ──► config ──► choice ──► extract ──► kernel, initramfs
//!            bytes,     GPT,      ext2/3/4,      GRUB,      what is               and the command line
//!            counted    MBR       FAT            BLS,       chosen,
//!                                                syslinux   and is there
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`source`] | the disk's bytes, of which only so many are read |
//! | [`table`] | partitions |
//! | [`filesystem`] | files, by one trait, and links that stay inside |
//! | [`volumes`] | all file systems of a disk, by the names that boot loaders give them |
//! | [`config`] | what boot loaders would do, one file each |
//! | [`choice`] | which kernel that is |
//! | [`mod@extract`] | kernel and initial file systems, copied |
//!
//! Everything on the disk is the guest's, and hostile: what is read is checked, and every loop, list and
//! size has a named limit. Whoever runs this for a stranger does it in the jail of the `disk-boot`
//! command, which bounds memory and time too, whatever a library makes of a hostile file system.
//!
//! What it does not do: write to the disk, run a boot loader, read encrypted or distributed file systems
//! (btrfs, XFS, ZFS, LVM, RAID and LUKS are named in the error).

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod choice;
pub mod config;
pub mod extract;
pub mod filesystem;
pub mod source;
pub mod table;
pub mod volumes;

mod bytes;

pub use choice::{Choice, ChoiceError, choose};
pub use extract::{ExtractError, Extracted, extract};
