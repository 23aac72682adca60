//! A disk that is written once: the image of a whole one, on a disk of its owner's.
//!
//! ```text
//!   nothing but zeros ──mark──► marked ──write, sync──► written ──unmark──► the machine's own, for ever
//!                                 ▲ │ killed, or failed
//!                                 └─┘ zeroed, and written from its start
//! ```
//!
//! A disk that holds anything is its owner's and stays as it is, as on existing nodes (`reference:
//! zero-os 1.1`). A writing that did not end leaves a mark beside the disk, so that half of an image is
//! never taken for somebody's data.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;

use super::{Space, StorageError};

/// What begins the name of a mark.
const WRITING: &str = ".writing-";
/// Bytes that are looked at at once.
const PIECE_SIZE: usize = 1 << 20;

/// Has `write` write a disk that holds nothing, or an earlier writing of which did not end; it finds
/// nothing but zeros on it. Whether it was written.
///
/// # Errors
/// What `write` says, or the system does, or that somebody else writes it now. To repeat it is safe.
pub fn write_once<E: From<StorageError>>(
    space: &Space,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<bool, E> {
    let failed = |what: &'static str| {
        move |source| StorageError::Io {
            pool: space.pool.clone(),
            what: format!("{what} {}", space.id),
            source,
        }
    };
    let path = &space.path;
    let mark = mark(path);
    if !mark.exists() && !is_blank(path).map_err(failed("looking at"))? {
        return Ok(false);
    }
    // Held while it is written. Whoever holds it may be done when we do.
    let held = hold(&mark).map_err(failed("marking"))?;
    zero(path).map_err(failed("clearing"))?;
    write(path)?;
    let sync = File::open(path).and_then(|disk| disk.sync_all());
    sync.map_err(failed("writing"))?;
    unmark(path).map_err(failed("unmarking"))?;
    drop(held);
    tracing::info!(id = %space.id, "a whole disk was written");
    Ok(true)
}

/// Removes a disk's mark, if it has one: it goes with the disk.
pub(super) fn unmark(disk: &Path) -> io::Result<()> {
    match fs::remove_file(mark(disk)) {
        Ok(()) => sync_folder(disk),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn mark(disk: &Path) -> PathBuf {
    let name = disk.file_name().unwrap_or_default().to_string_lossy();
    disk.with_file_name(format!("{WRITING}{name}"))
}

/// Makes the mark, or finds it, and keeps others from writing.
fn hold(mark: &Path) -> io::Result<File> {
    let mut options = File::options();
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags);
    let file = options.open(mark)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        Errno::WOULDBLOCK => io::Error::other("another machine's image is written to it"),
        other => other.into(),
    })?;
    sync_folder(mark)?;
    Ok(file)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    File::open(folder)?.sync_all()
}

/// Whether a disk holds nothing: no data, or zeros. What is allocated and never written is no data, so
/// that a new disk is told from the file system's own notes, and one in use by its first bytes.
fn is_blank(path: &Path) -> io::Result<bool> {
    let disk = File::open(path)?;
    let size = disk.metadata()?.len();
    let mut piece = vec![0; PIECE_SIZE];
    let mut at = 0;
    while at < size {
        let start = match seek(&disk, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(true),
            // A file system that can't tell has data everywhere.
            Err(Errno::INVAL) => at,
            other => other?,
        };
        let end = seek(&disk, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        at = start;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = piece.get_mut(..left.min(PIECE_SIZE)).unwrap_or_default();
            disk.read_exact_at(piece, at)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += piece.len() as u64;
        }
    }
    Ok(true)
}

/// Has a disk read as zeros, all of it allocated as before.
fn zero(path: &Path) -> io::Result<()> {
    let disk = File::options().read(true).write(true).open(path)?;
    let size = disk.metadata()?.len();
    let done = loop {
        match fallocate(&disk, FallocateFlags::ZERO_RANGE, 0, size) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) => break make_hole(&disk, size),
            other => break other,
        }
    };
    done?;
    disk.sync_all()
}

/// Where zeros can't be had at once.
fn make_hole(disk: &File, size: u64) -> rustix::io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(disk, punch, 0, size)?;
    fallocate(disk, FallocateFlags::empty(), 0, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Kind, parse};

    /// A disk of 4 MiB, allocated as disks are.
    fn disk(folder: &Path) -> Space {
        let path = folder.join("1-2-disk");
        let file = File::create(&path).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 4 << 20).unwrap();
        let id = parse("1-2-disk").unwrap();
        Space { kind: Kind::ZMount, id, size: 4 << 20, path, pool: "p".into() }
    }

    fn put(space: &Space, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(&space.path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn write(space: &Space, text: &str) -> Result<bool, StorageError> {
        write_once(space, |path| {
            let bytes = fs::read(path).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "what is written to is not blank");
            put(space, 1 << 20, text.as_bytes());
            Ok(())
        })
    }

    fn text(space: &Space) -> String {
        let bytes = fs::read(&space.path).unwrap();
        String::from_utf8_lossy(&bytes).replace('\0', "")
    }

    #[test]
    fn a_blank_disk_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let space = disk(folder.path());
        assert!(write(&space, "first").unwrap());
        assert!(!write(&space, "second").unwrap());
        assert_eq!(text(&space), "first");
        assert_eq!(fs::metadata(&space.path).unwrap().len(), 4 << 20);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_holds_anything_is_left_alone() {
        for at in [0, 1024, (4 << 20) - 1] {
            let folder = tempfile::tempdir().unwrap();
            let space = disk(folder.path());
            put(&space, at, b"x");
            assert!(!write(&space, "image").unwrap());
            assert_eq!(text(&space), "x");
        }
        // Zeros that somebody wrote are nothing.
        let folder = tempfile::tempdir().unwrap();
        let space = disk(folder.path());
        put(&space, 0, &vec![0; 3 << 20]);
        assert!(write(&space, "image").unwrap());
    }

    #[test]
    fn a_writing_that_did_not_end_is_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let space = disk(folder.path());
        let failed = write_once(&space, |_| {
            put(&space, 0, b"half of another image");
            Err::<(), _>(StorageError::Size)
        });
        assert!(failed.is_err());
        assert!(write(&space, "whole").unwrap());
        assert_eq!(text(&space), "whole");
        assert!(!write(&space, "again").unwrap());
    }

    #[test]
    fn two_do_not_write_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let space = disk(folder.path());
        let held = hold(&mark(&space.path)).unwrap();
        let error = write(&space, "x").unwrap_err();
        assert!(format!("{error}").contains("another machine's image"), "{error}");
        drop(held);
        assert!(write(&space, "x").unwrap());
        unmark(&space.path).unwrap();
    }
}
