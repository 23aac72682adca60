//! Runs [`harness::disk_boot`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../disk_boot_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::disk_boot(bytes));
