//! Owners, extended attributes, modes and times, in the order in which they survive each other.
//!
//! Changing the owner clears set-id bits and `security.capability`, so the owner comes first; times
//! come last. Directories wait until everything in them is made, deepest first, so that their times
//! stay, and so that a directory without a write bit can still be filled.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flist_view::filesystem::Timestamp;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{LastDirectory, UnpackError, Unpacker, WRITE_FLAGS, failed, split};
use crate::tree::{Entry, Inode, Node};

/// `chown` takes -1 for "leave it".
const NO_ID: u32 = u32::MAX;

impl Unpacker<'_> {
    /// Metadata of everything but directories.
    pub(super) fn apply_metadata(&self) -> Result<(), UnpackError> {
        let mut last = LastDirectory::default();
        for (entry, _) in self.entries.iter().zip(self.is_first).filter(|(_, is_first)| **is_first)
        {
            self.progress.check()?;
            let inode = self.image.tree.inode(entry.id);
            if matches!(inode.node, Node::Directory(_)) {
                continue;
            }
            let (path, name) = split(&entry.path);
            let folder = last.open(self, path).map_err(|error| failed(path, "open", error))?;
            if matches!(inode.node, Node::File(_)) {
                let file = rustix::fs::openat(folder, name, WRITE_FLAGS, Mode::empty())
                    .map_err(|error| failed(&entry.path, "open", error))?;
                self.apply(entry, inode, &file)?;
            } else {
                self.apply_by_name(entry, inode, folder, name)?;
            }
        }
        Ok(())
    }

    /// Metadata of directories, the root last.
    pub(super) fn apply_directory_metadata(&self) -> Result<(), UnpackError> {
        for entry in self.entries.iter().rev() {
            let inode = self.image.tree.inode(entry.id);
            if matches!(inode.node, Node::Directory(_)) {
                let directory = self
                    .open_directory(&entry.path)
                    .map_err(|error| failed(&entry.path, "open", error))?;
                self.apply(entry, inode, &directory)?;
            }
        }
        Ok(())
    }

    /// For what can be opened.
    fn apply(&self, entry: &Entry, inode: &Inode, file: &OwnedFd) -> Result<(), UnpackError> {
        let (uid, gid) = owners(inode);
        let is_owned = self.owned(entry, rustix::fs::fchown(file, uid, gid))?;
        for (name, value) in &inode.xattrs {
            let set = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            self.attributed(entry, name, set)?;
        }
        rustix::fs::fchmod(file, mode(inode, is_owned))
            .map_err(|error| failed(&entry.path, "set the mode", error))?;
        rustix::fs::futimens(file, &times(inode))
            .map_err(|error| failed(&entry.path, "set the times", error))
    }

    /// For symbolic links, devices, pipes and sockets, which can't be opened for that.
    fn apply_by_name(
        &self,
        entry: &Entry,
        inode: &Inode,
        folder: &OwnedFd,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let (uid, gid) = owners(inode);
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let owned = rustix::fs::chownat(folder, name, uid, gid, no_follow);
        if owned == Err(Errno::NOENT) && self.is_device(entry.id) {
            return Ok(()); // The system refused to make it.
        }
        let is_owned = self.owned(entry, owned)?;
        for (attribute, value) in &inode.xattrs {
            // There is no call relative to a descriptor; this path leads through ours.
            let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            let flags = XattrFlags::empty();
            let set = rustix::fs::lsetxattr(path.as_slice(), attribute.as_slice(), value, flags);
            self.attributed(entry, attribute, set)?;
        }
        if !matches!(inode.node, Node::Symlink(_)) {
            // Nobody but us can have put a link in its place: the tree's top is closed to others.
            rustix::fs::chmodat(folder, name, mode(inode, is_owned), AtFlags::empty())
                .map_err(|error| failed(&entry.path, "set the mode", error))?;
        }
        rustix::fs::utimensat(folder, name, &times(inode), no_follow)
            .map_err(|error| failed(&entry.path, "set the times", error))
    }

    /// Whether the owner was set.
    fn owned(&self, entry: &Entry, done: rustix::io::Result<()>) -> Result<bool, UnpackError> {
        match done {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::INVAL) => {
                let text = "owners are not set, and set-id bits are left away: the system refuses";
                self.note("owner", &entry.path, text);
                Ok(false)
            }
            Err(error) => Err(failed(&entry.path, "set the owner", error)),
        }
    }

    fn attributed(
        &self,
        entry: &Entry,
        name: &[u8],
        done: rustix::io::Result<()>,
    ) -> Result<(), UnpackError> {
        match done {
            Err(error @ (Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL)) => {
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                let text = format!("attribute {name:?} is not set: {error}");
                self.note(&name, &entry.path, &text);
                Ok(())
            }
            done => done.map_err(|error| failed(&entry.path, "set an attribute", error)),
        }
    }
}

fn owners(inode: &Inode) -> (Option<Uid>, Option<Gid>) {
    let (uid, gid) = (inode.metadata.uid, inode.metadata.gid);
    ((uid != NO_ID).then(|| Uid::from_raw(uid)), (gid != NO_ID).then(|| Gid::from_raw(gid)))
}

/// Set-id bits lend the rights of the owner that the packer meant, and of nobody else.
fn mode(inode: &Inode, is_owned: bool) -> Mode {
    let mask = if is_owned { 0o7777 } else { 0o1777 };
    Mode::from_raw_mode(inode.metadata.permissions & mask)
}

/// Both times that can be set become the time of the last change.
fn times(inode: &Inode) -> Timestamps {
    let time =
        |time: Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let mtime = time(inode.metadata.mtime);
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// Gives the owner of a tree the right to remove it. Best effort.
pub(super) fn make_removable(path: &Path) {
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        let _ = std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700));
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let directories = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            // What the system can't name in one path is left to the caller's error.
            .filter(|path| path.as_os_str().as_bytes().len() < 4096);
        pending.extend(directories);
    }
}
