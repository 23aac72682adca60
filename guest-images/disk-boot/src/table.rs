//! Partition tables: GPT (UEFI 2.10 §5.3) and the older MBR with its chain of logical partitions.
//!
//! A GPT counts if its checksums are right. If the first is damaged, the kernel would not believe it
//! either, and the copy at the end of the disk is for repair tools; so there is no second try. A disk
//! without a table may be a file system as a whole.

use flate2::Crc;

use crate::bytes::{u32_at, u64_at};
use crate::source::{ReadError, Window};

/// Most partitions of a disk.
pub const PARTITION_COUNT_MAX: usize = 128;
/// Sizes of sectors that a GPT may count in.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// Bytes of a GPT's header that mean something.
const HEADER_SIZE: usize = 92;
/// Bytes of an entry that mean something, which is the least that an entry has.
const ENTRY_SIZE: usize = 128;
/// Most bytes of all entries.
const ENTRIES_SIZE_MAX: u64 = 1 << 20;
const MBR_SECTOR_SIZE: u64 = 512;
/// Where an MBR's four entries are.
const MBR_ENTRIES: usize = 446;
/// The type of the entry that stands for a GPT.
const TYPE_PROTECTIVE: u8 = 0xee;
/// Types of the entry that begins the chain of logical partitions.
const TYPES_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Which kind of table names a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GPT.
    Gpt,
    /// MBR.
    Mbr,
}

impl Scheme {
    /// How GRUB calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "msdos",
        }
    }
}

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Which kind of table names it.
    pub scheme: Scheme,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
}

/// Why there are no partitions.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk can't be read.
    #[error("the partition table: {0}")]
    Read(#[from] ReadError),
    /// The table says what can't be.
    #[error("the partition table is damaged: {0}")]
    Damaged(&'static str),
}

/// The partitions of a disk; none if it has no table.
///
/// # Errors
/// [`TableError`].
pub fn partitions(disk: &Window) -> Result<Vec<Partition>, TableError> {
    for sector_size in SECTOR_SIZES {
        if let Some(partitions) = gpt(disk, sector_size)? {
            return Ok(partitions);
        }
    }
    mbr(disk)
}

fn gpt(disk: &Window, sector_size: u64) -> Result<Option<Vec<Partition>>, TableError> {
    let sector_bytes = usize::try_from(sector_size).unwrap_or(usize::MAX);
    if disk.size() < 2 * sector_size {
        return Ok(None);
    }
    let sector = disk.bytes(sector_size, sector_bytes)?;
    if sector.get(..8) != Some(b"EFI PART") {
        return Ok(None);
    }
    let short = TableError::Damaged("its header is too short");
    let size = usize::try_from(u32_at(&sector, 12).unwrap_or(0)).unwrap_or(usize::MAX);
    let mut header = sector.get(..size.max(HEADER_SIZE)).ok_or(short)?.to_vec();
    let sum = u32_at(&header, 16);
    if let Some(field) = header.get_mut(16..20) {
        field.fill(0);
    }
    if sum != Some(checksum(&header)) {
        return Err(TableError::Damaged("its header's checksum is wrong"));
    }
    let field = |at: usize| u32_at(&header, at).unwrap_or(0);
    let (count, entry_size) = (u64::from(field(80)), u64::from(field(84)));
    let entries_size = count.checked_mul(entry_size).filter(|size| *size <= ENTRIES_SIZE_MAX);
    let too_large = TableError::Damaged("its entries are more than 1 MiB");
    let entries_size = entries_size.ok_or(too_large)?;
    if entry_size < ENTRY_SIZE as u64 {
        return Err(TableError::Damaged("its entries have less than 128 bytes"));
    }
    let start = u64_at(&header, 72).and_then(|sector| sector.checked_mul(sector_size));
    let start = start.ok_or(TableError::Damaged("its entries are nowhere"))?;
    let entries = disk.bytes(start, usize::try_from(entries_size).unwrap_or(usize::MAX))?;
    if field(88) != checksum(&entries) {
        return Err(TableError::Damaged("its entries' checksum is wrong"));
    }
    let entry_size = usize::try_from(entry_size).unwrap_or(usize::MAX);
    let found = entries.chunks_exact(entry_size).zip(1_u32..).filter_map(|(entry, number)| {
        // A type of zeros is none.
        entry.get(..16)?.iter().any(|byte| *byte != 0).then_some(())?;
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        let (start, size) = (first.checked_mul(sector_size)?, count.checked_mul(sector_size)?);
        Some(Partition { number, scheme: Scheme::Gpt, start, size })
    });
    Ok(Some(found.take(PARTITION_COUNT_MAX).collect()))
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// An entry of an MBR: its boot flag, type, first sector and count of sectors.
#[derive(Clone, Copy)]
struct MbrEntry {
    flag: u8,
    kind: u8,
    first: u64,
    count: u64,
}

fn mbr_entries(disk: &Window, at: u64) -> Result<Option<[MbrEntry; 4]>, TableError> {
    let sector = disk.bytes(at, 512)?;
    if sector.get(510..) != Some(&[0x55, 0xaa]) {
        return Ok(None);
    }
    Ok(Some(std::array::from_fn(|index| {
        let entry = sector.get(MBR_ENTRIES + index * 16..).unwrap_or_default();
        let sectors = |at| u64::from(u32_at(entry, at).unwrap_or(0));
        let byte = |at: usize| entry.get(at).copied().unwrap_or(0);
        MbrEntry { flag: byte(0), kind: byte(4), first: sectors(8), count: sectors(12) }
    })))
}

fn mbr(disk: &Window) -> Result<Vec<Partition>, TableError> {
    if disk.size() < MBR_SECTOR_SIZE {
        return Ok(Vec::new());
    }
    let Some(entries) = mbr_entries(disk, 0)? else { return Ok(Vec::new()) };
    // A file system's boot sector ends in the same two bytes, and has code where entries would be.
    if entries.iter().any(|entry| entry.flag & 0x7f != 0) {
        return Ok(Vec::new());
    }
    if entries.iter().any(|entry| entry.kind == TYPE_PROTECTIVE) {
        return Err(TableError::Damaged("it says that there is a GPT, and there is none"));
    }
    let mut partitions = Vec::new();
    for (entry, number) in entries.iter().zip(1..) {
        if entry.kind != 0 && entry.count != 0 && !TYPES_EXTENDED.contains(&entry.kind) {
            partitions.push(partition(number, entry.first, entry.count));
        }
    }
    if let Some(extended) = entries.iter().find(|entry| TYPES_EXTENDED.contains(&entry.kind)) {
        logical(disk, extended.first, &mut partitions)?;
    }
    Ok(partitions)
}

/// Follows the chain: each link is a sector with a partition, relative to itself, and the next link,
/// relative to the first.
fn logical(
    disk: &Window,
    extended: u64,
    partitions: &mut Vec<Partition>,
) -> Result<(), TableError> {
    let mut link = extended;
    for number in 5.. {
        if partitions.len() >= PARTITION_COUNT_MAX {
            return Err(TableError::Damaged("its chain of logical partitions has no end"));
        }
        let Some([entry, next, ..]) = mbr_entries(disk, link.saturating_mul(MBR_SECTOR_SIZE))?
        else {
            return Ok(());
        };
        // An empty link counts, so that a chain of them ends, too.
        partitions.push(partition(number, link.saturating_add(entry.first), entry.count));
        if next.count == 0 || !TYPES_EXTENDED.contains(&next.kind) {
            return Ok(());
        }
        link = extended.saturating_add(next.first);
    }
    Ok(())
}

fn partition(number: u32, first: u64, count: u64) -> Partition {
    let (start, size) = (first.saturating_mul(512), count.saturating_mul(512));
    Partition { number, scheme: Scheme::Mbr, start, size }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::source::Source;

    fn disk(bytes: &[u8]) -> Window {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Source::new(file).unwrap().window()
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// A GPT with these partitions, by number and first and last sector.
    fn with_gpt(sector: usize, partitions: &[(usize, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 64 * sector];
        let entries = 2 * sector;
        for (number, first, last) in partitions {
            let at = entries + (number - 1) * 128;
            bytes[at] = 1;
            put(&mut bytes, at + 32, &first.to_le_bytes());
            put(&mut bytes, at + 40, &last.to_le_bytes());
        }
        let sum = checksum(&bytes[entries..entries + 16 * 128]);
        let at = sector;
        put(&mut bytes, at, b"EFI PART");
        put(&mut bytes, at + 12, &92_u32.to_le_bytes());
        put(&mut bytes, at + 72, &2_u64.to_le_bytes());
        put(&mut bytes, at + 80, &16_u32.to_le_bytes());
        put(&mut bytes, at + 84, &128_u32.to_le_bytes());
        put(&mut bytes, at + 88, &sum.to_le_bytes());
        let sum = checksum(&bytes[at..at + 92]);
        put(&mut bytes, at + 16, &sum.to_le_bytes());
        bytes
    }

    fn put_mbr(bytes: &mut [u8], at: usize, entries: &[(u8, u32, u32)]) {
        put(bytes, at + 510, &[0x55, 0xaa]);
        for (index, (kind, first, count)) in entries.iter().enumerate() {
            let at = at + MBR_ENTRIES + index * 16;
            bytes[at + 4] = *kind;
            put(bytes, at + 8, &first.to_le_bytes());
            put(bytes, at + 12, &count.to_le_bytes());
        }
    }

    fn places(bytes: &[u8]) -> Vec<(u32, u64, u64)> {
        let found = partitions(&disk(bytes)).unwrap();
        found.iter().map(|found| (found.number, found.start, found.size)).collect()
    }

    #[test]
    fn gpt_partitions_keep_their_numbers_whatever_the_sector() {
        for sector in [512, 4096] {
            let bytes = with_gpt(sector, &[(1, 40, 49), (15, 50, 50)]);
            let size = sector as u64;
            assert_eq!(places(&bytes), [(1, 40 * size, 10 * size), (15, 50 * size, size)]);
        }
    }

    #[test]
    fn damage_is_told() {
        let error = |bytes: &[u8]| partitions(&disk(bytes)).unwrap_err().to_string();
        let good = with_gpt(512, &[(1, 40, 49)]);
        let mut bad = good.clone();
        bad[512 + 80] ^= 1;
        assert!(error(&bad).contains("header's checksum"), "{}", error(&bad));
        let mut bad = good;
        bad[1024 + 33] ^= 1;
        assert!(error(&bad).contains("entries' checksum"), "{}", error(&bad));
        let mut protective = vec![0; 4096];
        put_mbr(&mut protective, 0, &[(0xee, 1, 7)]);
        assert!(error(&protective).contains("there is a GPT"));
        // A chain that leads to itself.
        let mut circle = vec![0; 4096];
        put_mbr(&mut circle, 0, &[(0x83, 1, 1), (5, 2, 6)]);
        put_mbr(&mut circle, 1024, &[(0x83, 1, 1), (5, 0, 1)]);
        assert!(error(&circle).contains("no end"));
    }

    #[test]
    fn logical_partitions_follow_their_chain() {
        let mut bytes = vec![0; 8192];
        put_mbr(&mut bytes, 0, &[(0x83, 1, 1), (0, 9, 9), (5, 4, 12)]);
        put_mbr(&mut bytes, 4 * 512, &[(0x83, 1, 2), (5, 4, 4)]);
        put_mbr(&mut bytes, 8 * 512, &[(0x83, 1, 3)]);
        assert_eq!(places(&bytes), [(1, 512, 512), (5, 5 * 512, 1024), (6, 9 * 512, 1536)]);
    }

    #[test]
    fn a_disk_without_a_table_has_no_partitions() {
        for bytes in [vec![], vec![0; 100], vec![0; 8192]] {
            assert_eq!(places(&bytes), []);
        }
        // A boot sector with code where entries would be.
        let mut boot = vec![0; 8192];
        put_mbr(&mut boot, 0, &[(0x83, 1, 1)]);
        boot[MBR_ENTRIES + 16] = 0x33;
        assert_eq!(places(&boot), []);
    }

    proptest! {
        #[test]
        fn no_table_is_trusted(at in 0_usize..4096, bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            let mut gpt = with_gpt(512, &[(1, 40, 49), (2, 50, 60)]);
            put(&mut gpt, at, &bytes);
            let _ = partitions(&disk(&gpt));
            let mut mbr = vec![0; 8192];
            put_mbr(&mut mbr, 0, &[(0x83, 1, 1), (5, 2, 6)]);
            put_mbr(&mut mbr, 1024, &[(0x83, 1, 1), (5, 1, 1)]);
            put(&mut mbr, at, &bytes);
            let _ = partitions(&disk(&mbr));
        }
    }
}
