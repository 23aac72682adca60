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
        let slots = hashes.iter().filter_map(|hash| self.index.find(*hash, None));
        black_box(slots.fold(0, |all, (_, slot)| all ^ self.touch(&slot)));
    }

    /// Reads the first and the last byte of a small record that is in memory. What it gives means
    /// nothing.
    fn touch(&self, slot: &Slot) -> u8 {
        let size = self.record_size(slot);
        if size > BLOCK_SIZE {
            return 0;
        }
        if let Some(bytes) = self.in_memory(slot.segment(), slot.offset, size) {
            return bytes.first().unwrap_or(&0) ^ bytes.last().unwrap_or(&0);
        }
        let (number, within) =
            (slot.offset as usize / BLOCK_SIZE, slot.offset as usize % BLOCK_SIZE);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let place = self.segment(slot.segment()).and_then(|segment| segment.cached(number));
        let Some(place) = place else { return 0 };
        let last = (within + size - 1).min(BLOCK_SIZE - 1);
        self.cache.touch(place, within) ^ self.cache.touch(place, last)
    }
}
