//! A disk that keeps only the promises of [`Storage`], and breaks what it may break.
//!
//! Everything is in memory, and what happens depends on a seed. Until a file is synced each of its
//! sectors may be lost, kept, or torn in the middle, one by one; so may each change of a
//! folder. A failed sync forgets what it should have written, and the next one says that all is
//! well, as Linux does. Calls can be made to fail by number, reads and writes to be short, and
//! power to go at any call.

mod file;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use file::SimFile;
use state::{Call, Change, Contents, Fault, Names, Node, ROOT, SECTOR_SIZE, State};

use super::{File, Open, Space, Storage};

/// `errno` of a failing medium.
pub const EIO: i32 = 5;
/// `errno` of a full disk.
pub const ENOSPC: i32 = 28;

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
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
