//! What an overlay knows of the inodes that its guest has looked up: by which name, and where in the
//! two layers.

use std::collections::HashMap;

use flist_view::filesystem::{Errno, Ino, ROOT};

/// Most inodes that a guest may remember.
pub(super) const NODE_COUNT_MAX: usize = 1 << 20;

/// All nodes.
pub(super) struct Tree {
    map: HashMap<Ino, Node>,
    /// Numbers of what was copied up and cannot be marked, by their number in the upper layer.
    copied: HashMap<Ino, Ino>,
    /// How often names went or were moved, or something was copied up: whoever looks a name up in both
    /// layers without keeping others out knows by it whether what was found is still so.
    version: u64,
}

/// One inode.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) parent: Ino,
    /// Its name there; empty if it has none any more.
    pub(super) name: Box<[u8]>,
    pub(super) place: Place,
    /// How often the guest was told of it.
    pub(super) lookups: u64,
    children: u64,
}

/// Where an inode is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// In the upper layer, by its number there. Of a file, this is all that counts.
    pub(super) upper: Option<Ino>,
    /// In the lower layer. A directory that is in both shows what is in both.
    pub(super) lower: Option<Ino>,
}

impl Tree {
    pub(super) fn new(root: Place) -> Self {
        let mut map = HashMap::new();
        map.insert(ROOT, Node::new(ROOT, b"/", root));
        Self { map, copied: HashMap::new(), version: 0 }
    }

    pub(super) fn get(&self, ino: Ino) -> Result<&Node, Errno> {
        self.map.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn place(&self, ino: Ino) -> Result<Place, Errno> {
        Ok(self.get(ino)?.place)
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// All but the root.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, &Node)> {
        self.map.iter().filter(|(ino, _)| **ino != ROOT).map(|(ino, node)| (*ino, node))
    }

    /// The guest is told `count` times that `name` in `parent` is `ino`, at `place`. Returns what
    /// the upper layer need not hold for it: the number there, if it held it already.
    pub(super) fn learn(
        &mut self,
        ino: Ino,
        (parent, name): (Ino, &[u8]),
        place: Place,
        count: u64,
    ) -> Result<Option<Ino>, Errno> {
        if ino == ROOT {
            return Ok(place.upper);
        }
        let Some(node) = self.map.get_mut(&ino) else {
            if self.map.len() >= NODE_COUNT_MAX {
                return Err(Errno::NFILE);
            }
            let mut node = Node::new(parent, name, place);
            node.lookups = count;
            self.map.insert(ino, node);
            self.add_child(parent);
            return Ok(None);
        };
        node.lookups = node.lookups.saturating_add(count);
        let held = node.place.upper;
        let extra = match (held, place.upper) {
            (None, Some(_)) => {
                node.place = place;
                None
            }
            (_, found) => found,
        };
        self.set_name(ino, parent, name);
        Ok(extra)
    }

    /// It was copied up, and is at `place` from now on. False if it is not known any more.
    pub(super) fn copied_up(&mut self, ino: Ino, place: Place) -> bool {
        self.version += 1;
        let Some(node) = self.map.get_mut(&ino) else { return false };
        node.place = place;
        self.copied.extend(place.upper.map(|upper| (upper, ino)));
        true
    }

    /// The number of what was copied up to `upper` while the guest knew it.
    pub(super) fn number_of(&self, upper: Ino) -> Option<Ino> {
        self.copied.get(&upper).copied()
    }

    /// The guest forgets `count` of the times that it was told of `ino`. Returns what the upper
    /// layer need not hold any longer.
    pub(super) fn forget(&mut self, ino: Ino, count: u64) -> Vec<Ino> {
        let mut released = Vec::new();
        if let Some(node) = self.map.get_mut(&ino).filter(|_| ino != ROOT) {
            node.lookups = node.lookups.saturating_sub(count);
            self.release(ino, &mut released);
        }
        released
    }

    pub(super) fn forget_all(&mut self) -> Vec<Ino> {
        let released = self.iter().filter_map(|(_, node)| node.place.upper).collect();
        self.map.retain(|ino, _| *ino == ROOT);
        self.copied.clear();
        if let Some(root) = self.map.get_mut(&ROOT) {
            root.children = 0;
        }
        released
    }

    /// `ino` is found as `name` in `parent` now.
    pub(super) fn moved(&mut self, ino: Ino, parent: Ino, name: &[u8]) {
        self.version += 1;
        self.set_name(ino, parent, name);
    }

    fn set_name(&mut self, ino: Ino, parent: Ino, name: &[u8]) {
        let Some(node) = self.map.get_mut(&ino).filter(|_| ino != ROOT) else { return };
        if node.parent == parent && *node.name == *name {
            return;
        }
        node.name = name.into();
        let old_parent = std::mem::replace(&mut node.parent, parent);
        self.add_child(parent);
        if let Some(old) = self.map.get_mut(&old_parent) {
            old.children = old.children.saturating_sub(1);
        }
        // Whether the old parent is still needed is seen when it is forgotten.
    }

    /// `name` in `parent` is no longer `ino`.
    pub(super) fn removed(&mut self, ino: Ino, parent: Ino, name: &[u8]) {
        self.version += 1;
        if self.map.get(&ino).is_some_and(|node| node.parent == parent && *node.name == *name) {
            self.set_name(ino, ROOT, b"");
        }
    }

    fn add_child(&mut self, parent: Ino) {
        if let Some(parent) = self.map.get_mut(&parent) {
            parent.children += 1;
        }
    }

    fn release(&mut self, ino: Ino, released: &mut Vec<Ino>) {
        let mut ino = ino;
        while ino != ROOT
            && self.map.get(&ino).is_some_and(|node| node.lookups == 0 && node.children == 0)
        {
            let Some(node) = self.map.remove(&ino) else { return };
            if let Some(upper) = node.place.upper {
                self.copied.remove(&upper);
                released.push(upper);
            }
            ino = node.parent;
            if let Some(parent) = self.map.get_mut(&ino) {
                parent.children = parent.children.saturating_sub(1);
            }
        }
    }
}

impl Node {
    fn new(parent: Ino, name: &[u8], place: Place) -> Self {
        Self { parent, name: name.into(), place, lookups: 0, children: 0 }
    }
}
