//! Partition tables, as far as a disk of ours has one (UEFI 2.10 §5.3, "GPT").
//!
//! ```text
//!   sector 0        protective MBR
//!          1        header ──► entries          last      header ──► entries
//!          2 …      128 entries of 128 bytes    last-32…  the same entries
//! ```
//!
//! A disk may be anybody's, so nothing is believed: only tables of the one form that all tools write are
//! read, in a buffer of one size, and everything else is no table. A table that is written is written
//! backup first, so that one of both copies is whole at any time.
//!
//! What a partition of ours *is*, its type says ([`MAKING`], [`POOL`]): it changes when its file system
//! is whole, and never back. While a table is changed, a copy may hold an entry of ours that its
//! checksum does not know yet ([`Copies::agreed`]).

use std::fmt;
use std::io;

use crc32fast::hash as crc32;

use super::Block;
use super::guid::Guid;

/// What a header begins with.
const SIGNATURE: &[u8] = b"EFI PART";
/// Entries of a table.
pub(super) const ENTRY_COUNT: usize = 128;
/// Bytes of an entry.
const ENTRY_SIZE: usize = 128;
/// Bytes of all entries.
const ENTRIES_SIZE: usize = ENTRY_COUNT * ENTRY_SIZE;
/// Bytes of a header.
const HEADER_SIZE: usize = 92;
/// Partitions begin and end at multiples of so many bytes, as all tools have it.
pub(super) const ALIGNMENT: u64 = 1 << 20;
/// The name of our partitions, which partition tools show.
const NAME: &str = "zos pool";

/// A partition that is to become a pool, and holds nothing that anybody could miss.
pub(super) const MAKING: Guid = Guid::new(0x5a4f_5321, 0x6d61, 0x4b6e, TYPE_END);
/// A partition that is a pool.
pub(super) const POOL: Guid = Guid::new(0x5a4f_5321, 0x706f, 0x4f6c, TYPE_END);
const TYPE_END: [u8; 8] = [0xa5, 0xd1, 0x8c, 0x61, 0xf3, 0x0e, 0x2b, 0x47];
/// A partition for a file system of Linux: what tools make if nothing else is said.
pub(super) const LINUX: Guid =
    Guid::new(0x0fc6_3daf, 0x8483, 0x4772, [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);
/// An entry that is none.
const UNUSED: Guid = Guid([0; 16]);

/// How large a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Sectors.
    count: u64,
    /// Bytes of a sector: 512 or 4096.
    sector: u64,
}

impl Geometry {
    /// Of a disk with so many bytes; none if it is too small for a table, or has other sectors.
    pub(super) fn new(size: u64, sector: u64) -> Option<Self> {
        let is_known = matches!(sector, 512 | 4096);
        (is_known && size >= 4 * ALIGNMENT).then(|| Self { count: size / sector, sector })
    }

    /// Bytes of a sector.
    pub(super) fn sector(self) -> u64 {
        self.sector
    }

    fn last(self) -> u64 {
        self.count - 1
    }

    fn entries_count(self) -> u64 {
        (ENTRIES_SIZE as u64).div_ceil(self.sector)
    }

    fn first_usable(self) -> u64 {
        2 + self.entries_count()
    }

    fn last_usable(self) -> u64 {
        self.last() - 1 - self.entries_count()
    }

    fn backup_entries(self) -> u64 {
        self.last() - self.entries_count()
    }
}

/// An entry: 128 bytes, whatever they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry([u8; ENTRY_SIZE]);

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}..={}", self.kind(), self.id(), self.first(), self.last())
    }
}

impl Entry {
    const EMPTY: Self = Self([0; ENTRY_SIZE]);

    fn new(id: Guid, first: u64, last: u64) -> Self {
        let mut entry = Self::EMPTY;
        entry.0[..16].copy_from_slice(&MAKING.0);
        entry.0[16..32].copy_from_slice(&id.0);
        entry.0[32..40].copy_from_slice(&first.to_le_bytes());
        entry.0[40..48].copy_from_slice(&last.to_le_bytes());
        entry.rename();
        entry
    }

    fn rename(&mut self) {
        self.0[56..].fill(0);
        for (to, unit) in self.0[56..].chunks_exact_mut(2).zip(NAME.encode_utf16()) {
            to.copy_from_slice(&unit.to_le_bytes());
        }
    }

    fn guid(&self, at: usize) -> Guid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[at..at + 16]);
        Guid(bytes)
    }

    /// Its type.
    pub(super) fn kind(&self) -> Guid {
        self.guid(0)
    }

    /// Its own number.
    pub(super) fn id(&self) -> Guid {
        self.guid(16)
    }

    pub(super) fn is_used(&self) -> bool {
        self.kind() != UNUSED
    }

    fn is_ours(&self) -> bool {
        self.kind() == MAKING || self.kind() == POOL
    }

    /// Whether they are equal, or one of them is this one on its way to being ours: new, or of another
    /// type.
    fn is_same_but_ours(&self, other: &Self) -> bool {
        let is_in_place = (self.first(), self.last()) == (other.first(), other.last());
        let is_under_way =
            |entry: &Self| entry.is_ours() && (is_in_place || !self.is_used() || !other.is_used());
        self == other || is_under_way(self) || is_under_way(other)
    }

    /// Its first sector.
    pub(super) fn first(&self) -> u64 {
        number(&self.0, 32)
    }

    /// Its last sector.
    pub(super) fn last(&self) -> u64 {
        number(&self.0, 40)
    }

    #[cfg(test)]
    pub(super) fn set_place(&mut self, first: u64, last: u64) {
        self.0[32..40].copy_from_slice(&first.to_le_bytes());
        self.0[40..48].copy_from_slice(&last.to_le_bytes());
    }

    fn set_kind(&mut self, kind: Guid) {
        self.0[..16].copy_from_slice(&kind.0);
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    disk: Guid,
    /// First and last sectors that partitions may have.
    usable: (u64, u64),
    pub(super) entries: Vec<Entry>,
}

/// One copy of a table, whose header's own checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableCopy {
    pub(super) table: Table,
    /// Whether the checksum of its entries is right, too.
    pub(super) is_whole: bool,
}

/// Both copies, as far as there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copies {
    pub(super) primary: Option<TableCopy>,
    pub(super) backup: Option<TableCopy>,
}

impl Copies {
    /// Reads what is there.
    pub(super) fn read(disk: &impl Block, geometry: Geometry) -> io::Result<Self> {
        let primary = read_copy(disk, geometry, 1, 2, geometry.last())?;
        let backup = read_copy(disk, geometry, geometry.last(), geometry.backup_entries(), 1)?;
        Ok(Self { primary, backup })
    }

    /// The first copy, which the kernel believes, if it is whole.
    pub(super) fn primary(&self) -> Option<&Table> {
        whole(self.primary.as_ref())
    }

    /// The copy at the disk's end, if it is whole.
    pub(super) fn backup(&self) -> Option<&Table> {
        whole(self.backup.as_ref())
    }

    /// Whether both are there, and the same but for what is ours: that may have been under way. The first
    /// that is whole says what belongs to others.
    pub(super) fn agreed(&self) -> Option<&Table> {
        let (one, other) = (&self.primary.as_ref()?.table, &self.backup.as_ref()?.table);
        let is_same_disk = one.disk == other.disk && one.usable == other.usable;
        let entries = one.entries.iter().zip(&other.entries);
        let are_same = entries.into_iter().all(|(one, other)| one.is_same_but_ours(other));
        self.primary().or_else(|| self.backup()).filter(|_| is_same_disk && are_same)
    }
}

fn whole(copy: Option<&TableCopy>) -> Option<&Table> {
    copy.filter(|copy| copy.is_whole).map(|copy| &copy.table)
}

impl Table {
    /// The table of a disk that is ours alone.
    pub(super) fn of_our_own(id: Guid, geometry: Geometry) -> Self {
        let align = ALIGNMENT / geometry.sector;
        let last = (geometry.last_usable() + 1) / align * align - 1;
        let mut entries = vec![Entry::EMPTY; ENTRY_COUNT];
        entries[0] = Entry::new(id, align, last);
        let usable = (geometry.first_usable(), geometry.last_usable());
        Self { disk: id.twin(), usable, entries }
    }

    /// Index and entry of the first partition with this type.
    pub(super) fn find(&self, kind: Guid) -> Option<(usize, &Entry)> {
        self.entries.iter().enumerate().find(|(_, entry)| entry.kind() == kind)
    }

    /// Takes sectors that belong to nobody. None if all entries are used.
    pub(super) fn with_new(&self, id: Guid, (first, last): (u64, u64)) -> Option<Self> {
        let mut table = self.clone();
        let free = table.entries.iter_mut().find(|entry| !entry.is_used())?;
        *free = Entry::new(id, first, last);
        Some(table)
    }

    /// Makes the partition at `index` be of this type, and ours.
    pub(super) fn with_kind(&self, index: usize, kind: Guid) -> Self {
        let mut table = self.clone();
        if let Some(entry) = table.entries.get_mut(index) {
            entry.set_kind(kind);
            entry.rename();
        }
        table
    }

    /// Whether all partitions are where partitions can be, and none in another.
    pub(super) fn is_sound(&self) -> bool {
        let mut used: Vec<(u64, u64)> = self.used().collect();
        used.sort_unstable();
        let usable = self.usable.0..=self.usable.1;
        let are_inside = used
            .iter()
            .all(|(first, last)| first <= last && usable.contains(first) && usable.contains(last));
        are_inside && used.windows(2).all(|pair| pair[0].1 < pair[1].0)
    }

    /// Whole aligned pieces of the disk that belong to nobody: first and last sectors. The table must be
    /// sound.
    pub(super) fn free(&self, geometry: Geometry) -> Vec<(u64, u64)> {
        let align = ALIGNMENT / geometry.sector;
        let mut used: Vec<(u64, u64)> = self.used().collect();
        used.sort_unstable();
        let end = self.usable.1 + 1;
        let mut free = Vec::new();
        let mut from = self.usable.0;
        for (first, next) in
            used.into_iter().map(|(first, last)| (first, last + 1)).chain([(end, end)])
        {
            let (begin, stop) = (from.div_ceil(align) * align, first / align * align);
            if begin < stop {
                free.push((begin, stop - 1));
            }
            from = next;
        }
        free
    }

    fn used(&self) -> impl Iterator<Item = (u64, u64)> {
        let used = self.entries.iter().filter(|entry| entry.is_used());
        used.map(|entry| (entry.first(), entry.last()))
    }

    /// Writes both copies, and the first sector if it is blank.
    pub(super) fn write(&self, disk: &impl Block, geometry: Geometry) -> io::Result<()> {
        let entries: Vec<u8> = self.entries.iter().flat_map(|entry| entry.0).collect();
        let (last, sector) = (geometry.last(), geometry.sector);
        for (header, entries_at, other) in [(last, geometry.backup_entries(), 1), (1, 2, last)] {
            disk.write_at(&entries, entries_at * sector)?;
            let header_bytes = self.header(&entries, geometry, [header, other, entries_at]);
            disk.write_at(&header_bytes, header * sector)?;
            disk.sync()?;
        }
        let mut first = vec![0; buffer_size(sector)];
        disk.read_at(&mut first, 0)?;
        if first.iter().all(|byte| *byte == 0) {
            disk.write_at(&protective(geometry), 0)?;
            disk.sync()?;
        }
        Ok(())
    }

    fn header(&self, entries: &[u8], geometry: Geometry, [here, other, list]: [u64; 3]) -> Vec<u8> {
        let mut bytes = vec![0; buffer_size(geometry.sector)];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, SIGNATURE);
        put(8, &0x0001_0000_u32.to_le_bytes());
        put(12, &(HEADER_SIZE as u64).to_le_bytes()[..4]);
        for (at, value) in
            [(24, here), (32, other), (40, self.usable.0), (48, self.usable.1), (72, list)]
        {
            put(at, &value.to_le_bytes());
        }
        put(56, &self.disk.0);
        put(80, &(ENTRY_COUNT as u64).to_le_bytes()[..4]);
        put(84, &(ENTRY_SIZE as u64).to_le_bytes()[..4]);
        put(88, &crc32(entries).to_le_bytes());
        let checksum = crc32(&bytes[..HEADER_SIZE]);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// The number of the partition that a blank disk was to get, if all that is at both its ends is part of
/// what [`Table::write`] writes to it first: a plug was pulled meanwhile.
pub(super) fn half_written(ends: [(&[u8], u64); 2], geometry: Geometry) -> Option<Guid> {
    let planned = |id| Planned::new(&Table::of_our_own(id, geometry), geometry);
    candidates(ends, geometry).find(|id| {
        let planned = planned(*id);
        ends.iter().all(|(bytes, from)| planned.explains(bytes, *from, geometry.sector))
    })
}

/// Numbers that an entry or a header at either end tells.
fn candidates(ends: [(&[u8], u64); 2], geometry: Geometry) -> impl Iterator<Item = Guid> {
    let at = move |end: usize, lba: u64| {
        let (bytes, from) = ends[end];
        let place = (lba * geometry.sector).checked_sub(from)?;
        bytes.get(usize::try_from(place).ok()?..)?.first_chunk::<ENTRY_SIZE>()
    };
    let entries =
        [(0, 2), (1, geometry.backup_entries())].into_iter().filter_map(move |(end, lba)| {
            let entry = Entry(*at(end, lba)?);
            (entry.kind() == MAKING).then(|| entry.id())
        });
    let headers = [(0, 1), (1, geometry.last())].into_iter().filter_map(move |(end, lba)| {
        let header = at(end, lba).filter(|header| header.starts_with(SIGNATURE))?;
        Some(Entry(*header).guid(56).twin())
    });
    entries.chain(headers)
}

/// What is written to a blank disk, by its sectors.
struct Planned(Vec<(u64, Vec<u8>)>);

impl Planned {
    fn new(table: &Table, geometry: Geometry) -> Self {
        let entries: Vec<u8> = table.entries.iter().flat_map(|entry| entry.0).collect();
        let first = entries[..buffer_size(geometry.sector)].to_vec();
        let (last, list) = (geometry.last(), geometry.backup_entries());
        Self(vec![
            (0, protective(geometry)),
            (1, table.header(&entries, geometry, [1, last, 2])),
            (2, first.clone()),
            (list, first),
            (last, table.header(&entries, geometry, [last, 1, list])),
        ])
    }

    /// Whether each sector is blank, or what is to be there.
    fn explains(&self, bytes: &[u8], from: u64, sector: u64) -> bool {
        let sectors = bytes.chunks(buffer_size(sector)).zip(from / sector..);
        sectors.into_iter().all(|(bytes, lba)| {
            let planned = self.0.iter().find(|(at, _)| *at == lba);
            bytes.iter().all(|byte| *byte == 0)
                || planned.is_some_and(|(_, planned)| planned == bytes)
        })
    }
}

/// Whether a first sector is that of a disk with such a table and no other.
pub(super) fn is_protective(sector: &[u8]) -> bool {
    let mut entries = sector.get(446..510).unwrap_or_default().chunks_exact(16);
    let is_signed = sector.get(510..512) == Some(&[0x55, 0xaa]);
    let is_first = entries.next().is_some_and(|entry| entry[4] == 0xee);
    is_signed && is_first && entries.all(|entry| entry.iter().all(|byte| *byte == 0))
}

/// Whether a first sector is an MBR in its own right, and none that stands before a table like these.
pub(super) fn is_mbr(sector: &[u8]) -> bool {
    let mut entries = sector.get(446..510).unwrap_or_default().chunks_exact(16);
    let is_signed = sector.get(510..512) == Some(&[0x55, 0xaa]);
    is_signed && entries.all(|entry| matches!(entry[0], 0 | 0x80) && entry[4] != 0xee)
}

fn protective(geometry: Geometry) -> Vec<u8> {
    let mut bytes = vec![0; buffer_size(geometry.sector)];
    let size = u32::try_from(geometry.last()).unwrap_or(u32::MAX);
    bytes[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    bytes[454..458].copy_from_slice(&1_u32.to_le_bytes());
    bytes[458..462].copy_from_slice(&size.to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

fn read_copy(
    disk: &impl Block,
    geometry: Geometry,
    here: u64,
    list: u64,
    other: u64,
) -> io::Result<Option<TableCopy>> {
    let sector = geometry.sector;
    let mut header = vec![0; buffer_size(sector)];
    disk.read_at(&mut header, here * sector)?;
    let expected =
        [(24, here), (32, other), (72, list), (80, ENTRY_COUNT as u64 | (ENTRY_SIZE as u64) << 32)];
    let start = *b"EFI PART\0\0\x01\0\x5c\0\0\0";
    if header[..16] != start || expected.iter().any(|(at, value)| number(&header, *at) != *value) {
        return Ok(None);
    }
    let checksum = header[16..20].to_vec();
    header[16..20].fill(0);
    let usable = (number(&header, 40), number(&header, 48));
    let is_inside = geometry.first_usable() <= usable.0
        && usable.0 <= usable.1
        && usable.1 <= geometry.last_usable();
    if crc32(&header[..HEADER_SIZE]).to_le_bytes() != *checksum || !is_inside {
        return Ok(None);
    }
    let mut bytes = vec![0; ENTRIES_SIZE];
    disk.read_at(&mut bytes, list * sector)?;
    let is_whole = crc32(&bytes).to_le_bytes() == header[88..92];
    let entry = |chunk: &[u8]| {
        let mut entry = Entry::EMPTY;
        entry.0.copy_from_slice(chunk);
        entry
    };
    let entries = bytes.chunks_exact(ENTRY_SIZE).map(entry).collect();
    let mut id = [0; 16];
    id.copy_from_slice(&header[56..72]);
    Ok(Some(TableCopy { table: Table { disk: Guid(id), usable, entries }, is_whole }))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn buffer_size(sector: u64) -> usize {
    // It is 512 or 4096.
    usize::try_from(sector).unwrap_or(4096)
}
