//! Feeds the fuzzer's corpus through its own harness, so that what fuzzing once found stays found
//! without a fuzzer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../../ci/fuzz/snapshot.rs"]
mod harness;

fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus/snapshot");
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_corpus_does_no_harm() {
    let files = corpus();
    assert!(!files.is_empty(), "no corpus");
    for file in files {
        println!("{}", file.display());
        harness::snapshot(&fs::read(&file).unwrap());
    }
}

/// A corpus of nothing but refused bytes would lead a fuzzer nowhere.
#[test]
fn the_seeds_are_sound() {
    for file in corpus() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let saved = harness::read(&harness::with_header(&fs::read(&file).unwrap()));
        if ["empty", "machine", "devices"].contains(&name.as_str()) {
            let saved = saved.unwrap_or_else(|| panic!("{name} is refused"));
            assert_eq!(saved.functions().is_empty(), name == "empty");
        }
    }
}
