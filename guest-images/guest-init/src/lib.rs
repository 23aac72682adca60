//! The first process of a guest: finds its disks, mounts its root, starts its entrypoint.
mod boot;
mod bytes;
pub mod cidata;
pub mod cmdline;
pub mod disk;
pub mod entry;
pub mod etc;
pub mod ext4;
pub mod fat;
pub mod modules;
pub mod netlink;
pub mod network;
pub mod plan;
pub mod startup;
mod sys;
pub mod template;
pub mod yaml;
pub mod zosrc;

pub use boot::run;
