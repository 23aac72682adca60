//! The thin part: system calls that carry out what the pure modules decided.
//!
//! Errors here are `anyhow` chains: they end as one line on the console ([`crate::boot`]).

pub(crate) mod console;
pub(crate) mod disks;
pub(crate) mod links;
pub(crate) mod modules;
pub(crate) mod mount;
pub(crate) mod power;
pub(crate) mod random;
pub(crate) mod root;
pub(crate) mod switch;
pub(crate) mod uevents;
pub(crate) mod vsock;
pub(crate) mod watchdog;
