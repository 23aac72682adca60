//! Requests that come together are looked up together.
//!
//! Most of what a small request costs is waiting for main memory: once for the index, once for the
//! record. A processor waits for many places at once as well as for one, if it is told of them without
//! waiting in between. So before a batch of requests is served, the places that each will need are read,
//! first all in the index, then all records.

use std::hint::black_box;

use super::Namespace;
use crate::WARM_COUNT_MAX;
use crate::cache::BLOCK_SIZE;
use crate::index::slot::Slot;

impl Namespace {
    /// Reads what requests about these keys will read, as far as it is in memory, so that it is in the
    /// processor's caches when they come. Nothing changes by it. At most [`WARM_COUNT_MAX`] keys are
    /// looked at.
    pub fn warm<'k>(&self, names: impl Iterator<Item = &'k [u8]>) {
        let Some(keys) = &self.keys else { return };
        let mut hashes = [0; WARM_COUNT_MAX];
        let mut count = 0;
        for (hash, name) in hashes.iter_mut().zip(names) {
            *hash = keys.hash(name).unwrap_or_default();
            count += 1;
        }
        let hashes = &hashes[..count];
        black_box(hashes.iter().fold(0, |all, hash| all ^ self.index.touch(*hash)));
        // Where the records are is found first, so that nothing stands between one read and the next.
        let mut records: [&[u8]; WARM_COUNT_MAX] = [&[]; WARM_COUNT_MAX];
        for (record, hash) in records.iter_mut().zip(hashes) {
            if let Some((_, slot)) = self.index.find(*hash, None) {
                *record = self.small_record(&slot).unwrap_or_default();
            }
        }
        let ends = |bytes: &[u8]| bytes.first().unwrap_or(&0) ^ bytes.last().unwrap_or(&0);
        black_box(records.iter().fold(0, |all, record| all ^ ends(record)));
    }

    /// A small record where it stands in memory, as far as it is in one piece. It is not verified.
    fn small_record(&self, slot: &Slot) -> Option<&[u8]> {
        let size = self.record_size(slot);
        if let Some(bytes) = self.in_memory(slot.segment(), slot.offset, size) {
            return Some(bytes).filter(|_| size <= BLOCK_SIZE);
        }
        let (number, within) =
            (slot.offset as usize / BLOCK_SIZE, slot.offset as usize % BLOCK_SIZE);
        let place = self.segment(slot.segment())?.cached(u32::try_from(number).ok()?)?;
        self.cache.peek(place)?.get(within..(within + size).min(BLOCK_SIZE))
    }
}
