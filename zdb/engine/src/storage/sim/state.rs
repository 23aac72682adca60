//! What is on a simulated disk: now, and for certain after a power loss.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::EIO;

pub(super) const SECTOR_SIZE: usize = 512;
pub(super) const ROOT: u64 = 0;

#[derive(Debug)]
pub(super) struct State {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) next_node: u64,
    pub(super) random: u64,
    pub(super) capacity: u64,
    /// Handles from before a crash are dead.
    pub(super) epoch: u64,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) calls: u64,
    pub(super) power_cut_at: Option<u64>,
    pub(super) fault: Option<Fault>,
    pub(super) short: bool,
}

/// Calls that fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) error: i32,
}

#[derive(Debug)]
pub(super) enum Node {
    File(Contents),
    Folder(Names),
}

#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) now: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Sectors that a sync will write.
    pub(super) dirty: BTreeSet<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) now: BTreeMap<OsString, u64>,
    pub(super) durable: BTreeMap<OsString, u64>,
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Add(OsString, u64),
    Remove(OsString),
    Rename(OsString, OsString, u64),
}

impl Change {
    pub(super) fn apply(self, names: &mut BTreeMap<OsString, u64>) {
        match self {
            Self::Add(name, node) => drop(names.insert(name, node)),
            Self::Remove(name) => drop(names.remove(&name)),
            Self::Rename(from, to, node) => {
                names.remove(&from);
                names.insert(to, node);
            }
        }
    }
}

/// What is to be done with a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// Reads, writes, syncs, changes of folders: may be made to fail.
    Fallible,
    /// Would tell nothing by failing.
    Free,
}

impl Node {
    pub(super) fn durable_copy(&self) -> Self {
        match self {
            Self::File(contents) => Self::File(Contents {
                now: contents.now.clone(),
                durable: contents.now.clone(),
                dirty: BTreeSet::new(),
            }),
            Self::Folder(names) => Self::Folder(Names {
                now: names.now.clone(),
                durable: names.now.clone(),
                changes: Vec::new(),
            }),
        }
    }
}

impl State {
    /// SplitMix64 (Steele, Lea and Flood, 2014).
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_random() % (bound.max(1) as u64)).unwrap_or_default()
    }

    pub(super) fn enter(&mut self, call: Call) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        if self.power_cut_at.is_some_and(|at| number >= at) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        match self.fault {
            Some(fault)
                if call == Call::Fallible
                    && number >= fault.first
                    && number - fault.first < fault.count =>
            {
                Err(io::Error::from_raw_os_error(fault.error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn used(&self) -> u64 {
        let mut linked = BTreeSet::new();
        let mut pending = vec![ROOT];
        while let Some(id) = pending.pop() {
            match self.nodes.get(&id) {
                Some(Node::Folder(names)) => pending.extend(names.now.values()),
                _ => drop(linked.insert(id)),
            }
        }
        let size = |id: &u64| match self.nodes.get(id) {
            Some(Node::File(contents)) => contents.now.len() as u64,
            _ => 0,
        };
        linked.iter().map(size).sum()
    }

    /// The node at a path.
    pub(super) fn find(&self, path: &Path) -> io::Result<u64> {
        let mut id = ROOT;
        for name in path.iter().filter(|name| *name != OsStr::new("/")) {
            let Some(Node::Folder(names)) = self.nodes.get(&id) else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            id = *names.now.get(name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(id)
    }

    pub(super) fn file_mut(&mut self, path: &Path) -> io::Result<&mut Contents> {
        let id = self.find(path)?;
        match self.nodes.get_mut(&id) {
            Some(Node::File(contents)) => Ok(contents),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The folder of a path, and its last name.
    pub(super) fn folder_of(&mut self, path: &Path) -> io::Result<(&mut Names, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let id = self.find(path.parent().unwrap_or_else(|| Path::new("")))?;
        match self.nodes.get_mut(&id) {
            Some(Node::Folder(names)) => Ok((names, name)),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn change(&mut self, path: &Path, change: Change) -> io::Result<()> {
        let (names, _) = self.folder_of(path)?;
        names.changes.push(change.clone());
        change.apply(&mut names.now);
        Ok(())
    }

    pub(super) fn add(&mut self, path: &Path, node: Node) -> io::Result<u64> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let id = self.next_node;
        self.change(path, Change::Add(name, id))?;
        self.next_node += 1;
        self.nodes.insert(id, node);
        Ok(id)
    }

    pub(super) fn crash(&mut self) {
        self.epoch += 1;
        self.locks.clear();
        (self.fault, self.power_cut_at) = (None, None);
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let Some(mut node) = self.nodes.remove(&id) else { continue };
            match &mut node {
                Node::File(contents) => self.crash_file(contents),
                Node::Folder(names) => self.crash_folder(names),
            }
            self.nodes.insert(id, node);
        }
    }

    pub(super) fn crash_folder(&mut self, names: &mut Names) {
        for change in std::mem::take(&mut names.changes) {
            if self.below(2) == 0 {
                change.apply(&mut names.durable);
            }
        }
        names.now = names.durable.clone();
    }

    pub(super) fn crash_file(&mut self, contents: &mut Contents) {
        let (old, new) = (contents.durable.len(), contents.now.len());
        let size = match self.below(4) {
            0 => old,
            1 if new > old => old + self.below(new - old + 1),
            _ => new,
        };
        let mut left = contents.durable.clone();
        left.resize(size, 0);
        for sector in std::mem::take(&mut contents.dirty) {
            let start = sector * SECTOR_SIZE;
            let end = (start + SECTOR_SIZE).min(size).min(new);
            let kept = match self.below(3) {
                0 => start,
                1 => end,
                _ => start + self.below(SECTOR_SIZE),
            };
            if start < end.min(kept) {
                let end = end.min(kept);
                left[start..end].copy_from_slice(&contents.now[start..end]);
            }
        }
        contents.durable = left.clone();
        contents.now = left;
    }
}

impl State {
    pub(super) fn contents(&mut self, node: u64) -> io::Result<&mut Contents> {
        match self.nodes.get_mut(&node) {
            Some(Node::File(contents)) => Ok(contents),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Whether a file may grow by so much.
    pub(super) fn may_grow(&self, by: usize) -> bool {
        self.capacity == u64::MAX || self.used() + by as u64 <= self.capacity
    }
}
