//! Disks of machines: promised, found again, and gone without a trace.
//!
//! A pool is a directory on a file system of its own, on an SSD or a hard disk. What users were promised
//! is in it under names that follow from their workloads, so that it is found after anything, and so are
//! the sizes:
//!
//! ```text
//!   POOL/vdisks/11-4242-data                 a zmount: a file, all of it allocated; its size is the promise
//!   POOL/volumes/11-4242-files/size          a volume: the promise, in bytes
//!   POOL/volumes/11-4242-files/data/         what its machine sees
//!   POOL/root-disks/, POOL/root-folders/     the same for what machines write to their images
//!   POOL/*/.making-…, POOL/*/.removing-…     what a crash left half-done; swept when the pool is opened
//! ```
//!
//! What is used is what is promised: a disk that is allocated can't run out of space later, and a
//! volume's machine holds it to its promise (`quota=` of `vmm`'s directories, which counts by itself where
//! the file system does not). Nothing is ever promised that a pool has not got.
//!
//! Each step can be repeated, and a crash between any two leaves either what was before or what was
//! wanted. A pool that is broken keeps what it has: nothing that may be on it is made anew elsewhere.

mod disk;
mod folder;
mod names;
mod once;
mod pool;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hostd_grid::capacity::Capacity;
use hostd_grid::derived::{ShortId, WorkloadId};
use serde::Deserialize;

pub use self::names::{file_name, parse};
pub use self::once::write_once;
use self::pool::Pool;

/// A pool, as the node's configuration has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Its name, which users see.
    pub name: String,
    /// A directory that is there, on the pool's file system.
    pub path: PathBuf,
    /// What it is made of.
    pub kind: PoolKind,
    /// The most that is promised of it, in bytes; all there is if nothing is said.
    #[serde(default)]
    pub size_max: Option<u64>,
    /// Whether the directory must be a mount point: if its file system is not there, it must not be taken
    /// for an empty pool.
    #[serde(default)]
    pub mount_point: bool,
}

/// What a pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// Disks, volumes and machines' roots are here.
    Ssd,
    /// Namespaces of ZDB are here.
    Hdd,
}

impl PoolKind {
    /// The name that clients know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ssd => "ssd",
            Self::Hdd => "hdd",
        }
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kinds of things that are promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A `zmount`: a raw disk.
    ZMount,
    /// A `volume`: a directory.
    Volume,
    /// A raw disk that a machine's root is on, under the machine's id.
    RootDisk,
    /// A directory for what a machine writes to its root, under the machine's id.
    RootFolder,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ZMount, Self::Volume, Self::RootDisk, Self::RootFolder];

    /// Whether it is a file.
    pub fn is_disk(self) -> bool {
        matches!(self, Self::ZMount | Self::RootDisk)
    }

    fn folder(self) -> &'static str {
        match self {
            Self::ZMount => "vdisks",
            Self::Volume => "volumes",
            Self::RootDisk => "root-disks",
            Self::RootFolder => "root-folders",
        }
    }
}

/// Something that was promised and is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// What it is.
    pub kind: Kind,
    /// Whose it is.
    pub id: WorkloadId,
    /// Bytes.
    pub size: u64,
    /// The file of a disk, the directory of a volume.
    pub path: PathBuf,
    /// The pool's name.
    pub pool: String,
}

impl Space {
    /// 13 characters that its machine knows it by: a disk's serial number.
    pub fn serial(&self) -> ShortId {
        self.id.device("disk")
    }
}

/// A hard disk for a ZDB server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardDisk {
    /// The pool's name.
    pub pool: String,
    /// The server's folder, which is there.
    pub path: PathBuf,
    /// Bytes that may be promised.
    pub size: u64,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolHealth {
    /// Its name.
    pub name: String,
    /// What is wrong, if anything is.
    pub problem: Option<String>,
}

/// Why something was not done. The texts reach users.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It must be some bytes.
    #[error("invalid size")]
    Size,
    /// The workload's name can't be a file's.
    #[error("invalid workload name")]
    Name,
    /// No pool has so much left.
    #[error("not enough space left in pools of this type {0}")]
    Full(PoolKind),
    /// Disks never shrink.
    #[error("not safe to shrink a disk")]
    DiskShrinks,
    /// Nor do volumes.
    #[error("cannot shrink volume to be less than provisioned space")]
    VolumeShrinks,
    /// There is none of that name.
    #[error("{0} does not exist")]
    Absent(WorkloadId),
    /// A pool is not usable now, and what is asked for may be on it.
    #[error("storage pool {name} is not available: {reason}")]
    Broken {
        /// The pool's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two pools have one name, or one place.
    #[error("storage pool {0} is configured twice")]
    Twice(String),
    /// The system says no.
    #[error("storage pool {pool}: {what}: {source}")]
    Io {
        /// The pool's name.
        pool: String,
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// All pools.
#[derive(Debug)]
pub struct Storage {
    /// One change at a time: to find room and to take it are one step.
    pools: Mutex<Vec<Pool>>,
}

impl Storage {
    /// Takes the pools, and sweeps up what a crash left in them. One that can't be used is broken, and no
    /// error.
    ///
    /// # Errors
    /// Two pools have the same name or path.
    pub fn open(pools: &[PoolConfig]) -> Result<Self, StorageError> {
        for (at, pool) in pools.iter().enumerate() {
            let is_same = |other: &PoolConfig| other.name == pool.name || other.path == pool.path;
            if pools.iter().take(at).any(is_same) {
                return Err(StorageError::Twice(pool.name.clone()));
            }
        }
        let pools = pools.iter().cloned().map(Pool::open).collect();
        Ok(Self { pools: Mutex::new(pools) })
    }

    /// Makes a disk or a volume, or finds it made; one that is smaller grows.
    ///
    /// # Errors
    /// No pool has room for it, or a pool that it may be on is broken.
    pub fn create(&self, kind: Kind, id: &WorkloadId, size: u64) -> Result<Space, StorageError> {
        if size == 0 {
            return Err(StorageError::Size);
        }
        let name = file_name(id).ok_or(StorageError::Name)?;
        let mut pools = self.lock();
        let are_whole = whole(&mut pools);
        if let Some((pool, space)) = locate(&pools, kind, id, &name)? {
            return if space.size < size { grow(pool, &name, space, size) } else { Ok(space) };
        }
        are_whole?;
        let pool = roomiest(&pools, PoolKind::Ssd, size)?;
        if kind.is_disk() {
            disk::make(pool, kind, &name, size)?;
        } else {
            folder::make(pool, kind, &name, size)?;
        }
        tracing::info!(%id, ?kind, size, pool = pool.name(), "made");
        find_in(pool, kind, id, &name)?.ok_or_else(|| StorageError::Absent(id.clone()))
    }

    /// What is there under that id.
    ///
    /// # Errors
    /// It is on none of the pools that work, and one is broken.
    pub fn find(&self, kind: Kind, id: &WorkloadId) -> Result<Option<Space>, StorageError> {
        let name = file_name(id).ok_or(StorageError::Name)?;
        let mut pools = self.lock();
        let are_whole = whole(&mut pools);
        if let Some((_, space)) = locate(&pools, kind, id, &name)? {
            return Ok(Some(space));
        }
        are_whole.map(|()| None)
    }

    /// Makes it larger. To the size that it has is no change.
    ///
    /// # Errors
    /// It would shrink, its pool has no room, or there is none; it is as before then.
    pub fn grow(&self, kind: Kind, id: &WorkloadId, size: u64) -> Result<Space, StorageError> {
        let name = file_name(id).ok_or(StorageError::Name)?;
        let mut pools = self.lock();
        let are_whole = whole(&mut pools);
        if let Some((pool, space)) = locate(&pools, kind, id, &name)? {
            return grow(pool, &name, space, size);
        }
        are_whole?;
        Err(StorageError::Absent(id.clone()))
    }

    /// Removes it with all its data, wherever it is. What is not there is no error.
    ///
    /// # Errors
    /// A pool that it may be on is broken, or the system fails; to repeat it is safe.
    pub fn remove(&self, kind: Kind, id: &WorkloadId) -> Result<(), StorageError> {
        let name = file_name(id).ok_or(StorageError::Name)?;
        let mut pools = self.lock();
        let are_whole = whole(&mut pools);
        let mut is_found = false;
        for pool in pools.iter().filter(|pool| pool.is_good()) {
            is_found |= if kind.is_disk() {
                disk::remove(pool, kind, &name)?
            } else {
                folder::remove(pool, kind, &name)?
            };
        }
        if is_found {
            tracing::info!(%id, ?kind, "removed");
            return Ok(());
        }
        are_whole
    }

    /// All of a kind, on all pools that work, by id.
    ///
    /// # Errors
    /// A pool can't be read.
    pub fn list(&self, kind: Kind) -> Result<Vec<Space>, StorageError> {
        let pools = self.lock();
        let mut spaces = Vec::new();
        for pool in pools.iter().filter(|pool| pool.is_good()) {
            for id in pool.ids(kind)? {
                let Some(name) = file_name(&id) else { continue };
                spaces.extend(find_in(pool, kind, &id, &name)?);
            }
        }
        spaces.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(spaces)
    }

    /// Workloads of their own: zmounts and volumes. What is a machine's root is not among them.
    ///
    /// # Errors
    /// A pool is broken: nobody knows what is on it.
    pub fn inventory(&self) -> Result<Vec<WorkloadId>, StorageError> {
        whole(&mut self.lock())?;
        let mut ids = Vec::new();
        for kind in [Kind::ZMount, Kind::Volume] {
            ids.extend(self.list(kind)?.into_iter().map(|space| space.id));
        }
        Ok(ids)
    }

    /// Pools, as clients see them. `elsewhere` is what others have promised of a pool, by its name: ZDB
    /// of hard disks.
    pub fn pools(&self, elsewhere: &BTreeMap<String, u64>) -> Vec<hostd_node::host::Pool> {
        let pools = self.lock();
        let seen = pools.iter().map(|pool| {
            let promised = pool.promised().unwrap_or_default();
            let elsewhere = elsewhere.get(pool.name()).copied().unwrap_or_default();
            hostd_node::host::Pool {
                name: pool.name().to_owned(),
                kind: pool.kind().name(),
                size: pool.size(),
                used: promised.saturating_add(elsewhere),
            }
        });
        seen.collect()
    }

    /// What all pools that work have together.
    pub fn capacity(&self) -> Capacity {
        let mut capacity = Capacity::default();
        for pool in self.lock().iter().filter(|pool| pool.is_good()) {
            capacity += match pool.kind() {
                PoolKind::Ssd => Capacity { sru: pool.size(), ..Capacity::default() },
                PoolKind::Hdd => Capacity { hru: pool.size(), ..Capacity::default() },
            };
        }
        capacity
    }

    /// Where ZDB servers go: one for each pool of hard disks that works.
    ///
    /// # Errors
    /// A server's folder can't be made.
    pub fn hard_disks(&self) -> Result<Vec<HardDisk>, StorageError> {
        let pools = self.lock();
        let disks = pools.iter().filter(|pool| pool.is_good() && pool.kind() == PoolKind::Hdd);
        disks
            .map(|pool| {
                let path = pool.subfolder("zdb")?;
                Ok(HardDisk { pool: pool.name().to_owned(), path, size: pool.size() })
            })
            .collect()
    }

    /// Looks after each pool: whether it is there and can be written. One that came back works again.
    pub fn check(&self) -> Vec<PoolHealth> {
        let mut pools = self.lock();
        let check = |pool: &mut Pool| PoolHealth {
            problem: pool.check().err().map(|error| error.to_string()),
            name: pool.name().to_owned(),
        };
        pools.iter_mut().map(check).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pool>> {
        // What is on the disk is as good after a panic as before.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries pools that did not work again; the error names one that still does not. To be asked before
/// anything is sought: what is sought may be on a pool that came back.
fn whole(pools: &mut [Pool]) -> Result<(), StorageError> {
    let broken = pools.iter_mut().filter(|pool| !pool.is_good());
    broken.map(Pool::check).fold(Ok(()), Result::and)
}

fn locate<'a>(
    pools: &'a [Pool],
    kind: Kind,
    id: &WorkloadId,
    name: &str,
) -> Result<Option<(&'a Pool, Space)>, StorageError> {
    for pool in pools.iter().filter(|pool| pool.is_good()) {
        if let Some(space) = find_in(pool, kind, id, name)? {
            return Ok(Some((pool, space)));
        }
    }
    Ok(None)
}

fn find_in(
    pool: &Pool,
    kind: Kind,
    id: &WorkloadId,
    name: &str,
) -> Result<Option<Space>, StorageError> {
    let found = if kind.is_disk() {
        disk::find(pool, kind, name)?
    } else {
        folder::find(pool, kind, name)?
    };
    Ok(found.map(|(path, size)| Space {
        kind,
        id: id.clone(),
        size,
        path,
        pool: pool.name().to_owned(),
    }))
}

fn grow(pool: &Pool, name: &str, space: Space, size: u64) -> Result<Space, StorageError> {
    if size < space.size {
        return Err(if space.kind.is_disk() {
            StorageError::DiskShrinks
        } else {
            StorageError::VolumeShrinks
        });
    }
    if size == space.size {
        return Ok(space);
    }
    if pool.left()? < size - space.size {
        return Err(StorageError::Full(pool.kind()));
    }
    if space.kind.is_disk() {
        disk::grow(pool, &space.path, space.size, size)?;
    } else {
        folder::promise(pool, space.kind, name, size)?;
    }
    tracing::info!(id = %space.id, kind = ?space.kind, from = space.size, to = size, "grown");
    Ok(Space { size, ..space })
}

/// Of the pools with enough room, the one with the most.
fn roomiest(pools: &[Pool], kind: PoolKind, size: u64) -> Result<&Pool, StorageError> {
    let mut best: Option<(u64, &Pool)> = None;
    for pool in pools.iter().filter(|pool| pool.kind() == kind && pool.is_good()) {
        let left = pool.left()?;
        if left >= size && best.is_none_or(|(most, _)| left > most) {
            best = Some((left, pool));
        }
    }
    best.map(|(_, pool)| pool).ok_or(StorageError::Full(kind))
}

#[cfg(test)]
mod tests;
