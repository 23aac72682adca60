//! One pool: its place, whether it works, and how much of it is promised.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use hostd_grid::derived::WorkloadId;
use rustix::fs::{FlockOperation, StatVfs, flock, statvfs};

use super::names::{self, MAKING, REMOVING};
use super::quota::{self, Quotas};
use super::{Kind, PoolConfig, PoolKind, StorageError, disk, folder};

/// Held by the one process that uses the pool.
const LOCK_NAME: &str = ".lock";
/// Written and removed to see whether the pool can be.
const PROBE_NAME: &str = ".probe";
/// What the file system keeps for itself: so much of it is not promised, as a divisor.
const MARGIN_DIVISOR: u64 = 64;

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    config: PoolConfig,
    /// None while it is broken.
    works: Option<Works>,
    /// Why it is.
    problem: Problem,
}

/// Why a pool is broken, in words.
#[derive(Debug, Clone, Default)]
pub(super) struct Problem(String);

impl Problem {
    /// Of the pool with this name.
    pub(super) fn error(&self, pool: &str) -> StorageError {
        StorageError::Broken { name: pool.to_owned(), reason: self.0.clone() }
    }
}

#[derive(Debug)]
struct Works {
    size: u64,
    /// Which file system it was when it was opened.
    device: u64,
    /// Of its file system, if that has any.
    quotas: Option<Quotas>,
    _lock: File,
}

impl Pool {
    /// Takes a pool, or has it broken.
    pub(super) fn open(config: PoolConfig) -> Self {
        let mut pool = Self { config, works: None, problem: Problem::default() };
        if let Err(error) = pool.check() {
            tracing::error!(%error, "a pool does not work");
        }
        pool
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.config.path
    }

    pub(super) fn kind(&self) -> PoolKind {
        self.config.kind
    }

    pub(super) fn is_good(&self) -> bool {
        self.works.is_some()
    }

    /// Bytes that may be promised; none while it is broken.
    pub(super) fn size(&self) -> u64 {
        self.works.as_ref().map_or(0, |works| works.size)
    }

    /// What holds folders to their promises.
    pub(super) fn quotas(&self) -> Option<&Quotas> {
        self.works.as_ref()?.quotas.as_ref()
    }

    /// Bytes that are promised.
    pub(super) fn promised(&self) -> Result<u64, StorageError> {
        let mut sum = 0_u64;
        for kind in Kind::ALL {
            for id in self.ids(kind)? {
                let Some(name) = names::file_name(&id) else { continue };
                let found = if kind.is_disk() {
                    disk::find(self, kind, &name)?
                } else {
                    folder::find(self, kind, &name)?
                };
                sum = sum.saturating_add(found.map_or(0, |(_, size)| size));
            }
        }
        Ok(sum)
    }

    /// Workloads that have something of this kind here.
    pub(super) fn ids(&self, kind: Kind) -> Result<Vec<WorkloadId>, StorageError> {
        let folder = self.folder(kind);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(self.io("reading", &folder))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(self.io("reading", &folder))?;
            ids.extend(entry.file_name().to_str().and_then(names::parse));
        }
        Ok(ids)
    }

    /// Where things of a kind are. It need not be there.
    pub(super) fn folder(&self, kind: Kind) -> PathBuf {
        self.config.path.join(kind.folder())
    }

    /// A folder in the pool, which is made if it is not there.
    pub(super) fn subfolder(&self, name: &str) -> Result<PathBuf, StorageError> {
        let path = self.config.path.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => self.sync(&self.config.path)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.io("making", &path)(error)),
        }
        Ok(path)
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync(&self, folder: &Path) -> Result<(), StorageError> {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(self.io("syncing", folder))
    }

    /// Makes something under another name, and lets it appear when it is whole.
    pub(super) fn make_whole(
        &self,
        kind: Kind,
        name: &str,
        doing: &str,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), StorageError> {
        let folder = self.subfolder(kind.folder())?;
        let making = folder.join(format!("{MAKING}{name}"));
        remove_all(&making).map_err(self.io("removing", &making))?;
        let made = make(&making).and_then(|()| fs::rename(&making, folder.join(name)));
        if let Err(error) = made {
            // Its space is needed; if that fails too, the pool is swept when it is opened next.
            let _ = remove_all(&making);
            return Err(self.io(doing, &making)(error));
        }
        self.sync(&folder)
    }

    /// Removes a folder that is nobody's any more, with its project.
    pub(super) fn discard(&self, folder: &Path) -> Result<(), StorageError> {
        let project = quota::project_of(&folder.join(folder::DATA_NAME)).ok().flatten();
        remove_all(folder).map_err(self.io("removing", folder))?;
        match (self.quotas(), project) {
            (Some(quotas), Some(project)) => {
                quotas.forget(project).map_err(self.io("freeing the quota of", folder))
            }
            _ => Ok(()),
        }
    }

    /// Says what was tried. Where the pool is, is not for its users to know.
    pub(super) fn io(&self, what: &str, path: &Path) -> impl Fn(io::Error) -> StorageError + use<> {
        let path = path.strip_prefix(&self.config.path).unwrap_or(path);
        let (pool, what) = (self.config.name.clone(), format!("{what} {}", path.display()));
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StorageError::Full(PoolKind::Ssd)
            }
            _ => StorageError::Io { pool: pool.clone(), what: what.clone(), source },
        }
    }

    /// Looks whether it works. One that came back is taken again.
    pub(super) fn check(&mut self) -> Result<(), StorageError> {
        self.try_check().map_err(|reason| {
            self.works = None;
            self.problem = Problem(reason);
            self.problem.error(&self.config.name)
        })
    }

    /// Why it is broken, if it is.
    pub(super) fn problem(&self) -> Problem {
        self.problem.clone()
    }

    fn try_check(&mut self) -> Result<(), String> {
        let path = self.config.path.clone();
        let text = |error: io::Error| error.to_string();
        let metadata = fs::metadata(&path).map_err(text)?;
        if self.config.mount_point && is_same_file_system(&path, &metadata).map_err(text)? {
            return Err("its file system is not mounted".to_owned());
        }
        if self.works.as_ref().is_some_and(|works| works.device != metadata.dev()) {
            // Another file system is in its place: to be opened anew.
            self.works = None;
        }
        probe(&path).map_err(text)?;
        let size = size(&statvfs(&path).map_err(|error| text(error.into()))?, &self.config);
        if let Some(works) = &mut self.works {
            works.size = size;
            return Ok(());
        }
        let lock = lock(&path).map_err(text)?;
        self.sweep().map_err(text)?;
        let quotas = Quotas::open(&path).map_err(text)?;
        if let Some(quotas) = &quotas {
            self.settle(quotas).map_err(|error| error.to_string())?;
        }
        self.works = Some(Works { size, device: metadata.dev(), quotas, _lock: lock });
        tracing::info!(pool = self.name(), kind = %self.kind(), size, "pool");
        Ok(())
    }

    /// Has the file system hold each folder to what was promised, whatever a crash left.
    fn settle(&self, quotas: &Quotas) -> Result<(), StorageError> {
        let mut promised = BTreeMap::new();
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_disk()) {
            for id in self.ids(kind)? {
                let Some(name) = names::file_name(&id) else { continue };
                let Some((path, size)) = folder::find(self, kind, &name)? else { continue };
                let project = quota::project_of(&path).map_err(self.io("looking at", &path))?;
                promised.extend(project.map(|project| (project, size)));
            }
        }
        quotas.settle(&promised).map_err(self.io("setting quotas of", &self.config.path))
    }

    /// Removes what a crash left half-made or half-removed.
    fn sweep(&self) -> io::Result<()> {
        for kind in Kind::ALL {
            let folder = self.folder(kind);
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with(MAKING) || name.starts_with(REMOVING) {
                    tracing::info!(path = %entry.path().display(), "swept");
                    remove_all(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// Removes a file or a folder; one that is not there is no error.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a folder that a machine has filled: however deep, without recursion. Folders in folders are
/// moved up to the top first, under names that are not taken there; what a crash leaves is as good to
/// begin with.
fn remove_tree(top: &Path) -> io::Result<()> {
    let mut number = 0_u64;
    loop {
        let mut is_empty = true;
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            is_empty = false;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if inner.file_type()?.is_dir() {
                    let place = free_name(top, &mut number);
                    fs::rename(inner.path(), place)?;
                } else {
                    fs::remove_file(inner.path())?;
                }
            }
            match fs::remove_dir(entry.path()) {
                // A listing may miss what was moved while it was read: the next round has it.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                other => other?,
            }
        }
        if is_empty {
            return fs::remove_dir(top);
        }
    }
}

fn free_name(top: &Path, number: &mut u64) -> PathBuf {
    loop {
        let path = top.join(format!("up-{number}"));
        *number += 1;
        if fs::symlink_metadata(&path).is_err() {
            return path;
        }
    }
}

fn is_same_file_system(path: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
    let parent = fs::metadata(path.join(".."))?;
    Ok(parent.dev() == metadata.dev())
}

/// A disk that fails turns read-only: only a write shows it.
fn probe(pool: &Path) -> io::Result<()> {
    let path = pool.join(PROBE_NAME);
    // A full pool is a good one: nothing is written.
    let made = File::options().create(true).truncate(true).write(true).open(&path);
    match made {
        Ok(_) => fs::remove_file(&path),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        Err(error) => Err(error),
    }
}

fn lock(pool: &Path) -> io::Result<File> {
    let path = pool.join(LOCK_NAME);
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        let error = io::Error::from(errno);
        match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::other("another process uses this pool"),
            _ => error,
        }
    })?;
    Ok(file)
}

/// What may be promised: not what only root may use, nor a margin for the file system's own needs.
fn size(statistics: &StatVfs, config: &PoolConfig) -> u64 {
    let reserved = statistics.f_bfree.saturating_sub(statistics.f_bavail);
    let blocks = statistics.f_blocks.saturating_sub(reserved);
    let bytes = blocks.saturating_mul(statistics.f_frsize);
    let usable = bytes - bytes / MARGIN_DIVISOR;
    config.size_max.map_or(usable, |size_max| size_max.min(usable))
}
