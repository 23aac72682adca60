//! The last steps with files: the new one becomes durable and takes the old ones' place, after which the
//! index is [told](super::switch).
//!
//! What blocks needs no namespace, so another thread may do it. Until the index points to the new file
//! the old ones, which have lost their names, are read through handles that stay open.

use std::io;

use super::Rewrite;
use super::run::Run;
use super::switch::Finished;
use crate::Error;
use crate::index::slot::segment_id;
use crate::log::header::Part;
use crate::log::segment::write_error;
use crate::namespace::Namespace;
use crate::storage::write_full;

/// How files changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    /// Whether there is a new file: not if nothing was left to keep.
    pub(super) replaced: bool,
    /// Whether a crash can't bring the old files back.
    pub(super) durable: bool,
}

/// A turn of a rewrite, for another thread.
#[derive(Debug)]
pub(in crate::namespace) struct Copying(Box<Run>);

/// The turn, done; whether it was the last.
#[derive(Debug)]
pub(in crate::namespace) struct CopyingDone(Box<Run>, Result<bool, Error>);

/// The last steps, for another thread.
#[derive(Debug)]
pub(in crate::namespace) struct Publication(Box<Run>);

/// The last steps, done.
#[derive(Debug)]
pub(in crate::namespace) struct PublicationDone(Box<Run>, Result<Published, Error>);

impl Copying {
    pub(in crate::namespace) fn run(mut self) -> CopyingDone {
        let copied = self.0.turn();
        CopyingDone(self.0, copied)
    }
}

impl Publication {
    pub(in crate::namespace) fn run(mut self) -> PublicationDone {
        let published = self.0.publish();
        if published.is_err() {
            self.0.folders.remove_half_compacted();
        }
        PublicationDone(self.0, published)
    }
}

impl Run {
    /// Makes the new file durable, lets it take the old ones' place, and tells the index. All of it is
    /// copied.
    pub(super) fn finish(
        mut self: Box<Self>,
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
        let published = self.publish()?;
        namespace.begin_switch(*self, published);
        Ok(namespace.finish_switch().unwrap_or_default())
    }

    /// The files: durable, renamed, the others gone.
    fn publish(&mut self) -> Result<Published, Error> {
        // By hash, which is how the index lies in memory.
        self.moved.sort_unstable_by_key(|moved| moved.hash);
        self.dropped.sort_unstable();
        let nothing_left =
            self.out.count == 0 && !self.again && !self.out.header.clears && self.freed.is_empty();
        if !nothing_left {
            return Ok(Published { replaced: true, durable: self.replace_files()? });
        }
        let _ = self.folders.storage.remove(&self.folders.compacted_data_file());
        let ids: Vec<u32> = self.names().map(segment_id).collect();
        self.folders.forget_index_files(&ids);
        ids.iter().for_each(|id| self.folders.remove_segment(*id));
        let durable = self.folders.storage.sync_folder(&self.folders.data).is_ok();
        Ok(Published { replaced: false, durable })
    }

    /// Says whether all of it will survive a crash.
    fn replace_files(&mut self) -> Result<bool, Error> {
        let folders = &self.folders;
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
            let others = self.sources.iter().skip(1);
            others.for_each(|source| folders.remove_segment(source.segment.id()));
        }
        Ok(durable)
    }
}

/// What other threads do of a rewrite.
impl Namespace {
    pub(in crate::namespace) fn is_publishing(&self) -> bool {
        matches!(self.compaction, Some(Rewrite::Publishing))
    }

    /// Whether another thread copies.
    pub(in crate::namespace) fn is_copying_beside(&self) -> bool {
        matches!(self.compaction, Some(Rewrite::Beside { .. }))
    }

    /// Whether a rewrite waits for writes to be durable: those that superseded what it leaves out.
    pub(in crate::namespace) fn waits_for_durable(&self) -> bool {
        matches!(self.compaction, Some(Rewrite::Copied { needed, .. }) if needed > self.numbers.durable)
    }

    /// Whether another thread shall go on with a rewrite.
    pub(in crate::namespace) fn has_rewrite_to_take(&self) -> bool {
        match &self.compaction {
            Some(Rewrite::Copying(run)) => run.is_due,
            Some(Rewrite::Copied { .. }) => {
                !self.waits_for_durable() && self.sync.suspects.is_empty()
            }
            _ => false,
        }
    }

    pub(in crate::namespace) fn take_copying(&mut self) -> Option<Copying> {
        let Some(Rewrite::Copying(run)) = &mut self.compaction else { return None };
        if !std::mem::take(&mut run.is_due) {
            return None;
        }
        let beside = Rewrite::Beside { given_up: false };
        match self.compaction.replace(beside) {
            Some(Rewrite::Copying(run)) => Some(Copying(run)),
            other => {
                self.compaction = other;
                None
            }
        }
    }

    pub(in crate::namespace) fn finish_copying(&mut self, done: CopyingDone) {
        let CopyingDone(run, copied) = done;
        let Some(Rewrite::Beside { given_up }) = self.compaction.take() else { return };
        match copied {
            _ if given_up => self.folders.remove_half_compacted(),
            Ok(true) => {
                self.compaction = Some(Rewrite::Copied { run, needed: self.numbers.last });
            }
            Ok(false) => self.compaction = Some(Rewrite::Copying(run)),
            Err(error) => self.compaction_error = Some(self.give_run_up(&run, error)),
        }
    }

    pub(in crate::namespace) fn take_publication(&mut self) -> Option<Publication> {
        if !self.has_rewrite_to_take() {
            return None;
        }
        let run = match self.compaction.take() {
            Some(Rewrite::Copied { run, .. }) => run,
            other => {
                self.compaction = other;
                return None;
            }
        };
        let names: Vec<u32> = run.names().collect();
        if let Err(error) = self.pin(&names) {
            self.unpin(&names);
            self.folders.remove_half_compacted();
            self.compaction_error = Some(error);
            return None;
        }
        self.compaction = Some(Rewrite::Publishing);
        Some(Publication(run))
    }

    pub(in crate::namespace) fn finish_publication(&mut self, done: PublicationDone) {
        let PublicationDone(run, published) = done;
        self.compaction = None;
        match published {
            Ok(published) => self.begin_switch(*run, published),
            Err(error) => {
                let names: Vec<u32> = run.names().collect();
                self.unpin(&names);
                self.compaction_error = Some(error);
            }
        }
    }

    /// Gives up a rewrite that nobody publishes yet.
    pub(in crate::namespace) fn give_rewrite_up(&mut self) {
        match &mut self.compaction {
            Some(Rewrite::Copying(_) | Rewrite::Copied { .. }) => {
                self.compaction = None;
                self.folders.remove_half_compacted();
            }
            Some(Rewrite::Beside { given_up }) => *given_up = true,
            Some(Rewrite::Publishing | Rewrite::Switching(_)) | None => {}
        }
    }

    /// Ends a rewrite that failed while it was copied, and counts why.
    pub(super) fn give_run_up(&mut self, run: &Run, error: Error) -> Error {
        match &error {
            Error::Damaged { segment, offset, .. } => {
                let name = run.names().find(|name| segment_id(*name) == *segment);
                if let (Some(name), Ok(offset)) = (name, u32::try_from(*offset)) {
                    self.note_damage(name, offset);
                }
            }
            Error::Read(_) => self.counters.data_error_count += 1,
            _ => {}
        }
        // On a full disk every byte counts.
        self.folders.remove_half_compacted();
        error
    }

    /// Opens files that are about to lose their names, and keeps them open.
    fn pin(&mut self, names: &[u32]) -> Result<(), Error> {
        for name in names {
            self.file(*name)?;
            if let Some(segment) = self.segment_mut(*name) {
                segment.pinned = true;
            }
        }
        Ok(())
    }

    fn unpin(&mut self, names: &[u32]) {
        for name in names {
            let Some(segment) = self.segment_mut(*name) else { continue };
            let is_open = std::mem::take(&mut segment.pinned) && segment.open_file().is_some();
            if is_open && !self.open_files.contains(name) {
                self.open_files.push_back(*name);
            }
        }
    }
}
