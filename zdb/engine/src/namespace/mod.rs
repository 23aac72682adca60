//! One namespace: what the server calls for each request, each batch and each second.
//!
//! All methods are synchronous; those that block on a sync say so. A namespace belongs to one
//! thread at a time, and may move between threads.

mod types;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

pub use types::{
    Change, Compaction, Direction, Extent, Found, Health, HistoryEntry, LogRecord, Metadata,
    RawRecord, ScanItem, Scanned, Scrub, Stats, Written,
};

use crate::{CommitFailed, Error, MasterKey, Name, SeqNo, Settings};

/// A loaded namespace.
///
/// Dropping it writes and syncs what is pending, as well as it can; [`close`](Self::close) says
/// how that went.
#[derive(Debug)]
pub struct Namespace {}

/// Reading.
impl Namespace {
    /// Reads a value, appended to `out`.
    ///
    /// `before` is called once, with the value's size, before the value is appended: a reply's
    /// header goes there. If the read fails, `out` is as it was. Values of `extent_from` bytes or
    /// more are verified and given as [`Found::Extent`] instead, without a call of `before`,
    /// where that is possible: not of encrypted namespaces, nor what is not yet written to its file.
    ///
    /// # Errors
    ///
    /// [`Error::Frozen`], [`Error::KeyNeeded`], [`Error::Damaged`], [`Error::Read`].
    pub fn get(
        &mut self,
        _key: &[u8],
        _extent_from: usize,
        _out: &mut Vec<u8>,
        _before: impl FnOnce(&mut Vec<u8>, usize),
    ) -> Result<Found, Error> {
        unimplemented!()
    }

    /// What `EXISTS`, `LENGTH` and `KEYTIME` ask.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn metadata(&mut self, _key: &[u8]) -> Result<Option<Metadata>, Error> {
        unimplemented!()
    }

    /// Verifies a key's record where it lies; `None` if there is no such key.
    ///
    /// # Errors
    ///
    /// [`Error::Frozen`], [`Error::KeyNeeded`].
    pub fn check(&mut self, _key: &[u8]) -> Result<Option<Health>, Error> {
        unimplemented!()
    }

    /// Live keys.
    #[must_use]
    pub fn len(&self) -> u64 {
        unimplemented!()
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A cursor from which a scan goes on after this key; `None` if there is no such key.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn cursor(&mut self, _key: &[u8]) -> Result<Option<[u8; crate::SCAN_CURSOR_SIZE]>, Error> {
        unimplemented!()
    }

    /// Shows live keys one by one, after `cursor` or from the start, until `show` breaks or
    /// there are no more. A damaged record is passed over. The server's `show` breaks when its
    /// time is up.
    ///
    /// # Errors
    ///
    /// [`Error::BadCursor`], and as [`get`](Self::get).
    pub fn scan(
        &mut self,
        _direction: Direction,
        _cursor: Option<&[u8]>,
        _show: &mut dyn FnMut(ScanItem<'_>) -> ControlFlow<()>,
    ) -> Result<Scanned, Error> {
        unimplemented!()
    }

    /// A key's value now (without cursor) or an earlier one, appended to `out`; `None` if there is
    /// no such key, or the cursor says that the history ended (eight zeroes).
    ///
    /// # Errors
    ///
    /// [`Error::BadCursor`] if it has not 8 bytes, [`Error::UnknownHistory`],
    /// [`Error::ForeignHistory`], and as [`get`](Self::get).
    pub fn history(
        &mut self,
        _key: &[u8],
        _cursor: Option<&[u8]>,
        _out: &mut Vec<u8>,
    ) -> Result<Option<HistoryEntry>, Error> {
        unimplemented!()
    }

    /// The record at this place, key and payload appended to `out`; `None` at or past the end of
    /// the segment. Offset 0 stands for the first record.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] also if no record starts there, [`Error::UnknownHistory`] (with number
    /// 0) if there is no such segment, [`Error::Read`], [`Error::KeyNeeded`].
    pub fn raw(
        &mut self,
        _segment: u32,
        _offset: u64,
        _out: &mut Vec<u8>,
    ) -> Result<Option<RawRecord>, Error> {
        unimplemented!()
    }
}

/// Writing.
impl Namespace {
    /// Sets a key; in sequential mode an empty key gives the next id. `None` if the stored value
    /// is the same already, and nothing was written.
    ///
    /// # Errors
    ///
    /// In this order [`Error::KeyNeeded`], [`Error::Frozen`], [`Error::Locked`],
    /// [`Error::KeySize`], [`Error::ValueSize`], [`Error::Worm`], [`Error::UnknownId`],
    /// [`Error::Quota`]; [`Error::DiskFull`], [`Error::Write`], [`Error::Read`] if the key
    /// can't be compared.
    pub fn set(
        &mut self,
        _key: &[u8],
        _value: &[u8],
        _timestamp: u32,
    ) -> Result<Option<Written>, Error> {
        unimplemented!()
    }

    /// Deletes a key; `None` if there is no such key. Works on a full disk.
    ///
    /// # Errors
    ///
    /// [`Error::Worm`] if it exists, and as [`set`](Self::set).
    pub fn delete(&mut self, _key: &[u8], _timestamp: u32) -> Result<Option<SeqNo>, Error> {
        unimplemented!()
    }

    /// Removes all keys, and makes that durable. Ids start again, numbers of writes go on.
    ///
    /// # Errors
    ///
    /// [`Error::Frozen`], [`Error::Locked`], [`Error::Worm`]; [`Error::DiskFull`],
    /// [`Error::Write`], [`Error::Sync`], [`Error::File`].
    pub fn clear(&mut self) -> Result<SeqNo, Error> {
        unimplemented!()
    }

    /// Seals the segment that is written, so that the next write starts another. Blocks on syncs.
    /// Gives the numbers of the old and the new segment.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`], [`Error::Write`], [`Error::Sync`], [`Error::File`].
    pub fn rotate(&mut self) -> Result<(u32, u32), Error> {
        unimplemented!()
    }
}

/// Making writes durable.
impl Namespace {
    /// Writes all that was appended, in one call to the system. To be called once for each batch of
    /// requests, before their replies.
    ///
    /// # Errors
    ///
    /// Says from which number on writes of this batch failed. They were undone, and their clients
    /// must hear of it.
    pub fn flush(&mut self) -> Result<(), CommitFailed> {
        unimplemented!()
    }

    /// The newest write whose reply may be sent, at the namespace's level of durability.
    #[must_use]
    pub fn acknowledged(&self) -> SeqNo {
        unimplemented!()
    }

    /// What must be synced now: written bytes at level group, or at level interval when it is
    /// time. `None` if nothing must, or a sync is under way. `now` is any monotonic clock.
    pub fn begin_sync(&mut self, _now: Duration) -> Option<SyncTicket> {
        unimplemented!()
    }

    /// Takes a sync's result, after which [`acknowledged`](Self::acknowledged) may have risen.
    ///
    /// # Errors
    ///
    /// [`Error::Sync`]: writes that wait for a reply must hear of it. What was written stays
    /// visible; the engine writes it again to a new segment, and refuses new writes until that
    /// succeeded.
    pub fn finish_sync(&mut self, _done: SyncDone) -> Result<(), CommitFailed> {
        unimplemented!()
    }

    /// [`flush`](Self::flush), and a sync if the level asks for one, in one blocking call.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush) and [`finish_sync`](Self::finish_sync).
    pub fn commit(&mut self, _now: Duration) -> Result<(), CommitFailed> {
        unimplemented!()
    }

    /// Writes and syncs everything, whatever the level.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn sync(&mut self) -> Result<(), CommitFailed> {
        unimplemented!()
    }

    /// Ends with everything durable, and index files complete.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn close(self) -> Result<(), CommitFailed> {
        unimplemented!()
    }
}

/// Properties and keys.
impl Namespace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        unimplemented!()
    }

    /// Its properties.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        unimplemented!()
    }

    /// Changes its properties. The change survives a crash when this returns; blocks on syncs.
    ///
    /// # Errors
    ///
    /// [`Error::ModeOfUsed`], [`Error::DiskFull`], [`Error::File`].
    pub fn update(&mut self, _settings: Settings) -> Result<(), Error> {
        unimplemented!()
    }

    /// Gives the key of an encrypted namespace, and loads it.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`], and as [`Engine::load`](crate::Engine::load).
    pub fn unlock(&mut self, _key: &MasterKey) -> Result<(), Error> {
        unimplemented!()
    }

    /// Seals the namespace's keys with another master key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`] if it is not encrypted, [`Error::KeyNeeded`], [`Error::File`].
    pub fn change_master_key(&mut self, _key: &MasterKey) -> Result<(), Error> {
        unimplemented!()
    }

    /// Encrypts new records with a new key. Compaction rewrites older segments step by step, then
    /// forgets the old key.
    ///
    /// # Errors
    ///
    /// As [`change_master_key`](Self::change_master_key).
    pub fn rotate_data_key(&mut self) -> Result<(), Error> {
        unimplemented!()
    }

    /// The namespace in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }

    /// Segments written or replaced since the last [`reset_dirty`](Self::reset_dirty), in order.
    #[must_use]
    pub fn dirty_segments(&self) -> Vec<u32> {
        unimplemented!()
    }

    /// Forgets which segments were written.
    pub fn reset_dirty(&mut self) {
        unimplemented!()
    }

    /// Folder of its segments `d0`, `d1`, ….
    #[must_use]
    pub fn data_folder(&self) -> &Path {
        unimplemented!()
    }

    /// Folder of its index files `i0`, `i1`, ….
    #[must_use]
    pub fn index_folder(&self) -> &Path {
        unimplemented!()
    }
}

/// Upkeep, in small steps that the server's scheduler calls.
impl Namespace {
    /// Cheap upkeep, once a second or so: writes index blocks, gives idle memory back, recovers
    /// from errors of the disk.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn tick(&mut self, _now: Duration) -> Result<(), CommitFailed> {
        unimplemented!()
    }

    /// Compacts about `budget` bytes of the log. `now` is the time of day, in seconds, against
    /// which the age of history is measured. Writes that go on meanwhile are not disturbed. Some
    /// steps block on syncs.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`], [`Error::Read`], [`Error::Write`], [`Error::Sync`], [`Error::File`]:
    /// this attempt is given up, nothing is lost.
    pub fn compact_step(&mut self, _budget: u64, _now: u32) -> Result<Compaction, Error> {
        unimplemented!()
    }

    /// Verifies about `budget` bytes of the log against their checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Read`]. Damage is no error here: it is counted in [`Stats`].
    pub fn scrub_step(&mut self, _budget: u64) -> Result<Scrub, Error> {
        unimplemented!()
    }
}

/// Copies.
impl Namespace {
    /// Shows writes after `after`, oldest first, until about `budget` bytes were shown or `show`
    /// breaks; gives the number up to which the follower knows everything. Only writes that are
    /// [`acknowledged`](Self::acknowledged) are shown.
    ///
    /// # Errors
    ///
    /// [`Error::Gap`], [`Error::Damaged`], [`Error::Read`], [`Error::KeyNeeded`].
    pub fn read_log(
        &mut self,
        _after: SeqNo,
        _budget: u64,
        _show: &mut dyn FnMut(LogRecord<'_>) -> ControlFlow<()>,
    ) -> Result<SeqNo, Error> {
        unimplemented!()
    }

    /// Takes a write of another namespace, with its number. Quota, worm, lock and freeze were
    /// the other's matter.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`], and as [`set`](Self::set).
    pub fn apply(&mut self, _record: &LogRecord<'_>) -> Result<(), Error> {
        unimplemented!()
    }

    /// What followers have: compaction keeps deletions after this number, so that a follower at it
    /// or later never meets [`Error::Gap`]. `None`: there are no followers.
    pub fn hold(&mut self, _after: Option<SeqNo>) {
        unimplemented!()
    }

    /// An instant copy, by hard links, in two new folders on the same disks: a namespace that
    /// another [`Engine`](crate::Engine) can load. Blocks on syncs.
    ///
    /// # Errors
    ///
    /// [`Error::File`], and as [`sync`](Self::sync).
    pub fn snapshot(&mut self, _data: &Path, _index: &Path) -> Result<SeqNo, Error> {
        unimplemented!()
    }
}

/// A sync to be done.
#[derive(Debug)]
pub struct SyncTicket {}

impl SyncTicket {
    /// Syncs. Blocks; may run on any thread.
    #[must_use]
    pub fn run(self) -> SyncDone {
        unimplemented!()
    }
}

/// A sync that was done, or failed; to be given to [`Namespace::finish_sync`].
#[derive(Debug)]
pub struct SyncDone {}
