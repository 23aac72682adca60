//! One write in the log.
//!
//! ```text
//!  offset size
//!       0    4  CRC-32C of all that follows, seeded with the segment's number and the offset
//!       4    1  flags: kind (bits 0, 1), has previous, supersedes, sealed, after sync
//!       5    1  bytes of the key
//!       6    3  bytes of the value
//!       9    4  timestamp
//!      13    7  sequence number
//!      20    7  sequence number of the write before it to this key, if "has previous"
//!               key, value, and if "sealed" a tag of 16 bytes
//! ```
//!
//! *Supersedes* says that the key was in the index when this was written, so whoever rebuilds the
//! index needs no key to tell a second write from a collision of hashes. *After sync* says that
//! everything before this record was durable when it was written: what is broken there is damage,
//! not a torn tail. In a sealed record key and value are ciphertext; the checksum is over the
//! ciphertext, so that scrubbing needs no key.

use super::bytes::{Fields, u24_bytes, u56_bytes};
use crate::{KEY_SIZE_MAX, VALUE_SIZE_MAX};

/// Bytes of the fixed part.
pub(crate) const HEAD_SIZE: usize = 20;
/// Bytes of the fixed part with the number of the write before.
pub(crate) const HEAD_SIZE_MAX: usize = HEAD_SIZE + PREVIOUS_SIZE;
/// Bytes of the tag that seals a record.
pub(crate) const TAG_SIZE: usize = 16;
/// Largest record.
pub(crate) const RECORD_SIZE_MAX: usize = HEAD_SIZE_MAX + KEY_SIZE_MAX + VALUE_SIZE_MAX + TAG_SIZE;
/// Largest sequence number: 7 bytes last for two thousand years of a million writes a second.
pub(crate) const SEQ_MAX: u64 = (1 << 56) - 1;

const PREVIOUS_SIZE: usize = 7;
const CRC_SIZE: usize = 4;

const KIND_MASK: u8 = 0b0000_0011;
const KIND_VALUE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const HAS_PREVIOUS: u8 = 1 << 2;
const SUPERSEDES: u8 = 1 << 3;
const SEALED: u8 = 1 << 4;
const AFTER_SYNC: u8 = 1 << 5;
const RESERVED: u8 = 0b1100_0000;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The key has this value.
    Value,
    /// The key is gone.
    Tombstone,
}

/// A record without its key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) seq: u64,
    /// The write before it to this key, if that was a value.
    pub(crate) previous: Option<u64>,
    /// Whether the key was in the index before.
    pub(crate) supersedes: bool,
    pub(crate) sealed: bool,
    pub(crate) after_sync: bool,
    pub(crate) key_size: u8,
    pub(crate) value_size: u32,
    pub(crate) timestamp: u32,
}

impl Head {
    /// Reads the fixed part; `None` if no writer of ours wrote it. Nothing is verified yet.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes.get(CRC_SIZE..)?);
        let flags = fields.u8()?;
        let key_size = fields.u8()?;
        let value_size = fields.u24()?;
        let timestamp = fields.u32()?;
        let seq = fields.u56()?;
        let previous = if flags & HAS_PREVIOUS != 0 { Some(fields.u56()?) } else { None };
        let kind = match flags & KIND_MASK {
            KIND_VALUE => Kind::Value,
            KIND_TOMBSTONE if value_size == 0 => Kind::Tombstone,
            _ => return None,
        };
        let sound = flags & RESERVED == 0
            && key_size > 0
            && value_size as usize <= VALUE_SIZE_MAX
            && seq > 0
            && previous.is_none_or(|previous| previous > 0 && previous < seq);
        let (supersedes, sealed) = (flags & SUPERSEDES != 0, flags & SEALED != 0);
        let after_sync = flags & AFTER_SYNC != 0;
        sound.then_some(Self {
            kind,
            seq,
            previous,
            supersedes,
            sealed,
            after_sync,
            key_size,
            value_size,
            timestamp,
        })
    }

    /// Appends the fixed part, with a checksum of zero.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::Value => KIND_VALUE,
            Kind::Tombstone => KIND_TOMBSTONE,
        };
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = kind
            | bit(self.previous.is_some(), HAS_PREVIOUS)
            | bit(self.supersedes, SUPERSEDES)
            | bit(self.sealed, SEALED)
            | bit(self.after_sync, AFTER_SYNC);
        let mut head = [0; HEAD_SIZE];
        head[4] = flags;
        head[5] = self.key_size;
        head[6..9].copy_from_slice(&u24_bytes(self.value_size));
        head[9..13].copy_from_slice(&self.timestamp.to_le_bytes());
        head[13..20].copy_from_slice(&u56_bytes(self.seq));
        out.extend_from_slice(&head);
        if let Some(previous) = self.previous {
            out.extend_from_slice(&u56_bytes(previous));
        }
    }

    /// Bytes before the key.
    pub(crate) fn head_size(&self) -> usize {
        head_size(self.previous.is_some())
    }

    /// Bytes of the whole record.
    pub(crate) fn record_size(&self) -> usize {
        let tag = if self.sealed { TAG_SIZE } else { 0 };
        self.head_size() + usize::from(self.key_size) + self.value_size as usize + tag
    }
}

/// Bytes before the key.
pub(crate) fn head_size(has_previous: bool) -> usize {
    if has_previous { HEAD_SIZE_MAX } else { HEAD_SIZE }
}

/// What a segment's checksums start from, for the record or block at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(number: u64) -> Self {
        Self(crc32c::crc32c(&number.to_le_bytes()))
    }

    /// CRC-32C of some bytes at this offset.
    pub(crate) fn crc(self, offset: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &offset.to_le_bytes()), bytes)
    }

    /// CRC-32C of some bytes in two pieces at this offset.
    pub(crate) fn crc_of_two(self, offset: u64, first: &[u8], second: &[u8]) -> u32 {
        crc32c::crc32c_append(self.crc(offset, first), second)
    }
}

/// Writes the checksum of the record that `record` is, and that will stand at `offset`.
pub(crate) fn finish(record: &mut [u8], seed: Seed, offset: u64) {
    if let Some((crc, rest)) = record.split_first_chunk_mut::<CRC_SIZE>() {
        *crc = seed.crc(offset, rest).to_le_bytes();
    }
}

/// Whether a record in two pieces is as it was written at this offset. The first holds at least the
/// checksum.
pub(crate) fn verify_two(first: &[u8], second: &[u8], seed: Seed, offset: u64) -> bool {
    let Some((crc, rest)) = first.split_first_chunk::<CRC_SIZE>() else { return false };
    u32::from_le_bytes(*crc) == seed.crc_of_two(offset, rest, second)
}

/// Whether a record is as it was written at this offset.
pub(crate) fn verify(record: &[u8], seed: Seed, offset: u64) -> bool {
    verify_two(record, &[], seed, offset)
}

/// What a seal covers beside key and value: the fixed part without the checksum.
pub(crate) fn sealed_head(record: &[u8], head_size: usize) -> &[u8] {
    record.get(CRC_SIZE..head_size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heads() -> impl Strategy<Value = Head> {
        let sizes = (1..=u8::MAX, 0..=8_388_608u32, any::<u32>());
        (any::<[bool; 4]>(), 1..=SEQ_MAX, any::<u64>(), sizes).prop_map(
            |([tombstone, supersedes, sealed, after_sync], seq, previous, sizes)| Head {
                kind: if tombstone { Kind::Tombstone } else { Kind::Value },
                seq,
                previous: (previous % 2 == 0 && seq > 1).then(|| 1 + previous % (seq - 1)),
                supersedes,
                sealed,
                after_sync,
                key_size: sizes.0,
                value_size: if tombstone { 0 } else { sizes.1 },
                timestamp: sizes.2,
            },
        )
    }

    proptest! {
        #[test]
        fn heads_come_back(head in heads()) {
            let mut bytes = Vec::new();
            head.put(&mut bytes);
            prop_assert_eq!(bytes.len(), head.head_size());
            prop_assert_eq!(Head::parse(&bytes), Some(head));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(head) = Head::parse(&bytes) {
                prop_assert!(head.record_size() <= RECORD_SIZE_MAX);
            }
        }
    }

    #[test]
    fn a_checksum_is_bound_to_its_place() {
        let seed = Seed::new(7);
        let mut record = vec![0, 0, 0, 0, 1, 2, 3];
        finish(&mut record, seed, 100);
        assert!(verify(&record, seed, 100));
        assert!(verify_two(&record[..5], &record[5..], seed, 100));
        assert!(!verify(&record, seed, 101));
        assert!(!verify(&record, Seed::new(8), 100));
        record[6] ^= 1;
        assert!(!verify(&record, seed, 100));
    }

    #[test]
    fn zeroes_are_no_record() {
        assert_eq!(Head::parse(&[0; 64]), None);
    }
}
