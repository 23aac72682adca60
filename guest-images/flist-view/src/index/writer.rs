//! Writes an index: takes inodes in order, lays out sections, and refuses what a reader would refuse.
//!
//! The caller numbers inodes itself, because entries name inodes that come later. Nothing here
//! knows of image formats or trees.

use crate::block::{BlockCipher, BlockRef};
use crate::filesystem::{Ino, ROOT, Timestamp};

use super::layout::{
    EntryRecord, HEADER_SIZE, Header, SECTION_ALIGN, SECTION_COUNT, Span, XattrRecord, encode_block,
};
use super::{Inode, NAME_SIZE_MAX, TARGET_SIZE_MAX, XATTR_VALUE_SIZE_MAX, block_count_of};

/// Collects inodes; [`IndexWriter::finish`] gives the file's bytes.
pub struct IndexWriter {
    image_hash: [u8; 32],
    cipher: BlockCipher,
    inodes: Vec<u8>,
    entries: Vec<u8>,
    blocks: Vec<u8>,
    xattrs: Vec<u8>,
    blob: Vec<u8>,
    contents_size: u64,
    counts: Counts,
    /// Highest inode number that an entry or parent named.
    ino_named_max: Ino,
}

#[derive(Default)]
struct Counts {
    inodes: u32,
    entries: u32,
    blocks: u32,
    xattrs: u32,
}

/// One inode to write. Names, targets and values are borrowed and copied.
#[derive(Clone, Copy, Debug)]
pub struct InodeRecord<'a> {
    /// `st_mode`; its type bits must fit `contents`.
    pub mode: u32,
    /// Link count, as `stat` shows it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of metadata.
    pub ctime: Timestamp,
    /// What it holds.
    pub contents: Contents<'a>,
    /// Names and values, sorted by name without duplicates.
    pub xattrs: &'a [(&'a [u8], &'a [u8])],
}

/// What an inode to write holds.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'a> {
    /// A directory.
    Directory {
        /// The directory that holds it; the root is its own.
        parent: Ino,
        /// `st_size` to show.
        size: u64,
        /// Names and inode numbers, sorted by name without duplicates.
        entries: &'a [(&'a [u8], Ino)],
    },
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// As many blocks as the size needs.
        blocks: &'a [BlockRef],
    },
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A character or block device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe or socket.
    Other,
}

/// Why an index can't be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Type bits and contents do not agree.
    #[error("inode {0}: its mode {1:o} does not fit what it holds")]
    Mode(Ino, u32),
    /// Nanoseconds of 10^9 or more.
    #[error("inode {0}: a time with more than 999999999 ns")]
    Time(Ino),
    /// A name is empty, too long, reserved, or not in order.
    #[error("inode {0}: names must be valid, sorted and distinct")]
    Names(Ino),
    /// A link target is empty or too long.
    #[error("inode {0}: link target must be 1 to {TARGET_SIZE_MAX} bytes")]
    Target(Ino),
    /// An extended attribute's name or value is too long, or attributes are not in order.
    #[error("inode {0}: extended attributes must be sorted, distinct and within Linux's limits")]
    Xattrs(Ino),
    /// The number of blocks is not what the size needs.
    #[error("inode {ino}: {size} bytes need {expected} blocks, there are {found}")]
    BlockCount {
        /// The file.
        ino: Ino,
        /// Its size in bytes.
        size: u64,
        /// Blocks that size needs.
        expected: u64,
        /// Blocks given.
        found: u64,
    },
    /// An entry names an inode that was never written, or the root is no directory.
    #[error("inode {0} is named but not written")]
    Dangling(Ino),
    /// More of something than 32 bits count.
    #[error("too many {0} for one index")]
    TooMany(&'static str),
}

impl IndexWriter {
    /// An empty index of the image with this hash.
    #[must_use]
    pub fn new(image_hash: [u8; 32], cipher: BlockCipher) -> Self {
        Self {
            image_hash,
            cipher,
            inodes: Vec::new(),
            entries: Vec::new(),
            blocks: Vec::new(),
            xattrs: Vec::new(),
            blob: Vec::new(),
            contents_size: 0,
            counts: Counts::default(),
            ino_named_max: ROOT,
        }
    }

    /// Adds the next inode; the first is the root directory. Returns its number, which counts up
    /// from [`ROOT`].
    ///
    /// # Errors
    /// [`WriteError`] names the inode and the rule; the writer is of no further use then.
    pub fn inode(&mut self, record: &InodeRecord<'_>) -> Result<Ino, WriteError> {
        let ino = u64::from(self.counts.inodes) + 1;
        check_record(ino, record)?;
        let (xattr_first, xattr_count) = self.add_xattrs(ino, record.xattrs)?;
        let (size, first, second, parent) = self.add_contents(ino, &record.contents)?;
        let inode = Inode {
            mode: record.mode,
            nlink: record.nlink,
            uid: record.uid,
            gid: record.gid,
            size,
            mtime: record.mtime,
            ctime: record.ctime,
            first,
            second,
            xattr_first,
            xattr_count,
            parent,
        };
        inode.encode(&mut self.inodes);
        self.counts.inodes = add(self.counts.inodes, 1, "inodes")?;
        Ok(ino)
    }

    /// The finished file.
    ///
    /// # Errors
    /// [`WriteError::Dangling`] if an entry names an inode that was not added.
    pub fn finish(self) -> Result<Vec<u8>, WriteError> {
        if self.ino_named_max > u64::from(self.counts.inodes) {
            return Err(WriteError::Dangling(self.ino_named_max));
        }
        let parts = [&self.inodes, &self.entries, &self.blocks, &self.xattrs, &self.blob];
        let mut sections = [Span::default(); SECTION_COUNT];
        let mut offset = HEADER_SIZE;
        for (span, part) in sections.iter_mut().zip(parts) {
            *span = Span { offset: offset as u64, size: part.len() as u64 };
            offset = offset.saturating_add(part.len()).next_multiple_of(SECTION_ALIGN);
        }
        let mut payload = Vec::with_capacity(offset);
        payload.resize(HEADER_SIZE, 0);
        for part in parts {
            payload.extend_from_slice(part);
            payload.resize(payload.len().next_multiple_of(SECTION_ALIGN), 0);
        }
        let (front, sections_bytes) = payload.split_at_mut(HEADER_SIZE);
        let header = Header {
            cipher: self.cipher,
            image_hash: self.image_hash,
            inode_count: self.counts.inodes,
            entry_count: self.counts.entries,
            block_count: self.counts.blocks,
            xattr_count: self.counts.xattrs,
            sections,
            contents_size: self.contents_size,
            payload_checksum: crc32c::crc32c(sections_bytes),
        };
        front.copy_from_slice(&header.encode());
        Ok(payload)
    }

    /// Returns `(size, first, second, parent)` of the inode's record.
    fn add_contents(
        &mut self,
        ino: Ino,
        contents: &Contents<'_>,
    ) -> Result<(u64, u32, u32, u32), WriteError> {
        match *contents {
            Contents::Directory { parent, size, entries } => {
                let (first, count) = self.add_entries(ino, entries)?;
                Ok((size, first, count, self.name_inode(parent)?))
            }
            Contents::File { size, blocks } => {
                let (first, count) = self.add_blocks(ino, size, blocks)?;
                self.contents_size = self.contents_size.saturating_add(size);
                Ok((size, first, count, 0))
            }
            Contents::Symlink(target) => {
                if target.is_empty() || target.len() > TARGET_SIZE_MAX {
                    return Err(WriteError::Target(ino));
                }
                let (offset, size) = self.add_blob(target)?;
                Ok((u64::from(size), offset, size, 0))
            }
            Contents::Device { major, minor } => Ok((0, major, minor, 0)),
            Contents::Other => Ok((0, 0, 0, 0)),
        }
    }

    fn add_entries(
        &mut self,
        ino: Ino,
        entries: &[(&[u8], Ino)],
    ) -> Result<(u32, u32), WriteError> {
        let first = self.counts.entries;
        let mut previous: &[u8] = &[];
        for (name, child) in entries {
            // An empty name is not above the empty `previous`, so it is refused too.
            let reserved =
                matches!(*name, b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/'));
            if *name <= previous || name.len() > NAME_SIZE_MAX || reserved {
                return Err(WriteError::Names(ino));
            }
            previous = name;
            let inode = self.name_inode(*child)?;
            let (name_offset, _) = self.add_blob(name)?;
            let name_size = u16::try_from(name.len()).map_err(|_| WriteError::Names(ino))?;
            EntryRecord { inode, name_offset, name_size }.encode(&mut self.entries);
        }
        self.counts.entries = add(first, entries.len(), "directory entries")?;
        Ok((first, self.counts.entries - first))
    }

    fn add_blocks(
        &mut self,
        ino: Ino,
        size: u64,
        blocks: &[BlockRef],
    ) -> Result<(u32, u32), WriteError> {
        let (expected, found) = (block_count_of(size), blocks.len() as u64);
        if found != expected {
            return Err(WriteError::BlockCount { ino, size, expected, found });
        }
        let first = self.counts.blocks;
        blocks.iter().for_each(|block| encode_block(block, &mut self.blocks));
        self.counts.blocks = add(first, blocks.len(), "blocks")?;
        Ok((first, self.counts.blocks - first))
    }

    fn add_xattrs(
        &mut self,
        ino: Ino,
        xattrs: &[(&[u8], &[u8])],
    ) -> Result<(u32, u16), WriteError> {
        let first = self.counts.xattrs;
        let mut previous: &[u8] = &[];
        for (name, value) in xattrs {
            let too_long = name.len() > NAME_SIZE_MAX || value.len() > XATTR_VALUE_SIZE_MAX;
            if *name <= previous || name.contains(&0) || too_long {
                return Err(WriteError::Xattrs(ino));
            }
            previous = name;
            let (name_offset, name_size) = self.add_blob(name)?;
            let (value_offset, value_size) = self.add_blob(value)?;
            XattrRecord { name_offset, name_size, value_offset, value_size }
                .encode(&mut self.xattrs);
        }
        let count = u16::try_from(xattrs.len()).map_err(|_| WriteError::Xattrs(ino))?;
        self.counts.xattrs = add(first, xattrs.len(), "extended attributes")?;
        Ok((first, count))
    }

    /// Appends to the blob; returns offset and size.
    fn add_blob(&mut self, bytes: &[u8]) -> Result<(u32, u32), WriteError> {
        let too_many = WriteError::TooMany("bytes of names");
        let offset = u32::try_from(self.blob.len()).map_err(|_| too_many)?;
        let size = u32::try_from(bytes.len()).map_err(|_| too_many)?;
        self.blob.extend_from_slice(bytes);
        Ok((offset, size))
    }

    /// The position of an inode that may be yet to come.
    fn name_inode(&mut self, ino: Ino) -> Result<u32, WriteError> {
        self.ino_named_max = self.ino_named_max.max(ino);
        let position = ino.checked_sub(1).ok_or(WriteError::Dangling(ino))?;
        u32::try_from(position).map_err(|_| WriteError::Dangling(ino))
    }
}

fn check_record(ino: Ino, record: &InodeRecord<'_>) -> Result<(), WriteError> {
    let fits = match (record.mode & 0o170_000, &record.contents) {
        (0o040_000, Contents::Directory { .. }) => true,
        (0o100_000, Contents::File { .. })
        | (0o120_000, Contents::Symlink(_))
        | (0o020_000 | 0o060_000, Contents::Device { .. })
        | (0o010_000 | 0o140_000, Contents::Other) => ino != ROOT,
        _ => false,
    };
    if !fits || record.mode > u32::from(u16::MAX) {
        return Err(WriteError::Mode(ino, record.mode));
    }
    if record.mtime.nanoseconds >= 1_000_000_000 || record.ctime.nanoseconds >= 1_000_000_000 {
        return Err(WriteError::Time(ino));
    }
    Ok(())
}

fn add(count: u32, more: usize, what: &'static str) -> Result<u32, WriteError> {
    let more = u32::try_from(more).map_err(|_| WriteError::TooMany(what))?;
    count.checked_add(more).ok_or(WriteError::TooMany(what))
}
