//! What blocks and needs no namespace while it does: syncs, the step from one segment to the next, the
//! last steps of a compaction.
//!
//! ```text
//!  begin_sync ──> SyncTicket::run (any thread) ──> finish_sync
//!                  Tail         fdatasync of the segment that is written
//!                  Change       the full segment synced, the next one made
//!                  Copying      a part of segments that are rewritten, copied
//!                  Publication  a rewritten segment synced, and in the old ones' place
//!                  Indexes      index files of segments that have ended, synced
//! ```
//!
//! Of the first two one is under way at a time, so that a failure is about known bytes; the others
//! run beside them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Namespace;
use super::change::{ChangeDone, ChangeWork};
use super::compact::{Copying, CopyingDone, Publication, PublicationDone};
use crate::CommitFailed;
use crate::log::segment::Folders;
use crate::storage::File;

/// Something that blocks, to be done: a sync, mostly.
#[derive(Debug)]
pub struct SyncTicket(pub(super) Work);

/// What was done, or failed; to be given to [`Namespace::finish_sync`].
#[derive(Debug)]
pub struct SyncDone(pub(super) Done);

#[derive(Debug)]
pub(super) enum Work {
    Tail(TailSync),
    Change(Box<ChangeWork>),
    Copying(Copying),
    Publication(Publication),
    Indexes(IndexFiles),
}

#[derive(Debug)]
pub(super) enum Done {
    Tail(TailSync, io::Result<()>),
    Change(ChangeDone),
    Copying(CopyingDone),
    Publication(PublicationDone),
    Indexes(IndexFiles, io::Result<()>),
}

/// A sync of the segment that is written.
#[derive(Debug)]
pub(super) struct TailSync {
    pub(super) file: Arc<dyn File>,
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) seq: u64,
    pub(super) now: Duration,
}

/// Index files that are complete and not durable yet, and whose they are.
#[derive(Debug)]
pub(super) struct IndexFiles {
    pub(super) files: Vec<(u32, Arc<dyn File>)>,
    pub(super) folders: Folders,
}

impl SyncTicket {
    /// Whether clients wait for it. Others may take their time, and should not take a thread from
    /// those.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        matches!(self.0, Work::Tail(_) | Work::Change(_))
    }

    /// Whether it is a sync, or ends with one.
    #[must_use]
    pub fn syncs(&self) -> bool {
        !matches!(self.0, Work::Copying(_))
    }

    /// Does it. Blocks; may run on any thread.
    #[must_use]
    pub fn run(self) -> SyncDone {
        SyncDone(match self.0 {
            Work::Tail(sync) => {
                let result = sync.file.sync();
                Done::Tail(sync, result)
            }
            Work::Change(work) => Done::Change(work.run()),
            Work::Copying(copying) => Done::Copying(copying.run()),
            Work::Publication(publication) => Done::Publication(publication.run()),
            Work::Indexes(index) => {
                let result = index.sync();
                Done::Indexes(index, result)
            }
        })
    }
}

impl IndexFiles {
    pub(super) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|(_, file)| file.sync())?;
        self.folders.storage.sync_folder(&self.folders.index)
    }
}

/// Handing out what blocks.
impl Namespace {
    /// What must be done now and would block: a sync of written bytes at level group, at level
    /// interval when it is time, at level none when very many wait; and what segments and compaction
    /// need when [`Options::defers`](crate::Options::defers). `None` if nothing must, or it is under
    /// way. To be called until there is nothing more. `now` is any monotonic clock.
    pub fn begin_sync(&mut self, now: Duration) -> Option<SyncTicket> {
        if let Some(work) = self.take_change() {
            return Some(SyncTicket(Work::Change(work)));
        }
        if self.wants_tail_sync(now)
            && let Some(sync) = self.tail_sync(now)
        {
            return Some(SyncTicket(Work::Tail(sync)));
        }
        if let Some(copying) = self.take_copying() {
            return Some(SyncTicket(Work::Copying(copying)));
        }
        if let Some(publication) = self.take_publication() {
            return Some(SyncTicket(Work::Publication(publication)));
        }
        let files = std::mem::take(&mut self.sync.index_files);
        if files.is_empty() {
            return None;
        }
        let folders = self.folders.clone();
        Some(SyncTicket(Work::Indexes(IndexFiles { files, folders })))
    }

    /// Whether [`begin_sync`](Self::begin_sync) would give something.
    #[must_use]
    pub fn wants_sync(&self, now: Duration) -> bool {
        self.has_change_to_take()
            || self.wants_tail_sync(now)
            || self.has_rewrite_to_take()
            || !self.sync.index_files.is_empty()
    }

    /// Whether something is under way that others must not disturb: while a segment is changed, copied
    /// or replaced, only reads, sets and deletions are for this namespace. Everything else waits until a
    /// ticket that is out comes back to [`finish_sync`](Self::finish_sync).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.change.is_some() || self.is_copying_beside() || self.is_publishing()
    }

    /// Takes what was done, after which [`acknowledged`](Self::acknowledged) may have risen.
    ///
    /// # Errors
    ///
    /// [`Error::Sync`](crate::Error::Sync): writes that wait for a reply must hear of it. What was
    /// written stays visible; the engine writes it again to a new file, and refuses new writes until
    /// that succeeded. Others, as [`flush`](Self::flush): writes were undone because there is no
    /// segment for them.
    pub fn finish_sync(&mut self, done: SyncDone) -> Result<(), CommitFailed> {
        match done.0 {
            Done::Tail(sync, result) => self.finish_tail_sync(&sync, result),
            Done::Change(done) => self.finish_change(done),
            Done::Copying(done) => {
                self.finish_copying(done);
                Ok(())
            }
            Done::Publication(done) => {
                self.finish_publication(done);
                Ok(())
            }
            Done::Indexes(index, result) => {
                if result.is_err() {
                    self.counters.index_error_count += 1;
                    for (name, _) in &index.files {
                        if let Some(segment) = self.segment_mut(*name) {
                            segment.unseal();
                        }
                    }
                }
                Ok(())
            }
        }
    }
}
