//! The system calls of a host directory, each relative to a descriptor and with one name at most.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use flist_view::filesystem::{Attributes, Errno, Timestamp};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::path::DecInt;

/// Type bits of a mode, and the types that matter.
pub(in crate::fs) const TYPE_MASK: u32 = 0o170_000;
pub(in crate::fs) const DIRECTORY: u32 = 0o040_000;
pub(in crate::fs) const REGULAR: u32 = 0o100_000;
pub(in crate::fs) const CHARACTER_DEVICE: u32 = 0o020_000;
pub(in crate::fs) const BLOCK_DEVICE: u32 = 0o060_000;
pub(in crate::fs) const SYMLINK: u32 = 0o120_000;
pub(in crate::fs) const PERMISSIONS: u32 = 0o7777;
pub(in crate::fs) const SET_UID: u32 = 0o4000;
pub(in crate::fs) const SET_GID: u32 = 0o2000;
pub(in crate::fs) const SET_ID: u32 = SET_UID | SET_GID;
pub(in crate::fs) const GROUP_EXECUTE: u32 = 0o010;

/// Longest value of an extended attribute, and longest list of names, in Linux.
const XATTR_SIZE_MAX: usize = 64 << 10;
/// Most values fit into this, on the stack.
const XATTR_SIZE_SMALL: usize = 256;
const PATH_FLAGS: OFlags = OFlags::from_bits_retain(
    OFlags::PATH.bits() | OFlags::NOFOLLOW.bits() | OFlags::CLOEXEC.bits(),
);

/// Where an inode is: attributes with the host's own inode number, and the mount it is reached by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) mount: Mount,
    pub(super) attributes: Attributes,
}

/// A file system and where it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    device: (u32, u32),
    id: u64,
}

/// What `name` in `directory` is, itself and not what it points to.
pub(super) fn stat_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(decode(&rustix::fs::statx(directory, name, flags, mask())?))
}

/// What `file` is.
pub(super) fn stat(file: BorrowedFd<'_>) -> Result<Stat, Errno> {
    Ok(decode(&rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, mask())?))
}

fn mask() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// A descriptor that stands for `name` in `directory`, whatever it is, without opening it. Links and
/// mounts are not followed.
pub(super) fn open_path(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(directory, name, PATH_FLAGS, Mode::empty(), resolution())
}

/// Makes and opens a regular file.
pub(super) fn create_file(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Permissions come later, with the owner: until then it is nobody's but ours.
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat2(directory, name, flags, mode, resolution())
}

/// Makes and opens a regular file without a name.
pub(super) fn create_unnamed(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat2(directory, c".", flags, mode, resolution())
}

/// Opens a directory for listing and syncing.
pub(super) fn open_directory(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, c".", flags, Mode::empty(), resolution())
}

/// Opens the directory `name` for listing.
pub(super) fn open_to_list(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolution())
}

/// Opens the regular file `name` for reading.
pub(super) fn open_to_read(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolution())
}

/// Opens the directory above for listing, wherever that may be: the caller makes sure that it is the
/// one that it came from.
pub(super) fn open_parent(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, c"..", flags, Mode::empty())
}

/// Names are single components; these make sure of it, and keep to one mount.
fn resolution() -> ResolveFlags {
    ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV
}

/// `/proc/self/fd`, opened while there is a `/proc`: through it a descriptor that only stands for an
/// inode becomes one that reads or writes, or a name for calls that want one, without a path.
pub(super) struct Descriptors(OwnedFd);

impl Descriptors {
    pub(super) fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open("/proc/self/fd", flags, Mode::empty())?))
    }

    /// Opens the regular file that `path` stands for.
    pub(super) fn reopen(&self, path: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(&self.0, DecInt::from_fd(path), flags, Mode::empty())
    }

    pub(super) fn set_mode(&self, path: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode & PERMISSIONS);
        rustix::fs::chmodat(&self.0, DecInt::from_fd(path), mode, AtFlags::empty())
    }

    pub(super) fn set_times(
        &self,
        path: BorrowedFd<'_>,
        times: &rustix::fs::Timestamps,
    ) -> Result<(), Errno> {
        rustix::fs::utimensat(&self.0, DecInt::from_fd(path), times, AtFlags::empty())
    }

    /// Gives what `path` stands for another name.
    pub(super) fn link(
        &self,
        path: BorrowedFd<'_>,
        directory: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(), Errno> {
        let number = DecInt::from_fd(path);
        rustix::fs::linkat(&self.0, number, directory, name, AtFlags::SYMLINK_FOLLOW)
    }
}

/// Sets owner and group; `None` stays.
pub(super) fn set_owner(
    file: BorrowedFd<'_>,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<(), Errno> {
    /// What `chown` leaves as it is.
    const UNCHANGED: u32 = u32::MAX;
    if uid == Some(UNCHANGED) || gid == Some(UNCHANGED) {
        return Err(Errno::INVAL);
    }
    let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
    rustix::fs::chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH)
}

/// Value of an extended attribute of an open file or directory.
pub(super) fn extended_attribute(file: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    sized(|buffer| rustix::fs::fgetxattr(file, name, buffer))
}

/// Names of the extended attributes of an open file or directory, each ended by NUL.
pub(super) fn extended_attribute_names(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    sized(|buffer| rustix::fs::flistxattr(file, buffer))
}

fn sized(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; XATTR_SIZE_SMALL];
    match call(&mut small) {
        Ok(size) => Ok(small.get(..size).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_SIZE_MAX];
            let size = call(&mut large)?;
            large.truncate(size);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}

/// What a system call said, or that what failed was no system call.
pub(in crate::fs) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// What the host says that an inode's blocks take.
pub(super) const fn size_of_blocks(attributes: &Attributes) -> u64 {
    /// Unit of [`Attributes::sector_count`].
    const SECTOR_SIZE: u64 = 512;
    attributes.sector_count.saturating_mul(SECTOR_SIZE)
}

/// Whether `file` is a directory, by its mode.
pub(in crate::fs) const fn is_directory(mode: u32) -> bool {
    mode & TYPE_MASK == DIRECTORY
}

fn decode(statx: &Statx) -> Stat {
    let birth = statx.stx_btime;
    let has_birth = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
    let attributes = Attributes {
        ino: statx.stx_ino,
        mode: u32::from(statx.stx_mode),
        nlink: statx.stx_nlink,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        rdev: (statx.stx_rdev_major, statx.stx_rdev_minor),
        size: statx.stx_size,
        sector_count: statx.stx_blocks,
        generation: if has_birth { generation(&birth) } else { 0 },
        atime: timestamp(&statx.stx_atime),
        mtime: timestamp(&statx.stx_mtime),
        ctime: timestamp(&statx.stx_ctime),
    };
    let device = (statx.stx_dev_major, statx.stx_dev_minor);
    Stat { mount: Mount { device, id: statx.stx_mnt_id }, attributes }
}

/// When an inode was made tells it from one that had its number before. 31 bits, since that is what
/// the client compares.
const fn generation(birth: &StatxTimestamp) -> u64 {
    let seconds = birth.tv_sec.unsigned_abs();
    (seconds.wrapping_mul(1_000_003) ^ birth.tv_nsec as u64) & 0x7fff_ffff
}

const fn timestamp(time: &StatxTimestamp) -> Timestamp {
    Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
}
