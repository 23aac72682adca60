//! Mounts by descriptor: made detached, attached to an open folder.
//!
//! With `fsopen`/`fsmount`/`move_mount` (Linux 5.2) the target is a folder that was opened inside
//! the new root, so that no symbolic link of an image can lead a mount astray; and the file
//! system's own words come back when it refuses.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::cidata::Options;

/// A file system to be mounted.
pub(crate) struct Request<'a> {
    /// The file system's name: `ext4`.
    pub(crate) kind: &'a str,
    /// Its parameters; an empty value is a flag.
    pub(crate) params: &'a [(&'a str, &'a str)],
    /// How it is seen here.
    pub(crate) flags: MountAttrFlags,
}

impl Request<'_> {
    /// Mounts it, attached to nothing.
    pub(crate) fn create(&self) -> Result<OwnedFd> {
        let fs = fsopen(self.kind, FsOpenFlags::FSOPEN_CLOEXEC)
            .with_context(|| format!("the kernel has no file system {:?}", self.kind))?;
        let configure = || -> rustix::io::Result<()> {
            for (key, value) in self.params {
                match *value {
                    "" => fsconfig_set_flag(fs.as_fd(), *key)?,
                    value => fsconfig_set_string(fs.as_fd(), *key, value)?,
                }
            }
            fsconfig_create(fs.as_fd())
        };
        if let Err(error) = configure() {
            let words = complaint(&fs);
            let colon = if words.is_empty() { "" } else { ": " };
            return Err(anyhow!("{error}{colon}{words}"));
        }
        Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, self.flags)?)
    }

    /// Mounts it on the folder `target`.
    pub(crate) fn attach(&self, target: &OwnedFd) -> Result<()> {
        attach(&self.create()?, target)
    }
}

/// Attaches a mount to the folder `target`.
pub(crate) fn attach(mount: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Takes the mount at `path` out of the tree; what still uses it keeps it.
pub(crate) fn detach(path: &str) -> Result<()> {
    unmount(path, UnmountFlags::DETACH).with_context(|| format!("detaching {path}"))
}

/// Opens a folder of the initramfs as a place to mount on, making it first.
pub(crate) fn own_folder(path: &str) -> Result<OwnedFd> {
    std::fs::create_dir_all(path).with_context(|| format!("making {path}"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).with_context(|| format!("opening {path}"))
}

/// The mount flags for `options`.
pub(crate) fn flags(options: Options) -> MountAttrFlags {
    let pairs = [
        (options.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (options.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (options.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (options.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (options.noatime, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ];
    pairs.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).collect()
}

/// Grows the mounted ext4 to `blocks` of its own blocks.
#[expect(unsafe_code, reason = "rustix has no safe form of this ioctl")]
pub(crate) fn grow(mount: &OwnedFd, blocks: u64) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(mount, ".", flags, Mode::empty())?;
    // SAFETY: the opcode is EXT4_IOC_RESIZE_FS (linux/ext4.h), which reads a __u64 and keeps no
    // pointer to it; `folder` is an open folder of the file system.
    unsafe { ioctl(&folder, Setter::<{ EXT4_IOC_RESIZE_FS }, u64>::new(blocks)) }
        .with_context(|| format!("growing the file system to {blocks} blocks"))
}

/// Grows the mounted btrfs to its device's size.
#[expect(unsafe_code, reason = "rustix has no safe form of this ioctl")]
pub(crate) fn grow_btrfs(mount: &OwnedFd) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(mount, ".", flags, Mode::empty())?;
    // struct btrfs_ioctl_vol_args: 8 bytes of descriptor, unused here, then a text with its NUL.
    let mut request = [0u8; 4096];
    request.iter_mut().skip(8).zip(b"max").for_each(|(slot, byte)| *slot = *byte);
    // SAFETY: the opcode is BTRFS_IOC_RESIZE (linux/btrfs.h), which reads a struct of 4096 bytes
    // and keeps no pointer to it; `folder` is an open folder of the file system.
    unsafe { ioctl(&folder, Setter::<{ BTRFS_IOC_RESIZE }, [u8; 4096]>::new(request)) }
        .context("growing the btrfs")
}

/// Sets how far the kernel reads ahead in the mounted file system.
pub(crate) fn read_ahead(mount: &OwnedFd, kib: u32) -> Result<()> {
    let device = fstat(mount)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&path, kib.to_string()).with_context(|| format!("writing {path}"))
}

/// What the file system said while it was configured, on one line.
fn complaint(fs: &OwnedFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 512];
    // One message a read; ENODATA ends it.
    while let Ok(length @ 1..) = rustix::io::read(fs, &mut buffer) {
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        // Each begins with its severity, one letter and a blank.
        lines.push(text.trim_end().get(2..).unwrap_or_default().to_owned());
        if lines.len() >= COMPLAINTS_MAX {
            break;
        }
    }
    lines.join("; ")
}

const EXT4_IOC_RESIZE_FS: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);
const BTRFS_IOC_RESIZE: rustix::ioctl::Opcode = opcode::write::<[u8; 4096]>(0x94, 3);
/// Most messages that are repeated.
const COMPLAINTS_MAX: usize = 8;
