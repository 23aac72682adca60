//! Runs [`harness::messages`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../mycelium_messages_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::messages(bytes));
