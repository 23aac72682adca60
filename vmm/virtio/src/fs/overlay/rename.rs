//! Moving names within and between directories that may show the lower layer.
//!
//! Both ends are brought to the upper layer first; what is moved then is a name of the upper layer.
//!
//! | what is moved | is made to | because |
//! |---|---|---|
//! | a directory that shows a lower one | redirect to it | it shows the same one at its new place |
//! | another directory, to where a lower name is | be opaque | that must not show through |
//! | away from a lower name | leave a whiteout | that must not appear again |
//!
//! `RENAME_WHITEOUT` makes the move and the whiteout one step. A directory cannot replace a whiteout or
//! a directory with whiteouts in it: the two are exchanged, and then the other is taken away.

use flist_view::filesystem::{Errno, FileSystem, Ino, Rename};

use super::Overlay;
use super::find::Found;
use crate::fs::host::is_directory;

/// One end of a move.
struct End<'a> {
    /// The guest's number of the directory.
    parent: Ino,
    name: &'a [u8],
    /// The directory in the upper layer.
    directory: Ino,
    /// The lower layer has this name, and shows it if the upper one does not.
    shows_below: bool,
}

impl Overlay {
    /// Moves `from` to `to`.
    pub(super) fn move_name(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: Rename,
    ) -> Result<(), Errno> {
        let _changing = self.changing();
        let (source_place, target_place) = (self.place(from.0)?, self.place(to.0)?);
        let source = self.find(source_place, from.1)?;
        // The guest knows both, or does for as long as this takes.
        self.learn(from.0, from.1, source)?;
        let result = match self.find(target_place, to.1) {
            Ok(target) => self.learn(to.0, to.1, target).and_then(|_| {
                let result = self.move_found(from, to, how, source, Some(target));
                self.forget(target.ino, 1);
                result
            }),
            Err(Errno::NOENT) => self.move_found(from, to, how, source, None),
            Err(error) => Err(error),
        };
        self.forget(source.ino, 1);
        result
    }

    fn move_found(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: Rename,
        source: Found,
        target: Option<Found>,
    ) -> Result<(), Errno> {
        match (&target, how) {
            (None, Rename::Exchange) => return Err(Errno::NOENT),
            (Some(_), Rename::NoReplace) => return Err(Errno::EXIST),
            (Some(target), _) if target.ino == source.ino => return Ok(()),
            (Some(target), Rename::Replace) => self.check_replaced(&source, target)?,
            (Some(_), Rename::Exchange) | (None, _) => {}
        }
        let (from, to) = (self.end(from)?, self.end(to)?);
        self.prepare(&from, &source, &to)?;
        if let (Some(target), Rename::Exchange) = (&target, how) {
            self.prepare(&to, target, &from)?;
            let (a, b) = ((from.directory, from.name), (to.directory, to.name));
            self.upper.move_name(a, b, Rename::Exchange, false)?;
            let mut tree = self.tree();
            tree.moved(target.ino, from.parent, from.name);
            tree.moved(source.ino, to.parent, to.name);
            return Ok(());
        }
        self.move_over(&from, &to, &source, target.as_ref())?;
        if let Some(target) = &target {
            self.lost_name(target, to.shows_below && !target.is_named_above)?;
            self.tree().removed(target.ino, to.parent, to.name);
        }
        self.tree().moved(source.ino, to.parent, to.name);
        Ok(())
    }

    /// What may take whose place.
    fn check_replaced(&self, source: &Found, target: &Found) -> Result<(), Errno> {
        match (is_directory(source.attributes.mode), is_directory(target.attributes.mode)) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) if !self.is_empty(target.place)? => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    fn end<'a>(&self, (parent, name): (Ino, &'a [u8])) -> Result<End<'a>, Errno> {
        let directory = self.copy_up(parent, 0)?;
        let place = self.place(parent)?;
        let shows_below = self.shows_below(place, name)?;
        Ok(End { parent, name, directory, shows_below })
    }

    /// Makes `found`, at `here`, a name of the upper layer that can be moved to `there`.
    fn prepare(&self, here: &End<'_>, found: &Found, there: &End<'_>) -> Result<(), Errno> {
        let upper = self.name_above(here, found)?;
        if !is_directory(found.attributes.mode) {
            return Ok(());
        }
        if let Some(lower) = found.place.lower {
            let path = self.path_below(lower)?;
            return self.marker.set_redirect(&self.upper, upper, &path);
        }
        if there.shows_below {
            return self.marker.set_opaque(&self.upper, upper);
        }
        Ok(())
    }

    /// Brings `found` up under the name `here`. Returns its number above.
    fn name_above(&self, here: &End<'_>, found: &Found) -> Result<Ino, Errno> {
        if let (true, Some(upper)) = (found.is_named_above, found.place.upper) {
            return Ok(upper);
        }
        if let Some(upper) = found.place.upper {
            // Copied up under another of its names.
            self.upper.link(upper, here.directory, here.name)?;
            self.upper.forget(upper, 1);
            let lower_links = self.marker.read(&self.upper, upper)?.lower_links;
            let left = lower_links.unwrap_or(0).saturating_sub(1);
            self.marker.set_lower_links(&self.upper, upper, left)?;
            return Ok(upper);
        }
        self.copy_up(found.ino, u64::MAX)
    }

    /// Moves a name of the upper layer over whatever is at the other end.
    fn move_over(
        &self,
        from: &End<'_>,
        to: &End<'_>,
        source: &Found,
        target: Option<&Found>,
    ) -> Result<(), Errno> {
        let (a, b) = ((from.directory, from.name), (to.directory, to.name));
        let replaced_directory =
            target.filter(|found| found.is_named_above && is_directory(found.attributes.mode));
        if let Some(target) = replaced_directory {
            return self.replace_directory(from, to, target);
        }
        if is_directory(source.attributes.mode) && self.has_whiteout(to.directory, to.name)? {
            self.upper.move_name(a, b, Rename::Exchange, false)?;
            if !from.shows_below {
                self.upper.unlink(from.directory, from.name)?;
            }
            return Ok(());
        }
        self.upper.move_name(a, b, Rename::Replace, from.shows_below)
    }

    /// Replaces a directory which shows nothing, but may have whiteouts in it.
    fn replace_directory(&self, from: &End<'_>, to: &End<'_>, target: &Found) -> Result<(), Errno> {
        let (a, b) = ((from.directory, from.name), (to.directory, to.name));
        if let Some(upper) = target.place.upper {
            // For the moment in which it is at the other place.
            self.marker.set_opaque(&self.upper, upper)?;
        }
        self.upper.move_name(a, b, Rename::Exchange, false)?;
        let temporary = self.temporary_name();
        let away = (self.temporary, &*temporary);
        self.upper.move_name(a, away, Rename::Replace, from.shows_below)?;
        self.discard_tree(&temporary, target);
        Ok(())
    }
}
