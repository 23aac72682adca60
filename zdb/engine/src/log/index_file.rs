//! A segment's index file: entries go to it in blocks once their records are durable, and come from it at
//! the start and for searches by number. What it can't tell is read from the log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::block::{self, BLOCK_ENTRY_COUNT_MAX, BLOCK_HEAD_SIZE, Entry};
use super::header::{HEADER_SIZE, Header, Part};
use super::record::SEQ_MAX;
use super::scan;
use super::segment::{Block, Folders, Segment};
use crate::Error;
use crate::cipher::Keys;
use crate::storage::{File, Open, read_full, write_full};

/// Entries in memory beyond which a segment's index file is given up, so that a full index disk
/// costs no memory.
const PENDING_COUNT_MAX: usize = 4 * 1024 * 1024;

/// What to do with durable entries that don't fill a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Leave them for later.
    Wait,
    /// Write them now, and again when there are more: they prove what was durable.
    Repeat,
    /// Make a block of them.
    Block,
}

impl Segment {
    /// Entries of a group, appended to `out`.
    pub(crate) fn group(
        &mut self,
        folders: &Folders,
        keys: &Keys,
        group: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), Error> {
        let Some(block) = self.blocks.get(group).copied() else {
            out.extend_from_slice(&self.pending);
            return Ok(());
        };
        let from = out.len();
        if self.read_block(folders, &block, out).is_none() {
            out.truncate(from);
            self.scan_block(folders, keys, &block, out)?;
        }
        Ok(())
    }

    fn read_block(&self, folders: &Folders, block: &Block, out: &mut Vec<Entry>) -> Option<()> {
        let at = block.at?;
        let file = folders.storage.open(&self.index_path(folders), Open::Existing).ok()?;
        let mut bytes = vec![0; block.head.size as usize];
        read_full(&*file, &mut bytes, at).ok()?;
        let (head, body) = block::parse(&bytes, self.seed, at)?;
        (head == block.head).then_some(())?;
        block::entries(&head, body, self.is_encrypted(), |entry| out.push(entry))
    }

    /// What the index file doesn't tell is read from the log.
    fn scan_block(
        &mut self,
        folders: &Folders,
        keys: &Keys,
        block: &Block,
        out: &mut Vec<Entry>,
    ) -> Result<(), Error> {
        let header = self.header;
        let file = self.file(folders)?;
        let found = scan::scan(&scan::Task {
            file: &**file,
            header: &header,
            keys,
            from: block.head.start.into(),
            size: block.head.end.into(),
            before: block.head.before,
            bound: Some(SEQ_MAX),
            proven: true,
        })?;
        out.extend(found.entries);
        Ok(())
    }

    /// Writes blocks of entries whose records end at or before `durable`. Fewer entries than fill
    /// a block are treated as `rest` says.
    pub(crate) fn write_blocks(
        &mut self,
        folders: &Folders,
        durable: u64,
        rest: Rest,
    ) -> io::Result<()> {
        let encrypted = self.is_encrypted();
        let end = |entry: &Entry| u64::from(entry.offset + entry.record_size(encrypted));
        let ready = self.pending.partition_point(|entry| end(entry) <= durable);
        let full = match rest {
            Rest::Block => ready,
            Rest::Wait | Rest::Repeat => ready - ready % BLOCK_ENTRY_COUNT_MAX,
        };
        let mut written = self.append_blocks(folders, full);
        if written.is_err() && self.pending.len() > PENDING_COUNT_MAX {
            self.give_index_up(full);
        } else if written.is_ok() && rest == Rest::Repeat && full < ready {
            written = self.put_blocks(folders, 0..ready - full).map(drop);
        }
        written
    }

    fn append_blocks(&mut self, folders: &Folders, count: usize) -> io::Result<()> {
        if count > 0 {
            let (size, blocks) = self.put_blocks(folders, 0..count)?;
            self.index_size += size;
            self.blocks.extend(blocks);
            self.pending.drain(..count);
        }
        Ok(())
    }

    /// Writes blocks of some pending entries to the end of the index file; gives their size.
    fn put_blocks(
        &mut self,
        folders: &Folders,
        entries: std::ops::Range<usize>,
    ) -> io::Result<(u64, Vec<Block>)> {
        let file = self.index_handle(folders)?;
        let mut bytes = Vec::new();
        let mut blocks = Vec::new();
        let entries = self.pending.get(entries).unwrap_or_default();
        for entries in runs(entries, self.is_encrypted()) {
            let at = self.index_size + bytes.len() as u64;
            let head = block::put(&mut bytes, entries, self.is_encrypted(), self.seed, at)
                .ok_or(io::ErrorKind::InvalidData)?;
            blocks.push(Block { head, at: Some(at) });
        }
        write_full(&*file, &bytes, self.index_size)?;
        Ok((bytes.len() as u64, blocks))
    }

    /// Keeps only where the records are; what they are will be read from the log.
    fn give_index_up(&mut self, count: usize) {
        let mut bytes = Vec::new();
        for entries in runs(&self.pending[..count], self.is_encrypted()) {
            bytes.clear();
            if let Some(head) = block::put(&mut bytes, entries, self.is_encrypted(), self.seed, 0) {
                self.blocks.push(Block { head, at: None });
            }
        }
        self.pending.drain(..count);
    }

    /// Empties `pending`, into the index file or without it.
    pub(crate) fn settle(&mut self, folders: &Folders) {
        if self.seal(folders).is_err() || !self.pending.is_empty() {
            self.give_index_up(self.pending.len());
        }
    }

    /// Forgets the index file: blocks are read from the log.
    pub(crate) fn forget_index(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.at = None);
        self.index_sealed = false;
    }

    fn index_path(&self, folders: &Folders) -> PathBuf {
        if self.index_is_new { folders.new_index_file() } else { folders.index_file(self.id()) }
    }

    fn index_handle(&mut self, folders: &Folders) -> io::Result<Arc<dyn File>> {
        let path = self.index_path(folders);
        if self.index_size == 0 {
            // Another file, not the same emptied: a snapshot may share the old one.
            match folders.storage.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = folders.storage.open(&path, Open::New)?;
            write_full(&*file, &self.header.to_bytes(Part::Index), 0)?;
            self.index_size = HEADER_SIZE as u64;
            return Ok(file);
        }
        folders.storage.open(&path, Open::Existing)
    }

    /// Writes what is left of the index file, says that it is complete, and makes it durable. All
    /// records must be durable.
    pub(crate) fn seal(&mut self, folders: &Folders) -> io::Result<()> {
        let Some(file) = self.seal_unsynced(folders)? else { return Ok(()) };
        let synced = file.sync().and_then(|()| folders.storage.sync_folder(&folders.index));
        if synced.is_err() {
            self.unseal();
        }
        synced
    }

    /// The same, but for the sync of the file that it gives, and of its folder.
    pub(crate) fn seal_unsynced(&mut self, folders: &Folders) -> io::Result<Option<Arc<dyn File>>> {
        if self.index_sealed || self.blocks.iter().any(|block| block.at.is_none()) {
            return Ok(None);
        }
        self.write_blocks(folders, self.end, Rest::Block)?;
        let file = self.index_handle(folders)?;
        let end = u32::try_from(self.end).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut bytes = Vec::with_capacity(BLOCK_HEAD_SIZE);
        block::put_seal(&mut bytes, end, self.last_seq, self.seed, self.index_size);
        write_full(&*file, &bytes, self.index_size)?;
        if self.index_is_new {
            // Compaction knows all of the header only now.
            write_full(&*file, &self.header.to_bytes(Part::Index), 0)?;
        }
        let size = self.index_size + bytes.len() as u64;
        file.set_size(size)?;
        (self.index_size, self.index_sealed) = (size, true);
        // There will be no more, and a segment may stand for years.
        self.pending = Vec::new();
        Ok(Some(file))
    }

    /// The index file may not be complete after all: it is to be sealed again.
    pub(crate) fn unseal(&mut self) {
        if std::mem::take(&mut self.index_sealed) {
            self.index_size -= BLOCK_HEAD_SIZE as u64;
        }
    }

    /// Reads the index file as far as it is whole, showing its entries. What it does not tell is
    /// left to a scan of the log.
    pub(crate) fn load_index(&mut self, folders: &Folders, show: &mut dyn FnMut(Entry)) {
        let Ok(file) = folders.storage.open(&folders.index_file(self.id()), Open::Existing) else {
            return;
        };
        let Ok(bytes) = read_whole(&*file) else { return };
        if Header::parse(&bytes, Part::Index) != Some(self.header) {
            return;
        }
        let mut at = HEADER_SIZE;
        while let Some((head, body)) =
            bytes.get(at..).and_then(|rest| block::parse(rest, self.seed, at as u64))
        {
            if u64::from(head.start) < self.block_end() {
                break;
            }
            at += head.size as usize;
            if head.seal {
                self.index_sealed = true;
                self.end = head.end.into();
                break;
            }
            // What a checksum covers and yet contradicts itself was never ours.
            let (last_seq, count) = (&mut self.last_seq, &mut self.count);
            let note = |entry: Entry| {
                *last_seq = entry.seq;
                *count += 1;
                show(entry);
            };
            if block::entries(&head, body, self.header.key_id != 0, note).is_none() {
                self.damaged = true;
                break;
            }
            self.blocks.push(Block { head, at: Some((at - head.size as usize) as u64) });
        }
        self.index_size = at as u64;
        self.end = self.end.max(self.block_end());
    }
}

/// Entries in groups that fit a block and have no hole inside.
fn runs(entries: &[Entry], encrypted: bool) -> impl Iterator<Item = &[Entry]> {
    let joined =
        move |one: &Entry, next: &Entry| one.offset + one.record_size(encrypted) == next.offset;
    entries.chunk_by(joined).flat_map(|run| run.chunks(BLOCK_ENTRY_COUNT_MAX))
}

/// A file's bytes; index files are a fraction of a segment.
fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.size()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(size, 0);
    let read = read_full(file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
