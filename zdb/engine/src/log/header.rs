//! The first bytes of a segment, which its index file repeats.
//!
//! ```text
//!  offset size
//!       0    4  "ZDBD" in a segment, "ZDBI" in an index file
//!       4    4  version of the format: 1
//!       8    4  the segment's id: N of its file's name dN
//!      12    4  the last id that it stands for: more than its own after segments were merged
//!      16    8  a random number, another for each file ever written
//!      24    8  base: its records have larger sequence numbers
//!      32    8  the next id of sequential mode when the segment was begun
//!      40    8  deletions up to this number may be missing: compaction forgot them
//!      48    4  which of the namespace's keys seals its records; 0: none
//!      52    4  flags: 1 all earlier segments are void
//!      56    4  zero
//!      60    4  CRC-32C of the bytes before
//! ```
//!
//! The random number makes checksums and nonces unique: a file that replaces another under the
//! same name has another number, even after a backup was restored and history went another way.

use super::bytes::Fields;
use super::record::{SEQ_MAX, Seed};
use crate::index::slot::SEGMENT_ID_MAX;

/// Bytes of a header.
pub(crate) const HEADER_SIZE: usize = 64;

const VERSION: u32 = 1;
const DATA_MAGIC: [u8; 4] = *b"ZDBD";
const INDEX_MAGIC: [u8; 4] = *b"ZDBI";
const CLEARS: u32 = 1;

/// Whose header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The segment.
    Data,
    /// Its index file.
    Index,
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u32,
    pub(crate) through: u32,
    pub(crate) number: u64,
    pub(crate) base: u64,
    pub(crate) next_id: u64,
    pub(crate) forgotten: u64,
    pub(crate) key_id: u32,
    pub(crate) clears: bool,
}

impl Header {
    pub(crate) fn to_bytes(self, part: Part) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(magic(part));
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.id.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.through.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.base.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.next_id.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.forgotten.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.key_id.to_le_bytes());
        let flags = if self.clears { CLEARS } else { 0 };
        bytes[52..56].copy_from_slice(&flags.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` if it is not whole, or not ours.
    pub(crate) fn parse(bytes: &[u8], part: Part) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_SIZE>()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut fields = Fields(body);
        if fields.array()? != *magic(part) || fields.u32()? != VERSION {
            return None;
        }
        let header = Self {
            id: fields.u32()?,
            through: fields.u32()?,
            number: fields.u64()?,
            base: fields.u64()?,
            next_id: fields.u64()?,
            forgotten: fields.u64()?,
            key_id: fields.u32()?,
            clears: fields.u32()? & CLEARS != 0,
        };
        let sound = header.through >= header.id
            && header.through <= SEGMENT_ID_MAX
            && header.base < SEQ_MAX
            && header.forgotten < SEQ_MAX;
        sound.then_some(header)
    }

    /// What its checksums start from.
    pub(crate) fn seed(&self) -> Seed {
        Seed::new(self.number)
    }
}

fn magic(part: Part) -> &'static [u8; 4] {
    match part {
        Part::Data => &DATA_MAGIC,
        Part::Index => &INDEX_MAGIC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        id: 3,
        through: 5,
        number: 0x0123_4567_89ab_cdef,
        base: 77,
        next_id: 9,
        forgotten: 70,
        key_id: 1,
        clears: true,
    };

    #[test]
    fn a_header_comes_back_and_no_flipped_bit_passes() {
        for part in [Part::Data, Part::Index] {
            let mut bytes = HEADER.to_bytes(part);
            assert_eq!(Header::parse(&bytes, part), Some(HEADER));
            for bit in 0..HEADER_SIZE * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::parse(&bytes, part), None, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_eq!(Header::parse(&HEADER.to_bytes(Part::Data), Part::Index), None);
        assert_eq!(Header::parse(&[], Part::Data), None);
    }
}
