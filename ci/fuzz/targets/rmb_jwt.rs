//! Runs [`harness::jwt`] on whatever the fuzzer thinks of.

#![no_main]

#[expect(dead_code, reason = "each target runs one of the harnesses")]
#[path = "../rmb_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::jwt(bytes));
