//! One rewrite: some neighbouring segments become one, step by step. How the new one takes their place
//! is [`publish`](super::publish)'s.

use std::sync::Arc;

use super::chunk::{CHUNK_SIZE, Chunk};
use crate::log::block::Entry;
use crate::log::header::{HEADER_SIZE, Header};
use crate::log::index_file::Rest;
use crate::log::record::{self, Kind};
use crate::log::segment::{Segment, write_error};
use crate::namespace::Namespace;
use crate::storage::{File, Open, is_full, write_full};
use crate::{Error, History};

/// Bytes of a record's flags, at offset 4, that say "after sync": the new file has other syncs.
const FLAGS_AT: usize = 4;
const AFTER_SYNC: u8 = 1 << 5;

/// A rewrite under way.
#[derive(Debug)]
pub(in crate::namespace) struct Run {
    pub(super) sources: Vec<u32>,
    /// Whether everything is kept, and what can't be read passed over.
    pub(super) again: bool,
    /// Against which history's age is measured.
    pub(super) now: u32,
    pub(super) source: usize,
    pub(super) group: usize,
    pub(super) file: Arc<dyn File>,
    pub(super) out: Segment,
    /// What was not written to the new file yet, and where it goes.
    pub(super) buffer: Vec<u8>,
    pub(super) written: u64,
    pub(super) moved: Vec<Moved>,
    /// Hashes of superseded records that are left out.
    pub(super) dropped: Vec<u64>,
    /// Deletions that hide nothing and are left out: hash, segment, offset.
    pub(super) freed: Vec<(u64, u32, u32)>,
    pub(super) kept_size: u64,
    pub(super) chunk: Chunk,
}

/// A record's old and new place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) hash: u64,
    pub(super) segment: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// What becomes of a record.
enum Fate {
    Live,
    Kept,
    Dropped,
    Freed,
}

impl Run {
    /// Begins to rewrite some segments, which are neighbours and not the newest.
    pub(super) fn new(
        namespace: &mut Namespace,
        sources: Vec<u32>,
        now: u32,
    ) -> Result<Self, Error> {
        for id in &sources {
            // Groups of entries must stay where they are from one step to the next.
            if let Some(position) = namespace.position(*id) {
                namespace.segments[position].settle(&namespace.folders);
            }
        }
        Self::begin(namespace, sources, now)
    }

    fn begin(namespace: &Namespace, sources: Vec<u32>, now: u32) -> Result<Self, Error> {
        let header = |id: &u32| namespace.position(*id).map(|at| &namespace.segments[at].header);
        let (first, last) = (sources.first().and_then(header), sources.last().and_then(header));
        let (Some(first), Some(last)) = (first, last) else {
            return Err(crate::namespace::locate::missing(0));
        };
        let header = Header {
            through: last.through,
            number: namespace.random_number()?,
            forgotten: last.forgotten,
            key_id: namespace.keys()?.current,
            ..*first
        };
        let path = namespace.folders.compacted_data_file();
        let file = namespace.folders.storage.open(&path, Open::Empty);
        let file = file.map_err(|error| write_error(error, &path))?;
        let mut out = Segment::new(header, Arc::clone(&file), HEADER_SIZE as u64);
        out.index_is_new = true;
        Ok(Self {
            sources,
            again: false,
            now,
            source: 0,
            group: 0,
            file,
            out,
            buffer: Vec::new(),
            written: HEADER_SIZE as u64,
            moved: Vec::new(),
            dropped: Vec::new(),
            freed: Vec::new(),
            kept_size: 0,
            chunk: Chunk::default(),
        })
    }

    /// Begins to write a segment again, with all that can be read of it.
    pub(in crate::namespace) fn again(namespace: &Namespace, id: u32) -> Result<Self, Error> {
        Ok(Self { again: true, ..Self::begin(namespace, vec![id], 0)? })
    }

    /// Copies about so many bytes; says whether all is copied.
    pub(in crate::namespace) fn step(
        &mut self,
        namespace: &mut Namespace,
        budget: u64,
    ) -> Result<bool, Error> {
        let mut done = 0;
        while let Some(id) = self.sources.get(self.source).copied() {
            if done >= budget {
                return Ok(false);
            }
            let Some(position) = namespace.position(id) else {
                return Err(crate::namespace::locate::missing(id));
            };
            let segment = &mut namespace.segments[position];
            if self.group >= segment.group_count() {
                (self.source, self.group) = (self.source + 1, 0);
                continue;
            }
            let keys = namespace.keys.as_ref().ok_or(Error::KeyNeeded)?;
            let mut entries = Vec::new();
            segment.group(&namespace.folders, keys, self.group, &mut entries)?;
            self.group += 1;
            for entry in &entries {
                self.copy(namespace, id, entry)?;
                done += u64::from(entry.record_size(namespace.is_encrypted()));
            }
            self.write_out(namespace, CHUNK_SIZE)?;
        }
        Ok(true)
    }

    /// Copies a record, or notes that it is left out.
    fn copy(&mut self, namespace: &mut Namespace, id: u32, entry: &Entry) -> Result<(), Error> {
        match self.fate(namespace, id, entry)? {
            Fate::Live => {}
            Fate::Kept => {
                self.kept_size += u64::from(entry.record_size(namespace.is_encrypted()));
            }
            Fate::Dropped => {
                self.dropped.push(entry.hash);
                return Ok(());
            }
            Fate::Freed => {
                self.freed.push((entry.hash, id, entry.offset));
                self.out.header.forgotten = self.out.header.forgotten.max(entry.seq);
                return Ok(());
            }
        }
        let from = self.buffer.len();
        let copied = self.put_record(namespace, id, entry);
        let to = match copied {
            Ok(to) => to,
            Err(Error::Damaged { .. }) if self.again => {
                // Its key shall answer that it is damaged: no record is in a header.
                self.buffer.truncate(from);
                self.moved.push(Moved { hash: entry.hash, segment: id, from: entry.offset, to: 0 });
                self.out.damaged = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.moved.push(Moved { hash: entry.hash, segment: id, from: entry.offset, to });
        self.out.pending.push(Entry { offset: to, ..*entry });
        self.out.count += 1;
        self.out.last_seq = entry.seq;
        self.out.end = self.written + self.buffer.len() as u64;
        Ok(())
    }

    fn fate(&mut self, namespace: &mut Namespace, id: u32, entry: &Entry) -> Result<Fate, Error> {
        let live = namespace.index.find_record(entry.hash, id, entry.offset);
        let held = namespace.hold.is_some_and(|hold| entry.seq > hold);
        Ok(match (live, entry.kind) {
            (Some((_, slot)), Kind::Tombstone) if !slot.is_needed() && !held && !self.again => {
                Fate::Freed
            }
            (Some(_), _) => Fate::Live,
            (None, _) if self.again => Fate::Kept,
            (None, Kind::Value) if self.is_history(namespace, id, entry)? => Fate::Kept,
            (None, _) => Fate::Dropped,
        })
    }

    fn is_history(
        &mut self,
        namespace: &mut Namespace,
        id: u32,
        entry: &Entry,
    ) -> Result<bool, Error> {
        let age = match namespace.descriptor.settings.history {
            History::None => return Ok(false),
            History::All => return Ok(true),
            History::Younger(age) => age,
        };
        let bytes = self.chunk.record(namespace, id, entry)?;
        let timestamp = record::Head::parse(bytes).map_or(0, |head| head.timestamp);
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        Ok(timestamp.saturating_add(age) > self.now)
    }

    /// Appends a record's copy to the buffer, and says where it will be.
    fn put_record(
        &mut self,
        namespace: &mut Namespace,
        id: u32,
        entry: &Entry,
    ) -> Result<u32, Error> {
        let offset = self.written + self.buffer.len() as u64;
        let to = u32::try_from(offset).map_err(|_| Error::DiskFull)?;
        let from = self.buffer.len();
        let bytes = self.chunk.record(namespace, id, entry)?;
        self.buffer.extend_from_slice(bytes);
        if self.out.is_encrypted() {
            self.seal_again(namespace, id, entry, from, offset)?;
        } else {
            self.buffer[from + FLAGS_AT] &= !AFTER_SYNC;
        }
        record::finish(&mut self.buffer[from..], self.out.seed, offset);
        Ok(to)
    }

    /// Opens the copy in the buffer and seals it for its new place.
    fn seal_again(
        &mut self,
        namespace: &Namespace,
        id: u32,
        entry: &Entry,
        from: usize,
        offset: u64,
    ) -> Result<(), Error> {
        let resealed = (|| {
            let keys = namespace.keys.as_ref()?;
            let source = namespace.segments.get(namespace.position(id)?)?.header;
            let record = &mut self.buffer[from..];
            let head = record::Head::parse(record)?;
            keys.open(&source, &head, record, entry.offset.into())?;
            self.buffer.truncate(from + head.record_size() - record::TAG_SIZE);
            self.buffer[from + FLAGS_AT] &= !AFTER_SYNC;
            let sealer = keys.sealers.get(&self.out.header.key_id)?;
            let number = self.out.header.number;
            sealer.seal(&mut self.buffer, from, head.head_size(), number, offset)
        })();
        resealed.ok_or_else(|| crate::namespace::locate::damaged(id, entry.offset))
    }

    /// Writes the buffer if it is large enough.
    pub(super) fn write_out(
        &mut self,
        namespace: &Namespace,
        at_least: usize,
    ) -> Result<(), Error> {
        if self.buffer.len() < at_least {
            return Ok(());
        }
        let mut written = write_full(&*self.file, &self.buffer, self.written);
        if written.as_ref().is_err_and(is_full) && namespace.claim.shared.give_reserve_up() {
            written = write_full(&*self.file, &self.buffer, self.written);
        }
        written
            .map_err(|error| if is_full(&error) { Error::DiskFull } else { Error::Write(error) })?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        // The index file may fail: its blocks wait, or are made again from the log.
        let _ = self.out.write_blocks(&namespace.folders, self.written, Rest::Wait);
        Ok(())
    }
}
