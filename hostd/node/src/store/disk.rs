//! All that the store changes on disk, one step after another.
//!
//! The process may end between any two steps, and each is one that a file system does whole or not at
//! all, but for the writing of bytes. So there are two kinds of files: those that are written beside and
//! renamed, which are there whole or not at all, and logs, whose readers know where they end.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::StoreError;

/// What the name of a file ends with that is not whole yet.
pub(super) const PART: &str = "part";

/// The way to the disk. A test may ask to be told of each step.
#[derive(Clone, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) watcher: Option<Watcher>,
}

/// Is told of each boundary between two steps, and may end the thread there.
#[cfg(test)]
pub(crate) type Watcher = std::sync::Arc<dyn Fn(&str) + Send + Sync>;

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    /// Makes a folder, and those above it.
    pub(super) fn make_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.boundary("before a folder is made");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| StoreError::io(path, error))?;
        self.boundary("after a folder was made");
        Ok(())
    }

    /// Makes what is in a folder durable.
    pub(super) fn sync_folder(&self, path: &Path) -> Result<(), StoreError> {
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| StoreError::io(path, error))?;
        self.boundary("after a folder was synced");
        Ok(())
    }

    /// Writes a file that is there whole or not at all.
    pub(super) fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let partial = path.with_extension(PART);
        let error = |error| StoreError::io(&partial, error);
        self.boundary("before a file is written");
        let mut options = File::options();
        let options = options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&partial).map_err(error)?;
        self.boundary("after a file was opened");
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(error)?;
        self.boundary("after a file was written");
        fs::rename(&partial, path).map_err(|error| StoreError::io(path, error))?;
        self.boundary("after a file got its name");
        path.parent().map_or(Ok(()), |folder| self.sync_folder(folder))
    }

    /// Writes bytes at the end of a log, which is at `end`: what stands behind it is of a step that failed.
    pub(super) fn append(&self, path: &Path, end: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let error = |error| StoreError::io(path, error);
        self.boundary("before a log grows");
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(path).map_err(error)?;
        if file.metadata().map_err(error)?.len() > end {
            file.set_len(end).map_err(error)?;
        }
        self.boundary("after a log was cut to its end");
        file.write_all_at(bytes, end).map_err(error)?;
        self.boundary("after a log grew");
        file.sync_data().map_err(error)?;
        self.boundary("after a log was synced");
        Ok(())
    }

    /// Gives something another name.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.boundary("before a name changes");
        fs::rename(from, to)?;
        self.boundary("after a name changed");
        Ok(())
    }

    /// Removes a file. One that is not there is no error.
    pub(super) fn remove_file(&self, path: &Path) -> Result<(), StoreError> {
        self.boundary("before a file is removed");
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io(path, error));
            }
            _ => {}
        }
        self.boundary("after a file was removed");
        Ok(())
    }

    /// Removes a folder with all that is in it, one file after another.
    pub(super) fn remove_folder(&self, path: &Path) -> Result<(), StoreError> {
        let error = |error| StoreError::io(path, error);
        for found in fs::read_dir(path).map_err(error)? {
            self.remove_file(&found.map_err(error)?.path())?;
        }
        fs::remove_dir(path).map_err(error)?;
        self.boundary("after a folder was removed");
        Ok(())
    }

    #[cfg(test)]
    fn boundary(&self, place: &str) {
        if let Some(watcher) = &self.watcher {
            watcher(place);
        }
    }

    /// Nobody watches a node.
    #[cfg(not(test))]
    fn boundary(&self, _: &str) {}
}
