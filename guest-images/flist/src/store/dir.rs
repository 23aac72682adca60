//! `dir://`: blocks as files, one folder per first byte of their names.
//!
//! ```text
//! PATH/3f/3f9c..e1    what we write, and what is read first
//! PATH/3f9c..e1       flat layout of older tools, read only
//! ```
//!
//! 26,000 small files must cost little, so a new block is written under its own name at once, and
//! nothing is synced block by block: [`DirStore`] syncs the file system when `sync` is called, and now
//! and then on the way, so that disk and processor work at once.
//! A process or machine that dies before that may leave a file short. That costs readers a fetch
//! from another route but never a wrong byte, because they verify; and since a name stands for one
//! sequence of bytes, a later `put` knows a short file by its size and replaces it, by a temporary
//! file and a rename. No image names a block before its `put` and `sync` have returned, so nobody
//! looks for a file that is still growing.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::writeback::Writeback;
use super::{Store, StoreError, hex};
use crate::block::STORED_SIZE_MAX;

/// A folder of blocks.
pub struct DirStore {
    name: String,
    root: OwnedFd,
    /// The folder of each first byte, opened and created when first written to.
    folders: [OnceLock<OwnedFd>; 256],
    /// Makes temporary names unlike those of other processes, and of earlier ones that were killed.
    temporary_prefix: u64,
    temporary_count: AtomicU64,
    has_unsynced: AtomicBool,
    /// Begun with the first write.
    writeback: OnceLock<Writeback>,
}

/// Tries at creating a folder or opening a temporary file; each collision means that another process
/// just did the same.
const ATTEMPTS_MAX: u32 = 3;

impl DirStore {
    /// Opens a folder for reading and writing.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is no such folder, [`StoreError::Failed`] if it can't be
    /// opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = format!("dir://{}", path.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match fs::open(path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(errno) => return Err(open_error(name, errno)),
        };
        Ok(Self {
            name,
            root,
            folders: [const { OnceLock::new() }; 256],
            temporary_prefix: RandomState::new().build_hasher().finish(),
            temporary_count: AtomicU64::new(0),
            has_unsynced: AtomicBool::new(false),
            writeback: OnceLock::new(),
        })
    }

    /// Opens a folder, which is created with its parents if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if it can't be created or opened.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| StoreError::Failed {
            store: format!("dir://{}", path.display()),
            reason: format!("can't create the folder: {error}"),
        })?;
        Self::open(path)
    }

    /// Where the folder is, whatever symbolic links led there.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the system does not tell.
    pub fn path(&self) -> Result<PathBuf, StoreError> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
            .map_err(|error| self.failed("find out where the folder is", error))
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> StoreError {
        StoreError::Failed { store: self.name.clone(), reason: format!("can't {what}: {error}") }
    }

    fn folder(&self, byte: u8) -> Result<&OwnedFd, Errno> {
        let slot = &self.folders[usize::from(byte)];
        if let Some(folder) = slot.get() {
            return Ok(folder);
        }
        let name = hex(&[byte]);
        match fs::mkdirat(&self.root, &name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = fs::openat(&self.root, &name, flags, Mode::empty())?;
        Ok(slot.get_or_init(|| folder))
    }

    fn write(&self, name: &[u8], stored: &[u8]) -> Result<(), Errno> {
        // Also for a file that is there already: who wrote it may have died before syncing it.
        let writeback = self.writeback()?;
        self.has_unsynced.store(true, Ordering::Relaxed);
        let folder = self.folder(name.first().copied().ok_or(Errno::INVAL)?)?;
        let target = hex(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = match fs::openat(folder, &target, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => file,
            Err(Errno::EXIST) => return self.replace_short(folder, &target, stored),
            Err(errno) => return Err(errno),
        };
        let written = write_all(&file, stored);
        if written.is_err() {
            remove(folder, &target);
        }
        writeback.add(stored.len());
        written
    }

    fn writeback(&self) -> Result<&Writeback, Errno> {
        if let Some(writeback) = self.writeback.get() {
            return Ok(writeback);
        }
        let new = Writeback::new(&self.root)?;
        Ok(self.writeback.get_or_init(|| new))
    }

    /// Leaves a whole file alone; replaces a short one.
    fn replace_short(&self, folder: &OwnedFd, target: &str, stored: &[u8]) -> Result<(), Errno> {
        let stat = fs::statat(folder, target, AtFlags::empty())?;
        if u64::try_from(stat.st_size) == Ok(stored.len() as u64) {
            return Ok(());
        }
        let (temporary, file) = self.create_temporary(folder)?;
        let written = write_all(&file, stored);
        drop(file);
        let renamed = written.and_then(|()| fs::renameat(folder, &temporary, folder, target));
        if renamed.is_err() {
            remove(folder, &temporary);
        }
        renamed
    }

    fn create_temporary(&self, folder: &OwnedFd) -> Result<(String, OwnedFd), Errno> {
        let mut collision = Errno::EXIST;
        for _ in 0..ATTEMPTS_MAX {
            let count = self.temporary_count.fetch_add(1, Ordering::Relaxed);
            let name = format!(".{:016x}-{count}.tmp", self.temporary_prefix);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match fs::openat(folder, &name, flags, Mode::from_raw_mode(0o644)) {
                Ok(file) => return Ok((name, file)),
                Err(Errno::EXIST) => collision = Errno::EXIST,
                Err(errno) => return Err(errno),
            }
        }
        Err(collision)
    }

    fn open_block(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flat = hex(name);
        let sharded = format!("{}/{flat}", flat.get(..2).unwrap_or_default());
        // NONBLOCK: a fifo of that name must not hang us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match fs::openat(&self.root, &sharded, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                fs::openat(&self.root, &flat, flags, Mode::empty())
            }
            opened => opened,
        }
    }
}

impl Store for DirStore {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>, StoreError> {
        let file = match self.open_block(name) {
            Ok(file) => file,
            Err(Errno::NOENT) => {
                return Err(StoreError::Missing { store: self.name.clone(), block: hex(name) });
            }
            Err(errno) => return Err(self.failed("open the block's file", errno)),
        };
        let stat = fs::fstat(&file).map_err(|errno| self.failed("read the block's file", errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.failed("read the block's file", "not a regular file"));
        }
        let limit = STORED_SIZE_MAX + 1;
        let size = usize::try_from(stat.st_size).unwrap_or(limit).min(limit);
        read_up_to(&file, size).map_err(|errno| self.failed("read the block's file", errno))
    }

    fn put(&self, name: &[u8], stored: &[u8]) -> Result<(), StoreError> {
        self.write(name, stored)
            .map_err(|errno| self.failed(&format!("write block {}", hex(name)), errno))
    }

    fn sync(&self) -> Result<(), StoreError> {
        if !self.has_unsynced.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        self.writeback().and_then(Writeback::sync).map_err(|errno| {
            self.has_unsynced.store(true, Ordering::Relaxed);
            let reason = format!("can't sync the file system: {errno}");
            StoreError::Failed { store: self.name.clone(), reason }
        })
    }
}

/// The first `size` bytes of a file, or what there is of them. It is not asked for more: a file that
/// grows meanwhile is not whole yet, which its hash tells.
fn read_up_to(file: &OwnedFd, size: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(bytes)
}

fn open_error(name: String, errno: Errno) -> StoreError {
    match errno {
        Errno::NOENT => StoreError::Missing {
            store: format!("{name} (no such folder)"),
            block: "at all".into(),
        },
        errno => {
            let reason = format!("can't open the folder: {}", io::Error::from(errno));
            StoreError::Failed { store: name, reason }
        }
    }
}

/// Removes what was not finished. That it can't be removed is no news after the first error.
fn remove(folder: &OwnedFd, name: &str) {
    let _ = fs::unlinkat(folder, name, AtFlags::empty());
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: [u8; 32] = [0xab; 32];

    fn store() -> (tempfile::TempDir, DirStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = DirStore::create(&folder.path().join("new/blocks")).unwrap();
        (folder, store)
    }

    fn files(folder: &Path) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found
    }

    #[test]
    fn what_is_put_is_found_under_its_name_and_nothing_else_is() {
        let (folder, store) = store();
        store.put(&NAME, b"stored").unwrap();
        store.sync().unwrap();
        assert_eq!(store.get(&NAME).unwrap(), b"stored");
        let path = folder.path().join("new/blocks/ab").join(hex(&NAME));
        assert_eq!(files(folder.path()), [path]);
        assert!(matches!(store.get(&[1; 32]), Err(StoreError::Missing { .. })));
    }

    #[test]
    fn a_block_that_is_there_is_not_written_again_unless_it_was_cut_short() {
        let (folder, store) = store();
        let path = folder.path().join("new/blocks/ab").join(hex(&NAME));
        store.put(&NAME, b"first!").unwrap();
        store.put(&NAME, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first!");
        std::fs::write(&path, b"fir").unwrap();
        store.put(&NAME, b"first!").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first!");
    }

    #[test]
    fn what_another_process_wrote_and_did_not_sync_is_synced() {
        let (folder, store) = store();
        store.put(&NAME, b"stored").unwrap();
        let later = DirStore::open(&folder.path().join("new/blocks")).unwrap();
        later.put(&NAME, b"stored").unwrap();
        assert!(later.has_unsynced.load(Ordering::Relaxed));
        later.sync().unwrap();
        assert!(!later.has_unsynced.load(Ordering::Relaxed));
    }

    #[test]
    fn the_flat_layout_is_read() {
        let (folder, store) = store();
        let legacy_name = [0x01; 16];
        let path = folder.path().join("new/blocks").join(hex(&legacy_name));
        std::fs::write(path, b"flat").unwrap();
        assert_eq!(store.get(&legacy_name).unwrap(), b"flat");
    }

    #[test]
    fn a_file_longer_than_any_block_is_read_no_further_than_needed_to_tell() {
        let (folder, store) = store();
        let path = folder.path().join("new/blocks").join(hex(&NAME));
        std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(store.get(&NAME).unwrap().len(), STORED_SIZE_MAX + 1);
    }

    #[test]
    fn a_fifo_or_folder_in_place_of_a_block_is_refused() {
        let (folder, store) = store();
        let root = folder.path().join("new/blocks");
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join(hex(&NAME)), Mode::RWXU).unwrap();
        std::fs::create_dir(root.join(hex(&[2; 32]))).unwrap();
        for name in [NAME, [2; 32]] {
            let error = store.get(&name).unwrap_err();
            assert!(matches!(error, StoreError::Failed { .. }), "{error}");
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let (folder, store) = store();
        // A folder where the file should go: rename fails, as any later step could.
        let root = folder.path().join("new/blocks/ab");
        std::fs::create_dir_all(root.join(hex(&NAME)).join("x")).unwrap();
        store.put(&NAME, b"stored").unwrap_err();
        assert_eq!(files(folder.path()), Vec::<std::path::PathBuf>::new());
    }

    #[test]
    fn a_folder_that_is_not_there_says_so() {
        let Err(error) = DirStore::open(Path::new("/nonexistent/blocks")) else { panic!("opened") };
        assert!(error.to_string().contains("no such folder"), "{error}");
        assert!(matches!(error, StoreError::Missing { .. }));
    }

    #[test]
    fn many_threads_may_put_the_same_blocks() {
        let (folder, store) = store();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..64).for_each(|i| store.put(&[i; 32], &[i; 100]).unwrap()));
            }
        });
        assert_eq!(files(folder.path()).len(), 64);
        (0..64).for_each(|i| assert_eq!(store.get(&[i; 32]).unwrap(), [i; 100]));
    }
}
