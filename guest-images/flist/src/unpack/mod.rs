//! Unpacking: an image and its blocks become a directory.
//!
//! ```text
//!  DEST.partial-XXXX (0700) ── directories, empty files, links, devices
//!        │                     contents, in parallel: fetch, verify, write at its place
//!        │                     owners, attributes, modes, times; directories last, deepest first
//!        └─ rename ──► DEST
//! ```
//!
//! Nothing appears under the final name before it is whole and, unless told otherwise, safe from a power
//! loss; an error or Ctrl-C removes what there is. The image is hostile: every name is used alone, relative to a descriptor of its directory,
//! which is reached from the top by names of directories, never through a symbolic link. So nothing
//! outside the destination can be touched, whatever links the image holds.
//!
//! Blocks of zeros become holes. Files get their exact owners when root unpacks; what the system
//! refuses (owners as a plain user, devices in a container, attributes that a file system lacks) is
//! noted once for each kind and does not stop the work.

mod metadata;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use blake2b_simd::Params;
use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockKey, BlockRef};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::block::Codec;
use crate::format::Image;
use crate::progress::{Cancelled, Progress};
use crate::store::fetch::{FetchError, Fetcher};
use crate::tree::{DeviceNumber, Entry, InodeId, Node};
use crate::workers;

/// What an unpacker may be told.
#[derive(Clone, Debug, Default)]
pub struct UnpackOptions {
    /// Worker threads; by default one for each core, at least two.
    pub workers: Option<NonZeroUsize>,
    /// Return without waiting until the tree is safe from a power loss, which may then leave one that
    /// looks whole and is not.
    pub skip_sync: bool,
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnpackReport {
    /// Entries of all kinds, the root included.
    pub entry_count: usize,
    /// Bytes of all regular files, each hard link counted once.
    pub bytes: u64,
    /// What the system refused, one line for each kind with the first path.
    pub notes: Vec<String>,
}

/// Why unpacking stopped. Paths are those inside the image.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The destination can't take a tree.
    #[error("{}: {rule}", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// What it must be.
        rule: &'static str,
    },
    /// The destination's folder can't be read or written.
    #[error("{}", path.display())]
    Folder {
        /// The destination.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system did not let us make something.
    #[error("{path}: cannot {action}")]
    Entry {
        /// Path inside the image.
        path: String,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A block can't be had.
    #[error("{path}, block {number}")]
    Block {
        /// Path inside the image.
        path: String,
        /// The block's number in the file, from 0.
        number: usize,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// A verified block has another size than its place in the file.
    #[error("{path}, block {number}: holds {found} bytes, the file's size asks for {expected}")]
    BlockSize {
        /// Path inside the image.
        path: String,
        /// The block's number in the file, from 0.
        number: usize,
        /// Bytes of plaintext.
        found: usize,
        /// Bytes that belong there.
        expected: usize,
    },
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Unpacks `image` into `destination`, which must be absent or an empty directory.
///
/// # Errors
/// [`UnpackError`] names path and block; nothing is left behind.
pub fn unpack(
    image: &Image,
    fetcher: &Fetcher,
    destination: &Path,
    options: &UnpackOptions,
    progress: &dyn Progress,
) -> Result<UnpackReport, UnpackError> {
    let destination = checked(destination)?;
    let mut partial = Partial::create(&destination)?;
    let root = open_root(&partial.path)
        .map_err(|error| UnpackError::Folder { path: destination.clone(), source: error.into() })?;
    let entries = image.tree.walk();
    let is_first = first_names(image, &entries);
    let notes = Mutex::default();
    let unpacker =
        Unpacker { image, fetcher, root, entries: &entries, is_first: &is_first, notes, progress };
    unpacker.make_entries()?;
    let bytes = unpacker.write_contents(options)?;
    unpacker.apply_metadata()?;
    unpacker.make_hard_links()?;
    unpacker.apply_directory_metadata()?;
    progress.check()?;
    partial.publish(&destination, &unpacker.root, options.skip_sync)?;
    let notes = unpacker.into_notes();
    Ok(UnpackReport { entry_count: entries.len(), bytes, notes })
}

/// The destination with its folder resolved, if it is one that a tree can be renamed to.
fn checked(destination: &Path) -> Result<PathBuf, UnpackError> {
    let path = destination.to_owned();
    let failed = |source| UnpackError::Folder { path: path.clone(), source };
    let refused = |rule| UnpackError::Destination { path: path.clone(), rule };
    match std::fs::metadata(destination) {
        Ok(metadata) if !metadata.is_dir() => Err(refused("exists and is not a directory")),
        Ok(metadata) => {
            if std::fs::read_dir(destination).map_err(failed)?.next().is_some() {
                return Err(refused("must be absent or empty"));
            }
            let resolved = destination.canonicalize().map_err(failed)?;
            let parent = resolved.parent().ok_or_else(|| refused("is the root of the system"))?;
            if std::fs::metadata(parent).map_err(failed)?.dev() != metadata.dev() {
                return Err(refused("is a mount point; unpack into a directory below it"));
            }
            Ok(resolved)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = destination.file_name().ok_or_else(|| refused("must end in a name"))?;
            let parent = match destination.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            Ok(parent.canonicalize().map_err(failed)?.join(name))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The tree while it is not whole; removed unless it was published.
struct Partial {
    path: PathBuf,
    is_published: bool,
}

impl Partial {
    fn create(destination: &Path) -> Result<Self, UnpackError> {
        let failed = |source| UnpackError::Folder { path: destination.to_owned(), source };
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed(error.into()))?;
        let mut name = destination.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{:016x}", u64::from_le_bytes(random)));
        let path = destination.with_file_name(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self { path, is_published: false })
    }

    /// Gives the tree its name. One call that syncs the whole file system costs far less than one for
    /// each of its files.
    fn publish(
        &mut self,
        destination: &Path,
        root: &OwnedFd,
        skip_sync: bool,
    ) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::Folder { path: destination.to_owned(), source };
        if !skip_sync {
            rustix::fs::syncfs(root).map_err(|error| failed(error.into()))?;
        }
        std::fs::rename(&self.path, destination).map_err(failed)?;
        self.is_published = true;
        match destination.parent() {
            Some(folder) if !skip_sync => {
                File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        if std::fs::remove_dir_all(&self.path).is_err() {
            // A plain user can't empty a directory whose mode was set already.
            metadata::make_removable(&self.path);
            if let Err(error) = std::fs::remove_dir_all(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "a partial tree remains");
            }
        }
    }
}

fn open_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY_FLAGS, Mode::empty())
}

/// For each entry, whether it is the first name of its inode.
fn first_names(image: &Image, entries: &[Entry]) -> Vec<bool> {
    let mut seen = vec![false; image.tree.inodes().len()];
    entries.iter().map(|entry| !std::mem::replace(&mut seen[entry.id.index()], true)).collect()
}

const DIRECTORY_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const WRITE_FLAGS: OFlags = OFlags::WRONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Modes until the real ones are set.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
/// Blocks in one piece of work, of one or of several files of a directory.
const BATCH_BLOCK_COUNT: usize = 32;

/// One unpacking in progress.
struct Unpacker<'a> {
    image: &'a Image,
    fetcher: &'a Fetcher,
    root: OwnedFd,
    entries: &'a [Entry],
    /// By position in `entries`.
    is_first: &'a [bool],
    notes: Mutex<Notes>,
    progress: &'a dyn Progress,
}

/// What the system refused: kinds, and a line for each.
#[derive(Default)]
struct Notes {
    kinds: BTreeSet<String>,
    lines: Vec<String>,
}

/// Files of one directory, or parts of them.
struct Batch<'a> {
    directory: &'a [u8],
    pieces: Vec<Piece<'a>>,
}

/// Consecutive blocks of one file.
struct Piece<'a> {
    path: &'a [u8],
    size: u64,
    first: usize,
    blocks: &'a [BlockRef],
}

/// The directory that was opened last; entries of one directory often follow each other.
#[derive(Default)]
struct LastDirectory {
    path: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl<'a> Unpacker<'a> {
    /// Directories, empty files of full size, symbolic links and special files.
    fn make_entries(&self) -> Result<(), UnpackError> {
        let mut last = LastDirectory::default();
        for (position, entry) in self.entries.iter().enumerate().skip(1) {
            self.progress.check()?;
            if self.is_first[position] {
                let (path, name) = split(&entry.path);
                let folder = last.open(self, path).map_err(|error| failed(path, "open", error))?;
                self.make_entry(folder, entry, name)?;
            }
        }
        Ok(())
    }

    fn make_entry(&self, folder: &OwnedFd, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        let inode = self.image.tree.inode(entry.id);
        let special = |kind, device: DeviceNumber| {
            let number = rustix::fs::makedev(device.major, device.minor);
            rustix::fs::mknodat(folder, name, kind, FILE_MODE, number)
        };
        let none = DeviceNumber { major: 0, minor: 0 };
        let made = match &inode.node {
            Node::Directory(_) => rustix::fs::mkdirat(folder, name, DIRECTORY_MODE),
            Node::File(contents) => {
                let flags = WRITE_FLAGS | OFlags::CREATE | OFlags::EXCL;
                rustix::fs::openat(folder, name, flags, FILE_MODE)
                    .and_then(|file| rustix::fs::ftruncate(file, contents.size))
            }
            Node::Symlink(target) => rustix::fs::symlinkat(target.as_slice(), folder, name),
            Node::Fifo => special(FileType::Fifo, none),
            Node::Socket => special(FileType::Socket, none),
            Node::CharacterDevice(device) => {
                return self.make_device(&entry.path, special(FileType::CharacterDevice, *device));
            }
            Node::BlockDevice(device) => {
                return self.make_device(&entry.path, special(FileType::BlockDevice, *device));
            }
        };
        made.map_err(|error| failed(&entry.path, "make", error))
    }

    /// Devices need a right that plain users and containers lack, and the kernel's numbers are
    /// smaller than the format's.
    fn make_device(&self, path: &[u8], made: rustix::io::Result<()>) -> Result<(), UnpackError> {
        match made {
            Err(Errno::PERM | Errno::INVAL) => {
                self.note("device", path, "devices are not made: the system refuses them");
                Ok(())
            }
            made => made.map_err(|error| failed(path, "make the device", error)),
        }
    }

    /// Fetches and writes all blocks; returns how many bytes the files have.
    fn write_contents(&self, options: &UnpackOptions) -> Result<u64, UnpackError> {
        let batches = self.batches();
        let bytes = self.files().map(|(_, contents)| contents.size).fold(0, u64::saturating_add);
        self.progress.begin("unpacking", bytes);
        let zeros = Zeros::new(self.image.cipher);
        let work = |codec: &mut Codec, batch: &Batch<'_>| self.write_batch(codec, &zeros, batch);
        workers::each(workers::count(options.workers), &batches, work)?;
        Ok(bytes)
    }

    /// First names of regular files.
    fn files(&self) -> impl Iterator<Item = (&'a Entry, &'a crate::tree::FileContents)> {
        let named = self.entries.iter().zip(self.is_first).filter(|(_, is_first)| **is_first);
        named.filter_map(|(entry, _)| match &self.image.tree.inode(entry.id).node {
            Node::File(contents) => Some((entry, contents)),
            _ => None,
        })
    }

    /// Cuts the work so that one huge file keeps all workers busy, and small files of one directory
    /// share the opening of it.
    fn batches(&self) -> Vec<Batch<'a>> {
        let mut batches: Vec<Batch<'a>> = Vec::new();
        let mut room = 0;
        for (entry, contents) in self.files() {
            let (directory, _) = split(&entry.path);
            for (number, blocks) in contents.blocks.chunks(BATCH_BLOCK_COUNT).enumerate() {
                let first = number * BATCH_BLOCK_COUNT;
                let piece = Piece { path: &entry.path, size: contents.size, first, blocks };
                match batches.last_mut() {
                    Some(last) if last.directory == directory && room >= blocks.len() => {
                        last.pieces.push(piece);
                    }
                    _ => {
                        batches.push(Batch { directory, pieces: vec![piece] });
                        room = BATCH_BLOCK_COUNT;
                    }
                }
                room -= blocks.len();
            }
        }
        batches
    }

    fn write_batch(
        &self,
        codec: &mut Codec,
        zeros: &Zeros,
        batch: &Batch<'_>,
    ) -> Result<(), UnpackError> {
        let folder = self
            .open_directory(batch.directory)
            .map_err(|error| failed(batch.directory, "open", error))?;
        for piece in &batch.pieces {
            let (_, name) = split(piece.path);
            let file = rustix::fs::openat(&folder, name, WRITE_FLAGS, Mode::empty())
                .map_err(|error| failed(piece.path, "open", error))?;
            self.write_piece(codec, zeros, piece, &File::from(file))?;
        }
        Ok(())
    }

    fn write_piece(
        &self,
        codec: &mut Codec,
        zeros: &Zeros,
        piece: &Piece<'_>,
        file: &File,
    ) -> Result<(), UnpackError> {
        for (number, block) in (piece.first..).zip(piece.blocks) {
            self.progress.check()?;
            let offset = number as u64 * u64::from(BLOCK_SIZE);
            // The readers made sure that a file has as many blocks as its size asks for.
            let expected = piece.size.saturating_sub(offset).min(u64::from(BLOCK_SIZE));
            if expected == u64::from(BLOCK_SIZE) && zeros.is_name_of(block) {
                self.progress.advance(expected);
                continue;
            }
            let path = || quoted(piece.path);
            let plaintext = self
                .fetcher
                .fetch(codec, block)
                .map_err(|source| UnpackError::Block { path: path(), number, source })?;
            if plaintext.len() as u64 != expected {
                let expected = usize::try_from(expected).unwrap_or(usize::MAX);
                let found = plaintext.len();
                return Err(UnpackError::BlockSize { path: path(), number, found, expected });
            }
            if plaintext.iter().any(|byte| *byte != 0) {
                let written = file.write_all_at(&plaintext, offset);
                written.map_err(|source| UnpackError::Entry {
                    path: path(),
                    action: "write",
                    source,
                })?;
            }
            self.progress.advance(expected);
        }
        Ok(())
    }

    /// Second and further names.
    fn make_hard_links(&self) -> Result<(), UnpackError> {
        let mut first: Vec<Option<&Entry>> = vec![None; self.image.tree.inodes().len()];
        for (position, entry) in self.entries.iter().enumerate() {
            let Some(target) = first[entry.id.index()] else {
                first[entry.id.index()] = Some(entry);
                continue;
            };
            debug_assert!(!self.is_first[position], "names are seen in one order");
            let linked = self.link(target, entry);
            match linked {
                // A device that was not made has no second name either.
                Err(Errno::NOENT) if self.is_device(entry.id) => {}
                linked => linked.map_err(|error| failed(&entry.path, "link", error))?,
            }
        }
        Ok(())
    }

    fn link(&self, target: &Entry, entry: &Entry) -> rustix::io::Result<()> {
        let (old_path, old_name) = split(&target.path);
        let (new_path, new_name) = split(&entry.path);
        let old = self.open_directory(old_path)?;
        let new = self.open_directory(new_path)?;
        rustix::fs::linkat(&old, old_name, &new, new_name, AtFlags::empty())
    }

    fn is_device(&self, id: InodeId) -> bool {
        let node = &self.image.tree.inode(id).node;
        matches!(node, Node::CharacterDevice(_) | Node::BlockDevice(_))
    }

    /// Opens a directory of ours, one name after the other, through no symbolic link.
    fn open_directory(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let mut folder = self
            .root
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            folder = rustix::fs::openat(&folder, name, DIRECTORY_FLAGS, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Notes once for each `kind` that the system refused something.
    fn note(&self, kind: &str, path: &[u8], text: &str) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.kinds.insert(kind.to_owned()) {
            let line = format!("{text} (first at {})", quoted(path));
            self.progress.note(&line);
            notes.lines.push(line);
        }
    }

    fn into_notes(self) -> Vec<String> {
        self.notes.into_inner().unwrap_or_else(PoisonError::into_inner).lines
    }
}

impl LastDirectory {
    fn open(&mut self, unpacker: &Unpacker<'_>, path: &[u8]) -> rustix::io::Result<&OwnedFd> {
        if self.path != path {
            self.descriptor = None;
            path.clone_into(&mut self.path);
        }
        match &mut self.descriptor {
            Some(descriptor) => Ok(descriptor),
            none => Ok(none.insert(unpacker.open_directory(path)?)),
        }
    }
}

/// Key of a whole block of zeros. Such a block is a hole and need not be fetched: a key is the hash
/// of its plaintext.
struct Zeros(BlockKey);

impl Zeros {
    fn new(cipher: BlockCipher) -> Self {
        let mut key = [0; 32];
        let hash =
            Params::new().hash_length(cipher.hash_size()).hash(&vec![0; BLOCK_SIZE as usize]);
        key[..cipher.hash_size()].copy_from_slice(hash.as_bytes());
        Self(BlockKey(key))
    }

    fn is_name_of(&self, block: &BlockRef) -> bool {
        self.0 == block.key
    }
}

/// Parent path and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A path inside the image, for messages.
fn quoted(path: &[u8]) -> String {
    format!("\"/{}\"", String::from_utf8_lossy(path).escape_debug())
}

fn failed(path: &[u8], action: &'static str, error: Errno) -> UnpackError {
    UnpackError::Entry { path: quoted(path), action, source: error.into() }
}
