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
//!   POOL/node/0-0-cache/                     the same for what the node keeps for itself
//!   POOL/*/.making-…, POOL/*/.removing-…     what a crash left half-done; swept when the pool is opened
//! ```
//!
//! What is used is what is promised: a disk that is allocated can't run out of space later, and a volume
//! is held to its promise by its file system (`quota`), or by who serves it (`quota=` of `vmm`'s
//! directories, which counts by itself where the file system does not). Nothing is ever promised that a
//! pool has not got.
//!
//! Pools are what the configuration names, and what [`disks`] makes of disks that are nobody's. The
//! node's own folder is a volume that fits itself to what is in it ([`node_folder`]).
//!
//! Each step can be repeated, and a crash between any two leaves either what was before or what was
//! wanted. A pool that is broken keeps what it has: nothing that may be on it is made anew elsewhere, and
//! a ledger says what may be.

mod disk;
pub mod disks;
mod folder;
mod ledger;
mod names;
pub mod node_folder;
mod once;
mod pool;
mod quota;
mod sys;
mod types;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hostd_grid::capacity::Capacity;
use hostd_grid::derived::WorkloadId;

use self::ledger::{Ledger, Unknown};
pub use self::names::{file_name, parse};
pub use self::once::write_once;
use self::pool::Pool;
pub use self::types::{HardDisk, Kind, PoolConfig, PoolHealth, PoolKind, Space, StorageError};

/// All pools.
#[derive(Debug)]
pub struct Storage {
    /// One change at a time: to find room and to take it are one step.
    pools: Mutex<Vec<Pool>>,
    /// Whether hard disks take the place of SSDs if there are none.
    is_missing_ssd: bool,
    /// Which pool has what, if anybody keeps that. Locked after the pools.
    ledger: Option<Mutex<Ledger>>,
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
        Ok(Self { pools: Mutex::new(pools), is_missing_ssd: false, ledger: None })
    }

    /// Lets hard disks take the place of SSDs, if there are none: half of each then is for ZDB, and half
    /// for all else.
    #[must_use]
    pub fn with_missing_ssd(self, is_missing_ssd: bool) -> Self {
        Self { is_missing_ssd, ..self }
    }

    /// Keeps a ledger in a file, so that a pool that is broken keeps nobody from the others.
    ///
    /// # Errors
    /// A pool or the file can't be read or written.
    pub fn with_ledger(self, file: &Path) -> Result<Self, StorageError> {
        let mut ledger = Ledger::open(file).map_err(in_ledger)?;
        let are_all = self.lock().iter().all(|pool| pool.is_good() || !self.may_have(pool));
        let mut lines = Vec::new();
        for kind in KEPT {
            for space in self.list(kind)? {
                lines.extend(file_name(&space.id).map(|name| (kind, name, space.pool.clone())));
            }
        }
        ledger.settle(&lines, are_all).map_err(in_ledger)?;
        Ok(Self { ledger: Some(Mutex::new(ledger)), ..self })
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
        self.try_again(&mut pools);
        if let Some((pool, space)) = locate(&pools, kind, id, &name)? {
            return match space.size < size {
                true => self.grow_in(&pools, pool, &name, space, size),
                false => Ok(space),
            };
        }
        self.must_be_absent(&pools, kind, &name)?;
        let pool = self.roomiest(&pools, size)?;
        self.with_book(|ledger| ledger.note(kind, &name, pool.name()))?;
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
        self.try_again(&mut pools);
        if let Some((_, space)) = locate(&pools, kind, id, &name)? {
            return Ok(Some(space));
        }
        self.must_be_absent(&pools, kind, &name).map(|()| None)
    }

    /// Makes it larger. To the size that it has is no change.
    ///
    /// # Errors
    /// It would shrink, its pool has no room, or there is none; it is as before then.
    pub fn grow(&self, kind: Kind, id: &WorkloadId, size: u64) -> Result<Space, StorageError> {
        let name = file_name(id).ok_or(StorageError::Name)?;
        let mut pools = self.lock();
        self.try_again(&mut pools);
        if let Some((pool, space)) = locate(&pools, kind, id, &name)? {
            return self.grow_in(&pools, pool, &name, space, size);
        }
        self.must_be_absent(&pools, kind, &name)?;
        Err(StorageError::Absent(id.clone()))
    }

    /// Removes it with all its data, wherever it is. What is not there is no error.
    ///
    /// # Errors
    /// A pool that it may be on is broken, or the system fails; to repeat it is safe.
    pub fn remove(&self, kind: Kind, id: &WorkloadId) -> Result<(), StorageError> {
        let name = file_name(id).ok_or(StorageError::Name)?;
        let mut pools = self.lock();
        self.try_again(&mut pools);
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
        } else {
            self.must_be_absent(&pools, kind, &name)?;
        }
        self.with_book(|ledger| ledger.forget(kind, &name))
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

    /// Workloads of their own: zmounts and volumes. What is a machine's root is not among them; what is on
    /// a broken pool is.
    ///
    /// # Errors
    /// A pool is broken, and nobody knows what is on it.
    pub fn inventory(&self) -> Result<Vec<WorkloadId>, StorageError> {
        let broken = {
            let mut pools = self.lock();
            self.try_again(&mut pools);
            let broken = pools.iter().filter(|pool| self.may_have(pool) && !pool.is_good());
            broken.map(|pool| (pool.name().to_owned(), pool.problem())).collect::<Vec<_>>()
        };
        let mut ids = Vec::new();
        for kind in [Kind::ZMount, Kind::Volume] {
            ids.extend(self.list(kind)?.into_iter().map(|space| space.id));
            for (pool, problem) in &broken {
                let names = self.book(|ledger| {
                    let names = ledger.names_in(kind, pool)?;
                    Ok(names.into_iter().filter_map(parse).collect::<Vec<_>>())
                });
                ids.extend(names.map_err(|Unknown| problem.error(pool))?);
            }
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
        let pools = self.lock();
        let mut capacity = Capacity::default();
        for pool in pools.iter().filter(|pool| pool.is_good()) {
            let rooms = self.share(&pools, pool);
            let hru = if pool.kind() == PoolKind::Hdd { pool.size() - rooms } else { 0 };
            capacity += Capacity { sru: rooms, hru, ..Capacity::default() };
        }
        capacity
    }

    /// Where ZDB servers go: one for each pool of hard disks that works.
    ///
    /// # Errors
    /// A server's folder can't be made, or what else is in a pool can't be read.
    pub fn hard_disks(&self) -> Result<Vec<HardDisk>, StorageError> {
        let pools = self.lock();
        let disks = pools.iter().filter(|pool| pool.is_good() && pool.kind() == PoolKind::Hdd);
        disks
            .map(|pool| {
                let path = pool.subfolder("zdb")?;
                // What was promised of it while it stood for an SSD stays promised.
                let taken = self.share(&pools, pool).max(pool.promised()?);
                let size = pool.size().saturating_sub(taken);
                Ok(HardDisk { pool: pool.name().to_owned(), path, size })
            })
            .collect()
    }

    /// Folders of hard disks that work and that nobody has anything on. `elsewhere` is what others have
    /// promised of a pool, by its name; one of which nobody knows that is not among them.
    pub fn empty_hard_disks(&self, elsewhere: &BTreeMap<String, u64>) -> Vec<PathBuf> {
        let pools = self.lock();
        let is_empty = |pool: &&Pool| {
            let is_hard_disk = pool.is_good() && pool.kind() == PoolKind::Hdd;
            is_hard_disk
                && elsewhere.get(pool.name()) == Some(&0)
                && pool.promised().is_ok_and(|promised| promised == 0)
        };
        pools.iter().filter(is_empty).map(|pool| pool.path().to_owned()).collect()
    }

    /// Folders of pools that work, where a copy of what must not be lost may be.
    pub fn folders(&self) -> Vec<PathBuf> {
        let pools = self.lock();
        let good = pools.iter().filter(|pool| pool.is_good());
        good.map(|pool| pool.path().to_owned()).collect()
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

    /// Whether a pool is one for disks, volumes and roots.
    fn has_rooms(&self, pools: &[Pool], pool: &Pool) -> bool {
        let has_ssd = || pools.iter().any(|pool| pool.kind() == PoolKind::Ssd);
        pool.kind() == PoolKind::Ssd || (self.is_missing_ssd && !has_ssd())
    }

    /// Bytes of a pool that disks, volumes and roots may have.
    fn share(&self, pools: &[Pool], pool: &Pool) -> u64 {
        match pool.kind() {
            PoolKind::Ssd => pool.size(),
            PoolKind::Hdd if self.has_rooms(pools, pool) => pool.size() - pool.size() / 2,
            PoolKind::Hdd => 0,
        }
    }

    /// Bytes of it that are not promised yet.
    fn left(&self, pools: &[Pool], pool: &Pool) -> Result<u64, StorageError> {
        Ok(self.share(pools, pool).saturating_sub(pool.promised()?))
    }

    /// Of the pools with enough room, the one with the most.
    fn roomiest<'a>(&self, pools: &'a [Pool], size: u64) -> Result<&'a Pool, StorageError> {
        let mut best: Option<(u64, &Pool)> = None;
        for pool in pools.iter().filter(|pool| pool.is_good() && self.has_rooms(pools, pool)) {
            let left = self.left(pools, pool)?;
            if left >= size && best.is_none_or(|(most, _)| left > most) {
                best = Some((left, pool));
            }
        }
        best.map(|(_, pool)| pool).ok_or(StorageError::Full(PoolKind::Ssd))
    }

    fn grow_in(
        &self,
        pools: &[Pool],
        pool: &Pool,
        name: &str,
        space: Space,
        size: u64,
    ) -> Result<Space, StorageError> {
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
        if self.left(pools, pool)? < size - space.size {
            return Err(StorageError::Full(PoolKind::Ssd));
        }
        if space.kind.is_disk() {
            disk::grow(pool, &space.path, space.size, size)?;
        } else {
            folder::promise(pool, space.kind, name, space.size, size)?;
        }
        tracing::info!(id = %space.id, kind = ?space.kind, from = space.size, to = size, "grown");
        Ok(Space { size, ..space })
    }

    /// Tries pools that did not work again. To be done before anything is sought: it may be on a pool that
    /// came back.
    fn try_again(&self, pools: &mut [Pool]) {
        for pool in pools.iter_mut().filter(|pool| !pool.is_good()) {
            // It says itself what is wrong.
            let _ = pool.check();
        }
    }

    /// Whether a pool may have anything but namespaces.
    fn may_have(&self, pool: &Pool) -> bool {
        pool.kind() == PoolKind::Ssd || self.is_missing_ssd
    }

    /// What was found on no pool that works must be on no other either.
    fn must_be_absent(&self, pools: &[Pool], kind: Kind, name: &str) -> Result<(), StorageError> {
        let mut broken = pools.iter().filter(|pool| self.may_have(pool) && !pool.is_good());
        let Some(first) = broken.clone().next() else { return Ok(()) };
        let pool =
            self.book(|ledger| ledger.pool_of(kind, name).map(|pool| pool.map(str::to_owned)));
        let one = match &pool {
            Ok(Some(pool)) => broken.find(|broken| broken.name() == pool),
            Ok(None) => None,
            Err(Unknown) => Some(first),
        };
        one.map_or(Ok(()), |pool| Err(pool.problem().error(pool.name())))
    }

    /// Asks the ledger.
    fn book<T>(&self, ask: impl FnOnce(&Ledger) -> Result<T, Unknown>) -> Result<T, Unknown> {
        let ledger = self.ledger.as_ref().ok_or(Unknown)?;
        ask(&ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes to the ledger, if there is one.
    fn with_book(
        &self,
        write: impl FnOnce(&mut Ledger) -> std::io::Result<()>,
    ) -> Result<(), StorageError> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        write(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner)).map_err(in_ledger)
    }
}

/// What a ledger is about: all but what the node keeps for itself.
const KEPT: [Kind; 4] = [Kind::ZMount, Kind::Volume, Kind::RootDisk, Kind::RootFolder];

fn in_ledger(source: std::io::Error) -> StorageError {
    let (pool, what) = ("node".to_owned(), "the ledger of pools".to_owned());
    StorageError::Io { pool, what, source }
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

#[cfg(test)]
mod tests;
