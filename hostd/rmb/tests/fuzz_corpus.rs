//! Feeds the fuzzer's corpus through its own harness, so that what fuzzing once found stays found
//! without a fuzzer.

use std::fs;
use std::path::Path;

#[path = "../../../ci/fuzz/rmb_harness.rs"]
mod harness;

#[test]
fn the_corpus_does_no_harm() {
    for (name, run) in [("envelope", harness::envelope as fn(&[u8])), ("jwt", harness::jwt)] {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"));
        let corpus = corpus.join("../../ci/fuzz/corpus").join(format!("rmb_{name}"));
        let entries = fs::read_dir(corpus).unwrap();
        let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 8, "no corpus of {name}");
        for file in files {
            println!("{}", file.display());
            run(&fs::read(&file).unwrap());
        }
    }
}
