//! Which block is where: all segments, and a hash table over their entries.
//!
//! Memory per block is bounded: an [`Entry`] of 72 bytes, and 9 to 21 bytes of hash table. Ids are
//! hashed with a key of this process, because whoever makes images chooses ids.

use std::hash::{BuildHasher, RandomState};

use flist_view::block::{BlockCipher, BlockId};
use hashbrown::HashTable;

use super::layout::Record;
use super::segment::{Entry, Segment};

/// Where an entry is: a place in [`Table::segments`] and one in its entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) segment: u32,
    entry: u32,
}

/// All that this process knows of the cache's contents.
#[derive(Default)]
pub(super) struct Table {
    slots: HashTable<Slot>,
    segments: Vec<Option<Segment>>,
    hasher: RandomState,
}

impl Table {
    /// Adds a segment without entries; returns its place.
    pub(super) fn add(&mut self, segment: Segment) -> u32 {
        let place = self.segments.iter().position(Option::is_none).unwrap_or_else(|| {
            self.segments.push(None);
            self.segments.len() - 1
        });
        self.segments[place] = Some(segment);
        u32::try_from(place).expect("the number of segments is bounded")
    }

    /// Forgets a segment and its blocks.
    pub(super) fn remove(&mut self, place: u32) -> Option<Segment> {
        let segment = self.segments.get_mut(place as usize)?.take()?;
        for (number, entry) in (0u32..).zip(&segment.entries) {
            let hash = hash(&self.hasher, entry.cipher(), &entry.id);
            let gone = Slot { segment: place, entry: number };
            if let Ok(slot) = self.slots.find_entry(hash, |slot| *slot == gone) {
                slot.remove();
            }
        }
        Some(segment)
    }

    /// Adds a block to a segment. A later record of the same block replaces an earlier one.
    pub(super) fn insert(&mut self, place: u32, record: &Record, checked: bool) {
        let Some(segment) = self.segments.get_mut(place as usize).and_then(Option::as_mut) else {
            return;
        };
        let entry = u32::try_from(segment.entries.len()).expect("segments bound their entries");
        segment.entries.push(Entry::new(record, checked));
        let new = Slot { segment: place, entry };
        let (segments, hasher) = (&self.segments, &self.hasher);
        let key = (record.cipher, record.block.id);
        let slot = self.slots.entry(
            hash(hasher, key.0, &key.1),
            |slot| entry_at(segments, *slot).is_some_and(|e| (e.cipher(), e.id) == key),
            |slot| entry_at(segments, *slot).map_or(0, |e| hash(hasher, e.cipher(), &e.id)),
        );
        match slot {
            hashbrown::hash_table::Entry::Occupied(mut old) => *old.get_mut() = new,
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                vacant.insert(new);
            }
        }
    }

    /// The block's entry and the segment it is in.
    pub(super) fn find(
        &self,
        cipher: BlockCipher,
        id: &BlockId,
    ) -> Option<(Slot, &Entry, &Segment)> {
        let hash = hash(&self.hasher, cipher, id);
        let slot = *self.slots.find(hash, |slot| {
            entry_at(&self.segments, *slot).is_some_and(|e| e.cipher() == cipher && e.id == *id)
        })?;
        let segment = self.segment(slot.segment)?;
        Some((slot, segment.entries.get(slot.entry as usize)?, segment))
    }

    /// Forgets a block, if it is still where it was. Its bytes go with its segment.
    pub(super) fn forget(&mut self, cipher: BlockCipher, id: &BlockId, at: Slot) {
        let hash = hash(&self.hasher, cipher, id);
        if let Ok(slot) = self.slots.find_entry(hash, |slot| *slot == at) {
            slot.remove();
        }
    }

    /// Whether the table still points to this entry of a segment.
    pub(super) fn is_current(&self, place: u32, number: u32) -> bool {
        let slot = Slot { segment: place, entry: number };
        entry_at(&self.segments, slot)
            .and_then(|entry| self.find(entry.cipher(), &entry.id))
            .is_some_and(|(found, _, _)| found == slot)
    }

    pub(super) fn segment(&self, place: u32) -> Option<&Segment> {
        self.segments.get(place as usize)?.as_ref()
    }

    pub(super) fn segment_mut(&mut self, place: u32) -> Option<&mut Segment> {
        self.segments.get_mut(place as usize)?.as_mut()
    }

    /// All segments with their places.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u32, &Segment)> {
        (0u32..).zip(&self.segments).filter_map(|(place, segment)| Some((place, segment.as_ref()?)))
    }

    /// Blocks that can be found.
    pub(super) fn block_count(&self) -> usize {
        self.slots.len()
    }
}

fn entry_at(segments: &[Option<Segment>], slot: Slot) -> Option<&Entry> {
    segments.get(slot.segment as usize)?.as_ref()?.entries.get(slot.entry as usize)
}

fn hash(hasher: &RandomState, cipher: BlockCipher, id: &BlockId) -> u64 {
    hasher.hash_one((cipher, id))
}
