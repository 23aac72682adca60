//! A small image and its blocks, for the tests of views and servers.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::block::{
    BLOCK_SIZE, BlockCipher, BlockData, BlockError, BlockId, BlockKey, BlockRef, BlockSource,
};
use crate::filesystem::{Ino, ROOT, Timestamp};
use crate::index::{Contents, Index, IndexWriter, InodeRecord};
use crate::view::FlistView;

pub(crate) const FILE: Ino = 2;
pub(crate) const LINK: Ino = 3;
pub(crate) const DEVICE: Ino = 4;
pub(crate) const DIRECTORY: Ino = 5;
pub(crate) const EMPTY: Ino = 6;
/// Entries of [`DIRECTORY`]: `000` to `299`, all of them [`FILE`].
pub(crate) const DIRECTORY_COUNT: usize = 300;
/// Two blocks, the second of 5 bytes.
pub(crate) const FILE_SIZE: u64 = BLOCK_SIZE as u64 + 5;

/// Blocks in one local file; block `n` of the image is filled with `n + 1`.
pub(crate) struct FileSource {
    file: Arc<File>,
    /// How many of the next calls fail.
    pub(crate) failures: AtomicU32,
    /// Size that every block claims instead of its own, if not 0.
    pub(crate) size_claimed: AtomicU32,
}

impl BlockSource for FileSource {
    fn block(&self, position: u32, block: &BlockRef) -> Result<BlockData, BlockError> {
        assert_eq!(block.id, block_ref(position).id);
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if fails.is_ok() {
            let reason = "no store answers".to_owned();
            return Err(BlockError::Unavailable { id: block.id, reason });
        }
        let size = match self.size_claimed.load(Ordering::Relaxed) {
            0 if position == 0 => BLOCK_SIZE,
            0 => 5,
            size => size,
        };
        let offset = u64::from(position) * u64::from(BLOCK_SIZE);
        Ok(BlockData { file: Arc::clone(&self.file), offset, size })
    }
}

pub(crate) fn contents() -> Vec<u8> {
    let mut contents = vec![1; BLOCK_SIZE as usize];
    contents.extend([2; 5]);
    contents
}

pub(crate) fn source() -> Arc<FileSource> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&contents()).unwrap();
    Arc::new(FileSource {
        file: Arc::new(file),
        failures: AtomicU32::new(0),
        size_claimed: AtomicU32::new(0),
    })
}

pub(crate) fn view() -> FlistView {
    FlistView::new(Arc::new(index(true)), source())
}

pub(crate) fn index(has_xattrs: bool) -> Index {
    let mut writer = IndexWriter::new([1; 32], BlockCipher::Aes256Gcm);
    let names: Vec<String> = (0..DIRECTORY_COUNT).map(|i| format!("{i:03}")).collect();
    let many: Vec<(&[u8], Ino)> = names.iter().map(|name| (name.as_bytes(), FILE)).collect();
    let top: [(&[u8], Ino); 5] = [
        (b"device", DEVICE),
        (b"directory", DIRECTORY),
        (b"empty", EMPTY),
        (b"file", FILE),
        (b"link", LINK),
    ];
    let blocks = [block_ref(0), block_ref(1)];
    let xattrs: [(&[u8], &[u8]); 2] = [(b"user.a", b"value"), (b"user.empty", b"")];
    let root = Contents::Directory { parent: ROOT, size: 4096, entries: &top };
    let directory = Contents::Directory { parent: ROOT, size: 0, entries: &many };
    let records = [
        (0o040_755, 3, root),
        (0o100_644, 301, Contents::File { size: FILE_SIZE, blocks: &blocks }),
        (0o120_777, 1, Contents::Symlink(b"directory/000")),
        (0o060_600, 1, Contents::Device { major: 259, minor: 300 }),
        (0o040_700, 2, directory),
        (0o100_600, 1, Contents::File { size: 0, blocks: &[] }),
    ];
    for (ino, (mode, nlink, contents)) in (ROOT..).zip(records) {
        let record = InodeRecord {
            mode,
            nlink,
            uid: 1000,
            gid: 100,
            mtime: Timestamp { seconds: -1, nanoseconds: 7 },
            ctime: Timestamp { seconds: 2, nanoseconds: 8 },
            contents,
            xattrs: if has_xattrs && ino == FILE { &xattrs } else { &[] },
        };
        assert_eq!(writer.inode(&record).unwrap(), ino);
    }
    let index = Index::from_bytes(writer.finish().unwrap()).unwrap();
    index.verify().unwrap();
    index
}

fn block_ref(position: u32) -> BlockRef {
    let id = BlockId([u8::try_from(position).unwrap() + 1; 32]);
    BlockRef { id, key: BlockKey([0; 32]) }
}
