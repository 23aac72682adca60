//! The file system that a FUSE server serves.
//!
//! [`FileSystem`] is the seam between the FUSE wire ([`crate::fuse`]) and what stands behind it: an
//! flist image here, a host directory or an overlay in the VMM. Calls are synchronous and take
//! `&self`; servers may call from several threads.
//!
//! Errors are [`Errno`] values, because a guest sees nothing else. A caller-visible story (which
//! block, which store) is logged where it happens.

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;

pub use rustix::io::Errno;

/// Inode number. The root of every file system is [`ROOT`].
pub type Ino = u64;

/// The root directory's inode number, fixed by the FUSE protocol.
pub const ROOT: Ino = 1;

/// Seconds and nanoseconds since the Unix epoch; `nanoseconds` is below 10^9, `seconds` may be
/// negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest, 0..10^9.
    pub nanoseconds: u32,
}

/// What `stat` shows of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub ino: Ino,
    /// File type and permissions (`st_mode`).
    pub mode: u32,
    /// Number of directory entries that name it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of character and block devices, as `(major, minor)`; zero for others.
    pub rdev: (u32, u32),
    /// Size in bytes; of a symbolic link, of its target.
    pub size: u64,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of metadata.
    pub ctime: Timestamp,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// Position that resumes the listing right after this entry.
    pub next_offset: u64,
    /// The entry's name: no slash, no NUL.
    pub name: &'a [u8],
    /// The inode it names.
    pub attributes: Attributes,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Unit of the block counts, in bytes.
    pub block_size: u32,
    /// Blocks in all.
    pub block_count: u64,
    /// Blocks free.
    pub block_count_free: u64,
    /// Inodes in all.
    pub inode_count: u64,
    /// Inodes free.
    pub inode_count_free: u64,
    /// Longest name, in bytes.
    pub name_size_max: u32,
}

/// Where `read` puts what it found, in order. Lets a reply buffer or guest memory be filled with
/// one copy.
pub trait ReadSink {
    /// Takes bytes from memory.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Takes `size` bytes at `offset` of `file`; an early end of file is an error.
    fn file(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<()>;
}

/// A file system, seen from a FUSE server.
pub trait FileSystem: Send + Sync {
    /// The entry `name` of directory `parent`. `ENOENT` if there is none, `ENOTDIR` if `parent` is
    /// no directory.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno>;

    /// Attributes of an inode; `ENOENT` if there is no such inode.
    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno>;

    /// Lists `ino` from `offset` (0 at first), including `.` and `..`, until `each` returns false.
    fn read_directory(
        &self,
        ino: Ino,
        offset: u64,
        each: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno>;

    /// Up to `size` bytes at `offset`; fewer only at the end of the file.
    fn read(&self, ino: Ino, offset: u64, size: u32, sink: &mut dyn ReadSink) -> Result<(), Errno>;

    /// Target of a symbolic link; `EINVAL` for anything else.
    fn read_link(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno>;

    /// Value of an extended attribute; `ENODATA` if it is not set, `ENOSYS` if this file system has no
    /// extended attributes at all (a FUSE client then stops asking).
    fn extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno>;

    /// Names of all extended attributes, each ended by NUL; `ENOSYS` as above.
    fn extended_attribute_names(&self, ino: Ino) -> Result<Vec<u8>, Errno>;

    /// Size and use of the whole file system.
    fn statistics(&self) -> Result<Statistics, Errno>;
}
