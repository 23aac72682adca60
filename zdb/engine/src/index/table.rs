//! The index of user mode: an open-addressing hash table of 20 bytes a place, for any number of
//! keys with the same hash.
//!
//! 64 shards by the hash's first bits, each of which grows alone and by a quarter, so that growth
//! never stops the world and a place is 4/5 to 16/25 full: 25 to 31 bytes a key. A shard is made of
//! small pages and grows by adding some, so that nothing is freed on the way and memory doesn't
//! fall to pieces. Collisions go to the next place (linear probing); a removal shifts back what it
//! can, so there are no markers.

use super::slot::Slot;

const SHARD_BITS: u32 = 6;
pub(crate) const SHARD_COUNT: usize = 1 << SHARD_BITS;
/// Places of a page.
const PAGE_PLACE_COUNT: usize = 128;

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

#[derive(Debug, Default)]
struct Shard {
    #[expect(clippy::vec_box, reason = "pages stay where they are when there are more of them")]
    pages: Vec<Box<Page>>,
    used: usize,
}

#[derive(Debug)]
struct Page([Entry; PAGE_PLACE_COUNT]);

/// A hash and its slot in 20 bytes, where a pair of them would be padded to 24.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: [u32; 2],
    slot: [u32; 3],
}

impl Entry {
    const FREE: Self = Self { hash: [0; 2], slot: [u32::MAX, 0, 0] };

    fn new(hash: u64, slot: Slot) -> Self {
        Self { hash: halves(hash), slot: slot.to_words() }
    }

    fn is_free(&self) -> bool {
        self.slot[0] == u32::MAX
    }

    fn hash(&self) -> u64 {
        u64::from(self.hash[0]) << 32 | u64::from(self.hash[1])
    }
}

fn halves(hash: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

impl Page {
    const FREE: Self = Self([Entry::FREE; PAGE_PLACE_COUNT]);
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
        Some((Place { shard: number, index }, Slot::from_words(shard.entry(index).slot)))
    }

    /// Reads from where the search for a hash begins. What it gives means nothing.
    pub(crate) fn touch(&self, hash: u64) -> u32 {
        let shard = &self.shards[usize::from(shard_number(hash))];
        if shard.used == 0 { 0 } else { shard.entry(shard.home(hash)).slot[0] }
    }

    pub(crate) fn insert(&mut self, hash: u64, slot: Slot) {
        let shard = &mut self.shards[usize::from(shard_number(hash))];
        shard.make_room();
        shard.put(hash, slot);
    }

    /// Inserts a slot if there is none with this hash; gives the first one if there is.
    pub(crate) fn insert_new(&mut self, hash: u64, slot: Slot) -> Option<(Place, Slot)> {
        let number = shard_number(hash);
        let shard = &mut self.shards[usize::from(number)];
        shard.make_room();
        let home = shard.home(hash);
        match shard.search(hash, home) {
            Ok(index) => {
                let known = Slot::from_words(shard.entry(index).slot);
                Some((Place { shard: number, index }, known))
            }
            Err(free) => {
                *shard.entry_mut(free) = Entry::new(hash, slot);
                shard.used += 1;
                None
            }
        }
    }

    /// Makes room for so many more keys, if their hashes are spread as they should be.
    pub(crate) fn reserve(&mut self, count: usize) {
        for shard in &mut self.shards {
            let wanted = (shard.used + count / SHARD_COUNT) * 5 / 4;
            if wanted > shard.capacity() {
                // By a quarter at least: each growth moves all that is there.
                shard.grow((wanted - shard.capacity()).max(shard.capacity() / 4));
            }
        }
    }

    pub(crate) fn replace(&mut self, place: Place, slot: Slot) {
        self.shards[usize::from(place.shard)].entry_mut(place.index).slot = slot.to_words();
    }

    pub(crate) fn remove(&mut self, place: Place) {
        self.shards[usize::from(place.shard)].remove(place.index);
    }

    pub(crate) fn memory_size(&self) -> u64 {
        let pages: usize = self.shards.iter().map(|shard| shard.pages.len()).sum();
        let lists: usize = self.shards.iter().map(|shard| shard.pages.capacity()).sum();
        (pages * size_of::<Page>()
            + lists * size_of::<Box<Page>>()
            + SHARD_COUNT * size_of::<Shard>()) as u64
    }
}

impl Shard {
    fn capacity(&self) -> usize {
        self.pages.len() * PAGE_PLACE_COUNT
    }

    fn entry(&self, index: usize) -> &Entry {
        &self.pages[index / PAGE_PLACE_COUNT].0[index % PAGE_PLACE_COUNT]
    }

    fn entry_mut(&mut self, index: usize) -> &mut Entry {
        &mut self.pages[index / PAGE_PLACE_COUNT].0[index % PAGE_PLACE_COUNT]
    }

    fn home(&self, hash: u64) -> usize {
        // The 32 bits after the shard's, scaled to the capacity: no power of two is needed.
        let bits = (hash << SHARD_BITS) >> 32;
        usize::try_from((bits * self.capacity() as u64) >> 32).unwrap_or_default()
    }

    fn next(&self, index: usize) -> usize {
        if index + 1 == self.capacity() { 0 } else { index + 1 }
    }

    fn find(&self, hash: u64, index: usize) -> Option<usize> {
        self.search(hash, index).ok()
    }

    /// Where the hash is, from a place on, or the free place that says that it is nowhere. There is always
    /// one, so this ends.
    fn search(&self, hash: u64, mut index: usize) -> Result<usize, usize> {
        let wanted = halves(hash);
        loop {
            let within = index % PAGE_PLACE_COUNT;
            let page = &self.pages[index / PAGE_PLACE_COUNT];
            for (step, entry) in page.0[within..].iter().enumerate() {
                if entry.is_free() {
                    return Err(index + step);
                }
                if entry.hash == wanted {
                    return Ok(index + step);
                }
            }
            index = self.next(index - within + PAGE_PLACE_COUNT - 1);
        }
    }

    /// Grows by a quarter if one more would fill it too far.
    fn make_room(&mut self) {
        if (self.used + 1) * 5 > self.capacity() * 4 {
            self.grow(self.capacity() / 4);
        }
    }

    fn put(&mut self, hash: u64, slot: Slot) {
        let mut index = self.home(hash);
        while !self.entry(index).is_free() {
            index = self.next(index);
        }
        *self.entry_mut(index) = Entry::new(hash, slot);
        self.used += 1;
    }

    /// Adds pages with at least so many places, and puts everything where it belongs now.
    fn grow(&mut self, by: usize) {
        let mut all = Vec::with_capacity(self.used);
        for page in &mut self.pages {
            let page = std::mem::replace(&mut **page, Page::FREE);
            all.extend(page.0.into_iter().filter(|entry| !entry.is_free()));
        }
        let count = by.div_ceil(PAGE_PLACE_COUNT).max(1);
        self.pages.reserve_exact(count);
        self.pages.extend((0..count).map(|_| Box::new(Page::FREE)));
        self.used = 0;
        for entry in all {
            self.put(entry.hash(), Slot::from_words(entry.slot));
        }
    }

    /// Frees a place, and shifts back those that collided with it.
    fn remove(&mut self, mut hole: usize) {
        let mut index = self.next(hole);
        while !self.entry(index).is_free() {
            let home = self.home(self.entry(index).hash());
            // It may move if its home is not between the hole and itself, in ring order.
            let between = if hole <= index {
                hole < home && home <= index
            } else {
                hole < home || home <= index
            };
            if !between {
                *self.entry_mut(hole) = *self.entry(index);
                hole = index;
            }
            index = self.next(index);
        }
        *self.entry_mut(hole) = Entry::FREE;
        self.used -= 1;
    }
}

/// Which shard a hash belongs to.
pub(crate) fn shard_number(hash: u64) -> u8 {
    hash.to_be_bytes()[0] >> (u8::BITS - SHARD_BITS)
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
