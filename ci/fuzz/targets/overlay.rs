//! Runs `overlay` of [`vmm::HARNESSES`] on whatever the fuzzer thinks of.

#![no_main]

#[path = "../vmm/mod.rs"]
mod vmm;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::run("overlay", bytes));
