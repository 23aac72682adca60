//! Runs workloads on this machine.
//!
//! [`hostd_node`] decides what is to happen; here it is done, with the programs that a node consists
//! of: `vmm`, `zdb`, `mycelium`, `flist`, all of them children of `supervise`, which outlives us. None is
//! linked: they are told things in files and on sockets.
//!
//! | module | what |
//! |---|---|
//! | [`vm`] | virtual machines |
//!
//! Actual state is found, not remembered: names follow from ids, and every step can be repeated.

#![forbid(unsafe_code)]

pub mod vm;
