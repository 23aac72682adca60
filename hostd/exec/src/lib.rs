//! Runs workloads on this machine.
