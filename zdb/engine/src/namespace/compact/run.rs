//! One rewrite: some neighbouring segments become one, step by step.

use std::io;
use std::sync::Arc;

use super::chunk::{CHUNK_SIZE, Chunk};
use crate::index::slot::Slot;
use crate::log::block::Entry;
use crate::log::header::{HEADER_SIZE, Header, Part};
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
    sources: Vec<u32>,
    /// Whether everything is kept, and what can't be read passed over.
    again: bool,
    /// Against which history's age is measured.
    now: u32,
    source: usize,
    group: usize,
    file: Arc<dyn File>,
    out: Segment,
    /// What was not written to the new file yet, and where it goes.
    buffer: Vec<u8>,
    written: u64,
    moved: Vec<Moved>,
    /// Hashes of superseded records that are left out.
    dropped: Vec<u64>,
    /// Deletions that hide nothing and are left out: hash, segment, offset.
    freed: Vec<(u64, u32, u32)>,
    kept_size: u64,
    chunk: Chunk,
}

/// A record's old and new place.
#[derive(Clone, Copy, Debug)]
struct Moved {
    hash: u64,
    segment: u32,
    from: u32,
    to: u32,
}

/// How a rewrite ended: the new file is in use.
pub(in crate::namespace) struct Finished {
    /// Bytes freed.
    pub(super) size: u64,
    /// Whether a crash can't bring the old files back.
    pub(in crate::namespace) durable: bool,
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
    fn write_out(&mut self, namespace: &Namespace, at_least: usize) -> Result<(), Error> {
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

    /// Makes the new file durable, lets it take the old ones' place, and tells the index.
    pub(in crate::namespace) fn finish(
        mut self,
        namespace: &mut Namespace,
    ) -> Result<Finished, Error> {
        // What superseded the records left out must be durable before they are gone.
        namespace.flush_amid_batch()?;
        if !self.again {
            // Mending would use the files that this run is writing, so it comes later.
            if !namespace.sync.suspects.is_empty() {
                return Err(Error::Sync(io::Error::other("a segment must be written again first")));
            }
            namespace.sync().map_err(|failed| failed.source)?;
        }
        self.write_out(namespace, 1)?;
        let old_size = self.old_size(namespace);
        let nothing_left =
            self.out.count == 0 && !self.again && !self.out.header.clears && self.freed.is_empty();
        if nothing_left {
            let _ = namespace.folders.storage.remove(&namespace.folders.compacted_data_file());
            namespace.forget_index_files(&self.sources);
            for id in &self.sources {
                namespace.remove_files(*id);
            }
            let durable = namespace.folders.storage.sync_folder(&namespace.folders.data).is_ok();
            self.switch(namespace, false, durable);
            namespace.counters.reclaimed_size += old_size;
            return Ok(Finished { size: old_size, durable });
        }
        let durable = self.publish(namespace)?;
        let new_size = self.out.end;
        self.switch(namespace, true, durable);
        let size = old_size.saturating_sub(new_size);
        namespace.counters.reclaimed_size += size;
        Ok(Finished { size, durable })
    }

    fn old_size(&self, namespace: &Namespace) -> u64 {
        let positions = self.sources.iter().filter_map(|id| namespace.position(*id));
        positions.map(|position| namespace.segments[position].end).sum()
    }

    /// The files: durable, renamed, the others gone. Says whether all of that will survive a crash.
    fn publish(&mut self, namespace: &Namespace) -> Result<bool, Error> {
        let folders = &namespace.folders;
        let id = self.out.id();
        let published = (|| {
            write_full(&*self.file, &self.out.header.to_bytes(Part::Data), 0)?;
            self.file.sync()?;
            // An index file that is not complete is completed later.
            let _ = self.out.seal(folders);
            folders.storage.rename(&folders.compacted_data_file(), &folders.data_file(id))
        })();
        published.map_err(|error| write_error(error, &folders.data))?;
        // The new file has its name, and must be used from here on. If the name is not durable a
        // crash brings the old files back, which hold the same; so they stay.
        let durable = folders.storage.sync_folder(&folders.data).is_ok();
        let renamed = folders.storage.rename(&folders.new_index_file(), &folders.index_file(id));
        self.out.index_is_new = false;
        if renamed.is_err() {
            self.out.forget_index();
        }
        let _ = folders.storage.sync_folder(&folders.index);
        for id in self.sources.iter().skip(1).filter(|_| durable) {
            namespace.remove_files(*id);
        }
        Ok(durable)
    }

    /// The index and the list of segments. `replaced`: a new file took the old ones' place;
    /// `durable`: they can't come back.
    fn switch(mut self, namespace: &mut Namespace, replaced: bool, durable: bool) {
        let id = self.out.id();
        let forgotten = self.out.header.forgotten;
        self.out.dirty = true;
        if self.again {
            self.out.kept = (0, 0);
        } else if let History::Younger(age) = namespace.descriptor.settings.history {
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            self.out.kept = (self.kept_size, self.now.saturating_add(age / 2 + 1));
        } else {
            self.out.kept = (self.kept_size, u32::MAX);
        }
        let first = namespace.position(self.sources.first().copied().unwrap_or(id)).unwrap_or(0);
        for source in &self.sources {
            if let Some(position) = namespace.position(*source) {
                let gone = namespace.segments.remove(position);
                namespace.numbers.live_size =
                    namespace.numbers.live_size.saturating_sub(gone.live_size);
            }
            namespace.damage.retain(|(segment, _)| segment != source);
            namespace.open_files.retain(|open| open != source);
        }
        if replaced {
            namespace.segments.insert(first.min(namespace.segments.len()), self.out);
            namespace.open_files.push_back(id);
        }
        // By hash, which is how the index lies in memory.
        self.moved.sort_unstable_by_key(|moved| moved.hash);
        self.dropped.sort_unstable();
        let mut live_size = 0;
        for moved in &self.moved {
            let found = namespace.index.find_record(moved.hash, moved.segment, moved.from);
            let Some((at, slot)) = found else { continue };
            let slot = slot.moved(id, moved.to);
            namespace.index.replace(at, slot);
            if slot.is_needed() {
                live_size += namespace.record_size(&slot) as u64;
            }
        }
        namespace.add_live(id, live_size);
        for (hash, segment, offset) in &self.freed {
            let found = namespace.index.find_record(*hash, *segment, *offset);
            if let Some((at, _)) = found.filter(|(_, slot)| slot.is_tombstone()) {
                namespace.index.remove(at);
            }
        }
        if durable {
            self.dropped.iter().for_each(|hash| namespace.forget_older(*hash));
        }
        namespace.numbers.forgotten = namespace.numbers.forgotten.max(forgotten);
    }
}

impl Namespace {
    /// One older record of the key with this hash is gone. If several keys have the hash, nobody
    /// knows whose it was, and their deletions stay until the next start.
    fn forget_older(&mut self, hash: u64) {
        let Some((at, slot)) = self.index.find(hash, None) else { return };
        if self.index.find(hash, Some(at)).is_some() {
            return;
        }
        let fewer: Slot = slot.with_one_older_less();
        self.index.replace(at, fewer);
        if slot.is_needed() && !fewer.is_needed() {
            self.take_live(slot.segment(), self.record_size(&slot) as u64);
        }
    }
}
