//! What the node remembers, in sled.
//!
//! All of it can be rebuilt (`hostd_node::state`), so a database that can't be opened is put aside and a
//! new one begun, and one that takes nothing costs time alone. What was put is on disk some
//! seconds later; sled's own flush does not say so to the disk, so the file is synchronized too.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hostd_node::state::{MemoryState, StateStore};
use tracing::warn;

/// Bytes that sled keeps in memory; its own default is a gibibyte.
const CACHE_SIZE_MAX: u64 = 4 << 20;
/// Sled's file in its folder.
const FILE: &str = "db";

/// A sled database.
#[derive(Debug)]
pub struct SledState {
    folder: PathBuf,
    database: sled::Db,
}

impl SledState {
    /// Opens a folder, or makes it.
    ///
    /// # Errors
    ///
    /// Sled says why.
    pub fn open(folder: &Path) -> sled::Result<Self> {
        let config = sled::Config::new().path(folder).cache_capacity(CACHE_SIZE_MAX);
        // It is flushed by whoever wants it durable, with the disk.
        let database = config.flush_every_ms(None).open()?;
        Ok(Self { folder: folder.to_owned(), database })
    }

    /// Makes durable what was put. Waits for the disk.
    ///
    /// # Errors
    ///
    /// It is not durable.
    pub fn flush(&self) -> io::Result<()> {
        self.database.flush()?;
        File::open(self.folder.join(FILE))?.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }
}

impl StateStore for SledState {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        match self.database.get(name) {
            Ok(value) => value.map(|value| value.to_vec()),
            Err(error) => {
                warn!(name, %error, "not remembered");
                None
            }
        }
    }

    fn put(&self, name: &str, value: &[u8]) {
        if let Err(error) = self.database.insert(name, value) {
            warn!(name, %error, "will not be remembered");
        }
    }
}

/// What remembers, whatever it takes.
pub(crate) enum Remembering {
    Sled(SledState),
    Memory(MemoryState),
}

impl Remembering {
    /// Opens the folder; puts it aside if that fails; and does without if that fails too.
    pub(crate) fn open(folder: &Path) -> Self {
        let opened = SledState::open(folder).or_else(|error| {
            warn!(%error, "what was remembered can't be read: forgotten");
            let aside = folder.with_extension("damaged");
            let _ = fs::remove_dir_all(&aside);
            let _ = fs::rename(folder, &aside);
            SledState::open(folder)
        });
        match opened {
            Ok(state) => Self::Sled(state),
            Err(error) => {
                warn!(%error, "nothing will be remembered");
                Self::Memory(MemoryState::default())
            }
        }
    }

    /// Makes durable what was put.
    pub(crate) fn flush(&self) {
        if let Self::Sled(state) = self
            && let Err(error) = state.flush()
        {
            warn!(%error, "what is to be remembered is not on disk");
        }
    }
}

impl StateStore for Remembering {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Self::Sled(state) => state.get(name),
            Self::Memory(state) => state.get(name),
        }
    }

    fn put(&self, name: &str, value: &[u8]) {
        match self {
            Self::Sled(state) => state.put(name, value),
            Self::Memory(state) => state.put(name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = Remembering::open(&path);
        assert_eq!(state.get("a"), None);
        state.put("a", b"one");
        state.put("a", b"two");
        state.flush();
        drop(state);
        assert_eq!(Remembering::open(&path).get("a").unwrap(), b"two");
    }

    #[test]
    fn damage_costs_memory_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, b"not a folder").unwrap();
        let state = Remembering::open(&path);
        state.put("a", b"one");
        state.flush();
        assert!(matches!(state, Remembering::Sled(_)));
        drop(state);
        assert_eq!(Remembering::open(&path).get("a").unwrap(), b"one");
        // Where nothing can be kept, it is kept in mind.
        let state = Remembering::open(Path::new("/proc/absent/state"));
        state.put("a", b"one");
        assert_eq!(state.get("a").unwrap(), b"one");
    }
}
