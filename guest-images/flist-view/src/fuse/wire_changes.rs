//! The structs of `linux/fuse.h` that come with requests which change something, as bytes.

use crate::bytes::Reader;
use crate::filesystem::{Changes, NewTime, Timestamp};

use super::wire::Fields;

/// `FUSE_WRITE_KILL_SUIDGID`: whoever writes has no right to keep the set-id bits.
const WRITE_KILL_SET_ID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`.
const SYNC_DATA: u32 = 1 << 0;
/// Permissions and set-id bits of a mode, without the file type.
const PERMISSIONS: u32 = 0o7777;
const NANOSECONDS_MAX: u32 = 999_999_999;

/// What `fuse_setattr_in::valid` says of the others.
mod valid {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const KILL_SET_ID: u32 = 1 << 11;
}

/// `fuse_setattr_in`. The kernel sets change times along with others, and cannot set them alone.
pub(super) fn changes(arguments: &[u8]) -> Option<Changes> {
    let mut reader = Reader::new(arguments);
    let (which, _padding, _handle) = (reader.u32()?, reader.u32()?, reader.u64()?);
    let (size, _lock_owner) = (reader.u64()?, reader.u64()?);
    let (atime, mtime, _ctime) = (reader.i64()?, reader.i64()?, reader.i64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let (mode, _unused) = (reader.u32()?, reader.u32()?);
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let is_set = |bit: u32| which & bit != 0;
    let time = |bit, now_bit, seconds, nanoseconds: u32| match (is_set(bit), is_set(now_bit)) {
        (_, true) => Some(NewTime::Now),
        (true, false) => {
            let nanoseconds = nanoseconds.min(NANOSECONDS_MAX);
            Some(NewTime::At(Timestamp { seconds, nanoseconds }))
        }
        (false, false) => None,
    };
    Some(Changes {
        mode: is_set(valid::MODE).then_some(mode & PERMISSIONS),
        uid: is_set(valid::UID).then_some(uid),
        gid: is_set(valid::GID).then_some(gid),
        size: is_set(valid::SIZE).then_some(size),
        atime: time(valid::ATIME, valid::ATIME_NOW, atime, atime_ns),
        mtime: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_ns),
        drops_set_id: is_set(valid::KILL_SET_ID),
    })
}

/// `fuse_write_in`, as far as it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteRequest {
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) drops_set_id: bool,
}

impl WriteRequest {
    pub(super) fn decode(arguments: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(arguments);
        let (_handle, offset) = (reader.u64()?, reader.u64()?);
        let (size, flags) = (reader.u32()?, reader.u32()?);
        // lock_owner, flags, padding
        reader.array::<16>()?;
        Some(Self { offset, size, drops_set_id: flags & WRITE_KILL_SET_ID != 0 })
    }
}

/// `fuse_mknod_in`: mode, device number; then the name.
pub(super) fn make_node(arguments: &[u8]) -> Option<(u32, (u32, u32), &[u8])> {
    let mut reader = Reader::new(arguments);
    let (mode, rdev, _umask, _padding) =
        (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    Some((mode, decode_device(rdev), reader.rest()))
}

/// `fuse_mkdir_in`: mode; then the name.
pub(super) fn make_directory(arguments: &[u8]) -> Option<(u32, &[u8])> {
    let mut reader = Reader::new(arguments);
    let (mode, _umask) = (reader.u32()?, reader.u32()?);
    Some((mode, reader.rest()))
}

/// `fuse_create_in`, as it comes with `TMPFILE`: mode. The name that follows means nothing.
pub(super) fn make_unnamed(arguments: &[u8]) -> Option<u32> {
    let mut reader = Reader::new(arguments);
    let (_flags, mode, _umask, _open_flags) =
        (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    Some(mode)
}

/// `fuse_rename_in` or, with flags, `fuse_rename2_in`: new directory, flags; then both names.
pub(super) fn rename(arguments: &[u8], has_flags: bool) -> Option<(u64, u32, &[u8])> {
    let mut reader = Reader::new(arguments);
    let directory = reader.u64()?;
    let flags = if has_flags { (reader.u32()?, reader.u32()?).0 } else { 0 };
    Some((directory, flags, reader.rest()))
}

/// `fuse_link_in`: the inode; then its new name.
pub(super) fn link(arguments: &[u8]) -> Option<(u64, &[u8])> {
    let mut reader = Reader::new(arguments);
    Some((reader.u64()?, reader.rest()))
}

/// `fuse_fsync_in`: whether contents are enough.
pub(super) fn sync(arguments: &[u8]) -> Option<bool> {
    let mut reader = Reader::new(arguments);
    let (_handle, flags) = (reader.u64()?, reader.u32()?);
    Some(flags & SYNC_DATA != 0)
}

/// `fuse_setxattr_in` of old: size of the value, flags; then name and value.
pub(super) fn set_extended_attribute(arguments: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut reader = Reader::new(arguments);
    Some((reader.u32()?, reader.u32()?, reader.rest()))
}

/// `fuse_fallocate_in`: offset, size, mode.
pub(super) fn allocate(arguments: &[u8]) -> Option<(u64, u64, u32)> {
    let mut reader = Reader::new(arguments);
    let (_handle, offset, size) = (reader.u64()?, reader.u64()?, reader.u64()?);
    Some((offset, size, reader.u32()?))
}

/// `fuse_lseek_in`: offset, whence.
pub(super) fn seek(arguments: &[u8]) -> Option<(u64, u32)> {
    let mut reader = Reader::new(arguments);
    let (_handle, offset) = (reader.u64()?, reader.u64()?);
    Some((offset, reader.u32()?))
}

/// `fuse_copy_file_range_in`, as far as it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyRequest {
    pub(super) from_offset: u64,
    pub(super) to_node: u64,
    pub(super) to_offset: u64,
    pub(super) size: u64,
}

impl CopyRequest {
    pub(super) fn decode(arguments: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(arguments);
        let (_handle, from_offset) = (reader.u64()?, reader.u64()?);
        let (to_node, _to_handle, to_offset) = (reader.u64()?, reader.u64()?, reader.u64()?);
        Some(Self { from_offset, to_node, to_offset, size: reader.u64()? })
    }
}

/// `fuse_write_out`; also of `COPY_FILE_RANGE`.
pub(super) fn written_reply(size: u32) -> [u8; 8] {
    Fields::new().u32(size).finish()
}

/// `fuse_lseek_out`.
pub(super) fn seek_reply(offset: u64) -> [u8; 8] {
    Fields::new().u64(offset).finish()
}

/// `fuse_open_out` of a file that was made open, although there is no handle.
pub(super) fn open_reply() -> [u8; 16] {
    /// `FOPEN_KEEP_CACHE` and `FOPEN_NOFLUSH`.
    const OPEN_FLAGS: u32 = 1 << 1 | 1 << 5;
    Fields::new().u64(0).u32(OPEN_FLAGS).finish()
}

/// The reverse of the kernel's `new_encode_dev`.
const fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}
