//! Runs workloads on this machine.
//!
//! [`hostd_node`] decides what is to happen; here it is done, with the programs that a node consists
//! of: `vmm`, `guestio`, `zdb`, `mycelium`, `flist`, all of them children of `supervise`, which outlives us. None is
//! linked: they are told things in files and on sockets.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | all of them together, as the machine that a node's engine knows |
//! | [`vm`] | virtual machines |
//! | [`image`] | what they boot from |
//! | [`network`] | what they reach each other by |
//! | [`guestio`] | what they say and are told |
//! | [`storage`] | where their data is |
//! | [`zdb`] | namespaces of keys and values |
//! | [`facts`] | what this machine is |
//!
//! Actual state is found, not remembered: names follow from ids, and every step can be repeated.

#![deny(unsafe_code)]

pub mod facts;
pub mod guestio;
pub mod image;
mod kept;
mod locks;
pub mod machine;
pub mod network;
mod process;
pub mod storage;
pub mod vm;
pub mod zdb;
