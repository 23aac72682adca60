//! Runs the parsers of ZDB's files on whatever the fuzzer thinks of.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| zdb_engine::testing::parse(bytes));
