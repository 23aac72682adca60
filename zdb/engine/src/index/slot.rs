//! What the index says about a key: where its newest record is, and how large.

/// 12 bytes for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Segment's name in the low 25 bits, flags above.
    segment_and_flags: u32,
    /// Where the record starts.
    pub(crate) offset: u32,
    /// Value size in the low 24 bits, key size above.
    sizes: u32,
}

/// Largest id of a segment; the next would look like a table's free place.
pub(crate) const SEGMENT_ID_MAX: u32 = (1 << 24) - 2;

/// A segment's name is its id, and this bit, which changes whenever another file takes the place of the
/// segment's: so the index may point to both while it is told of the new one.
const ALTERNATE: u32 = 1 << 24;
const NAME_MASK: u32 = 0x01ff_ffff;
const VALUE_SIZE_MASK: u32 = 0x00ff_ffff;
const TOMBSTONE: u32 = 1 << 25;
const HAS_PREVIOUS: u32 = 1 << 26;
const VERIFIED: u32 = 1 << 27;
const OLDER_SHIFT: u32 = 28;
/// Older records are counted up to here; then "many", for ever.
const OLDER_MAX: u32 = 15;

/// The id of the segment with this name.
pub(crate) fn segment_id(name: u32) -> u32 {
    name & !ALTERNATE
}

/// The name of the segment that takes the place of the one with this name.
pub(crate) fn next_name(name: u32) -> u32 {
    name ^ ALTERNATE
}

impl Slot {
    pub(crate) fn new(segment: u32, offset: u32, key_size: u8, value_size: u32) -> Self {
        debug_assert!(segment_id(segment) <= SEGMENT_ID_MAX && value_size <= VALUE_SIZE_MASK);
        let sizes = u32::from(key_size) << 24 | value_size;
        Self { segment_and_flags: segment, offset, sizes }
    }

    /// As a table stores it.
    pub(crate) fn to_words(self) -> [u32; 3] {
        [self.segment_and_flags, self.offset, self.sizes]
    }

    pub(crate) fn from_words([segment_and_flags, offset, sizes]: [u32; 3]) -> Self {
        Self { segment_and_flags, offset, sizes }
    }

    pub(crate) fn with_tombstone(self, set: bool) -> Self {
        self.with(TOMBSTONE, set)
    }

    pub(crate) fn with_previous(self, set: bool) -> Self {
        self.with(HAS_PREVIOUS, set)
    }

    pub(crate) fn with_verified(self) -> Self {
        self.with(VERIFIED, true)
    }

    /// How many records of this key are in the log beside the newest; saturates.
    pub(crate) fn with_older(self, count: u32) -> Self {
        let cleared = self.segment_and_flags & !(OLDER_MAX << OLDER_SHIFT);
        Self { segment_and_flags: cleared | count.min(OLDER_MAX) << OLDER_SHIFT, ..self }
    }

    /// The same record at another place.
    pub(crate) fn moved(self, segment: u32, offset: u32) -> Self {
        let flags = self.segment_and_flags & !NAME_MASK & !VERIFIED;
        Self { segment_and_flags: flags | segment, offset, ..self }
    }

    /// One older record fewer; "many" stays many.
    pub(crate) fn with_one_older_less(self) -> Self {
        match self.older() {
            0 | OLDER_MAX => self,
            count => self.with_older(count - 1),
        }
    }

    /// The name of the segment.
    pub(crate) fn segment(&self) -> u32 {
        self.segment_and_flags & NAME_MASK
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.segment_and_flags & TOMBSTONE != 0
    }

    pub(crate) fn has_previous(&self) -> bool {
        self.segment_and_flags & HAS_PREVIOUS != 0
    }

    /// Whether the record's checksum was right once since the start.
    pub(crate) fn is_verified(&self) -> bool {
        self.segment_and_flags & VERIFIED != 0
    }

    pub(crate) fn older(&self) -> u32 {
        self.segment_and_flags >> OLDER_SHIFT
    }

    /// Whether its record must stay: a tombstone only while there is something older to hide.
    pub(crate) fn is_needed(&self) -> bool {
        !self.is_tombstone() || self.older() > 0
    }

    pub(crate) fn key_size(&self) -> u8 {
        self.sizes.to_be_bytes()[0]
    }

    pub(crate) fn value_size(&self) -> u32 {
        self.sizes & VALUE_SIZE_MASK
    }

    fn with(self, flag: u32, set: bool) -> Self {
        let cleared = self.segment_and_flags & !flag;
        Self { segment_and_flags: if set { cleared | flag } else { cleared }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let slot = Slot::new(SEGMENT_ID_MAX, u32::MAX, 255, 8 * 1024 * 1024)
            .with_tombstone(true)
            .with_previous(true)
            .with_verified()
            .with_older(100);
        assert_ne!(slot.to_words()[0], u32::MAX, "that marks a free place of a table");
        assert_eq!((slot.segment(), slot.offset), (SEGMENT_ID_MAX, u32::MAX));
        assert_eq!((slot.key_size(), slot.value_size()), (255, 8 * 1024 * 1024));
        assert!(slot.is_tombstone() && slot.has_previous() && slot.is_verified());
        assert_eq!(slot.older(), OLDER_MAX);
        assert_eq!(slot.with_one_older_less(), slot, "many stays many");
        assert_eq!(slot.with_older(2).with_one_older_less().older(), 1);
        let moved = slot.with_older(0).with_tombstone(false).moved(1, 2);
        assert_eq!((moved.segment(), moved.offset, moved.value_size()), (1, 2, 8 * 1024 * 1024));
        assert!(!moved.is_verified() && !moved.is_tombstone() && moved.has_previous());
        assert_eq!(Slot::from_words(slot.to_words()), slot);
        let other = slot.moved(next_name(slot.segment()), 7);
        assert_ne!(other.to_words()[0], u32::MAX);
        assert_ne!(other.segment(), slot.segment());
        assert_eq!(segment_id(other.segment()), SEGMENT_ID_MAX);
        assert_eq!(next_name(other.segment()), slot.segment());
    }
}
