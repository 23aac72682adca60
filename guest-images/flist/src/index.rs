//! From an image's tree to the flat index that `flist-view` maps.
//!
//! [`build`] is the conversion; [`open`] and [`store`] keep its results in a folder, one file per
//! image, named by the image file's hash, so that an image is parsed once per machine and opened in
//! microseconds ever after. `mount` and the cache daemon call [`open_image`].
//!
//! Beside each index stands the image's list of stores, so that the image itself need not be parsed
//! again to know where its blocks are. Both hold secrets (keys, perhaps passwords), as the image does:
//! they are readable by their owner only.
//!
//! Inodes are numbered breadth first, so that the children of a directory, and the blocks of its
//! files, are neighbours on the same pages.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use flist_view::filesystem::Ino;
use flist_view::index::{Contents, Index, IndexError, IndexWriter, InodeRecord, WriteError};

use crate::format::{FormatError, Image, Route, image_hash};
use crate::store::url::RouteSpec;
use crate::tree::{InodeId, Node, Tree, printable};

/// Why there is no index of an image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The tree holds something that an index can't.
    #[error("{path:?}: {source}")]
    Tree {
        /// Which file of the tree.
        path: String,
        /// The rule it breaks.
        source: WriteError,
    },
    /// The folder of indexes can't be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image can't be read.
    #[error(transparent)]
    Image(#[from] FormatError),
    /// The image became another while we read it.
    #[error("{}: changed while it was read", .0.display())]
    Changed(PathBuf),
    /// The index just written can't be read back.
    #[error("{}: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IndexError,
    },
}

/// The index file of `image`, whose own file hashes to `image_hash` (BLAKE2b-256).
///
/// # Errors
/// [`BuildError::Tree`] names the file that breaks a rule, such as a size that its blocks do not fit.
pub fn build(image: &Image, image_hash: [u8; 32]) -> Result<Vec<u8>, BuildError> {
    let tree = &image.tree;
    let numbering = Numbering::new(tree);
    let mut writer = IndexWriter::new(image_hash, image.cipher);
    for id in &numbering.order {
        numbering
            .write(tree, *id, &mut writer)
            .map_err(|source| BuildError::Tree { path: path_of(tree, *id), source })?;
    }
    writer.finish().map_err(|source| BuildError::Tree { path: String::new(), source })
}

/// The index of the image with this hash from `directory`; `None` if there is none, or none that this
/// program can use and trust.
///
/// # Errors
/// [`BuildError::Io`], if the folder can't be read.
pub fn open(directory: &Path, image_hash: &[u8; 32]) -> Result<Option<Index>, BuildError> {
    let path = path_in(directory, image_hash);
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(nofollow).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BuildError::Io { path, source }),
    };
    if !is_private(&file) {
        tracing::warn!(path = %path.display(), "index can be changed by others: building it anew");
        return Ok(None);
    }
    match Index::open(&file) {
        Ok(index) if index.image_hash() == image_hash => Ok(Some(index)),
        Ok(_) => {
            tracing::warn!(path = %path.display(), "index of another image: building it anew");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "unusable index: building it anew");
            Ok(None)
        }
    }
}

/// Builds the index of `image` and keeps it in `directory`, which is made if it is missing. Written
/// under a temporary name, synced and renamed: whoever opens it sees all of it.
///
/// # Errors
/// [`BuildError`].
pub fn store(directory: &Path, image: &Image, image_hash: &[u8; 32]) -> Result<Index, BuildError> {
    let bytes = build(image, *image_hash)?;
    let path = routes_path_in(directory, image_hash);
    write_whole(directory, &path, encode_routes(&image.routes).as_bytes())
        .map_err(|source| BuildError::Io { path, source })?;
    let path = path_in(directory, image_hash);
    let file = write_whole(directory, &path, &bytes)
        .map_err(|source| BuildError::Io { path: path.clone(), source })?;
    Index::open(&file).map_err(|source| BuildError::Index { path, source })
}

/// The routes of the image with this hash, as [`store`] kept them beside its index; `None` if they are
/// not there or not whole, and the image must be asked.
#[must_use]
pub fn open_routes(directory: &Path, image_hash: &[u8; 32]) -> Option<Vec<Route>> {
    let text = fs::read_to_string(routes_path_in(directory, image_hash)).ok()?;
    decode_routes(&text)
}

/// The index of the image file `path`: the one in `directory`, or a new one.
///
/// # Errors
/// [`BuildError`].
pub fn open_image(directory: &Path, path: &Path) -> Result<Index, BuildError> {
    let hash = image_hash(path)?;
    open_or_build(directory, &hash, || {
        let image = Image::open(path)?;
        // Or another image's index would be kept under this one's hash for good.
        if image_hash(path)? == hash {
            Ok(image)
        } else {
            Err(BuildError::Changed(path.to_owned()))
        }
    })
}

/// The index of an image: the one in `directory`, or a new one from what `read` returns.
///
/// # Errors
/// [`BuildError`], or the error of `read`.
pub fn open_or_build<E: From<BuildError> + Send>(
    directory: &Path,
    image_hash: &[u8; 32],
    read: impl FnOnce() -> Result<Image, E> + Send,
) -> Result<Index, E> {
    if let Some(index) = open(directory, image_hash)? {
        return Ok(index);
    }
    // The allocator gives a thread's memory back when all of it is free, as a tree's is by the end;
    // what was allocated among other things it keeps, and mounts and caches live long.
    let build = || Ok(store(directory, &read()?, image_hash)?);
    thread::scope(|scope| scope.spawn(build).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Which inode gets which number, and how often each is named.
struct Numbering {
    /// Inodes in order of their numbers.
    order: Vec<InodeId>,
    /// Number by [`InodeId::index`]; 0 for inodes that nothing names.
    ino: Vec<Ino>,
    /// Link count by [`InodeId::index`].
    nlink: Vec<u32>,
}

impl Numbering {
    /// A [`Tree`] has no cycles, and each inode is put in order when it is first named.
    fn new(tree: &Tree) -> Self {
        let count = tree.inodes().len();
        let mut numbering =
            Self { order: Vec::with_capacity(count), ino: vec![0; count], nlink: vec![0; count] };
        numbering.name(InodeId::ROOT);
        numbering.nlink[InodeId::ROOT.index()] = 2;
        let mut next = 0;
        while let Some(id) = numbering.order.get(next).copied() {
            let entries = tree.directory(id).into_iter().flat_map(|d| d.entries());
            for (_, child) in entries {
                numbering.name(child);
                if tree.directory(child).is_some() {
                    numbering.nlink[child.index()] = 2;
                    numbering.nlink[id.index()] += 1;
                } else {
                    numbering.nlink[child.index()] += 1;
                }
            }
            next += 1;
        }
        numbering
    }

    fn name(&mut self, id: InodeId) {
        if self.ino[id.index()] == 0 {
            self.order.push(id);
            self.ino[id.index()] = self.order.len() as Ino;
        }
    }

    fn write(&self, tree: &Tree, id: InodeId, writer: &mut IndexWriter) -> Result<(), WriteError> {
        let inode = tree.inode(id);
        let entries: Vec<(&[u8], Ino)> = tree
            .directory(id)
            .into_iter()
            .flat_map(|directory| directory.entries())
            .map(|(name, child)| (name, self.ino[child.index()]))
            .collect();
        let xattrs: Vec<(&[u8], &[u8])> =
            inode.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        let contents = match &inode.node {
            Node::Directory(directory) => Contents::Directory {
                parent: self.ino[directory.parent().unwrap_or(InodeId::ROOT).index()],
                size: directory.size,
                entries: &entries,
            },
            Node::File(file) => Contents::File { size: file.size, blocks: &file.blocks },
            Node::Symlink(target) => Contents::Symlink(target),
            Node::CharacterDevice(device) | Node::BlockDevice(device) => {
                Contents::Device { major: device.major, minor: device.minor }
            }
            Node::Fifo | Node::Socket => Contents::Other,
        };
        let metadata = &inode.metadata;
        writer.inode(&InodeRecord {
            mode: inode.mode(),
            nlink: self.nlink[id.index()],
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            ctime: metadata.ctime,
            contents,
            xattrs: &xattrs,
        })?;
        Ok(())
    }
}

/// A path of an inode, for an error message.
fn path_of(tree: &Tree, id: InodeId) -> String {
    let entry = tree.walk().into_iter().find(|entry| entry.id == id);
    format!("/{}", printable(&entry.map(|entry| entry.path).unwrap_or_default()))
}

/// Where `directory` keeps the index of the image with this hash.
#[must_use]
pub fn path_in(directory: &Path, image_hash: &[u8; 32]) -> PathBuf {
    let hex: String = image_hash.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("{hex}.idx"))
}

fn routes_path_in(directory: &Path, image_hash: &[u8; 32]) -> PathBuf {
    path_in(directory, image_hash).with_extension("routes")
}

/// One line for each route, as on the command line, and a checksum of them all at the end.
fn encode_routes(routes: &[Route]) -> String {
    let line = |route: &Route| {
        format!("{:02x}-{:02x}={}\n", route.start, route.end, route.url.to_stored(false))
    };
    let mut text: String = routes.iter().map(line).collect();
    let checksum = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("{checksum:08x}\n"));
    text
}

fn decode_routes(text: &str) -> Option<Vec<Route>> {
    let (lines, checksum) = text.split_at_checked(text.len().checked_sub(9)?)?;
    if checksum != format!("{:08x}\n", crc32c::crc32c(lines.as_bytes())) {
        return None;
    }
    lines.lines().map(|line| RouteSpec::parse(line).ok().map(Route::from)).collect()
}

/// Whether only we, or root, can have written the file and can still change it. A mapped file that
/// shrinks would end us by SIGBUS.
fn is_private(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| {
        let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
        ours && metadata.is_file() && metadata.mode() & 0o022 == 0
    })
}

/// Writes a file that is seen whole or not at all. Returns it open for reading. Its mode is 0600: it holds the blocks' keys.
fn write_whole(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut temporary = tempfile::Builder::new().prefix(".index-").tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()?;
    fs::File::open(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flist_view::block::{BlockCipher, BlockId, BlockKey, BlockRef};
    use flist_view::filesystem::{ROOT, Timestamp};

    use super::*;
    use crate::store::url::StoreUrl;
    use crate::tree::{DeviceNumber, Directory, FileContents, Inode, Metadata};

    const HASH: [u8; 32] = [5; 32];

    fn inode(node: Node) -> Inode {
        let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
        Inode::new(Metadata { permissions: 0o640, uid: 7, gid: 8, mtime, ctime: mtime }, node)
    }

    fn image() -> Image {
        let mut tree = Tree::new(Metadata { permissions: 0o755, ..Metadata::default() });
        let directory = Node::Directory(Directory::with_size(4096));
        let bin = tree.add(InodeId::ROOT, b"bin", inode(directory.clone())).unwrap();
        let gone = tree.add(InodeId::ROOT, b"gone", inode(directory)).unwrap();
        let block = BlockRef { id: BlockId([1; 32]), key: BlockKey([2; 32]) };
        let contents = Node::File(FileContents { size: 3, blocks: vec![block] });
        let mut file = inode(contents);
        file.xattrs = BTreeMap::from([(b"user.a".to_vec(), b"value".to_vec())]);
        let file = tree.add(bin, b"tool", file).unwrap();
        tree.add(gone, b"below", inode(Node::Fifo)).unwrap();
        tree.remove(InodeId::ROOT, b"gone").unwrap();
        tree.link(InodeId::ROOT, b"alias", file).unwrap();
        let device = Node::CharacterDevice(DeviceNumber { major: 300, minor: 70_000 });
        tree.add(bin, b"device", inode(device)).unwrap();
        tree.add(bin, b"link", inode(Node::Symlink(b"tool".to_vec()))).unwrap();
        Image {
            tree,
            cipher: BlockCipher::Aes256Gcm,
            routes: Vec::new(),
            tags: BTreeMap::default(),
        }
    }

    fn resolve(index: &Index, path: &str) -> (Ino, flist_view::index::Inode) {
        let mut ino = ROOT;
        for name in path.split('/') {
            let directory = index.inode(ino).unwrap();
            ino = index.entries(&directory).unwrap().find(name.as_bytes()).unwrap().unwrap();
        }
        (ino, index.inode(ino).unwrap())
    }

    #[test]
    fn a_tree_becomes_an_index_without_what_was_removed() {
        let index = Index::from_bytes(build(&image(), HASH).unwrap()).unwrap();
        index.verify().unwrap();
        assert_eq!(index.inode_count(), 5);
        let (ino, tool) = resolve(&index, "bin/tool");
        assert_eq!((tool.nlink, tool.size, tool.mode), (2, 3, 0o100_640));
        assert_eq!(resolve(&index, "alias").0, ino);
        assert_eq!(index.xattr(&tool, b"user.a").unwrap().unwrap(), b"value");
        assert_eq!(index.block(index.blocks(&tool).unwrap().start).unwrap().id.0, [1; 32]);
        let (ino, device) = resolve(&index, "bin/device");
        assert_eq!(Index::attributes(ino, &device).rdev, (300, 70_000));
        let (_, link) = resolve(&index, "bin/link");
        assert_eq!(index.target(&link).unwrap(), b"tool");
        assert_eq!(index.inode(ROOT).unwrap().nlink, 3);
    }

    #[test]
    fn an_impossible_size_is_refused_by_path() {
        let mut image = image();
        let id = image.tree.find(b"bin/tool").unwrap();
        image.tree.inode_mut(id).node =
            Node::File(FileContents { size: 1 << 60, blocks: Vec::new() });
        let error = build(&image, HASH).unwrap_err().to_string();
        assert!(error.contains("/alias") || error.contains("/bin/tool"), "{error}");
    }

    #[test]
    fn an_index_is_built_once_and_again_when_it_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("indexes");
        let mut builds = 0;
        let mut open = || {
            open_or_build(&folder, &HASH, || {
                builds += 1;
                Ok::<_, BuildError>(image())
            })
        };
        open().unwrap().verify().unwrap();
        open().unwrap().verify().unwrap();
        let path = path_in(&folder, &HASH);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, b"FLISTIDX but no more").unwrap();
        open().unwrap().verify().unwrap();
        assert_eq!(builds, 2);
    }

    #[test]
    fn routes_are_kept_with_their_secrets_or_not_believed() {
        let route = |start, end, url: &str| {
            let url = StoreUrl::parse(url).unwrap();
            Route { start, end, url }
        };
        let routes =
            vec![route(0, 0x7f, "zdb://:secret@host:9900/ns"), route(0x80, 0xff, "dir:///a%20b")];
        let text = encode_routes(&routes);
        assert_eq!(decode_routes(&text).unwrap(), routes);
        assert_eq!(decode_routes(&encode_routes(&[])).unwrap(), []);
        for size in 0..text.len() {
            assert!(decode_routes(&text[..size]).is_none(), "{size} bytes");
        }
        let directory = tempfile::tempdir().unwrap();
        let image = Image { routes: routes.clone(), ..image() };
        store(directory.path(), &image, &HASH).unwrap();
        assert_eq!(open_routes(directory.path(), &HASH).unwrap(), routes);
        assert!(open_routes(directory.path(), &[0; 32]).is_none());
        let path = routes_path_in(directory.path(), &HASH);
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_index_of_another_image_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &image(), &[1; 32]).unwrap();
        fs::rename(path_in(directory.path(), &[1; 32]), path_in(directory.path(), &HASH)).unwrap();
        assert!(open(directory.path(), &HASH).unwrap().is_none());
        assert!(open(directory.path(), &[9; 32]).unwrap().is_none());
    }
}
