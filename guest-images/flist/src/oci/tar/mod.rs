//! Reads tar archives as image layers use them: ustar, pax and GNU, by position, with bounds.
//!
//! [`Archive::next`] gives one [`Member`] after the other with where its bytes are, without reading
//! them. Extension records (pax `x`, GNU `L` and `K`) are folded into the member that they describe.
//! Names and link targets are handed over as they stand: what may be done with them is for
//! [`super::layer`] to say.
//!
//! Why not the `tar` crate: it splits pax records at newlines, which loses binary extended
//! attributes such as `security.capability`; it reads long names of any length into memory; and it
//! knows no pax sparse files.
//!
//! Sources: POSIX.1-2017 pax (ustar and pax interchange formats), GNU tar manual "Basic Tar Format"
//! and "Storing Sparse Files". Where readers differ we do as Go's `archive/tar`, on which container
//! tools agree: links, devices and directories have no data whatever their size field says; global
//! pax headers (`g`) are skipped; a regular file whose name ends in a slash is a directory.

#![warn(clippy::indexing_slicing)]

mod header;
mod pax;
mod sparse;

use std::collections::BTreeMap;
use std::io;

use flist_view::filesystem::Timestamp;

use self::header::{BLOCK_SIZE, Header};
use self::pax::Pax;
use super::region::{ReadAt, read_exact_at};
use crate::tree::DeviceNumber;

/// Longest path or link target, in bytes (`PATH_MAX`).
pub const PATH_SIZE_MAX: usize = 4096;
/// Largest pax header, in bytes; it holds all extended attributes of a member.
pub const PAX_SIZE_MAX: u64 = 1 << 20;
/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_SIZE_MAX: usize = 255;
/// Largest value of an extended attribute, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_SIZE_MAX: usize = 65536;
/// Most pieces of one sparse file.
pub const EXTENT_COUNT_MAX: usize = 1 << 20;

/// An archive that is read from its beginning to its end.
#[derive(Debug)]
pub struct Archive<S> {
    source: S,
    position: u64,
}

/// One member, with its extension records applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name as it stands in the archive, unchecked.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky included.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of metadata; `mtime` if the archive does not tell.
    pub ctime: Timestamp,
    /// Extended attributes (`SCHILY.xattr.*`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(FileData),
    /// One more name for the member with this name, unchecked.
    HardLink(Vec<u8>),
    /// A symbolic link with this target, unchecked.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// Where a file's bytes are. What no extent covers is zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileData {
    /// Size in bytes.
    pub size: u64,
    /// In order of `start`, without overlap, all within the archive and within `size`.
    pub extents: Vec<Extent>,
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file, in bytes.
    pub start: u64,
    /// Where in the archive, in bytes.
    pub offset: u64,
    /// How many bytes; never 0.
    pub size: u64,
}

/// Why an archive can't be read. `offset` is that of a header, in bytes of the uncompressed archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The system can't read it.
    #[error("reading the archive")]
    Read(#[from] io::Error),
    /// It ends in the middle.
    #[error("the archive ends in the middle of the member at byte {offset}")]
    Truncated {
        /// The member's header.
        offset: u64,
    },
    /// Not a tar header.
    #[error("byte {offset}: not a tar header: {rule}")]
    Header {
        /// The header.
        offset: u64,
        /// What it breaks.
        rule: &'static str,
    },
    /// A field has a value that it can't have.
    #[error("{name:?} (header at byte {offset}): {rule}")]
    Member {
        /// The header.
        offset: u64,
        /// The member's name.
        name: String,
        /// What it breaks.
        rule: String,
    },
}

/// What extension headers say of the next member.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<S: ReadAt> Archive<S> {
    /// An archive at its beginning.
    #[must_use]
    pub const fn new(source: S) -> Self {
        Self { source, position: 0 }
    }

    /// The next member, none at the end.
    ///
    /// # Errors
    /// [`TarError`]; there is no point in calling again then.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would hide the error's finality"
    )]
    pub fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut pending = Pending::default();
        loop {
            let offset = self.position;
            let Some(header) = self.header()? else {
                let rule = "an extension header without the member it describes";
                return if pending.is_empty() {
                    Ok(None)
                } else {
                    Err(TarError::Header { offset, rule })
                };
            };
            match header.type_flag() {
                b'L' => pending.long_name = Some(self.long_name(&header)?),
                b'K' => pending.long_target = Some(self.long_name(&header)?),
                b'x' | b'X' => pending.pax = Some(self.pax(&header)?),
                b'g' => {
                    let size = header.size()?;
                    self.skip(&header, size)?;
                }
                _ => return self.member(&header, pending).map(Some),
            }
        }
    }

    /// Reads a header; none at the end: two blocks of zeros, or the end of the source, or both.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let offset = self.position;
        let Some(block) = self.block(offset)? else { return Ok(None) };
        if block.iter().any(|byte| *byte != 0) {
            self.position = offset.saturating_add(BLOCK_SIZE);
            return Header::parse(block, offset).map(Some);
        }
        match self.block(offset.saturating_add(BLOCK_SIZE))? {
            Some(next) if next.iter().any(|byte| *byte != 0) => {
                Err(TarError::Header { offset, rule: "a single block of zeros between members" })
            }
            _ => Ok(None),
        }
    }

    /// The block at `offset`; none at the end of the source.
    fn block(&self, offset: u64) -> Result<Option<[u8; 512]>, TarError> {
        if offset >= self.source.size() {
            return Ok(None);
        }
        let mut block = [0; 512];
        if read_exact_at(&self.source, &mut block, offset)? {
            Ok(Some(block))
        } else {
            Err(TarError::Truncated { offset })
        }
    }

    /// Moves behind `size` bytes of data and the padding that follows them.
    fn skip(&mut self, header: &Header, size: u64) -> Result<(), TarError> {
        let truncated = TarError::Truncated { offset: header.offset() };
        let padded = size.checked_next_multiple_of(BLOCK_SIZE);
        let end = self.position.checked_add(size).filter(|end| *end <= self.source.size());
        match (end, padded) {
            (Some(_), Some(padded)) => {
                self.position = self.position.saturating_add(padded);
                Ok(())
            }
            _ => Err(truncated),
        }
    }

    /// Reads the data of an extension header.
    fn data(&mut self, header: &Header, size_max: u64, rule: &str) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        let memory_size = usize::try_from(size).ok().filter(|_| size <= size_max);
        let memory_size = memory_size.ok_or_else(|| header.error(rule))?;
        let start = self.position;
        self.skip(header, size)?;
        let mut data = vec![0; memory_size];
        if read_exact_at(&self.source, &mut data, start)? {
            Ok(data)
        } else {
            Err(TarError::Truncated { offset: header.offset() })
        }
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        // GNU tar ends the name with a NUL.
        let size_max = PATH_SIZE_MAX as u64 + 1;
        let rule = "a path or link target of more than 4096 bytes";
        let mut name = self.data(header, size_max, rule)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn pax(&mut self, header: &Header) -> Result<Pax, TarError> {
        let data = self.data(header, PAX_SIZE_MAX, "a pax header of more than 1 MiB")?;
        Pax::parse(&data).map_err(|rule| header.error(rule))
    }

    fn member(&mut self, header: &Header, pending: Pending) -> Result<Member, TarError> {
        let pax = pending.pax.unwrap_or_default();
        let named = |error: String| header.error_for(&pax, error);
        let name = pax.name().or(pending.long_name).unwrap_or_else(|| header.name());
        let target = pax.target().or(pending.long_target).unwrap_or_else(|| header.target());
        if name.len() > PATH_SIZE_MAX || target.len() > PATH_SIZE_MAX {
            return Err(header.error("a path or link target of more than 4096 bytes"));
        }
        let kind = match header.type_flag() {
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File(self.file(header, &pax)?),
            b'1' => Kind::HardLink(target),
            b'2' => Kind::Symlink(target),
            b'3' => Kind::CharacterDevice(header.device(&pax)?),
            b'4' => Kind::BlockDevice(header.device(&pax)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let other = char::from(other);
                return Err(header.error_for(&pax, format!("unknown member type {other:?}")));
            }
        };
        let mtime = match pax.time(b"mtime").map_err(named)? {
            Some(time) => time,
            None => header.mtime()?,
        };
        Ok(Member {
            name,
            kind,
            permissions: header.permissions()?,
            uid: header.owner(&pax, header::Owner::User)?,
            gid: header.owner(&pax, header::Owner::Group)?,
            mtime,
            ctime: pax.time(b"ctime").map_err(named)?.unwrap_or(mtime),
            xattrs: pax.xattrs().map_err(named)?,
        })
    }

    /// Where a regular file's data is; moves behind it.
    fn file(&mut self, header: &Header, pax: &Pax) -> Result<FileData, TarError> {
        let stored_size = match pax.size().map_err(|rule| header.error_for(pax, rule))? {
            Some(size) => size,
            None => header.size()?,
        };
        let extension =
            if header.type_flag() == b'S' { self.sparse_extension(header)? } else { Vec::new() };
        let start = self.position;
        self.skip(header, stored_size)?;
        let stored = sparse::Stored { source: &self.source, start, size: stored_size };
        let data = if header.type_flag() == b'S' {
            sparse::from_header(header, &extension, &stored)
        } else {
            sparse::from_pax(pax, &stored)
        };
        match data {
            Ok(data) => Ok(data),
            Err(sparse::SparseError::Read(error)) => Err(TarError::Read(error)),
            Err(sparse::SparseError::Rule(rule)) => Err(header.error_for(pax, rule)),
        }
    }

    /// The blocks that continue a GNU sparse header's map.
    fn sparse_extension(&mut self, header: &Header) -> Result<Vec<[u8; 512]>, TarError> {
        let mut blocks = Vec::new();
        let mut more = header.has_sparse_extension();
        while more {
            if blocks.len() * header::EXTENSION_EXTENT_COUNT >= EXTENT_COUNT_MAX {
                return Err(header.error("a sparse file of more than 1048576 pieces"));
            }
            let block = self.block(self.position)?;
            let block = block.ok_or_else(|| TarError::Truncated { offset: header.offset() })?;
            self.position = self.position.saturating_add(BLOCK_SIZE);
            more = header::extension_continues(&block);
            blocks.push(block);
        }
        Ok(blocks)
    }
}

impl Pending {
    const fn is_empty(&self) -> bool {
        self.long_name.is_none() && self.long_target.is_none() && self.pax.is_none()
    }
}

#[cfg(test)]
mod tests;
