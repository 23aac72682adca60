//! From files to an index.
//!
//! ```text
//!  d0 i0  d1 i1  d2 i2(no seal)  d3 i3(short)
//!  index  index  index, then     index, then the log: the tail, which is
//!  file   file   the log         cut where it is torn, and continued
//! ```
//!
//! What is left of an interrupted step is recognized by headers alone: segments that a later one
//! voids, segments that were merged into an earlier one, files that were never renamed.
//!
//! A segment whose file somebody took away leaves its index file: its keys are known, and answer that
//! they are damaged until the file is back. For this an index file never outlives its segment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;

use super::admit::{Arrival, Arrivals};
use super::write::next_id;
use super::{Counters, Namespace, Numbers, Tail};
use crate::Error;
use crate::cache::Cache;
use crate::descriptor::Descriptor;
use crate::index::Index;
use crate::index::slot::SEGMENT_ID_MAX;
use crate::log::block::Entry;
use crate::log::header::{HEADER_SIZE, Header, Part};
use crate::log::scan;
use crate::log::segment::{COMPACTED_DATA_NAME, Folders, NEW_DATA_NAME, NEW_INDEX_NAME, Segment};
use crate::shared::Claim;
use crate::storage::{File, Open, read_full};
use crate::{Mode, SeqNo};

/// Numbers left out after a segment whose header is lost: it may hold that many.
const LOST_SEQ_COUNT: u64 = 1 << 32;

impl Namespace {
    /// Loads a namespace; an encrypted one waits for its key.
    pub(crate) fn load(
        claim: Claim,
        folders: Folders,
        descriptor: Descriptor,
    ) -> Result<Self, Error> {
        let mode = descriptor.settings.mode;
        let cache = Cache::new(Arc::clone(&claim.shared.cache_budget));
        let mut namespace = Self {
            claim,
            cache,
            folders,
            keys: None,
            master: None,
            index: Index::new(mode),
            segments: Vec::new(),
            tail: None,
            numbers: Numbers::default(),
            undo: Vec::new(),
            mark: super::undo::Mark::default(),
            sync: super::commit::SyncState::default(),
            hold: None,
            open_files: Default::default(),
            damage: Default::default(),
            scratch: Vec::new(),
            change: None,
            compaction: None,
            compaction_error: None,
            scrub: Default::default(),
            counters: Counters::default(),
            idle_since: SeqNo::default(),
            descriptor,
        };
        if !namespace.descriptor.encrypted {
            namespace.keys = Some(namespace.descriptor.keys(None)?);
            namespace.load_log()?;
        }
        Ok(namespace)
    }

    /// Loads all segments.
    pub(super) fn load_log(&mut self) -> Result<(), Error> {
        let mut found = self.find_segments()?;
        self.drop_void(&mut found);
        let bounds: Vec<Option<u64>> = found
            .iter()
            .skip(1)
            .map(|(segment, _)| Some(segment.header.base))
            .chain([None])
            .collect();
        let mut arrivals = Arrivals::new();
        for ((segment, broken), bound) in found.into_iter().zip(bounds) {
            if broken {
                self.numbers.last = self.numbers.last.saturating_add(LOST_SEQ_COUNT);
                self.segments.push(segment);
            } else {
                self.load_segment(segment, bound, &mut arrivals)?;
            }
            if arrivals.is_full() {
                self.admit_all(&mut arrivals)?;
            }
        }
        self.admit_all(&mut arrivals)?;
        drop(arrivals);
        self.continue_tail()?;
        self.numbers.durable = self.numbers.last;
        self.set_mark();
        Ok(())
    }

    /// All segments by id, without entries, and whether their headers are lost.
    fn find_segments(&mut self) -> Result<Vec<(Segment, bool)>, Error> {
        let storage = &self.folders.storage;
        let mut ids = numbered(&storage.list(&self.folders.data).map_err(Error::Read)?, 'd');
        let present = ids.len();
        // Without index files the log alone has to do.
        ids.extend(numbered(&storage.list(&self.folders.index).unwrap_or_default(), 'i'));
        let is_present: BTreeSet<u32> = ids[..present].iter().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        for half_made in [NEW_DATA_NAME, COMPACTED_DATA_NAME] {
            let _ = storage.remove(&self.folders.data.join(half_made));
        }
        let _ = storage.remove(&self.folders.index.join(NEW_INDEX_NAME));
        let mut found: Vec<(Segment, bool)> = Vec::with_capacity(ids.len());
        for id in ids {
            if !is_present.contains(&id) {
                // One that says nothing can't be missed.
                found.extend(self.index_header(id).map(|h| (Segment::missing(h), false)));
                continue;
            }
            let path = self.folders.data_file(id);
            let file = storage.open(&path, Open::Existing).map_err(Error::Read)?;
            let base = found.last().map_or(0, |(segment, _)| segment.header.base);
            found.push(self.read_header(id, file, base));
            // Open files are opened again when they are needed.
            if let Some((segment, _)) = found.last_mut() {
                segment.close_file();
            }
        }
        Ok(found)
    }

    /// A segment's header, or the one that its index file repeats.
    fn read_header(&self, id: u32, file: Arc<dyn File>, base: u64) -> (Segment, bool) {
        let mut bytes = [0; HEADER_SIZE];
        // What can't be read is as good as damaged.
        let read = read_full(&*file, &mut bytes, 0);
        let header = read.ok().and_then(|_| Header::parse(&bytes, Part::Data));
        let mut header = header.filter(|header| header.id == id);
        let damaged = header.is_none();
        if damaged {
            header = self.index_header(id);
        }
        let broken = header.is_none();
        let lost = Header {
            id,
            through: id,
            number: 0,
            base,
            next_id: 0,
            forgotten: 0,
            key_id: 0,
            clears: false,
        };
        let mut segment = Segment::new(header.unwrap_or(lost), file, HEADER_SIZE as u64);
        segment.damaged = damaged;
        (segment, broken)
    }

    fn index_header(&self, id: u32) -> Option<Header> {
        let path = self.folders.index_file(id);
        let file = self.folders.storage.open(&path, Open::Existing).ok()?;
        let mut bytes = [0; HEADER_SIZE];
        read_full(&*file, &mut bytes, 0).ok()?;
        Header::parse(&bytes, Part::Index).filter(|header| header.id == id)
    }

    /// Removes what a later segment voids, and what was merged into an earlier one.
    fn drop_void(&self, found: &mut Vec<(Segment, bool)>) {
        let clears = found.iter().rposition(|(segment, _)| segment.header.clears).unwrap_or(0);
        let mut through = None;
        let mut kept = Vec::with_capacity(found.len());
        for (position, (segment, broken)) in std::mem::take(found).into_iter().enumerate() {
            let merged = through.is_some_and(|through| segment.id() <= through);
            if position < clears || merged {
                self.folders.remove_segment(segment.id());
                continue;
            }
            through = Some(segment.header.through);
            kept.push((segment, broken));
        }
        *found = kept;
    }

    /// Loads a segment, and adds what is in it to `arrivals`.
    fn load_segment(
        &mut self,
        mut segment: Segment,
        bound: Option<u64>,
        arrivals: &mut Arrivals,
    ) -> Result<(), Error> {
        let id = segment.id();
        let is_sequential = self.descriptor.settings.mode == Mode::Sequential;
        let mut ids = self.numbers.next_id.max(segment.header.next_id);
        let mut arrive = |entry: &Entry| {
            if is_sequential {
                ids = next_id(ids, entry);
            }
            arrivals.push(Arrival::new(id, entry));
        };
        segment.load_index(&self.folders, &mut |entry| arrive(&entry));
        if segment.missing {
            self.numbers.next_id = ids;
            self.take_missing(segment, bound.is_none());
            return Ok(());
        }
        let file = Arc::clone(segment.file(&self.folders)?);
        let size = file.size().map_err(Error::Read)?;
        if size < segment.end {
            segment.damaged = true;
        }
        if !segment.index_sealed {
            let found = scan::scan(&scan::Task {
                file: &*file,
                header: &segment.header,
                keys: self.keys.as_ref().ok_or(Error::KeyNeeded)?,
                from: segment.block_end(),
                size,
                before: segment.last_seq,
                bound,
                proven: bound.is_some(),
            })?;
            self.take_scan(&mut segment, &*file, size, found, bound.is_none())?;
            segment.pending.iter().for_each(arrive);
        }
        let header = segment.header;
        self.numbers.last = self.numbers.last.max(header.base).max(segment.last_seq);
        self.numbers.next_id = ids;
        self.numbers.forgotten = self.numbers.forgotten.max(header.forgotten);
        self.segments.push(segment);
        self.open_files.push_back(header.id);
        while self.open_files.len() > self.claim.shared.options.open_files_max {
            self.close_one_file();
        }
        Ok(())
    }

    /// Takes a segment of which only the index file is there.
    fn take_missing(&mut self, segment: Segment, is_last: bool) {
        let header = segment.header;
        // What its index file doesn't tell of may have had numbers, too.
        let unknown = if is_last && !segment.index_sealed { LOST_SEQ_COUNT } else { 0 };
        let last = header.base.max(segment.last_seq).saturating_add(unknown);
        self.numbers.last = self.numbers.last.max(last);
        self.numbers.forgotten = self.numbers.forgotten.max(header.forgotten);
        self.segments.push(segment);
    }

    /// Takes what the log told beyond the index file, and cuts a torn tail.
    fn take_scan(
        &mut self,
        segment: &mut Segment,
        file: &dyn File,
        size: u64,
        found: scan::Found,
        is_last: bool,
    ) -> Result<(), Error> {
        if found.hole_count > 0 {
            segment.damaged = true;
            self.counters.hole_count += found.hole_count;
        }
        segment.count += u32::try_from(found.entries.len()).unwrap_or(u32::MAX);
        segment.last_seq = found.entries.last().map_or(segment.last_seq, |entry| entry.seq);
        segment.pending = found.entries;
        segment.end = found.end;
        if is_last && segment.end < size {
            self.counters.torn_size += size - segment.end;
            file.set_size(segment.end).map_err(Error::Write)?;
        }
        Ok(())
    }

    /// Goes on writing the last segment if that is sound.
    fn continue_tail(&mut self) -> Result<(), Error> {
        let limit = self.segment_size_limit();
        let encrypted = self.is_encrypted();
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        if segment.index_sealed || segment.missing {
            return Ok(());
        }
        // Who wrote it may have died before a sync; what was found shall stay found.
        let file = segment.file(&self.folders)?;
        file.sync().map_err(Error::Sync)?;
        // A nonce must not come twice, so an encrypted segment is never continued.
        if segment.damaged || encrypted || segment.end >= limit {
            return Ok(());
        }
        self.tail = Some(Tail::new(segment.end));
        Ok(())
    }
}

/// Numbers of files that are named by a letter and a number.
fn numbered(names: &[OsString], letter: char) -> Vec<u32> {
    let number = |name: &OsString| {
        let id = name.to_str()?.strip_prefix(letter)?.parse().ok()?;
        // `d01` and `d+1` are not ours.
        (id <= SEGMENT_ID_MAX && **name == *format!("{letter}{id}")).then_some(id)
    };
    names.iter().filter_map(number).collect()
}
