//! The index's bytes: header, section table and fixed-size records. `FORMAT.md` has the tables.

use crate::block::{BlockCipher, BlockId, BlockKey, BlockRef};
use crate::bytes::Reader;
use crate::filesystem::Timestamp;

use super::{IndexError, Inode};

pub(super) const MAGIC: [u8; 8] = *b"FLISTIDX";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_SIZE: usize = 160;
pub(super) const INODE_SIZE: usize = 64;
pub(super) const ENTRY_SIZE: usize = 12;
pub(super) const BLOCK_REF_SIZE: usize = 64;
pub(super) const XATTR_SIZE: usize = 16;
/// Sections begin at multiples of this.
pub(super) const SECTION_ALIGN: usize = 8;

/// Bytes of the header that its checksum covers.
const HEADER_CHECKED_SIZE: usize = HEADER_SIZE - 4;

/// Sections in the order of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Inodes = 0,
    Entries = 1,
    Blocks = 2,
    Xattrs = 3,
    Blob = 4,
}

pub(super) const SECTION_COUNT: usize = 5;

/// A place in the file, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// The decoded header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cipher: BlockCipher,
    pub(super) image_hash: [u8; 32],
    pub(super) inode_count: u32,
    pub(super) entry_count: u32,
    pub(super) block_count: u32,
    pub(super) xattr_count: u32,
    pub(super) sections: [Span; SECTION_COUNT],
    /// Sum of the sizes of regular files.
    pub(super) contents_size: u64,
    /// CRC-32C of everything behind the header.
    pub(super) payload_checksum: u32,
}

/// A decoded directory entry; its name is in the blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRecord {
    pub(super) inode: u32,
    pub(super) name_offset: u32,
    pub(super) name_size: u16,
}

/// A decoded extended attribute; name and value are in the blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct XattrRecord {
    pub(super) name_offset: u32,
    pub(super) name_size: u32,
    pub(super) value_offset: u32,
    pub(super) value_size: u32,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.cipher as u8, 0, 0, 0]);
        bytes.extend_from_slice(&self.image_hash);
        for count in [self.inode_count, self.entry_count, self.block_count, self.xattr_count] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        for span in self.sections {
            bytes.extend_from_slice(&span.offset.to_le_bytes());
            bytes.extend_from_slice(&span.size.to_le_bytes());
        }
        bytes.extend_from_slice(&self.contents_size.to_le_bytes());
        bytes.extend_from_slice(&self.payload_checksum.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes and checks the header at the front of `bytes`, against its own checksum and against
    /// the size of the file.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let fields: &[u8; HEADER_SIZE] = bytes.first_chunk().ok_or(IndexError::Magic)?;
        let (checked, checksum) = fields.split_at(HEADER_CHECKED_SIZE);
        let mut reader = Reader::new(checked);
        if reader.array() != Some(MAGIC) {
            return Err(IndexError::Magic);
        }
        let version = reader.u32().ok_or(IndexError::Magic)?;
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let expected = Reader::new(checksum).u32().ok_or(IndexError::Magic)?;
        let found = crc32c::crc32c(checked);
        if found != expected {
            return Err(IndexError::HeaderChecksum { found, expected });
        }
        let header = Self::decode_fields(&mut reader).ok_or(IndexError::Header("its fields"))?;
        header.check_sections(bytes.len() as u64)?;
        Ok(header)
    }

    fn decode_fields(reader: &mut Reader<'_>) -> Option<Self> {
        let [cipher, ..] = reader.array::<4>()?;
        let mut header = Self {
            cipher: BlockCipher::from_number(cipher)?,
            image_hash: reader.array()?,
            inode_count: reader.u32()?,
            entry_count: reader.u32()?,
            block_count: reader.u32()?,
            xattr_count: reader.u32()?,
            sections: [Span::default(); SECTION_COUNT],
            contents_size: 0,
            payload_checksum: 0,
        };
        for span in &mut header.sections {
            *span = Span { offset: reader.u64()?, size: reader.u64()? };
        }
        header.contents_size = reader.u64()?;
        header.payload_checksum = reader.u32()?;
        Some(header)
    }

    /// Every section lies within the file and has room for exactly its records.
    fn check_sections(&self, file_size: u64) -> Result<(), IndexError> {
        let fits = |span: &Span| {
            span.offset >= HEADER_SIZE as u64
                && span.offset.checked_add(span.size).is_some_and(|end| end <= file_size)
        };
        if !self.sections.iter().all(fits) {
            return Err(IndexError::Header("a section beyond the end of the file"));
        }
        let [inodes, entries, blocks, xattrs, _blob] = &self.sections;
        let tables = [
            (inodes, self.inode_count, INODE_SIZE),
            (entries, self.entry_count, ENTRY_SIZE),
            (blocks, self.block_count, BLOCK_REF_SIZE),
            (xattrs, self.xattr_count, XATTR_SIZE),
        ];
        let exact = |(span, count, size): &(&Span, u32, usize)| {
            span.size == u64::from(*count) * *size as u64
        };
        if !tables.iter().all(exact) {
            return Err(IndexError::Header("a section's size and its count of records"));
        }
        if self.inode_count == 0 {
            return Err(IndexError::Header("no root directory"));
        }
        Ok(())
    }
}

impl Inode {
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        // Types and permissions fit 16 bits; the writer checked.
        #[expect(clippy::cast_possible_truncation, reason = "st_mode has 16 bits")]
        bytes.extend_from_slice(&(self.mode as u16).to_le_bytes());
        bytes.extend_from_slice(&self.xattr_count.to_le_bytes());
        for field in [self.nlink, self.uid, self.gid] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.mtime.seconds.to_le_bytes());
        bytes.extend_from_slice(&self.ctime.seconds.to_le_bytes());
        let rest = [
            self.mtime.nanoseconds,
            self.ctime.nanoseconds,
            self.first,
            self.second,
            self.xattr_first,
            self.parent,
        ];
        for field in rest {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
    }

    #[inline]
    pub(super) fn decode(record: &[u8; INODE_SIZE]) -> Option<Self> {
        let mut reader = Reader::new(record);
        let mode = u32::from(reader.u16()?);
        let xattr_count = reader.u16()?;
        let (nlink, uid, gid) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let size = reader.u64()?;
        let (mtime, ctime) = (reader.i64()?, reader.i64()?);
        Some(Self {
            mode,
            nlink,
            uid,
            gid,
            size,
            mtime: Timestamp { seconds: mtime, nanoseconds: reader.u32()? },
            ctime: Timestamp { seconds: ctime, nanoseconds: reader.u32()? },
            first: reader.u32()?,
            second: reader.u32()?,
            xattr_first: reader.u32()?,
            parent: reader.u32()?,
            xattr_count,
        })
    }
}

impl EntryRecord {
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.inode.to_le_bytes());
        bytes.extend_from_slice(&self.name_offset.to_le_bytes());
        bytes.extend_from_slice(&self.name_size.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
    }

    #[inline]
    pub(super) fn decode(record: &[u8; ENTRY_SIZE]) -> Option<Self> {
        let mut reader = Reader::new(record);
        Some(Self { inode: reader.u32()?, name_offset: reader.u32()?, name_size: reader.u16()? })
    }
}

impl XattrRecord {
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for field in [self.name_offset, self.name_size, self.value_offset, self.value_size] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
    }

    pub(super) fn decode(record: &[u8; XATTR_SIZE]) -> Option<Self> {
        let mut reader = Reader::new(record);
        Some(Self {
            name_offset: reader.u32()?,
            name_size: reader.u32()?,
            value_offset: reader.u32()?,
            value_size: reader.u32()?,
        })
    }
}

pub(super) fn encode_block(block: &BlockRef, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&block.id.0);
    bytes.extend_from_slice(&block.key.0);
}

pub(super) fn decode_block(record: &[u8; BLOCK_REF_SIZE]) -> Option<BlockRef> {
    let mut reader = Reader::new(record);
    Some(BlockRef { id: BlockId(reader.array()?), key: BlockKey(reader.array()?) })
}
