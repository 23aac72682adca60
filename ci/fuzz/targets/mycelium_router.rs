//! Runs [`harness::router`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../mycelium_router_harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::router(bytes));
