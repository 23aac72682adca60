//! Feeds the fuzzer's corpus through its own harness, so that what fuzzing once found stays found
//! without a fuzzer.

use std::fs;
use std::path::Path;

#[path = "../../../ci/fuzz/grid_harness.rs"]
mod harness;

#[test]
fn the_corpus_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus/grid_deployment");
    let entries = fs::read_dir(corpus).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 20, "no corpus");
    for file in files {
        println!("{}", file.display());
        harness::deployment(&fs::read(&file).unwrap());
    }
}
