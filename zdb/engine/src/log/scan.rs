//! Records found in a segment's bytes when no index block tells of them: at a start, the tail; after
//! index files were lost, everything.
//!
//! ```text
//!   ok ok ok ok [broken] ok ok* ok [broken] ok [broken: the end]
//!   └ whole ──┘          └──────┘           └─ after the last proof: cut
//!                           │
//!                           * says "everything before me was durable"
//! ```
//!
//! A broken place is damage if something proves that it was once whole: a later record with *after
//! sync*, or that the segment was sealed. Then what follows it is kept. Otherwise it is where a
//! crash tore the tail, and what follows was never durable. Finding the next record behind a broken
//! place tries every byte; a checksum decides, and a bound on the bytes that checksums may cover
//! keeps hostile contents from making this slow.

use super::block::Entry;
use super::header::{HEADER_SIZE, Header};
use super::record::{self, HEAD_SIZE, HEAD_SIZE_MAX, Head};
use crate::Error;
use crate::cipher::Keys;
use crate::storage::{File, read_full};

/// Bytes read at once.
const CHUNK_SIZE: usize = 1024 * 1024;
/// How many bytes checksums may cover while looking for a next record, per byte of the segment.
const RESYNC_FACTOR: u64 = 8;
/// A tail's numbers go on from those before; no batch is larger.
const SEQ_STEP_MAX: u64 = 1 << 32;

/// What to look for, and where.
pub(crate) struct Task<'a> {
    pub(crate) file: &'a dyn File,
    pub(crate) header: &'a Header,
    pub(crate) keys: &'a Keys,
    /// Where to start.
    pub(crate) from: u64,
    /// Where to end.
    pub(crate) size: u64,
    /// The largest number before `from`.
    pub(crate) before: u64,
    /// The numbers of the next segment are larger than this; `None`: there is no next one.
    pub(crate) bound: Option<u64>,
    /// Whether all of this is known to have been durable once.
    pub(crate) proven: bool,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Whole records, in order.
    pub(crate) entries: Vec<Entry>,
    /// Offset after the last.
    pub(crate) end: u64,
    /// Broken places that were whole once.
    pub(crate) hole_count: u64,
}

/// Scans.
pub(crate) fn scan(task: &Task<'_>) -> Result<Found, Error> {
    let mut window = Window::new(task.file, task.size);
    let mut found = Found { end: task.from, ..Found::default() };
    let (mut offset, mut seq) = (task.from, task.before);
    // Records and holes since the last proof, if there is a hole among them.
    let mut doubtful: Option<(usize, u64)> = None;
    let mut work = RESYNC_FACTOR * task.size;
    loop {
        let mut unbounded = u64::MAX;
        let here = record_at(task, &mut window, offset, seq, &mut unbounded)?;
        if let Some((entry, after_sync)) = here {
            if after_sync && let Some((_, holes)) = doubtful.take() {
                found.hole_count += holes;
            }
            offset += u64::from(entry.record_size(task.header.key_id != 0));
            seq = entry.seq;
            found.entries.push(entry);
            if doubtful.is_none() {
                found.end = offset;
            }
            continue;
        }
        let next = next_record(task, &mut window, offset + 1, seq, &mut work)?;
        if task.proven {
            found.hole_count += u64::from(offset < task.size);
        } else if next.is_some() {
            let (_, holes) = doubtful.get_or_insert((found.entries.len(), 0));
            *holes += 1;
        }
        match next {
            Some(place) => offset = place,
            None => break,
        }
    }
    if let Some((count, _)) = doubtful {
        found.entries.truncate(count);
    }
    Ok(found)
}

/// The next place with a whole record, looking at every byte.
fn next_record(
    task: &Task<'_>,
    window: &mut Window<'_>,
    from: u64,
    seq: u64,
    work: &mut u64,
) -> Result<Option<u64>, Error> {
    for offset in from..task.size.saturating_sub(HEAD_SIZE as u64) {
        if *work == 0 {
            return Ok(None);
        }
        if record_at(task, window, offset, seq, work)?.is_some() {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// The record that starts here, and whether it proves what is before it.
fn record_at(
    task: &Task<'_>,
    window: &mut Window<'_>,
    offset: u64,
    seq: u64,
    work: &mut u64,
) -> Result<Option<(Entry, bool)>, Error> {
    let Some(bytes) = window.get(offset, HEAD_SIZE_MAX)? else { return Ok(None) };
    let Some(head) = Head::parse(bytes) else { return Ok(None) };
    let seq_max = task.bound.unwrap_or_else(|| seq.saturating_add(SEQ_STEP_MAX));
    if head.seq <= seq || head.seq > seq_max || head.sealed != (task.header.key_id != 0) {
        return Ok(None);
    }
    let size = head.record_size();
    *work = work.saturating_sub(size as u64);
    let Some(bytes) = window.get(offset, size)? else { return Ok(None) };
    if bytes.len() < size || !record::verify(bytes, task.header.seed(), offset) {
        return Ok(None);
    }
    let Some(hash) = task.keys.identify(task.header, &head, bytes, offset) else { return Ok(None) };
    let Ok(place) = u32::try_from(offset) else { return Ok(None) };
    let entry = Entry {
        hash,
        seq: head.seq,
        previous: head.previous.unwrap_or(0),
        offset: place,
        value_size: head.value_size,
        key_size: head.key_size,
        kind: head.kind,
        supersedes: head.supersedes,
    };
    Ok(Some((entry, head.after_sync)))
}

/// Part of a file in memory, which moves forward.
pub(crate) struct Window<'a> {
    file: &'a dyn File,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    /// A window over the first `size` bytes of a file.
    pub(crate) fn new(file: &'a dyn File, size: u64) -> Self {
        Self { file, size, start: HEADER_SIZE as u64, bytes: Vec::new() }
    }

    /// `size` bytes at an offset, fewer at the end; `None` past it.
    pub(crate) fn get(&mut self, offset: u64, size: usize) -> Result<Option<&[u8]>, Error> {
        if offset >= self.size {
            return Ok(None);
        }
        let rest = usize::try_from(self.size - offset).unwrap_or(usize::MAX);
        let size = size.min(rest);
        let loaded =
            offset >= self.start && offset + size as u64 <= self.start + self.bytes.len() as u64;
        if !loaded {
            self.bytes.resize(size.max(CHUNK_SIZE).min(rest), 0);
            let read = read_full(self.file, &mut self.bytes, offset).map_err(Error::Read)?;
            self.bytes.truncate(read);
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let end = (from + size).min(self.bytes.len());
        Ok(self.bytes.get(from..end))
    }
}
