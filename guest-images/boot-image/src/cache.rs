//! Where downloaded and derived files live, and how two runs share them.
//!
//! The root is `$ZERO_OS_CACHE`, else `$XDG_CACHE_HOME/zero-os`, else `~/.cache/zero-os`. All
//! of it can be deleted at any time: the next run makes it again. A file or folder appears
//! under its final name only when it is complete (temporary name, then rename), and makers of
//! the same thing take turns by an advisory lock, which dies with its process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

/// The cache's root folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache of this user.
    ///
    /// # Errors
    ///
    /// [`CacheError::NoHome`] when neither an override nor `HOME` is set.
    pub fn from_env() -> Result<Self, CacheError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(root) = set("ZERO_OS_CACHE") {
            return Ok(Self::at(root));
        }
        if let Some(base) = set("XDG_CACHE_HOME") {
            return Ok(Self::at(PathBuf::from(base).join("zero-os")));
        }
        let home = set("HOME").ok_or(CacheError::NoHome)?;
        Ok(Self::at(PathBuf::from(home).join(".cache/zero-os")))
    }

    /// A cache at a folder of the caller's choice; it is created when first used.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder `name` in the cache, created if absent.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`] when it can't be created.
    pub fn folder(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(CacheError::io("create folder", &path))?;
        Ok(path)
    }

    /// Waits until no other process holds the lock `name`, then holds it until dropped.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`] when the lock file can't be created or locked.
    pub fn lock(&self, name: &str) -> Result<CacheLock, CacheError> {
        let path = self.folder("locks")?.join(name);
        let file = File::create(&path).map_err(CacheError::io("create lock", &path))?;
        file.lock().map_err(CacheError::io("lock", &path))?;
        Ok(CacheLock { _file: file })
    }
}

/// A lock on one thing in the cache; released on drop, and by the kernel when we die.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct CacheLock {
    _file: File,
}

/// Writes `bytes` to `path` so that a reader sees the old file or the whole new one.
///
/// # Errors
///
/// [`CacheError::Io`], in which case the temporary file is removed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let partial = partial_name(path);
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(CacheError::io("write", &partial))
        .and_then(|()| fs::rename(&partial, path).map_err(CacheError::io("rename to", path)));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// A name beside `path` that no other thread or process of this machine uses.
pub(crate) fn partial_name(path: &Path) -> PathBuf {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".partial-{name}-{}-{serial}", std::process::id()))
}

/// The cache can't be used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// No environment variable says where the cache is.
    #[error("no cache folder: set ZERO_OS_CACHE or HOME")]
    NoHome,
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl CacheError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_leaves_no_temporary_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_names_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_whole(&dir.path().join("absent/kernel"), b"x").unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn two_holders_of_a_lock_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let first = cache.lock("x").unwrap();
        let inside = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _lock = cache.lock("x").unwrap();
                inside.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!inside.load(Ordering::SeqCst));
            drop(first);
            second.join().unwrap();
        });
        assert!(inside.load(Ordering::SeqCst));
    }
}
