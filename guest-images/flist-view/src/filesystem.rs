//! The file system that a FUSE server serves.
//!
//! [`FileSystem`] is the seam between the FUSE wire ([`crate::fuse`]) and what stands behind it: an
//! flist image here, a host directory or an overlay in the VMM. Calls are synchronous and take
//! `&self`; servers may call from several threads.
//!
//! There are no handles: reading, writing and listing name an inode, never an open file. So there is
//! no table of them to exhaust or to save, and a file that moves to another place while it is open
//! (an overlay's copy-up) moves for everybody at once. An image needs no more than the first eight
//! methods; the others answer what a read-only file system answers.
//!
//! Whoever must know for how long a client remembers an inode counts: [`FileSystem::lookup`], every
//! call that creates, and each entry taken from a [`Listing::Counted`] add one, and
//! [`FileSystem::forget`] takes away.
//!
//! Errors are [`Errno`] values, because a guest sees nothing else. A caller-visible story (which
//! block, which store) is logged where it happens.

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Space taken, in units of 512 bytes.
    pub sector_count: u64,
    /// Tells inodes apart that had the same number one after the other.
    pub generation: u64,
    /// Last access.
    pub atime: Timestamp,
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
    /// The inode it names. In a [`Listing::Names`], only its number and file type count.
    pub attributes: Attributes,
}

/// What a listing is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Names, numbers and types.
    Names,
    /// Entries with attributes. Each one taken, but for `.` and `..`, counts as looked up.
    Counted,
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

/// What a client may take for granted, and what it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long names, missing names and attributes may be believed. What the client changes itself
    /// it knows about: a file system that nobody else changes can say a year.
    pub valid: Duration,
    /// Whether writing calls make sense at all; if not they are refused unseen.
    pub is_writable: bool,
    /// Others change contents too: the client compares times before it believes its cached pages.
    pub is_shared: bool,
    /// Inode numbers mean the same for ever, even when the client has forgotten them.
    pub has_lasting_numbers: bool,
}

impl Policy {
    /// A year: as good as for ever.
    pub const VALID_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
    /// Of what never changes.
    pub const IMMUTABLE: Self = Self {
        valid: Self::VALID_MAX,
        is_writable: false,
        is_shared: false,
        has_lasting_numbers: true,
    };
}

/// Something to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creation {
    /// File type and permissions, umask applied; without a type, a regular file.
    pub mode: u32,
    /// Device number, of character and block devices.
    pub rdev: (u32, u32),
    /// Who makes it, and so its owner.
    pub uid: u32,
    /// Its group, unless its directory is set-group-id.
    pub gid: u32,
}

/// What [`FileSystem::set_attributes`] changes; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permissions, without a file type.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<NewTime>,
    /// Last change of contents.
    pub mtime: Option<NewTime>,
    /// Whoever changes the size has no right to keep the set-id bits.
    pub drops_set_id: bool,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTime {
    /// The file system's own clock.
    Now,
    /// This one.
    At(Timestamp),
}

/// How [`FileSystem::rename`] treats what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rename {
    /// It goes.
    #[default]
    Replace,
    /// It stays: `EEXIST`.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// How [`FileSystem::set_extended_attribute`] treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAttribute {
    /// Replaced, or made.
    Any,
    /// `EEXIST` if it is there.
    Create,
    /// `ENODATA` if it is not.
    Replace,
}

/// What [`FileSystem::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Contents.
    Data,
    /// A hole.
    Hole,
}

/// Where `read` puts what it found, in order. Lets a reply buffer or guest memory be filled with
/// one copy.
pub trait ReadSink {
    /// Takes bytes from memory.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Takes `size` bytes at `offset` of `file`; an early end of file is an error.
    fn file(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<()>;

    /// Takes up to `size` bytes at `offset` of `file`, fewer where it ends; says how many.
    fn file_up_to(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize>;
}

/// Bytes to be written, wherever the transport has them.
pub trait WriteSource {
    /// How many there are.
    fn size(&self) -> usize;

    /// Writes the first `size` of them to `file` at `offset`; returns how many it took, fewer only
    /// where an error came after some.
    fn write(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize>;
}

/// A file system, seen from a FUSE server.
///
/// Names are single components: never empty, `.`, `..`, longer than 255 bytes or with a slash or NUL
/// in them, but that `lookup` gets `.` and `..` too. Inode numbers that nobody knows are answered
/// `ENOENT` or `ESTALE`.
pub trait FileSystem: Send + Sync {
    /// What the client may take for granted.
    fn policy(&self) -> Policy {
        Policy::IMMUTABLE
    }

    /// The entry `name` of directory `parent`. `ENOENT` if there is none, `ENOTDIR` if `parent` is
    /// no directory.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno>;

    /// Attributes of an inode; `ENOENT` if there is no such inode.
    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno>;

    /// Lists `ino` from `offset` (0 at first), including `.` and `..`, until `each` returns false: it
    /// did not take that entry.
    fn read_directory(
        &self,
        ino: Ino,
        offset: u64,
        listing: Listing,
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

    /// The client forgets `count` of the times that it was told of `ino`.
    fn forget(&self, ino: Ino, count: u64) {
        let _ = (ino, count);
    }

    /// The client is gone, or begins anew: it remembers nothing.
    fn forget_all(&self) {}

    /// Makes a file, a directory, a device, a pipe or a socket; `EEXIST` if the name is taken.
    fn create(&self, parent: Ino, name: &[u8], new: &Creation) -> Result<Attributes, Errno> {
        let _ = (parent, name, new);
        Err(Errno::ROFS)
    }

    /// Makes a file without a name, which may get one by [`link`](Self::link).
    fn create_unnamed(&self, parent: Ino, new: &Creation) -> Result<Attributes, Errno> {
        let _ = (parent, new);
        Err(Errno::ROFS)
    }

    /// Makes a symbolic link to `target`.
    fn create_symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        new: &Creation,
    ) -> Result<Attributes, Errno> {
        let _ = (parent, name, target, new);
        Err(Errno::ROFS)
    }

    /// Gives `ino` another name.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        let _ = (ino, parent, name);
        Err(Errno::ROFS)
    }

    /// Takes away a name of anything but a directory.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let _ = (parent, name);
        Err(Errno::ROFS)
    }

    /// Takes away an empty directory.
    fn remove_directory(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let _ = (parent, name);
        Err(Errno::ROFS)
    }

    /// Moves `from`, a directory and a name, to `to`.
    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), how: Rename) -> Result<(), Errno> {
        let _ = (from, to, how);
        Err(Errno::ROFS)
    }

    /// Changes attributes, and returns what they are then.
    fn set_attributes(&self, ino: Ino, changes: &Changes) -> Result<Attributes, Errno> {
        let _ = (ino, changes);
        Err(Errno::ROFS)
    }

    /// Writes the first `size` bytes of `source` at `offset`; returns how many were written. If
    /// `drops_set_id`, whoever writes has no right to keep the set-id bits.
    fn write(
        &self,
        ino: Ino,
        offset: u64,
        size: u32,
        source: &mut dyn WriteSource,
        drops_set_id: bool,
    ) -> Result<u32, Errno> {
        let _ = (ino, offset, size, source, drops_set_id);
        Err(Errno::ROFS)
    }

    /// Sets an extended attribute.
    fn set_extended_attribute(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetAttribute,
    ) -> Result<(), Errno> {
        let _ = (ino, name, value, how);
        Err(Errno::ROFS)
    }

    /// Takes an extended attribute away; `ENODATA` if it is not set.
    fn remove_extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        let _ = (ino, name);
        Err(Errno::ROFS)
    }

    /// `fallocate`, with its `mode` as Linux has it.
    fn allocate(&self, ino: Ino, mode: u32, offset: u64, size: u64) -> Result<(), Errno> {
        let _ = (ino, mode, offset, size);
        Err(Errno::ROFS)
    }

    /// Copies `size` bytes from one file and offset to another, or fewer; returns how many.
    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), size: u64) -> Result<u64, Errno> {
        let _ = (from, to, size);
        Err(Errno::ROFS)
    }

    /// The next contents or hole from `offset` on; `ENXIO` beyond the end.
    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Errno> {
        let _ = (ino, offset, what);
        Err(Errno::NOSYS)
    }

    /// Returns when what was written to `ino`, a file or a directory, is on disk.
    fn sync(&self, ino: Ino, only_contents: bool) -> Result<(), Errno> {
        let _ = (ino, only_contents);
        Err(Errno::NOSYS)
    }

    /// Returns when all that was written is on disk.
    fn sync_all(&self) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }
}
