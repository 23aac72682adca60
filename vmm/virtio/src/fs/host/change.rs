//! Making, moving and removing, with an eye on what the guest still remembers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use flist_view::filesystem::{Attributes, Changes, Creation, Errno, Ino, NewTime, Rename};
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags, Timespec, Timestamps};

use super::nodes::Data;
use super::sys::{self, GROUP_EXECUTE, PERMISSIONS, SET_GID, SET_UID, TYPE_MASK};
use super::{DIRECTORY, HostDirectory, REGULAR, is_directory};

/// Only the owner, who is we until the rest is set.
const MODE_AT_FIRST: Mode = Mode::RWXU;
/// What `utimensat` takes for "now" and "leave it".
const TIME_NOW: i64 = rustix::fs::UTIME_NOW;
const TIME_OMIT: i64 = rustix::fs::UTIME_OMIT;

impl HostDirectory {
    /// Makes whatever `new` says, a link to `target` if there is one, and tells the guest of it.
    pub(super) fn make(
        &self,
        parent: Ino,
        name: &[u8],
        new: &Creation,
        target: Option<&[u8]>,
    ) -> Result<Attributes, Errno> {
        let directory = self.path(parent)?;
        self.naming(&[&directory], || {
            self.counting_inode(|| self.make_in(directory.as_fd(), (parent, name), new, target))
        })
    }

    /// Leaves nothing behind if it fails.
    fn make_in(
        &self,
        directory: BorrowedFd<'_>,
        (parent, name): (Ino, &[u8]),
        new: &Creation,
        target: Option<&[u8]>,
    ) -> Result<Attributes, Errno> {
        let mut data = None;
        match new.mode & TYPE_MASK {
            REGULAR => data = Some(sys::create_file(directory, name)?),
            DIRECTORY => rustix::fs::mkdirat(directory, name, MODE_AT_FIRST)?,
            sys::SYMLINK => rustix::fs::symlinkat(target.ok_or(Errno::INVAL)?, directory, name)?,
            kind => {
                self.check_device(kind, new.rdev)?;
                let device = rustix::fs::makedev(new.rdev.0, new.rdev.1);
                let file_type = FileType::from_raw_mode(kind);
                let made = rustix::fs::mknodat(directory, name, file_type, MODE_AT_FIRST, device);
                made.map_err(|error| match error {
                    // A jail's way to forbid devices; a guest knows the other word for it.
                    Errno::ACCESS if is_device(kind) => Errno::PERM,
                    error => error,
                })?;
            }
        }
        self.introduce(directory, (parent, name), new, data).inspect_err(|_| {
            let flags = if is_directory(new.mode) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            // As good as can be done: the error counts.
            let _ = rustix::fs::unlinkat(directory, name, flags);
        })
    }

    /// Refuses device nodes where they would be devices of the host. A whiteout is one by its type
    /// alone.
    fn check_device(&self, kind: u32, rdev: (u32, u32)) -> Result<(), Errno> {
        let is_whiteout = kind == sys::CHARACTER_DEVICE && rdev == (0, 0);
        if is_device(kind) && !is_whiteout && !self.is_nodev { Err(Errno::PERM) } else { Ok(()) }
    }

    /// Completes what was made as `name`, open as `data` if it is a file, and tells the guest of it.
    fn introduce(
        &self,
        directory: BorrowedFd<'_>,
        (parent, name): (Ino, &[u8]),
        new: &Creation,
        data: Option<OwnedFd>,
    ) -> Result<Attributes, Errno> {
        let Some(file) = data else {
            let path = sys::open_path(directory, name)?;
            let attributes = self.complete(directory, path.as_fd(), new)?;
            self.nodes().learn(parent, name, &attributes, 1)?;
            return Ok(attributes);
        };
        let attributes = self.complete(directory, file.as_fd(), new)?;
        let mut nodes = self.nodes();
        nodes.learn(parent, name, &attributes, 1)?;
        let data = Data { file: Arc::new(file), is_writable: true };
        nodes.opened_data(attributes.ino, data);
        Ok(attributes)
    }

    /// Makes a file without a name.
    pub(super) fn make_unnamed(&self, parent: Ino, new: &Creation) -> Result<Attributes, Errno> {
        let directory = self.path(parent)?;
        let make = || self.make_unnamed_in(directory.as_fd(), new);
        self.naming(&[], || self.counting_inode(make))
    }

    fn make_unnamed_in(
        &self,
        directory: BorrowedFd<'_>,
        new: &Creation,
    ) -> Result<Attributes, Errno> {
        let file = Arc::new(sys::create_unnamed(directory)?);
        let attributes = self.complete(directory, file.as_fd(), new)?;
        let data = Data { file: Arc::clone(&file), is_writable: true };
        self.nodes().learn_unnamed(&attributes, file, data)?;
        Ok(attributes)
    }

    /// Gives what was made in `directory` its owner, group and mode.
    fn complete(
        &self,
        directory: BorrowedFd<'_>,
        made: BorrowedFd<'_>,
        new: &Creation,
    ) -> Result<Attributes, Errno> {
        let found = self.attributes_of(&sys::stat(made)?)?;
        if (found.mode ^ new.mode) & TYPE_MASK != 0 {
            // Somebody was quicker than we.
            return Err(Errno::STALE);
        }
        let mut wanted = Attributes { uid: new.uid, gid: new.gid, ..found };
        wanted.mode = new.mode;
        let parent_mode = sys::stat(directory)?.attributes.mode;
        if parent_mode & SET_GID != 0 {
            wanted.gid = found.gid;
            wanted.mode |= if is_directory(new.mode) { SET_GID } else { 0 };
        }
        if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
            sys::set_owner(made, Some(wanted.uid), Some(wanted.gid))?;
        }
        if (found.mode ^ wanted.mode) & PERMISSIONS != 0 && wanted.mode & TYPE_MASK != sys::SYMLINK
        {
            self.descriptors.set_mode(made, wanted.mode)?;
        }
        self.attributes_of(&sys::stat(made)?)
    }

    /// Gives what `path` stands for another name, and tells the guest. Leaves nothing behind if it
    /// fails.
    pub(super) fn link_in(
        &self,
        path: BorrowedFd<'_>,
        directory: BorrowedFd<'_>,
        (parent, name): (Ino, &[u8]),
    ) -> Result<Attributes, Errno> {
        self.descriptors.link(path, directory, name)?;
        let linked = sys::stat(path).and_then(|stat| self.attributes_of(&stat));
        linked
            .and_then(|attributes| {
                self.nodes().learn(parent, name, &attributes, 1)?;
                Ok(attributes)
            })
            .inspect_err(|_| {
                // As good as can be done: the error counts.
                let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            })
    }

    /// Takes a name away.
    pub(super) fn remove(&self, parent: Ino, name: &[u8], is_dir: bool) -> Result<(), Errno> {
        let directory = self.path(parent)?;
        self.naming(&[&directory], || {
            let held = self.hold(parent, directory.as_fd(), name)?;
            let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&*directory, name, flags)?;
            if let Some(held) = held {
                self.let_go(&held, parent, name);
            }
            Ok(())
        })
    }

    /// `held` has lost the name `name` of `parent`.
    pub(super) fn let_go(&self, held: &Held, parent: Ino, name: &[u8]) {
        let Held { attributes, path, cost } = held;
        let is_pinned = self.nodes().removed(attributes, (parent, name), path);
        let was_last = attributes.nlink == 1 || is_directory(attributes.mode);
        if !was_last {
            self.refund_inode();
        } else if !is_pinned {
            // Else it is given back when it is forgotten.
            self.refund(*cost);
        }
    }

    /// Moves a name. `leaves_whiteout`: what is left behind covers the same name in a lower layer.
    pub(in crate::fs) fn move_name(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: Rename,
        leaves_whiteout: bool,
    ) -> Result<(), Errno> {
        let (source, target) = (self.path(from.0)?, self.path(to.0)?);
        self.naming(&[&source, &target], || {
            self.move_name_in((from, &source), (to, &target), how, leaves_whiteout)
        })
    }

    fn move_name_in(
        &self,
        (from, source): ((Ino, &[u8]), &OwnedFd),
        (to, target): ((Ino, &[u8]), &OwnedFd),
        how: Rename,
        leaves_whiteout: bool,
    ) -> Result<(), Errno> {
        let moved = self.peek(from.0, from.1)?.ino;
        let replaced = match how {
            Rename::Replace => self.hold(to.0, target.as_fd(), to.1)?,
            Rename::NoReplace => None,
            Rename::Exchange => None,
        };
        let other = if how == Rename::Exchange { Some(self.peek(to.0, to.1)?) } else { None };
        if replaced.is_none() && other.is_none() && from.0 != to.0 {
            // A directory that gets more and more names grows.
            self.check_room_for_name()?;
        }
        let mut flags = match how {
            Rename::Replace => RenameFlags::empty(),
            Rename::NoReplace => RenameFlags::NOREPLACE,
            Rename::Exchange => RenameFlags::EXCHANGE,
        };
        flags.set(RenameFlags::WHITEOUT, leaves_whiteout);
        rustix::fs::renameat_with(source, from.1, target, to.1, flags)?;
        if replaced.as_ref().is_some_and(|replaced| replaced.attributes.ino == moved) {
            // Two names of one inode: nothing happened.
            return Ok(());
        }
        if leaves_whiteout {
            // Whatever the limit: it is there.
            self.count_inode();
        }
        if let Some(other) = other {
            self.nodes().moved(other.ino, from.0, from.1);
        }
        if let Some(replaced) = replaced {
            self.let_go(&replaced, to.0, to.1);
        }
        self.nodes().moved(moved, to.0, to.1);
        Ok(())
    }

    /// Opens what `name` is, if it is anything: soon it will not be found, and the guest may know it,
    /// or learn of it just now.
    pub(super) fn hold(
        &self,
        parent: Ino,
        directory: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Option<Held>, Errno> {
        let path = match sys::open_path(directory, name) {
            Ok(path) => Arc::new(path),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let attributes = self.attributes_of(&sys::stat(path.as_fd())?)?;
        self.nodes().check_room_to_pin(attributes.ino, parent, name)?;
        let cost = self.cost_of(&attributes, path.as_fd());
        Ok(Some(Held { attributes, path, cost }))
    }

    /// Changes attributes one after the other: size, owner, mode (which a change of owner changes),
    /// times (which all of them change).
    pub(super) fn apply(&self, ino: Ino, changes: &Changes) -> Result<(), Errno> {
        if let Some(size) = changes.size {
            let file = self.data(ino, true)?;
            if changes.drops_set_id {
                self.drop_set_id(ino)?;
            }
            let file_of = (ino, file.as_fd());
            self.charged(file_of, 0, 0, || rustix::fs::ftruncate(&*file, size))?;
        }
        if (changes.uid, changes.gid) != (None, None) {
            sys::set_owner(self.path(ino)?.as_fd(), changes.uid, changes.gid)?;
        }
        if let Some(mode) = changes.mode {
            if self.nodes().get(ino)?.kind == sys::SYMLINK {
                return Err(Errno::OPNOTSUPP);
            }
            self.descriptors.set_mode(self.path(ino)?.as_fd(), mode)?;
        }
        if (changes.atime, changes.mtime) != (None, None) {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            self.descriptors.set_times(self.path(ino)?.as_fd(), &times)?;
        }
        Ok(())
    }

    /// Drops set-id bits, as the kernel does for writers without the right to keep them.
    pub(super) fn drop_set_id(&self, ino: Ino) -> Result<(), Errno> {
        let path = self.path(ino)?;
        let mode = sys::stat(path.as_fd())?.attributes.mode;
        let mut dropped = mode & !SET_UID;
        if mode & GROUP_EXECUTE != 0 {
            // Without it, the bit means mandatory locking.
            dropped &= !SET_GID;
        }
        if dropped == mode {
            return Ok(());
        }
        self.descriptors.set_mode(path.as_fd(), dropped)
    }

    /// The file `ino`, open for writing: for contents that come from elsewhere than the guest.
    pub(in crate::fs) fn file(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        self.data(ino, true)
    }
}

/// What is about to lose a name.
pub(super) struct Held {
    attributes: Attributes,
    path: Arc<OwnedFd>,
    /// What it counts as.
    cost: u64,
}

/// Whether that is the type of a device.
const fn is_device(kind: u32) -> bool {
    matches!(kind, sys::CHARACTER_DEVICE | sys::BLOCK_DEVICE)
}

fn timespec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: TIME_OMIT },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: TIME_NOW },
        Some(NewTime::At(time)) => {
            Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) }
        }
    }
}
