//! Raw disks: files of which every byte is allocated.
//!
//! ```text
//!   .making-NAME ── allocated, synced ── renamed ──> NAME          grown in place
//! ```
//!
//! A sparse file would be a promise that its pool can break when the machine writes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, IFlags, OFlags, fallocate, ioctl_getflags, ioctl_setflags};

use super::names::MAKING;
use super::once;
use super::pool::{Pool, remove_all};
use super::{Kind, StorageError};

/// Makes a disk in a pool that has room for it.
pub(super) fn make(pool: &Pool, kind: Kind, name: &str, size: u64) -> Result<(), StorageError> {
    pool.make_whole(kind, name, "allocating", |making| {
        // Of a disk that a crash kept from going with it.
        once::unmark(&making.with_file_name(name))?;
        allocate_new(making, size)
    })
}

/// The disk's file and size.
pub(super) fn find(
    pool: &Pool,
    kind: Kind,
    name: &str,
) -> Result<Option<(PathBuf, u64)>, StorageError> {
    let path = pool.folder(kind).join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => Ok(Some((path, metadata.len()))),
        Ok(_) => {
            let error = io::Error::other("it is no regular file");
            Err(pool.io("looking at", &path)(error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(pool.io("looking at", &path)(error)),
    }
}

/// Allocates what is missing up to `size`. If the pool can't, the disk is as before.
pub(super) fn grow(pool: &Pool, path: &Path, from: u64, size: u64) -> Result<(), StorageError> {
    let grown = open(path, OFlags::empty()).and_then(|file| {
        let allocated = allocate(&file, from, size - from).and_then(|()| file.sync_all());
        if allocated.is_err() {
            // Part of it may have been allocated, and would be taken for a promise.
            file.set_len(from)?;
        }
        allocated
    });
    grown.map_err(pool.io("growing", path))
}

/// Removes a disk; false if there is none.
pub(super) fn remove(pool: &Pool, kind: Kind, name: &str) -> Result<bool, StorageError> {
    let folder = pool.folder(kind);
    let making = folder.join(format!("{MAKING}{name}"));
    remove_all(&making).map_err(pool.io("removing", &making))?;
    let path = folder.join(name);
    let is_removed = match fs::remove_file(&path) {
        Ok(()) => pool.sync(&folder).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(pool.io("removing", &path)(error)),
    };
    once::unmark(&path).map_err(pool.io("removing the mark of", &path))?;
    is_removed
}

fn allocate_new(path: &Path, size: u64) -> io::Result<()> {
    let file = open(path, OFlags::CREATE | OFlags::EXCL)?;
    // Where a file system would copy what is overwritten, such as btrfs. Others do not know the flag.
    if let Ok(flags) = ioctl_getflags(&file) {
        let _ = ioctl_setflags(&file, flags | IFlags::NOCOW);
    }
    allocate(&file, 0, size)?;
    file.sync_all()
}

fn allocate(file: &File, offset: u64, size: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), offset, size) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            // Larger than any file: no pool has so much.
            Err(rustix::io::Errno::FBIG | rustix::io::Errno::INVAL) => {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from((flags | OFlags::NOFOLLOW).bits()).unwrap_or_default();
    File::options().read(true).write(true).mode(0o600).custom_flags(flags).open(path)
}
