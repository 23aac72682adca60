//! Feeds the fuzzers' corpus through their own harnesses, so that what fuzzing once found stays
//! found without a fuzzer.

use std::fs;
use std::path::Path;

#[path = "../../../ci/fuzz/vmm/mod.rs"]
mod vmm;

#[test]
fn the_corpus_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus");
    for (name, _) in vmm::HARNESSES {
        let entries = fs::read_dir(corpus.join(name)).unwrap();
        let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name}: no corpus");
        for file in files {
            println!("{}", file.display());
            vmm::run(name, &fs::read(&file).unwrap());
        }
    }
}
