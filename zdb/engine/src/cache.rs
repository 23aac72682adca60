//! Blocks of segments in memory, because a call to the system costs several times what a small read
//! is worth.
//!
//! Each namespace has its own cache, so that there are no locks; all caches of an engine share one
//! budget. A block that was not asked for since the hand came by last goes first (CLOCK). Which
//! block is where is not looked up here: each segment has a list of its blocks' places, which is
//! one small step instead of a hash table. So whoever puts a block is told whose place it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block.
pub(crate) const BLOCK_SIZE: usize = 4096;
/// What a block costs: itself, its owner, its place in a list.
const COST: u64 = BLOCK_SIZE as u64 + 32;
/// Blocks are allocated so many at a time.
const SLAB_BLOCK_COUNT: usize = 16;

type Bytes = [u8; BLOCK_SIZE];

/// What all caches of an engine may have together.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    size: u64,
}

impl Budget {
    pub(crate) fn new(size: u64) -> Self {
        Self { used: AtomicU64::new(0), size }
    }

    fn take(&self) -> bool {
        let cost = COST * SLAB_BLOCK_COUNT as u64;
        let before = self.used.fetch_add(cost, Ordering::Relaxed);
        let taken = before + cost <= self.size;
        if !taken {
            self.used.fetch_sub(cost, Ordering::Relaxed);
        }
        taken
    }

    fn give(&self, slab_count: usize) {
        let cost = COST * SLAB_BLOCK_COUNT as u64;
        self.used.fetch_sub(cost * slab_count as u64, Ordering::Relaxed);
    }

    /// Whether others may soon want what one has.
    fn is_short(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.size / 4 * 3
    }
}

/// Whose a block is: a segment's file, and which block of it. A file that replaces another under the
/// same id has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) segment: u32,
    pub(crate) file: u32,
    pub(crate) number: u32,
}

/// A namespace's blocks.
#[derive(Debug)]
pub(crate) struct Cache {
    budget: Arc<Budget>,
    slabs: Vec<Box<[Bytes]>>,
    owners: Vec<Owner>,
    asked: Vec<bool>,
    hand: usize,
}

impl Cache {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, slabs: Vec::new(), owners: Vec::new(), asked: Vec::new(), hand: 0 }
    }

    /// The block at a place.
    pub(crate) fn get(&mut self, place: u32) -> Option<&Bytes> {
        let place = place as usize;
        *self.asked.get_mut(place)? = true;
        self.slabs.get(place / SLAB_BLOCK_COUNT)?.get(place % SLAB_BLOCK_COUNT)
    }

    /// The block at a place, without asking for it.
    pub(crate) fn peek(&self, place: u32) -> Option<&Bytes> {
        let place = place as usize;
        self.slabs.get(place / SLAB_BLOCK_COUNT)?.get(place % SLAB_BLOCK_COUNT)
    }

    /// Keeps a block, and says where, and whose place it took. Without budget it takes the place of
    /// another of this namespace's; without any of those it is not kept.
    pub(crate) fn put(&mut self, owner: Owner, bytes: &Bytes) -> Option<(u32, Option<Owner>)> {
        if self.owners.len() == self.slabs.len() * SLAB_BLOCK_COUNT && self.budget.take() {
            self.slabs.push(vec![[0; BLOCK_SIZE]; SLAB_BLOCK_COUNT].into_boxed_slice());
        }
        let (place, evicted) = if self.owners.len() < self.slabs.len() * SLAB_BLOCK_COUNT {
            self.owners.push(owner);
            self.asked.push(false);
            (self.owners.len() - 1, None)
        } else {
            let place = self.victim()?;
            (place, Some(std::mem::replace(&mut self.owners[place], owner)))
        };
        *self.slabs.get_mut(place / SLAB_BLOCK_COUNT)?.get_mut(place % SLAB_BLOCK_COUNT)? = *bytes;
        Some((u32::try_from(place).ok()?, evicted))
    }

    fn victim(&mut self) -> Option<usize> {
        // After one round of the hand nothing is asked for any more.
        for _ in 0..=self.owners.len() {
            let place = self.hand;
            self.hand = if place + 1 < self.owners.len() { place + 1 } else { 0 };
            if !std::mem::take(self.asked.get_mut(place)?) {
                return Some(place);
            }
        }
        None
    }

    /// Gives everything back if memory is short; says whether it did.
    pub(crate) fn relax(&mut self) -> bool {
        let short = self.budget.is_short();
        if short {
            self.clear();
        }
        short
    }

    fn clear(&mut self) {
        self.budget.give(self.slabs.len());
        (self.slabs, self.owners, self.asked) = (Vec::new(), Vec::new(), Vec::new());
        self.hand = 0;
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u32) -> Owner {
        Owner { segment: 1, file: 1, number }
    }

    #[test]
    fn the_budget_is_kept_and_what_is_asked_for_stays() {
        let budget = Arc::new(Budget::new(COST * 2 * SLAB_BLOCK_COUNT as u64));
        let mut cache = Cache::new(Arc::clone(&budget));
        let first = cache.put(owner(0), &[0; BLOCK_SIZE]).unwrap().0;
        for number in 1..200u32 {
            let bytes = [u8::try_from(number).unwrap(); BLOCK_SIZE];
            let (place, evicted) = cache.put(owner(number), &bytes).unwrap();
            assert_ne!(evicted, Some(owner(0)), "asked for all the time");
            assert_eq!(evicted.is_some(), number >= 32);
            assert_eq!(cache.get(first), Some(&[0; BLOCK_SIZE]));
            assert_eq!(
                cache.slabs[place as usize / SLAB_BLOCK_COUNT][place as usize % SLAB_BLOCK_COUNT],
                bytes
            );
        }
        let mut other = Cache::new(Arc::clone(&budget));
        assert_eq!(other.put(owner(1), &[0; BLOCK_SIZE]), None, "nothing left, nothing to replace");
        assert!(cache.relax());
        assert!(other.put(owner(1), &[0; BLOCK_SIZE]).is_some());
        drop((cache, other));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
