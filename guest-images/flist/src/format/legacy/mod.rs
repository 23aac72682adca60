//! The legacy generation, `.flist`: Cap'n Proto in SQLite in tar in gzip (`reference: flist 1.2`).
//!
//! ```text
//! gzip ─ tar ┬ flistdb.sqlite3 ┬ entries:  BLAKE2b-128 (path) -> Dir, access key -> ACI
//!            │                 └ metadata: backend, entrypoint, ...
//!            └ router.yaml (optional)
//! ```
//!
//! Directories are found by the hash of their path. A directory that names itself or a parent would
//! need a path that is its own prefix, so the tree can't have rings, and every entry is visited for
//! at most one path; [`crate::tree::Tree`] bounds the depth. Names inside the tar are only compared
//! with the two that we know: nothing is unpacked to disk.
//!
//! The metadata `backend` can hold a password: it becomes a route and is no tag.

mod entries;
mod message;
mod router;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use blake2b_simd::Params;
use flate2::bufread::GzDecoder;
use flist_view::block::{BLOCK_SIZE, BlockCipher};
use flist_view::filesystem::Timestamp;

use self::entries::{Access, Dir, Item, Kind};
use super::database::{Database, bytes, integer, text};
use super::error::Fault;
use super::{Image, Route, TAG_COUNT_MAX, TAG_KEY_SIZE_MAX, TAG_VALUE_SIZE_MAX};
use crate::tree::{
    DeviceNumber, Directory, FileContents, INODE_COUNT_MAX, Inode, InodeId, Metadata, Node, Tree,
};

/// Largest database in a legacy image, in bytes. It is held in memory, and its rows once more.
pub const DATABASE_SIZE_MAX: u64 = 256 << 20;
/// Most bytes that a legacy image may unpack to.
pub const UNPACKED_SIZE_MAX: u64 = DATABASE_SIZE_MAX + (16 << 20);
/// Most members of a legacy image's tar.
pub const MEMBER_COUNT_MAX: usize = 64;

/// Metadata key that becomes a route.
const BACKEND: &str = "backend";

/// Reads the image at `path`, which begins with gzip's magic.
pub(super) fn read(path: &Path) -> Result<Image, Fault> {
    let archive = read_archive(path)?;
    let database = archive
        .database
        .ok_or_else(|| Fault::File("not an flist: its tar has no flistdb.sqlite3".to_owned()))?;
    database.require_table("entries", &["key", "value"])?;
    let (tags, backend) = read_metadata(&database)?;
    let mut routes = match archive.router {
        Some(text) => router::routes(&text)?,
        None => Vec::new(),
    };
    routes.extend(backend);
    let tree = Entries::read(&database)?.into_tree()?;
    Ok(Image { tree, cipher: BlockCipher::Xxtea, routes, tags })
}

/// What matters of the tar.
#[derive(Default)]
struct Archive {
    database: Option<Database>,
    router: Option<Vec<u8>>,
}

fn read_archive(path: &Path) -> Result<Archive, Fault> {
    let file = BufReader::new(File::open(path).map_err(Fault::Read)?);
    // Sizes are checked member by member; this is for what stands between members.
    let unpacked = GzDecoder::new(file).take(2 * UNPACKED_SIZE_MAX);
    let damaged = |error: io::Error| {
        Fault::File(format!("damaged gzip or tar: {}", error.to_string().escape_debug()))
    };
    let mut tar = tar::Archive::new(unpacked);
    let mut archive = Archive::default();
    let mut total = 0u64;
    // Raw: long-name records are members like any other, and are skipped, not remembered.
    for (count, member) in tar.entries().map_err(damaged)?.raw(true).enumerate() {
        let mut member = member.map_err(damaged)?;
        if count >= MEMBER_COUNT_MAX {
            return Err(Fault::File(format!("more than {MEMBER_COUNT_MAX} members in its tar")));
        }
        let size = member.header().entry_size().map_err(damaged)?;
        let is_file = member.header().entry_type().is_file();
        let name = member.header().path_bytes().into_owned();
        match name.strip_prefix(b"./").unwrap_or(&name) {
            b"flistdb.sqlite3" if is_file => {
                check_size("flistdb.sqlite3", size, DATABASE_SIZE_MAX)?;
                archive.database = Some(Database::from_reader(&mut member, size)?);
            }
            b"router.yaml" if is_file => {
                check_size("router.yaml", size, router::ROUTER_SIZE_MAX)?;
                let mut text = Vec::new();
                member.read_to_end(&mut text).map_err(damaged)?;
                archive.router = Some(text);
            }
            _ => {}
        }
        // What was not read is skipped when the next member is asked for.
        total = total.saturating_add(size);
        if total > UNPACKED_SIZE_MAX {
            return Err(Fault::File(format!("unpacks to more than {UNPACKED_SIZE_MAX} bytes")));
        }
    }
    Ok(archive)
}

fn check_size(member: &str, size: u64, size_max: u64) -> Result<(), Fault> {
    if size > size_max {
        return Err(Fault::File(format!("{member}: {size} bytes, at most {size_max} allowed")));
    }
    Ok(())
}

/// Tags, and the route of the backend.
fn read_metadata(database: &Database) -> Result<(BTreeMap<String, String>, Option<Route>), Fault> {
    let (mut tags, mut backend) = (BTreeMap::new(), None);
    if !database.has_table("metadata", &["key", "value"])? {
        return Ok((tags, backend));
    }
    database.each("SELECT rowid, key, value FROM metadata ORDER BY rowid", |row| {
        let fault = |rule: &str| Fault::row("metadata", integer(row, 0).unwrap_or_default(), rule);
        let key = text(row, 1).map_err(fault)?;
        let value = text(row, 2).map_err(fault)?;
        if key == BACKEND {
            backend = Some(router::backend(value)?);
            return Ok(());
        }
        if key.len() > TAG_KEY_SIZE_MAX || value.len() > TAG_VALUE_SIZE_MAX {
            return Err(fault("key longer than 255 or value longer than 65536 bytes"));
        }
        if tags.len() >= TAG_COUNT_MAX {
            return Err(Fault::File(format!("more than {TAG_COUNT_MAX} rows of metadata")));
        }
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(fault("a second value for that key"));
        }
        Ok(())
    })?;
    Ok((tags, backend))
}

/// All rows of `entries`, and the access entries decoded so far.
struct Entries {
    values: HashMap<Box<[u8]>, Box<[u8]>>,
    access: HashMap<Vec<u8>, Access>,
}

/// A directory whose contents wait to be entered into the tree.
struct Pending {
    id: InodeId,
    path: Vec<u8>,
    contents: Vec<Item>,
}

impl Entries {
    fn read(database: &Database) -> Result<Self, Fault> {
        let mut budget = database.budget();
        let mut values: HashMap<Box<[u8]>, Box<[u8]>> = HashMap::new();
        database.each("SELECT rowid, key, value FROM entries ORDER BY rowid", |row| {
            let number = integer(row, 0).unwrap_or_default();
            let fault = |rule: &str| Fault::row("entries", number, rule);
            let key = bytes(row, 1).map_err(fault)?;
            let value = bytes(row, 2).map_err(fault)?;
            budget.take(key.len() + value.len())?;
            if values.len() >= INODE_COUNT_MAX {
                return Err(Fault::File(format!("more than {INODE_COUNT_MAX} entries")));
            }
            if values.insert(key.into(), value.into()).is_some() {
                return Err(fault("a second entry of that key"));
            }
            Ok(())
        })?;
        Ok(Self { values, access: HashMap::new() })
    }

    fn into_tree(mut self) -> Result<Tree, Fault> {
        let root = self.directory(b"")?;
        let metadata = self.metadata(b"", &root.access, root.mtime, root.ctime)?;
        let mut tree = Tree::new(metadata);
        let node = Node::Directory(Directory::with_size(root.size));
        *tree.inode_mut(InodeId::ROOT) = Inode::new(metadata, node);
        let contents = root.contents;
        let mut pending = vec![Pending { id: InodeId::ROOT, path: Vec::new(), contents }];
        while let Some(directory) = pending.pop() {
            for item in directory.contents {
                let mut path = directory.path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&item.name);
                if let Some(below) = self.add(&mut tree, directory.id, path, item)? {
                    pending.push(below);
                }
            }
        }
        Ok(tree)
    }

    /// Enters one item; a directory's contents are returned.
    fn add(
        &mut self,
        tree: &mut Tree,
        parent: InodeId,
        path: Vec<u8>,
        item: Item,
    ) -> Result<Option<Pending>, Fault> {
        let (metadata, node, contents) = match item.kind {
            Kind::Dir(key) => {
                if key != directory_key(&path) {
                    let rule = "its directory key is not the hash of its path";
                    return Err(Fault::at(&path, rule));
                }
                let below = self.directory(&path)?;
                let metadata = self.metadata(&path, &below.access, below.mtime, below.ctime)?;
                let node = Node::Directory(Directory::with_size(below.size));
                (metadata, node, Some(below.contents))
            }
            kind => {
                let metadata = self.metadata(&path, &item.access, item.mtime, item.ctime)?;
                (metadata, node(kind).map_err(|rule| Fault::at(&path, rule))?, None)
            }
        };
        let id = tree
            .add(parent, &item.name, Inode::new(metadata, node))
            .map_err(|error| Fault::tree(&path, &error))?;
        Ok(contents.map(|contents| Pending { id, path, contents }))
    }

    /// The entry of the directory at `path`. It is taken: no second path leads to it.
    fn directory(&mut self, path: &[u8]) -> Result<Dir, Fault> {
        let value = self
            .values
            .remove(directory_key(path).as_slice())
            .ok_or_else(|| Fault::at(path, "its directory entry is missing"))?;
        Dir::decode(&value).map_err(|error| Fault::at(path, error.to_string()))
    }

    fn metadata(
        &mut self,
        path: &[u8],
        key: &[u8],
        mtime: u32,
        ctime: u32,
    ) -> Result<Metadata, Fault> {
        let access = match self.access.get(key) {
            Some(access) => *access,
            None => {
                let value = self
                    .values
                    .get(key)
                    .ok_or_else(|| Fault::at(path, "its access entry is missing"))?;
                let access =
                    Access::decode(value).map_err(|error| Fault::at(path, error.to_string()))?;
                self.access.insert(key.to_vec(), access);
                access
            }
        };
        let time = |seconds: u32| Timestamp { seconds: seconds.into(), nanoseconds: 0 };
        Ok(Metadata {
            permissions: access.permissions,
            uid: access.uid,
            gid: access.gid,
            mtime: time(mtime),
            ctime: time(ctime),
        })
    }
}

/// The tree's node for anything but a directory.
fn node(kind: Kind) -> Result<Node, String> {
    Ok(match kind {
        Kind::File { size, blocks } => {
            let expected = size.div_ceil(BLOCK_SIZE.into());
            if blocks.len() as u64 != expected {
                let found = blocks.len();
                return Err(format!("{found} blocks for {size} bytes, must be {expected}"));
            }
            Node::File(FileContents { size, blocks })
        }
        Kind::Link(target) => Node::Symlink(target),
        Kind::Socket => Node::Socket,
        Kind::Fifo => Node::Fifo,
        Kind::BlockDevice(major, minor) => Node::BlockDevice(DeviceNumber { major, minor }),
        Kind::CharacterDevice(major, minor) => Node::CharacterDevice(DeviceNumber { major, minor }),
        Kind::Dir(_) => return Err("a directory where none can be".to_owned()),
    })
}

/// Key of a directory's entry: BLAKE2b-128 of its path, in lower-case hex.
fn directory_key(path: &[u8]) -> Vec<u8> {
    Params::new().hash_length(16).hash(path).to_hex().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_the_hash_of_nothing() {
        assert_eq!(directory_key(b""), b"cae66941d9efbd404e4d88758ea67670");
    }
}
