//! Runs [`harness::zdb`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../zdb_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::zdb(bytes));
