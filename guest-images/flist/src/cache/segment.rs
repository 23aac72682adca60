//! One segment: reading its index as it grows, and appending to it.
//!
//! ```text
//!   create ──> appended to by one process ──> settled (full, or its writer is gone) ──> removed
//!                    │ other processes read along                        │ open descriptors stay
//! ```
//!
//! A record's plaintext is written before its entry, but nothing is synced: after a power loss either
//! may be missing. An entry is a claim, which the cache checks before it hands the block out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use flist_view::block::{BlockCipher, BlockId, BlockKey};
use rustix::fs::MemfdFlags;

use super::directory::{self, Directory, NewSegment};
use super::layout::{self, ENTRY_SIZE, Record};
use super::verified::Verified;

/// Index entries read at once.
const ENTRIES_PER_READ: usize = 512;
/// Entries are written to the index in batches of this many bytes at most; see [`super::flusher`].
const PENDING_SIZE_MAX: usize = 32 * ENTRY_SIZE;
/// Set in the numbers of segments in memory, which no other process sees.
pub(super) const MEMORY_NUMBER: u64 = 1 << 63;

const SIZE_MASK: u32 = (1 << 20) - 1;
const LEGACY: u32 = 1 << 20;
const CHECKED: u32 = 1 << 21;
const USED: u32 = 1 << 22;

/// What the cache keeps in memory of one block: 72 bytes.
pub(super) struct Entry {
    pub(super) id: BlockId,
    pub(super) key: BlockKey,
    pub(super) offset: u32,
    /// Size in the low bits, then flags: the cipher, checked by this process, used since it was
    /// written or last carried forward.
    size_and_flags: AtomicU32,
}

impl Entry {
    pub(super) fn new(record: &Record, checked: bool) -> Self {
        let legacy = if record.cipher == BlockCipher::Xxtea { LEGACY } else { 0 };
        let flags = legacy | if checked { CHECKED } else { 0 };
        Self {
            id: record.block.id,
            key: record.block.key,
            offset: record.offset,
            size_and_flags: AtomicU32::new(record.size | flags),
        }
    }

    pub(super) fn size(&self) -> u32 {
        self.size_and_flags.load(Ordering::Relaxed) & SIZE_MASK
    }

    pub(super) fn cipher(&self) -> BlockCipher {
        if self.has(LEGACY) { BlockCipher::Xxtea } else { BlockCipher::Aes256Gcm }
    }

    /// Whether this process has seen the plaintext hash to the key.
    pub(super) fn is_checked(&self) -> bool {
        self.has(CHECKED)
    }

    pub(super) fn set_checked(&self) {
        self.size_and_flags.fetch_or(CHECKED, Ordering::Relaxed);
    }

    /// Whether someone asked for it since it came here.
    pub(super) fn is_used(&self) -> bool {
        self.has(USED)
    }

    pub(super) fn set_used(&self) {
        if !self.is_used() {
            self.size_and_flags.fetch_or(USED, Ordering::Relaxed);
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.size_and_flags.load(Ordering::Relaxed) & flag != 0
    }
}

/// A segment as its readers in this process see it.
pub(super) struct Segment {
    pub(super) number: u64,
    /// Open for reading only: clients get this very descriptor.
    pub(super) blocks: Arc<File>,
    pub(super) entries: Vec<Entry>,
    capacity: u32,
    state: State,
    /// Bytes of the index that were read, or written by us.
    index_size: u64,
    /// End of the last record.
    blocks_size: u64,
}

enum State {
    /// This process appends.
    Ours,
    /// Another process appends, perhaps.
    Theirs { index: File },
    /// Nobody appends any more.
    Settled,
}

impl Segment {
    /// Opens a segment that another process made; none if its header can't be believed.
    pub(super) fn open(directory: &Directory, number: u64) -> io::Result<Option<Self>> {
        let index = directory.open_index(number)?;
        let Some(capacity) = directory::read_header(number, &index) else { return Ok(None) };
        let blocks = Arc::new(directory.open_blocks(number)?);
        Ok(Some(Self {
            number,
            blocks,
            entries: Vec::new(),
            capacity,
            state: State::Theirs { index },
            index_size: ENTRY_SIZE as u64,
            blocks_size: 0,
        }))
    }

    /// The reading side of a segment that this process writes.
    pub(super) fn ours(number: u64, blocks: File, capacity: u32) -> Self {
        Self {
            number,
            blocks: Arc::new(blocks),
            entries: Vec::new(),
            capacity,
            state: State::Ours,
            index_size: ENTRY_SIZE as u64,
            blocks_size: 0,
        }
    }

    /// Records that appeared in the index since the last call. Entries that are torn, impossible or
    /// beyond the data are passed over; the tail of an index that is still written is left for later.
    pub(super) fn read_new_records(&mut self) -> io::Result<Vec<Record>> {
        let State::Theirs { index } = &self.state else { return Ok(Vec::new()) };
        // In this order: once the writer is gone, what is there now is all there will ever be.
        let growing = directory::is_written(index)?;
        let (mut records, index_size) =
            read_records(index, self.number, self.index_size, self.capacity, growing)?;
        let blocks_size = self.blocks.metadata()?.len().min(u64::from(self.capacity));
        records.retain(|record| record.end() <= blocks_size);
        self.index_size = index_size;
        let end = records.iter().map(Record::end).max().unwrap_or(0);
        self.blocks_size = self.blocks_size.max(end);
        if !growing {
            self.blocks_size = self.blocks_size.max(blocks_size);
            self.state = State::Settled;
        }
        Ok(records)
    }

    /// Takes note of a record that this process appended.
    pub(super) fn note_written(&mut self, record: &Record) {
        self.index_size += ENTRY_SIZE as u64;
        self.blocks_size = self.blocks_size.max(record.end());
    }

    /// This process appends no more.
    pub(super) fn settle(&mut self) {
        self.state = State::Settled;
    }

    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state, State::Settled)
    }

    /// Whether it lives in memory because the disk has no room.
    pub(super) fn is_memory(&self) -> bool {
        self.number & MEMORY_NUMBER != 0
    }

    /// Bytes on disk: what is there, or all it may become while someone appends.
    pub(super) fn disk_size(&self) -> u64 {
        if self.is_memory() {
            0
        } else if self.is_settled() {
            self.index_size + self.blocks_size
        } else {
            layout::disk_size_max(self.capacity)
        }
    }

    /// Reads the plaintext that an entry claims.
    pub(super) fn read(blocks: &File, offset: u32, size: u32) -> io::Result<Vec<u8>> {
        let mut plaintext = vec![0; size as usize];
        blocks.read_exact_at(&mut plaintext, u64::from(offset))?;
        Ok(plaintext)
    }
}

/// Whole, believable entries from `offset` on, and where to go on next time.
fn read_records(
    index: &File,
    number: u64,
    mut offset: u64,
    capacity: u32,
    growing: bool,
) -> io::Result<(Vec<Record>, u64)> {
    let mut records = Vec::new();
    let end = ENTRY_SIZE as u64 * (u64::from(layout::entry_count_max(capacity)) + 1);
    let mut buffer = vec![0; ENTRIES_PER_READ * ENTRY_SIZE];
    while offset < end {
        let size = read_full(index, &mut buffer, offset)?;
        let (entries, _torn) = buffer[..size].as_chunks::<ENTRY_SIZE>();
        for bytes in entries {
            match layout::decode_record(number, bytes) {
                Some(record) => records.push(record),
                None if growing => return Ok((records, offset)),
                None => {}
            }
            offset += ENTRY_SIZE as u64;
        }
        if size < buffer.len() {
            break;
        }
    }
    Ok((records, offset))
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(size) => filled += size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The writing side of a segment; there is one per segment, in the process that made it.
pub(super) struct Writer {
    pub(super) number: u64,
    blocks: File,
    /// None for segments in memory. Holding it holds its lock.
    index: Option<File>,
    /// Entries not yet written to the index.
    pending: Vec<u8>,
    capacity: u32,
    end: u32,
    entry_count: u32,
}

impl Writer {
    /// The writer of a segment just made on disk, with its reading side.
    pub(super) fn on_disk(new: NewSegment, capacity: u32) -> (Self, Segment) {
        let segment = Segment::ours(new.number, new.blocks, capacity);
        (Self::new(new.number, new.blocks_writer, Some(new.index_writer), capacity), segment)
    }

    fn new(number: u64, blocks: File, index: Option<File>, capacity: u32) -> Self {
        let pending = Vec::new();
        Self { number, blocks, index, pending, capacity, end: 0, entry_count: 0 }
    }

    /// A segment in anonymous memory, for when the disk takes no more.
    pub(super) fn in_memory(serial: u64, capacity: u32) -> io::Result<(Self, Segment)> {
        let number = MEMORY_NUMBER | serial;
        let memory: File = rustix::fs::memfd_create("flist-cache", MemfdFlags::CLOEXEC)?.into();
        // A second, read-only description: the one to hand out.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
        let segment = Segment::ours(number, File::open(path)?, capacity);
        Ok((Self::new(number, memory, None, capacity), segment))
    }

    /// Whether a block of `size` bytes still fits.
    pub(super) fn has_room(&self, size: usize) -> bool {
        let Ok(size) = u32::try_from(size) else { return false };
        let end = u64::from(layout::record_offset(self.end, size)) + u64::from(size);
        end <= u64::from(self.capacity) && self.entry_count < layout::entry_count_max(self.capacity)
    }

    /// Bytes appended so far, with gaps.
    pub(super) fn size(&self) -> u32 {
        self.end
    }

    /// Appends a block for which there is room. After an error the segment takes no more.
    pub(super) fn append(&mut self, block: &Verified<'_>) -> io::Result<Record> {
        self.append_plaintext(block.cipher(), *block.block(), block.plaintext())
    }

    /// Carries forward what an entry of another segment claims. It is as believable here as there.
    pub(super) fn append_plaintext(
        &mut self,
        cipher: BlockCipher,
        block: flist_view::block::BlockRef,
        plaintext: &[u8],
    ) -> io::Result<Record> {
        if !self.has_room(plaintext.len()) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let size = u32::try_from(plaintext.len()).unwrap_or(u32::MAX);
        let record = Record { cipher, block, offset: layout::record_offset(self.end, size), size };
        self.blocks.write_all_at(plaintext, u64::from(record.offset))?;
        self.end = record.offset + size;
        self.entry_count += 1;
        if self.index.is_some() {
            self.pending.extend_from_slice(&layout::encode_record(self.number, &record));
            if self.pending.len() >= PENDING_SIZE_MAX {
                self.flush()?;
            }
        }
        Ok(record)
    }

    /// Whether there are entries that the index lacks.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes the entries that the index lacks.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(index) = self.index.as_ref().filter(|_| self.has_pending()) else { return Ok(()) };
        let size = (u64::from(self.entry_count) + 1) * ENTRY_SIZE as u64;
        index.write_all_at(&self.pending, size - self.pending.len() as u64)?;
        self.pending.clear();
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::debug!(segment = self.number, %error, "the last blocks stay unknown");
        }
    }
}
