//! What is known of the inodes that the guest has looked up.
//!
//! A node is where an inode was found last: a directory and a name in it. That is enough to find it
//! again, so that descriptors are only a cache, and a guest that looks at a million files does not
//! keep a million of them open on the host:
//!
//! ```text
//!             opened                      its turn to be closed
//!   named ────────────► named, open ────────────────────────────► named
//!                          │ ▲
//!        its name is taken  │ │ found under another name
//!                 away     ▼ │
//!                       pinned: open until it is forgotten
//! ```
//!
//! What is found again is compared with what it was (inode number and birth): another file under the
//! same name is answered `ESTALE`.
//!
//! A node stays while the guest remembers it, or a node below it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flist_view::filesystem::{Attributes, Errno, Ino, ROOT};

use super::budget::{Budget, Kind, Tally};

/// Most inodes that a guest may remember: at about 100 bytes each, 100 MB here, and about a
/// gigabyte in the guest.
pub(super) const NODE_COUNT_MAX: usize = 1 << 20;
/// Most nodes that are open only because they were used lately.
const OPEN_COUNT_MAX: usize = 512;
/// Most files without a name that a guest may remember.
const PINNED_COUNT_MAX: usize = 4096;
/// Deepest directory that can be found again from the root.
const DEPTH_MAX: usize = 4096;

/// How many nodes there may be, if the process's budget of descriptors has room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// At all.
    pub(super) node_count: usize,
    /// Open because they were used lately.
    pub(super) open_count: usize,
    /// Open because they have no name.
    pub(super) pinned_count: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            node_count: NODE_COUNT_MAX,
            open_count: OPEN_COUNT_MAX,
            pinned_count: PINNED_COUNT_MAX,
        }
    }
}

/// All nodes of a host directory.
pub(super) struct Nodes {
    pub(super) limits: Limits,
    map: HashMap<Ino, Node>,
    /// Open nodes, in the order in which they are asked to close; some may be closed or gone.
    opened: VecDeque<Ino>,
    cached: Tally,
    pinned: Tally,
    /// What stood for nodes without a name that are gone: whoever asked for it takes them.
    forgotten: Vec<Arc<OwnedFd>>,
}

/// What is known of one inode.
pub(super) struct Node {
    pub(super) parent: Ino,
    /// Its name there; empty if none is known.
    pub(super) name: Box<[u8]>,
    pub(super) generation: u64,
    /// Its type, of a mode.
    pub(super) kind: u32,
    /// How often the guest was told of it.
    pub(super) lookups: u64,
    /// Nodes whose parent it is.
    children: u64,
    /// Stands for the inode.
    path: Option<Arc<OwnedFd>>,
    /// Reads or writes a regular file.
    data: Option<Data>,
    was_used: bool,
}

/// A file open for its contents.
#[derive(Clone)]
pub(super) struct Data {
    pub(super) file: Arc<OwnedFd>,
    pub(super) is_writable: bool,
}

/// How to reach a node that is not open: from an open one, down these names.
pub(super) struct Route {
    pub(super) start: Arc<OwnedFd>,
    /// From the top: number, generation and name.
    pub(super) steps: Vec<(Ino, u64, Box<[u8]>)>,
}

impl Nodes {
    /// A table that knows the root only.
    pub(super) fn new(
        root: Arc<OwnedFd>,
        generation: u64,
        kind: u32,
        budget: &Arc<Budget>,
    ) -> Self {
        let mut nodes = Self {
            limits: Limits::default(),
            map: HashMap::new(),
            opened: VecDeque::new(),
            cached: Tally::new(Arc::clone(budget), Kind::Cached),
            pinned: Tally::new(Arc::clone(budget), Kind::Pinned),
            forgotten: Vec::new(),
        };
        let mut node = Node::new(ROOT, b"/", generation, kind);
        node.path = Some(root);
        nodes.map.insert(ROOT, node);
        nodes
    }

    pub(super) fn get(&self, ino: Ino) -> Result<&Node, Errno> {
        self.map.get(&ino).ok_or(Errno::STALE)
    }

    /// All but the root.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, &Node)> {
        self.map.iter().filter(|(ino, _)| **ino != ROOT).map(|(ino, node)| (*ino, node))
    }

    /// The guest is told `count` times that `name` in `parent` is the inode with these attributes.
    pub(super) fn learn(
        &mut self,
        parent: Ino,
        name: &[u8],
        attributes: &Attributes,
        count: u64,
    ) -> Result<(), Errno> {
        let (ino, generation) = (attributes.ino, attributes.generation);
        if ino == ROOT {
            return Ok(());
        }
        let kind = attributes.mode & super::sys::TYPE_MASK;
        match self.map.get(&ino) {
            None => {
                if self.map.len() >= self.limits.node_count {
                    return Err(Errno::NFILE);
                }
                self.map.insert(ino, Node::new(parent, name, generation, kind));
                self.add_child(parent);
            }
            Some(node) if node.generation != generation => {
                self.close(ino);
                self.set_name(ino, parent, name);
                if let Some(node) = self.map.get_mut(&ino) {
                    (node.generation, node.kind) = (generation, kind);
                }
            }
            Some(_) => self.set_name(ino, parent, name),
        }
        if let Some(node) = self.map.get_mut(&ino) {
            node.lookups = node.lookups.saturating_add(count);
        }
        Ok(())
    }

    /// A file without a name, which `path` stands for.
    pub(super) fn learn_unnamed(
        &mut self,
        attributes: &Attributes,
        path: Arc<OwnedFd>,
        data: Data,
    ) -> Result<(), Errno> {
        if self.pinned.is_full(self.limits.pinned_count) {
            return Err(Errno::NFILE);
        }
        self.learn(ROOT, b"", attributes, 1)?;
        self.opened(attributes.ino, path);
        self.opened_data(attributes.ino, data);
        self.unname(attributes.ino);
        Ok(())
    }

    /// The guest forgets `count` of the times that it was told of `ino`. Returns what stood for
    /// files without a name that are forgotten with that.
    pub(super) fn forget(&mut self, ino: Ino, count: u64) -> Vec<Arc<OwnedFd>> {
        if let Some(node) = self.map.get_mut(&ino).filter(|_| ino != ROOT) {
            node.lookups = node.lookups.saturating_sub(count);
            self.release(ino);
        }
        std::mem::take(&mut self.forgotten)
    }

    /// The guest forgets everything. Returns as [`forget`](Self::forget) does.
    pub(super) fn forget_all(&mut self) -> Vec<Arc<OwnedFd>> {
        let unnamed = self.map.values().filter(|node| node.name.is_empty());
        let forgotten = unnamed.filter_map(|node| node.path.clone()).collect();
        self.map.retain(|ino, _| *ino == ROOT);
        if let Some(root) = self.map.get_mut(&ROOT) {
            root.children = 0;
        }
        self.opened.clear();
        self.cached.clear();
        self.pinned.clear();
        forgotten
    }

    /// What stands for `ino`, if it is open.
    pub(super) fn path(&mut self, ino: Ino) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let node = self.map.get_mut(&ino).ok_or(Errno::STALE)?;
        node.was_used = true;
        Ok(node.path.clone())
    }

    /// What reads `ino` or, if it must, writes it; if it is open.
    pub(super) fn data(&mut self, ino: Ino, writes: bool) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let node = self.map.get_mut(&ino).ok_or(Errno::STALE)?;
        node.was_used = true;
        let data = node.data.as_ref().filter(|data| data.is_writable || !writes);
        Ok(data.map(|data| Arc::clone(&data.file)))
    }

    /// How to reach `ino`, which is not open.
    pub(super) fn route(&self, ino: Ino) -> Result<Route, Errno> {
        let mut steps = Vec::new();
        let mut ino = ino;
        loop {
            let node = self.get(ino)?;
            if let Some(start) = node.path.clone() {
                steps.reverse();
                return Ok(Route { start, steps });
            }
            if node.name.is_empty() || steps.len() >= DEPTH_MAX {
                return Err(Errno::STALE);
            }
            steps.push((ino, node.generation, node.name.clone()));
            ino = node.parent;
        }
    }

    /// `path` stands for `ino` from now on.
    pub(super) fn opened(&mut self, ino: Ino, path: Arc<OwnedFd>) {
        self.open(ino, |node| node.path = Some(path));
    }

    /// `data` reads or writes `ino` from now on.
    pub(super) fn opened_data(&mut self, ino: Ino, data: Data) {
        self.open(ino, |node| node.data = Some(data));
    }

    /// Refuses to take `name` of `parent` away if that is how `ino` is found, so that it must stay
    /// open, and no more may.
    pub(super) fn check_room_to_pin(
        &self,
        ino: Ino,
        parent: Ino,
        name: &[u8],
    ) -> Result<(), Errno> {
        let node = self.map.get(&ino).filter(|_| ino != ROOT);
        let is_known = node.is_some_and(|node| node.parent == parent && *node.name == *name);
        if is_known && self.pinned.is_full(self.limits.pinned_count) {
            return Err(Errno::NFILE);
        }
        Ok(())
    }

    /// `name` in `parent` is no longer the inode with these attributes, which `path` stands for. If
    /// that was how it is found, it stays open. Returns whether it is open because it has no name:
    /// then what it takes is given back when it is forgotten.
    pub(super) fn removed(
        &mut self,
        attributes: &Attributes,
        (parent, name): (Ino, &[u8]),
        path: &Arc<OwnedFd>,
    ) -> bool {
        let ino = attributes.ino;
        let Some(node) = self.map.get(&ino).filter(|_| ino != ROOT) else { return false };
        if node.generation == attributes.generation && node.parent == parent && *node.name == *name
        {
            self.unname(ino);
            if let Some(node) = self.map.get_mut(&ino).filter(|node| node.path.is_none()) {
                let was_pinned = node.is_pinned();
                node.path = Some(Arc::clone(path));
                if !was_pinned {
                    self.pinned.add();
                }
            }
        }
        self.map.get(&ino).is_some_and(|node| node.is_pinned() && node.path.is_some())
    }

    /// What stands for files without a name.
    pub(super) fn pinned_paths(&self) -> Vec<Arc<OwnedFd>> {
        let pinned = self.map.values().filter(|node| node.is_pinned());
        pinned.filter_map(|node| node.path.clone()).collect()
    }

    /// `ino` is found as `name` in `parent` now.
    pub(super) fn moved(&mut self, ino: Ino, parent: Ino, name: &[u8]) {
        if self.map.contains_key(&ino) && ino != ROOT {
            self.set_name(ino, parent, name);
        }
    }

    fn open(&mut self, ino: Ino, keep: impl FnOnce(&mut Node)) {
        let Some(node) = self.map.get_mut(&ino) else { return };
        let was_cached = node.is_cached(ino);
        keep(node);
        node.was_used = true;
        if !was_cached && node.is_cached(ino) {
            self.cached.add();
            self.opened.push_back(ino);
            self.close_some();
        }
    }

    /// Closes what was not used lately, until few enough are open.
    fn close_some(&mut self) {
        // Each one gets one more chance at most, so this ends.
        let mut chances = self.opened.len() * 2;
        let open_max = self.limits.open_count;
        while (self.cached.is_over(open_max) || self.opened.len() > open_max * 4) && chances > 0 {
            chances -= 1;
            let Some(ino) = self.opened.pop_front() else { return };
            let Some(node) = self.map.get_mut(&ino).filter(|node| node.is_cached(ino)) else {
                continue;
            };
            if std::mem::take(&mut node.was_used) {
                self.opened.push_back(ino);
            } else {
                self.close(ino);
            }
        }
    }

    fn close(&mut self, ino: Ino) {
        let Some(node) = self.map.get_mut(&ino) else { return };
        if node.is_cached(ino) {
            self.cached.remove();
        } else if node.is_pinned() {
            self.pinned.remove();
        }
        (node.path, node.data) = (None, None);
    }

    fn set_name(&mut self, ino: Ino, parent: Ino, name: &[u8]) {
        let Some(node) = self.map.get_mut(&ino) else { return };
        if node.parent == parent && *node.name == *name {
            return;
        }
        let was_pinned = node.is_pinned();
        let old_parent = std::mem::replace(&mut node.parent, parent);
        node.name = name.into();
        if was_pinned && !node.is_pinned() {
            self.pinned.remove();
            self.cached.add();
            self.opened.push_back(ino);
            self.close_some();
        }
        self.add_child(parent);
        self.remove_child(old_parent);
    }

    fn unname(&mut self, ino: Ino) {
        let Some(node) = self.map.get_mut(&ino) else { return };
        if node.is_cached(ino) {
            self.cached.remove();
        }
        node.name = Box::default();
        let old_parent = std::mem::replace(&mut node.parent, ROOT);
        if node.is_pinned() {
            self.pinned.add();
        }
        self.add_child(ROOT);
        self.remove_child(old_parent);
    }

    fn add_child(&mut self, parent: Ino) {
        if let Some(parent) = self.map.get_mut(&parent) {
            parent.children += 1;
        }
    }

    fn remove_child(&mut self, parent: Ino) {
        if let Some(node) = self.map.get_mut(&parent) {
            node.children = node.children.saturating_sub(1);
            self.release(parent);
        }
    }

    /// Removes `ino` if nothing holds it, and then perhaps its parent, and so on.
    fn release(&mut self, ino: Ino) {
        let mut ino = ino;
        while ino != ROOT
            && self.map.get(&ino).is_some_and(|node| node.lookups == 0 && node.children == 0)
        {
            if let Some(node) = self.map.get(&ino).filter(|node| node.name.is_empty()) {
                self.forgotten.extend(node.path.clone());
            }
            self.close(ino);
            let Some(node) = self.map.remove(&ino) else { return };
            ino = node.parent;
            if let Some(parent) = self.map.get_mut(&ino) {
                parent.children = parent.children.saturating_sub(1);
            }
        }
    }
}

impl Node {
    fn new(parent: Ino, name: &[u8], generation: u64, kind: u32) -> Self {
        Self {
            parent,
            name: name.into(),
            generation,
            kind,
            lookups: 0,
            children: 0,
            path: None,
            data: None,
            was_used: false,
        }
    }

    const fn is_open(&self) -> bool {
        self.path.is_some() || self.data.is_some()
    }

    /// Open, and can be opened again.
    fn is_cached(&self, ino: Ino) -> bool {
        self.is_open() && !self.name.is_empty() && ino != ROOT
    }

    /// Open, and could not be opened again.
    fn is_pinned(&self) -> bool {
        self.is_open() && self.name.is_empty()
    }
}
