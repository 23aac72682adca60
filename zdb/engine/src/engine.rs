//! The folders of a server: which namespaces there are, their coming and going, and the space
//! reserved for hard times.
//!
//! An [`Engine`] is shared by all threads of a server; a [`Namespace`] belongs to one. The
//! reserve is a file of [`Options::reserve_size`] bytes. When the disk is full it is given up, so
//! that deletions and compaction still can write, while other writes are refused; it is made
//! again when space returns.

use std::path::PathBuf;
use std::sync::Arc;

use crate::storage::{Space, Storage};
use crate::{Error, MasterKey, Name, Namespace, Settings};

/// Where and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the logs. Made if it doesn't exist.
    pub data: PathBuf,
    /// Folder of the index files; another than `data`. Made if it doesn't exist.
    pub index: PathBuf,
    /// Most bytes of a segment, [`SEGMENT_SIZE_MIN`](Self::SEGMENT_SIZE_MIN) to
    /// [`SEGMENT_SIZE_MAX`](Self::SEGMENT_SIZE_MAX); a single larger record is accepted.
    pub segment_size: u32,
    /// Bytes kept back for deletions and compaction on a full disk.
    pub reserve_size: u64,
    /// Seals namespaces' passwords in their descriptors; without it they are stored as they are.
    pub password_key: Option<MasterKey>,
    /// Most files that a namespace keeps open.
    pub open_files_max: usize,
}

impl Options {
    /// Smallest limit of a segment (`reference: zdb 2.1`, `--datasize`).
    pub const SEGMENT_SIZE_MIN: u32 = 512 * 1024;
    /// Largest limit of a segment: offsets have 32 bits.
    pub const SEGMENT_SIZE_MAX: u32 = u32::MAX;

    /// Defaults for these folders.
    #[must_use]
    pub fn new(data: PathBuf, index: PathBuf) -> Self {
        Self {
            data,
            index,
            segment_size: 64 * 1024 * 1024,
            reserve_size: 64 * 1024 * 1024,
            password_key: None,
            open_files_max: 256,
        }
    }
}

/// Free space on the disks of both folders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeSpace {
    /// Where the logs are.
    pub data: Space,
    /// Where the index files are.
    pub index: Space,
}

/// The namespaces of a server. Clones share everything.
#[derive(Clone, Debug)]
pub struct Engine {
    storage: Arc<dyn Storage>,
    options: Arc<Options>,
}

impl Engine {
    /// Takes the folders, and finishes what a crash left half-made or half-removed. Loads no
    /// namespace.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process has them; [`Error::File`].
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<Self, Error> {
        Ok(Self { storage, options: Arc::new(options) })
    }

    /// All namespaces, sorted by name, damaged ones included.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn names(&self) -> Result<Vec<Name>, Error> {
        unimplemented!()
    }

    /// Makes a namespace. It survives a crash when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::DiskFull`], [`Error::File`].
    pub fn create(&self, _name: &Name, _settings: Settings) -> Result<Namespace, Error> {
        unimplemented!()
    }

    /// Makes a namespace whose keys and values are encrypted.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_encrypted(
        &self,
        _name: &Name,
        _settings: Settings,
        _key: &MasterKey,
    ) -> Result<Namespace, Error> {
        unimplemented!()
    }

    /// Loads a namespace: reads its index files and the log's tail. An encrypted one answers
    /// [`Error::KeyNeeded`] until [`Namespace::unlock`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchNamespace`], [`Error::Loaded`], [`Error::Descriptor`], [`Error::Read`],
    /// [`Error::File`]. Damage in the log is not an error: see
    /// [`Stats::quarantined_segments`](crate::Stats::quarantined_segments).
    pub fn load(&self, _name: &Name) -> Result<Namespace, Error> {
        unimplemented!()
    }

    /// Removes a namespace and all it holds, loaded or not. It stays removed when this returns;
    /// files go in [`tick`](Self::tick). A loaded [`Namespace`] must have been dropped.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchNamespace`], [`Error::Loaded`], [`Error::File`].
    pub fn remove(&self, _name: &Name) -> Result<(), Error> {
        unimplemented!()
    }

    /// Upkeep of what namespaces share, once a second or so: removes a few files of removed
    /// namespaces, makes the reserve again when there is space.
    pub fn tick(&self) {
        unimplemented!()
    }

    /// Whether the reserve is given up: writes are refused, deletions taken.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        unimplemented!()
    }

    /// Room on the disks.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn free_space(&self) -> Result<FreeSpace, Error> {
        unimplemented!()
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }
}
