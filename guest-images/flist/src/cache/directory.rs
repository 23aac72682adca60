//! The cache's directory: names of files, the lock on its structure, free space.
//!
//! ```text
//! lock                        held (flock) while segments are created, evicted or swept up
//! 17f3a09c5d2e8b41.blocks     a segment's plaintext; mode 0400, written through one descriptor
//! 17f3a09c5d2e8b41.index      its index; its writer holds flock on it for as long as it appends
//! ```
//!
//! A process that dies loses its locks, so a writer that is gone is told from one at work without
//! process ids. The lock on the structure is never waited for longer than [`LOCK_TIMEOUT`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::layout;

/// Longest wait for another process that creates or evicts a segment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Tries to find a number that no segment has. Numbers are times in nanoseconds, so one is enough
/// unless the clock stands still.
const NUMBER_ATTEMPTS_MAX: u32 = 64;

/// A cache directory.
pub(super) struct Directory {
    path: PathBuf,
}

/// While it lives, no other process changes the directory's structure.
pub(super) struct StructureLock(#[expect(dead_code, reason = "held for its lock")] File);

/// A segment just created: how to write it, and how to read it.
pub(super) struct NewSegment {
    pub(super) number: u64,
    pub(super) blocks_writer: File,
    pub(super) index_writer: File,
    pub(super) blocks: File,
}

impl Directory {
    /// Opens `path`, creating it for its owner alone.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_path_buf() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock on the structure.
    pub(super) fn lock(&self) -> io::Result<StructureLock> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(StructureLock(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process holds the cache's lock",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Numbers of all segments that have an index, in order.
    pub(super) fn segments(&self) -> io::Result<Vec<u64>> {
        self.numbers_of("index")
    }

    /// Opens a segment's plaintext for reading.
    pub(super) fn open_blocks(&self, number: u64) -> io::Result<File> {
        File::open(self.file(number, "blocks"))
    }

    /// Opens a segment's index for reading.
    pub(super) fn open_index(&self, number: u64) -> io::Result<File> {
        File::open(self.file(number, "index"))
    }

    /// Creates an empty segment, locked for its writer.
    pub(super) fn create(&self, capacity: u32, _: &StructureLock) -> io::Result<NewSegment> {
        let (number, blocks_writer) = self.create_blocks()?;
        let create = || {
            let index_writer = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(self.file(number, "index"))?;
            index_writer.try_lock()?;
            index_writer.write_all_at(&layout::encode_header(number, capacity), 0)?;
            Ok((index_writer, self.open_blocks(number)?))
        };
        match create() {
            Ok((index_writer, blocks)) => {
                Ok(NewSegment { number, blocks_writer, index_writer, blocks })
            }
            Err(error) => {
                let _ = self.unlink(number);
                Err(error)
            }
        }
    }

    /// Removes a segment's files. Descriptors that others hold stay good.
    pub(super) fn remove(&self, number: u64, _: &StructureLock) -> io::Result<()> {
        self.unlink(number)
    }

    /// Removes what dead writers left half made: a segment that lacks one of its files, or whose
    /// header was never written.
    pub(super) fn sweep(&self, _: &StructureLock) -> io::Result<()> {
        let indexes = self.segments()?;
        for number in self.numbers_of("blocks")? {
            // Writers create both files under the lock that we hold.
            if indexes.binary_search(&number).is_err() {
                self.unlink(number)?;
            }
        }
        for number in indexes {
            let index = self.open_index(number)?;
            if is_written(&index)? {
                continue;
            }
            if read_header(number, &index).is_none() || self.open_blocks(number).is_err() {
                self.unlink(number)?;
            }
        }
        Ok(())
    }

    /// Bytes that an ordinary user may still write to this file system.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let status = rustix::fs::statvfs(&self.path)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }

    /// Data first, so that what a crash leaves in between is an index without data, never data that
    /// nobody accounts for.
    fn unlink(&self, number: u64) -> io::Result<()> {
        for kind in ["blocks", "index"] {
            match fs::remove_file(self.file(number, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Mode 0400, so that not even its owner opens it for writing a second time by accident, and
    /// whoever is handed a read-only descriptor cannot make a writable one of it.
    fn create_blocks(&self) -> io::Result<(u64, File)> {
        let mut number = time_ns();
        for _ in 0..NUMBER_ATTEMPTS_MAX {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o400);
            match options.open(self.file(number, "blocks")) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
                Ok(file) => return Ok((number, file)),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free segment number"))
    }

    fn numbers_of(&self, kind: &str) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| parse_name(name, kind));
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn file(&self, number: u64, kind: &str) -> PathBuf {
        self.path.join(format!("{number:016x}.{kind}"))
    }
}

/// Whether a living process still appends to the segment of this index.
pub(super) fn is_written(index: &File) -> io::Result<bool> {
    match index.try_lock_shared() {
        Ok(()) => index.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The capacity in an index's header, if the header is whole.
pub(super) fn read_header(number: u64, index: &File) -> Option<u32> {
    let mut header = [0; layout::ENTRY_SIZE];
    index.read_exact_at(&mut header, 0).ok()?;
    layout::decode_header(number, &header)
}

fn parse_name(name: &str, kind: &str) -> Option<u64> {
    let digits = name.strip_suffix(kind)?.strip_suffix('.')?;
    let canonical =
        digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// Numbers grow with time, which makes them the order of eviction. The top bit stays free for
/// segments in memory.
fn time_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX) & (u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        assert_eq!(parse_name("00000000000000ff.index", "index"), Some(255));
        for name in [
            "00000000000000FF.index",
            "ff.index",
            "00000000000000ff.blocks",
            "lock",
            "+0000000000000ff.index",
        ] {
            assert_eq!(parse_name(name, "index"), None, "{name}");
        }
    }

    #[test]
    fn a_sweep_removes_what_dead_writers_left_and_spares_the_living() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let lock = directory.lock().unwrap();
        let living = directory.create(layout::SEGMENT_SIZE_MIN, &lock).unwrap();
        let orphan = directory.create(layout::SEGMENT_SIZE_MIN, &lock).unwrap().number;
        fs::remove_file(directory.file(orphan, "index")).unwrap();
        let dataless = directory.create(layout::SEGMENT_SIZE_MIN, &lock).unwrap().number;
        fs::remove_file(directory.file(dataless, "blocks")).unwrap();
        let headless = directory.create(layout::SEGMENT_SIZE_MIN, &lock).unwrap().number;
        File::options()
            .write(true)
            .open(directory.file(headless, "index"))
            .unwrap()
            .set_len(10)
            .unwrap();
        directory.sweep(&lock).unwrap();
        assert_eq!(directory.segments().unwrap(), [living.number]);
        assert_eq!(directory.numbers_of("blocks").unwrap(), [living.number]);
    }

    #[test]
    fn the_structure_lock_excludes_a_second_holder() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let held = directory.lock().unwrap();
        let file = File::options().write(true).open(temporary.path().join("lock")).unwrap();
        assert!(matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(directory.lock().is_ok());
    }

    #[test]
    fn a_writers_lock_shows_and_ends_with_it() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let segment =
            directory.create(layout::SEGMENT_SIZE_MIN, &directory.lock().unwrap()).unwrap();
        let index = directory.open_index(segment.number).unwrap();
        assert!(is_written(&index).unwrap());
        drop(segment);
        assert!(!is_written(&index).unwrap());
    }
}
