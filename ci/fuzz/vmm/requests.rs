//! The writable FUSE server: a sequence of requests to a directory, and to an overlay of an image and
//! a directory.
//!
//! What is promised besides whole replies: nothing outside of the directory changes, and what is
//! counted for the quota is what a new count finds.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use flist_view::block::{
    BlockCipher, BlockData, BlockError, BlockId, BlockKey, BlockRef, BlockSource,
};
use flist_view::filesystem::{FileSystem, ROOT, Timestamp, WriteSource};
use flist_view::fuse::{BufferReply, Outcome, Server, WRITE_HEAD_SIZE};
use flist_view::index::{Contents, Index, IndexWriter, InodeRecord};
use flist_view::view::FlistView;
use rustix::fs::MemfdFlags;
use tempfile::TempDir;
use vmm_virtio::fs::host::{HostDirectory, HostOptions};
use vmm_virtio::fs::overlay::{MarkPrefix, Overlay, OverlayOptions};

use super::script::Script;

const OPERATION_COUNT_MAX: u64 = 300;
const REPLY_SIZE: usize = 64 << 10;
const QUOTA: u64 = 1 << 20;
/// What lies beside the served directory.
const OUTSIDE: &[u8] = b"nobody changes this";
const NAMES: [&[u8]; 12] = [
    b"a",
    b"b",
    b"c",
    b"file",
    b"dir",
    b"link",
    b"twin",
    b".",
    b"..",
    b"",
    b"x/y",
    b"a name that is as long as names may be and a little more, which nobody would type by hand \
      but a fuzzer does, again and again, since it has the time for it and likes to see what comes \
      of names that are longer than two hundred and fifty-five bytes; this one is, by now",
];

/// A folder with a directory to be served, and something beside it.
pub(crate) struct Served(TempDir);

impl Served {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir_in(memory_folder()).expect("a folder");
        std::fs::write(folder.path().join("outside"), OUTSIDE).expect("room");
        let served = folder.path().join("served");
        std::fs::create_dir(&served).expect("room");
        std::fs::write(served.join("file"), b"contents").expect("room");
        std::fs::create_dir(served.join("dir")).expect("room");
        std::os::unix::fs::symlink("../outside", served.join("link")).expect("room");
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("served")
    }

    pub(crate) fn directory(&self) -> HostDirectory {
        let options = HostOptions { quota: Some(QUOTA), ..HostOptions::default() };
        HostDirectory::open(&self.path(), options).expect("a directory")
    }

    /// Nothing has changed outside.
    pub(crate) fn check(&self) {
        let outside = std::fs::read(self.0.path().join("outside")).expect("it is there");
        assert_eq!(outside, OUTSIDE);
        assert_eq!(std::fs::read_dir(self.0.path()).expect("it is there").count(), 2);
    }
}

/// Where files cost no disk.
fn memory_folder() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}

/// Requests to a directory.
pub(crate) fn directory(bytes: &[u8]) {
    let served = Served::new();
    play(bytes, served.directory(), &served);
}

/// Requests to an overlay.
pub(crate) fn overlay(bytes: &[u8]) {
    let served = Served::new();
    let is_root = rustix::process::geteuid().is_root();
    let marks = if is_root { MarkPrefix::Trusted } else { MarkPrefix::User };
    let options = OverlayOptions { marks, quota: Some(QUOTA) };
    let overlay = Overlay::open(image(), &served.path(), options).expect("a volume");
    play(bytes, overlay, &served);
}

fn play(bytes: &[u8], file_system: impl FileSystem, served: &Served) {
    let script = &mut Script::new(bytes);
    let server = Server::new(file_system, REPLY_SIZE);
    let mut nodes = vec![ROOT];
    for unique in 1..=OPERATION_COUNT_MAX {
        if script.is_over() {
            break;
        }
        let node = match script.byte() {
            0xff => script.u64(),
            index => nodes[usize::from(index) % nodes.len()],
        };
        let request = request(script, node, unique, &nodes);
        if let Some(node) = ask(&server, &request)
            && !nodes.contains(&node)
        {
            nodes.push(node);
        }
    }
    served.check();
    let file_system = server.file_system();
    file_system.forget_all();
    let counted = file_system.statistics().expect("statistics").block_count_free;
    drop(server);
    let anew = served.directory().statistics().expect("statistics").block_count_free;
    assert_eq!(counted, anew, "what is free, and what a new count finds");
}

/// Has a request answered; the node that it tells of, if it is one that tells of one.
fn ask(server: &Server<impl FileSystem>, request: &[u8]) -> Option<u64> {
    let mut reply = BufferReply::new(REPLY_SIZE);
    let opcode = u32::from_le_bytes(request.get(4..8)?.try_into().ok()?);
    let head = &request[..request.len().min(WRITE_HEAD_SIZE)];
    let is_write = opcode == op::WRITE && request.len() >= WRITE_HEAD_SIZE;
    let outcome = if is_write {
        let mut contents = Bytes(&request[WRITE_HEAD_SIZE..]);
        server.handle_with(head, &mut contents, &mut reply)
    } else {
        server.handle(request, &mut reply)
    };
    match outcome.expect("a buffer takes all") {
        Outcome::Replied | Outcome::Destroyed => {
            let sent = reply.as_bytes().expect("a reply");
            let size = u32::from_le_bytes(sent[..4].try_into().expect("four bytes"));
            assert_eq!(size as usize, sent.len());
            assert_eq!(sent[8..16], request[8..16], "a reply to somebody else's request");
            let tells = op::ENTRIES.contains(&opcode) && sent.len() >= 24;
            tells.then(|| u64::from_le_bytes(sent[16..24].try_into().expect("eight bytes")))
        }
        Outcome::Silent | Outcome::Malformed => {
            assert!(reply.as_bytes().is_none());
            None
        }
    }
}

/// Contents of a write.
struct Bytes<'a>(&'a [u8]);

impl WriteSource for Bytes<'_> {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn write(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let bytes = self.0.get(..size).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(rustix::io::pwrite(file, bytes, offset)?)
    }
}

mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const WRITE: u32 = 16;
    /// Those whose replies begin with a node.
    pub(super) const ENTRIES: [u32; 7] = [LOOKUP, 6, 8, 9, 13, 35, 51];

    /// What follows the fixed arguments.
    #[derive(Clone, Copy)]
    pub(super) enum Tail {
        None,
        Name,
        Names,
        /// A name and bytes.
        Value,
        Bytes,
    }

    /// Opcodes of FUSE 7.38, the size of their fixed arguments, whether those begin with a node, and
    /// what follows.
    pub(super) const ALL: [(u32, usize, bool, Tail); 42] = [
        (LOOKUP, 0, false, Tail::Name),
        (2, 8, false, Tail::None),
        (3, 16, false, Tail::None),
        (4, 88, false, Tail::None),
        (5, 0, false, Tail::None),
        (6, 0, false, Tail::Names),
        (8, 16, false, Tail::Name),
        (9, 8, false, Tail::Name),
        (10, 0, false, Tail::Name),
        (11, 0, false, Tail::Name),
        (12, 8, true, Tail::Names),
        (13, 8, true, Tail::Name),
        (14, 8, false, Tail::None),
        (15, 40, false, Tail::None),
        (WRITE, 40, false, Tail::Bytes),
        (WRITE, 40, false, Tail::Bytes),
        (17, 0, false, Tail::None),
        (18, 24, false, Tail::None),
        (20, 16, false, Tail::None),
        (21, 8, false, Tail::Value),
        (22, 8, false, Tail::Name),
        (23, 8, false, Tail::None),
        (24, 0, false, Tail::Name),
        (25, 24, false, Tail::None),
        (26, 16, false, Tail::None),
        (27, 8, false, Tail::None),
        (28, 40, false, Tail::None),
        (29, 24, false, Tail::None),
        (30, 16, false, Tail::None),
        (34, 8, false, Tail::None),
        (35, 16, false, Tail::Name),
        (36, 8, false, Tail::None),
        (38, 0, false, Tail::None),
        (42, 8, false, Tail::Bytes),
        (43, 32, false, Tail::None),
        (44, 40, false, Tail::None),
        (45, 16, true, Tail::Names),
        (46, 24, false, Tail::None),
        (47, 56, false, Tail::None),
        (50, 8, false, Tail::None),
        (51, 16, false, Tail::Name),
        (4096, 16, false, Tail::Bytes),
    ];
}

/// A request, as a script has it: mostly one that makes sense.
pub(crate) fn request(script: &mut Script<'_>, node: u64, unique: u64, nodes: &[u64]) -> Vec<u8> {
    let (opcode, fixed_size, has_node, tail) = script.pick(&op::ALL);
    let mut arguments = Vec::new();
    while arguments.len() < fixed_size {
        // Fields are of four or eight bytes; most are small.
        match script.byte() {
            0xff => arguments.extend(script.take(4)),
            0xfe => arguments.extend(u32::MAX.to_le_bytes()),
            0x80..=0xfd => arguments.extend(u32::from(script.u16()).to_le_bytes()),
            small => arguments.extend(u32::from(small).to_le_bytes()),
        }
        arguments.resize(arguments.len().next_multiple_of(4), 0);
    }
    arguments.truncate(fixed_size);
    if has_node {
        let other = nodes[usize::from(script.byte()) % nodes.len()];
        arguments[..8].copy_from_slice(&other.to_le_bytes());
    }
    let modes = [0o100_644_u32, 0o040_755, 0o010_644, 0o020_644, 0o120_777, 0o104_755];
    if matches!(opcode, 8) {
        arguments[..4].copy_from_slice(&script.pick(&modes).to_le_bytes());
    }
    let name = |script: &mut Script<'_>| [script.pick(&NAMES), b"\0"].concat();
    match tail {
        op::Tail::None => {}
        op::Tail::Name => arguments.extend(name(script)),
        op::Tail::Names => arguments.extend([name(script), name(script)].concat()),
        op::Tail::Value => {
            let kinds: [&[u8]; 6] = [
                b"user.a\0",
                b"user.b\0",
                b"trusted.overlay.opaque\0",
                b"security.capability\0",
                b"system.posix_acl_access\0",
                b"\0",
            ];
            let size = usize::from(script.u16() % 3000);
            arguments[..4].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_le_bytes());
            arguments.extend(script.pick(&kinds));
            arguments.resize(arguments.len() + size, script.byte());
        }
        op::Tail::Bytes => {
            let size = usize::from(script.u16() % 9000);
            if opcode == op::WRITE {
                arguments[16..20].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_le_bytes());
            }
            arguments.resize(arguments.len() + size, script.byte());
        }
    }
    if script.byte() == 0xff {
        // A lie about what was sent.
        let cut = usize::from(script.u16()) % (arguments.len() + 1);
        arguments.truncate(cut);
    }
    frame(opcode, node, unique, &arguments)
}

fn frame(opcode: u32, node: u64, unique: u64, arguments: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(40 + arguments.len()).unwrap_or(0).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend(rustix::process::geteuid().as_raw().to_le_bytes());
    bytes.extend(rustix::process::getegid().as_raw().to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(arguments);
    bytes
}

/// The one block that files of the image have.
struct Block(Arc<File>);

const BLOCK: [u8; 5000] = [7; 5000];

impl BlockSource for Block {
    fn block(&self, _: u32, _: &BlockRef) -> Result<BlockData, BlockError> {
        let size = u32::try_from(BLOCK.len()).unwrap_or(0);
        Ok(BlockData { file: Arc::clone(&self.0), offset: 0, size })
    }
}

/// A file with two names, another, a link, and a directory with a file and a directory.
fn image() -> FlistView {
    static IMAGE: OnceLock<(Arc<Index>, Arc<Block>)> = OnceLock::new();
    let (index, block) = IMAGE.get_or_init(|| {
        let memory = rustix::fs::memfd_create("block", MemfdFlags::CLOEXEC).expect("memory");
        let mut file = File::from(memory);
        file.write_all(&BLOCK).expect("memory");
        (Arc::new(index()), Arc::new(Block(Arc::new(file))))
    });
    FlistView::new(Arc::clone(index), Arc::clone(block) as Arc<dyn BlockSource>)
}

fn index() -> Index {
    let mut writer = IndexWriter::new([9; 32], BlockCipher::Aes256Gcm);
    let blocks = [BlockRef { id: BlockId([1; 32]), key: BlockKey([2; 32]) }];
    let file = Contents::File { size: BLOCK.len() as u64, blocks: &blocks };
    let top: [(&[u8], u64); 5] =
        [(b"dir", 4), (b"file", 2), (b"link", 3), (b"other", 6), (b"twin", 2)];
    let below: [(&[u8], u64); 2] = [(b"deep", 7), (b"file", 5)];
    let directory = |parent, entries| Contents::Directory { parent, size: 0, entries };
    let all = [
        (0o040_755, 3, directory(ROOT, &top[..])),
        (0o100_644, 2, file),
        (0o120_777, 1, Contents::Symlink(b"../outside")),
        (0o040_755, 3, directory(ROOT, &below[..])),
        (0o104_755, 1, file),
        (0o100_600, 1, Contents::File { size: 0, blocks: &[] }),
        (0o040_700, 2, directory(4, &[])),
    ];
    let xattrs: [(&[u8], &[u8]); 1] = [(b"user.image", b"yes")];
    for (ino, (mode, nlink, contents)) in (ROOT..).zip(all) {
        let record = InodeRecord {
            mode,
            nlink,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime: Timestamp { seconds: 1, nanoseconds: 2 },
            ctime: Timestamp { seconds: 1, nanoseconds: 2 },
            contents,
            xattrs: if ino == 2 { &xattrs } else { &[] },
        };
        assert_eq!(writer.inode(&record).expect("a sound inode"), ino);
    }
    Index::from_bytes(writer.finish().expect("a sound image")).expect("our own index is sound")
}
