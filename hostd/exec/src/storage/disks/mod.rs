//! The machine's disks: those that are nobody's become pools.
//!
//! ```text
//!   found ──► judge ──► claim: table, mkfs, type POOL ──► mounted at MOUNTS/zos-1a2b3c4d ──► a pool
//!   /sys       what is on it                                └─ .seektime: ssd or hdd, measured once
//! ```
//!
//! A blank disk gets one partition; of a disk that others have partitions on, the largest piece that is
//! nobody's is taken. Whatever holds anything at all is left alone, and the reason is told. A pool is
//! known by its partition's type and called by the partition's own number, whatever the kernel calls its
//! disk; two disks with the same number are copies of each other, and nobody can tell which one counts.
//!
//! Hard disks that nobody has anything on rest ([`Rest`]).
//!
//! Nothing is remembered but on the disks themselves and, in [`remember`], the names of pools that there
//! once were: one that is missing is broken, and not forgotten.

mod claim;
mod contents;
mod found;
mod gpt;
mod guid;
mod judge;
mod kernel;
mod rest;
mod seek;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::claim::{Kernel, Outcome, prepare as prepare_one};
use self::found::{Device, Roots};
use self::guid::Guid;
use self::judge::{Verdict, judge};
use self::kernel::Linux;
pub use self::rest::{Asked, Drives, Rest};
use super::{PoolConfig, PoolKind};
use crate::kept::{read_json, write_whole};

/// The file of a pool that says what it is made of, as existing nodes have it.
const KIND_NAME: &str = ".seektime";
/// Bytes of the file with the names of pools.
const NAMES_SIZE_MAX: u64 = 1 << 20;

/// Which disks become pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskUse {
    /// None by itself: pools are what the configuration names.
    #[default]
    None,
    /// All that are nobody's.
    Auto,
}

/// What is needed to prepare disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisksConfig {
    /// The folder that pools are mounted in.
    pub mounts: PathBuf,
    /// `mkfs.ext4`.
    pub mkfs: PathBuf,
    /// `e2fsck`.
    pub fsck: PathBuf,
}

/// A disk, and what it is to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The kernel's name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Its maker's number for it, by which it is found in the machine.
    pub serial: Option<String>,
    /// The pool that it has.
    pub pool: Option<String>,
    /// `ssd` or `hdd`, if it has a pool.
    #[serde(rename = "type")]
    pub kind: Option<&'static str>,
    /// What it is to the node, in words.
    pub what: String,
}

/// What came of all disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prepared {
    /// All of them.
    pub disks: Vec<Found>,
    /// The pools, mounted if that was possible.
    pub pools: Vec<PoolConfig>,
}

/// Bytes in sectors.
pub(super) trait Block {
    /// Fills `bytes` from a place.
    fn read_at(&self, bytes: &mut [u8], place: u64) -> io::Result<()>;
    /// Writes all of them.
    fn write_at(&self, bytes: &[u8], place: u64) -> io::Result<()>;
    /// Returns when all that was written stays.
    fn sync(&self) -> io::Result<()>;
}

/// Makes pools of all disks that are nobody's, and mounts all pools. A disk that fails is no error. Can
/// be repeated, and interrupted anywhere.
///
/// # Errors
/// The kernel does not tell its disks.
pub fn prepare(config: &DisksConfig) -> io::Result<Prepared> {
    let kernel = config.kernel();
    let devices = kernel.roots.disks()?;
    // Disks are slow, and don't wait for each other.
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = devices
            .iter()
            .map(|device| scope.spawn(|| prepare_one(&kernel, &device.name)))
            .collect();
        let failed = || Err(io::Error::other("it could not be looked at"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| failed())).collect()
    });
    let mut prepared = Prepared::default();
    let copies = copies(&devices, &outcomes);
    for (device, outcome) in devices.into_iter().zip(outcomes) {
        let mut found = Found::new(&device);
        match outcome {
            Ok(Outcome::Pool(id, _)) if copies.contains_key(&id) && copies[&id] != device.name => {
                found.what = "left alone: another disk is the same, or a copy of it".to_owned();
            }
            // Numbers of others' partitions are not ours to choose.
            Ok(Outcome::Pool(id, _)) if prepared.has(&label(id)) => {
                found.what = "left alone: another pool has its name".to_owned();
            }
            Ok(Outcome::Pool(id, number)) => {
                let pool = config.take(&kernel, &device, id, number, &mut found);
                prepared.pools.push(pool);
            }
            Ok(Outcome::Left(reason)) => found.what = format!("left alone: {reason}"),
            Err(error) => found.what = format!("not usable: {error}"),
        }
        tracing::info!(disk = found.name, pool = found.pool, what = found.what, "disk");
        prepared.disks.push(found);
    }
    Ok(prepared)
}

/// What [`prepare`] would do. Changes nothing.
///
/// # Errors
/// The kernel does not tell its disks.
pub fn look(config: &DisksConfig) -> io::Result<Vec<Found>> {
    let kernel = config.kernel();
    let look = |device: Device| {
        let mut found = Found::new(&device);
        let judged = kernel.open(&device.name).and_then(|disk| {
            let new = kernel.new_id()?;
            judge(&device, &disk, new)
        });
        match judged {
            Ok(Verdict::Pool { id, .. }) => {
                found.pool = Some(label(id));
                found.kind = kernel::read_note(&config.place(id), KIND_NAME)
                    .and_then(|text| PoolKind::named(&text))
                    .map(PoolKind::name);
                found.what = "a pool".to_owned();
            }
            Ok(Verdict::Write(_) | Verdict::Format { .. }) => {
                found.what = "becomes a pool".to_owned();
            }
            Ok(Verdict::Leave(reason)) => found.what = format!("left alone: {reason}"),
            Err(error) => found.what = format!("not usable: {error}"),
        }
        found
    };
    Ok(kernel.roots.disks()?.into_iter().map(look).collect())
}

/// Adds pools that were there once, by the file of their names, and writes those that are new to it.
///
/// # Errors
/// The file can't be read or written, or holds something else.
pub fn remember(file: &Path, mounts: &Path, pools: &mut Vec<PoolConfig>) -> io::Result<()> {
    let mut names: BTreeMap<String, PoolKind> =
        read_json(file, NAMES_SIZE_MAX)?.unwrap_or_default();
    let known = names.clone();
    names.extend(pools.iter().map(|pool| (pool.name.clone(), pool.kind)));
    if names != known {
        write_whole(file, &serde_json::to_vec_pretty(&names)?)?;
    }
    let here: BTreeSet<String> = pools.iter().map(|pool| pool.name.clone()).collect();
    for (name, kind) in names.into_iter().filter(|(name, _)| !here.contains(name)) {
        tracing::error!(pool = name, "a pool's disk is missing");
        // Its name is ours; whatever the file holds, it is no way out of the folder.
        let path = mounts.join(name.replace(['/', '\0'], "_"));
        pools.push(PoolConfig { name, path, kind, size_max: None, mount_point: true });
    }
    Ok(())
}

impl DisksConfig {
    fn kernel(&self) -> Linux {
        Linux { roots: Roots::default(), mkfs: self.mkfs.clone(), fsck: self.fsck.clone() }
    }

    fn place(&self, id: Guid) -> PathBuf {
        self.mounts.join(label(id))
    }

    /// Mounts a disk's pool, and finds out what it is made of.
    fn take(
        &self,
        kernel: &Linux,
        device: &Device,
        id: Guid,
        number: usize,
        found: &mut Found,
    ) -> PoolConfig {
        let path = self.place(id);
        let mounted = kernel
            .partition(&device.name, |partition| partition.number == number)
            .and_then(|partition| kernel.mount(&partition, &path));
        let measured = match &mounted {
            Ok(()) => kind_of(kernel, device, &path),
            Err(_) => Ok(if device.is_rotational { PoolKind::Hdd } else { PoolKind::Ssd }),
        };
        let kind = measured.unwrap_or_else(|error| {
            tracing::warn!(disk = device.name, %error, "whether it turns is not known");
            PoolKind::Hdd
        });
        found.pool = Some(label(id));
        found.kind = Some(kind.name());
        found.what = match mounted {
            Ok(()) => "a pool".to_owned(),
            Err(error) => format!("a pool that can't be mounted: {error}"),
        };
        PoolConfig { name: label(id), path, kind, size_max: None, mount_point: true }
    }
}

impl Prepared {
    fn has(&self, name: &str) -> bool {
        self.pools.iter().any(|pool| pool.name == name)
    }
}

impl Found {
    fn new(device: &Device) -> Self {
        let (name, size, serial) = (device.name.clone(), device.size, device.serial.clone());
        Self { name, size, serial, pool: None, kind: None, what: String::new() }
    }
}

/// Numbers that several disks have, each with the name of the one that counts: the first, if both are the
/// same disk on two ways; none, if they are not.
fn copies(devices: &[Device], outcomes: &[io::Result<Outcome>]) -> BTreeMap<Guid, String> {
    let mut seen: BTreeMap<Guid, Vec<&Device>> = BTreeMap::new();
    for (device, outcome) in devices.iter().zip(outcomes) {
        if let Ok(Outcome::Pool(id, _)) = outcome {
            seen.entry(*id).or_default().push(device);
        }
    }
    let several = seen.into_iter().filter(|(_, devices)| devices.len() > 1);
    several
        .map(|(id, devices)| {
            let identity = &devices[0].identity;
            let is_one =
                identity.is_some() && devices.iter().all(|other| other.identity == *identity);
            (id, if is_one { devices[0].name.clone() } else { String::new() })
        })
        .collect()
}

/// What a pool is made of: what it says itself, or else what is measured now, and said from now on.
fn kind_of(kernel: &Linux, device: &Device, pool: &Path) -> io::Result<PoolKind> {
    if let Some(kind) = kernel::read_note(pool, KIND_NAME).and_then(|text| PoolKind::named(&text)) {
        return Ok(kind);
    }
    let kind = match device.is_rotational {
        true => seek::kind(&kernel.roots.node(&device.name), device.size)?,
        false => PoolKind::Ssd,
    };
    write_whole(&pool.join(KIND_NAME), kind.name().as_bytes())?;
    Ok(kind)
}

/// The name of a pool, and its file system's label.
fn label(id: Guid) -> String {
    format!("zos-{}", id.short())
}
