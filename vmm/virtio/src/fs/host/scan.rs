//! Counting what a directory holds, by walking through all of it.
//!
//! One directory is open at a time, however deep the tree is: the way back up is `..`, after which it is
//! made sure that it led to where the walk came from. Nothing else may change names meanwhile; whoever
//! does all the same makes the walk fail.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flist_view::filesystem::{Attributes, Errno};

use super::quota::{INODE_SIZE, cost};
use super::sys::{self, Mount, Stat};
use super::{DIRECTORY, Name, REGULAR, is_directory, names, xattr};

/// Deepest directory that is counted.
const DEPTH_MAX: usize = 4096;
/// File systems whose blocks show attributes that do not fit into the inode.
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const F2FS: u64 = 0xf2f5_2010;

/// How it is told what an inode takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// Blocks do not show extended attributes: their sizes are added.
    adds_attributes: bool,
}

impl Measure {
    /// As the file system of `root` needs it.
    pub(super) fn of(root: &OwnedFd) -> Result<Self, Errno> {
        let kind = u64::try_from(rustix::fs::fstatfs(root)?.f_type).unwrap_or(0);
        Ok(Self { adds_attributes: ![EXT4, XFS, F2FS].contains(&kind) })
    }

    /// What the contents and the extended attributes of an open file or directory take.
    pub(super) fn take(self, file: BorrowedFd<'_>) -> Result<u64, Errno> {
        let blocks = sys::size_of_blocks(&sys::stat(file)?.attributes);
        let extended = if self.adds_attributes { xattr::size_of_all(file)? } else { 0 };
        Ok(blocks.saturating_add(extended))
    }

    /// What the extended attributes add, of something with these attributes, which `open` opens.
    pub(super) fn extended_attributes_of(
        self,
        attributes: &Attributes,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<u64, Errno> {
        let can_have_some = matches!(attributes.mode & sys::TYPE_MASK, REGULAR | DIRECTORY);
        if !self.adds_attributes || !can_have_some {
            return Ok(0);
        }
        xattr::size_of_all(open()?.as_fd())
    }
}

/// What all below `root` takes, and the root's own blocks and attributes. The contents of a file with several names
/// count once.
pub(super) fn scan(root: &OwnedFd, measure: &Measure) -> Result<u64, Errno> {
    let start = sys::stat(root.as_fd())?;
    let mut directory = sys::open_directory(root.as_fd())?;
    let mut walk = Walk {
        measure: *measure,
        mount: start.mount,
        used: measure.take(directory.as_fd())?,
        linked: HashSet::new(),
    };
    let mut levels = vec![Level::new(start.attributes.ino)];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.next(&directory)? {
            let Some((below, number)) = walk.count(&directory, &name)? else { continue };
            if levels.len() >= DEPTH_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            directory = below;
            levels.push(Level::new(number));
            continue;
        }
        levels.pop();
        if let Some(above) = levels.last() {
            directory = sys::open_parent(directory.as_fd())?;
            let found = sys::stat(directory.as_fd())?;
            if (found.mount, found.attributes.ino) != (walk.mount, above.number) {
                return Err(Errno::STALE);
            }
        }
    }
    Ok(walk.used)
}

/// A directory on the way down.
struct Level {
    number: u64,
    /// Names that were read and not looked at, the next one at the end.
    names: Vec<Name>,
    /// Where reading goes on.
    offset: u64,
}

impl Level {
    const fn new(number: u64) -> Self {
        Self { number, names: Vec::new(), offset: 0 }
    }

    fn next(&mut self, directory: &OwnedFd) -> Result<Option<Name>, Errno> {
        loop {
            match self.names.pop() {
                Some(name) if name.is_dots() => {}
                Some(name) => return Ok(Some(name)),
                None => {
                    self.names = names(directory, self.offset)?;
                    let Some(last) = self.names.last() else { return Ok(None) };
                    self.offset = last.next_offset;
                    self.names.reverse();
                }
            }
        }
    }
}

/// What was seen so far.
struct Walk {
    measure: Measure,
    mount: Mount,
    used: u64,
    linked: HashSet<u64>,
}

impl Walk {
    /// Counts `name` of `directory`. Returns it, open, and its number, if there is something below it.
    fn count(&mut self, directory: &OwnedFd, name: &Name) -> Result<Option<(OwnedFd, u64)>, Errno> {
        let found = match sys::stat_at(directory.as_fd(), &name.bytes) {
            // Another file system is not this one's affair.
            Ok(Stat { mount, .. }) if mount != self.mount => return Ok(None),
            Ok(stat) => stat.attributes,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_dir = is_directory(found.mode);
        if found.nlink > 1 && !is_dir && !self.linked.insert(found.ino) {
            self.used = self.used.saturating_add(INODE_SIZE);
            return Ok(None);
        }
        self.used = self.used.saturating_add(cost(&found));
        if !is_dir {
            let open = || sys::open_to_read(directory.as_fd(), &name.bytes);
            // What cannot be opened has none that a guest could have set.
            let extended = self.measure.extended_attributes_of(&found, open).unwrap_or(0);
            self.used = self.used.saturating_add(extended);
            return Ok(None);
        }
        let below = sys::open_to_list(directory.as_fd(), &name.bytes)?;
        if sys::stat(below.as_fd())?.attributes.ino != found.ino {
            return Err(Errno::STALE);
        }
        let copy = || below.try_clone().map_err(|error| sys::errno(&error));
        let extended = self.measure.extended_attributes_of(&found, copy).unwrap_or(0);
        self.used = self.used.saturating_add(extended);
        Ok(Some((below, found.ino)))
    }
}
