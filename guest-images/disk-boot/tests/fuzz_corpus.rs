//! What fuzzing started from and what it found, read again.

use std::fs;
use std::path::Path;

#[path = "../../../ci/fuzz/disk_boot_harness.rs"]
mod harness;

#[test]
fn the_corpus_is_read_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus/disk_boot");
    let mut count = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        harness::disk_boot(&fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 6, "{count} files");
}
