//! Batches and syncs.
//!
//! Index blocks are written after the records they tell of were synced: what they prove is true.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Namespace;
use super::ticket::TailSync;
use crate::cache::BLOCK_SIZE;
use crate::log::index_file::Rest;
use crate::storage::{File, is_full, write_full};
use crate::{CommitFailed, Durability, Error, SeqNo};

/// Bytes of the tail that stay in memory after they were written.
const KEEP_SIZE: usize = 256 * 1024;
/// Memory of the tail's buffer that stays while batches follow each other, in bytes.
const BUFFER_KEPT_SIZE: usize = 6 * 1024 * 1024;
/// Entries that wait for a sync beyond which level none syncs, too.
const UNSYNCED_COUNT_MAX: usize = 64 * 1024;

/// Where syncs stand.
#[derive(Debug, Default)]
pub(super) struct SyncState {
    /// Whether a sync of the tail or a change of segments is under way.
    pub(super) in_flight: bool,
    last: Option<Duration>,
    /// Names of segments whose sync failed: what they hold may not be on the disk.
    pub(super) suspects: std::collections::BTreeSet<u32>,
    /// Writes failed amid the batch, and the server doesn't know yet.
    pub(super) failed: Option<CommitFailed>,
    /// Index files that are complete and have not been synced.
    pub(super) index_files: Vec<(u32, Arc<dyn File>)>,
}

/// Making writes durable.
impl Namespace {
    /// Writes all that was appended, in one call to the system. To be called once for each batch of
    /// requests, before their replies. What was appended to a segment that has no file yet is written
    /// when it has.
    ///
    /// # Errors
    ///
    /// Says from which number on writes of this batch failed. They were undone, and their clients
    /// must hear of it.
    pub fn flush(&mut self) -> Result<(), CommitFailed> {
        if let Some(failed) = self.sync.failed.take() {
            return Err(failed);
        }
        let Some(tail) = &self.tail else { return Ok(()) };
        if tail.written == tail.end() || self.change.is_some() {
            return Ok(());
        }
        let mut written = self.write_pending();
        if written.as_ref().is_err_and(is_full) && self.claim.shared.give_reserve_up() {
            written = self.write_pending();
        }
        match written {
            Ok(()) => {
                self.note_written();
                Ok(())
            }
            Err(error) => Err(self.give_batch_up(error)),
        }
    }

    /// Writes amid a batch, all of it. A failure is told to the caller now, and to the server with the
    /// batch.
    pub(super) fn flush_amid_batch(&mut self) -> Result<(), Error> {
        let failed = match self.settle_change().and_then(|()| self.flush()) {
            Ok(()) => return Ok(()),
            // Nothing is lost by waiting.
            Err(CommitFailed { source: Error::Busy, .. }) => return Err(Error::Busy),
            Err(failed) => failed,
        };
        self.sync.failed = Some(CommitFailed { from: failed.from, source: again(&failed.source) });
        Err(failed.source)
    }

    /// Refuses writes of a batch that has failed already.
    pub(super) fn check_batch(&self) -> Result<(), Error> {
        match &self.sync.failed {
            Some(failed) => Err(again(&failed.source)),
            None => Ok(()),
        }
    }

    fn write_pending(&self) -> io::Result<()> {
        let (Some(tail), Some(segment)) = (&self.tail, self.segments.last()) else { return Ok(()) };
        let file = segment.open_file().ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(tail.written - tail.start).unwrap_or(usize::MAX);
        write_full(&**file, tail.buffer.get(from..).unwrap_or_default(), tail.written)
    }

    fn note_written(&mut self) {
        if let Some(tail) = &mut self.tail {
            tail.written = tail.end();
            if tail.buffer.len() > KEEP_SIZE {
                let mut bytes = std::mem::take(&mut tail.buffer);
                let start = std::mem::replace(&mut tail.start, tail.written);
                let large_size = std::mem::take(&mut tail.large_size);
                // Large records are not read by way of the cache, so others may have its room.
                if large_size < bytes.len() / 2 {
                    self.keep_blocks(start, &bytes);
                }
                bytes.clear();
                // The next batch will be about as large. A tick gives it back when there is none.
                bytes.shrink_to(BUFFER_KEPT_SIZE);
                if let Some(tail) = &mut self.tail {
                    tail.buffer = bytes;
                }
            }
        }
        self.set_mark();
    }

    /// Keeps the whole blocks of some bytes of the last segment in the cache.
    fn keep_blocks(&mut self, start: u64, bytes: &[u8]) {
        let Some(name) = self.segments.last().map(|segment| segment.name) else { return };
        let block_size = BLOCK_SIZE as u64;
        let skipped = start.next_multiple_of(block_size) - start;
        let first = start.div_ceil(block_size);
        let bytes = usize::try_from(skipped).ok().and_then(|skipped| bytes.get(skipped..));
        for (number, block) in (first..).zip(bytes.unwrap_or_default().as_chunks().0) {
            if let Ok(number) = u32::try_from(number) {
                self.keep_block(name, number, block);
            }
        }
    }

    /// Undoes the batch. What a failed write left in the file is cut off; if that fails, too, or if
    /// a nonce would be used twice, the segment is not written any more.
    fn give_batch_up(&mut self, error: io::Error) -> CommitFailed {
        self.counters.data_error_count += 1;
        let from = SeqNo(self.numbers.written + 1);
        self.roll_back();
        let encrypted = self.is_encrypted();
        if let (Some(tail), Some(segment)) = (&mut self.tail, self.segments.last()) {
            let cut = segment.open_file().is_some_and(|file| file.set_size(tail.written).is_ok());
            tail.spoilt = !cut || encrypted;
        }
        let source = if is_full(&error) { Error::DiskFull } else { Error::Write(error) };
        CommitFailed { from, source }
    }

    /// The newest write whose reply may be sent, at the namespace's level of durability.
    #[must_use]
    pub fn acknowledged(&self) -> SeqNo {
        SeqNo(match self.descriptor.settings.durability {
            Durability::Group => self.numbers.durable,
            Durability::None | Durability::Interval(_) => self.numbers.written,
        })
    }

    /// Whether written bytes are to be synced, and no sync is under way.
    pub(super) fn wants_tail_sync(&self, now: Duration) -> bool {
        let due = self.waits_for_durable()
            || match self.descriptor.settings.durability {
                Durability::Group => true,
                Durability::Interval(interval) => {
                    self.sync.last.is_none_or(|last| now.saturating_sub(last) >= interval)
                }
                Durability::None => self
                    .segments
                    .last()
                    .is_some_and(|segment| segment.pending.len() > UNSYNCED_COUNT_MAX),
            };
        // What a failed sync left behind is not made good by another one; and the change of a segment
        // syncs what came before it.
        let waiting = self.numbers.written > self.numbers.durable && self.sync.suspects.is_empty();
        due && waiting && !self.sync.in_flight && self.change.is_none()
    }

    pub(super) fn tail_sync(&mut self, now: Duration) -> Option<TailSync> {
        let (tail, segment) = (self.tail.as_ref()?, self.segments.last()?);
        let sync = TailSync {
            file: Arc::clone(segment.open_file()?),
            segment: segment.name,
            offset: tail.written,
            seq: self.numbers.written,
            now,
        };
        self.sync.in_flight = true;
        Some(sync)
    }

    pub(super) fn finish_tail_sync(
        &mut self,
        sync: &TailSync,
        result: io::Result<()>,
    ) -> Result<(), CommitFailed> {
        self.sync.in_flight = false;
        if let Err(error) = result {
            if self.segment(sync.segment).is_some() {
                self.counters.data_error_count += 1;
                self.sync.suspects.insert(sync.segment);
            }
            let from = SeqNo(self.numbers.durable + 1);
            let source = Error::Sync(error);
            // No segment may follow one that is not durable.
            self.abandon_change(&source);
            return Err(CommitFailed { from, source });
        }
        self.counters.sync_count += 1;
        self.sync.last = Some(sync.now);
        if !self.sync.suspects.is_empty() {
            return Ok(());
        }
        self.numbers.durable = self.numbers.durable.max(sync.seq);
        let is_tail = self.is_last(sync.segment);
        if let Some(tail) = self.tail.as_mut().filter(|_| is_tail) {
            tail.synced = tail.synced.max(sync.offset);
            self.write_blocks(Rest::Repeat);
        }
        Ok(())
    }

    /// Tells the index file about synced records. If it can't be written, later or never.
    pub(super) fn write_blocks(&mut self, rest: Rest) {
        let (Some(tail), Some(segment)) = (&self.tail, self.segments.last_mut()) else { return };
        let before = segment.pending.len();
        let written = segment.write_blocks(&self.folders, tail.synced.min(tail.written), rest);
        let after = segment.pending.len();
        self.counters.index_error_count += u64::from(written.is_err());
        self.note_blocks(before, after);
    }

    /// [`flush`](Self::flush), and all that [`begin_sync`](Self::begin_sync) gives, in one blocking call.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush) and [`finish_sync`](Self::finish_sync).
    pub fn commit(&mut self, now: Duration) -> Result<(), CommitFailed> {
        self.flush()?;
        while let Some(ticket) = self.begin_sync(now) {
            self.finish_sync(ticket.run())?;
        }
        Ok(())
    }

    /// Writes and syncs everything, whatever the level.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn sync(&mut self) -> Result<(), CommitFailed> {
        self.flush()?;
        self.settle_change()?;
        let from = SeqNo(self.numbers.durable + 1);
        self.mend().map_err(|source| CommitFailed { from, source })?;
        if self.numbers.written == self.numbers.durable {
            return Ok(());
        }
        let now = self.sync.last.unwrap_or_default();
        let Some(sync) = self.tail_sync(now) else { return Ok(()) };
        let result = sync.file.sync();
        self.finish_tail_sync(&sync, result)
    }
}

/// The same error for a second reader.
pub(super) fn again(error: &Error) -> Error {
    let same = |error: &io::Error| match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    };
    match error {
        Error::Write(error) | Error::Read(error) => Error::Write(same(error)),
        Error::Sync(error) => Error::Sync(same(error)),
        Error::File { path, source } => Error::File { path: path.clone(), source: same(source) },
        _ => Error::DiskFull,
    }
}
