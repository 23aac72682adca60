//! Runs workloads on this machine.

pub mod network;
