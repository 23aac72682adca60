//! What a cache counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::table::Table;

#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) inserted_blocks: AtomicU64,
    pub(super) inserted_bytes: AtomicU64,
    pub(super) bad_blocks: AtomicU64,
    pub(super) refused_keys: AtomicU64,
    pub(super) evicted_segments: AtomicU64,
    pub(super) carried_blocks: AtomicU64,
    pub(super) memory_blocks: AtomicU64,
}

/// What a cache has done since it was opened, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// Requests answered from the cache.
    pub hits: u64,
    /// Requests that found nothing.
    pub misses: u64,
    /// Blocks written.
    pub inserted_blocks: u64,
    /// Their plaintext, in bytes.
    pub inserted_bytes: u64,
    /// Blocks found damaged, and forgotten.
    pub bad_blocks: u64,
    /// Requests with a key that was not the block's.
    pub refused_keys: u64,
    /// Segments that made room for others.
    pub evicted_segments: u64,
    /// Blocks that were saved from those.
    pub carried_blocks: u64,
    /// Blocks kept in memory because the disk took no more.
    pub memory_blocks: u64,
    /// Blocks that can be found now.
    pub blocks: u64,
    /// Segments now, those in memory included.
    pub segments: u64,
    /// Bytes accounted for on disk; a segment being written counts as full.
    pub disk_bytes: u64,
}

impl Counters {
    /// The counters, and what the table holds now.
    pub(super) fn snapshot(&self, table: &Table) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            hits: read(&self.hits),
            misses: read(&self.misses),
            inserted_blocks: read(&self.inserted_blocks),
            inserted_bytes: read(&self.inserted_bytes),
            bad_blocks: read(&self.bad_blocks),
            refused_keys: read(&self.refused_keys),
            evicted_segments: read(&self.evicted_segments),
            carried_blocks: read(&self.carried_blocks),
            memory_blocks: read(&self.memory_blocks),
            blocks: table.block_count() as u64,
            segments: table.segments().count() as u64,
            disk_bytes: table.segments().map(|(_, segment)| segment.disk_size()).sum(),
        }
    }
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
