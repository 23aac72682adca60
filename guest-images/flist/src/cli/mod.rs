//! What the subcommands of `flist` share; each subcommand has a file of its own beside this one.

pub(crate) mod allocator;
pub(crate) mod boot;
pub(crate) mod cached;
pub(crate) mod clone;
pub(crate) mod exit;
pub(crate) mod fetch;
pub(crate) mod from_oci;
pub(crate) mod index;
pub(crate) mod inspect;
pub(crate) mod mount;
pub(crate) mod pack;
pub(crate) mod push;
pub(crate) mod stores;
pub(crate) mod terminal;
pub(crate) mod unpack;
pub(crate) mod verify;
pub(crate) mod write_disk;
