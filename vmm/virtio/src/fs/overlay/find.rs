//! What a name is, when two layers may have a say.

use flist_view::filesystem::{Attributes, Errno, FileSystem, Ino, ROOT};

use super::Overlay;
use super::tree::Place;
use crate::fs::host::{self, is_directory};

/// How often a name is looked for while others change names; then they have to wait.
const FIND_COUNT_MAX: u32 = 8;

/// What a name was found to be. If it is in the upper layer, one lookup there is its own, to be kept
/// ([`Overlay::learn`]) or given back ([`Overlay::drop_found`]).
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) ino: Ino,
    pub(super) place: Place,
    pub(super) attributes: Attributes,
    /// The upper layer has this very name, not only the inode under another one.
    pub(super) is_named_above: bool,
}

impl Overlay {
    /// What `name` is in the directory at `parent`.
    pub(super) fn find(&self, parent: Place, name: &[u8]) -> Result<Found, Errno> {
        if let Some(directory) = parent.upper {
            match self.upper.lookup(directory, name) {
                Ok(attributes) => {
                    let found = self.found_above(parent, name, &attributes);
                    if found.is_err() {
                        self.upper.forget(attributes.ino, 1);
                    }
                    return found;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(directory) = parent.lower else { return Err(Errno::NOENT) };
        self.found_below(&self.lower.lookup(directory, name)?)
    }

    /// Finds `name` of `parent`, and counts it as told to the guest. What was found may change before
    /// it is counted, since others go on meanwhile: then it is found anew.
    pub(super) fn find_and_learn(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        for _ in 0..FIND_COUNT_MAX {
            let (place, version) = {
                let tree = self.tree();
                (tree.place(parent)?, tree.version())
            };
            let found = self.find(place, name)?;
            if let Some(attributes) = self.learn_since(version, parent, name, found)? {
                return Ok(attributes);
            }
        }
        let _changing = self.changing();
        let found = self.find(self.place(parent)?, name)?;
        self.learn(parent, name, found)
    }

    /// As [`learn`](Self::learn); nothing, and nothing is counted, if something was changed since
    /// `version`.
    pub(super) fn learn_since(
        &self,
        version: u64,
        parent: Ino,
        name: &[u8],
        found: Found,
    ) -> Result<Option<Attributes>, Errno> {
        let learned = {
            let mut tree = self.tree();
            let is_current = tree.version() == version;
            is_current.then(|| tree.learn(found.ino, (parent, name), found.place, 1))
        };
        match learned {
            None => {
                self.drop_found(&found);
                Ok(None)
            }
            Some(learned) => {
                self.let_go(learned.inspect_err(|_| self.drop_found(&found))?);
                Ok(Some(found.attributes))
            }
        }
    }

    /// Counts what was found as told to the guest, as `name` of `parent`. Nobody else changes names
    /// meanwhile.
    pub(super) fn learn(
        &self,
        parent: Ino,
        name: &[u8],
        found: Found,
    ) -> Result<Attributes, Errno> {
        let learned = self.tree().learn(found.ino, (parent, name), found.place, 1);
        let extra = learned.inspect_err(|_| self.drop_found(&found))?;
        self.let_go(extra);
        Ok(found.attributes)
    }

    /// What was found is not needed.
    pub(super) fn drop_found(&self, found: &Found) {
        self.let_go(found.place.upper);
    }

    /// Whether the directory at `parent` would show a lower `name` if the upper layer had none.
    pub(super) fn shows_below(&self, parent: Place, name: &[u8]) -> Result<bool, Errno> {
        let Some(directory) = parent.lower else { return Ok(false) };
        match self.lower.lookup(directory, name) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Attributes of `ino`, which is at `place`.
    pub(super) fn attributes_at(&self, ino: Ino, place: Place) -> Result<Attributes, Errno> {
        match place {
            Place { upper: Some(upper), lower } => {
                let attributes = self.upper.attributes(upper)?;
                self.shown(ino, &attributes, lower.is_some())
            }
            Place { lower: Some(lower), .. } => self.shown_below(&self.lower.attributes(lower)?),
            Place { .. } => Err(Errno::STALE),
        }
    }

    /// Attributes of something that is only in the lower layer, some of whose names may be covered.
    fn shown_below(&self, below: &Attributes) -> Result<Attributes, Errno> {
        let mut attributes = *below;
        if below.nlink > 1 && !is_directory(below.mode) {
            attributes.nlink = below.nlink.saturating_sub(self.lost_links(below.ino)?);
        }
        Ok(attributes)
    }

    /// How many names a lower file with several has lost, before it was copied up: the size of an
    /// empty file in `wd/links`.
    pub(super) fn lost_links(&self, lower: Ino) -> Result<u32, Errno> {
        match self.upper.peek(self.links, &lost_name(lower)) {
            Ok(counter) => u32::try_from(counter.size).map_err(|_| Errno::IO),
            Err(Errno::NOENT) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Attributes of something in the upper layer, as the guest sees them.
    fn shown(&self, ino: Ino, above: &Attributes, is_merged: bool) -> Result<Attributes, Errno> {
        let mut attributes = *above;
        attributes.ino = ino;
        if ino <= self.number_base {
            // The same inode as before it was copied up.
            attributes.generation = 0;
        }
        if is_directory(above.mode) {
            if is_merged {
                // Nobody counts subdirectories of both; 1 says so, to `find` for example.
                attributes.nlink = 1;
            }
        } else if ino <= self.number_base && self.lower.attributes(ino)?.nlink > 1 {
            let marks = self.marker.read(&self.upper, above.ino);
            if let Some(lower_links) = marks.ok().and_then(|marks| marks.lower_links) {
                // One is in `wd/links`.
                attributes.nlink = above.nlink.saturating_sub(1).saturating_add(lower_links);
            }
        }
        Ok(attributes)
    }

    /// The upper layer has `name`, with these attributes of its own.
    fn found_above(&self, parent: Place, name: &[u8], above: &Attributes) -> Result<Found, Errno> {
        if is_whiteout(above) {
            return Err(Errno::NOENT);
        }
        let own_number = self.number_base.checked_add(above.ino).ok_or(Errno::OVERFLOW)?;
        let (ino, lower) = match above.mode & host::TYPE_MASK {
            host::DIRECTORY => {
                let lower = self.directory_below(parent, name, above.ino)?;
                (lower.unwrap_or(own_number), lower)
            }
            host::REGULAR => {
                let origin = self.marker.read(&self.upper, above.ino)?.origin;
                // Whoever can write to the volume may have marked it with anything.
                let origin = origin.filter(|origin| self.is_file_below(*origin));
                (origin.unwrap_or(own_number), None)
            }
            _ => (self.known_number(above.ino).unwrap_or(own_number), None),
        };
        let place = Place { upper: Some(above.ino), lower };
        let attributes = self.shown(ino, above, lower.is_some())?;
        Ok(Found { ino, place, attributes, is_named_above: true })
    }

    /// Only the lower layer has the name; perhaps its inode was copied up under another one.
    fn found_below(&self, below: &Attributes) -> Result<Found, Errno> {
        let ino = below.ino;
        let mut found = Found {
            ino,
            place: Place { upper: None, lower: Some(ino) },
            attributes: *below,
            is_named_above: false,
        };
        if below.nlink > 1 && !is_directory(below.mode) {
            match self.upper.lookup(self.links, &link_name(ino)) {
                Ok(above) => {
                    found.place = Place { upper: Some(above.ino), lower: None };
                    found.attributes = self.shown(ino, &above, false)?;
                }
                Err(Errno::NOENT) => found.attributes = self.shown_below(below)?,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The lower directory that shows through the upper directory `above`.
    fn directory_below(
        &self,
        parent: Place,
        name: &[u8],
        above: Ino,
    ) -> Result<Option<Ino>, Errno> {
        let marks = self.marker.read(&self.upper, above)?;
        if marks.is_opaque {
            return Ok(None);
        }
        let below = match marks.redirect.as_deref() {
            None => parent.lower.map(|directory| self.lower.lookup(directory, name)),
            Some([b'/', path @ ..]) => Some(self.walk_below(path)),
            Some(name) => parent.lower.map(|directory| self.lower.lookup(directory, name)),
        };
        match below {
            Some(Ok(below)) if is_directory(below.mode) => Ok(Some(below.ino)),
            None | Some(Ok(_) | Err(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
            Some(Err(error)) => Err(error),
        }
    }

    /// What `path` leads to in the lower layer.
    fn walk_below(&self, path: &[u8]) -> Result<Attributes, Errno> {
        let mut found = self.lower.attributes(ROOT)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if matches!(name, b"." | b"..") {
                return Err(Errno::NOENT);
            }
            found = self.lower.lookup(found.ino, name)?;
        }
        Ok(found)
    }

    /// The path of a directory of the lower layer.
    pub(super) fn path_below(&self, directory: Ino) -> Result<Vec<u8>, Errno> {
        /// Deepest directory that can be moved.
        const DEPTH_MAX: usize = 256;
        let index = self.lower.index();
        let mut names: Vec<&[u8]> = Vec::new();
        let mut ino = directory;
        while ino != ROOT {
            if names.len() >= DEPTH_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            let inode = index.inode(ino).map_err(|_| Errno::IO)?;
            let parent = index.parent(&inode).map_err(|_| Errno::IO)?;
            let above = index.inode(parent).map_err(|_| Errno::IO)?;
            let entries = index.entries(&above).map_err(|_| Errno::IO)?;
            let name = (0..entries.count()).find_map(|number| match entries.get(number) {
                Ok(Some((name, child))) if child == ino => Some(name),
                _ => None,
            });
            names.push(name.ok_or(Errno::IO)?);
            ino = parent;
        }
        Ok(names.iter().rev().flat_map(|name| [&b"/"[..], name].concat()).collect())
    }

    fn is_file_below(&self, ino: Ino) -> bool {
        let below = self.lower.attributes(ino);
        below.is_ok_and(|below| below.mode & host::TYPE_MASK == host::REGULAR)
    }

    /// The number by which the guest knows what cannot be marked.
    fn known_number(&self, upper: Ino) -> Option<Ino> {
        self.tree().number_of(upper)
    }
}

/// Whether this covers a name of the lower layer.
pub(super) const fn is_whiteout(attributes: &Attributes) -> bool {
    attributes.mode & host::TYPE_MASK == host::CHARACTER_DEVICE && matches!(attributes.rdev, (0, 0))
}

/// How a lower file with several names is called in `wd/links`.
pub(super) fn link_name(lower: Ino) -> Vec<u8> {
    lower.to_string().into_bytes()
}

/// How the count of names that it has lost is called.
pub(super) fn lost_name(lower: Ino) -> Vec<u8> {
    format!("{lower}.lost").into_bytes()
}
