//! What the kernel offers for disks and no safe crate wraps: partitions read anew, and project quotas.
//!
//! The one module of storage with `unsafe`. Numbers and layouts are those of `linux/fs.h` and
//! `linux/quota.h`.

#![allow(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use rustix::ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode};

/// Bytes of the unit in which the kernel counts limits of quotas (`QIF_DQBLKSIZE`).
const QUOTA_BLOCK_SIZE: u64 = 1024;

/// Has the kernel read a disk's partition table anew.
pub(super) fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: `BLKRRPART` takes no argument and follows no pointer.
    unsafe { ioctl(disk, NoArg::<BLKRRPART>::new()) }.map_err(io::Error::from)
}

/// The project that a file or folder belongs to, and whether what is made in it does too.
pub(super) fn project(file: &File) -> io::Result<(u32, bool)> {
    let attributes = attributes(file)?;
    Ok((attributes.project, attributes.flags & FS_XFLAG_PROJINHERIT != 0))
}

/// Gives a folder to a project, with what will be made in it.
pub(super) fn set_project(folder: &File, project: u32) -> io::Result<()> {
    let mut attributes = attributes(folder)?;
    attributes.project = project;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: `FS_IOC_FSSETXATTR` reads a `struct fsxattr`, which `FileAttributes` is.
    let set = unsafe { ioctl(folder, Setter::<FS_IOC_FSSETXATTR, _>::new(attributes)) };
    set.map_err(io::Error::from)
}

fn attributes(file: &File) -> io::Result<FileAttributes> {
    // SAFETY: `FS_IOC_FSGETXATTR` fills a `struct fsxattr`, which `FileAttributes` is.
    let got = unsafe { ioctl(file, Getter::<FS_IOC_FSGETXATTR, FileAttributes>::new()) };
    got.map_err(io::Error::from)
}

/// What a project has, and the most that it may have; in bytes, with 0 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProjectQuota {
    pub(super) project: u32,
    pub(super) used: u64,
    pub(super) limit: u64,
}

/// Sets the most bytes that a project may have on the file system of `folder`; 0 is no limit.
pub(super) fn set_quota(folder: &File, project: u32, limit: u64) -> io::Result<()> {
    let mut quota =
        Quota { block_limit: limit.div_ceil(QUOTA_BLOCK_SIZE), valid: QIF_BLIMITS, ..NO_QUOTA };
    quotactl(folder, Q_SETQUOTA, project, &mut quota)
}

/// The quota of the first project from `project` on that has one; none if there is none.
pub(super) fn next_quota(folder: &File, project: u32) -> io::Result<Option<ProjectQuota>> {
    let mut quota = NO_QUOTA;
    match quotactl(folder, Q_GETNEXTQUOTA, project, &mut quota) {
        Ok(()) => Ok(Some(ProjectQuota {
            project: quota.id,
            used: quota.space,
            limit: quota.block_limit.saturating_mul(QUOTA_BLOCK_SIZE),
        })),
        // No such, or the last number was passed.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn quotactl(folder: &File, command: c_int, project: u32, quota: &mut Quota) -> io::Result<()> {
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: the descriptor is open during the call, and both commands read or fill a structure of 72
    // bytes, `struct if_dqblk` or `struct if_nextdqblk`, which `Quota` is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            folder.as_raw_fd(),
            command,
            project,
            ptr::from_mut(quota).cast::<c_void>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extent_count: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_nextdqblk`, which `struct if_dqblk` is without its last field.
#[repr(C)]
struct Quota {
    block_limit: u64,
    block_soft_limit: u64,
    space: u64,
    inode_limit: u64,
    inode_soft_limit: u64,
    inode_count: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
    id: u32,
}

const NO_QUOTA: Quota = Quota {
    block_limit: 0,
    block_soft_limit: 0,
    space: 0,
    inode_limit: 0,
    inode_soft_limit: 0,
    inode_count: 0,
    block_time: 0,
    inode_time: 0,
    valid: 0,
    id: 0,
};

/// `_IO(0x12, 95)`.
const BLKRRPART: Opcode = opcode::none(0x12, 95);
const FS_IOC_FSGETXATTR: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const FS_IOC_FSSETXATTR: Opcode = opcode::write::<FileAttributes>(b'X', 32);
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
const PRJQUOTA: c_int = 2;
const Q_SETQUOTA: c_int = 0x80_0008;
const Q_GETNEXTQUOTA: c_int = 0x80_0009;
const QIF_BLIMITS: u32 = 1;

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<FileAttributes>(), 28);
        assert_eq!(size_of::<Quota>(), 72);
        assert_eq!((BLKRRPART, FS_IOC_FSGETXATTR), (0x125f, 0x801c_581f));
        assert_eq!(FS_IOC_FSSETXATTR, 0x401c_5820);
    }
}
