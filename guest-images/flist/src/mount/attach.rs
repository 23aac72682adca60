//! `mount(2)` for root, `fusermount3` for everybody else.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::MountError;

/// The program that mounts for users without privileges.
const FUSERMOUNT: &str = "fusermount3";
/// File system type in the mount table.
const TYPE: &str = "fuse.flist";

/// Mounts and returns `/dev/fuse`, connected.
pub(super) fn mount(source: &str, mount_point: &Path) -> Result<OwnedFd, MountError> {
    if rustix::process::geteuid().is_root() {
        mount_as_root(source, mount_point)
    } else {
        mount_as_user(source, mount_point)
    }
}

/// Unmounts, at once if nobody uses it, else as soon as nobody does.
pub(super) fn unmount(mount_point: &Path) -> Result<(), MountError> {
    let failed = |reason: String| MountError::Mount { mount_point: mount_point.to_owned(), reason };
    if rustix::process::geteuid().is_root() {
        let result = match rustix::mount::unmount(mount_point, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                tracing::warn!(mount_point = %mount_point.display(), "in use: detached");
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                rustix::mount::unmount(mount_point, flags)
            }
            result => result,
        };
        return result.map_err(|error| failed(format!("cannot unmount: {error}")));
    }
    let output = Command::new(FUSERMOUNT)
        .args(["-u", "-z", "--"])
        .arg(mount_point)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{FUSERMOUNT}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(said(&output.stderr)))
}

fn mount_as_root(source: &str, mount_point: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|error| MountError::Device(error.into()))?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let failed = |error: io::Error| MountError::Mount {
        mount_point: mount_point.to_owned(),
        reason: format!("cannot mount: {error}"),
    };
    let data = CString::new(data).map_err(|error| failed(error.into()))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(source, mount_point, TYPE, flags, data.as_c_str())
        .map_err(|error| failed(error.into()))?;
    Ok(device)
}

/// `fusermount3` mounts and hands us the descriptor over a socket that it finds by number in
/// `_FUSE_COMMFD`.
fn mount_as_user(source: &str, mount_point: &Path) -> Result<OwnedFd, MountError> {
    let failed = |reason: String| MountError::Mount { mount_point: mount_point.to_owned(), reason };
    // Without CLOEXEC, so that the program inherits its end.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(|error| MountError::Device(error.into()))?;
    // Commas separate options; a backslash takes their meaning away.
    let source = source.replace('\\', "\\\\").replace(',', "\\,");
    let options = format!("ro,nosuid,nodev,default_permissions,subtype=flist,fsname={source}");
    let output = Command::new(FUSERMOUNT)
        .args(["-o", &options, "--"])
        .arg(mount_point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{FUSERMOUNT}: {error} (package fuse3)")))?;
    drop(theirs);
    if !output.status.success() {
        return Err(failed(said(&output.stderr)));
    }
    receive_descriptor(&ours)
        .map_err(|error| failed(format!("{FUSERMOUNT} gave no descriptor: {error}")))
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn said(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().to_owned()
}
