//! Feeds the fuzzers' corpus through their own harnesses, so that what fuzzing once found stays
//! found without a fuzzer.

use std::fs;
use std::path::Path;

#[path = "../../../ci/fuzz/harness.rs"]
mod harness;

#[test]
fn the_corpus_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus");
    for (name, run) in harness::HARNESSES {
        let entries = fs::read_dir(corpus.join(name)).unwrap();
        let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name}: no corpus");
        for file in files {
            println!("{}", file.display());
            run(&fs::read(&file).unwrap());
        }
    }
}

/// A corpus of nothing but refused bytes would lead a fuzzer nowhere.
#[test]
fn the_seeds_are_sound() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus");
    for name in ["fl/small", "legacy/stored", "legacy/compressed"] {
        let image = flist::format::Image::open(&corpus.join(name)).unwrap();
        assert!(image.tree.walk().len() > 1, "{name}");
    }
    for name in ["gnu", "pax", "sparse"] {
        let bytes = fs::read(corpus.join("oci").join(name)).unwrap();
        let (split, archives) = bytes.split_at(2);
        let split = usize::from(u16::from_le_bytes([split[0], split[1]])) * 512;
        let (lower, upper) = archives.split_at(split);
        let mut rootfs = flist::oci::layer::Rootfs::new(Default::default());
        for layer in [lower, upper] {
            rootfs.apply(layer, &flist::progress::Quiet).unwrap();
        }
        assert!(rootfs.finish().0.walk().len() > 1, "{name}");
    }
}
