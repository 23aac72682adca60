//! The 512-byte header block: fields at fixed places (POSIX.1-2017 pax, "ustar Interchange Format").
//!
//! ```text
//! offset size              offset size                 GNU, in place of prefix:
//!      0  100 name            157  100 link target        386 4 x 24 sparse map
//!    100    8 mode            257    8 magic, version     482      1 map continues
//!    108    8 uid             329    8 major              483     12 real size
//!    116    8 gid             337    8 minor
//!    124   12 size            345  155 prefix
//!    136   12 mtime
//!    148    8 checksum
//!    156    1 type
//! ```
//!
//! Numbers are octal digits, or big-endian two's complement when the first bit is set.

use std::ops::Range;

use flist_view::filesystem::Timestamp;

use super::TarError;
use super::pax::Pax;
use crate::tree::{DeviceNumber, printable};

/// Headers and data are padded to this, in bytes.
pub(super) const BLOCK_SIZE: u64 = 512;
/// Extents in one block that continues a sparse map.
pub(super) const EXTENSION_EXTENT_COUNT: usize = 21;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const TARGET: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const GNU_SPARSE_MAP: Range<usize> = 386..482;
const GNU_SPARSE_CONTINUES: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
const EXTENSION_MAP: Range<usize> = 0..504;
const EXTENSION_CONTINUES: usize = 504;
const EXTENT_SIZE: usize = 24;

/// A header with a valid checksum.
pub(super) struct Header {
    block: [u8; 512],
    offset: u64,
}

/// Which of the two owners.
#[derive(Clone, Copy)]
pub(super) enum Owner {
    User,
    Group,
}

impl Header {
    pub(super) fn parse(block: [u8; 512], offset: u64) -> Result<Self, TarError> {
        let header = Self { block, offset };
        let stored = number(header.field(CHECKSUM));
        if stored != Some(header.checksum(u32::from))
            && stored != Some(header.checksum(|byte| i32::from(byte.cast_signed()).cast_unsigned()))
        {
            return Err(TarError::Header { offset, rule: "its checksum does not match" });
        }
        Ok(header)
    }

    /// The sum of all bytes, those of the checksum itself taken as spaces. Old archivers summed
    /// signed bytes, hence `value`.
    fn checksum(&self, value: impl Fn(u8) -> u32) -> i64 {
        let bytes = self.block.iter().enumerate();
        let sum = bytes.fold(0u32, |sum, (position, byte)| {
            let byte = if CHECKSUM.contains(&position) { b' ' } else { *byte };
            sum.wrapping_add(value(byte))
        });
        i64::from(sum.cast_signed())
    }

    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block.get(TYPE).copied().unwrap_or_default()
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(self.field(NAME));
        let prefix = text(self.field(PREFIX));
        // GNU tar uses the prefix's place for other things and writes another magic.
        if self.field(MAGIC) == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(super) fn target(&self) -> Vec<u8> {
        text(self.field(TARGET)).to_vec()
    }

    pub(super) fn permissions(&self) -> Result<u32, TarError> {
        let mode = self.unsigned(MODE, "its mode is no number")?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or_default())
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.unsigned(SIZE, "its size is no number from 0 to 2^63-1")
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, TarError> {
        let seconds = number(self.field(MTIME));
        let seconds = seconds.ok_or_else(|| self.error("its time is no 64-bit number"))?;
        Ok(Timestamp { seconds, nanoseconds: 0 })
    }

    pub(super) fn owner(&self, pax: &Pax, owner: Owner) -> Result<u32, TarError> {
        let (field, key, rule) = match owner {
            Owner::User => (UID, b"uid", "its uid is no number from 0 to 2^32-1"),
            Owner::Group => (GID, b"gid", "its gid is no number from 0 to 2^32-1"),
        };
        let id = match pax.number(key).map_err(|rule| self.error_for(pax, rule))? {
            Some(id) => id,
            None => self.unsigned(field, rule)?,
        };
        u32::try_from(id).map_err(|_| self.error_for(pax, rule.to_owned()))
    }

    pub(super) fn device(&self, pax: &Pax) -> Result<DeviceNumber, TarError> {
        let part = |field, key: &[u8]| -> Result<u32, TarError> {
            let rule = "its device number is no pair of 32-bit numbers";
            let number = match pax.number(key).map_err(|rule| self.error_for(pax, rule))? {
                Some(number) => number,
                None => self.unsigned(field, rule)?,
            };
            u32::try_from(number).map_err(|_| self.error_for(pax, rule.to_owned()))
        };
        let major = part(MAJOR, b"SCHILY.devmajor")?;
        Ok(DeviceNumber { major, minor: part(MINOR, b"SCHILY.devminor")? })
    }

    pub(super) fn has_sparse_extension(&self) -> bool {
        self.block.get(GNU_SPARSE_CONTINUES).is_some_and(|byte| *byte != 0)
    }

    /// A GNU sparse file's size with its holes.
    pub(super) fn real_size(&self) -> Option<u64> {
        number(self.field(GNU_REAL_SIZE)).and_then(|size| u64::try_from(size).ok())
    }

    /// The sparse map in this header: offsets and sizes.
    pub(super) fn sparse_map(&self) -> Option<Vec<(u64, u64)>> {
        extents(self.field(GNU_SPARSE_MAP))
    }

    /// An error about this member by its own name.
    pub(super) fn error(&self, rule: &str) -> TarError {
        let name = printable(&self.name());
        TarError::Member { offset: self.offset, name, rule: rule.to_owned() }
    }

    /// An error about this member by the name that its pax header gives it.
    pub(super) fn error_for(&self, pax: &Pax, rule: String) -> TarError {
        let name = printable(&pax.name().unwrap_or_else(|| self.name()));
        TarError::Member { offset: self.offset, name, rule }
    }

    fn field(&self, range: Range<usize>) -> &[u8] {
        self.block.get(range).unwrap_or_default()
    }

    fn unsigned(&self, range: Range<usize>, rule: &str) -> Result<u64, TarError> {
        let value = number(self.field(range)).and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| self.error(rule))
    }
}

/// The map in a block that continues a sparse header.
pub(super) fn extension_map(block: &[u8; 512]) -> Option<Vec<(u64, u64)>> {
    extents(block.get(EXTENSION_MAP).unwrap_or_default())
}

/// Whether one more block continues the map.
pub(super) fn extension_continues(block: &[u8; 512]) -> bool {
    block.get(EXTENSION_CONTINUES).is_some_and(|byte| *byte != 0)
}

/// Offset and size, each 12 bytes, until the first unused entry.
fn extents(map: &[u8]) -> Option<Vec<(u64, u64)>> {
    let used = |entry: &&[u8]| entry.first() != Some(&0);
    let entries = map.chunks_exact(EXTENT_SIZE).take_while(used);
    let pair = |entry: &[u8]| {
        let (offset, size) = entry.split_at_checked(EXTENT_SIZE / 2)?;
        let value = |field| number(field).and_then(|value| u64::try_from(value).ok());
        Some((value(offset)?, value(size)?))
    };
    entries.map(pair).collect()
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or base 256; none if it is neither or beyond 64 bits.
fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(*byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let digits = field.get(start..).unwrap_or_default();
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    let digits = digits.get(..end).unwrap_or_default();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Big-endian two's complement; the first bit marks the encoding, the second is the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let start = i64::from((first << 1).cast_signed() >> 1);
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add((*byte).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"77777777777 ", Some(0o77_777_777_777)),
            (b"0000648\0", None),
            (b"-1\0\0", None),
            (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", Some(1 << 32)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
