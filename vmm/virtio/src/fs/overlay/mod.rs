//! A writable file system made of two layers: an image below, a directory of the host above.
//!
//! The guest sees one tree. What it changes is in the upper layer, and the image stays as it is:
//!
//! ```text
//!   VOLUME/rw   what was changed or made: files, directories,      ┐
//!               whiteouts (character devices 0:0) over what        ├─ upper layer
//!               was removed below                                  ┘
//!   VOLUME/wd   work: copies on their way up, links of files with several names
//!   image       everything else                                    ── lower layer
//! ```
//!
//! This is the layout of Linux's overlayfs, with its whiteouts and marks (`marks`), so that it can
//! mount the same layers, and volumes written by it work here. Inside:
//!
//! - `find` says what a name is, looking at both layers;
//! - `copy_up` brings an inode up before its first change: data, owner, mode, times, attributes; made
//!   under a temporary name in `wd`, synced if it has contents, and then renamed to its place, so that
//!   after a crash it is there whole or not at all;
//! - `change` and `rename` make, remove and move names, and leave whiteouts where the lower layer
//!   would show through. A directory of the lower layer is moved by a `redirect`: nothing in it is
//!   copied;
//! - `listing` merges both layers without keeping anything: places in a listing stay valid.
//!
//! An inode that came from the lower layer keeps its number there for ever, also when it was copied up
//! (marked by `vmm.origin`; symbolic links and special files, which cannot be marked, only until the
//! guest is started anew). Others have their number of the host, moved beyond those of the image. There
//! are no handles, so whoever has a file open sees it in the upper layer from the moment it is there.
//!
//! A lower file with several names is one file here too: its copy is linked in `wd/links` by its number
//! below, and whoever looks up another of its names is led there. (Symbolic links and special files with
//! several names are copied for each name.)
//!
//! Reading metadata of what is only below costs a look at the upper directory if there is one, and
//! nothing at all if there is not.
//!
//! One change of names or copy up is done at a time; reading and writing what is in place goes on.

mod change;
mod copy_up;
mod find;
mod listing;
mod marks;
mod rename;
mod state;
#[cfg(test)]
mod tests;
mod tree;

pub use marks::MarkPrefix;

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flist_view::filesystem::{
    Attributes, Changes, Creation, DirectoryEntry, Errno, FileSystem, Ino, Listing, Policy, ROOT,
    ReadSink, Rename, Seek, SetAttribute, Statistics, WriteSource,
};
use flist_view::view::FlistView;
use serde_json::Value;

use self::marks::Marker;
use self::tree::{Place, Tree};
use super::GuestFileSystem;
use super::host::{self, HostDirectory, HostOptions};
use crate::DeviceError;

/// The layers' folders in a volume.
const UPPER_NAME: &[u8] = b"rw";
const WORK_NAME: &[u8] = b"wd";
/// What is in the second one.
const TEMPORARY_NAME: &[u8] = b"temporary";
const LINKS_NAME: &[u8] = b"links";

/// How an overlay is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Where the upper layer's marks are.
    pub marks: MarkPrefix,
    /// The most that the volume may take, in bytes.
    pub quota: Option<u64>,
}

/// An image with a directory above it.
pub struct Overlay {
    lower: FlistView,
    /// The volume: both folders are directories of one host directory, so that everything below is a
    /// move within it.
    upper: HostDirectory,
    marker: Marker,
    /// Where temporary names are made.
    temporary: Ino,
    /// Copies of lower files with several names, by their number below.
    links: Ino,
    /// Numbers of the upper layer begin after those of the lower one.
    number_base: u64,
    next_temporary: AtomicU64,
    tree: Mutex<Tree>,
    changing: Mutex<()>,
}

impl Overlay {
    /// An overlay of `lower` and the volume at `volume`, whose folders are made if they are missing.
    /// Call it in the process that serves, while there is a `/proc`.
    ///
    /// # Errors
    /// When the volume cannot be used.
    pub fn open(
        lower: FlistView,
        volume: &Path,
        options: OverlayOptions,
    ) -> Result<Self, DeviceError> {
        let OverlayOptions { marks, quota } = options;
        let upper = HostDirectory::open(volume, HostOptions { quota, ..HostOptions::default() })?;
        Self::new(lower, upper, marks).map_err(|error| DeviceError::Host {
            what: format!("{} cannot be the upper layer of an overlay", volume.display()),
            source: error.into(),
        })
    }

    fn new(lower: FlistView, upper: HostDirectory, prefix: MarkPrefix) -> Result<Self, Errno> {
        let mut image = [0; 8];
        image.copy_from_slice(&lower.index().image_hash()[..8]);
        let number_base = u64::from(lower.index().inode_count());
        let like_root = lower.attributes(ROOT)?;
        let (root, is_new) = folder(&upper, ROOT, UPPER_NAME, like_root.mode)?;
        if is_new {
            upper.set_attributes(root, &copy_up::ownership(&like_root))?;
        }
        let (work, _) = folder(&upper, ROOT, WORK_NAME, 0o700)?;
        let (temporary, _) = folder(&upper, work, TEMPORARY_NAME, 0o700)?;
        let (links, _) = folder(&upper, work, LINKS_NAME, 0o700)?;
        let overlay = Self {
            lower,
            upper,
            marker: Marker::new(prefix, image),
            temporary,
            links,
            number_base,
            next_temporary: AtomicU64::new(0),
            tree: Mutex::new(Tree::new(Place { upper: Some(root), lower: Some(ROOT) })),
            changing: Mutex::new(()),
        };
        // Fails here and now if marks cannot be made.
        overlay.marker.set_opaque(&overlay.upper, temporary)?;
        overlay.clear_directory(temporary)?;
        Ok(overlay)
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `ino` is.
    fn place(&self, ino: Ino) -> Result<Place, Errno> {
        self.tree().place(ino)
    }

    /// Held while names change or something is copied up.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `ino` is in the upper layer, to which it is copied if it is not there.
    fn upper_of(&self, ino: Ino) -> Result<Ino, Errno> {
        if let Some(upper) = self.place(ino)?.upper {
            return Ok(upper);
        }
        let _changing = self.changing();
        self.copy_up(ino, u64::MAX)
    }

    /// Tells the upper layer that a number of its is not needed any more.
    fn let_go(&self, upper: impl IntoIterator<Item = Ino>) {
        for ino in upper {
            self.upper.forget(ino, 1);
        }
    }

    /// Refuses attributes that are not the guest's affair.
    fn check_attribute(&self, name: &[u8]) -> Result<(), Errno> {
        if self.marker.is_private(name) {
            return Err(Errno::OPNOTSUPP);
        }
        host::check_attribute(name)
    }
}

/// The directory `name` of `parent`, and whether it was made just now.
fn folder(
    upper: &HostDirectory,
    parent: Ino,
    name: &[u8],
    mode: u32,
) -> Result<(Ino, bool), Errno> {
    match upper.lookup(parent, name) {
        Ok(found) if host::is_directory(found.mode) => Ok((found.ino, false)),
        Ok(_) => Err(Errno::NOTDIR),
        Err(Errno::NOENT) => {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            let mode = host::DIRECTORY | mode & 0o7777;
            let new = Creation { mode, rdev: (0, 0), uid: uid.as_raw(), gid: gid.as_raw() };
            Ok((upper.create(parent, name, &new)?.ino, true))
        }
        Err(error) => Err(error),
    }
}

impl FileSystem for Overlay {
    fn policy(&self) -> Policy {
        Policy {
            valid: Policy::VALID_MAX,
            is_writable: true,
            is_shared: false,
            has_lasting_numbers: false,
        }
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        if matches!(name, b"." | b"..") {
            return Err(Errno::INVAL);
        }
        self.find_and_learn(parent, name)
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        let (place, has_name) = {
            let tree = self.tree();
            let node = tree.get(ino)?;
            (node.place, !node.name.is_empty())
        };
        let mut attributes = self.attributes_at(ino, place)?;
        if !has_name && place.upper.is_none() && attributes.nlink == 1 {
            // Its one name was covered, but the image does not know.
            attributes.nlink = 0;
        }
        Ok(attributes)
    }

    fn read_directory(
        &self,
        ino: Ino,
        offset: u64,
        listing: Listing,
        each: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.list(ino, offset, listing, each)
    }

    fn read(&self, ino: Ino, offset: u64, size: u32, sink: &mut dyn ReadSink) -> Result<(), Errno> {
        match self.place(ino)? {
            Place { upper: Some(upper), .. } => self.upper.read(upper, offset, size, sink),
            Place { lower: Some(lower), .. } => self.lower.read(lower, offset, size, sink),
            Place { .. } => Err(Errno::STALE),
        }
    }

    fn read_link(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno> {
        match self.place(ino)? {
            Place { upper: Some(upper), .. } => self.upper.read_link(upper),
            Place { lower: Some(lower), .. } => self.lower.read_link(lower),
            Place { .. } => Err(Errno::STALE),
        }
    }

    fn extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        self.check_attribute(name)?;
        match self.place(ino)? {
            Place { upper: Some(upper), .. } => self.upper.extended_attribute(upper, name),
            Place { lower: Some(lower), .. } => {
                // "Never ask again" would go for the upper layer as well.
                let value = self.lower.extended_attribute(lower, name);
                value.map_err(|error| if error == Errno::NOSYS { Errno::NODATA } else { error })
            }
            Place { .. } => Err(Errno::STALE),
        }
    }

    fn extended_attribute_names(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        let names = match self.place(ino)? {
            Place { upper: Some(upper), .. } => self.upper.extended_attribute_names(upper)?,
            Place { lower: Some(lower), .. } => match self.lower.extended_attribute_names(lower) {
                Err(Errno::NOSYS) => Vec::new(),
                names => names?,
            },
            Place { .. } => return Err(Errno::STALE),
        };
        let names = names.split_inclusive(|byte| *byte == 0);
        Ok(names.filter(|name| !self.marker.is_private(name)).flatten().copied().collect())
    }

    fn statistics(&self) -> Result<Statistics, Errno> {
        self.upper.statistics()
    }

    fn forget(&self, ino: Ino, count: u64) {
        let released = self.tree().forget(ino, count);
        self.let_go(released);
    }

    fn forget_all(&self) {
        let released = self.tree().forget_all();
        self.let_go(released);
    }

    fn create(&self, parent: Ino, name: &[u8], new: &Creation) -> Result<Attributes, Errno> {
        if new.mode & host::TYPE_MASK == host::CHARACTER_DEVICE && new.rdev == (0, 0) {
            // Nobody could tell it from a whiteout: overlayfs refuses it, too.
            return Err(Errno::PERM);
        }
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
        self.add_link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.remove(parent, name, false)
    }

    fn remove_directory(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.remove(parent, name, true)
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), how: Rename) -> Result<(), Errno> {
        self.move_name(from, to, how)
    }

    fn set_attributes(&self, ino: Ino, changes: &Changes) -> Result<Attributes, Errno> {
        let place = self.place(ino)?;
        if place.upper.is_none() {
            let _changing = self.changing();
            // What will be cut off need not be copied.
            self.copy_up(ino, changes.size.unwrap_or(u64::MAX))?;
        }
        self.upper.set_attributes(self.upper_of(ino)?, changes)?;
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
        self.upper.write(self.upper_of(ino)?, offset, size, source, drops_set_id)
    }

    fn set_extended_attribute(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetAttribute,
    ) -> Result<(), Errno> {
        self.check_attribute(name)?;
        self.upper.set_extended_attribute(self.upper_of(ino)?, name, value, how)
    }

    fn remove_extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        // Copied up only if there is something to remove.
        self.extended_attribute(ino, name)?;
        self.upper.remove_extended_attribute(self.upper_of(ino)?, name)
    }

    fn allocate(&self, ino: Ino, mode: u32, offset: u64, size: u64) -> Result<(), Errno> {
        self.upper.allocate(self.upper_of(ino)?, mode, offset, size)
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), size: u64) -> Result<u64, Errno> {
        // The client reads and writes instead.
        let source = self.place(from.0)?.upper.ok_or(Errno::OPNOTSUPP)?;
        self.upper.copy_range((source, from.1), (self.upper_of(to.0)?, to.1), size)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Errno> {
        if let Some(upper) = self.place(ino)?.upper {
            return self.upper.seek(upper, offset, what);
        }
        let size = self.attributes(ino)?.size;
        match what {
            _ if offset >= size => Err(Errno::NXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }

    fn sync(&self, ino: Ino, only_contents: bool) -> Result<(), Errno> {
        // What is below was never written.
        let upper = self.place(ino)?.upper;
        upper.map_or(Ok(()), |upper| self.upper.sync(upper, only_contents))
    }

    fn sync_all(&self) -> Result<(), Errno> {
        self.upper.sync_all()
    }
}

impl GuestFileSystem for Overlay {
    fn save(&self) -> Result<Value, DeviceError> {
        self.save_tree()
    }

    fn restore(&self, state: Value) -> Result<(), DeviceError> {
        self.restore_tree(state)
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("marker", &self.marker).finish_non_exhaustive()
    }
}
