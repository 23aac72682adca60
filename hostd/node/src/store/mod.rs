//! Deployments on disk: what was accepted, and what became of it.
//!
//! ```text
//! FOLDER/<twin>-<contract>/<version>.body     a deployment as it came, with the hash that was verified
//!                          states.log         entries: accepted, confirmed, states of workloads …
//! ```
//!
//! All of it is sealed and durable before anybody acts on it. A body appears whole or not at
//! all, and counts only when the log says that it was accepted. It is read with its hash checked
//! again, so a deployment that was not verified once can't get in this way. A folder that is damaged is
//! reported and left alone: its workloads are kept, since nobody knows what they are.

mod disk;
mod entry;
mod log;
mod seal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostd_grid::challenge::DeploymentHash;
use hostd_grid::limits::DEPLOYMENT_SIZE_MAX;
use hostd_grid::{ContractId, SignedDeployment, TwinId, VerifiedDeployment};

#[cfg(test)]
pub(crate) use disk::Watcher;
use disk::{Disk, PART};
pub(crate) use entry::Entry;
pub(crate) use log::Log;
pub use seal::StoreKey;

/// Bytes of a hash as text, in front of a body.
const HASH_SIZE: usize = 32;
/// What the name of a folder that is being removed ends with.
const GONE: &str = ".gone";

/// Which deployment: contracts are numbered by the chain, but anybody can name one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) twin_id: TwinId,
    pub(crate) contract_id: ContractId,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.twin_id, self.contract_id)
    }
}

impl Key {
    fn parse(name: &str) -> Option<Self> {
        let (twin, contract) = name.split_once('-')?;
        let key = Self {
            twin_id: TwinId(twin.parse().ok()?),
            contract_id: ContractId(contract.parse().ok()?),
        };
        (key.to_string() == name).then_some(key)
    }
}

/// Why something is not on disk, or can't be read from it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk says no.
    #[error("{path}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: String,
        /// How.
        reason: String,
    },
}

impl StoreError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    fn damaged(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Damaged { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// A deployment as it was found on disk.
pub(crate) struct Loaded {
    pub(crate) key: Key,
    pub(crate) bodies: BTreeMap<u32, Arc<VerifiedDeployment>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) log: Log,
}

/// All that was found on disk.
#[derive(Default)]
pub(crate) struct Inventory {
    pub(crate) deployments: Vec<Loaded>,
    /// What can't be read, and why.
    pub(crate) damaged: Vec<(Key, StoreError)>,
}

/// A folder of deployments.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    key: StoreKey,
    disk: Disk,
}

impl Store {
    /// Opens a folder, or makes it.
    ///
    /// # Errors
    ///
    /// It can't be made.
    pub fn open(folder: impl Into<PathBuf>, key: StoreKey) -> Result<Self, StoreError> {
        let (folder, disk) = (folder.into(), Disk::default());
        disk.make_folder(&folder)?;
        Ok(Self { folder, key, disk })
    }

    /// Opens a folder that is there. Each boundary between two changes is told.
    #[cfg(test)]
    pub(crate) fn watched(folder: &Path, key: StoreKey, watcher: Watcher) -> Self {
        Self { folder: folder.to_owned(), key, disk: Disk { watcher: Some(watcher) } }
    }

    /// Reads everything.
    pub(crate) fn load(&self) -> Result<Inventory, StoreError> {
        let error = |error| StoreError::io(&self.folder, error);
        let mut inventory = Inventory::default();
        for found in fs::read_dir(&self.folder).map_err(error)? {
            let path = found.map_err(error)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(GONE) {
                self.disk.remove_folder(&path)?;
                continue;
            }
            let Some(key) = Key::parse(name) else { continue };
            match self.load_one(key) {
                Ok(Some(loaded)) => inventory.deployments.push(loaded),
                // Nobody was told that it was accepted.
                Ok(None) => self.remove(key)?,
                Err(error) => inventory.damaged.push((key, error)),
            }
        }
        inventory.deployments.sort_by_key(|loaded| loaded.key);
        Ok(inventory)
    }

    fn load_one(&self, key: Key) -> Result<Option<Loaded>, StoreError> {
        let path = self.log_path(key);
        let (log, records) = Log::read(&path, &key.to_string(), &self.key)?;
        let mut entries = Vec::new();
        for record in records {
            let read = Entry::from_json(&record);
            entries.extend(read.ok_or_else(|| StoreError::damaged(&path, "an entry is unknown"))?);
        }
        let mut bodies = BTreeMap::new();
        let versions = accepted(&entries);
        self.clear_parts(key)?;
        for version in self.versions(key)? {
            if versions.contains(&version) {
                bodies.insert(version, Arc::new(self.load_body(key, version)?));
            } else {
                self.drop_body(key, version)?;
            }
        }
        match versions.last() {
            None => Ok(None),
            Some(newest) if !bodies.contains_key(newest) => {
                Err(StoreError::damaged(&self.body_path(key, *newest), "it is not there"))
            }
            Some(_) => Ok(Some(Loaded { key, bodies, entries, log })),
        }
    }

    fn load_body(&self, key: Key, version: u32) -> Result<VerifiedDeployment, StoreError> {
        let path = self.body_path(key, version);
        let damaged = |reason: &dyn fmt::Display| StoreError::damaged(&path, reason);
        let sealed = fs::read(&path).map_err(|error| StoreError::io(&path, error))?;
        if sealed.len() > HASH_SIZE + DEPLOYMENT_SIZE_MAX + seal::OVERHEAD {
            return Err(damaged(&"it is too large"));
        }
        let place = body_place(key, version);
        let plain = self.key.open(&place, &sealed).map_err(|error| damaged(&error))?;
        let (hash, original) =
            plain.split_at_checked(HASH_SIZE).ok_or_else(|| damaged(&"it is too short"))?;
        let hash: DeploymentHash =
            String::from_utf8_lossy(hash).parse().map_err(|error| damaged(&error))?;
        let signed = SignedDeployment::read(original).map_err(|error| damaged(&error))?;
        let verified = signed.recheck(hash).map_err(|error| damaged(&error))?;
        let deployment = verified.deployment();
        let found = Key { twin_id: deployment.twin_id, contract_id: deployment.contract_id };
        if found != key || deployment.version != version {
            return Err(damaged(&"it is another deployment"));
        }
        Ok(verified)
    }

    /// Writes a version's body.
    pub(crate) fn put_body(&self, key: Key, body: &VerifiedDeployment) -> Result<(), StoreError> {
        let version = body.deployment().version;
        let path = self.body_path(key, version);
        self.disk.make_folder(&self.folder_of(key))?;
        self.disk.sync_folder(&self.folder)?;
        let plain = [body.hash().to_string().as_bytes(), body.original()].concat();
        let sealed = self.key.seal(&body_place(key, version), &plain);
        let sealed = sealed.map_err(|error| StoreError::damaged(&path, error))?;
        self.disk.write_whole(&path, &sealed)
    }

    /// Forgets a version's body. One that is not there is no error.
    pub(crate) fn drop_body(&self, key: Key, version: u32) -> Result<(), StoreError> {
        self.disk.remove_file(&self.body_path(key, version))
    }

    /// Adds entries that become true together.
    pub(crate) fn append(
        &self,
        key: Key,
        log: &mut Log,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        let path = self.log_path(key);
        let record = Entry::to_json(entries).map_err(|error| StoreError::damaged(&path, error))?;
        log.append(&self.disk, &path, &key.to_string(), &self.key, &record)
    }

    /// Puts these entries in the place of all others.
    pub(crate) fn rewrite(
        &self,
        key: Key,
        log: &mut Log,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        let path = self.log_path(key);
        let record = Entry::to_json(entries).map_err(|error| StoreError::damaged(&path, error))?;
        log.rewrite(&self.disk, &path, &key.to_string(), &self.key, &[record])
    }

    /// Forgets a deployment altogether.
    pub(crate) fn remove(&self, key: Key) -> Result<(), StoreError> {
        let folder = self.folder_of(key);
        let gone = self.folder.join(format!("{key}{GONE}"));
        let error = |error| StoreError::io(&folder, error);
        // A name of its own, so that a half removed folder is not taken for a damaged one.
        match self.disk.rename(&folder, &gone) {
            Err(found) if found.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(error)?,
        }
        self.disk.sync_folder(&self.folder)?;
        self.disk.remove_folder(&gone)
    }

    /// Removes what was never whole.
    fn clear_parts(&self, key: Key) -> Result<(), StoreError> {
        let folder = self.folder_of(key);
        let error = |error| StoreError::io(&folder, error);
        for found in fs::read_dir(&folder).map_err(error)? {
            let path = found.map_err(error)?.path();
            if path.extension().is_some_and(|extension| extension == PART) {
                self.disk.remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn versions(&self, key: Key) -> Result<Vec<u32>, StoreError> {
        let folder = self.folder_of(key);
        let error = |error| StoreError::io(&folder, error);
        let mut versions = Vec::new();
        for found in fs::read_dir(&folder).map_err(error)? {
            let name = found.map_err(error)?.file_name();
            let version = name.to_str().and_then(|name| name.strip_suffix(".body"));
            versions.extend(version.and_then(|version| version.parse::<u32>().ok()));
        }
        Ok(versions)
    }

    fn folder_of(&self, key: Key) -> PathBuf {
        self.folder.join(key.to_string())
    }

    fn body_path(&self, key: Key, version: u32) -> PathBuf {
        self.folder_of(key).join(format!("{version}.body"))
    }

    fn log_path(&self, key: Key) -> PathBuf {
        self.folder_of(key).join("states.log")
    }
}

/// Versions that were accepted, and not rejected since, unless nothing came before.
fn accepted(entries: &[Entry]) -> BTreeSet<u32> {
    let mut versions = BTreeSet::new();
    for entry in entries {
        match entry {
            Entry::Accepted { version } => {
                versions.insert(*version);
            }
            Entry::Rejected { version, .. } if versions.len() > 1 => {
                versions.remove(version);
            }
            _ => {}
        }
    }
    versions
}

fn body_place(key: Key, version: u32) -> String {
    format!("{key}/{version}")
}

#[cfg(test)]
mod tests;
