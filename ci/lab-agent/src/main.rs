//! PID 1 of a lab machine: runs commands for the test that booted it.
fn main() {}
