//! The current generation, `.fl`: one SQLite database (`reference: flist 1.1`).
//!
//! Five tables are upstream's, kept exactly: `inode`, `extra` (targets of symbolic links), `block`
//! (in row order), `tag`, `route`. Every entry is a row of `inode`, a hard link too, because upstream
//! knows no links: each gets the file's blocks again. Three side tables are ours and optional;
//! upstream's readers don't look at them: `xattr`, `hardlink` (which rows are one inode), `time`
//! (nanoseconds). A tag `format` tells that they were written. `FORMAT.md` has the columns.
//!
//! Names are TEXT when they are UTF-8, which is all that upstream's readers understand, and BLOB
//! otherwise, so that no byte is lost.

mod read;
mod write;

pub(super) use self::read::read;
pub use self::write::{Secrets, write, write_with};

/// Tag that says which side tables the writer knew; its value is [`FORMAT_VALUE`].
pub const FORMAT_TAG: &str = "format";
/// Value of [`FORMAT_TAG`]: `xattr`, `hardlink` and `time`.
pub const FORMAT_VALUE: &str = "zero-os-1";

/// The root's row.
const ROOT_INO: i64 = 1;
/// Name of the root's row.
const ROOT_NAME: &[u8] = b"/";
/// File type bits of `inode.mode`.
const TYPE_MASK: u32 = 0o170_000;
/// Permission bits of `inode.mode`.
const PERMISSION_MASK: u32 = 0o7777;
/// Longest name of an extended attribute, in bytes (Linux: `XATTR_NAME_MAX`).
pub const XATTR_NAME_SIZE_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes (Linux: `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_SIZE_MAX: usize = 64 * 1024;
/// Nanoseconds in a second.
const NANOSECONDS: i64 = 1_000_000_000;

const INODE_COLUMNS: &[&str] =
    &["ino", "parent", "name", "size", "uid", "gid", "mode", "rdev", "ctime", "mtime"];
const EXTRA_COLUMNS: &[&str] = &["ino", "data"];
const BLOCK_COLUMNS: &[&str] = &["ino", "id", "key"];
const TAG_COLUMNS: &[&str] = &["key", "value"];
const ROUTE_COLUMNS: &[&str] = &["start", "end", "url"];
const XATTR_COLUMNS: &[&str] = &["ino", "name", "value"];
const HARDLINK_COLUMNS: &[&str] = &["ino", "link_group"];
const TIME_COLUMNS: &[&str] = &["ino", "mtime_nsec", "ctime_nsec"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockId, BlockKey, BlockRef};
    use flist_view::filesystem::Timestamp;

    use super::*;
    use crate::format::{FormatError, Image, Route, image_hash};
    use crate::store::url::StoreUrl;
    use crate::tree::{
        DeviceNumber, Directory, FileContents, Inode, InodeId, Metadata, Node, Tree,
    };

    fn metadata(permissions: u32, seconds: i64, nanoseconds: u32) -> Metadata {
        let mtime = Timestamp { seconds, nanoseconds };
        let ctime = Timestamp { seconds: 7, nanoseconds: 0 };
        Metadata { permissions, uid: 70_000, gid: u32::MAX, mtime, ctime }
    }

    fn file(size: u64) -> Node {
        let block = |n: u64| {
            let byte = u8::try_from(n % 256).unwrap();
            BlockRef { id: BlockId([byte; 32]), key: BlockKey([!byte; 32]) }
        };
        let blocks = (0..size.div_ceil(BLOCK_SIZE.into())).map(block).collect();
        Node::File(FileContents { size, blocks })
    }

    /// One of everything that the format can hold.
    fn image() -> Image {
        let root = metadata(0o755, 0, 0);
        let mut tree = Tree::new(root);
        let add = |tree: &mut Tree, parent, name: &[u8], permissions, node| {
            let inode = Inode::new(metadata(permissions, -1, 999_999_999), node);
            tree.add(parent, name, inode).unwrap()
        };
        let directory = Node::Directory(Directory::with_size(4096));
        let folder = add(&mut tree, InodeId::ROOT, b"folder", 0o1777, directory);
        let file_id = add(&mut tree, folder, "größe".as_bytes(), 0o4755, file(3 * 524_288 + 1));
        tree.link(InodeId::ROOT, b"also", file_id).unwrap();
        tree.link(folder, b"again", file_id).unwrap();
        tree.inode_mut(file_id).xattrs = BTreeMap::from([
            (b"user.\xff".to_vec(), vec![0, 1, 255]),
            (b"user.e".to_vec(), vec![]),
        ]);
        add(&mut tree, folder, b"not-\xff-utf8", 0o600, file(0));
        add(&mut tree, folder, b"link", 0o777, Node::Symlink(b"../\xfe".to_vec()));
        let device = DeviceNumber { major: u32::MAX, minor: 70_000 };
        add(&mut tree, folder, b"character", 0o600, Node::CharacterDevice(device));
        add(&mut tree, folder, b"block", 0o600, Node::BlockDevice(device));
        let fifo = add(&mut tree, folder, b"fifo", 0o600, Node::Fifo);
        tree.link(folder, b"fifo-2", fifo).unwrap();
        add(&mut tree, folder, b"socket", 0o600, Node::Socket);
        let url = StoreUrl::parse("zdb://me:secret@host/ns").unwrap();
        Image {
            tree,
            cipher: BlockCipher::Aes256Gcm,
            routes: vec![Route { start: 0, end: 127, url }],
            tags: BTreeMap::from([("author".to_owned(), "someone".to_owned())]),
        }
    }

    fn same_tree(left: &Tree, right: &Tree) {
        let (left_walk, right_walk) = (left.walk(), right.walk());
        assert_eq!(left_walk.len(), right_walk.len());
        let mut ids = BTreeMap::new();
        for (l, r) in left_walk.iter().zip(&right_walk) {
            assert_eq!(l.path, r.path);
            assert_eq!(*ids.entry(l.id).or_insert(r.id), r.id, "hard links");
            let (l, r) = (left.inode(l.id), right.inode(r.id));
            assert_eq!((l.metadata, &l.xattrs), (r.metadata, &r.xattrs));
            match (&l.node, &r.node) {
                (Node::Directory(l), Node::Directory(r)) => assert_eq!(l.size, r.size),
                (l, r) => assert_eq!(l, r),
            }
        }
    }

    #[test]
    fn everything_survives_a_round_trip_and_equal_images_give_equal_files() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a #?%20.fl"), folder.path().join("b.fl"));
        let image = image();
        write(&image, &first).unwrap();
        write(&image, &second).unwrap();
        assert_eq!(image_hash(&first).unwrap(), image_hash(&second).unwrap());
        let read = Image::open(&first).unwrap();
        same_tree(&image.tree, &read.tree);
        assert_eq!(read.routes[0].url.to_stored(false), "zdb://host/ns", "secrets are stripped");
        assert_eq!(read.tags["author"], "someone");
        assert_eq!(read.tags[FORMAT_TAG], FORMAT_VALUE);
        write(&read, &second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn secrets_are_kept_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.fl");
        write_with(&image(), &path, Secrets::Keep).unwrap();
        let read = Image::open(&path).unwrap();
        assert_eq!(read.routes, image().routes);
    }

    #[test]
    fn an_image_without_all_its_blocks_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.fl");
        let mut image = image();
        let id = image.tree.find(b"also").unwrap();
        image.tree.inode_mut(id).node = Node::File(FileContents { size: 1, blocks: Vec::new() });
        let error = write(&image, &path).unwrap_err();
        assert!(matches!(error, FormatError::Entry { path, .. } if path == "\"/also\""));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(write(&image(), &path), Err(FormatError::Write { .. })));
        assert!(matches!(
            write(&image(), &folder.path().join("missing/a.fl")),
            Err(FormatError::Write { .. })
        ));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
