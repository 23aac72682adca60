//! Runs [`harness::deployment`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../grid_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::deployment(bytes));
