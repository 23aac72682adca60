//! Where blocks of one image are, as far as this client was told.
//!
//! Twelve bytes per block of the image, zero (never touched, so not even in memory) until the block
//! is first asked for; and a bounded number of open segments.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::Located;
use crate::block::{BLOCK_SIZE, BlockData};

/// Segments of which a client keeps descriptors.
pub(super) const OPEN_SEGMENT_COUNT_MAX: usize = 64;
const WORDS_PER_PLACE: usize = 3;

/// Known places. A segment gets a serial number when its descriptor arrives; a place whose serial
/// number is no longer open is unknown again.
pub(super) struct Places {
    /// Serial number of the segment, offset, size; for each position.
    words: Vec<u32>,
    open: HashMap<u32, OpenSegment>,
    serials: HashMap<u64, u32>,
    last_serial: u32,
    clock: AtomicU64,
}

struct OpenSegment {
    number: u64,
    file: Arc<File>,
    used: AtomicU64,
}

impl Places {
    /// Nothing known of an image with this many blocks.
    pub(super) fn new(block_count: u32) -> Self {
        Self {
            words: vec![0; block_count as usize * WORDS_PER_PLACE],
            open: HashMap::new(),
            serials: HashMap::new(),
            last_serial: 0,
            clock: AtomicU64::new(0),
        }
    }

    /// The block at a position, if its place is known and its segment open.
    pub(super) fn find(&self, position: u32) -> Option<BlockData> {
        let start = (position as usize).checked_mul(WORDS_PER_PLACE)?;
        let [serial, offset, size] = *self.words.get(start..)?.first_chunk()?;
        let segment = self.open.get(&serial)?;
        segment.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(BlockData { file: Arc::clone(&segment.file), offset: offset.into(), size })
    }

    /// Remembers where the block at `position` is. None if its segment isn't open (any more), or if
    /// the place is not one that a block can have.
    pub(super) fn learn(&mut self, position: u32, located: &Located) -> Option<BlockData> {
        let serial = *self.serials.get(&located.segment)?;
        let offset = u32::try_from(located.offset).ok()?;
        let start = (position as usize).checked_mul(WORDS_PER_PLACE)?;
        let place = self.words.get_mut(start..)?.first_chunk_mut::<WORDS_PER_PLACE>()?;
        if located.size > BLOCK_SIZE {
            return None;
        }
        *place = [serial, offset, located.size];
        self.find(position)
    }

    /// Keeps a segment's descriptor. Returns the number of the segment that was closed for it, if
    /// there were as many as there may be.
    pub(super) fn open(&mut self, number: u64, file: File) -> Option<u64> {
        let full = self.open.len() >= OPEN_SEGMENT_COUNT_MAX && !self.serials.contains_key(&number);
        let closed = if full { self.least_used() } else { None };
        if let Some(closed) = closed {
            self.close(closed);
        }
        self.close(number);
        // Serial numbers would only repeat after 2^32 descriptors; 0 is never one.
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        let used = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        self.open.insert(self.last_serial, OpenSegment { number, file: Arc::new(file), used });
        self.serials.insert(number, self.last_serial);
        closed
    }

    /// Lets go of a segment. Readers that hold its file keep it until they are done.
    pub(super) fn close(&mut self, number: u64) {
        if let Some(serial) = self.serials.remove(&number) {
            self.open.remove(&serial);
        }
    }

    /// Lets go of all segments, and thereby forgets all places.
    pub(super) fn close_all(&mut self) {
        self.serials.clear();
        self.open.clear();
    }

    fn least_used(&self) -> Option<u64> {
        let used = |segment: &&OpenSegment| segment.used.load(Ordering::Relaxed);
        self.open.values().min_by_key(used).map(|segment| segment.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    fn at(segment: u64) -> Located {
        Located { segment, offset: 64, size: 100 }
    }

    #[test]
    fn places_are_known_while_their_segment_is_open() {
        let mut places = Places::new(10);
        assert!(places.find(3).is_none());
        assert!(places.learn(3, &at(7)).is_none(), "no descriptor yet");
        assert_eq!(places.open(7, file()), None);
        assert_eq!(places.learn(3, &at(7)).unwrap().offset, 64);
        assert_eq!(places.find(3).unwrap().size, 100);
        assert!(places.find(4).is_none());
        places.close(7);
        assert!(places.find(3).is_none());
        places.open(7, file());
        assert!(places.find(3).is_none(), "a new descriptor does not vouch for old places");
    }

    #[test]
    fn impossible_places_are_not_learned() {
        let mut places = Places::new(10);
        places.open(7, file());
        assert!(places.learn(10, &at(7)).is_none());
        assert!(places.learn(1, &Located { size: BLOCK_SIZE + 1, ..at(7) }).is_none());
        assert!(places.learn(1, &Located { offset: 1 << 32, ..at(7) }).is_none());
        assert!(places.find(u32::MAX).is_none());
    }

    #[test]
    fn the_least_used_segment_makes_room() {
        let mut places = Places::new(10);
        for number in 0..OPEN_SEGMENT_COUNT_MAX as u64 {
            assert_eq!(places.open(number, file()), None);
        }
        places.learn(0, &at(0)).unwrap();
        assert_eq!(places.open(1, file()), None, "open already");
        assert_eq!(places.open(1000, file()), Some(2));
        assert!(places.find(0).is_some());
    }
}
