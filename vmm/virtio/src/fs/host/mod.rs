//! A directory of the host as a guest's file system.
//!
//! Nothing the guest says can lead out of the directory. Names are single components (the FUSE server
//! makes sure), every system call is relative to a descriptor below the root, `openat2` follows
//! neither links nor mounts, and whatever is opened for its contents is opened through the descriptor
//! that stands for it, after that was seen to be a regular file. So a name that somebody exchanges for
//! a link, a pipe or a device while we look at it changes nothing. File systems mounted below the
//! directory are not there for the guest: their names are not listed, and `EXDEV` if asked for.
//!
//! Permissions are the guest kernel's affair (virtio-fs mounts always check them there). Calls are made
//! with the VMM's own rights, and what is made gets the owner, group and mode that the guest asked for:
//! set after it was made, before anybody in the guest can know it. The process needs `CAP_CHOWN`,
//! `CAP_DAC_OVERRIDE`, `CAP_FOWNER`, `CAP_FSETID` and `CAP_SETFCAP`, and `CAP_SYS_ADMIN` if the guest is
//! to set `trusted.` attributes; what it lacks, the guest is refused (`EPERM`).
//!
//! What the guest makes means the same to whoever meets it on the host. So device nodes (whiteouts,
//! which are none, excepted) are made only where the host has mounted the directory `nodev`, and it
//! should be mounted `nosuid` too: set-uid bits and file capabilities are the guest's to set.
//!
//! Inode numbers are the host's own, but that the root's is 1, and whatever has 1 here has the root's.
//! `nodes` tells how a million known files do not become a million descriptors.
//!
//! Extended attributes: `user.`, `trusted.` and `security.capability` pass through, of files and
//! directories. Other `security.` ones would mean something to the host, `system.` ones (ACLs)
//! something that the guest does not check.
//!
//! A quota is the host file system's where it can be, and counted here where not (`quota`).

mod budget;
mod change;
mod extents;
mod nodes;
mod quota;
mod scan;
mod state;
mod sys;
#[cfg(test)]
mod tests;
mod xattr;

pub(super) use state::parents_first;
pub(super) use sys::{
    CHARACTER_DEVICE, DIRECTORY, PERMISSIONS, REGULAR, SET_GID, SET_ID, SYMLINK, TYPE_MASK, errno,
    is_directory,
};
pub(super) use xattr::check as check_attribute;

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flist_view::filesystem::{
    Attributes, Changes, Creation, DirectoryEntry, Errno, FileSystem, Ino, Listing, Policy, ROOT,
    ReadSink, Rename, Seek, SetAttribute, Statistics, WriteSource,
};
use rustix::fs::{FallocateFlags, Mode, OFlags, RawDir, SeekFrom, StatVfsMountFlags};
use serde_json::Value;

use self::budget::Budget;
use self::nodes::{Data, Nodes};
use self::quota::Quota;
use self::sys::{Descriptors, Mount, Stat};
use super::GuestFileSystem;
use crate::DeviceError;

/// How long a guest may believe what it saw of a directory that others change.
const SHARED_VALID: Duration = Duration::from_secs(1);
/// Names read from the host at once.
const LISTING_SIZE: usize = 8 << 10;

/// How a directory is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// The guest may not change anything.
    pub is_readonly: bool,
    /// Others change it while the guest uses it: the guest asks again after a second instead of never.
    pub is_shared: bool,
    /// The most it may take, in bytes.
    pub quota: Option<u64>,
}

/// A directory of the host.
pub struct HostDirectory {
    options: HostOptions,
    root: Arc<OwnedFd>,
    mount: Mount,
    /// The root's inode number on the host.
    root_number: u64,
    /// Device nodes mean nothing there.
    is_nodev: bool,
    descriptors: Descriptors,
    nodes: Mutex<Nodes>,
    /// Where the host's file system does not count.
    quota: Option<Quota>,
}

impl HostDirectory {
    /// Serves the directory at `path`. Call it in the process that serves, while there is a `/proc`.
    ///
    /// # Errors
    /// When it cannot be opened, or is no directory.
    pub fn open(path: &Path, options: HostOptions) -> Result<Self, DeviceError> {
        let failed = |source: std::io::Error| DeviceError::Host {
            what: format!("the directory {} cannot be served", path.display()),
            source,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty());
        Self::new(root.map_err(|error| failed(error.into()))?, options).map_err(failed)
    }

    /// Serves the directory that `root` is.
    ///
    /// # Errors
    /// What the host said.
    pub fn new(root: OwnedFd, options: HostOptions) -> std::io::Result<Self> {
        Self::within(root, options, &Budget::of_process())
    }

    /// The same, with a budget of descriptors.
    fn within(root: OwnedFd, options: HostOptions, budget: &Arc<Budget>) -> std::io::Result<Self> {
        let root = Arc::new(root);
        let stat = sys::stat(root.as_fd())?;
        if !is_directory(stat.attributes.mode) {
            return Err(Errno::NOTDIR.into());
        }
        let nodes = Nodes::new(Arc::clone(&root), stat.attributes.generation, DIRECTORY, budget);
        let flags = rustix::fs::fstatvfs(&*root)?.f_flag;
        let quota = options.quota.map(|limit| Quota::new(&root, limit)).transpose()?.flatten();
        Ok(Self {
            options,
            quota,
            root,
            mount: stat.mount,
            root_number: stat.attributes.ino,
            is_nodev: flags.contains(StatVfsMountFlags::NODEV),
            descriptors: Descriptors::open()?,
            nodes: Mutex::new(nodes),
        })
    }

    /// Serves the directory at `path` as in a process that may have so many descriptors.
    #[cfg(test)]
    pub(in crate::fs) fn open_limited(path: &Path, descriptor_count: u64) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).expect("a directory");
        let budget = Arc::new(Budget::new(Some(descriptor_count), 0));
        Self::within(root, HostOptions::default(), &budget).expect("a directory that can be served")
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's number of an inode with this one on the host, and the reverse.
    const fn number(&self, host: u64) -> Ino {
        if host == self.root_number {
            ROOT
        } else if host == ROOT {
            self.root_number
        } else {
            host
        }
    }

    /// Attributes as the guest sees them, if it is part of this file system at all.
    fn attributes_of(&self, stat: &Stat) -> Result<Attributes, Errno> {
        if stat.mount != self.mount {
            return Err(Errno::XDEV);
        }
        Ok(Attributes { ino: self.number(stat.attributes.ino), ..stat.attributes })
    }

    /// What stands for `ino`, opened on the way from the next directory that is open.
    fn path(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        let route = {
            let mut nodes = self.nodes();
            if let Some(path) = nodes.path(ino)? {
                return Ok(path);
            }
            nodes.route(ino)?
        };
        let mut path = route.start;
        for (step, generation, name) in route.steps {
            let found = Arc::new(sys::open_path(path.as_fd(), &name).map_err(gone)?);
            self.check(&sys::stat(found.as_fd())?, step, generation)?;
            self.nodes().opened(step, Arc::clone(&found));
            path = found;
        }
        Ok(path)
    }

    /// Whether what was found is what was known.
    fn check(&self, stat: &Stat, ino: Ino, generation: u64) -> Result<Attributes, Errno> {
        let attributes = self.attributes_of(stat)?;
        if (attributes.ino, attributes.generation) != (ino, generation) {
            return Err(Errno::STALE);
        }
        Ok(attributes)
    }

    /// What reads or writes the regular file `ino`.
    fn data(&self, ino: Ino, writes: bool) -> Result<Arc<OwnedFd>, Errno> {
        {
            let mut nodes = self.nodes();
            if let Some(file) = nodes.data(ino, writes)? {
                return Ok(file);
            }
            match nodes.get(ino)?.kind {
                REGULAR => {}
                DIRECTORY => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            }
        }
        let path = self.path(ino)?;
        if sys::stat(path.as_fd())?.attributes.mode & TYPE_MASK != REGULAR {
            // Another inode with the same number, on a host that cannot tell them apart.
            return Err(Errno::STALE);
        }
        let flags = if writes { OFlags::RDWR } else { OFlags::RDONLY };
        let file = Arc::new(self.descriptors.reopen(path.as_fd(), flags)?);
        let data = Data { file: Arc::clone(&file), is_writable: writes };
        self.nodes().opened_data(ino, data);
        Ok(file)
    }

    /// A file for its contents, a directory for its list: what calls on open files want.
    fn open_any(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        let kind = self.nodes().get(ino)?.kind;
        match kind {
            REGULAR => self.data(ino, false),
            DIRECTORY => Ok(Arc::new(sys::open_directory(self.path(ino)?.as_fd())?)),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// The guest's number of what was listed.
    pub(super) const fn number_of(&self, name: &Name) -> Ino {
        self.number(name.number)
    }

    /// Attributes of `name` in `parent`, which the guest is not told of.
    pub(super) fn peek(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        self.attributes_of(&sys::stat_at(self.path(parent)?.as_fd(), name)?)
    }

    /// Lists names as the host has them, `.` and `..` included, until `each` says no.
    pub(super) fn each_name(
        &self,
        ino: Ino,
        offset: u64,
        each: &mut dyn FnMut(&Name) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let directory = sys::open_directory(self.path(ino)?.as_fd())?;
        let mut offset = offset;
        loop {
            let names = names(&directory, offset)?;
            let Some(last) = names.last() else { return Ok(()) };
            offset = last.next_offset;
            for name in &names {
                if !each(name)? {
                    return Ok(());
                }
            }
        }
    }

    /// The entry `name` of `parent` for a listing; none if it is gone or belongs elsewhere.
    fn entry(&self, parent: &OwnedFd, name: &Name) -> Result<Option<Attributes>, Errno> {
        let found = sys::stat_at(parent.as_fd(), &name.bytes);
        match found.and_then(|stat| self.attributes_of(&stat)) {
            Ok(attributes) => Ok(Some(attributes)),
            Err(Errno::NOENT | Errno::XDEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One buffer of names of the directory that `directory` lists, from `offset` on.
fn names(directory: &OwnedFd, offset: u64) -> Result<Vec<Name>, Errno> {
    rustix::fs::seek(directory, SeekFrom::Start(offset))?;
    let mut buffer = [const { MaybeUninit::uninit() }; LISTING_SIZE];
    let mut raw = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        names.push(Name {
            bytes: entry.file_name().to_bytes().into(),
            number: entry.ino(),
            kind: entry.file_type().as_raw_mode() & TYPE_MASK,
            next_offset: entry.next_entry_cookie(),
        });
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(names)
}

/// A name in a listing of the host's.
pub(super) struct Name {
    pub(super) bytes: Box<[u8]>,
    /// Inode number on the host.
    number: u64,
    /// Type bits of its mode.
    pub(super) kind: u32,
    /// Where the listing goes on.
    pub(super) next_offset: u64,
}

impl Name {
    /// Whether it is the directory itself or the one above.
    pub(super) fn is_dots(&self) -> bool {
        matches!(&*self.bytes, b"." | b"..")
    }
}

/// What was known is no longer found: the client looks it up again.
fn gone(error: Errno) -> Errno {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
        error => error,
    }
}

impl FileSystem for HostDirectory {
    fn policy(&self) -> Policy {
        Policy {
            valid: if self.options.is_shared { SHARED_VALID } else { Policy::VALID_MAX },
            is_writable: !self.options.is_readonly,
            is_shared: self.options.is_shared,
            has_lasting_numbers: false,
        }
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        if matches!(name, b"." | b"..") {
            // Only clients that were promised lasting numbers ask so.
            return Err(Errno::INVAL);
        }
        let attributes = self.peek(parent, name)?;
        self.nodes().learn(parent, name, &attributes, 1)?;
        Ok(attributes)
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        let (open, parent, name, generation) = {
            let mut nodes = self.nodes();
            let open = nodes.path(ino)?;
            let node = nodes.get(ino)?;
            (open, node.parent, node.name.clone(), node.generation)
        };
        let stat = match open {
            Some(path) => sys::stat(path.as_fd())?,
            // Without opening it: what is listed is mostly not looked at any further.
            None if name.is_empty() => return Err(Errno::STALE),
            None => sys::stat_at(self.path(parent)?.as_fd(), &name).map_err(gone)?,
        };
        self.check(&stat, ino, generation)
    }

    fn read_directory(
        &self,
        ino: Ino,
        offset: u64,
        listing: Listing,
        each: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let path = self.path(ino)?;
        let parent = self.nodes().get(ino)?.parent;
        self.each_name(ino, offset, &mut |name| {
            let number = match &*name.bytes {
                b"." => ino,
                b".." => parent,
                _ => self.number(name.number),
            };
            let kind = Attributes { ino: number, mode: name.kind, ..Attributes::default() };
            let attributes = if listing == Listing::Names || name.is_dots() {
                Some(kind)
            } else {
                self.entry(&path, name)?
            };
            let Some(attributes) = attributes else { return Ok(true) };
            let counts = listing == Listing::Counted && !name.is_dots();
            if counts {
                self.nodes().learn(ino, &name.bytes, &attributes, 1)?;
            }
            let next_offset = name.next_offset;
            let is_taken = each(DirectoryEntry { next_offset, name: &name.bytes, attributes });
            if counts && !is_taken {
                self.nodes().forget(attributes.ino, 1);
            }
            Ok(is_taken)
        })
    }

    fn read(&self, ino: Ino, offset: u64, size: u32, sink: &mut dyn ReadSink) -> Result<(), Errno> {
        let file = self.data(ino, false)?;
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        if offset > i64::MAX.unsigned_abs() {
            // Beyond the end of any file.
            return Ok(());
        }
        sink.file_up_to(file.as_fd(), offset, size).map(drop).map_err(|error| errno(&error))
    }

    fn read_link(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno> {
        if self.nodes().get(ino)?.kind != sys::SYMLINK {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(&*self.path(ino)?, c"", Vec::new())?;
        Ok(Cow::Owned(target.into_bytes()))
    }

    fn extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        xattr::check(name)?;
        self.raw_attribute(ino, name).map(Cow::Owned)
    }

    fn extended_attribute_names(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        match self.open_any(ino) {
            Ok(file) => Ok(xattr::visible(&sys::extended_attribute_names(file.as_fd())?)),
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn statistics(&self) -> Result<Statistics, Errno> {
        let statvfs = rustix::fs::fstatvfs(&*self.root)?;
        let host = Statistics {
            block_size: u32::try_from(statvfs.f_frsize).unwrap_or(u32::MAX),
            block_count: statvfs.f_blocks,
            // What is kept for the host's root is not the guest's to use.
            block_count_free: statvfs.f_bavail,
            inode_count: statvfs.f_files,
            inode_count_free: statvfs.f_favail,
            name_size_max: u32::try_from(statvfs.f_namemax).unwrap_or(u32::MAX),
        };
        Ok(self.quota.as_ref().map_or(host, |quota| quota.limit(host)))
    }

    fn forget(&self, ino: Ino, count: u64) {
        let forgotten = self.nodes().forget(ino, count);
        self.refund_forgotten(&forgotten);
    }

    fn forget_all(&self) {
        let forgotten = self.nodes().forget_all();
        self.refund_forgotten(&forgotten);
    }

    fn create(&self, parent: Ino, name: &[u8], new: &Creation) -> Result<Attributes, Errno> {
        self.make(parent, name, new, None)
    }

    fn create_unnamed(&self, parent: Ino, new: &Creation) -> Result<Attributes, Errno> {
        self.make_unnamed(parent, new)
    }

    fn create_symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        new: &Creation,
    ) -> Result<Attributes, Errno> {
        self.make(parent, name, new, Some(target))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        let (path, directory) = (self.path(ino)?, self.path(parent)?);
        self.naming(&[&directory], || {
            self.check_room_for_name()?;
            let linked = self.link_in(path.as_fd(), directory.as_fd(), (parent, name))?;
            // The first name of a file that had none is counted with it.
            if linked.nlink > 1 {
                self.count_inode();
            }
            Ok(linked)
        })
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.remove(parent, name, false)
    }

    fn remove_directory(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.remove(parent, name, true)
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), how: Rename) -> Result<(), Errno> {
        self.move_name(from, to, how, false)
    }

    fn set_attributes(&self, ino: Ino, changes: &Changes) -> Result<Attributes, Errno> {
        self.apply(ino, changes)?;
        self.attributes(ino)
    }

    fn write(
        &self,
        ino: Ino,
        offset: u64,
        size: u32,
        source: &mut dyn WriteSource,
        drops_set_id: bool,
    ) -> Result<u32, Errno> {
        let file = self.data(ino, true)?;
        if drops_set_id {
            self.drop_set_id(ino)?;
        }
        let count = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let size = u64::from(size);
        let written =
            self.charged((ino, file.as_fd()), offset.saturating_add(size), size, || {
                source.write(file.as_fd(), offset, count).map_err(|error| errno(&error))
            })?;
        u32::try_from(written).map_err(|_| Errno::IO)
    }

    fn set_extended_attribute(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetAttribute,
    ) -> Result<(), Errno> {
        xattr::check(name)?;
        self.set_raw_attribute(ino, name, value, how)
    }

    fn remove_extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        xattr::check(name)?;
        self.remove_raw_attribute(ino, name)
    }

    fn allocate(&self, ino: Ino, mode: u32, offset: u64, size: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits_retain(mode);
        let file = self.data(ino, true)?;
        let frees = mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE);
        let added = if frees { 0 } else { size };
        self.charged((ino, file.as_fd()), offset.saturating_add(size), added, || {
            rustix::fs::fallocate(&*file, mode, offset, size)
        })
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), size: u64) -> Result<u64, Errno> {
        let (source, target) = (self.data(from.0, false)?, self.data(to.0, true)?);
        let target_ino = to.0;
        let (mut from, mut to) = (from.1, to.1);
        let count = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let copied =
            self.charged((target_ino, target.as_fd()), to.saturating_add(size), size, || {
                let (from, to) = (Some(&mut from), Some(&mut to));
                rustix::fs::copy_file_range(&*source, from, &*target, to, count)
            })?;
        Ok(copied as u64)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Errno> {
        let place = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        // Nobody uses the descriptor's own offset.
        rustix::fs::seek(&*self.data(ino, false)?, place)
    }

    fn sync(&self, ino: Ino, only_contents: bool) -> Result<(), Errno> {
        let file = self.open_any(ino)?;
        if only_contents { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) }
    }

    fn sync_all(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(sys::open_directory(self.root.as_fd())?)
    }
}

impl GuestFileSystem for HostDirectory {
    fn save(&self) -> Result<Value, DeviceError> {
        self.save_nodes()
    }

    fn restore(&self, state: Value) -> Result<(), DeviceError> {
        self.restore_nodes(state)
    }
}

impl std::fmt::Debug for HostDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostDirectory").field("options", &self.options).finish_non_exhaustive()
    }
}
