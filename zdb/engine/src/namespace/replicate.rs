//! The log as a stream, and snapshots.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{Change, LogRecord, Namespace};
use crate::engine::{file_error, make_folder};
use crate::log::block::Entry;
use crate::log::record::Kind;
use crate::log::segment::Folders;
use crate::{Error, SeqNo};

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
        after: SeqNo,
        budget: u64,
        show: &mut dyn FnMut(LogRecord<'_>) -> ControlFlow<()>,
    ) -> Result<SeqNo, Error> {
        self.keys()?;
        let forgotten = self.numbers.forgotten;
        // Who has nothing has nothing to delete.
        if after.0 > 0 && after.0 < forgotten {
            return Err(Error::Gap { first: SeqNo(forgotten), asked: after });
        }
        let through = self.acknowledged().0;
        let mut stream = Stream { known: after.0, through, rest: budget, show };
        if let Some(first) = self.segments.first()
            && first.header.clears
            && stream.known < first.header.base
        {
            let seq = first.header.base;
            let clear = LogRecord { seq: SeqNo(seq), change: Change::Clear };
            stream.known = seq;
            if (stream.show)(clear).is_break() {
                return Ok(SeqNo(seq));
            }
        }
        for position in 0..self.segments.len() {
            if self.segments[position].last_seq <= stream.known {
                continue;
            }
            if self.stream_segment(position, &mut stream)?.is_break() {
                return Ok(SeqNo(stream.known));
            }
        }
        Ok(SeqNo(stream.known.max(through)))
    }

    fn stream_segment(
        &mut self,
        position: usize,
        stream: &mut Stream<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let first = self.segments[position].group_of(stream.known + 1);
        let mut entries = Vec::new();
        for group in first..self.segments[position].group_count() {
            entries.clear();
            let keys = self.keys.as_ref().ok_or(Error::KeyNeeded)?;
            self.segments[position].group(&self.folders, keys, group, &mut entries)?;
            let name = self.segments[position].name;
            let known = stream.known;
            for entry in entries.iter().filter(|entry| entry.seq > known) {
                if entry.seq > stream.through || stream.rest == 0 {
                    return Ok(ControlFlow::Break(()));
                }
                let mut record = std::mem::take(&mut self.scratch);
                let flow = self.stream_entry(name, entry, &mut record, stream);
                self.scratch = record;
                stream.known = entry.seq;
                if flow?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn stream_entry(
        &mut self,
        segment: u32,
        entry: &Entry,
        record: &mut Vec<u8>,
        stream: &mut Stream<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let size = entry.record_size(self.is_encrypted());
        let opened = self.read_opened(segment, entry.offset, size as usize, record);
        let (head, key_at) = match opened {
            Ok(opened) => opened,
            // Superseded records need not be whole: what matters comes later in the stream.
            Err(Error::Damaged { .. }) if self.find_entry(segment, entry).is_none() => {
                return Ok(ControlFlow::Continue(()));
            }
            Err(error) => return Err(error),
        };
        stream.rest = stream.rest.saturating_sub(size.into());
        let value_at = key_at + usize::from(head.key_size);
        let key = record.get(key_at..value_at).unwrap_or_default();
        let timestamp = head.timestamp;
        let change = match head.kind {
            Kind::Value => {
                let value_end = value_at + head.value_size as usize;
                let value = record.get(value_at..value_end).unwrap_or_default();
                Change::Set { key, value, timestamp }
            }
            Kind::Tombstone => Change::Delete { key, timestamp },
        };
        Ok((stream.show)(LogRecord { seq: SeqNo(entry.seq), change }))
    }

    /// What followers have: compaction keeps deletions after this number, so that a follower at it
    /// or later never meets [`Error::Gap`]. `None`: there are no followers.
    pub fn hold(&mut self, after: Option<SeqNo>) {
        self.hold = after.map(|seq| seq.0);
    }

    /// Lets ids go on from here, if they are not there yet: what a copy of another namespace must
    /// know, because deleted ids are not given out again. Blocks on syncs.
    ///
    /// # Errors
    ///
    /// As [`rotate`](Self::rotate).
    pub fn continue_ids(&mut self, next_id: u64) -> Result<(), Error> {
        self.flush_amid_batch()?;
        if next_id > self.numbers.next_id {
            self.numbers.next_id = next_id;
            // It stands in the next segment's header.
            self.rotate()?;
        }
        Ok(())
    }

    /// An instant copy, by hard links, below two folders on the same disks, which are made if they
    /// don't exist: another [`Engine`](crate::Engine) can be opened on them. Blocks on syncs.
    ///
    /// # Errors
    ///
    /// [`Error::File`], and as [`rotate`](Self::rotate).
    pub fn snapshot(&mut self, data: &Path, index: &Path) -> Result<SeqNo, Error> {
        self.keys()?;
        if self.is_publishing() {
            return Err(Error::Busy);
        }
        // Files that have lost their names can't be linked.
        self.finish_switch();
        self.flush_amid_batch()?;
        self.mend()?;
        self.end_segment()?;
        let folder = self.claim.name.to_folder();
        let storage = Arc::clone(&self.folders.storage);
        make_folder(&*storage, data)?;
        make_folder(&*storage, index)?;
        let copy = Folders {
            storage: Arc::clone(&storage),
            data: data.join(&folder),
            index: index.join(&folder),
        };
        for folder in [&copy.data, &copy.index] {
            storage.create_folder(folder).map_err(|source| file_error(source, folder))?;
        }
        for segment in &self.segments {
            let (from, to) = (self.folders.data_file(segment.id()), copy.data_file(segment.id()));
            storage.link(&from, &to).map_err(|source| file_error(source, &to))?;
            // An index file that is not complete would go on growing, and can be made again.
            if segment.index_sealed {
                let from = self.folders.index_file(segment.id());
                let to = copy.index_file(segment.id());
                storage.link(&from, &to).map_err(|source| file_error(source, &to))?;
            }
        }
        self.descriptor.store(&copy, self.claim.shared.options.secret.as_ref())?;
        for folder in [&copy.data, &copy.index] {
            storage.sync_folder(folder).map_err(|source| file_error(source, folder))?;
        }
        for root in [data, index] {
            storage.sync_folder(root).map_err(|source| file_error(source, root))?;
        }
        Ok(SeqNo(self.numbers.last))
    }
}

/// A stream under way.
struct Stream<'a> {
    /// What the follower knows.
    known: u64,
    /// What may be shown.
    through: u64,
    rest: u64,
    show: &'a mut dyn FnMut(LogRecord<'_>) -> ControlFlow<()>,
}
