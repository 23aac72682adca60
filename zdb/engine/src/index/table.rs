//! The index of user mode: an open-addressing hash table of 20 bytes a place, for any number of
//! keys with the same hash.
//!
//! 256 shards by the hash's first byte, each of which grows alone and by a quarter, so that growth
//! never stops the world and a place is 4/5 to 16/25 full: 25 to 31 bytes a key. Collisions go to
//! the next place (linear probing); a removal shifts back what it can, so there are no markers.

use super::slot::Slot;

const SHARD_COUNT: usize = 256;
const CAPACITY_MIN: usize = 8;

/// A place in the table, until the table changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    shard: u8,
    index: usize,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Vec<Shard>,
}

impl Default for Table {
    fn default() -> Self {
        Self { shards: (0..SHARD_COUNT).map(|_| Shard::default()).collect() }
    }
}

/// Hashes and slots apart, because together they would be padded to 24 bytes.
#[derive(Debug, Default)]
struct Shard {
    hashes: Vec<u64>,
    slots: Vec<Slot>,
    used: usize,
}

impl Table {
    /// The first slot with this hash, or the next after `after`.
    pub(crate) fn find(&self, hash: u64, after: Option<Place>) -> Option<(Place, Slot)> {
        let number = shard_number(hash);
        let shard = &self.shards[usize::from(number)];
        let start = match after {
            Some(place) => shard.next(place.index),
            None if shard.used == 0 => return None,
            None => shard.home(hash),
        };
        let index = shard.find(hash, start)?;
        Some((Place { shard: number, index }, shard.slots[index]))
    }

    pub(crate) fn insert(&mut self, hash: u64, slot: Slot) {
        let shard = &mut self.shards[usize::from(shard_number(hash))];
        if (shard.used + 1) * 5 > shard.slots.len() * 4 {
            shard.grow();
        }
        shard.put(hash, slot);
    }

    pub(crate) fn replace(&mut self, place: Place, slot: Slot) {
        self.shards[usize::from(place.shard)].slots[place.index] = slot;
    }

    pub(crate) fn remove(&mut self, place: Place) {
        self.shards[usize::from(place.shard)].remove(place.index);
    }

    pub(crate) fn memory_size(&self) -> u64 {
        let places: usize = self.shards.iter().map(|shard| shard.slots.capacity()).sum();
        let place_size = size_of::<u64>() + size_of::<Slot>();
        (places * place_size + SHARD_COUNT * size_of::<Shard>()) as u64
    }
}

impl Shard {
    fn home(&self, hash: u64) -> usize {
        // The 32 bits after the shard's, scaled to the capacity: no power of two is needed.
        let bits = (hash << 8) >> 32;
        usize::try_from((bits * self.slots.len() as u64) >> 32).unwrap_or_default()
    }

    fn next(&self, index: usize) -> usize {
        if index + 1 == self.slots.len() { 0 } else { index + 1 }
    }

    /// Where the hash is, from a place on. There is always a free place, so this ends.
    fn find(&self, hash: u64, mut index: usize) -> Option<usize> {
        while self.slots[index] != Slot::FREE {
            if self.hashes[index] == hash {
                return Some(index);
            }
            index = self.next(index);
        }
        None
    }

    fn put(&mut self, hash: u64, slot: Slot) {
        let mut index = self.home(hash);
        while self.slots[index] != Slot::FREE {
            index = self.next(index);
        }
        self.hashes[index] = hash;
        self.slots[index] = slot;
        self.used += 1;
    }

    fn grow(&mut self) {
        let capacity = (self.slots.len() + self.slots.len() / 4).max(CAPACITY_MIN);
        let grown = Self { hashes: vec![0; capacity], slots: vec![Slot::FREE; capacity], used: 0 };
        let old = std::mem::replace(self, grown);
        for (hash, slot) in old.hashes.into_iter().zip(old.slots) {
            if slot != Slot::FREE {
                self.put(hash, slot);
            }
        }
    }

    /// Frees a place, and shifts back those that collided with it.
    fn remove(&mut self, mut hole: usize) {
        let mut index = self.next(hole);
        while self.slots[index] != Slot::FREE {
            let home = self.home(self.hashes[index]);
            // It may move if its home is not between the hole and itself, in ring order.
            let between = if hole <= index {
                hole < home && home <= index
            } else {
                hole < home || home <= index
            };
            if !between {
                self.hashes[hole] = self.hashes[index];
                self.slots[hole] = self.slots[index];
                hole = index;
            }
            index = self.next(index);
        }
        self.slots[hole] = Slot::FREE;
        self.used -= 1;
    }
}

fn shard_number(hash: u64) -> u8 {
    hash.to_be_bytes()[0]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn slot(offset: u32) -> Slot {
        Slot::new(1, offset, 1, 1)
    }

    fn all(table: &Table, hash: u64) -> Vec<u32> {
        let mut found = Vec::new();
        let mut after = None;
        while let Some((place, slot)) = table.find(hash, after) {
            found.push(slot.offset);
            after = Some(place);
        }
        found.sort_unstable();
        found
    }

    proptest! {
        /// Few hashes in one shard, so that they collide, wrap around and shift back.
        #[test]
        fn it_is_a_multimap(steps in proptest::collection::vec((0..24u64, any::<bool>()), 0..300)) {
            let mut table = Table::default();
            let mut model: HashMap<u64, Vec<u32>> = HashMap::new();
            for (offset, (name, insert)) in steps.into_iter().enumerate() {
                // Near the end of the shard.
                let hash = (0xffff_ff00 + name * 8) << 24 | name;
                let offset = u32::try_from(offset).unwrap();
                let known = model.entry(hash).or_default();
                if insert {
                    table.insert(hash, slot(offset));
                    known.push(offset);
                } else if let Some((place, slot)) = table.find(hash, None) {
                    table.remove(place);
                    known.retain(|offset| *offset != slot.offset);
                }
                for (hash, offsets) in &model {
                    prop_assert_eq!(&all(&table, *hash), offsets);
                }
            }
        }
    }

    #[test]
    fn a_key_takes_at_most_32_bytes() {
        let mut table = Table::default();
        let mut hash = 1u64;
        for offset in 0..200_000 {
            hash = hash
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            table.insert(hash ^ hash >> 29, slot(offset));
        }
        let each = table.memory_size() / 200_000;
        assert!(each <= 32, "{each} bytes a key");
    }
}
