//! One namespace: what the server calls for each request, each batch and each second.
//!
//! All methods are synchronous; those that block on a sync say so. A namespace belongs to one
//! thread at a time, and may move between threads.
//!
//! | module | what |
//! |---|---|
//! | `load`, `admit` | from files to an index |
//! | `locate` | from a key to a verified record |
//! | `read` | values, metadata, history |
//! | `warm` | reads of many keys, ahead of their requests |
//! | `scan` | live keys in order |
//! | `write`, `undo` | sets, deletions, and taking them back |
//! | `commit` | batches and syncs |
//! | `segments`, `change` | segments that begin and end, and how that goes on beside writes |
//! | `ticket` | what blocks, for other threads |
//! | `mend` | what happens after a failed sync |
//! | `upkeep` | ticks, scrubbing, closing |
//! | `compact` | replacing segments by smaller ones |
//! | `replicate` | the log as a stream, snapshots |
//! | `manage` | properties, keys, numbers |

mod admit;
mod change;
mod commit;
mod compact;
mod load;
mod locate;
mod manage;
mod mend;
mod read;
mod replicate;
mod scan;
mod segments;
mod ticket;
mod types;
mod undo;
mod upkeep;
mod warm;
mod write;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

pub use ticket::{SyncDone, SyncTicket};
pub use types::{
    Change, Compaction, Direction, Extent, Found, Health, HistoryEntry, LogRecord, Metadata,
    RawRecord, ScanItem, Scanned, Scrub, Stats, Written,
};

use crate::cache::Cache;
use crate::cipher::Keys;
use crate::descriptor::Descriptor;
use crate::index::Index;
use crate::index::slot::segment_id;
use crate::log::segment::{Folders, Segment};
use crate::shared::Claim;
use crate::storage::{File, Storage};
use crate::{Error, MasterKey, SeqNo};

/// Damaged records that are remembered one by one.
const DAMAGE_COUNT_MAX: usize = 4096;

/// A loaded namespace.
///
/// Dropping it writes and syncs what is pending, as well as it can; [`close`](Self::close) says
/// how that went.
#[derive(Debug)]
pub struct Namespace {
    claim: Claim,
    folders: Folders,
    descriptor: Descriptor,
    /// `None` while an encrypted namespace waits for its key; then there are no segments either.
    keys: Option<Keys>,
    master: Option<MasterKey>,
    index: Index,
    /// By id. Only the last may be written.
    segments: Vec<Segment>,
    tail: Option<Tail>,
    numbers: Numbers,
    /// How to undo what was appended since the last write to the file.
    undo: Vec<undo::Undo>,
    mark: undo::Mark,
    sync: commit::SyncState,
    /// Deletions after this number are kept for followers.
    hold: Option<u64>,
    /// Names of segments whose files are open, oldest first.
    open_files: VecDeque<u32>,
    /// Damaged records: names of their segments, and where they are.
    damage: BTreeSet<(u32, u32)>,
    scratch: Vec<u8>,
    cache: Cache,
    /// The step to the next segment, while it is under way.
    change: Option<change::Change>,
    compaction: Option<compact::Rewrite>,
    /// Why the last steps of a rewrite failed, if nobody was told yet.
    compaction_error: Option<Error>,
    scrub: upkeep::ScrubState,
    counters: Counters,
    /// The newest write when the last tick came.
    idle_since: SeqNo,
}

/// What the log amounts to.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    /// The newest write.
    last: u64,
    /// The newest that is in its file.
    written: u64,
    /// The newest that survives a power loss.
    durable: u64,
    next_id: u64,
    entry_count: u64,
    value_size: u64,
    /// Bytes of records that must stay.
    live_size: u64,
    /// Deletions up to this number may be missing.
    forgotten: u64,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    torn_size: u64,
    data_error_count: u64,
    index_error_count: u64,
    sync_count: u64,
    reclaimed_size: u64,
    hole_count: u64,
}

/// The end of the segment that is written.
///
/// ```text
///  file   |=== synced ===|=== written ===|
///  buffer          |=====================|=== appended ===|
///                  start                 written          end
/// ```
#[derive(Debug)]
struct Tail {
    buffer: Vec<u8>,
    start: u64,
    /// Bytes of the buffer that belong to records too large for the cache, about.
    large_size: usize,
    written: u64,
    synced: u64,
    /// Whether it must not be written any more: a write failed and left its traces.
    spoilt: bool,
}

impl Tail {
    fn new(end: u64) -> Self {
        let buffer = Vec::new();
        Self { buffer, start: end, large_size: 0, written: end, synced: end, spoilt: false }
    }

    fn end(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Bytes at an offset, if they are in memory.
    fn bytes(&self, offset: u64, size: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.buffer.get(from..from.checked_add(size)?)
    }
}

impl Namespace {
    /// The keys, if there are any to be had.
    fn keys(&self) -> Result<&Keys, Error> {
        self.keys.as_ref().ok_or(Error::KeyNeeded)
    }

    /// Where a segment is in the list, by its name.
    fn position(&self, name: u32) -> Option<usize> {
        if self.is_last(name) {
            return Some(self.segments.len() - 1);
        }
        let position = self.segments.binary_search_by_key(&segment_id(name), Segment::id).ok()?;
        self.segments.get(position).filter(|segment| segment.name == name).map(|_| position)
    }

    /// Whether this is the name of the newest segment.
    fn is_last(&self, name: u32) -> bool {
        self.segments.last().is_some_and(|last| last.name == name)
    }

    /// A segment by its name: one of the list, or the one that is taking the place of some.
    fn segment(&self, name: u32) -> Option<&Segment> {
        match self.position(name) {
            Some(position) => self.segments.get(position),
            None => self.compaction.as_ref()?.incoming().filter(|segment| segment.name == name),
        }
    }

    fn segment_mut(&mut self, name: u32) -> Option<&mut Segment> {
        match self.position(name) {
            Some(position) => self.segments.get_mut(position),
            None => self.compaction.as_mut()?.incoming_mut().filter(|it| it.name == name),
        }
    }

    /// A segment's file. At most so many are open at once; the one opened first is closed first.
    fn file(&mut self, name: u32) -> Result<Arc<dyn File>, Error> {
        if let Some(file) = self.segment(name).and_then(Segment::open_file) {
            return Ok(Arc::clone(file));
        }
        let position = self.position(name).ok_or_else(|| locate::missing(name))?;
        while self.open_files.len() >= self.claim.shared.options.open_files_max {
            self.close_one_file();
        }
        let mut opened = self.segments[position].file(&self.folders).cloned();
        if opened.is_err() && !self.open_files.is_empty() {
            // The process may be out of descriptors: those of ours that can be spared go.
            while !self.open_files.is_empty() {
                self.close_one_file();
            }
            opened = self.segments[position].file(&self.folders).cloned();
        }
        if opened.is_err() {
            self.counters.data_error_count += 1;
        }
        let file = opened?;
        self.open_files.push_back(name);
        Ok(file)
    }

    fn close_one_file(&mut self) {
        let Some(name) = self.open_files.pop_front() else { return };
        // The tail's file stays open: it is written all the time.
        let is_tail = self.tail.is_some() && self.is_last(name);
        if let Some(segment) = self.segment_mut(name).filter(|it| !is_tail && !it.pinned) {
            segment.close_file();
        }
    }

    /// Remembers damage. The segment is left as it is from now on.
    fn note_damage(&mut self, segment: u32, offset: u32) {
        if self.damage.len() < DAMAGE_COUNT_MAX {
            self.damage.insert((segment, offset));
        }
        if let Some(segment) = self.segment_mut(segment) {
            segment.damaged = true;
        }
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.folders.storage
    }

    /// Whether records are sealed.
    fn is_encrypted(&self) -> bool {
        self.descriptor.encrypted
    }
}

/// A server hands a namespace to the thread that owns it.
const _: fn() = || {
    fn may_move<T: Send>() {}
    may_move::<Namespace>();
    may_move::<SyncTicket>();
    may_move::<SyncDone>();
};
