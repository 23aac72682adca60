//! The node's block cache: verified plaintext by block name, in a few large append-only files.
//!
//! Callers are [`LocalSource`] (a mount that serves itself) and [`crate::cached`] (the process that
//! serves a node's VMMs). Both ask [`Cache::get`]; on a miss they fetch and [`Cache::insert`].
//!
//! ```text
//!   get ── known, checked ──────────────────────────> range of a read-only file
//!    │ └── known, not checked yet ── hash ── right ─────^
//!    │                                └──── wrong: forgotten, counted, as if never there
//!    └──── absent ── look for other processes' news ── fetch (once) ── insert
//! ```
//!
//! - **Contents are claims until checked.** Nothing is synced, any file may be torn, several
//!   processes share the directory. An index entry is believed if its checksum is right and its range
//!   lies in the file; its plaintext is hashed before the first hand-out in each process.
//! - **A key is asked for with each block** and must be the one that the block was stored with.
//! - **Bounded**: [`Config::size_max`] on disk, about 93 bytes of memory per block, a quarter of a
//!   segment for blocks carried forward. The oldest segment goes first; what was used since it came
//!   there moves to the newest (first in, first out, with a second chance).
//! - **A full disk degrades**: blocks then live in a few small segments in memory, which is said once
//!   in the log, and the disk is tried again every [`DISK_RETRY_INTERVAL`].
//!
//! The cache fetches nothing and knows no store. Errors are never cached.

mod directory;
mod evict;
mod flights;
mod flusher;
mod layout;
mod local;
mod segment;
mod statistics;
mod table;
#[cfg(test)]
mod tests;
mod verified;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use flist_view::block::{BlockCipher, BlockData, BlockId, BlockRef};

pub use self::flights::{Flights, Join};
pub use self::local::{Fetch, LocalSource};
pub(crate) use self::local::{cache_error, fetch_into};
pub use self::statistics::Statistics;
pub use self::verified::Verified;

use self::directory::Directory;
use self::flusher::Flusher;
use self::layout::Record;
use self::segment::{Segment, Writer};
use self::statistics::{Counters, count};
use self::table::{Slot, Table};
use crate::block;

/// Size of the cache when nobody says otherwise.
pub const SIZE_MAX_DEFAULT: u64 = 10 << 30;
/// Smallest cache: eight of the smallest segments.
pub const SIZE_MAX_MIN: u64 = 8 << 20;
/// Disk space that the cache leaves to others when nobody says otherwise.
pub const FREE_MIN_DEFAULT: u64 = 512 << 20;
/// Segments that a cache is divided into, about; fewer when they would be smaller than 1 MiB.
const SEGMENT_COUNT: u64 = 160;
/// Most segments, counting those that dead processes left half full. Each costs a descriptor.
const SEGMENT_COUNT_MAX: usize = 512;
/// Segments in memory, when the disk takes no more: so many, so large.
const MEMORY_SEGMENT_COUNT_MAX: usize = 4;
const MEMORY_SEGMENT_SIZE: u32 = 8 << 20;
/// Time between two attempts to write to a disk that was full or failed.
pub const DISK_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Least time between two looks for what other processes wrote.
const NEWS_INTERVAL: Duration = Duration::from_millis(50);
/// Free space is looked at again after this many bytes written.
const FREE_CHECK_INTERVAL: u32 = 8 << 20;
/// Retired segments that a watcher may leave unread; more are dropped, and it keeps descriptors.
const RETIRED_QUEUE_MAX: usize = 4096;

/// Number of a segment: unique among those that live and have lived in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentNumber(pub u64);

/// Bounds of a cache. Processes that share a directory should agree on them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most bytes on disk, indexes included; at least [`SIZE_MAX_MIN`].
    pub size_max: u64,
    /// Bytes to leave free on the file system.
    pub free_min: u64,
}

/// Where a block is.
#[derive(Clone, Debug)]
pub struct Handout {
    /// The segment, for clients that keep its descriptor.
    pub segment: SegmentNumber,
    /// The range of the segment's file.
    pub data: BlockData,
}

/// Why the cache refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The block is here, under another key than the one asked with.
    #[error("block {0}: asked for with a key that is not the block's")]
    Key(BlockId),
    /// Neither the disk nor memory takes the block.
    #[error("block {id}: cannot be kept: {source}")]
    Insert {
        /// The block.
        id: BlockId,
        /// What the last attempt met.
        source: io::Error,
    },
    /// The directory can't be used at all.
    #[error("cache {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// [`Config::size_max`] is too small.
    #[error("cache of {0} bytes: at least {SIZE_MAX_MIN} are needed")]
    Size(u64),
}

/// What [`Cache::find`] knows without any I/O.
#[derive(Debug)]
pub enum Found {
    /// Checked, to be handed out as it is.
    Ready(Handout),
    /// There, but nobody in this process has checked it: [`Cache::get`] will.
    Unchecked,
    /// Not known.
    Absent,
}

/// A cache directory, opened by this process. Threads share it.
pub struct Cache {
    directory: Directory,
    config: Config,
    segment_size: u32,
    /// Taken before `table` where both are needed.
    writing: Arc<Mutex<Writing>>,
    flusher: Flusher,
    table: RwLock<Table>,
    news_read: Mutex<Option<Instant>>,
    retired: Mutex<Option<SyncSender<SegmentNumber>>>,
    counters: Counters,
}

/// What appends, and where.
#[derive(Default)]
struct Writing {
    disk: Option<Active>,
    memory: Option<Active>,
    memory_serial: u64,
    /// Until then, the disk is not tried.
    disk_suspended: Option<Instant>,
    free_checked_at: u32,
}

/// A writer, and the place of its reading side in the table.
struct Active {
    writer: Writer,
    place: u32,
}

impl Writing {
    /// Writes what the index of the segment on disk lacks. If it can't, the next insertion meets the
    /// same error and ends the segment.
    fn flush(&mut self) {
        if let Some(active) = &mut self.disk
            && let Err(error) = active.writer.flush()
        {
            tracing::debug!(segment = active.writer.number, %error, "index entries wait");
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { size_max: SIZE_MAX_DEFAULT, free_min: FREE_MIN_DEFAULT }
    }
}

impl Config {
    /// A power of two near `size_max / SEGMENT_COUNT`.
    fn segment_size(&self) -> u32 {
        let wanted = (self.size_max / SEGMENT_COUNT)
            .clamp(layout::SEGMENT_SIZE_MIN.into(), layout::SEGMENT_SIZE_MAX.into());
        u32::try_from(wanted.next_power_of_two())
            .map_or(layout::SEGMENT_SIZE_MAX, |size| size.min(layout::SEGMENT_SIZE_MAX))
    }
}

impl Cache {
    /// Opens the cache in `path`, reading all its indexes, and removes what dead processes left
    /// half made. Creates the directory for its owner alone: it holds plaintext and keys.
    ///
    /// # Errors
    /// [`CacheError::Size`], [`CacheError::Directory`].
    pub fn open(path: &Path, config: Config) -> Result<Self, CacheError> {
        if config.size_max < SIZE_MAX_MIN {
            return Err(CacheError::Size(config.size_max));
        }
        let wrap = |source| CacheError::Directory { path: path.to_path_buf(), source };
        let directory = Directory::open(path).map_err(wrap)?;
        let writing = Arc::default();
        let cache = Self {
            directory,
            segment_size: config.segment_size(),
            config,
            flusher: Flusher::start(Arc::downgrade(&writing)).map_err(wrap)?,
            writing,
            table: RwLock::default(),
            news_read: Mutex::default(),
            retired: Mutex::default(),
            counters: Counters::default(),
        };
        let swept = cache.directory.lock().and_then(|lock| cache.directory.sweep(&lock));
        if let Err(error) = swept {
            tracing::warn!(cache = %path.display(), %error, "cache not swept up");
        }
        cache.read_news(&cache.writing()).map_err(wrap)?;
        Ok(cache)
    }

    /// Looks without any I/O or waiting.
    ///
    /// # Errors
    /// [`CacheError::Key`].
    pub fn find(&self, cipher: BlockCipher, block: &BlockRef) -> Result<Found, CacheError> {
        let found = match self.find_any(cipher, block)? {
            None => Found::Absent,
            Some((_, _, false)) => Found::Unchecked,
            Some((_, handout, true)) => Found::Ready(handout),
        };
        if matches!(found, Found::Ready(_)) {
            count(&self.counters.hits, 1);
        }
        Ok(found)
    }

    /// Where a block is that someone just asked for; counts nothing.
    pub(crate) fn current(&self, cipher: BlockCipher, block: &BlockRef) -> Option<Handout> {
        let (_, handout, checked) = self.find_any(cipher, block).ok()??;
        checked.then_some(handout)
    }

    /// The block, if it is here and sound. Reads and hashes it the first time in each process.
    ///
    /// # Errors
    /// [`CacheError::Key`].
    pub fn get(
        &self,
        cipher: BlockCipher,
        block: &BlockRef,
    ) -> Result<Option<Handout>, CacheError> {
        let mut found = self.find_checked(cipher, block)?;
        if found.is_none() && self.news_are_due() {
            if let Err(error) = self.read_news(&self.writing()) {
                tracing::debug!(%error, "cannot read what other processes cached");
            }
            found = self.find_checked(cipher, block)?;
        }
        let counter = if found.is_some() { &self.counters.hits } else { &self.counters.misses };
        count(counter, 1);
        Ok(found)
    }

    /// Keeps a block and says where. Keeps nothing twice.
    ///
    /// # Errors
    /// [`CacheError::Key`] if it is here under another key, [`CacheError::Insert`] if not even memory
    /// can be had.
    pub fn insert(&self, block: &Verified<'_>) -> Result<Handout, CacheError> {
        let id = block.block().id;
        let mut writing = self.writing();
        if let Some((_, handout, true)) = self.find_any(block.cipher(), block.block())? {
            return Ok(handout);
        }
        let handout = self
            .insert_on_disk(&mut writing, block)
            .or_else(|error| self.insert_in_memory(&mut writing, block, &error))
            .map_err(|source| CacheError::Insert { id, source })?;
        count(&self.counters.inserted_blocks, 1);
        count(&self.counters.inserted_bytes, handout.data.size.into());
        Ok(handout)
    }

    /// Writes what the index on disk lacks. For whoever ends the process while others may still hold
    /// the cache: their drop, which does the same, may come too late.
    pub fn flush(&self) {
        self.writing().flush();
    }

    /// Numbers of segments as they leave the cache, so that holders of their descriptors can let go.
    /// There is one watcher; a second call replaces the first.
    #[must_use]
    pub fn watch_retired(&self) -> Receiver<SegmentNumber> {
        let (sender, receiver) = sync_channel(RETIRED_QUEUE_MAX);
        *self.retired.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// What it has done and what it holds.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.snapshot(&self.table())
    }

    /// The entry, what it would hand out, and whether it was checked.
    fn find_any(
        &self,
        cipher: BlockCipher,
        block: &BlockRef,
    ) -> Result<Option<(Slot, Handout, bool)>, CacheError> {
        let table = self.table();
        let Some((slot, entry, segment)) = table.find(cipher, &block.id) else { return Ok(None) };
        if entry.key != block.key {
            // An unchecked entry may be the wrong one of the two: it is a claim like any other.
            if !entry.is_checked() {
                return Ok(None);
            }
            count(&self.counters.refused_keys, 1);
            return Err(CacheError::Key(block.id));
        }
        entry.set_used();
        let checked = entry.is_checked();
        Ok(Some((slot, handout(segment, entry.offset, entry.size()), checked)))
    }

    fn find_checked(
        &self,
        cipher: BlockCipher,
        block: &BlockRef,
    ) -> Result<Option<Handout>, CacheError> {
        let Some((slot, handout, checked)) = self.find_any(cipher, block)? else {
            return Ok(None);
        };
        if checked || self.check(cipher, block, slot, &handout.data) {
            return Ok(Some(handout));
        }
        count(&self.counters.bad_blocks, 1);
        tracing::warn!(block = %block.id, segment = handout.segment.0, "damaged block in the cache");
        self.table_mut().forget(cipher, &block.id, slot);
        Ok(None)
    }

    /// Whether the bytes on disk are the block; remembers if so.
    fn check(&self, cipher: BlockCipher, block: &BlockRef, slot: Slot, data: &BlockData) -> bool {
        let Ok(offset) = u32::try_from(data.offset) else { return false };
        let sound = Segment::read(&data.file, offset, data.size)
            .is_ok_and(|plaintext| block::is_plaintext_of(cipher, &block.key, &plaintext));
        if sound
            && let Some((found, entry, _)) = self.table().find(cipher, &block.id)
            && found == slot
        {
            entry.set_checked();
        }
        sound
    }

    fn insert_on_disk(&self, writing: &mut Writing, block: &Verified<'_>) -> io::Result<Handout> {
        if writing.disk_suspended.is_some_and(|until| Instant::now() < until) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let result = self.append_on_disk(writing, block);
        match &result {
            Ok(_) if writing.disk_suspended.take().is_some() => {
                tracing::info!(cache = %self.directory.path().display(), "caching on disk again");
                self.retire_memory(writing);
            }
            Ok(_) => {}
            Err(error) => {
                if writing.disk_suspended.is_none() {
                    let cache = self.directory.path().display();
                    tracing::error!(%cache, %error, "cannot write to the cache; serving without it");
                }
                self.settle(writing.disk.take());
                writing.disk_suspended = Some(Instant::now() + DISK_RETRY_INTERVAL);
            }
        }
        result
    }

    fn append_on_disk(&self, writing: &mut Writing, block: &Verified<'_>) -> io::Result<Handout> {
        let fits = |active: &Active| active.writer.has_room(block.plaintext().len());
        let written = writing.disk.as_ref().map_or(0, |active| active.writer.size());
        let look = written.saturating_sub(writing.free_checked_at) >= FREE_CHECK_INTERVAL;
        if look {
            writing.free_checked_at = written;
        }
        if !writing.disk.as_ref().is_some_and(fits) || (look && self.missing_free_bytes()? > 0) {
            self.settle(writing.disk.take());
            writing.free_checked_at = 0;
            writing.disk = Some(self.begin_segment(writing)?);
        }
        let active = writing.disk.as_mut().ok_or(io::ErrorKind::StorageFull)?;
        let had_pending = active.writer.has_pending();
        let record = active.writer.append(block)?;
        if !had_pending {
            self.flusher.wake();
        }
        self.publish(active.place, &record)
    }

    /// Keeps a block in memory, for as long as memory segments last.
    fn insert_in_memory(
        &self,
        writing: &mut Writing,
        block: &Verified<'_>,
        _disk_error: &io::Error,
    ) -> io::Result<Handout> {
        let fits = |active: &Active| active.writer.has_room(block.plaintext().len());
        if !writing.memory.as_ref().is_some_and(fits) {
            self.settle(writing.memory.take());
            self.retire_oldest_memory();
            writing.memory_serial += 1;
            let (writer, segment) = Writer::in_memory(writing.memory_serial, MEMORY_SEGMENT_SIZE)?;
            let place = self.table_mut().add(segment);
            writing.memory = Some(Active { writer, place });
        }
        let active = writing.memory.as_mut().ok_or(io::ErrorKind::OutOfMemory)?;
        let record = active.writer.append(block)?;
        count(&self.counters.memory_blocks, 1);
        self.publish(active.place, &record)
    }

    /// Makes an appended record findable.
    fn publish(&self, place: u32, record: &Record) -> Result<Handout, io::Error> {
        let mut table = self.table_mut();
        let segment = table.segment_mut(place).ok_or(io::ErrorKind::NotFound)?;
        segment.note_written(record);
        let handout = handout(segment, record.offset, record.size);
        table.insert(place, record, true);
        Ok(handout)
    }

    /// Ends a segment of ours: drops its writer and thereby its lock.
    fn settle(&self, active: Option<Active>) {
        let Some(active) = active else { return };
        if let Some(segment) = self.table_mut().segment_mut(active.place) {
            segment.settle();
        }
    }

    fn news_are_due(&self) -> bool {
        let mut read = self.news_read.lock().unwrap_or_else(PoisonError::into_inner);
        let due = read.is_none_or(|at| at.elapsed() >= NEWS_INTERVAL);
        if due {
            *read = Some(Instant::now());
        }
        due
    }

    /// Learns of segments and records that other processes wrote, and of segments they removed. `Writing`
    /// shows that no segment of ours is being made meanwhile.
    fn read_news(&self, _: &Writing) -> io::Result<()> {
        let present = self.directory.segments()?;
        let mut table = self.table_mut();
        let gone: Vec<u32> = table
            .segments()
            .filter(|(_, s)| !s.is_memory() && present.binary_search(&s.number).is_err())
            .map(|(place, _)| place)
            .collect();
        for place in gone {
            self.retire(&mut table, place);
        }
        let known: HashSet<u64> = table.segments().map(|(_, segment)| segment.number).collect();
        for number in present.into_iter().filter(|number| !known.contains(number)) {
            // It may have been removed since, or be younger than its header.
            if let Ok(Some(segment)) = Segment::open(&self.directory, number) {
                table.add(segment);
            }
        }
        let places: Vec<u32> = table.segments().map(|(place, _)| place).collect();
        for place in places {
            let Some(segment) = table.segment_mut(place) else { continue };
            let number = segment.number;
            match segment.read_new_records() {
                Ok(records) => {
                    records.iter().for_each(|record| table.insert(place, record, false));
                }
                Err(error) => tracing::warn!(segment = number, %error, "index cannot be read"),
            }
        }
        Ok(())
    }

    /// Forgets a segment and tells the watcher.
    fn retire(&self, table: &mut Table, place: u32) -> Option<Segment> {
        let segment = table.remove(place)?;
        let mut watcher = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watcher.as_ref()
            && let Err(TrySendError::Disconnected(_)) =
                sender.try_send(SegmentNumber(segment.number))
        {
            *watcher = None;
        }
        Some(segment)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn handout(segment: &Segment, offset: u32, size: u32) -> Handout {
    let file: Arc<File> = Arc::clone(&segment.blocks);
    let data = BlockData { file, offset: offset.into(), size };
    Handout { segment: SegmentNumber(segment.number), data }
}
