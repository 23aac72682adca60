//! An empty root directory, with nothing in it but what the guest shares with the host.
//!
//! ```text
//!   /                 tmpfs, read-only, empty but for:
//!   /fs/0, /fs/1 …    shared directories, bound there nosuid, nodev, noexec
//!   /proc/self/fd     our own descriptors, for whoever serves those
//! ```
//!
//! A directory that is bound is the root of its mount, so that not even `..` of a descriptor of it
//! leads out. Everything else that the VMM uses was opened before. Then the host's tree of mounts is
//! taken away: by `pivot_root`, or, where that is an initramfs, which cannot be put elsewhere, by
//! moving the new root over it.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};

use super::{JailError, Share};

const WALL: &str = "root directory";
/// Where the new root is put together: a directory that any host with KVM has.
const PLACE: &str = "/dev";
/// Room for the directories.
const OPTIONS: &std::ffi::CStr = c"mode=0755,size=256k,nr_inodes=256";
const DESCRIPTORS: &str = "/proc/self/fd";

/// Puts the root together and moves there. Returns where the shared directories are now.
pub(super) fn enter(shares: &[Share]) -> Result<Vec<PathBuf>, JailError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(host("keep mounts to ourselves"))?;
    // Before anything is put over them.
    let mut bound = Vec::new();
    for (index, share) in shares.iter().enumerate() {
        bound.push((format!("fs/{index}"), tree(&share.path)?, share.is_readonly));
    }
    if !shares.is_empty() {
        let relative = DESCRIPTORS.trim_start_matches('/').to_owned();
        bound.push((relative, tree(Path::new(DESCRIPTORS))?, true));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"vmm", PLACE, c"tmpfs", flags, OPTIONS).map_err(host("mount a tmpfs"))?;
    chdir(PLACE).map_err(host("enter the tmpfs"))?;
    for (place, tree, is_readonly) in &bound {
        make_directories(place)?;
        let what = format!("bind {place}");
        let failed = || host(&what);
        move_mount(tree, c"", CWD, place.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed())?;
        harden(place, flags, *is_readonly).map_err(failed())?;
    }
    let all = MountFlags::BIND | MountFlags::RDONLY | flags;
    mount_remount(c".", all, c"").map_err(host("make the root read-only"))?;
    leave_the_host()?;
    Ok((0..shares.len()).map(|index| PathBuf::from(format!("/fs/{index}"))).collect())
}

/// A mount of its own of what is at `path`; with the mounts below it where the kernel insists, which
/// a device does not cross.
fn tree(path: &Path) -> Result<std::os::fd::OwnedFd, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let opened = match open_tree(CWD, path, flags) {
        Err(Errno::INVAL) => open_tree(CWD, path, flags | OpenTreeFlags::AT_RECURSIVE),
        result => result,
    };
    opened.map_err(host(&format!("bind {}", path.display())))
}

/// Takes meaning away from what a guest may put there. What was forbidden stays forbidden.
fn harden(place: &str, flags: MountFlags, is_readonly: bool) -> Result<(), Errno> {
    let now = rustix::fs::statvfs(place)?.f_flag;
    let mut flags = MountFlags::BIND | flags;
    flags.set(MountFlags::RDONLY, is_readonly || now.contains(StatVfsMountFlags::RDONLY));
    mount_remount(place, flags, c"")
}

fn make_directories(place: &str) -> Result<(), JailError> {
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    let ends = place.match_indices('/').map(|(at, _)| at).chain([place.len()]);
    for end in ends {
        match rustix::fs::mkdir(&place[..end], mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(host(&format!("make {place}"))(error)),
        }
    }
    Ok(())
}

/// From the working directory, which becomes the root.
fn leave_the_host() -> Result<(), JailError> {
    match pivot_root(c".", c".") {
        // The host's root lies over ours now.
        Ok(()) => unmount(c".", UnmountFlags::DETACH).map_err(host("leave the host's mounts"))?,
        // An initramfs.
        Err(Errno::INVAL) => {
            mount_move(c".", c"/").map_err(host("put the root in its place"))?;
            chroot(c".").map_err(host("enter the root"))?;
        }
        Err(error) => return Err(host("pivot_root")(error)),
    }
    chdir(c"/").map_err(host("enter the root"))
}

fn host(what: &str) -> impl FnOnce(Errno) -> JailError + use<> {
    let failed = JailError::host(WALL, what);
    move |error| failed(error.into())
}
