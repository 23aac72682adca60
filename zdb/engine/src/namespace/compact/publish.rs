//! The last steps of a rewrite: the new file becomes durable and takes the old ones' place, then the
//! index points to it.
//!
//! What blocks needs no namespace, so another thread may do it. Until the index points to the new file
//! the old ones, which have lost their names, are read through handles that stay open.

use std::io;

use super::Rewrite;
use super::run::Run;
use crate::index::slot::Slot;
use crate::log::header::Part;
use crate::log::segment::{Folders, write_error};
use crate::namespace::Namespace;
use crate::storage::write_full;
use crate::{Error, History};

/// How a rewrite ended: the new file is in use.
pub(in crate::namespace) struct Finished {
    /// Bytes freed.
    pub(super) size: u64,
    /// Whether a crash can't bring the old files back.
    pub(in crate::namespace) durable: bool,
}

/// How files changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    /// Whether there is a new file: not if nothing was left to keep.
    replaced: bool,
    /// Whether a crash can't bring the old files back.
    durable: bool,
}

/// The last steps, for another thread.
#[derive(Debug)]
pub(in crate::namespace) struct Publication {
    run: Run,
    folders: Folders,
}

/// The last steps, done.
#[derive(Debug)]
pub(in crate::namespace) struct PublicationDone {
    run: Run,
    published: Result<Published, Error>,
}

impl Publication {
    pub(in crate::namespace) fn run(mut self) -> PublicationDone {
        let published = self.run.publish(&self.folders);
        if published.is_err() {
            self.folders.remove_half_compacted();
        }
        PublicationDone { run: self.run, published }
    }
}

impl Run {
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
        let published = self.publish(&namespace.folders)?;
        Ok(self.conclude(namespace, published))
    }

    /// The files: durable, renamed, the others gone.
    fn publish(&mut self, folders: &Folders) -> Result<Published, Error> {
        // By hash, which is how the index lies in memory.
        self.moved.sort_unstable_by_key(|moved| moved.hash);
        self.dropped.sort_unstable();
        let nothing_left =
            self.out.count == 0 && !self.again && !self.out.header.clears && self.freed.is_empty();
        if !nothing_left {
            return Ok(Published { replaced: true, durable: self.replace_files(folders)? });
        }
        let _ = folders.storage.remove(&folders.compacted_data_file());
        folders.forget_index_files(&self.sources);
        self.sources.iter().for_each(|id| folders.remove_segment(*id));
        let durable = folders.storage.sync_folder(&folders.data).is_ok();
        Ok(Published { replaced: false, durable })
    }

    /// Says whether all of it will survive a crash.
    fn replace_files(&mut self, folders: &Folders) -> Result<bool, Error> {
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
        if durable {
            self.sources.iter().skip(1).for_each(|id| folders.remove_segment(*id));
        }
        Ok(durable)
    }

    /// The index and the list of segments.
    fn conclude(mut self, namespace: &mut Namespace, published: Published) -> Finished {
        let Published { replaced, durable } = published;
        let positions = self.sources.iter().filter_map(|id| namespace.position(*id));
        let old_size: u64 = positions.map(|position| namespace.segments[position].end).sum();
        let new_size = if replaced { self.out.end } else { 0 };
        self.out.dirty = true;
        self.out.kept = match namespace.descriptor.settings.history {
            _ if self.again => (0, 0),
            History::Younger(age) => {
                let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
                (self.kept_size, self.now.saturating_add(age / 2 + 1))
            }
            _ => (self.kept_size, u32::MAX),
        };
        let size = old_size.saturating_sub(new_size);
        namespace.counters.reclaimed_size += size;
        self.switch(namespace, published);
        Finished { size, durable }
    }

    /// What a failed batch would bring back is at its new place, or gone if it was a deletion that hid
    /// nothing.
    fn move_undo(&self, namespace: &mut Namespace) {
        for undo in &mut namespace.undo {
            let Some(old) = undo.old.filter(|old| self.sources.contains(&old.segment())) else {
                continue;
            };
            let first = self.moved.partition_point(|moved| moved.hash < undo.hash);
            let mut same = self.moved.iter().skip(first).take_while(|it| it.hash == undo.hash);
            let moved = same.find(|it| it.segment == old.segment() && it.from == old.offset);
            undo.old = moved.map(|moved| old.moved(self.out.id(), moved.to));
        }
    }

    fn switch(self, namespace: &mut Namespace, Published { replaced, durable }: Published) {
        self.move_undo(namespace);
        let id = self.out.id();
        let forgotten = self.out.header.forgotten;
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
    pub(in crate::namespace) fn is_publishing(&self) -> bool {
        matches!(self.compaction, Some(Rewrite::Publishing))
    }

    /// Whether a rewrite waits for writes to be durable: those that superseded what it leaves out.
    pub(in crate::namespace) fn waits_for_durable(&self) -> bool {
        matches!(self.compaction, Some(Rewrite::Copied { needed, .. }) if needed > self.numbers.durable)
    }

    pub(in crate::namespace) fn has_publication_to_take(&self) -> bool {
        matches!(self.compaction, Some(Rewrite::Copied { .. }))
            && !self.waits_for_durable()
            && self.sync.suspects.is_empty()
    }

    pub(in crate::namespace) fn take_publication(&mut self) -> Option<Box<Publication>> {
        if !self.has_publication_to_take() {
            return None;
        }
        let Some(Rewrite::Copied { run, .. }) = self.compaction.take() else { return None };
        if let Err(error) = self.pin(&run.sources) {
            self.unpin(&run.sources);
            self.folders.remove_half_compacted();
            self.compaction_error = Some(error);
            return None;
        }
        self.compaction = Some(Rewrite::Publishing);
        Some(Box::new(Publication { run: *run, folders: self.folders.clone() }))
    }

    pub(in crate::namespace) fn finish_publication(&mut self, done: PublicationDone) {
        let PublicationDone { run, published } = done;
        self.compaction = None;
        match published {
            Ok(published) => {
                run.conclude(self, published);
            }
            Err(error) => {
                self.unpin(&run.sources);
                self.compaction_error = Some(error);
            }
        }
    }

    /// Gives up a rewrite that nobody publishes yet.
    pub(in crate::namespace) fn give_rewrite_up(&mut self) {
        if self.compaction.is_some() && !self.is_publishing() {
            self.compaction = None;
            self.folders.remove_half_compacted();
        }
    }

    /// Opens files that are about to lose their names, and keeps them open.
    fn pin(&mut self, ids: &[u32]) -> Result<(), Error> {
        for id in ids {
            self.file(*id)?;
            if let Some(segment) = self.segment_mut(*id) {
                segment.pinned = true;
            }
        }
        Ok(())
    }

    fn unpin(&mut self, ids: &[u32]) {
        for id in ids {
            let Some(segment) = self.segment_mut(*id) else { continue };
            let is_open = std::mem::take(&mut segment.pinned) && segment.open_file().is_some();
            if is_open && !self.open_files.contains(id) {
                self.open_files.push_back(*id);
            }
        }
    }

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
