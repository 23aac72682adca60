//! What a fuzzer does with some bytes: one function for each reader of hostile input.
//!
//! Shared by the fuzz targets beside this file and by `guest-images/flist/tests/fuzz_corpus.rs`,
//! which feeds the committed corpus through the same functions in every test run. A function returns
//! if all is well, whether the bytes were taken or refused; it panics if a promise is broken.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use flist::format::Image;
use flist::index;
use flist::oci::layer::{Rootfs, Source, TreeLimits};
use flist::progress::Quiet;
use flist::tree::{Inode, InodeId, Metadata, Node, Tree};
use flist_view::block::{BlockData, BlockError, BlockRef, BlockSource};
use flist_view::fuse::{BufferReply, Outcome, Server};
use flist_view::index::Index;
use flist_view::view::FlistView;
use zdb_resp::request::RequestParser;
use zdb_resp::{Limits, reply};

/// What a fuzzer calls with some bytes.
pub(crate) type Harness = fn(&[u8]);

/// All of them, by the name of their target and corpus.
pub(crate) const HARNESSES: [(&str, Harness); 6] = [
    ("fl", fl),
    ("legacy", legacy),
    ("message", message),
    ("oci", oci),
    ("fuse", fuse),
    ("resp", resp),
];

/// The key of a legacy image's root directory: BLAKE2b-128 of nothing.
const LEGACY_ROOT: &str = "cae66941d9efbd404e4d88758ea67670";
/// Keys of the access entries that the corpus's directories name.
const LEGACY_ACCESS_KEYS: [&str; 3] = ["73e6e9d75d19d7da", "5f64cf1389d15471", "1beb17686fb6800e"];
/// A sound access entry.
const LEGACY_ACCESS: &[u8] = include_bytes!("corpus/message/access");
/// Bytes of an OCI input that say where the second layer begins.
const SPLIT_SIZE: usize = 2;
const TAR_BLOCK_SIZE: usize = 512;
const TAR_CHECKSUM: std::ops::Range<usize> = 148..156;
const TAR_MAGIC: std::ops::Range<usize> = 257..262;
const FUSE_REPLY_SIZE: usize = 64 * 1024;

/// A current image's file.
pub(crate) fn fl(bytes: &[u8]) {
    // Without the magic it would be read as nothing at all.
    let magic = b"SQLite format 3\0";
    let rest = bytes.get(magic.len()..).unwrap_or_default();
    image(&[magic, rest].concat());
}

/// A legacy image's file.
pub(crate) fn legacy(bytes: &[u8]) {
    image(&[b"\x1f\x8b", bytes.get(2..).unwrap_or_default()].concat());
}

/// The message that is a legacy image's root directory, in an image that is sound otherwise.
pub(crate) fn message(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("db");
    {
        let database = rusqlite::Connection::open(&path).expect("a new database");
        let schema = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA page_size = 1024;
            CREATE TABLE entries (key VARCHAR(64) PRIMARY KEY, value BLOB);
            CREATE TABLE metadata (key VARCHAR(64) PRIMARY KEY, value TEXT);";
        database.execute_batch(schema).expect("a sound schema");
        let insert = "INSERT INTO entries VALUES (?, ?)";
        database.execute(insert, (LEGACY_ROOT, bytes)).expect("a new row");
        for key in LEGACY_ACCESS_KEYS {
            database.execute(insert, (key, LEGACY_ACCESS)).expect("a new row");
        }
    }
    let database = std::fs::read(&path).expect("the database");
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    let mut archive = tar::Builder::new(gzip);
    let mut header = tar::Header::new_gnu();
    header.set_size(database.len() as u64);
    header.set_mode(0o644);
    let added = archive.append_data(&mut header, "./flistdb.sqlite3", database.as_slice());
    added.expect("memory takes all");
    let gzip = archive.into_inner().expect("memory takes all");
    image(&gzip.finish().expect("memory takes all"));
}

/// Two layers: two bytes say after how many blocks of 512 bytes the second begins. Checksums of what
/// looks like a header are set right, since no fuzzer guesses them.
pub(crate) fn oci(bytes: &[u8]) {
    let Some((split, archives)) = bytes.split_first_chunk::<SPLIT_SIZE>() else { return };
    let split = usize::from(u16::from_le_bytes(*split)) * TAR_BLOCK_SIZE;
    let mut archives = archives.to_vec();
    for block in archives.as_chunks_mut::<TAR_BLOCK_SIZE>().0 {
        if block.get(TAR_MAGIC).is_some_and(|magic| magic == b"ustar") {
            set_checksum(block);
        }
    }
    let (lower, upper) = archives.split_at(split.min(archives.len()));
    let limits = TreeLimits {
        entry_count_max: 10_000,
        inode_count_max: 20_000,
        contents_size_max: 1 << 40,
        metadata_size_max: 1 << 24,
        extent_count_max: 100_000,
    };
    let mut rootfs = Rootfs::new(limits);
    for layer in [lower, upper] {
        if rootfs.apply(layer, &Quiet).is_err() {
            return;
        }
    }
    let (tree, sources) = rootfs.finish();
    assert_eq!(tree.inodes().len(), sources.len());
    for (inode, source) in tree.inodes().iter().zip(&sources) {
        let Source::Layer { layer, extents } = source else { continue };
        let Node::File(file) = &inode.node else { panic!("contents of what is no file") };
        let layer = if *layer == 0 { lower } else { upper };
        let mut end = 0;
        for extent in extents {
            assert!(extent.start >= end && extent.size > 0, "{extent:?}");
            end = extent.start + extent.size;
            assert!(end <= file.size, "{extent:?}");
            assert!(extent.offset + extent.size <= layer.len() as u64, "{extent:?}");
        }
    }
    assert!(tree.walk().iter().all(|entry| !entry.path.split(|b| *b == b'/').any(|n| n == b"..")));
}

fn set_checksum(block: &mut [u8; TAR_BLOCK_SIZE]) {
    block[TAR_CHECKSUM].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[TAR_CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// One FUSE request to a small image, whose blocks nobody has.
pub(crate) fn fuse(bytes: &[u8]) {
    let server = Server::new(view(), FUSE_REPLY_SIZE);
    let mut reply = BufferReply::new(FUSE_REPLY_SIZE);
    let outcome = server.handle(bytes, &mut reply).expect("a buffer takes all");
    match outcome {
        Outcome::Replied | Outcome::Destroyed => {
            let sent = reply.as_bytes().expect("a reply");
            let size = u32::from_le_bytes(sent[..4].try_into().expect("four bytes"));
            assert_eq!(size as usize, sent.len());
            assert_eq!(sent[8..16], bytes[8..16], "a reply to somebody else's request");
        }
        Outcome::Silent | Outcome::Malformed => assert!(reply.as_bytes().is_none()),
    }
}

/// Requests and replies of the protocol that ZDB speaks.
pub(crate) fn resp(bytes: &[u8]) {
    let _ = reply::parse(bytes, &Limits::default());
    // What comes in two pieces is the same as what comes at once.
    let at_once = first_request(&[bytes]);
    let (head, _) = bytes.split_at(bytes.len() / 2);
    assert_eq!(at_once, first_request(&[head, bytes]));
}

/// A request's size and arguments; none if it has not come whole; why it is none.
type FirstRequest = Result<Option<(usize, Vec<Vec<u8>>)>, String>;

/// The first request's size and arguments, or why there is none, seeing `prefixes` one by one.
fn first_request(prefixes: &[&[u8]]) -> FirstRequest {
    let mut parser = RequestParser::new(Limits::default());
    for (position, bytes) in prefixes.iter().enumerate() {
        match parser.parse(bytes) {
            Ok(Some(request)) => {
                let arguments: Vec<Vec<u8>> = request.arguments().map(<[u8]>::to_vec).collect();
                assert!(request.size() <= bytes.len() && request.count() == arguments.len());
                return Ok(Some((request.size(), arguments)));
            }
            Ok(None) if position + 1 == prefixes.len() => return Ok(None),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(None)
}

/// Reads an image of either generation, and makes of it what a node would.
fn image(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let Ok(image) = read(file.path()) else { return };
    let _ = image.tree.link_counts();
    if let Ok(index) = index::build(&image, [0; 32]) {
        let index = Index::from_bytes(index).expect("our own index is sound");
        index.verify().expect("our own index is whole");
    }
}

fn read(path: &Path) -> Result<Image, ()> {
    Image::open(path).map_err(|error| {
        // Messages must be made without harm, too.
        let _ = error.to_string();
    })
}

/// A directory, a file of two blocks, a link.
fn view() -> FlistView {
    let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
    let mut tree = Tree::new(metadata);
    let mut add = |parent, name: &[u8], node| {
        tree.add(parent, name, Inode::new(metadata, node)).expect("a sound tree")
    };
    let folder = add(InodeId::ROOT, b"etc", Node::Directory(Default::default()));
    let block = BlockRef {
        id: flist_view::block::BlockId([1; 32]),
        key: flist_view::block::BlockKey([2; 32]),
    };
    let size = u64::from(flist_view::block::BLOCK_SIZE) + 5;
    let contents = flist::tree::FileContents { size, blocks: vec![block, block] };
    add(folder, b"motd", Node::File(contents));
    add(folder, b"link", Node::Symlink(b"motd".to_vec()));
    let image = Image {
        tree,
        cipher: flist_view::block::BlockCipher::Aes256Gcm,
        routes: Vec::new(),
        tags: [].into(),
    };
    let index = index::build(&image, [0; 32]).expect("a sound image");
    let index = Index::from_bytes(index).expect("our own index is sound");
    FlistView::new(Arc::new(index), Arc::new(Nowhere))
}

/// Has no block.
struct Nowhere;

impl BlockSource for Nowhere {
    fn block(&self, _position: u32, block: &BlockRef) -> Result<BlockData, BlockError> {
        Err(BlockError::Unavailable { id: block.id, reason: "nowhere".to_owned() })
    }
}
