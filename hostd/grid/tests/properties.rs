//! What holds for all bytes: those that mutations make of the fuzzer's corpus, and those of nobody in
//! particular.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

#[path = "../../../ci/fuzz/grid_harness.rs"]
mod harness;

static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/fuzz/corpus/grid_deployment");
    let files = fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let mut corpus: Vec<Vec<u8>> = files.collect();
    corpus.sort();
    corpus
});

/// Pieces that readers of JSON stumble over.
const PIECES: &[&[u8]] = &[
    b"null",
    b"{}",
    b"[]",
    b"\"\"",
    b"0",
    b"-1",
    b"1e9",
    b"256",
    b"65536",
    b"4294967296",
    b"18446744073709551616",
    b"true",
    b",",
    b":",
    b"}",
    b"]",
    b"\\ud800",
    b"\\",
    b"\"",
    b"\xff",
    b"\"10.1.2.3/24\"",
    b"\"::ffff:1.2.3.4/96\"",
    b"\"data\":null,",
    b"\"Name\":\"x\",",
    b"\"ygg\"",
];

/// A piece that takes the place of some bytes.
fn splice() -> impl Strategy<Value = (Index, usize, &'static [u8])> {
    (any::<Index>(), 0..12_usize, select(PIECES))
}

proptest! {
    #[test]
    fn mutations_do_no_harm(start in any::<Index>(), splices in vec(splice(), 1..5)) {
        let mut bytes = start.get(CORPUS.as_slice()).clone();
        for (at, len, piece) in splices {
            let at = at.index(bytes.len() + 1);
            let end = (at + len).min(bytes.len());
            bytes.splice(at..end, piece.iter().copied());
        }
        harness::deployment(&bytes);
    }

    /// A value of the document is another: the document stays one.
    #[test]
    fn other_values_do_no_harm(start in any::<Index>(), at in any::<Index>(), piece in select(PIECES)) {
        let with_members: Vec<&Vec<u8>> =
            CORPUS.iter().filter(|bytes| bytes.contains(&b':')).collect();
        let bytes = start.get(&with_members);
        let colons: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at).collect();
        let begin = at.get(&colons) + 1;
        let rest = &bytes[begin..];
        let len = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']')).unwrap_or(0);
        let mutated = [&bytes[..begin], piece, &rest[len..]].concat();
        harness::deployment(&mutated);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..64)) {
        harness::deployment(&bytes);
    }
}
