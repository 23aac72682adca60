//! The folders of a server: which namespaces there are, their coming and going, and the space
//! reserved for hard times.
//!
//! An [`Engine`] is shared by all threads of a server; a [`Namespace`] belongs to one. The
//! reserve is a file of [`Options::reserve_size`] bytes. When the disk is full it is given up, so
//! that deletions and compaction still can write, while other writes are refused; it is made
//! again when space returns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::descriptor::{DESCRIPTOR_NAME, Descriptor};
use crate::log::segment::{Folders, write_error};
use crate::shared::{Claim, Shared};
use crate::storage::{Open, Space, Storage};
use crate::{Error, Name, Namespace, Secret, Settings};

const LOCK_NAME: &str = ".lockfile";
const NEW_PREFIX: &str = ".new-";
const TRASH_PREFIX: &str = ".trash-";
/// Files of removed namespaces that one tick removes.
const TRASH_STEP: usize = 64;

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
    pub secret: Option<Secret>,
    /// Most files that a namespace keeps open.
    pub open_files_max: usize,
    /// Most bytes of segments that all namespaces together keep in memory, so that small reads need
    /// no call to the system.
    pub cache_size: u64,
    /// Whether segments end, begin and are replaced beside the caller. What blocks becomes tickets of
    /// [`Namespace::begin_sync`], which must be run for writes to go on; while they run, some calls
    /// give [`Error::Busy`]. Otherwise they block.
    pub defers: bool,
}

impl Options {
    /// Smallest limit of a segment.
    pub const SEGMENT_SIZE_MIN: u32 = 64 * 1024;
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
            secret: None,
            open_files_max: 256,
            cache_size: 128 * 1024 * 1024,
            defers: false,
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
    shared: Arc<Shared>,
}

impl Engine {
    /// Takes the folders, and finishes what a crash left half-made or half-removed. Loads no
    /// namespace.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process has them; [`Error::File`].
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<Self, Error> {
        let lock = |folder: &PathBuf| {
            make_folder(&*storage, folder)?;
            storage.lock(&folder.join(LOCK_NAME)).map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock => Error::InUse { path: folder.display().to_string() },
                _ => file_error(source, folder),
            })
        };
        let locks = [lock(&options.data)?, lock(&options.index)?];
        let mut options = options;
        options.segment_size =
            options.segment_size.clamp(Options::SEGMENT_SIZE_MIN, Options::SEGMENT_SIZE_MAX);
        options.open_files_max = options.open_files_max.max(1);
        let shared = Shared::new(storage, options, locks);
        let engine = Self { shared: Arc::new(shared) };
        engine.throw_away_half_made()?;
        Ok(engine)
    }

    /// All namespaces, sorted by name, damaged ones included.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn names(&self) -> Result<Vec<Name>, Error> {
        let data = &self.shared.options.data;
        let listed = self.shared.storage.list(data).map_err(|error| file_error(error, data))?;
        let mut names: Vec<Name> =
            listed.iter().filter_map(|folder| Name::from_folder(folder)).collect();
        names.retain(|name| !self.is_foreign(name));
        names.sort();
        Ok(names)
    }

    /// Makes a namespace. It survives a crash when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::DiskFull`], [`Error::File`].
    pub fn create(&self, name: &Name, settings: Settings) -> Result<Namespace, Error> {
        self.make(name, settings, None)
    }

    /// Makes a namespace whose keys and values are encrypted.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_encrypted(
        &self,
        name: &Name,
        settings: Settings,
        secret: &Secret,
    ) -> Result<Namespace, Error> {
        self.make(name, settings, Some(secret))
    }

    /// Loads a namespace: reads its index files and the log's tail. An encrypted one answers
    /// [`Error::KeyNeeded`] until [`Namespace::unlock`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchNamespace`], [`Error::Loaded`], [`Error::Descriptor`], [`Error::Read`],
    /// [`Error::File`]. Damage in the log is not an error: see
    /// [`Stats::quarantined_segments`](crate::Stats::quarantined_segments).
    pub fn load(&self, name: &Name) -> Result<Namespace, Error> {
        let folders = self.folders(name);
        if !self.exists(name)? {
            return Err(Error::NoSuchNamespace(name.to_string()));
        }
        let claim = Claim::new(&self.shared, name)?;
        make_folder(&*self.shared.storage, &folders.index)?;
        let secret = self.shared.options.secret.as_ref();
        let loaded = Descriptor::load(&folders, secret)?;
        let Some((mut descriptor, repair)) = loaded else {
            let reason = "neither it nor its copy is whole";
            return Err(Error::Descriptor { name: name.to_string(), reason });
        };
        if repair {
            // The next change tries again.
            let _ = descriptor.store(&folders, secret);
        }
        Namespace::load(claim, folders, descriptor)
    }

    /// Removes a namespace and all it holds. It stays removed when this returns; files go in
    /// [`tick`](Self::tick). A loaded [`Namespace`] must have been dropped.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchNamespace`], [`Error::Loaded`], [`Error::File`].
    pub fn remove(&self, name: &Name) -> Result<(), Error> {
        if !self.exists(name)? {
            return Err(Error::NoSuchNamespace(name.to_string()));
        }
        let _claim = Claim::new(&self.shared, name)?;
        let folders = self.folders(name);
        // The data folder decides whether there is a namespace, so it goes first.
        self.throw_away(&self.shared.options.data, &folders.data)?;
        self.throw_away(&self.shared.options.index, &folders.index)
    }

    /// Upkeep of what namespaces share, once a second or so: removes a few files of removed
    /// namespaces, makes the reserve again when there is space.
    pub fn tick(&self) {
        let mut rest = TRASH_STEP;
        for root in [&self.shared.options.data, &self.shared.options.index] {
            let Ok(names) = self.shared.storage.list(root) else { continue };
            let names = names.iter().filter(|name| has_prefix(name, TRASH_PREFIX));
            for name in names {
                // What can't be removed now is tried again with the next tick.
                let _ = self.empty_folder(&root.join(name), &mut rest);
            }
        }
        if self.disk_full() {
            self.shared.make_reserve();
        }
    }

    /// Whether the reserve is given up: writes are refused, deletions taken.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        self.shared.disk_full()
    }

    /// Room on the disks.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn free_space(&self) -> Result<FreeSpace, Error> {
        let space = |folder: &PathBuf| {
            self.shared.storage.space(folder).map_err(|source| file_error(source, folder))
        };
        let Options { data, index, .. } = &self.shared.options;
        Ok(FreeSpace { data: space(data)?, index: space(index)? })
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.shared.storage
    }

    fn folders(&self, name: &Name) -> Folders {
        let folder = name.to_folder();
        Folders {
            storage: Arc::clone(&self.shared.storage),
            data: self.shared.options.data.join(&folder),
            index: self.shared.options.index.join(&folder),
        }
    }

    fn exists(&self, name: &Name) -> Result<bool, Error> {
        let data = &self.shared.options.data;
        let listed = self.shared.storage.list(data).map_err(|error| file_error(error, data))?;
        Ok(listed.contains(&name.to_folder()))
    }

    /// Whether the folder is the existing server's: it has segments, and no descriptor of ours.
    fn is_foreign(&self, name: &Name) -> bool {
        let folders = self.folders(name);
        let exists = |path: PathBuf| self.shared.storage.open(&path, Open::Existing).is_ok();
        crate::import::is_foreign(&*self.shared.storage, &folders.data_file(0))
            && !exists(folders.data.join(DESCRIPTOR_NAME))
    }

    fn make(
        &self,
        name: &Name,
        settings: Settings,
        secret: Option<&Secret>,
    ) -> Result<Namespace, Error> {
        if self.exists(name)? {
            return Err(Error::Exists(name.to_string()));
        }
        let claim = Claim::new(&self.shared, name)?;
        let storage = &*self.shared.storage;
        let mut descriptor = Descriptor::new(storage, settings, secret)?;
        let folders = self.folders(name);
        // An index folder without a data folder is a removal that was cut short.
        let leftover = storage.list(&folders.index).is_ok();
        if leftover {
            self.throw_away(&self.shared.options.index, &folders.index)?;
        }
        make_folder(storage, &folders.index)?;
        let new = self.unused(&self.shared.options.data, NEW_PREFIX)?;
        make_folder(storage, &new)?;
        let half_made = Folders { data: new.clone(), ..folders.clone() };
        descriptor.store(&half_made, self.shared.options.secret.as_ref())?;
        let data = &self.shared.options.data;
        let moved = storage.rename(&new, &folders.data).and_then(|()| storage.sync_folder(data));
        moved.map_err(|source| write_error(source, data))?;
        let index = &self.shared.options.index;
        storage.sync_folder(index).map_err(|source| write_error(source, index))?;
        let mut namespace = Namespace::load(claim, folders, descriptor)?;
        if let Some(secret) = secret {
            namespace.unlock(secret)?;
        }
        Ok(namespace)
    }

    /// Renames a folder to one that ticks empty.
    fn throw_away(&self, root: &Path, folder: &Path) -> Result<(), Error> {
        let trash = self.unused(root, TRASH_PREFIX)?;
        let storage = &self.shared.storage;
        match storage.rename(folder, &trash).and_then(|()| storage.sync_folder(root)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(file_error(source, folder))
            }
            _ => Ok(()),
        }
    }

    fn throw_away_half_made(&self) -> Result<(), Error> {
        let root = &self.shared.options.data;
        let names = self.shared.storage.list(root).map_err(|error| file_error(error, root))?;
        for name in names.iter().filter(|name| has_prefix(name, NEW_PREFIX)) {
            self.throw_away(root, &root.join(name))?;
        }
        Ok(())
    }

    /// A path that nothing has.
    fn unused(&self, root: &Path, prefix: &str) -> Result<PathBuf, Error> {
        let mut random = [0; 8];
        self.shared.storage.random(&mut random).map_err(Error::Read)?;
        Ok(root.join(format!("{prefix}{:016x}", u64::from_le_bytes(random))))
    }

    /// Removes up to `rest` files of a folder, and the folder when it is empty.
    fn empty_folder(&self, folder: &Path, rest: &mut usize) -> io::Result<()> {
        let storage = &self.shared.storage;
        for file in storage.list(folder)? {
            if *rest == 0 {
                return Ok(());
            }
            *rest -= 1;
            storage.remove(&folder.join(file))?;
        }
        storage.remove_folder(folder)
    }
}

fn has_prefix(name: &std::ffi::OsStr, prefix: &str) -> bool {
    name.as_encoded_bytes().starts_with(prefix.as_bytes())
}

/// Makes a folder, durably, if it doesn't exist.
pub(crate) fn make_folder(storage: &dyn Storage, path: &Path) -> Result<(), Error> {
    let made = storage.create_folder(path).and_then(|()| match path.parent() {
        Some(parent) if parent != Path::new("") => storage.sync_folder(parent),
        _ => Ok(()),
    });
    match made {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(write_error(source, path))
        }
        _ => Ok(()),
    }
}

pub(crate) fn file_error(source: io::Error, path: &Path) -> Error {
    Error::File { path: path.display().to_string(), source }
}
