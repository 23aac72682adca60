//! One rewrite: some neighbouring segments become one.
//!
//! ```text
//!   any thread                                   the namespace's thread
//!   read: what the sources hold, a batch ──────> judge: what of it lives, slice by slice
//!   copy: what lives, to the new file <───────── a batch that is judged
//! ```
//!
//! Only the index knows what lives, so that is asked here and there; everything that reads and writes
//! files needs no namespace. What is overwritten after it was judged is garbage in the new file, no
//! more. How the new file takes the others' place is [`publish`](super::publish)'s.

use std::hint::black_box;
use std::sync::Arc;

use super::chunk::{CHUNK_SIZE, Source};
use crate::cipher::Keys;
use crate::index::slot::next_name;
use crate::log::block::Entry;
use crate::log::header::{HEADER_SIZE, Header};
use crate::log::index_file::Rest;
use crate::log::record::{self, Kind};
use crate::log::segment::{Folders, Segment, write_error};
use crate::namespace::Namespace;
use crate::namespace::locate::{damaged, missing};
use crate::shared::Shared;
use crate::storage::{File, Open, is_full, write_full};
use crate::{Error, History, WARM_COUNT_MAX};

/// Bytes of a record's flags, at offset 4, that say "after sync": the new file has other syncs.
const FLAGS_AT: usize = 4;
const AFTER_SYNC: u8 = 1 << 5;
/// Records that are read before they are judged, about.
const BATCH_RECORD_COUNT: usize = 16 * 1024;
/// Bytes that are copied in one turn, about: so long others may have to wait for the namespace.
const TURN_SIZE: u64 = 4 * 1024 * 1024;

/// A rewrite under way.
#[derive(Debug)]
pub(in crate::namespace) struct Run {
    pub(super) sources: Vec<Source>,
    pub(super) folders: Folders,
    shared: Arc<Shared>,
    keys: Keys,
    history: History,
    /// Whether everything is kept, and what can't be read passed over.
    pub(super) again: bool,
    /// Against which history's age is measured.
    pub(super) now: u32,
    /// Which entries come next: whose, and which group of them.
    source: usize,
    group: usize,
    pub(super) batch: Vec<Candidate>,
    /// So many of the batch are judged, and so many of those are copied.
    pub(super) judged: usize,
    copied: usize,
    /// Whether another thread shall go on with it.
    pub(super) is_due: bool,
    pub(super) file: Arc<dyn File>,
    pub(super) out: Segment,
    /// What was not written to the new file yet, and where it goes.
    buffer: Vec<u8>,
    written: u64,
    pub(super) moved: Vec<Moved>,
    /// Hashes of superseded records that are left out.
    pub(super) dropped: Vec<u64>,
    /// Deletions that hide nothing and are left out: hash, segment, offset.
    pub(super) freed: Vec<(u64, u32, u32)>,
    pub(super) kept_size: u64,
}

/// A record's old and new place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) hash: u64,
    /// Name of its old segment.
    pub(super) segment: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// A record of a source, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    entry: Entry,
    source: usize,
    verdict: Verdict,
}

/// What the index says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It points to it.
    Live,
    /// It points to it, but it is a deletion that nobody needs.
    Free,
    /// It doesn't.
    Superseded,
}

impl Run {
    /// Begins to rewrite some segments, given by their names, which are neighbours and not the newest.
    pub(super) fn new(namespace: &mut Namespace, names: &[u32], now: u32) -> Result<Self, Error> {
        for name in names {
            // Groups of entries must stay where they are from one step to the next.
            if let Some(position) = namespace.position(*name) {
                namespace.segments[position].settle(&namespace.folders);
            }
        }
        Self::begin(namespace, names, now)
    }

    /// Begins to write a segment again, with all that can be read of it.
    pub(super) fn again(namespace: &mut Namespace, name: u32) -> Result<Self, Error> {
        Ok(Self { again: true, ..Self::begin(namespace, &[name], 0)? })
    }

    fn begin(namespace: &mut Namespace, names: &[u32], now: u32) -> Result<Self, Error> {
        let sources: Result<Vec<_>, _> =
            names.iter().map(|name| Source::new(namespace, *name)).collect();
        let sources = sources?;
        let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
            return Err(missing(0));
        };
        let keys = namespace.keys()?.clone();
        let header = Header {
            through: last.segment.header.through,
            number: namespace.random_number()?,
            forgotten: last.segment.header.forgotten,
            key_id: keys.current,
            ..first.segment.header
        };
        let path = namespace.folders.compacted_data_file();
        let file = namespace.folders.storage.open(&path, Open::Empty);
        let file = file.map_err(|error| write_error(error, &path))?;
        let mut out = Segment::new(header, Arc::clone(&file), HEADER_SIZE as u64);
        out.name = next_name(first.segment.name);
        out.index_is_new = true;
        Ok(Self {
            sources,
            folders: namespace.folders.clone(),
            shared: Arc::clone(&namespace.claim.shared),
            keys,
            history: namespace.descriptor.settings.history,
            again: false,
            now,
            source: 0,
            group: 0,
            batch: Vec::new(),
            judged: 0,
            copied: 0,
            is_due: false,
            file,
            out,
            buffer: Vec::new(),
            written: HEADER_SIZE as u64,
            moved: Vec::new(),
            dropped: Vec::new(),
            freed: Vec::new(),
            kept_size: 0,
        })
    }

    /// Whether records wait for [`Namespace::judge`].
    pub(super) fn is_to_be_judged(&self) -> bool {
        self.judged < self.batch.len()
    }

    /// Names of the sources.
    pub(super) fn names(&self) -> impl Iterator<Item = u32> {
        self.sources.iter().map(|source| source.segment.name)
    }

    /// Copies what was judged, and reads what is to be judged next; says whether all is copied. Blocks,
    /// on any thread.
    pub(super) fn turn(&mut self) -> Result<bool, Error> {
        let mut size = 0;
        while let Some(candidate) = self.batch.get(self.copied..self.judged).and_then(<[_]>::first)
        {
            if size >= TURN_SIZE {
                return Ok(false);
            }
            let candidate = *candidate;
            size += u64::from(candidate.entry.record_size(self.out.is_encrypted()));
            self.copied += 1;
            self.take(&candidate)?;
            self.write_out(CHUNK_SIZE)?;
        }
        if self.is_to_be_judged() {
            return Ok(false);
        }
        self.read_batch()?;
        if self.is_to_be_judged() {
            return Ok(false);
        }
        self.write_out(1)?;
        Ok(true)
    }

    fn read_batch(&mut self) -> Result<(), Error> {
        self.batch.clear();
        (self.judged, self.copied) = (0, 0);
        let mut entries = Vec::new();
        while self.batch.len() < BATCH_RECORD_COUNT
            && let Some(source) = self.sources.get_mut(self.source)
        {
            if self.group >= source.segment.group_count() {
                source.release();
                (self.source, self.group) = (self.source + 1, 0);
                continue;
            }
            entries.clear();
            source.segment.group(&self.folders, &self.keys, self.group, &mut entries)?;
            self.group += 1;
            let source = self.source;
            let candidates = entries.iter();
            self.batch.extend(candidates.map(|entry| Candidate {
                entry: *entry,
                source,
                verdict: Verdict::Superseded,
            }));
        }
        Ok(())
    }

    /// Copies a record, or notes that it is left out.
    fn take(&mut self, candidate: &Candidate) -> Result<(), Error> {
        let Candidate { entry, source, verdict } = candidate;
        match verdict {
            Verdict::Live => {
                let to = self.copy(*source, entry)?;
                let segment = self.sources[*source].segment.name;
                // Its key shall answer that it is damaged: no record is in a header.
                let to = to.unwrap_or(0);
                self.moved.push(Moved { hash: entry.hash, segment, from: entry.offset, to });
            }
            Verdict::Free => {
                let segment = self.sources[*source].segment.name;
                self.freed.push((entry.hash, segment, entry.offset));
                self.out.header.forgotten = self.out.header.forgotten.max(entry.seq);
            }
            Verdict::Superseded if self.again || self.is_history(*source, entry)? => {
                self.copy(*source, entry)?;
                self.kept_size += u64::from(entry.record_size(self.out.is_encrypted()));
            }
            Verdict::Superseded => self.dropped.push(entry.hash),
        }
        Ok(())
    }

    fn is_history(&mut self, source: usize, entry: &Entry) -> Result<bool, Error> {
        let age = match self.history {
            _ if entry.kind != Kind::Value => return Ok(false),
            History::None => return Ok(false),
            History::All => return Ok(true),
            History::Younger(age) => age,
        };
        let bytes = self.sources[source].record(entry)?;
        let timestamp = record::Head::parse(bytes).map_or(0, |head| head.timestamp);
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        Ok(timestamp.saturating_add(age) > self.now)
    }

    /// Copies a record, and says where it will be: nowhere if it is damaged and that must not matter.
    fn copy(&mut self, source: usize, entry: &Entry) -> Result<Option<u32>, Error> {
        let from = self.buffer.len();
        let to = match self.put_record(source, entry) {
            Ok(to) => to,
            Err(Error::Damaged { .. }) if self.again => {
                self.buffer.truncate(from);
                self.out.damaged = true;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.out.pending.push(Entry { offset: to, ..*entry });
        self.out.count += 1;
        self.out.last_seq = entry.seq;
        self.out.end = self.written + self.buffer.len() as u64;
        Ok(Some(to))
    }

    /// Appends a record's copy to the buffer, and says where it will be.
    fn put_record(&mut self, source: usize, entry: &Entry) -> Result<u32, Error> {
        let offset = self.written + self.buffer.len() as u64;
        let to = u32::try_from(offset).map_err(|_| Error::DiskFull)?;
        let from = self.buffer.len();
        let bytes = self.sources[source].record(entry)?;
        self.buffer.extend_from_slice(bytes);
        if self.out.is_encrypted() {
            self.seal_again(source, entry, from, offset)?;
        } else {
            self.buffer[from + FLAGS_AT] &= !AFTER_SYNC;
        }
        record::finish(&mut self.buffer[from..], self.out.seed, offset);
        Ok(to)
    }

    /// Opens the copy in the buffer and seals it for its new place.
    fn seal_again(
        &mut self,
        source: usize,
        entry: &Entry,
        from: usize,
        offset: u64,
    ) -> Result<(), Error> {
        let source = &self.sources[source].segment;
        let resealed = (|| {
            let record = &mut self.buffer[from..];
            let head = record::Head::parse(record)?;
            self.keys.open(&source.header, &head, record, entry.offset.into())?;
            self.buffer.truncate(from + head.record_size() - record::TAG_SIZE);
            self.buffer[from + FLAGS_AT] &= !AFTER_SYNC;
            let sealer = self.keys.sealers.get(&self.out.header.key_id)?;
            let number = self.out.header.number;
            sealer.seal(&mut self.buffer, from, head.head_size(), number, offset)
        })();
        resealed.ok_or_else(|| damaged(source.name, entry.offset))
    }

    /// Writes the buffer if it is large enough.
    fn write_out(&mut self, at_least: usize) -> Result<(), Error> {
        if self.buffer.len() < at_least {
            return Ok(());
        }
        let mut written = write_full(&*self.file, &self.buffer, self.written);
        if written.as_ref().is_err_and(is_full) && self.shared.give_reserve_up() {
            written = write_full(&*self.file, &self.buffer, self.written);
        }
        written
            .map_err(|error| if is_full(&error) { Error::DiskFull } else { Error::Write(error) })?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        // The index file may fail: its blocks wait, or are made again from the log.
        let _ = self.out.write_blocks(&self.folders, self.written, Rest::Wait);
        Ok(())
    }
}

impl Namespace {
    /// Judges so many records of a rewrite.
    pub(super) fn judge(&self, run: &mut Run, count: usize) {
        let end = run.judged.saturating_add(count).min(run.batch.len());
        let Run { batch, sources, again, judged, .. } = run;
        for candidates in batch[*judged..end].chunks_mut(WARM_COUNT_MAX) {
            // As in `warm`: the processor waits for many places of the index at once.
            let hashes = candidates.iter().map(|candidate| candidate.entry.hash);
            black_box(hashes.fold(0, |all, hash| all ^ self.index.touch(hash)));
            for candidate in candidates {
                let name = sources[candidate.source].segment.name;
                candidate.verdict = self.verdict(name, &candidate.entry, *again);
            }
        }
        *judged = end;
    }

    fn verdict(&self, segment: u32, entry: &Entry, again: bool) -> Verdict {
        let live = self.index.find_record(entry.hash, segment, entry.offset);
        let held = self.hold.is_some_and(|hold| entry.seq > hold);
        match (live, entry.kind) {
            (Some((_, slot)), Kind::Tombstone) if !slot.is_needed() && !held && !again => {
                Verdict::Free
            }
            (Some(_), _) => Verdict::Live,
            (None, _) => Verdict::Superseded,
        }
    }
}
