//! Segments that begin and end.
//!
//! The order of things is what makes a crash harmless: a segment's header and name are durable
//! before its first record; a segment is synced whole before the next one begins, so that only the
//! last can have a torn tail.

use std::sync::Arc;

use super::{Namespace, Tail};
use crate::cipher::Keys;
use crate::index::Index;
use crate::log::header::{HEADER_SIZE, Header};
use crate::log::segment::Segment;
use crate::{Error, SeqNo};

/// A segment ends when it is this part of all that lives, so that garbage is never all in one.
const SEGMENT_PART: u64 = 10;
/// Smallest segment that ends for its size alone. The smaller segments are, the more they differ in how
/// much of them is garbage, and the less compaction has to copy; the larger, the fewer syncs they cost.
const SEGMENT_SIZE_USUAL_MIN: u64 = 4 * 1024 * 1024;

/// From one segment to the next, in blocking calls.
impl Namespace {
    /// Seals the segment that is written, so that the next write starts another. Blocks on syncs.
    /// Gives the numbers of the old and the new segment.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`], [`Error::Write`], [`Error::Sync`], [`Error::File`].
    pub fn rotate(&mut self) -> Result<(u32, u32), Error> {
        self.keys()?;
        self.flush_amid_batch()?;
        self.mend()?;
        if self.segments.is_empty() {
            self.begin_segment(false)?;
        }
        self.end_segment()?;
        let old = self.segments.last().map_or(0, Segment::id);
        self.begin_segment(false)?;
        Ok((old, self.segments.last().map_or(0, Segment::id)))
    }

    /// Removes all keys, and makes that durable. Ids start again, numbers of writes go on.
    ///
    /// # Errors
    ///
    /// [`Error::Frozen`], [`Error::Locked`], [`Error::Worm`]; [`Error::DiskFull`],
    /// [`Error::Write`], [`Error::Sync`], [`Error::File`].
    pub fn clear(&mut self) -> Result<SeqNo, Error> {
        self.may_write()?;
        if self.descriptor.settings.worm && !self.is_empty() {
            return Err(Error::Worm);
        }
        self.clear_at(self.numbers.last + 1)
    }

    /// Begins a segment that voids all before it, then removes them. What was appended and not
    /// written is void as well, so it need not be written.
    pub(super) fn clear_at(&mut self, seq: u64) -> Result<SeqNo, Error> {
        self.check_batch()?;
        if self.is_publishing() || self.is_copying_beside() {
            return Err(Error::Busy);
        }
        if self.change.is_some() {
            self.flush_amid_batch()?;
        }
        let before = (self.numbers.last, self.numbers.next_id, self.numbers.forgotten);
        (self.numbers.last, self.numbers.next_id, self.numbers.forgotten) = (seq, 0, 0);
        let header = self.new_header(true).and_then(|header| self.create_segment(header));
        let segment = match header {
            Ok(segment) => segment,
            Err(error) => {
                (self.numbers.last, self.numbers.next_id, self.numbers.forgotten) = before;
                return Err(error);
            }
        };
        let void = std::mem::take(&mut self.segments);
        self.index = Index::new(self.descriptor.settings.mode);
        self.numbers.entry_count = 0;
        self.numbers.value_size = 0;
        self.numbers.live_size = 0;
        self.numbers.durable = seq;
        self.sync.suspects.clear();
        self.compaction = None;
        self.damage.clear();
        self.open_files.clear();
        self.adopt(segment);
        for segment in &void {
            self.folders.remove_segment(segment.id());
        }
        Ok(SeqNo(seq))
    }

    /// Ends the segment that is written, if there is one, and begins another: beside the caller if the
    /// options say so. Everything appended is in its file.
    pub(super) fn next_segment(&mut self) -> Result<(), Error> {
        if self.claim.shared.options.defers {
            return self.begin_change();
        }
        self.end_segment()?;
        self.begin_segment(false)
    }

    /// Ends the segment that is written: everything in it is durable, and its index file complete
    /// unless that failed.
    pub(super) fn end_segment(&mut self) -> Result<(), Error> {
        let (Some(tail), Some(segment)) = (&self.tail, self.segments.last_mut()) else {
            return Ok(());
        };
        let spoilt = tail.spoilt;
        let file = Arc::clone(segment.file(&self.folders)?);
        if spoilt {
            // What a failed write left behind; the index file's seal says where the end is, too.
            let _ = file.set_size(tail.written);
        }
        if let Err(error) = file.sync() {
            self.counters.data_error_count += 1;
            self.sync.suspects.insert(segment.name);
            return Err(Error::Sync(error));
        }
        self.counters.sync_count += 1;
        if self.sync.suspects.is_empty() {
            self.numbers.durable = self.numbers.written;
        }
        let sealed = segment.seal(&self.folders);
        self.counters.index_error_count += u64::from(sealed.is_err());
        self.tail = None;
        if !self.open_files.contains(&segment.name) {
            self.open_files.push_back(segment.name);
        }
        self.set_mark();
        Ok(())
    }

    /// Begins a segment for the next writes. Everything before is in its file.
    pub(super) fn begin_segment(&mut self, clears: bool) -> Result<(), Error> {
        let header = self.new_header(clears)?;
        let segment = self.create_segment(header)?;
        self.adopt(segment);
        Ok(())
    }

    pub(super) fn new_header(&self, clears: bool) -> Result<Header, Error> {
        let id = self.next_segment_id()?;
        Ok(Header {
            id,
            through: id,
            number: self.random_number()?,
            base: self.numbers.last,
            next_id: self.numbers.next_id,
            forgotten: self.numbers.forgotten,
            key_id: self.keys.as_ref().map_or(0, |keys: &Keys| keys.current),
            clears,
        })
    }

    pub(super) fn random_number(&self) -> Result<u64, Error> {
        let mut number = [0; 8];
        self.folders.storage.random(&mut number).map_err(Error::Read)?;
        Ok(u64::from_le_bytes(number))
    }

    /// On a full disk the reserve makes room for it.
    fn create_segment(&mut self, header: Header) -> Result<Segment, Error> {
        let created = Segment::create(&self.folders, header);
        match created {
            Err(Error::DiskFull) if self.claim.shared.give_reserve_up() => {
                Segment::create(&self.folders, header)
            }
            created => created,
        }
    }

    pub(super) fn adopt(&mut self, mut segment: Segment) {
        segment.dirty = true;
        self.segments.push(segment);
        self.tail = Some(Tail::new(HEADER_SIZE as u64));
        self.set_mark();
    }

    /// Where a segment ends.
    pub(super) fn segment_size_limit(&self) -> u64 {
        let configured = u64::from(self.claim.shared.options.segment_size);
        (self.numbers.live_size / SEGMENT_PART).max(SEGMENT_SIZE_USUAL_MIN).min(configured)
    }
}
