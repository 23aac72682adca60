//! Feeds the fuzzer's corpus through its own harness, so that what fuzzing once found stays found
//! without a fuzzer; and a few hundred inputs made by chance, or as many as `MYCELIUM_SEEDS` says.

use std::fs;
use std::path::Path;

#[path = "../../../ci/fuzz/mycelium_router_harness.rs"]
mod harness;

#[test]
fn the_corpus_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus/mycelium_router");
    let entries = fs::read_dir(corpus).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "no corpus");
    for file in files {
        println!("{}", file.display());
        harness::router(&fs::read(&file).unwrap());
    }
}

#[test]
fn nor_does_chance() {
    let asked = std::env::var("MYCELIUM_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut state = 1u64;
    for round in 0..asked.unwrap_or(300) {
        let bytes: Vec<u8> = std::iter::from_fn(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
            Some((state >> 56) as u8)
        })
        .take(1600)
        .collect();
        harness::router(&bytes);
    }
}
