//! From one segment to the next while writes go on.
//!
//! ```text
//!           d3 is full                   d3 synced, d4 made
//!  set ──────> begin_change ── ChangeWork::run (any thread) ──> finish_change ── flush ──> d4
//!                  │                                                 │
//!                  └── what is set meanwhile stands in memory, ──────┘
//!                      readable at once, acknowledged later
//! ```
//!
//! The order on the disk is the one that [`segments`](super::segments) keeps: the old segment is
//! durable before there is a new one. If either fails, what stands in memory is undone, and its
//! clients hear of it.

use std::io;
use std::sync::Arc;

use super::Namespace;
use crate::log::header::Header;
use crate::log::segment::{Folders, Segment};
use crate::shared::Shared;
use crate::storage::File;
use crate::{CommitFailed, Error, SeqNo};

/// A change that is under way, or waits for a thread.
#[derive(Debug)]
pub(super) struct Change {
    /// The newest write of the segment that ends.
    seq: u64,
    /// That segment's name; `None` for a namespace's first segment.
    ended: Option<u32>,
    /// What is to be done; `None` once somebody does it.
    work: Option<Box<ChangeWork>>,
}

/// What blocks.
#[derive(Debug)]
pub(super) struct ChangeWork {
    shared: Arc<Shared>,
    folders: Folders,
    /// The file of the segment that ends.
    file: Option<Arc<dyn File>>,
    /// Where it ends, if a failed write left something behind.
    cut: Option<u64>,
    header: Header,
}

/// How it went.
#[derive(Debug)]
pub(super) enum ChangeDone {
    /// The segment that ends is not durable, and there is no other.
    Unsynced(io::Error),
    /// It is durable, and this is the next one's file.
    Synced(Result<Arc<dyn File>, Error>),
}

impl ChangeWork {
    pub(super) fn run(&self) -> ChangeDone {
        if let Some(file) = &self.file {
            if let Some(size) = self.cut {
                // The index file's seal says where the end is, too.
                let _ = file.set_size(size);
            }
            if let Err(error) = file.sync() {
                return ChangeDone::Unsynced(error);
            }
        }
        let created = match Segment::create(&self.folders, self.header) {
            // On a full disk the reserve makes room for it.
            Err(Error::DiskFull) if self.shared.give_reserve_up() => {
                Segment::create(&self.folders, self.header)
            }
            created => created,
        };
        ChangeDone::Synced(created.and_then(Segment::into_file))
    }
}

impl Namespace {
    /// Begins a segment for the next writes, in memory, and ends the one before. Everything appended
    /// is in its file.
    pub(super) fn begin_change(&mut self) -> Result<(), Error> {
        let header = self.new_header(false)?;
        let (mut ended, mut file, mut cut) = (None, None, None);
        if let (Some(tail), Some(segment)) = (&self.tail, self.segments.last_mut()) {
            file = Some(Arc::clone(segment.file(&self.folders)?));
            cut = tail.spoilt.then_some(tail.written);
            ended = Some(segment.name);
        }
        if let Some(name) = ended.filter(|name| !self.open_files.contains(name)) {
            self.open_files.push_back(name);
        }
        let shared = Arc::clone(&self.claim.shared);
        let work = ChangeWork { shared, folders: self.folders.clone(), file, cut, header };
        self.change = Some(Change { seq: self.numbers.last, ended, work: Some(Box::new(work)) });
        self.adopt(Segment::coming(header));
        Ok(())
    }

    /// Whether a change waits for a thread.
    pub(super) fn has_change_to_take(&self) -> bool {
        let waits = self.change.as_ref().is_some_and(|change| change.work.is_some());
        waits && !self.sync.in_flight
    }

    pub(super) fn take_change(&mut self) -> Option<Box<ChangeWork>> {
        if self.sync.in_flight {
            return None;
        }
        let work = self.change.as_mut()?.work.take()?;
        self.sync.in_flight = true;
        Some(work)
    }

    /// Ends a change here and now, for those who may block.
    pub(super) fn settle_change(&mut self) -> Result<(), CommitFailed> {
        let Some(change) = &mut self.change else { return Ok(()) };
        let Some(work) = change.work.take() else {
            return Err(CommitFailed { from: SeqNo(change.seq + 1), source: Error::Busy });
        };
        self.finish_change(work.run())
    }

    pub(super) fn finish_change(&mut self, done: ChangeDone) -> Result<(), CommitFailed> {
        self.sync.in_flight = false;
        let Some(change) = self.change.take() else { return Ok(()) };
        match done {
            ChangeDone::Unsynced(error) => {
                self.counters.data_error_count += 1;
                self.sync.suspects.extend(change.ended);
                let from = SeqNo(self.numbers.durable + 1);
                let source = Error::Sync(error);
                self.abandon(&change, &source);
                Err(CommitFailed { from, source })
            }
            ChangeDone::Synced(created) => {
                self.note_ended(&change);
                match created {
                    Ok(file) => {
                        if let Some(segment) = self.segments.last_mut() {
                            segment.give_file(file);
                        }
                        self.flush()
                    }
                    Err(source) => {
                        self.abandon(&change, &source);
                        // Whoever's writes were undone hears of it; without any, nobody.
                        self.flush()
                    }
                }
            }
        }
    }

    /// A sync of the segment that ends has failed before its change was begun.
    pub(super) fn abandon_change(&mut self, source: &Error) {
        if let Some(change) = self.change.take() {
            self.abandon(&change, source);
        }
    }

    /// Undoes what was appended to a segment that will not be. The server hears of it with the batch.
    fn abandon(&mut self, change: &Change, source: &Error) {
        if self.numbers.last > change.seq {
            // To their clients it is no sync that failed: they are gone.
            let source = match super::commit::again(source) {
                Error::Sync(error) | Error::File { source: error, .. } => Error::Write(error),
                other => other,
            };
            self.sync.failed = Some(CommitFailed { from: SeqNo(change.seq + 1), source });
        }
        self.roll_back();
        self.segments.pop();
        self.tail = None;
        self.set_mark();
    }

    /// A segment has ended, and is durable.
    fn note_ended(&mut self, change: &Change) {
        let Some(name) = change.ended else { return };
        self.counters.sync_count += 1;
        if self.sync.suspects.is_empty() {
            self.numbers.durable = self.numbers.durable.max(change.seq);
        }
        let Some(position) = self.position(name) else { return };
        match self.segments[position].seal_unsynced(&self.folders) {
            Ok(file) => self.sync.index_files.extend(file.map(|file| (name, file))),
            // The next tick tries again.
            Err(_) => self.counters.index_error_count += 1,
        }
    }
}
