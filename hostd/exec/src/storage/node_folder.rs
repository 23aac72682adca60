//! What the node keeps for itself: its state, images, and what it has fetched of them.
//!
//! It is a folder of an SSD with a promise, like any volume, so that nothing is promised twice; and the
//! promise follows what is in it, in steps (`reference: zero-os 4.4`). Whoever looks how much is free in it
//! sees the promise, where the file system has project quotas: so does the cache of blocks, which keeps
//! within.
//!
//! The folder is mounted where the configuration wants it. A node without an SSD has it in memory: then
//! nothing of it survives, and the node says so.

use std::ffi::CStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use hostd_grid::derived::WorkloadId;
use hostd_grid::{ContractId, Name, TwinId};
use rustix::mount::{MountFlags, mount, mount_bind};

use super::pool::Pool;
use super::{Kind, Space, Storage, StorageError, file_name, find_in, folder};

/// The step in which it grows and shrinks.
pub const STEP: u64 = 5 << 30;
/// Percent of it that are used when it grows, and below which it shrinks.
const USED_MAX: u64 = 60;
const USED_MIN: u64 = 20;
/// What a node without an SSD has, of its memory.
const MEMORY_OPTIONS: &CStr = c"size=500m,mode=0700";

/// What a node without an SSD says of itself. The first words are those of existing nodes.
pub const IN_MEMORY: &str =
    "no disks: there is no SSD, and what this node keeps is in memory, lost with its power";

/// Where the folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFolder {
    /// On a pool.
    Pool(Space),
    /// In memory: there is no SSD.
    Memory,
}

impl Storage {
    /// Finds or makes the folder, and mounts it at `place`. If several pools have one, the last that was
    /// used counts.
    ///
    /// # Errors
    /// It can't be made or mounted.
    pub fn mount_node_folder(&self, place: &Path) -> Result<NodeFolder, StorageError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| StorageError::Io { pool: "node".to_owned(), what, source }
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(place);
        made.map_err(failed("making the node's folder"))?;
        match self.node_folder()? {
            Some(space) => {
                mount_at(&space.path, place).map_err(failed("mounting the node's folder"))?;
                Ok(NodeFolder::Pool(space))
            }
            None => {
                mount_memory(place).map_err(failed("mounting memory"))?;
                Ok(NodeFolder::Memory)
            }
        }
    }

    /// Fits the folder's promise to what is in it.
    ///
    /// # Errors
    /// The pool can't be read or written.
    pub fn fit_node_folder(&self, space: &Space) -> Result<Space, StorageError> {
        let name = file_name(&space.id).ok_or(StorageError::Name)?;
        let pools = self.lock();
        let pool = pools.iter().find(|pool| pool.is_good() && pool.name() == space.pool);
        let absent = || StorageError::Absent(space.id.clone());
        let pool = pool.ok_or_else(absent)?;
        let now = find_in(pool, Kind::NodeFolder, &space.id, &name)?.ok_or_else(absent)?;
        let Some(quotas) = pool.quotas() else { return Ok(now) };
        let used = quotas.used(&now.path).map_err(pool.io("measuring", &now.path))?;
        let left = self.left(&pools, pool)?;
        let size = used.map_or(now.size, |used| fitting(now.size, used, left));
        if size != now.size {
            folder::promise(pool, Kind::NodeFolder, &name, now.size, size)?;
            tracing::info!(from = now.size, to = size, "the node's folder");
        }
        Ok(Space { size, ..now })
    }

    /// The folder; none if there is no SSD that works.
    fn node_folder(&self) -> Result<Option<Space>, StorageError> {
        let (id, pools) = (id(), self.lock());
        let name = file_name(&id).ok_or(StorageError::Name)?;
        let mut found: Option<(SystemTime, &Pool, Space)> = None;
        let mut is_possible = false;
        for pool in pools.iter().filter(|pool| pool.is_good()) {
            is_possible |= self.has_rooms(&pools, pool);
            let Some(space) = find_in(pool, Kind::NodeFolder, &id, &name)? else { continue };
            let folder = pool.folder(Kind::NodeFolder).join(&name);
            let used_at = fs::metadata(&folder).and_then(|folder| folder.modified());
            let used_at = used_at.map_err(pool.io("looking at", &folder))?;
            if found.as_ref().is_none_or(|(last, ..)| used_at > *last) {
                found = Some((used_at, pool, space));
            }
        }
        if let Some((_, pool, space)) = found {
            // The same promise anew: from now on it is the last that was used.
            folder::promise(pool, Kind::NodeFolder, &name, space.size, space.size)?;
            return Ok(Some(space));
        }
        if !is_possible {
            return Ok(None);
        }
        let pool = self.roomiest(&pools, 1)?;
        // A small disk is not only for the node.
        let size = STEP.min(self.left(&pools, pool)? / 2).max(1);
        folder::make(pool, Kind::NodeFolder, &name, size)?;
        tracing::info!(pool = pool.name(), size, "the node's folder is made");
        find_in(pool, Kind::NodeFolder, &id, &name)
    }
}

/// What is promised of the folder from now on.
fn fitting(size: u64, used: u64, left: u64) -> u64 {
    let percent = used.saturating_mul(100) / size.max(1);
    if percent >= USED_MAX {
        return size + STEP.min(left);
    }
    if percent < USED_MIN {
        return used.saturating_mul(2).div_ceil(STEP).max(1).saturating_mul(STEP).min(size);
    }
    size
}

fn id() -> WorkloadId {
    WorkloadId { twin_id: TwinId(0), contract_id: ContractId(0), name: Name::new("cache") }
}

/// Shows a folder at another place, too. Can be repeated.
fn mount_at(folder: &Path, place: &Path) -> io::Result<()> {
    let number = |path: &Path| fs::metadata(path).map(|folder| (folder.dev(), folder.ino()));
    if number(folder)? == number(place)? {
        return Ok(());
    }
    mount_bind(folder, place).map_err(io::Error::from)
}

fn mount_memory(place: &Path) -> io::Result<()> {
    let parent = fs::metadata(place.join(".."))?;
    if fs::metadata(place)?.dev() != parent.dev() {
        return Ok(());
    }
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount("none", place, "tmpfs", flags, MEMORY_OPTIONS).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::super::{PoolConfig, PoolKind};
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_promise_follows_what_is_in_it() {
        let much = 100 * GIB;
        for (size, used, left, expected) in [
            (5 * GIB, 0, much, 5 * GIB),
            (5 * GIB, 2 * GIB, much, 5 * GIB),
            (5 * GIB, 3 * GIB, much, 10 * GIB),
            (5 * GIB, 3 * GIB, GIB, 6 * GIB),
            (5 * GIB, 5 * GIB, 0, 5 * GIB),
            (50 * GIB, 9 * GIB, much, 20 * GIB),
            (50 * GIB, 10 * GIB, much, 50 * GIB),
            (20 * GIB, GIB, much, 5 * GIB),
            // A small disk's.
            (GIB, 0, much, GIB),
        ] {
            assert_eq!(fitting(size, used, left), expected, "{size} {used} {left}");
        }
    }

    #[test]
    fn the_last_that_was_used_counts_and_a_new_one_is_made_where_most_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let config = |name: &str, kind, size| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            let name = name.to_owned();
            PoolConfig { name, path, kind, size_max: Some(size), mount_point: false }
        };
        let hdd = config("hdd", PoolKind::Hdd, 90 << 20);
        let storage = Storage::open(std::slice::from_ref(&hdd)).unwrap();
        assert_eq!(storage.node_folder().unwrap(), None);
        drop(storage);
        // Without any, hard disks may do.
        let storage = Storage::open(&[hdd]).unwrap().with_missing_ssd(true);
        assert_eq!(storage.node_folder().unwrap().unwrap().pool, "hdd");
        let (one, two) =
            (config("one", PoolKind::Ssd, 20 << 20), config("two", PoolKind::Ssd, 30 << 20));
        let storage = Storage::open(std::slice::from_ref(&one)).unwrap();
        let first = storage.node_folder().unwrap().unwrap();
        assert_eq!((first.pool.as_str(), first.size), ("one", 10 << 20));
        assert_eq!(storage.pools(&Default::default())[0].used, 10 << 20);
        drop(storage);
        let away = folder.path().join("away");
        fs::rename(folder.path().join("one"), &away).unwrap();
        let both = [one, two];
        let storage = Storage::open(&both).unwrap();
        assert_eq!(storage.node_folder().unwrap().unwrap().pool, "two");
        drop(storage);
        fs::rename(away, folder.path().join("one")).unwrap();
        // Clocks of file systems stand still for milliseconds.
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        let volume = first.path.parent().unwrap();
        fs::File::open(volume).unwrap().set_modified(long_ago).unwrap();
        let storage = Storage::open(&both).unwrap();
        assert_eq!(storage.node_folder().unwrap().unwrap().pool, "two");
        assert!(storage.inventory().unwrap().is_empty());
    }
}
