//! The bytes of a segment's index, and nothing that touches a file.
//!
//! `FORMAT-cache.md` has the byte tables. An index is a header and then entries of one fixed size, so
//! a bad entry never hides the ones behind it. Every entry carries a CRC-32C seeded with its
//! segment's number: an entry that ended up in another segment's file is not believed either.

use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockId, BlockKey, BlockRef};

/// Bytes of an index's header and of each of its entries.
pub(super) const ENTRY_SIZE: usize = 80;
/// Smallest segment: two blocks of the largest kind.
pub(super) const SEGMENT_SIZE_MIN: u32 = 1 << 20;
/// Largest segment; offsets stay far below 2^32.
pub(super) const SEGMENT_SIZE_MAX: u32 = 1 << 30;
/// A segment holds at most one entry for each of these many bytes of its capacity, which bounds the
/// index (8 %) when blocks are tiny.
pub(super) const BYTES_PER_ENTRY_MIN: u32 = 1024;

const MAGIC: [u8; 8] = *b"ZOSBLKX1";
const CHECKED_SIZE: usize = ENTRY_SIZE - 4;
/// Small records begin on a cache line: hardly any waste where the average file has 11 KiB.
const ALIGNMENT: u32 = 64;
/// Records of at least [`PAGED_SIZE_MIN`] begin on a page, so that they can be spliced and mapped in
/// whole pages at a waste of at most 6 %.
const PAGE_ALIGNMENT: u32 = 4096;
const PAGED_SIZE_MIN: u32 = 64 * 1024;

/// What an index entry says: which block, and where in the segment its plaintext is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) cipher: BlockCipher,
    pub(super) block: BlockRef,
    /// First byte, from the segment's beginning.
    pub(super) offset: u32,
    /// Bytes of plaintext, at most [`BLOCK_SIZE`].
    pub(super) size: u32,
}

impl Record {
    /// Just past the last byte.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.size)
    }
}

/// Where a record of `size` bytes begins if the segment is filled up to `end`.
pub(super) fn record_offset(end: u32, size: u32) -> u32 {
    end.next_multiple_of(if size >= PAGED_SIZE_MIN { PAGE_ALIGNMENT } else { ALIGNMENT })
}

/// Most entries in a segment of this capacity.
pub(super) const fn entry_count_max(capacity: u32) -> u32 {
    capacity / BYTES_PER_ENTRY_MIN
}

/// Most bytes that a segment of this capacity takes on disk, with its index.
pub(super) fn disk_size_max(capacity: u32) -> u64 {
    u64::from(capacity) + (u64::from(entry_count_max(capacity)) + 1) * ENTRY_SIZE as u64
}

/// The header of the index of segment `number`, which holds at most `capacity` bytes.
pub(super) fn encode_header(number: u64, capacity: u32) -> [u8; ENTRY_SIZE] {
    let mut bytes = [0; ENTRY_SIZE];
    put(&mut bytes, 0, &MAGIC);
    put(&mut bytes, 8, &number.to_le_bytes());
    put(&mut bytes, 16, &capacity.to_le_bytes());
    seal(number, &mut bytes);
    bytes
}

/// The capacity in the header of segment `number`; none if the header is not to be believed.
pub(super) fn decode_header(number: u64, bytes: &[u8; ENTRY_SIZE]) -> Option<u32> {
    let capacity = u32::from_le_bytes(field(bytes, 16));
    let believed = is_sealed(number, bytes)
        && field::<8>(bytes, 0) == MAGIC
        && u64::from_le_bytes(field(bytes, 8)) == number
        && (SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&capacity);
    believed.then_some(capacity)
}

/// One entry of the index of segment `number`.
pub(super) fn encode_record(number: u64, record: &Record) -> [u8; ENTRY_SIZE] {
    let mut bytes = [0; ENTRY_SIZE];
    put(&mut bytes, 0, &record.block.id.0);
    put(&mut bytes, 32, &record.block.key.0);
    put(&mut bytes, 64, &record.offset.to_le_bytes());
    put(&mut bytes, 68, &record.size.to_le_bytes());
    put(&mut bytes, 72, &[record.cipher as u8]);
    seal(number, &mut bytes);
    bytes
}

/// The entry, if its checksum is right and its fields are possible.
pub(super) fn decode_record(number: u64, bytes: &[u8; ENTRY_SIZE]) -> Option<Record> {
    if !is_sealed(number, bytes) {
        return None;
    }
    let [cipher] = field::<1>(bytes, 72);
    let record = Record {
        cipher: BlockCipher::from_number(cipher)?,
        block: BlockRef { id: BlockId(field(bytes, 0)), key: BlockKey(field(bytes, 32)) },
        offset: u32::from_le_bytes(field(bytes, 64)),
        size: u32::from_le_bytes(field(bytes, 68)),
    };
    (record.size <= BLOCK_SIZE).then_some(record)
}

fn seal(number: u64, bytes: &mut [u8; ENTRY_SIZE]) {
    let checksum = checksum(number, bytes);
    put(bytes, CHECKED_SIZE, &checksum.to_le_bytes());
}

fn is_sealed(number: u64, bytes: &[u8; ENTRY_SIZE]) -> bool {
    u32::from_le_bytes(field(bytes, CHECKED_SIZE)) == checksum(number, bytes)
}

fn checksum(number: u64, bytes: &[u8; ENTRY_SIZE]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &bytes[..CHECKED_SIZE])
}

/// Offsets are constants of this file, inside the entry.
fn put(bytes: &mut [u8; ENTRY_SIZE], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn field<const N: usize>(bytes: &[u8; ENTRY_SIZE], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[offset..offset + N]);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            cipher: BlockCipher::Xxtea,
            block: BlockRef { id: BlockId([7; 32]), key: BlockKey([9; 32]) },
            offset: 4096,
            size: 12_345,
        }
    }

    #[test]
    fn an_entry_round_trips_and_every_flipped_bit_is_noticed() {
        let bytes = encode_record(42, &record());
        assert_eq!(decode_record(42, &bytes), Some(record()));
        assert_eq!(decode_record(43, &bytes), None, "another segment's entry");
        for bit in 0..ENTRY_SIZE * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_record(42, &bad), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_round_trips_and_every_flipped_bit_is_noticed() {
        let bytes = encode_header(42, SEGMENT_SIZE_MIN);
        assert_eq!(decode_header(42, &bytes), Some(SEGMENT_SIZE_MIN));
        for bit in 0..ENTRY_SIZE * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_header(42, &bad), None, "bit {bit}");
        }
    }

    #[test]
    fn impossible_fields_are_refused_even_under_a_right_checksum() {
        let large = Record { size: BLOCK_SIZE + 1, ..record() };
        assert_eq!(decode_record(1, &encode_record(1, &large)), None);
        assert_eq!(decode_header(1, &encode_header(1, SEGMENT_SIZE_MAX + 1)), None);
        assert_eq!(decode_header(1, &encode_header(1, 0)), None);
        assert_eq!(decode_record(1, &[0; ENTRY_SIZE]), None);
    }

    #[test]
    fn large_records_begin_on_pages_and_small_ones_are_packed() {
        assert_eq!(record_offset(0, 10), 0);
        assert_eq!(record_offset(1, 10), 64);
        assert_eq!(record_offset(65, PAGED_SIZE_MIN - 1), 128);
        assert_eq!(record_offset(65, PAGED_SIZE_MIN), 4096);
        assert_eq!(record_offset(8192, BLOCK_SIZE), 8192);
    }
}
