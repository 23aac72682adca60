//! A disk that keeps only the promises of [`Storage`], and breaks what it may break.
//!
//! Everything is in memory, and what happens depends on a seed. Until a file is synced each of its
//! sectors may be lost, kept, or torn in the middle, one by one; so may each change of a
//! folder. A failed sync forgets what it should have written, and the next one says that all is
//! well, as Linux does. Calls can be made to fail by number, reads and writes to be short, and
//! power to go at any call.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{File, Open, Space, Storage};

const SECTOR_SIZE: usize = 512;
const ROOT: u64 = 0;

/// `errno` of a failing medium.
pub const EIO: i32 = 5;
/// `errno` of a full disk.
pub const ENOSPC: i32 = 28;

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    random: u64,
    capacity: u64,
    /// Handles from before a crash are dead.
    epoch: u64,
    locks: BTreeSet<PathBuf>,
    calls: u64,
    power_cut_at: Option<u64>,
    fault: Option<Fault>,
    short: bool,
}

/// Calls that fail.
#[derive(Clone, Copy, Debug)]
struct Fault {
    first: u64,
    count: u64,
    error: i32,
}

#[derive(Debug)]
enum Node {
    File(Contents),
    Folder(Names),
}

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that a sync will write.
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct Names {
    now: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Add(OsString, u64),
    Remove(OsString),
    Rename(OsString, OsString, u64),
}

impl Change {
    fn apply(self, names: &mut BTreeMap<OsString, u64>) {
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
enum Call {
    /// Reads, writes, syncs, changes of folders: may be made to fail.
    Fallible,
    /// Would tell nothing by failing.
    Free,
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            nodes: BTreeMap::from([(ROOT, Node::Folder(Names::default()))]),
            next_node: ROOT + 1,
            random: seed,
            capacity: u64::MAX,
            epoch: 0,
            locks: BTreeSet::new(),
            calls: 0,
            power_cut_at: None,
            fault: None,
            short: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock_state().calls
    }

    /// From this call on nothing works, until [`crash`](Self::crash).
    pub fn cut_power_at(&self, call: u64) {
        self.lock_state().power_cut_at = Some(call);
    }

    /// Lets some calls fail, from the one with this number on.
    pub fn fail(&self, first: u64, count: u64, error: i32) {
        self.lock_state().fault = Some(Fault { first, count, error });
    }

    /// No more failures.
    pub fn heal(&self) {
        let mut state = self.lock_state();
        (state.fault, state.power_cut_at) = (None, None);
    }

    /// Reads and writes move fewer bytes than asked for, now and then.
    pub fn set_short(&self, short: bool) {
        self.lock_state().short = short;
    }

    /// Bytes that files may have together.
    pub fn set_capacity(&self, capacity: u64) {
        self.lock_state().capacity = capacity;
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock_state().used()
    }

    /// Power is lost and comes back: open files and locks are gone, and of what was not synced,
    /// whatever chance leaves.
    pub fn crash(&self) {
        self.lock_state().crash();
    }

    /// Changes a byte where it lies, on the medium.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn flip(&self, path: &Path, offset: usize, mask: u8) -> io::Result<()> {
        let mut state = self.lock_state();
        let contents = state.file_mut(path)?;
        for bytes in [&mut contents.now, &mut contents.durable] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= mask;
            }
        }
        Ok(())
    }

    /// Cuts a file, on the medium.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn cut(&self, path: &Path, size: usize) -> io::Result<()> {
        let mut state = self.lock_state();
        let contents = state.file_mut(path)?;
        contents.now.truncate(size);
        contents.durable.truncate(size);
        Ok(())
    }

    /// A file's bytes.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.lock_state().file_mut(path)?.now.clone())
    }

    /// A disk with the same files, all durable.
    #[must_use]
    pub fn copy(&self, seed: u64) -> Self {
        let other = Self::new(seed);
        {
            let (state, mut copy) = (self.lock_state(), other.lock_state());
            copy.next_node = state.next_node;
            copy.nodes = state.nodes.iter().map(|(id, node)| (*id, node.durable_copy())).collect();
        }
        other
    }
}

impl Node {
    fn durable_copy(&self) -> Self {
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
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_random() % (bound.max(1) as u64)).unwrap_or_default()
    }

    fn enter(&mut self, call: Call) -> io::Result<()> {
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

    fn used(&self) -> u64 {
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
    fn find(&self, path: &Path) -> io::Result<u64> {
        let mut id = ROOT;
        for name in path.iter().filter(|name| *name != OsStr::new("/")) {
            let Some(Node::Folder(names)) = self.nodes.get(&id) else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            id = *names.now.get(name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(id)
    }

    fn file_mut(&mut self, path: &Path) -> io::Result<&mut Contents> {
        let id = self.find(path)?;
        match self.nodes.get_mut(&id) {
            Some(Node::File(contents)) => Ok(contents),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The folder of a path, and its last name.
    fn folder_of(&mut self, path: &Path) -> io::Result<(&mut Names, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let id = self.find(path.parent().unwrap_or_else(|| Path::new("")))?;
        match self.nodes.get_mut(&id) {
            Some(Node::Folder(names)) => Ok((names, name)),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn change(&mut self, path: &Path, change: Change) -> io::Result<()> {
        let (names, _) = self.folder_of(path)?;
        names.changes.push(change.clone());
        change.apply(&mut names.now);
        Ok(())
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<u64> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let id = self.next_node;
        self.change(path, Change::Add(name, id))?;
        self.next_node += 1;
        self.nodes.insert(id, node);
        Ok(id)
    }

    fn crash(&mut self) {
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

    fn crash_folder(&mut self, names: &mut Names) {
        for change in std::mem::take(&mut names.changes) {
            if self.below(2) == 0 {
                change.apply(&mut names.durable);
            }
        }
        names.now = names.durable.clone();
    }

    fn crash_file(&mut self, contents: &mut Contents) {
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

impl Storage for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        let node = match (state.find(path), how) {
            (Ok(_), Open::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(node), how) => {
                if how == Open::Empty {
                    let contents = state.file_mut(path)?;
                    contents.dirty.extend(0..contents.now.len().div_ceil(SECTOR_SIZE));
                    contents.now.clear();
                }
                node
            }
            (Err(error), Open::Existing) => return Err(error),
            (Err(_), _) => state.add(path, Node::File(Contents::default()))?,
        };
        if matches!(state.nodes.get(&node), Some(Node::Folder(_))) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let epoch = state.epoch;
        Ok(Arc::new(SimFile { disk: self.clone(), node, epoch }))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        if state.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.add(path, Node::Folder(Names::default())).map(drop)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        let id = state.find(folder)?;
        match state.nodes.get(&id) {
            Some(Node::Folder(names)) => Ok(names.now.keys().cloned().collect()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        // The engine renames inside folders only, which is one change of one folder.
        assert_eq!(from.parent(), to.parent(), "a rename between folders");
        let node = state.find(from)?;
        let name = |path: &Path| path.file_name().map(OsStr::to_owned).unwrap_or_default();
        state.change(from, Change::Rename(name(from), name(to), node))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        let node = state.find(from)?;
        if state.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let name = to.file_name().map(OsStr::to_owned).unwrap_or_default();
        state.change(to, Change::Add(name, node))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        state.find(path)?;
        let name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
        state.change(path, Change::Remove(name))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        let id = state.find(path)?;
        match state.nodes.get(&id) {
            Some(Node::Folder(names)) if names.now.is_empty() => {}
            _ => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
        let name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
        state.change(path, Change::Remove(name))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        let id = state.find(path)?;
        match state.nodes.get_mut(&id) {
            Some(Node::Folder(names)) => {
                names.changes.clear();
                names.durable = names.now.clone();
                Ok(())
            }
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        if state.find(path).is_err() {
            state.add(path, Node::File(Contents::default()))?;
        }
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let epoch = state.epoch;
        Ok(Box::new(Lock { disk: self.clone(), path: path.to_owned(), epoch }))
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let mut state = self.lock_state();
        state.enter(Call::Fallible)?;
        let (total, used) = (state.capacity, state.used());
        Ok(Space { total, free: total.saturating_sub(used) })
    }

    fn random(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock_state();
        state.enter(Call::Free)?;
        for chunk in buffer.chunks_mut(8) {
            let random = state.next_random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Lock {
    disk: SimDisk,
    path: PathBuf,
    epoch: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.lock_state();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    node: u64,
    epoch: u64,
}

impl SimFile {
    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.lock_state();
        state.enter(call)?;
        if state.epoch != self.epoch {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(state)
    }

    fn read(&self, buffer: &mut [u8], offset: u64, asked: usize) -> io::Result<usize> {
        let mut state = self.enter(Call::Fallible)?;
        let wanted = if state.short && asked > 1 && state.below(4) == 0 {
            1 + state.below(asked - 1)
        } else {
            asked
        };
        let contents = state.contents(self.node)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(contents.now.len());
        let bytes = &contents.now[start..];
        let count = wanted.min(bytes.len()).min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }
}

impl State {
    fn contents(&mut self, node: u64) -> io::Result<&mut Contents> {
        match self.nodes.get_mut(&node) {
            Some(Node::File(contents)) => Ok(contents),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Whether a file may grow by so much.
    fn may_grow(&self, by: usize) -> bool {
        self.capacity == u64::MAX || self.used() + by as u64 <= self.capacity
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let asked = buffer.len();
        self.read(buffer, offset, asked)
    }

    fn read_two_at(&self, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut both = vec![0; first.len() + second.len()];
        let asked = both.len();
        let count = self.read(&mut both, offset, asked)?;
        let (one, two) = both.split_at(first.len());
        first.copy_from_slice(one);
        second.copy_from_slice(two);
        Ok(count)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.enter(Call::Fallible)?;
        let short = state.short && buffer.len() > 1 && state.below(4) == 0;
        let mut count = if short { 1 + state.below(buffer.len() - 1) } else { buffer.len() };
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let grown = (start + count).saturating_sub(state.contents(self.node)?.now.len());
        if grown > 0 && !state.may_grow(grown) {
            let free = state.capacity.saturating_sub(state.used());
            let less = grown - usize::try_from(free).unwrap_or(grown).min(grown);
            // What fits is written before the error comes.
            count = count.saturating_sub(less);
            if count == 0 {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
        }
        let contents = state.contents(self.node)?;
        let end = start + count;
        if contents.now.len() < end {
            contents.now.resize(end, 0);
        }
        contents.now[start..end].copy_from_slice(&buffer[..count]);
        contents.dirty.extend(start / SECTOR_SIZE..end.div_ceil(SECTOR_SIZE));
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        let entered = self.enter(Call::Fallible).map(drop);
        let mut state = self.disk.lock_state();
        if state.epoch != self.epoch || state.power_cut_at.is_some_and(|at| state.calls > at) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let contents = state.contents(self.node)?;
        let dirty = std::mem::take(&mut contents.dirty);
        // A sync that fails forgets what it should have written.
        entered?;
        contents.durable.resize(contents.now.len(), 0);
        for sector in dirty {
            let start = (sector * SECTOR_SIZE).min(contents.now.len());
            let end = (start + SECTOR_SIZE).min(contents.now.len());
            contents.durable[start..end].copy_from_slice(&contents.now[start..end]);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let mut state = self.enter(Call::Fallible)?;
        Ok(state.contents(self.node)?.now.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.enter(Call::Fallible)?;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let contents = state.contents(self.node)?;
        let old = contents.now.len();
        contents.now.resize(size, 0);
        contents.dirty.extend(old.min(size) / SECTOR_SIZE..old.max(size).div_ceil(SECTOR_SIZE));
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let mut state = self.enter(Call::Fallible)?;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let grown = size.saturating_sub(state.contents(self.node)?.now.len());
        if grown > 0 && !state.may_grow(grown) {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let contents = state.contents(self.node)?;
        if contents.now.len() < size {
            contents.now.resize(size, 0);
        }
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_stays_and_the_rest_may_go() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..64 {
            let disk = SimDisk::new(seed);
            let file = disk.open(Path::new("/a"), Open::New).unwrap();
            file.write_at(&[1; 100], 0).unwrap();
            file.sync().unwrap();
            disk.sync_folder(Path::new("/")).unwrap();
            file.write_at(&[2; 100], 100).unwrap();
            disk.crash();
            assert_eq!(file.size().unwrap_err().raw_os_error(), Some(EIO), "a dead handle");
            let contents = disk.contents(Path::new("/a")).unwrap();
            assert_eq!(&contents[..100], &[1; 100]);
            if contents == [[1; 100], [2; 100]].concat() { kept += 1 } else { lost += 1 }
        }
        assert!(lost > 5 && kept > 5, "{lost} lost, {kept} kept");
    }

    #[test]
    fn a_name_that_is_not_synced_may_go() {
        let gone = (0..64).filter(|seed| {
            let disk = SimDisk::new(*seed);
            disk.open(Path::new("/a"), Open::New).unwrap().sync().unwrap();
            disk.crash();
            disk.contents(Path::new("/a")).is_err()
        });
        let gone = gone.count();
        assert!((10..54).contains(&gone), "{gone} of 64");
    }

    #[test]
    fn a_failed_sync_forgets() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("/a"), Open::New).unwrap();
        disk.sync_folder(Path::new("/")).unwrap();
        file.write_at(b"bytes", 0).unwrap();
        disk.fail(disk.calls(), 1, EIO);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        disk.crash();
        assert!(disk.contents(Path::new("/a")).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let disk = SimDisk::new(1);
        disk.set_capacity(8);
        let file = disk.open(Path::new("/a"), Open::New).unwrap();
        assert_eq!(file.write_at(&[1; 10], 0).unwrap(), 8);
        assert_eq!(file.write_at(&[1; 2], 8).unwrap_err().raw_os_error(), Some(ENOSPC));
        disk.set_capacity(10);
        assert_eq!(file.write_at(&[1; 2], 8).unwrap(), 2);
    }
}
