//! What fuzzers call: every parser of the files' formats, on any bytes.
//!
//! Checksums are set right first, since no fuzzer guesses them. A function returns whether the
//! bytes were taken or refused, and panics if a promise is broken: that what is taken makes sense,
//! and that writing it again gives the same.

use crate::descriptor::Descriptor;
use crate::log::block;
use crate::log::header::{HEADER_SIZE, Header, Part};
use crate::log::record::{HEAD_SIZE_MAX, Head, RECORD_SIZE_MAX, Seed};
use crate::storage::sim::SimDisk;

/// Parses bytes as whatever their first byte says.
pub fn parse(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => header(bytes),
        1 => record(bytes),
        2 => index_block(bytes),
        3 => descriptor(bytes),
        _ => drop(crate::backup::verify(&mut &bytes[..])),
    }
}

fn header(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.resize(HEADER_SIZE, 0);
    let crc = crc32c::crc32c(&bytes[..HEADER_SIZE - 4]);
    bytes[HEADER_SIZE - 4..].copy_from_slice(&crc.to_le_bytes());
    for part in [Part::Data, Part::Index] {
        if let Some(header) = Header::parse(&bytes, part) {
            assert_eq!(Header::parse(&header.to_bytes(part), part), Some(header));
            assert!(header.through >= header.id);
        }
    }
}

fn record(bytes: &[u8]) {
    let Some(head) = Head::parse(bytes) else { return };
    assert!(head.record_size() <= RECORD_SIZE_MAX && head.head_size() <= HEAD_SIZE_MAX);
    let mut again = Vec::new();
    head.put(&mut again);
    assert_eq!(Head::parse(&again), Some(head));
    assert_eq!(again.get(4..), bytes.get(4..head.head_size()));
}

fn index_block(bytes: &[u8]) {
    let seed = Seed::new(1);
    let mut bytes = bytes.to_vec();
    if let Some((crc, covered)) = bytes.split_first_chunk_mut::<4>() {
        let size = covered.first_chunk().map_or(0, |size| u32::from_le_bytes(*size)) as usize;
        let end = (block::BLOCK_HEAD_SIZE - 4).saturating_add(size).min(covered.len());
        *crc = seed.crc(64, &covered[..end]).to_le_bytes();
    }
    let Some((head, body)) = block::parse(&bytes, seed, 64) else { return };
    for sealed in [false, true] {
        let mut entries = Vec::new();
        let whole = block::entries(&head, body, sealed, |entry| entries.push(entry));
        if whole.is_none() || entries.is_empty() || entries.len() > block::BLOCK_ENTRY_COUNT_MAX {
            continue;
        }
        let mut again = Vec::new();
        let written = block::put(&mut again, &entries, sealed, seed, 64).expect("sound entries");
        assert_eq!((written.start, written.end), (head.start, head.end));
        let (head, body) = block::parse(&again, seed, 64).expect("our own block is whole");
        let mut reread = Vec::new();
        block::entries(&head, body, sealed, |entry| reread.push(entry)).expect("and makes sense");
        assert_eq!(reread, entries);
    }
}

fn descriptor(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let Ok(Some(descriptor)) = Descriptor::parse(&bytes, None) else { return };
    let again = descriptor.to_bytes(&SimDisk::new(0), None).expect("nothing to seal");
    let reread = Descriptor::parse(&again, None).expect("nothing to open");
    assert_eq!(reread.as_ref(), Some(&descriptor));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_break_a_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::parse(&bytes);
        }
    }

    #[test]
    fn the_fuzzers_corpus_breaks_no_parser() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/fuzz/corpus/zdb_format");
        let mut count = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            super::parse(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 5, "one for each format");
    }
}
