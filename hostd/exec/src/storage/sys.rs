//! What the kernel offers for disks and no safe crate wraps: partitions read anew, project quotas, and
//! commands that a disk gets as they are.
//!
//! The one module of storage with `unsafe`. Numbers and layouts are those of `linux/fs.h`,
//! `linux/quota.h` and `scsi/sg.h`.

#![allow(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use rustix::ioctl::{Getter, NoArg, Opcode, Setter, Updater, ioctl, opcode};

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

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommandStatus {
    /// Of the disk (SAM-5 §5.3); 0 is good.
    pub(super) disk: u8,
    /// Of what the disk is plugged into.
    pub(super) host: u16,
    /// Of its driver.
    pub(super) driver: u16,
}

/// Gives a disk a SCSI command that moves no data, and waits until it is done.
pub(super) fn command(
    disk: &File,
    command: &[u8],
    time_max: Duration,
) -> io::Result<CommandStatus> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut sense = [0_u8; SENSE_SIZE];
    let mut request = ScsiRequest {
        interface: c_int::from(b'S'),
        direction: SG_DXFER_NONE,
        command_size: u8::try_from(command.len()).map_err(too_long)?,
        sense_size_max: u8::try_from(sense.len()).map_err(too_long)?,
        piece_count: 0,
        data_size: 0,
        data: ptr::null_mut(),
        command: command.as_ptr(),
        sense: sense.as_mut_ptr(),
        time_max_ms: u32::try_from(time_max.as_millis()).map_err(too_long)?,
        flags: 0,
        id: 0,
        user: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_size: 0,
        host_status: 0,
        driver_status: 0,
        residue: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `SG_IO` reads and fills a `struct sg_io_hdr`, which `ScsiRequest` is. During the call the
    // kernel reads `command_size` bytes of `command`, which are there, and writes at most
    // `sense_size_max` bytes to `sense`, which are there, too; with no data it follows no other pointer.
    unsafe { ioctl(disk, Updater::<SG_IO, _>::new(&mut request)) }?;
    Ok(CommandStatus {
        disk: request.status,
        host: request.host_status,
        driver: request.driver_status,
    })
}

/// `struct sg_io_hdr`.
#[repr(C)]
struct ScsiRequest {
    interface: c_int,
    direction: c_int,
    command_size: u8,
    sense_size_max: u8,
    piece_count: u16,
    data_size: u32,
    data: *mut c_void,
    command: *const u8,
    sense: *mut u8,
    time_max_ms: u32,
    flags: u32,
    id: c_int,
    user: *mut c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_size: u8,
    host_status: u16,
    driver_status: u16,
    residue: c_int,
    duration: u32,
    info: u32,
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
/// Older than numbers that tell sizes.
const SG_IO: Opcode = 0x2285;
const SG_DXFER_NONE: c_int = -1;
/// Bytes of what a disk says about a command that failed.
const SENSE_SIZE: usize = 32;
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
        assert_eq!(size_of::<ScsiRequest>(), 88);
        assert_eq!((BLKRRPART, FS_IOC_FSGETXATTR), (0x125f, 0x801c_581f));
        assert_eq!(FS_IOC_FSSETXATTR, 0x401c_5820);
    }

    #[test]
    fn what_is_no_disk_takes_no_commands() {
        let file = tempfile::tempfile().unwrap();
        let time_max = Duration::from_secs(1);
        assert!(command(&file, &[0; 6], time_max).is_err());
        let error = command(&file, &[0; 300], time_max).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
