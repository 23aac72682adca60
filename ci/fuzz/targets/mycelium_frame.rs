//! Runs [`harness::frame`] on whatever the fuzzer thinks of.

#![no_main]

#[expect(dead_code, reason = "each target runs one of the harnesses")]
#[path = "../mycelium_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::frame(bytes));
