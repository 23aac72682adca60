//! Ticks, scrubbing, closing: what happens when nobody asks for anything.

use std::time::Duration;

use super::compact::Rewrite;
use super::ticket::IndexFiles;
use super::{Namespace, Scrub};
use crate::log::index_file::Rest;
use crate::log::record;
use crate::log::scan::Window;
use crate::log::segment::Segment;
use crate::{CommitFailed, Error, SeqNo};

/// Bytes of the scratch buffer that an idle namespace keeps.
const SCRATCH_SIZE: usize = 64 * 1024;

/// How far scrubbing came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScrubState {
    segment: u32,
    group: usize,
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
        self.flush()?;
        // What fails now is tried again with the next tick or write.
        let _ = self.mend();
        let idle = self.idle_since == SeqNo(self.numbers.last);
        self.idle_since = SeqNo(self.numbers.last);
        self.write_blocks(if idle { Rest::Repeat } else { Rest::Wait });
        self.seal_ended();
        if idle {
            if self.cache.relax() {
                self.segments.iter_mut().for_each(Segment::forget_cached);
                let incoming = self.compaction.as_mut().and_then(Rewrite::incoming_mut);
                incoming.into_iter().for_each(Segment::forget_cached);
            }
            self.scratch = Vec::new();
            if let Some(tail) = self.tail.as_mut().filter(|tail| tail.written == tail.end()) {
                tail.start = tail.written;
                tail.buffer = Vec::new();
            }
        }
        self.scratch.truncate(SCRATCH_SIZE);
        self.scratch.shrink_to(SCRATCH_SIZE);
        self.forget_data_keys();
        Ok(())
    }

    /// Completes index files that could not be completed when their segments ended.
    fn seal_ended(&mut self) {
        if self.change.is_some() {
            // What is ending is not durable yet.
            return;
        }
        let ended = self.segments.len() - usize::from(self.tail.is_some()).min(self.segments.len());
        for segment in self.segments.iter_mut().take(ended) {
            // Where the index file of a pinned one was there may be another's.
            let incomplete = !segment.index_sealed && segment.header.number != 0 && !segment.pinned;
            // What was not synced is not to be proven. What a missing segment held beyond its index
            // file may come back with it.
            let is_suspect = self.sync.suspects.contains(&segment.name);
            if incomplete && !is_suspect && !segment.missing && segment.seal(&self.folders).is_err()
            {
                self.counters.index_error_count += 1;
                // The disk is no better for the next one.
                break;
            }
        }
    }

    /// Verifies about `budget` bytes of the log against their checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], [`Error::KeyNeeded`]. Damage is no error here: it is counted in
    /// [`Stats`](crate::Stats).
    pub fn scrub_step(&mut self, budget: u64) -> Result<Scrub, Error> {
        if self.is_busy() {
            // Files are about to change their names.
            return Ok(Scrub::Working);
        }
        let mut done = 0;
        while done < budget {
            let position = self.segments.partition_point(|s| s.id() < self.scrub.segment);
            let Some(segment) = self.segments.get(position) else {
                self.scrub = ScrubState::default();
                return Ok(Scrub::Finished { damaged_count: self.damaged_record_count() });
            };
            if segment.id() != self.scrub.segment {
                self.scrub = ScrubState { segment: segment.id(), group: 0 };
            }
            if self.scrub.group >= segment.group_count() {
                self.scrub = ScrubState { segment: segment.id() + 1, group: 0 };
                continue;
            }
            done += self.scrub_group(position)?;
            self.scrub.group += 1;
        }
        Ok(Scrub::Working)
    }

    /// Verifies the records of one group; gives their size.
    fn scrub_group(&mut self, position: usize) -> Result<u64, Error> {
        let encrypted = self.is_encrypted();
        let keys = self.keys.as_ref().ok_or(Error::KeyNeeded)?;
        let segment = &mut self.segments[position];
        let mut entries = Vec::new();
        segment.group(&self.folders, keys, self.scrub.group, &mut entries)?;
        let (name, seed, end) = (segment.name, segment.seed, segment.end);
        let file = match self.file(name) {
            // A missing file is reported as such; the others are to be read all the same.
            Err(Error::Damaged { .. }) => return Ok(1),
            file => file?,
        };
        let mut window = Window::new(&*file, end);
        let (mut size, mut damaged) = (0, Vec::new());
        for entry in &entries {
            let record_size = entry.record_size(encrypted) as usize;
            size += record_size as u64;
            // What is in memory may not be in the file yet.
            if self.in_memory(name, entry.offset, record_size).is_some() {
                continue;
            }
            let bytes = window.get(entry.offset.into(), record_size);
            let bytes = bytes.inspect_err(|_| self.counters.data_error_count += 1)?;
            let whole = bytes.is_some_and(|bytes| {
                bytes.len() == record_size && record::verify(bytes, seed, entry.offset.into())
            });
            if !whole {
                damaged.push(entry.offset);
            }
        }
        for offset in damaged {
            self.note_damage(name, offset);
        }
        Ok(size.max(1))
    }

    /// Ends with everything durable, and index files complete.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn close(mut self) -> Result<(), CommitFailed> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), CommitFailed> {
        self.sync()?;
        let last = SeqNo(self.numbers.last);
        if self.is_encrypted() {
            // It will not be continued, so it may as well be complete.
            self.end_segment().map_err(|source| CommitFailed { from: last, source })?;
        }
        self.write_blocks(Rest::Repeat);
        self.seal_ended();
        let files = std::mem::take(&mut self.sync.index_files);
        if !files.is_empty() {
            // Without it the next start takes longer, no more.
            let _ = IndexFiles { files, folders: self.folders.clone() }.sync();
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Who wants to know calls `close`.
        let _ = self.finish();
    }
}
