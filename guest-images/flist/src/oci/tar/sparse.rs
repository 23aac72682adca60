//! Sparse files: where the pieces of a file are when an archive leaves out its holes.
//!
//! Four encodings (GNU tar manual, "Storing Sparse Files"): the old GNU header with its map in the
//! header and blocks behind it, and pax 0.0 (repeated records), 0.1 (one record) and 1.0 (the map
//! stands before the data). In all of them the pieces' data is stored without gaps.

use std::io::{self, BufRead, BufReader, Read};

use super::header::{self, BLOCK_SIZE, Header};
use super::pax::{Pax, decimal};
use super::{EXTENT_COUNT_MAX, Extent, FileData};
use crate::oci::region::{ReadAt, Reader};

/// Longest line of a pax 1.0 map, in bytes: the digits of 2^64 and a newline.
const LINE_SIZE_MAX: u64 = 21;

/// A member's data as it stands in the archive.
pub(super) struct Stored<'a, S> {
    pub(super) source: &'a S,
    pub(super) start: u64,
    pub(super) size: u64,
}

/// Why a sparse file is refused.
pub(super) enum SparseError {
    Read(io::Error),
    Rule(String),
}

impl From<String> for SparseError {
    fn from(rule: String) -> Self {
        Self::Rule(rule)
    }
}

impl From<&str> for SparseError {
    fn from(rule: &str) -> Self {
        Self::Rule(rule.to_owned())
    }
}

impl From<io::Error> for SparseError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// A member of type `S`.
pub(super) fn from_header<S: ReadAt>(
    header: &Header,
    extension: &[[u8; 512]],
    stored: &Stored<'_, S>,
) -> Result<FileData, SparseError> {
    let rule = "its sparse map is not made of numbers";
    let mut map = header.sparse_map().ok_or(rule)?;
    for block in extension {
        map.extend(header::extension_map(block).ok_or(rule)?);
    }
    let size = header.real_size().ok_or("its real size is no number")?;
    place(&map, stored.start, stored.size, size)
}

/// A regular member: whole, or sparse in one of pax's ways.
pub(super) fn from_pax<S: ReadAt>(
    pax: &Pax,
    stored: &Stored<'_, S>,
) -> Result<FileData, SparseError> {
    if pax.get(b"GNU.sparse.major") == Some(b"1") {
        let size = pax.number(b"GNU.sparse.realsize")?.ok_or("a sparse file without its size")?;
        let end = stored.start.saturating_add(stored.size);
        let lines = BufReader::new(Reader::new(stored.source, stored.start, end));
        let mut map = MapReader { lines, position: 0 };
        let entries = map.entries()?;
        let data = map.position.next_multiple_of(BLOCK_SIZE);
        let data_size = stored.size.checked_sub(data).ok_or("its sparse map is cut short")?;
        return place(&entries, stored.start.saturating_add(data), data_size, size);
    }
    let Some(size) = pax.number(b"GNU.sparse.size")? else {
        return place(&[(0, stored.size)], stored.start, stored.size, stored.size);
    };
    let numbers = match pax.get(b"GNU.sparse.map") {
        Some(map) => map.split(|byte| *byte == b',').map(decimal).collect(),
        None => repeated(pax),
    };
    let numbers: Vec<u64> = numbers.ok_or("its sparse map is not made of numbers")?;
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err("its sparse map is not made of pairs".into());
    };
    let map: Vec<(u64, u64)> = pairs.iter().map(|[offset, size]| (*offset, *size)).collect();
    place(&map, stored.start, stored.size, size)
}

/// Pax 0.0: records `offset` and `numbytes` by turns.
fn repeated(pax: &Pax) -> Option<Vec<u64>> {
    let keys: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];
    let records = pax.each(keys).enumerate();
    records
        .map(|(position, (key, value))| {
            let expected = if position % 2 == 0 { keys.first() } else { keys.last() };
            if expected == Some(&key) { decimal(value) } else { None }
        })
        .collect()
}

/// Reads pax 1.0's map: decimal numbers, one a line: how many pieces, then offset and size of each.
struct MapReader<R> {
    lines: R,
    position: u64,
}

impl<R: BufRead> MapReader<R> {
    fn entries(&mut self) -> Result<Vec<(u64, u64)>, SparseError> {
        let count = self.number()?;
        if count > EXTENT_COUNT_MAX as u64 {
            return Err("a sparse file of more than 1048576 pieces".into());
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push((self.number()?, self.number()?));
        }
        Ok(entries)
    }

    fn number(&mut self) -> Result<u64, SparseError> {
        let mut line = Vec::new();
        let size = self.lines.by_ref().take(LINE_SIZE_MAX).read_until(b'\n', &mut line)?;
        self.position = self.position.saturating_add(size as u64);
        let number = line.strip_suffix(b"\n").and_then(decimal);
        number.ok_or_else(|| "its sparse map is not made of numbers".into())
    }
}

/// Gives each piece its place in the archive; checks order, sizes and sums.
fn place(
    map: &[(u64, u64)],
    data_start: u64,
    data_size: u64,
    size: u64,
) -> Result<FileData, SparseError> {
    if map.len() > EXTENT_COUNT_MAX {
        return Err("a sparse file of more than 1048576 pieces".into());
    }
    let mut extents = Vec::with_capacity(map.len());
    let (mut end, mut used) = (0u64, 0u64);
    for (start, length) in map {
        let next = start.checked_add(*length).filter(|next| *next <= size && *start >= end);
        end = next.ok_or("the pieces of its sparse map overlap or reach beyond its end")?;
        if *length > 0 {
            let offset = data_start.saturating_add(used);
            extents.push(Extent { start: *start, offset, size: *length });
        }
        used = used.checked_add(*length).ok_or("its sparse map overflows")?;
    }
    if used != data_size {
        return Err(format!("its sparse map names {used} bytes, {data_size} are stored").into());
    }
    Ok(FileData { size, extents })
}
