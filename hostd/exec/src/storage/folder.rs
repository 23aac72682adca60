//! Volumes: directories with a promise beside them.
//!
//! ```text
//!   .making-NAME/{data/,size} ── synced ── renamed ──> NAME ── renamed ──> .removing-NAME ──> gone
//! ```
//!
//! The promise is outside of what the machine sees. To grow is to replace it. Where the file system has
//! project quotas, it holds the folder to the promise itself ([`super::quota`]).

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::names::{MAKING, REMOVING};
use super::pool::Pool;
use super::quota::Quotas;
use super::{Kind, StorageError};

/// What the machine sees.
pub(super) const DATA_NAME: &str = "data";
/// The promise: bytes, in decimal.
const SIZE_NAME: &str = "size";
/// The promise that is to replace it.
const NEW_SIZE_NAME: &str = "size.new";
/// Longest promise in digits.
const SIZE_TEXT_MAX: usize = 20;

/// Makes a volume in a pool that has room for it.
pub(super) fn make(pool: &Pool, kind: Kind, name: &str, size: u64) -> Result<(), StorageError> {
    pool.make_whole(kind, name, "making", |making| make_new(making, size, pool.quotas()))
}

/// The volume's directory and its promise.
pub(super) fn find(
    pool: &Pool,
    kind: Kind,
    name: &str,
) -> Result<Option<(PathBuf, u64)>, StorageError> {
    let volume = pool.folder(kind).join(name);
    let path = volume.join(SIZE_NAME);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(pool.io("reading", &path))?,
    };
    let text: String = text.chars().take(SIZE_TEXT_MAX).collect();
    let size = text.parse().map_err(|error| {
        pool.io("reading", &path)(io::Error::other(format!("no number of bytes: {error}")))
    })?;
    Ok(Some((volume.join(DATA_NAME), size)))
}

/// Promises another size. If that fails, what was promised before still is.
pub(super) fn promise(
    pool: &Pool,
    kind: Kind,
    name: &str,
    from: u64,
    size: u64,
) -> Result<(), StorageError> {
    let volume = pool.folder(kind).join(name);
    let (new, data) = (volume.join(NEW_SIZE_NAME), volume.join(DATA_NAME));
    let limit = |size| pool.quotas().map_or(Ok(()), |quotas| quotas.set(&data, size));
    limit(size).map_err(pool.io("limiting", &data))?;
    let written = write(&new, size).and_then(|()| fs::rename(&new, volume.join(SIZE_NAME)));
    if written.is_err() {
        limit(from).map_err(pool.io("limiting", &data))?;
    }
    written.map_err(pool.io("writing", &new))?;
    pool.sync(&volume)
}

/// Removes a volume; false if there is none.
pub(super) fn remove(pool: &Pool, kind: Kind, name: &str) -> Result<bool, StorageError> {
    let folder = pool.folder(kind);
    let making = folder.join(format!("{MAKING}{name}"));
    pool.discard(&making)?;
    let (volume, removing) = (folder.join(name), folder.join(format!("{REMOVING}{name}")));
    // Of a removal that was interrupted, before the volume was made again.
    let was_removing = removing.exists();
    pool.discard(&removing)?;
    match fs::rename(&volume, &removing) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(was_removing),
        Err(error) => return Err(pool.io("removing", &volume)(error)),
    }
    // From here on it is gone, even if the removal of its files is interrupted.
    pool.sync(&folder)?;
    pool.discard(&removing)?;
    Ok(true)
}

fn make_new(volume: &Path, size: u64, quotas: Option<&Quotas>) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(volume)?;
    let data = volume.join(DATA_NAME);
    // Its owner is the machine's root.
    DirBuilder::new().mode(0o755).create(&data)?;
    if let Some(quotas) = quotas {
        quotas.give(&data, size)?;
    }
    write(&volume.join(SIZE_NAME), size)?;
    File::open(volume)?.sync_all()
}

fn write(path: &Path, size: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    write!(file, "{size}")?;
    file.sync_all()
}
