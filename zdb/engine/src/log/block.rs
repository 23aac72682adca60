//! What an index file says about some consecutive records, and that it is complete.
//!
//! An index file is a [`header`](super::header) and blocks:
//!
//! ```text
//!  offset size
//!       0    4  CRC-32C of all that follows in the block, seeded with the segment's number and the
//!               block's offset in the index file
//!       4    4  bytes after these 32
//!       8    4  entries
//!      12    4  offset of the first record in the segment
//!      16    4  offset after the last record
//!      20    1  1: entries; 2: seal, the segment ends at "offset after the last record"
//!      21    7  a sequence number smaller than all that follow
//!      28    4  zero
//! ```
//!
//! An entry: varint `value size << 6 | flags`, 8 bytes hash of the key (in sequential mode the
//! id), then 1 byte key size unless flag 16 (as the entry before), varint difference of sequence
//! numbers unless flag 32 (one more than the entry before), varint `seq - previous` if flag 4.
//! Flags 1, 2, 4, 8 are the record's: value, tombstone, has previous, supersedes.

use super::bytes::{Fields, put_varint, u56_bytes};
use super::record::{Kind, SEQ_MAX, Seed, TAG_SIZE, head_size};
use crate::VALUE_SIZE_MAX;
use crate::index::slot::Slot;

/// Bytes of a block's fixed part.
pub(crate) const BLOCK_HEAD_SIZE: usize = 32;
/// Most entries of a block; a block is what a search by number has to decode.
pub(crate) const BLOCK_ENTRY_COUNT_MAX: usize = 512;

/// Largest entry: size, hash, key size, two numbers.
const ENTRY_SIZE_MAX: usize = 5 + 8 + 1 + 9 + 9;
const BODY_SIZE_MAX: usize = BLOCK_ENTRY_COUNT_MAX * ENTRY_SIZE_MAX;
const FLAG_BITS: u32 = 6;
const VALUE: u64 = 1;
const TOMBSTONE: u64 = 2;
const KIND_MASK: u64 = 3;
const HAS_PREVIOUS: u64 = 4;
const SUPERSEDES: u64 = 8;
const SAME_KEY_SIZE: u64 = 16;
const NEXT_SEQ: u64 = 32;
const KIND_ENTRIES: u8 = 1;
const KIND_SEAL: u8 = 2;

/// One record, without key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Hash of the key, or the id.
    pub(crate) hash: u64,
    pub(crate) seq: u64,
    /// The value before it; 0: none.
    pub(crate) previous: u64,
    pub(crate) offset: u32,
    pub(crate) value_size: u32,
    pub(crate) key_size: u8,
    pub(crate) kind: Kind,
    pub(crate) supersedes: bool,
}

impl Entry {
    /// What the index says of it.
    pub(crate) fn slot(&self, segment: u32) -> Slot {
        Slot::new(segment, self.offset, self.key_size, self.value_size)
            .with_tombstone(self.kind == Kind::Tombstone)
            .with_previous(self.previous != 0)
    }

    /// Bytes of its record.
    pub(crate) fn record_size(&self, sealed: bool) -> u32 {
        let tag = if sealed { TAG_SIZE } else { 0 };
        let fixed = head_size(self.previous != 0) + usize::from(self.key_size) + tag;
        self.value_size + u32::try_from(fixed).unwrap_or_default()
    }
}

/// The fixed part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHead {
    /// Bytes of the whole block.
    pub(crate) size: u32,
    pub(crate) count: u32,
    /// Offset of its first record.
    pub(crate) start: u32,
    /// Offset after its last record.
    pub(crate) end: u32,
    /// A number smaller than all of its records'.
    pub(crate) before: u64,
    /// Whether it says that the segment ends at `end`.
    pub(crate) seal: bool,
}

/// Appends a block of these entries, at most [`BLOCK_ENTRY_COUNT_MAX`] and without holes
/// between them. It will stand at `at` in the index file.
pub(crate) fn put(
    out: &mut Vec<u8>,
    entries: &[Entry],
    sealed: bool,
    seed: Seed,
    at: u64,
) -> Option<BlockHead> {
    let (first, last) = (entries.first()?, entries.last()?);
    let from = out.len();
    out.extend_from_slice(&[0; BLOCK_HEAD_SIZE]);
    let before = first.seq - 1;
    let (mut seq, mut key_size) = (before, 0);
    for entry in entries {
        put_entry(out, entry, seq, key_size);
        (seq, key_size) = (entry.seq, entry.key_size);
    }
    let head = BlockHead {
        size: u32::try_from(out.len() - from).ok()?,
        count: u32::try_from(entries.len()).ok()?,
        start: first.offset,
        end: last.offset + last.record_size(sealed),
        before,
        seal: false,
    };
    finish(out.get_mut(from..)?, &head, seed, at);
    Some(head)
}

/// Appends the block that says where the segment ends.
pub(crate) fn put_seal(out: &mut Vec<u8>, end: u32, before: u64, seed: Seed, at: u64) {
    let from = out.len();
    out.extend_from_slice(&[0; BLOCK_HEAD_SIZE]);
    let size = u32::try_from(BLOCK_HEAD_SIZE).unwrap_or_default();
    let head = BlockHead { size, count: 0, start: end, end, before, seal: true };
    finish(&mut out[from..], &head, seed, at);
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry, seq: u64, key_size: u8) {
    let kind = match entry.kind {
        Kind::Value => VALUE,
        Kind::Tombstone => TOMBSTONE,
    };
    let bit = |set: bool, bit: u64| if set { bit } else { 0 };
    let flags = kind
        | bit(entry.previous != 0, HAS_PREVIOUS)
        | bit(entry.supersedes, SUPERSEDES)
        | bit(entry.key_size == key_size, SAME_KEY_SIZE)
        | bit(entry.seq == seq + 1, NEXT_SEQ);
    put_varint(out, u64::from(entry.value_size) << FLAG_BITS | flags);
    out.extend_from_slice(&entry.hash.to_le_bytes());
    if flags & SAME_KEY_SIZE == 0 {
        out.push(entry.key_size);
    }
    if flags & NEXT_SEQ == 0 {
        put_varint(out, entry.seq - seq);
    }
    if entry.previous != 0 {
        put_varint(out, entry.seq - entry.previous);
    }
}

fn finish(block: &mut [u8], head: &BlockHead, seed: Seed, at: u64) {
    let body = u32::try_from(block.len() - BLOCK_HEAD_SIZE).unwrap_or_default();
    block[4..8].copy_from_slice(&body.to_le_bytes());
    block[8..12].copy_from_slice(&head.count.to_le_bytes());
    block[12..16].copy_from_slice(&head.start.to_le_bytes());
    block[16..20].copy_from_slice(&head.end.to_le_bytes());
    block[20] = if head.seal { KIND_SEAL } else { KIND_ENTRIES };
    block[21..28].copy_from_slice(&u56_bytes(head.before));
    let crc = seed.crc(at, &block[4..]);
    block[0..4].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the block at the start of `bytes`, which stands at `at` in the index file, and verifies it;
/// `None` if it is not whole, or not ours.
pub(crate) fn parse(bytes: &[u8], seed: Seed, at: u64) -> Option<(BlockHead, &[u8])> {
    let mut fields = Fields(bytes);
    let crc = fields.u32()?;
    let body_size = fields.u32()? as usize;
    if body_size > BODY_SIZE_MAX {
        return None;
    }
    let covered = bytes.get(4..BLOCK_HEAD_SIZE + body_size)?;
    if seed.crc(at, covered) != crc {
        return None;
    }
    let size = u32::try_from(BLOCK_HEAD_SIZE + body_size).ok()?;
    let (count, start, end) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let seal = match fields.u8()? {
        KIND_ENTRIES => false,
        KIND_SEAL if count == 0 && start == end => true,
        _ => return None,
    };
    let before = fields.u56()?;
    let head = BlockHead { size, count, start, end, before, seal };
    (start <= end).then_some((head, bytes.get(BLOCK_HEAD_SIZE..BLOCK_HEAD_SIZE + body_size)?))
}

/// Shows a verified block's entries one by one; `None` if they contradict its fixed part.
pub(crate) fn entries(
    head: &BlockHead,
    body: &[u8],
    sealed: bool,
    mut show: impl FnMut(Entry),
) -> Option<()> {
    let mut fields = Fields(body);
    let (mut seq, mut key_size, mut offset) = (head.before, 0, head.start);
    for _ in 0..head.count {
        let entry = entry(&mut fields, seq, key_size, offset)?;
        (seq, key_size) = (entry.seq, entry.key_size);
        offset = offset.checked_add(entry.record_size(sealed))?;
        if offset > head.end {
            return None;
        }
        show(entry);
    }
    (offset == head.end && fields.0.is_empty()).then_some(())
}

fn entry(fields: &mut Fields<'_>, seq: u64, key_size: u8, offset: u32) -> Option<Entry> {
    let first = fields.varint()?;
    let value_size = u32::try_from(first >> FLAG_BITS).ok()?;
    let hash = fields.u64()?;
    let key_size = if first & SAME_KEY_SIZE != 0 { key_size } else { fields.u8()? };
    let step = if first & NEXT_SEQ != 0 { 1 } else { fields.varint()? };
    let seq = seq.checked_add(step)?;
    let previous = match first & HAS_PREVIOUS {
        0 => 0,
        _ => seq.checked_sub(fields.varint()?).filter(|previous| *previous > 0)?,
    };
    let kind = match first & KIND_MASK {
        VALUE => Kind::Value,
        TOMBSTONE => Kind::Tombstone,
        _ => return None,
    };
    let sound = key_size > 0
        && value_size as usize <= VALUE_SIZE_MAX
        && step > 0
        && seq <= SEQ_MAX
        && previous < seq;
    let supersedes = first & SUPERSEDES != 0;
    sound.then_some(Entry { hash, seq, previous, offset, value_size, key_size, kind, supersedes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw_entries() -> impl Strategy<Value = Vec<Entry>> {
        let one = (any::<u64>(), 1..300u64, any::<u64>(), 0..10_000u32, 1..4u8, any::<[bool; 3]>());
        proptest::collection::vec(one, 1..40).prop_map(|raw| {
            let (mut seq, mut offset) = (0, 64);
            let entries = raw.into_iter().map(|(hash, step, previous, size, key_size, bits)| {
                seq += if bits[0] { step } else { 1 };
                let kind = if bits[1] { Kind::Tombstone } else { Kind::Value };
                let value_size = if bits[1] { 0 } else { size };
                let previous = if bits[2] { previous % seq } else { 0 };
                let supersedes = previous != 0;
                let entry =
                    Entry { hash, seq, previous, offset, value_size, key_size, kind, supersedes };
                offset += entry.record_size(false);
                entry
            });
            entries.collect()
        })
    }

    proptest! {
        #[test]
        fn entries_come_back(original in raw_entries()) {
            let seed = Seed::new(3);
            let mut bytes = Vec::new();
            let head = put(&mut bytes, &original, false, seed, 64).unwrap();
            let (parsed, body) = parse(&bytes, seed, 64).unwrap();
            prop_assert_eq!(parsed, head);
            let mut read = Vec::new();
            entries(&parsed, body, false, |entry| read.push(entry)).unwrap();
            prop_assert_eq!(read, original);
        }

        #[test]
        fn any_body_is_parsed_or_refused(
            body in proptest::collection::vec(any::<u8>(), 0..100),
            count in 0..20u32,
        ) {
            let head = BlockHead {
                size: 0, count, start: 64, end: 1000, before: 0, seal: false,
            };
            let _ = entries(&head, &body, false, |entry| assert!(entry.offset < 1000));
        }
    }

    #[test]
    fn no_flipped_bit_passes() {
        let entry = Entry {
            hash: 1,
            seq: 5,
            previous: 0,
            offset: 64,
            value_size: 64,
            key_size: 16,
            kind: Kind::Value,
            supersedes: false,
        };
        let seed = Seed::new(3);
        let mut bytes = Vec::new();
        put(&mut bytes, &[entry], false, seed, 64).unwrap();
        // Two bytes of size and flags, the hash, one byte of key size.
        assert_eq!(bytes.len(), BLOCK_HEAD_SIZE + 11);
        let seal = bytes.len() as u64;
        put_seal(&mut bytes, 164, 5, seed, seal);
        assert!(parse(&bytes, seed, 65).is_none(), "bound to its place");
        assert!(parse(&bytes[BLOCK_HEAD_SIZE + 11..], seed, seal).unwrap().0.seal);
        for bit in 0..(BLOCK_HEAD_SIZE + 11) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bytes, seed, 64).is_none(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
