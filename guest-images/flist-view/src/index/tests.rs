//! Random trees through writer and reader, damage, and the golden file.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::layout::HEADER_SIZE;
use super::*;
use crate::block::{BlockId, BlockKey};
use crate::filesystem::ROOT;

/// An inode of the model: what was written, owned.
#[derive(Clone, Debug)]
struct Model {
    mode: u32,
    uid: u32,
    mtime: Timestamp,
    size: u64,
    entries: BTreeMap<Vec<u8>, usize>,
    parent: usize,
    target: Vec<u8>,
    device: (u32, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// One step that grows a model: which parent, which name, which type, and some numbers.
type Step = (prop::sample::Index, Vec<u8>, u8, u32, u64);

fn model(mode: u32, parent: usize) -> Model {
    Model {
        mode,
        uid: 0,
        mtime: Timestamp { seconds: -5, nanoseconds: 999_999_999 },
        size: 0,
        entries: BTreeMap::new(),
        parent,
        target: Vec::new(),
        device: (0, 0),
        xattrs: BTreeMap::new(),
    }
}

fn grow(steps: &[Step]) -> Vec<Model> {
    let mut inodes = vec![model(0o040_755, 0)];
    for (choice, name, kind, number, size) in steps {
        let directories: Vec<usize> =
            (0..inodes.len()).filter(|i| inodes[*i].mode & 0o170_000 == 0o040_000).collect();
        let parent = *choice.get(&directories);
        if inodes[parent].entries.contains_key(name) {
            continue;
        }
        let types =
            [0o040_000, 0o100_000, 0o120_000, 0o020_000, 0o060_000, 0o010_000, 0o140_000, 0];
        let file_type: u32 = types[usize::from(*kind) % types.len()];
        let mut child = inodes.len();
        if file_type == 0 {
            child = choice.index(inodes.len());
            if directories.contains(&child) {
                continue;
            }
        } else {
            let mut inode = model(file_type | (number & 0o7777), parent);
            inode.uid = *number;
            match file_type {
                0o040_000 => inode.size = 4096,
                0o100_000 => inode.size = size % (3 * u64::from(BLOCK_SIZE)),
                0o120_000 => inode.target = [b"../".as_slice(), name].concat(),
                0o020_000 | 0o060_000 => inode.device = (*number, 70_000),
                _ => {}
            }
            if number % 3 == 0 {
                inode.xattrs.insert(b"user.a".to_vec(), name.clone());
                inode.xattrs.insert(b"security.capability".to_vec(), vec![0, 1, 2]);
            }
            inodes.push(inode);
        }
        inodes[parent].entries.insert(name.clone(), child);
    }
    inodes
}

fn block(position: u64) -> BlockRef {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&position.to_le_bytes());
    BlockRef { id: BlockId(bytes), key: BlockKey([9; 32]) }
}

fn nlink(inodes: &[Model], position: usize) -> u32 {
    let inode = &inodes[position];
    let is_directory = |i: &usize| inodes[*i].mode & 0o170_000 == 0o040_000;
    let count = if is_directory(&position) {
        2 + inode.entries.values().filter(|i| is_directory(i)).count()
    } else {
        inodes.iter().flat_map(|i| i.entries.values()).filter(|i| **i == position).count()
    };
    u32::try_from(count).unwrap()
}

fn write(inodes: &[Model]) -> Vec<u8> {
    let mut writer = IndexWriter::new([3; 32], BlockCipher::Aes256Gcm);
    for (position, inode) in inodes.iter().enumerate() {
        let entries: Vec<(&[u8], Ino)> =
            inode.entries.iter().map(|(name, i)| (name.as_slice(), *i as u64 + 1)).collect();
        let xattrs: Vec<(&[u8], &[u8])> =
            inode.xattrs.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
        let blocks: Vec<BlockRef> = (0..block_count_of(inode.size)).map(block).collect();
        let (major, minor) = inode.device;
        let contents = match inode.mode & 0o170_000 {
            0o040_000 => Contents::Directory {
                parent: inode.parent as u64 + 1,
                size: inode.size,
                entries: &entries,
            },
            0o100_000 => Contents::File { size: inode.size, blocks: &blocks },
            0o120_000 => Contents::Symlink(&inode.target),
            0o020_000 | 0o060_000 => Contents::Device { major, minor },
            _ => Contents::Other,
        };
        let record = InodeRecord {
            mode: inode.mode,
            nlink: nlink(inodes, position),
            uid: inode.uid,
            gid: 100,
            mtime: inode.mtime,
            ctime: Timestamp::default(),
            contents,
            xattrs: &xattrs,
        };
        assert_eq!(writer.inode(&record).unwrap(), position as u64 + 1);
    }
    writer.finish().unwrap()
}

fn assert_same(inodes: &[Model], index: &Index) {
    assert_eq!(index.inode_count() as usize, inodes.len());
    for (ino, expected) in (ROOT..).zip(inodes) {
        let inode = index.inode(ino).unwrap();
        let attributes = Index::attributes(ino, &inode);
        assert_eq!((attributes.ino, attributes.mode), (ino, expected.mode));
        assert_eq!((attributes.uid, attributes.gid), (expected.uid, 100));
        assert_eq!((attributes.mtime, attributes.rdev), (expected.mtime, expected.device));
        let xattrs: Vec<Xattr<'_>> = index.xattrs(&inode).map(Result::unwrap).collect();
        let pairs: BTreeMap<_, _> =
            xattrs.iter().map(|x| (x.name.to_vec(), x.value.to_vec())).collect();
        assert_eq!(pairs, expected.xattrs);
        match inode.file_type().unwrap() {
            FileType::Directory => {
                let entries = index.entries(&inode).unwrap();
                assert_eq!(entries.count() as usize, expected.entries.len());
                for (number, (name, child)) in (0..).zip(&expected.entries) {
                    let child = *child as u64 + 1;
                    assert_eq!(entries.get(number).unwrap(), Some((name.as_slice(), child)));
                    assert_eq!(entries.find(name).unwrap(), Some(child));
                }
                assert_eq!(entries.find(b"\xff\xff missing").unwrap(), None);
                assert_eq!(index.parent(&inode).unwrap(), expected.parent as u64 + 1);
            }
            FileType::File => {
                let positions = index.blocks(&inode).unwrap();
                assert_eq!(positions.len() as u64, block_count_of(expected.size));
                for (position, number) in positions.zip(0..) {
                    assert_eq!(index.block(position).unwrap(), block(number));
                }
            }
            FileType::Symlink => assert_eq!(index.target(&inode).unwrap(), expected.target),
            FileType::Device | FileType::Other => {}
        }
    }
}

/// Calls everything there is to call; only panics and endless loops are wrong.
fn exercise(index: &Index) {
    for ino in 0..u64::from(index.inode_count().min(100)) + 2 {
        let Ok(inode) = index.inode(ino) else { continue };
        let _ = Index::attributes(ino, &inode);
        let _ = index.xattrs(&inode).take(10).filter(Result::is_ok).count();
        let _ = (index.xattr(&inode, b"user.a").is_ok(), index.target(&inode).is_ok());
        if let Ok(entries) = index.entries(&inode) {
            let _ = entries.find(b"name");
            let _ = (0..entries.count().min(100)).filter(|i| entries.get(*i).is_ok()).count();
        }
        if let Ok(positions) = index.blocks(&inode) {
            let _ = positions.take(100).filter(|p| index.block(*p).is_ok()).count();
        }
    }
    let _ = index.verify();
}

fn with_valid_header(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes[..HEADER_SIZE - 4]);
    bytes[HEADER_SIZE - 4..HEADER_SIZE].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("a name's byte", |b| *b != 0 && *b != b'/');
    prop::collection::vec(byte, 1..20).prop_filter("reserved", |n| n != b"." && n != b"..")
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<prop::sample::Index>(), name(), any::<u8>(), any::<u32>(), any::<u64>());
    prop::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back_the_same(steps in steps()) {
        let inodes = grow(&steps);
        let index = Index::from_bytes(write(&inodes)).unwrap();
        index.verify().unwrap();
        assert_same(&inodes, &index);
    }

    #[test]
    fn damage_never_panics_and_verify_sees_it(
        steps in steps(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
    ) {
        let good = write(&grow(&steps));
        let mut bad = good.clone();
        for (position, bit) in flips {
            let position = position.index(bad.len());
            bad[position] ^= 1 << bit;
        }
        let is_damaged = bad != good;
        match Index::from_bytes(bad.clone()) {
            Ok(index) => {
                exercise(&index);
                prop_assert!(!is_damaged || index.verify().is_err());
            }
            Err(_) => prop_assert!(is_damaged),
        }
        if let Ok(index) = Index::from_bytes(with_valid_header(bad)) {
            exercise(&index);
        }
    }

    #[test]
    fn random_bytes_behind_a_valid_header_never_panic(bytes in prop::collection::vec(any::<u8>(), 160..400)) {
        let mut bytes = bytes;
        let good = write(&grow(&[]));
        bytes[..16].copy_from_slice(&good[..16]);
        if let Ok(index) = Index::from_bytes(with_valid_header(bytes)) {
            exercise(&index);
        }
    }
}

#[test]
fn truncation_at_every_size_is_refused_or_harmless() {
    let good = write(&grow(&[]));
    for size in 0..good.len() {
        assert!(Index::from_bytes(good[..size].to_vec()).is_err(), "{size} bytes");
    }
}

#[test]
fn the_writer_refuses_what_a_reader_would_refuse() {
    let root = |entries: &[(&[u8], Ino)]| {
        let mut writer = IndexWriter::new([0; 32], BlockCipher::Xxtea);
        let contents = Contents::Directory { parent: ROOT, size: 0, entries };
        writer.inode(&record(0o040_755, contents))?;
        writer.finish()
    };
    assert_eq!(root(&[(b"b", 1), (b"a", 1)]).unwrap_err(), WriteError::Names(1));
    assert_eq!(root(&[(b"a", 1), (b"a", 1)]).unwrap_err(), WriteError::Names(1));
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
        assert_eq!(root(&[(name, 1)]).unwrap_err(), WriteError::Names(1), "{name:?}");
    }
    assert_eq!(root(&[(b"a", 2)]).unwrap_err(), WriteError::Dangling(2));
    let mut writer = IndexWriter::new([0; 32], BlockCipher::Xxtea);
    let fifo = record(0o010_644, Contents::Other);
    assert_eq!(writer.inode(&fifo).unwrap_err(), WriteError::Mode(1, 0o010_644));
}

#[test]
fn a_size_that_its_blocks_do_not_fit_is_refused() {
    let mut writer = IndexWriter::new([0; 32], BlockCipher::Xxtea);
    let contents = Contents::Directory { parent: ROOT, size: 0, entries: &[] };
    writer.inode(&record(0o040_755, contents)).unwrap();
    let blocks = [block(0)];
    let file = record(0o100_644, Contents::File { size: 1 << 60, blocks: &blocks });
    let error = WriteError::BlockCount { ino: 2, size: 1 << 60, expected: 1 << 41, found: 1 };
    assert_eq!(writer.inode(&file).unwrap_err(), error);
}

fn record(mode: u32, contents: Contents<'_>) -> InodeRecord<'_> {
    InodeRecord {
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        contents,
        xattrs: &[],
    }
}

/// One inode of every type, a hard link, extended attributes: what `FORMAT.md` walks through.
fn golden_tree() -> Vec<Model> {
    let mut inodes = vec![model(0o040_755, 0)];
    let mut file = model(0o104_755, 0);
    file.size = u64::from(BLOCK_SIZE) + 1;
    file.uid = 1000;
    file.xattrs.insert(b"user.mime_type".to_vec(), b"text/plain".to_vec());
    let mut link = model(0o120_777, 0);
    link.target = b"bin/hello".to_vec();
    let mut device = model(0o020_600, 0);
    device.device = (5, 1);
    inodes.extend([model(0o040_755, 0), link, device, model(0o010_644, 0), file]);
    for (name, position) in [("bin", 1), ("link", 2), ("console", 3), ("pipe", 4), ("hard", 5)] {
        inodes[0].entries.insert(name.into(), position);
    }
    inodes[1].entries.insert(b"hello".to_vec(), 5);
    inodes
}

#[test]
fn the_golden_file_is_what_the_writer_writes_and_the_reader_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/index-v1.idx");
    let inodes = golden_tree();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, write(&inodes)).unwrap();
    }
    let golden = std::fs::read(path).unwrap();
    assert!(write(&inodes) == golden, "layout changed: raise VERSION, update FORMAT.md");
    let index = Index::from_bytes(golden).unwrap();
    index.verify().unwrap();
    assert_same(&inodes, &index);
}

#[test]
fn a_mapped_file_reads_like_bytes_in_memory() {
    use std::io::Write;
    let inodes = golden_tree();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&write(&inodes)).unwrap();
    let index = Index::open(&file).unwrap();
    index.verify().unwrap();
    assert_same(&inodes, &index);
}
