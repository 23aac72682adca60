//! What storage is about: pools, what is promised of them, and why something was not done.

use std::fmt;
use std::path::PathBuf;

use hostd_grid::derived::{ShortId, WorkloadId};
use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

    /// The kind of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Ssd, Self::Hdd].into_iter().find(|kind| kind.name() == name)
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
    /// A directory for what the node keeps for itself.
    NodeFolder,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ZMount, Self::Volume, Self::RootDisk, Self::RootFolder, Self::NodeFolder];

    /// Whether it is a file.
    pub fn is_disk(self) -> bool {
        matches!(self, Self::ZMount | Self::RootDisk)
    }

    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::ZMount => "vdisks",
            Self::Volume => "volumes",
            Self::RootDisk => "root-disks",
            Self::RootFolder => "root-folders",
            Self::NodeFolder => "node",
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
