//! Listing a directory that may be in both layers, without remembering anything.
//!
//! First come the names of the lower layer, at the places that they have there, but for those which
//! the upper layer covers; what the upper layer replaced is shown at the lower name's place. Then come
//! names that only the upper layer has:
//!
//! ```text
//!   offset   0    1     2 … count+1        count+2 …
//!            .    ..    lower names        upper names, by the host's own offsets
//! ```
//!
//! A directory that is copied up while it is listed keeps its offsets, and so do names while others
//! come and go.

use std::collections::HashMap;

use flist_view::filesystem::{Attributes, DirectoryEntry, Errno, FileSystem, Ino, Listing};

use super::find::is_whiteout;
use super::tree::Place;
use super::{Overlay, host};
use crate::fs::host::Name;

/// Upper names that are looked at as a whole, rather than one by one.
const COVER_COUNT_MAX: usize = 256;
/// The host's last offsets may be as large as they get.
const OFFSET_MAX: u64 = i64::MAX.unsigned_abs();
/// `.` and `..`.
const DOTS: u64 = 2;

/// What the upper layer has of a directory.
enum Cover {
    /// Types by name: all of them.
    All(HashMap<Box<[u8]>, u32>),
    /// Too many to look at.
    Many,
}

impl Overlay {
    /// Lists `ino` from `offset` on, until `each` takes no more.
    pub(super) fn list(
        &self,
        ino: Ino,
        offset: u64,
        listing: Listing,
        each: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let (place, parent, version) = {
            let tree = self.tree();
            let node = tree.get(ino)?;
            (node.place, node.parent, tree.version())
        };
        let mut list = List { overlay: self, ino, parent, place, version, listing, each };
        let upper_start = match place.lower {
            Some(lower) => {
                let directory = self.lower.index().inode(lower).map_err(|_| Errno::IO)?;
                let entries = self.lower.index().entries(&directory);
                DOTS + u64::from(entries.map_err(|_| Errno::NOTDIR)?.count())
            }
            None => DOTS,
        };
        if offset < upper_start && !list.lower(offset)? {
            return Ok(());
        }
        match place.upper {
            Some(upper) if offset < OFFSET_MAX => list.upper(upper, upper_start, offset),
            _ => Ok(()),
        }
    }

    /// Whether the directory at `place` shows nothing.
    pub(super) fn is_empty(&self, place: Place) -> Result<bool, Errno> {
        let mut is_empty = true;
        if let Some(upper) = place.upper {
            self.upper.each_name(upper, 0, &mut |name| {
                is_empty = name.is_dots() || self.covers(upper, name)?;
                Ok(is_empty)
            })?;
        }
        let Some(lower) = place.lower.filter(|_| is_empty) else { return Ok(is_empty) };
        let mut result = Ok(());
        self.lower.read_directory(lower, DOTS, Listing::Names, &mut |entry| match place
            .upper
            .map(|upper| self.has_whiteout(upper, entry.name))
        {
            Some(Ok(true)) => true,
            Some(Err(error)) => {
                result = Err(error);
                false
            }
            None | Some(Ok(false)) => {
                is_empty = false;
                false
            }
        })?;
        result.map(|()| is_empty)
    }

    /// Whether an upper name is a whiteout.
    fn covers(&self, directory: Ino, name: &Name) -> Result<bool, Errno> {
        if name.kind != host::CHARACTER_DEVICE {
            return Ok(false);
        }
        Ok(is_whiteout(&self.upper.peek(directory, &name.bytes)?))
    }

    fn cover(&self, place: Place) -> Result<Cover, Errno> {
        let mut names = HashMap::new();
        if let Some(upper) = place.upper {
            self.upper.each_name(upper, 0, &mut |name| {
                names.insert(name.bytes.clone(), name.kind);
                Ok(names.len() <= COVER_COUNT_MAX)
            })?;
        }
        Ok(if names.len() > COVER_COUNT_MAX { Cover::Many } else { Cover::All(names) })
    }
}

/// A listing under way.
struct List<'a> {
    overlay: &'a Overlay,
    ino: Ino,
    parent: Ino,
    place: Place,
    /// Of the tree, when the listing began.
    version: u64,
    listing: Listing,
    each: &'a mut dyn FnMut(DirectoryEntry<'_>) -> bool,
}

impl List<'_> {
    /// Dots and lower names from `offset` on. False if no more are wanted.
    fn lower(&mut self, offset: u64) -> Result<bool, Errno> {
        for (at, name, ino) in [(0, &b"."[..], self.ino), (1, b"..", self.parent)] {
            let mode = host::DIRECTORY;
            let attributes = Attributes { ino, mode, ..Attributes::default() };
            if offset <= at
                && !(self.each)(DirectoryEntry { next_offset: at + 1, name, attributes })
            {
                return Ok(false);
            }
        }
        let Some(lower) = self.place.lower else { return Ok(true) };
        let cover = self.overlay.cover(self.place)?;
        let mut result = Ok(true);
        let overlay = self.overlay;
        overlay.lower.read_directory(lower, offset.max(DOTS), Listing::Names, &mut |entry| {
            result = self.lower_name(&cover, &entry);
            matches!(result, Ok(true))
        })?;
        result
    }

    /// One lower name. False if it was not taken.
    fn lower_name(&mut self, cover: &Cover, entry: &DirectoryEntry<'_>) -> Result<bool, Errno> {
        let may_be_covered = match cover {
            Cover::All(names) => names.contains_key(entry.name),
            Cover::Many => true,
        };
        let is_file = entry.attributes.mode & host::TYPE_MASK != host::DIRECTORY;
        let may_be_elsewhere = is_file && entry.attributes.nlink > 1;
        let counts = self.listing == Listing::Counted;
        if may_be_covered || (counts && may_be_elsewhere) {
            return self.find_and_put(entry.name, entry.next_offset);
        }
        if !counts {
            return Ok((self.each)(*entry));
        }
        let ino = entry.attributes.ino;
        let place = Place { upper: None, lower: Some(ino) };
        let is_learned = {
            let mut tree = self.overlay.tree();
            // Known from before, it has no copy above: the upper layer would have the name.
            let is_current = tree.version() == self.version;
            if is_current {
                tree.learn(ino, (self.ino, entry.name), place, 1)?;
            }
            is_current
        };
        if !is_learned {
            return self.find_and_put(entry.name, entry.next_offset);
        }
        Ok(self.put_counted(ino, *entry))
    }

    /// Upper names which the lower layer does not have, from `offset` on.
    fn upper(&mut self, upper: Ino, start: u64, offset: u64) -> Result<(), Errno> {
        let overlay = self.overlay;
        overlay.upper.each_name(upper, offset.saturating_sub(start), &mut |name| {
            if name.is_dots() || overlay.shows_below(self.place, &name.bytes)? {
                return Ok(true);
            }
            let next_offset = name.next_offset.saturating_add(start).min(OFFSET_MAX);
            if self.listing == Listing::Names {
                if overlay.covers(upper, name)? {
                    return Ok(true);
                }
                // Where it came from is not looked up for a plain list.
                let ino = overlay.number_base.saturating_add(overlay.upper.number_of(name));
                let attributes = Attributes { ino, mode: name.kind, ..Attributes::default() };
                return Ok((self.each)(DirectoryEntry {
                    next_offset,
                    name: &name.bytes,
                    attributes,
                }));
            }
            self.find_and_put(&name.bytes, next_offset)
        })
    }

    /// Puts a name by what it is. False if it was not taken; a whiteout is nothing to be taken.
    fn find_and_put(&mut self, name: &[u8], next_offset: u64) -> Result<bool, Errno> {
        let found = if self.listing == Listing::Names {
            self.overlay.find(self.place, name).map(|found| {
                self.overlay.drop_found(&found);
                found.attributes
            })
        } else {
            self.overlay.find_and_learn(self.ino, name)
        };
        let attributes = match found {
            Ok(attributes) => attributes,
            Err(Errno::NOENT | Errno::XDEV) => return Ok(true),
            Err(error) => return Err(error),
        };
        let entry = DirectoryEntry { next_offset, name, attributes };
        if self.listing == Listing::Names {
            return Ok((self.each)(entry));
        }
        Ok(self.put_counted(attributes.ino, entry))
    }

    /// Puts an entry that was counted; if it was not taken, it is not known.
    fn put_counted(&mut self, ino: Ino, entry: DirectoryEntry<'_>) -> bool {
        let is_taken = (self.each)(entry);
        if !is_taken {
            self.overlay.forget(ino, 1);
        }
        is_taken
    }
}
