//! The structs of `linux/fuse.h` that every server meets, as bytes.
//!
//! Those of requests that change something are in [`super::wire_changes`].

use crate::bytes::Reader;
use std::time::Duration;

use crate::filesystem::{Attributes, Statistics};

/// `fuse_opcode`.
pub(super) mod opcode {
    pub(in crate::fuse) const LOOKUP: u32 = 1;
    pub(in crate::fuse) const FORGET: u32 = 2;
    pub(in crate::fuse) const GETATTR: u32 = 3;
    pub(in crate::fuse) const SETATTR: u32 = 4;
    pub(in crate::fuse) const READLINK: u32 = 5;
    pub(in crate::fuse) const SYMLINK: u32 = 6;
    pub(in crate::fuse) const MKNOD: u32 = 8;
    pub(in crate::fuse) const MKDIR: u32 = 9;
    pub(in crate::fuse) const UNLINK: u32 = 10;
    pub(in crate::fuse) const RMDIR: u32 = 11;
    pub(in crate::fuse) const RENAME: u32 = 12;
    pub(in crate::fuse) const LINK: u32 = 13;
    pub(in crate::fuse) const OPEN: u32 = 14;
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const STATFS: u32 = 17;
    pub(in crate::fuse) const RELEASE: u32 = 18;
    pub(in crate::fuse) const FSYNC: u32 = 20;
    pub(in crate::fuse) const SETXATTR: u32 = 21;
    pub(in crate::fuse) const GETXATTR: u32 = 22;
    pub(in crate::fuse) const LISTXATTR: u32 = 23;
    pub(in crate::fuse) const REMOVEXATTR: u32 = 24;
    pub(in crate::fuse) const INIT: u32 = 26;
    pub(in crate::fuse) const READDIR: u32 = 28;
    pub(in crate::fuse) const RELEASEDIR: u32 = 29;
    pub(in crate::fuse) const FSYNCDIR: u32 = 30;
    pub(in crate::fuse) const CREATE: u32 = 35;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const BATCH_FORGET: u32 = 42;
    pub(in crate::fuse) const FALLOCATE: u32 = 43;
    pub(in crate::fuse) const READDIRPLUS: u32 = 44;
    pub(in crate::fuse) const RENAME2: u32 = 45;
    pub(in crate::fuse) const LSEEK: u32 = 46;
    pub(in crate::fuse) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::fuse) const SYNCFS: u32 = 50;
    pub(in crate::fuse) const TMPFILE: u32 = 51;
}

/// Flags of `INIT`.
pub(super) mod init_flag {
    /// Several reads of one file at once.
    pub(in crate::fuse) const ASYNC_READ: u32 = 1 << 0;
    /// `.` and `..` can be looked up, so that inode numbers outlive the kernel's cache (NFS, overlay).
    pub(in crate::fuse) const EXPORT_SUPPORT: u32 = 1 << 4;
    /// Writes of more than a page.
    pub(in crate::fuse) const BIG_WRITES: u32 = 1 << 5;
    /// Pages are dropped when times or size turn out to have changed.
    pub(in crate::fuse) const AUTO_INVAL_DATA: u32 = 1 << 12;
    /// Listings with attributes.
    pub(in crate::fuse) const DO_READDIRPLUS: u32 = 1 << 13;
    /// Attributes in listings only where somebody has use for them.
    pub(in crate::fuse) const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// `ENOSYS` to `OPEN` means "never send it again".
    pub(in crate::fuse) const NO_OPEN_SUPPORT: u32 = 1 << 17;
    /// Lookups and listings of one directory in parallel.
    pub(in crate::fuse) const PARALLEL_DIROPS: u32 = 1 << 18;
    /// `max_pages` of the reply is valid.
    pub(in crate::fuse) const MAX_PAGES: u32 = 1 << 22;
    /// Link targets stay in the page cache.
    pub(in crate::fuse) const CACHE_SYMLINKS: u32 = 1 << 23;
    /// `ENOSYS` to `OPENDIR` means "never send it again".
    pub(in crate::fuse) const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    /// Pages are dropped only when asked for.
    pub(in crate::fuse) const EXPLICIT_INVAL_DATA: u32 = 1 << 25;
    /// The server drops set-id bits and capabilities.
    pub(in crate::fuse) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

pub(super) const REQUEST_HEADER_SIZE: usize = 40;
pub(super) const ENTRY_SIZE: usize = 128;
pub(super) const ATTRIBUTES_REPLY_SIZE: usize = 104;
pub(super) const INIT_REPLY_SIZE: usize = 64;
pub(super) const STATFS_REPLY_SIZE: usize = 80;
/// A `fuse_dirent` without its name.
pub(super) const DIRENT_SIZE: usize = 24;

const ATTRIBUTES_SIZE: usize = 88;
/// Unit of reads that the kernel reports as `st_blksize`.
const BLOCK_SIZE: u32 = 4096;

/// `fuse_in_header`. The kernel checks permissions; who asks matters only for what is created.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHeader {
    pub(super) size: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// `fuse_init_in`, as far as it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct InitRequest {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) readahead_size_max: u32,
    pub(super) flags: u32,
}

/// `fuse_read_in`, as far as it is used; also of `READDIR` and `READDIRPLUS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadRequest {
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// What the server answers to `INIT`.
#[derive(Clone, Copy, Debug)]
pub(super) struct InitReply {
    pub(super) minor: u32,
    pub(super) readahead_size_max: u32,
    pub(super) flags: u32,
    pub(super) background_max: u16,
    pub(super) congestion_threshold: u16,
    pub(super) write_size_max: u32,
    pub(super) pages_max: u16,
}

impl RequestHeader {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let header = Self {
            size: reader.u32()?,
            opcode: reader.u32()?,
            unique: reader.u64()?,
            node: reader.u64()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
        };
        // pid, total_extlen, padding
        reader.array::<8>()?;
        Some(header)
    }
}

impl InitRequest {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let (major, minor) = (reader.u32()?, reader.u32()?);
        if major != 7 {
            // The rest may look otherwise.
            return Some(Self { major, minor, readahead_size_max: 0, flags: 0 });
        }
        Some(Self { major, minor, readahead_size_max: reader.u32()?, flags: reader.u32()? })
    }
}

impl ReadRequest {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let _handle = reader.u64()?;
        Some(Self { offset: reader.u64()?, size: reader.u32()? })
    }
}

/// `fuse_out_header`. `error` is a positive errno, or 0.
pub(super) fn reply_header(unique: u64, error: i32, body_size: usize) -> [u8; 16] {
    let size = u32::try_from(body_size).unwrap_or(u32::MAX).saturating_add(16);
    Fields::new().u32(size).i32(error.saturating_neg()).u64(unique).finish()
}

/// `fuse_entry_out` of an entry that exists.
pub(super) fn entry(attributes: &Attributes, valid: Duration) -> [u8; ENTRY_SIZE] {
    Fields::new()
        .u64(attributes.ino)
        .u64(attributes.generation)
        .u64(valid.as_secs())
        .u64(valid.as_secs())
        .u32(valid.subsec_nanos())
        .u32(valid.subsec_nanos())
        .bytes(&encode_attributes(attributes))
        .finish()
}

/// `fuse_entry_out` of a name that does not exist, and that the kernel may remember as such.
pub(super) fn negative_entry(valid: Duration) -> [u8; ENTRY_SIZE] {
    Fields::new().u64(0).u64(0).u64(valid.as_secs()).u64(0).u32(valid.subsec_nanos()).finish()
}

/// `fuse_attr_out`.
pub(super) fn attributes_reply(
    attributes: &Attributes,
    valid: Duration,
) -> [u8; ATTRIBUTES_REPLY_SIZE] {
    Fields::new()
        .u64(valid.as_secs())
        .u32(valid.subsec_nanos())
        .u32(0)
        .bytes(&encode_attributes(attributes))
        .finish()
}

/// `fuse_dirent` without its name.
pub(super) fn dirent(ino: u64, next_offset: u64, name_size: u32, mode: u32) -> [u8; DIRENT_SIZE] {
    // DT_* is the file type of st_mode, moved to the right.
    Fields::new().u64(ino).u64(next_offset).u32(name_size).u32((mode >> 12) & 0o17).finish()
}

/// `fuse_init_out`.
pub(super) fn init_reply(init: &InitReply) -> [u8; INIT_REPLY_SIZE] {
    Fields::new()
        .u32(7)
        .u32(init.minor)
        .u32(init.readahead_size_max)
        .u32(init.flags)
        .u16(init.background_max)
        .u16(init.congestion_threshold)
        .u32(init.write_size_max)
        // Granularity of times, in nanoseconds.
        .u32(1)
        .u16(init.pages_max)
        .finish()
}

/// `fuse_statfs_out`.
pub(super) fn statfs_reply(statistics: &Statistics) -> [u8; STATFS_REPLY_SIZE] {
    Fields::new()
        .u64(statistics.block_count)
        .u64(statistics.block_count_free)
        .u64(statistics.block_count_free)
        .u64(statistics.inode_count)
        .u64(statistics.inode_count_free)
        .u32(statistics.block_size)
        .u32(statistics.name_size_max)
        .u32(statistics.block_size)
        .finish()
}

/// `fuse_attr`.
fn encode_attributes(attributes: &Attributes) -> [u8; ATTRIBUTES_SIZE] {
    let (atime, mtime, ctime) = (attributes.atime, attributes.mtime, attributes.ctime);
    Fields::new()
        .u64(attributes.ino)
        .u64(attributes.size)
        .u64(attributes.sector_count)
        .i64(atime.seconds)
        .i64(mtime.seconds)
        .i64(ctime.seconds)
        .u32(atime.nanoseconds)
        .u32(mtime.nanoseconds)
        .u32(ctime.nanoseconds)
        .u32(attributes.mode)
        .u32(attributes.nlink)
        .u32(attributes.uid)
        .u32(attributes.gid)
        .u32(encode_device(attributes.rdev))
        .u32(BLOCK_SIZE)
        .finish()
}

/// The kernel's 32-bit device number: 12 bits of major, 20 of minor (`new_encode_dev`).
const fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// A struct under construction; what is not filled stays zero.
pub(super) struct Fields<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Fields<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    #[inline]
    fn bytes(mut self, bytes: &[u8]) -> Self {
        let end = self.used.saturating_add(bytes.len());
        debug_assert!(end <= N, "a struct of {N} bytes has no field at {}", self.used);
        if let Some(field) = self.bytes.get_mut(self.used..end) {
            field.copy_from_slice(bytes);
        }
        self.used = end;
        self
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn i32(self, value: i32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn i64(self, value: i64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) const fn finish(self) -> [u8; N] {
        self.bytes
    }
}
