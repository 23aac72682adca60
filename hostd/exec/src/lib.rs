//! Runs workloads on this machine.

pub mod facts;
