//! Records of the log become the index: many at once, at the start.
//!
//! A million keys are more than a processor's caches hold, so what index files tell is first dealt out to
//! the shards of the index, in 24 bytes each, and then taken shard by shard: a shard fits the cache.
//! Records of one key are in one shard, so they stay in order.

use super::Namespace;
use super::locate::Wanted;
use crate::index::slot::Slot;
use crate::index::table::{SHARD_COUNT, shard_number};
use crate::index::{At, Known};
use crate::log::block::Entry;
use crate::{Error, Mode};

/// Records that the index learns of at once.
const ADMIT_COUNT: usize = 1024 * 1024;

/// A record that the index doesn't know yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    hash: u64,
    slot: Slot,
    /// Whether its writer knew the key.
    supersedes: bool,
}

impl Arrival {
    pub(super) fn new(segment: u32, entry: &Entry) -> Self {
        Self { hash: entry.hash, slot: entry.slot(segment), supersedes: entry.supersedes }
    }
}

/// Records on their way into the index, by shard and in order.
#[derive(Debug)]
pub(super) struct Arrivals {
    shards: Vec<Vec<Arrival>>,
    count: usize,
    /// Those whose key was new to the writer.
    new_count: usize,
}

impl Arrivals {
    pub(super) fn new() -> Self {
        Self { shards: vec![Vec::new(); SHARD_COUNT], count: 0, new_count: 0 }
    }

    pub(super) fn push(&mut self, arrival: Arrival) {
        self.count += 1;
        self.new_count += usize::from(!arrival.supersedes);
        self.shards[usize::from(shard_number(arrival.hash))].push(arrival);
    }

    /// Whether there are enough for one go.
    pub(super) fn is_full(&self) -> bool {
        self.count >= ADMIT_COUNT
    }
}

impl Namespace {
    /// Lets the index know many records, which come after all that it knows.
    pub(super) fn admit_all(&mut self, arrivals: &mut Arrivals) -> Result<(), Error> {
        self.index.reserve(arrivals.new_count);
        for shard in &mut arrivals.shards {
            shard.iter().try_for_each(|arrival| self.admit(arrival))?;
            shard.clear();
        }
        (arrivals.count, arrivals.new_count) = (0, 0);
        Ok(())
    }

    /// Lets the index know a record of the log.
    fn admit(&mut self, arrival: &Arrival) -> Result<(), Error> {
        let Known::Already(first) = self.index.insert_new(arrival.hash, arrival.slot) else {
            self.count(&arrival.slot);
            return Ok(());
        };
        let (at, slot) = first;
        let is_only = self.index.find(arrival.hash, Some(at)).is_none();
        let is_sequential = self.descriptor.settings.mode == Mode::Sequential;
        // The writer knew the key, and there is one that it can have been.
        let is_same = arrival.supersedes && slot.key_size() == arrival.slot.key_size();
        let old = if is_only && (is_sequential || is_same) {
            Some(first)
        } else {
            self.predecessor(arrival)?
        };
        self.install(arrival.hash, arrival.slot, old);
        Ok(())
    }

    /// Which of several slots with a record's hash is its key's: only the keys can tell.
    fn predecessor(&mut self, arrival: &Arrival) -> Result<Option<(At, Slot)>, Error> {
        let Arrival { hash, slot, .. } = arrival;
        let size = self.record_size(slot);
        let mut record = Vec::new();
        let opened = self.read_opened(slot.segment(), slot.offset, size, &mut record);
        let Ok((_, key_at)) = opened else { return Ok(None) };
        let key = record.get(key_at..key_at + usize::from(slot.key_size())).unwrap_or_default();
        let wanted = Wanted { key, hash: *hash, value: None };
        Ok(self.locate(&wanted, false)?.map(|located| (located.at, located.slot)))
    }
}
