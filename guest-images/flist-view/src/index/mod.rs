//! The index: one image's whole metadata as a flat file that is mapped, not loaded.
//!
//! `flist::index` builds it once per image and keys it by the image's hash; whoever serves the image
//! maps it. Opening checks the header and nothing else, so it costs the same for any size; each later
//! access checks the bounds of what it touches. A damaged index therefore gives
//! [`IndexError::Corrupt`] (the guest sees `EIO`), never a panic and never an endless loop.
//! [`Index::verify`] is the full check, for tests and `verify` commands.
//!
//! `FORMAT.md` beside this crate has the layout byte by byte.
//!
//! ```text
//! header ─ sections ─┬─ inodes   64 B each, inode number = position + 1, root first
//!                    ├─ entries  12 B each; a directory's are contiguous and sorted by name
//!                    ├─ blocks   64 B each; a file's are contiguous, in order
//!                    ├─ xattrs   16 B each; an inode's are contiguous and sorted by name
//!                    └─ blob     names, link targets, attribute values
//! ```

#![deny(clippy::indexing_slicing)]

mod layout;
mod path;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

use crate::block::{BLOCK_SIZE, BlockCipher, BlockRef};
use crate::bytes::{range, record};
use crate::filesystem::{Attributes, Ino, Timestamp};
use layout::{EntryRecord, Header, SECTION_COUNT, Section, XattrRecord};
pub use writer::{Contents, IndexWriter, InodeRecord, WriteError};

/// Longest name of a directory entry or extended attribute, in bytes.
pub const NAME_SIZE_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const TARGET_SIZE_MAX: usize = 4095;
/// Unit of `st_blocks`.
const SECTOR_SIZE: u64 = 512;
/// Longest value of an extended attribute, in bytes (`XATTR_SIZE_MAX` of Linux).
pub const XATTR_VALUE_SIZE_MAX: usize = 64 * 1024;

/// An image's metadata, mapped.
pub struct Index {
    bytes: Backing,
    header: Header,
    sections: [Range<usize>; SECTION_COUNT],
}

/// One inode, decoded. What it refers to is reached through [`Index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Directory entries that name it; of a directory, 2 plus its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; of a symbolic link, of its target.
    pub size: u64,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of metadata.
    pub ctime: Timestamp,
    /// Directory: first entry. File: first block. Link: target in the blob. Device: major.
    first: u32,
    /// Directory: count of entries. File: count of blocks. Link: size of target. Device: minor.
    second: u32,
    xattr_first: u32,
    xattr_count: u16,
    /// Position of a directory's parent; the root is its own.
    parent: u32,
}

/// What an inode is, as far as the index tells types apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character or block device.
    Device,
    /// A named pipe or socket.
    Other,
}

/// A directory's entries, sorted by name.
#[derive(Clone, Copy)]
pub struct Entries<'a> {
    index: &'a Index,
    first: u32,
    count: u32,
}

/// One extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// Full name, such as `user.mime_type`.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// Why an index can't answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file could not be read or mapped.
    #[error("index: {0}")]
    Io(#[from] io::Error),
    /// It does not begin like an index.
    #[error("index: not an flist index")]
    Magic,
    /// It is one of another version; build it anew.
    #[error("index: version {0}, this program reads version {version}", version = layout::VERSION)]
    Version(u32),
    /// The header is damaged.
    #[error("index: header checksum {found:08x}, expected {expected:08x}")]
    HeaderChecksum {
        /// Computed.
        found: u32,
        /// Stored.
        expected: u32,
    },
    /// The header contradicts itself or the file.
    #[error("index: header is wrong: {0}")]
    Header(&'static str),
    /// A record contradicts the rest.
    #[error("index: corrupt {what} at {position}")]
    Corrupt {
        /// What kind of record, and the rule it breaks.
        what: &'static str,
        /// Its position in its section.
        position: u64,
    },
    /// There is no inode of that number.
    #[error("index: no inode {0}")]
    NoInode(Ino),
    /// The inode is of another type than the call needs.
    #[error("index: inode is a {0:?}")]
    Type(FileType),
}

/// The bytes of an index.
enum Backing {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Index {
    /// Maps an index file and checks its header. Costs the same for any number of inodes.
    ///
    /// # Errors
    /// [`IndexError`], if the file can't be mapped or its header is wrong.
    pub fn open(file: &File) -> Result<Self, IndexError> {
        Self::new(Backing::Mapped(crate::map::map(file)?))
    }

    /// Takes an index that is already in memory, such as one that [`IndexWriter`] just made.
    ///
    /// # Errors
    /// [`IndexError`], if its header is wrong.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, IndexError> {
        Self::new(Backing::Owned(bytes))
    }

    fn new(bytes: Backing) -> Result<Self, IndexError> {
        let header = Header::decode(bytes.as_slice())?;
        let mut sections: [Range<usize>; SECTION_COUNT] = Default::default();
        for (section, span) in sections.iter_mut().zip(header.sections) {
            // `decode` checked both ends against the size of what is in memory.
            let start = usize::try_from(span.offset).map_err(|_| IndexError::Magic)?;
            let size = usize::try_from(span.size).map_err(|_| IndexError::Magic)?;
            *section = start..start.saturating_add(size);
        }
        Ok(Self { bytes, header, sections })
    }

    /// BLAKE2b-256 of the image file that this index was built from.
    #[must_use]
    pub const fn image_hash(&self) -> &[u8; 32] {
        &self.header.image_hash
    }

    /// How the image's blocks are hashed and encrypted.
    #[must_use]
    pub const fn cipher(&self) -> BlockCipher {
        self.header.cipher
    }

    /// Inodes in all. Inode numbers are `1..=inode_count`.
    #[must_use]
    pub const fn inode_count(&self) -> u32 {
        self.header.inode_count
    }

    /// Blocks in all, counting a block once for each place it is used in. Positions are
    /// `0..block_count`.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        self.header.block_count
    }

    /// Extended attributes in all.
    #[must_use]
    pub const fn xattr_count(&self) -> u32 {
        self.header.xattr_count
    }

    /// Sum of the sizes of all regular files, in bytes.
    #[must_use]
    pub const fn contents_size(&self) -> u64 {
        self.header.contents_size
    }

    /// Size of the index itself, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.as_slice().len()
    }

    /// One inode.
    ///
    /// # Errors
    /// [`IndexError::NoInode`], or [`IndexError::Corrupt`].
    pub fn inode(&self, ino: Ino) -> Result<Inode, IndexError> {
        let position = ino
            .checked_sub(1)
            .and_then(|position| u32::try_from(position).ok())
            .filter(|position| *position < self.header.inode_count)
            .ok_or(IndexError::NoInode(ino))?;
        let inode = record(self.section(Section::Inodes), position).and_then(Inode::decode);
        let is_time = |time: &Timestamp| time.nanoseconds < 1_000_000_000;
        inode
            .filter(|inode| is_time(&inode.mtime) && is_time(&inode.ctime))
            .ok_or_else(|| corrupt("inode", position))
    }

    /// A directory's entries.
    ///
    /// # Errors
    /// [`IndexError::Type`] for anything but a directory.
    pub fn entries(&self, inode: &Inode) -> Result<Entries<'_>, IndexError> {
        inode.expect_type(FileType::Directory)?;
        let end = inode.first.checked_add(inode.second);
        if end.is_none_or(|end| end > self.header.entry_count) {
            return Err(corrupt("directory's range of entries", inode.first));
        }
        Ok(Entries { index: self, first: inode.first, count: inode.second })
    }

    /// The inode number of a directory's parent; of the root, the root.
    ///
    /// # Errors
    /// [`IndexError::Type`] for anything but a directory.
    pub fn parent(&self, inode: &Inode) -> Result<Ino, IndexError> {
        inode.expect_type(FileType::Directory)?;
        Ok(u64::from(inode.parent) + 1)
    }

    /// Positions of a file's blocks, in order: all but the last are [`BLOCK_SIZE`] long.
    ///
    /// # Errors
    /// [`IndexError::Type`] for anything but a regular file; [`IndexError::Corrupt`] if the count of
    /// blocks is not what the file's size implies.
    pub fn blocks(&self, inode: &Inode) -> Result<Range<u32>, IndexError> {
        inode.expect_type(FileType::File)?;
        let end = inode.first.checked_add(inode.second);
        match end {
            Some(end)
                if end <= self.header.block_count
                    && u64::from(inode.second) == block_count_of(inode.size) =>
            {
                Ok(inode.first..end)
            }
            _ => Err(corrupt("file's range of blocks", inode.first)),
        }
    }

    /// Name and key of the block at `position`.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`] if there is no such position.
    pub fn block(&self, position: u32) -> Result<BlockRef, IndexError> {
        record(self.section(Section::Blocks), position)
            .and_then(layout::decode_block)
            .ok_or_else(|| corrupt("block", position))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`IndexError::Type`] for anything else.
    pub fn target(&self, inode: &Inode) -> Result<&[u8], IndexError> {
        inode.expect_type(FileType::Symlink)?;
        let size = inode.second as usize;
        if size > TARGET_SIZE_MAX {
            return Err(corrupt("link target", inode.first));
        }
        self.blob(inode.first, size).ok_or_else(|| corrupt("link target", inode.first))
    }

    /// An inode's extended attributes, sorted by name.
    pub fn xattrs(&self, inode: &Inode) -> impl Iterator<Item = Result<Xattr<'_>, IndexError>> {
        let first = inode.xattr_first;
        (0..u32::from(inode.xattr_count)).map(move |i| {
            let position = first.saturating_add(i);
            self.xattr_at(position).ok_or_else(|| corrupt("extended attribute", position))
        })
    }

    /// Value of one extended attribute, if it is set.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`].
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<&[u8]>, IndexError> {
        for xattr in self.xattrs(inode) {
            let xattr = xattr?;
            if xattr.name == name {
                return Ok(Some(xattr.value));
            }
        }
        Ok(None)
    }

    /// Attributes as `stat` shows them.
    #[must_use]
    pub fn attributes(ino: Ino, inode: &Inode) -> Attributes {
        let is_device = inode.file_type() == Some(FileType::Device);
        Attributes {
            ino,
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: if is_device { (inode.first, inode.second) } else { (0, 0) },
            size: inode.size,
            sector_count: inode.size.div_ceil(SECTOR_SIZE),
            generation: 0,
            // An image has no access times: the last change stands in for them.
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: inode.ctime,
        }
    }

    fn section(&self, section: Section) -> &[u8] {
        let [inodes, entries, blocks, xattrs, blob] = &self.sections;
        let range = match section {
            Section::Inodes => inodes,
            Section::Entries => entries,
            Section::Blocks => blocks,
            Section::Xattrs => xattrs,
            Section::Blob => blob,
        };
        self.bytes.as_slice().get(range.clone()).unwrap_or_default()
    }

    fn blob(&self, offset: u32, size: usize) -> Option<&[u8]> {
        range(self.section(Section::Blob), offset, size)
    }

    /// The name and inode number of the entry at `position` of the entries section.
    fn entry_at(&self, position: u32) -> Option<(&[u8], Ino)> {
        let entry = EntryRecord::decode(record(self.section(Section::Entries), position)?)?;
        let size = usize::from(entry.name_size);
        if size == 0 || size > NAME_SIZE_MAX {
            return None;
        }
        Some((self.blob(entry.name_offset, size)?, u64::from(entry.inode) + 1))
    }

    fn xattr_at(&self, position: u32) -> Option<Xattr<'_>> {
        let xattr = XattrRecord::decode(record(self.section(Section::Xattrs), position)?)?;
        let (name_size, value_size) = (xattr.name_size as usize, xattr.value_size as usize);
        if name_size == 0 || name_size > NAME_SIZE_MAX || value_size > XATTR_VALUE_SIZE_MAX {
            return None;
        }
        Some(Xattr {
            name: self.blob(xattr.name_offset, name_size)?,
            value: self.blob(xattr.value_offset, value_size)?,
        })
    }
}

impl<'a> Entries<'a> {
    /// How many there are, without `.` and `..`.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Name and inode number of the entry with this 0-based number; `None` behind the last.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`].
    pub fn get(&self, number: u32) -> Result<Option<(&'a [u8], Ino)>, IndexError> {
        if number >= self.count {
            return Ok(None);
        }
        // `Index::entries` checked that first + count does not overflow.
        let position = self.first.saturating_add(number);
        let entry = self.index.entry_at(position);
        entry.map(Some).ok_or_else(|| corrupt("directory entry", position))
    }

    /// The inode number under `name`, by binary search.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`].
    pub fn find(&self, name: &[u8]) -> Result<Option<Ino>, IndexError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            let Some((candidate, ino)) = self.get(middle)? else {
                return Ok(None);
            };
            match candidate.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(ino)),
                std::cmp::Ordering::Less => low = middle.saturating_add(1),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

impl Inode {
    /// What it is; `None` if its mode is none that an index may hold.
    #[must_use]
    pub const fn file_type(&self) -> Option<FileType> {
        match self.mode & 0o170_000 {
            0o040_000 => Some(FileType::Directory),
            0o100_000 => Some(FileType::File),
            0o120_000 => Some(FileType::Symlink),
            0o020_000 | 0o060_000 => Some(FileType::Device),
            0o010_000 | 0o140_000 => Some(FileType::Other),
            _ => None,
        }
    }

    fn expect_type(&self, wanted: FileType) -> Result<(), IndexError> {
        match self.file_type() {
            Some(found) if found == wanted => Ok(()),
            Some(found) => Err(IndexError::Type(found)),
            None => Err(corrupt("file type", self.first)),
        }
    }
}

impl Backing {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Index {
    /// Counts only: the blocks' keys are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("inode_count", &self.header.inode_count)
            .field("block_count", &self.header.block_count)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// How many blocks a file of `size` bytes has.
const fn block_count_of(size: u64) -> u64 {
    size.div_ceil(BLOCK_SIZE as u64)
}

fn corrupt(what: &'static str, position: u32) -> IndexError {
    IndexError::Corrupt { what, position: u64::from(position) }
}
