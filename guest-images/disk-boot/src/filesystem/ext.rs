//! ext2, ext3 and ext4, by the `ext4-view` crate, which forbids unsafe code and replays the journal.
//!
//! The superblock is looked at before the crate sees it: a file system that claims to be larger than its
//! partition, or to have more groups than one of any use, would have the crate allocate for it.

use ext4_view::{Ext4, Ext4Error, Ext4Read, PathBuf};

use super::{FileError, FileSystem, Kind, LIST_COUNT_MAX, Node, Sink};
use crate::bytes::{u16_at, u32_at};
use crate::source::Window;

/// Where the superblock is (Linux `Documentation/filesystems/ext4/super.rst`).
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 1024;
const MAGIC: u16 = 0xef53;
/// Block sizes are 1 KiB, doubled up to six times.
const LOG_BLOCK_SIZE_MAX: u32 = 6;
/// Most block groups: enough for 128 TiB.
const GROUP_COUNT_MAX: u64 = 1 << 20;
/// Bytes that are read of a file at once.
const PIECE_SIZE: usize = 64 << 10;

/// An ext2, ext3 or ext4 file system.
pub(super) struct Ext {
    system: Ext4,
    uuid: String,
    label: String,
}

impl Ext {
    /// The file system of a partition, if it is one of these.
    pub(super) fn open(partition: &Window) -> Result<Option<Self>, FileError> {
        if partition.size() < SUPERBLOCK + SUPERBLOCK_SIZE as u64 {
            return Ok(None);
        }
        let superblock = partition
            .bytes(SUPERBLOCK, SUPERBLOCK_SIZE)
            .map_err(|error| damaged(&error.to_string()))?;
        if u16_at(&superblock, 0x38) != Some(MAGIC) {
            return Ok(None);
        }
        check(&superblock, partition.size()).map_err(damaged)?;
        let reader = Box::new(Reader(partition.clone()));
        let system = Ext4::load(reader).map_err(|error| damaged(&error.to_string()))?;
        let uuid = system.uuid().to_string();
        let label = system.label().to_str().unwrap_or_default().to_owned();
        Ok(Some(Self { system, uuid, label }))
    }
}

/// What the crate takes on trust.
fn check(superblock: &[u8], partition_size: u64) -> Result<(), &'static str> {
    let field = |at| u32_at(superblock, at).unwrap_or(0);
    let log_block_size = field(0x18);
    if log_block_size > LOG_BLOCK_SIZE_MAX {
        return Err("its blocks are larger than 64 KiB");
    }
    let is_64_bit = field(0x60) & 0x80 != 0;
    let high = if is_64_bit { u64::from(field(0x150)) << 32 } else { 0 };
    let blocks = high | u64::from(field(4));
    let size = blocks.checked_mul(1024 << log_block_size);
    if size.is_none_or(|size| size > partition_size) {
        return Err("it says that it is larger than its partition");
    }
    let blocks_per_group = u64::from(field(0x20)).max(1);
    if blocks / blocks_per_group > GROUP_COUNT_MAX {
        return Err("it says that it has more than a million block groups");
    }
    Ok(())
}

/// A partition, as the crate reads it.
struct Reader(Window);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read(start_byte, bytes)?)
    }
}

impl FileSystem for Ext {
    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn look(&self, path: &[String]) -> Result<Option<Node>, FileError> {
        let Some(path) = absolute(path) else { return Ok(None) };
        let found = match self.system.symlink_metadata(path.as_path()) {
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
            other => other.map_err(|error| damaged(&error.to_string()))?,
        };
        let kind = match found.file_type() {
            kind if kind.is_regular_file() => Kind::File,
            kind if kind.is_dir() => Kind::Folder,
            kind if kind.is_symlink() => Kind::Link,
            _ => Kind::Special,
        };
        Ok(Some(Node { kind, size: found.len() }))
    }

    fn read_link(&self, path: &[String]) -> Result<String, FileError> {
        let path = absolute(path).ok_or_else(|| damaged("no such path"))?;
        let target = self.system.read_link(path.as_path());
        let target = target.map_err(|error| damaged(&error.to_string()))?;
        let text = target.to_str().map_err(|_| damaged("a link leads to what is no text"))?;
        Ok(text.to_owned())
    }

    fn list(&self, path: &[String]) -> Result<Vec<String>, FileError> {
        let path = absolute(path).ok_or_else(|| damaged("no such path"))?;
        let entries = self.system.read_dir(path.as_path());
        let entries = entries.map_err(|error| damaged(&error.to_string()))?;
        let mut names = Vec::new();
        // What is no text counts, so that a folder of nothing else ends, too.
        for entry in entries.take(LIST_COUNT_MAX) {
            let entry = entry.map_err(|error| damaged(&error.to_string()))?;
            match entry.file_name().as_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    fn copy(&self, path: &[String], sink: &mut Sink<'_>) -> Result<(), FileError> {
        let path = absolute(path).ok_or_else(|| damaged("no such path"))?;
        let opened = self.system.open(path.as_path());
        let mut file = opened.map_err(|error| damaged(&error.to_string()))?;
        let mut piece = vec![0; PIECE_SIZE];
        loop {
            let mut filled = 0;
            // The crate gives a block at a time.
            while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                let read = file.read_bytes(rest).map_err(|error| damaged(&error.to_string()))?;
                filled += read;
                if read == 0 {
                    break;
                }
            }
            let read = piece.get(..filled).unwrap_or_default();
            if read.is_empty() {
                return Ok(());
            }
            sink(read)?;
        }
    }
}

/// The path as the crate takes it; none if it can be none.
fn absolute(path: &[String]) -> Option<PathBuf> {
    PathBuf::try_from(format!("/{}", path.join("/"))).ok()
}

fn damaged(reason: &str) -> FileError {
    FileError::Damaged { kind: "ext4", reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u32, log_block_size: u32, blocks_per_group: u32) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_SIZE];
        let mut put =
            |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(4, blocks);
        put(0x18, log_block_size);
        put(0x20, blocks_per_group);
        bytes
    }

    #[test]
    fn a_file_system_is_no_larger_than_its_partition() {
        let check = |blocks, log, group| check(&superblock(blocks, log, group), 1 << 32);
        assert_eq!(check(1 << 20, 2, 32768), Ok(()));
        assert!(check((1 << 20) + 1, 2, 32768).unwrap_err().contains("larger than its partition"));
        assert!(check(1, 7, 32768).unwrap_err().contains("64 KiB"));
        assert!(check(1 << 22, 0, 1).unwrap_err().contains("block groups"));
        let mut wide = superblock(0, 2, 32768);
        wide[0x60] = 0x80;
        wide[0x150] = 1;
        assert!(super::check(&wide, 1 << 32).is_err());
    }
}
