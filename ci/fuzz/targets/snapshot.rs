//! Runs [`harness::snapshot`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../snapshot.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::snapshot(bytes));
