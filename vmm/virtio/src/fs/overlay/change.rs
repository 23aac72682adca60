//! Making and removing names, with whiteouts where the lower layer would show through.

use flist_view::filesystem::{Attributes, Changes, Creation, Errno, FileSystem, Ino, Rename};

use super::find::{Found, is_whiteout, link_name, lost_name};
use super::tree::Place;
use super::{Overlay, host};
use crate::fs::host::is_directory;

impl Overlay {
    /// Makes whatever `new` says, a link to `target` if there is one.
    pub(super) fn make(
        &self,
        parent: Ino,
        name: &[u8],
        new: &Creation,
        target: Option<&[u8]>,
    ) -> Result<Attributes, Errno> {
        let _changing = self.changing();
        let directory = self.directory_for(parent, name)?;
        let make = |parent, name: &[u8], new: &Creation| match target {
            Some(target) => self.upper.create_symlink(parent, name, target, new),
            None => self.upper.create(parent, name, new),
        };
        let made = if self.has_whiteout(directory, name)? {
            let new = self.as_in(directory, new)?;
            let temporary = self.temporary_name();
            let made = make(self.temporary, &temporary, &new)?;
            let placed = if is_directory(new.mode) {
                self.marker.set_opaque(&self.upper, made.ino)
            } else {
                Ok(())
            };
            let placed =
                placed.and_then(|()| self.replace_whiteout(&temporary, directory, name, &new));
            if let Err(error) = placed {
                self.discard(&temporary, is_directory(new.mode));
                self.upper.forget(made.ino, 1);
                return Err(error);
            }
            made
        } else {
            make(directory, name, new)?
        };
        self.learn_made(parent, name, &made)
    }

    /// Makes a file without a name.
    pub(super) fn make_unnamed(&self, parent: Ino, new: &Creation) -> Result<Attributes, Errno> {
        let directory = self.upper_of(parent)?;
        let made = self.upper.create_unnamed(directory, new)?;
        self.learn_made(parent, b"", &made)
    }

    /// Gives `ino` another name.
    pub(super) fn add_link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        let _changing = self.changing();
        let upper = self.copy_up(ino, u64::MAX)?;
        let directory = self.directory_for(parent, name)?;
        if self.has_whiteout(directory, name)? {
            let temporary = self.temporary_name();
            self.upper.link(upper, self.temporary, &temporary)?;
            let from = (self.temporary, &*temporary);
            let placed = self.upper.move_name(from, (directory, name), Rename::Replace, false);
            if let Err(error) = placed {
                self.discard(&temporary, false);
                self.upper.forget(upper, 1);
                return Err(error);
            }
        } else {
            self.upper.link(upper, directory, name)?;
        }
        let place = Place { upper: Some(upper), lower: None };
        let learned = self.tree().learn(ino, (parent, name), place, 1);
        // It was held before, unless the guest has forgotten it meanwhile.
        self.let_go(learned.inspect_err(|_| self.upper.forget(upper, 1))?);
        self.attributes(ino)
    }

    /// Takes a name away.
    pub(super) fn remove(&self, parent: Ino, name: &[u8], is_dir: bool) -> Result<(), Errno> {
        let _changing = self.changing();
        let place = self.place(parent)?;
        let found = self.find(place, name)?;
        let result = self.remove_found(parent, place, name, &found, is_dir);
        self.drop_found(&found);
        result
    }

    fn remove_found(
        &self,
        parent: Ino,
        place: Place,
        name: &[u8],
        found: &Found,
        is_dir: bool,
    ) -> Result<(), Errno> {
        match (is_dir, is_directory(found.attributes.mode)) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) if !self.is_empty(found.place)? => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let shows_below = self.shows_below(place, name)?;
        let directory = self.copy_up(parent, 0)?;
        if !found.is_named_above {
            self.make_whiteout(directory, name)?;
        } else if shows_below || is_dir {
            // A directory may have whiteouts in it, so it goes as a whole.
            let temporary = self.temporary_name();
            let to = (self.temporary, &*temporary);
            self.upper.move_name((directory, name), to, Rename::Replace, shows_below)?;
            self.discard_tree(&temporary, found);
        } else {
            self.upper.unlink(directory, name)?;
        }
        self.lost_name(found, shows_below && !found.is_named_above)?;
        self.tree().removed(found.ino, parent, name);
        Ok(())
    }

    /// `found` has lost a name, one of the lower layer's if `was_below`. Drops its link in `wd/links`
    /// with its last name.
    pub(super) fn lost_name(&self, found: &Found, was_below: bool) -> Result<(), Errno> {
        let Some(upper) = found.place.upper else {
            return if was_below { self.lose_link(found.ino) } else { Ok(()) };
        };
        if is_directory(found.attributes.mode) || !self.has_links_below(found.ino) {
            return Ok(());
        }
        let Some(mut lower_links) = self.marker.read(&self.upper, upper)?.lower_links else {
            return Ok(());
        };
        if was_below {
            lower_links = lower_links.saturating_sub(1);
            self.marker.set_lower_links(&self.upper, upper, lower_links)?;
        }
        if lower_links == 0 && self.upper.attributes(upper)?.nlink == 1 {
            self.upper.unlink(self.links, &link_name(found.ino))?;
        }
        Ok(())
    }

    /// Counts one name less of a lower file that has several.
    fn lose_link(&self, lower: Ino) -> Result<(), Errno> {
        if !self.has_links_below(lower) {
            return Ok(());
        }
        let name = lost_name(lower);
        let count = self.lost_links(lower)?;
        let counter = match self.upper.lookup(self.links, &name) {
            Err(Errno::NOENT) => self.upper.create(self.links, &name, &own(host::REGULAR))?,
            counter => counter?,
        };
        let changes = Changes { size: Some(u64::from(count) + 1), ..Changes::default() };
        let changed = self.upper.set_attributes(counter.ino, &changes);
        self.upper.forget(counter.ino, 1);
        changed.map(drop)
    }

    /// Whether `ino` came from the lower layer and had several names there.
    pub(super) fn has_links_below(&self, ino: Ino) -> bool {
        ino <= self.number_base && self.lower.attributes(ino).is_ok_and(|below| below.nlink > 1)
    }

    /// The upper directory in which `name` of `parent` is to be made; `EEXIST` if it is there.
    fn directory_for(&self, parent: Ino, name: &[u8]) -> Result<Ino, Errno> {
        match self.find(self.place(parent)?, name) {
            Ok(found) => {
                self.drop_found(&found);
                Err(Errno::EXIST)
            }
            Err(Errno::NOENT) => self.copy_up(parent, 0),
            Err(error) => Err(error),
        }
    }

    /// Whether the upper layer covers `name`. Whatever else it is, the caller has seen.
    pub(super) fn has_whiteout(&self, directory: Ino, name: &[u8]) -> Result<bool, Errno> {
        match self.upper.peek(directory, name) {
            Ok(attributes) => Ok(is_whiteout(&attributes)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Covers `name` of the lower layer.
    pub(super) fn make_whiteout(&self, directory: Ino, name: &[u8]) -> Result<(), Errno> {
        let made = self.upper.create(directory, name, &own(host::CHARACTER_DEVICE))?;
        self.upper.forget(made.ino, 1);
        Ok(())
    }

    /// Moves what was made under a temporary name over the whiteout `name`.
    fn replace_whiteout(
        &self,
        temporary: &[u8],
        directory: Ino,
        name: &[u8],
        new: &Creation,
    ) -> Result<(), Errno> {
        let (from, to) = ((self.temporary, temporary), (directory, name));
        if !is_directory(new.mode) {
            return self.upper.move_name(from, to, Rename::Replace, false);
        }
        self.upper.move_name(from, to, Rename::Exchange, false)?;
        self.discard(temporary, false);
        Ok(())
    }

    /// What is made elsewhere and then moved to `directory` does not inherit from it by itself.
    fn as_in(&self, directory: Ino, new: &Creation) -> Result<Creation, Errno> {
        let parent = self.upper.attributes(directory)?;
        let mut new = *new;
        if parent.mode & host::SET_GID != 0 {
            new.gid = parent.gid;
            new.mode |= if is_directory(new.mode) { host::SET_GID } else { 0 };
        }
        Ok(new)
    }

    /// Counts what was made in the upper layer, and is held there, as told to the guest.
    fn learn_made(&self, parent: Ino, name: &[u8], made: &Attributes) -> Result<Attributes, Errno> {
        let ino = self.number_base.checked_add(made.ino).ok_or(Errno::OVERFLOW)?;
        let found = Found {
            ino,
            place: Place { upper: Some(made.ino), lower: None },
            attributes: Attributes { ino, ..*made },
            is_named_above: true,
        };
        self.learn(parent, name, found)
    }

    /// Removes what was moved to the temporary folder; a directory with the whiteouts in it.
    pub(super) fn discard_tree(&self, temporary: &[u8], found: &Found) {
        let is_dir = is_directory(found.attributes.mode);
        if let Some(upper) = found.place.upper.filter(|_| is_dir)
            && let Err(error) = self.clear_directory(upper)
        {
            tracing::warn!(%error, "a directory that was removed from an overlay keeps whiteouts");
        }
        self.discard(temporary, is_dir);
    }

    /// Removes all that is in an upper directory, which shows nothing to the guest.
    pub(super) fn clear_directory(&self, directory: Ino) -> Result<(), Errno> {
        /// Leftovers are copies, whiteouts, and directories with whiteouts in them; deeper ones are
        /// none of ours.
        const DEPTH_MAX: usize = 8;
        self.clear_to(directory, DEPTH_MAX)
    }

    fn clear_to(&self, directory: Ino, depth: usize) -> Result<(), Errno> {
        let mut names = Vec::new();
        self.upper.each_name(directory, 0, &mut |name| {
            if !name.is_dots() {
                names.push((name.bytes.clone(), name.kind == host::DIRECTORY));
            }
            Ok(true)
        })?;
        for (name, is_dir) in names {
            if !is_dir {
                self.upper.unlink(directory, &name)?;
                continue;
            }
            let below = self.upper.lookup(directory, &name)?.ino;
            let cleared =
                if depth > 0 { self.clear_to(below, depth - 1) } else { Err(Errno::NOTEMPTY) };
            self.upper.forget(below, 1);
            cleared?;
            self.upper.remove_directory(directory, &name)?;
        }
        Ok(())
    }
}

/// Something of ours, which the guest does not see; of mode 0 and device 0:0, a whiteout if it is a
/// character device.
fn own(kind: u32) -> Creation {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Creation { mode: kind, rdev: (0, 0), uid: uid.as_raw(), gid: gid.as_raw() }
}
