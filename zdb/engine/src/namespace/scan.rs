//! Live keys in order: by last write in user mode, by id in sequential mode.
//!
//! A cursor is the sequence number, or the id, after which a scan goes on. It stays good when its key
//! is overwritten or deleted, over restarts and compaction, because those keep numbers in order.
//!
//! ```text
//!  offset size
//!       0    1  1: sequence number, 2: id
//!       1    8  it, little-endian
//!       9    8  the namespace's keyed hash of the bytes before: nobody else's cursor passes
//! ```

use std::ops::ControlFlow;

use super::{Direction, Namespace, ScanItem, Scanned};
use crate::index::Index;
use crate::index::slot::Slot;
use crate::log::block::Entry;
use crate::log::record::{Head, Kind};
use crate::{Error, Mode, SCAN_CURSOR_SIZE};

const BY_SEQ: u8 = 1;
const BY_ID: u8 = 2;

/// Where a scan starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Start,
    After(u64),
}

impl Namespace {
    /// A cursor from which a scan goes on after this key; `None` if there is no such key.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn cursor(&mut self, key: &[u8]) -> Result<Option<[u8; SCAN_CURSOR_SIZE]>, Error> {
        let Some(metadata) = self.metadata(key)? else { return Ok(None) };
        let id = self.keys()?.hash(key).unwrap_or_default();
        Ok(Some(self.cursor_at(match self.descriptor.settings.mode {
            Mode::User => metadata.seq.0,
            Mode::Sequential => id,
        })))
    }

    fn cursor_at(&self, position: u64) -> [u8; SCAN_CURSOR_SIZE] {
        let mut cursor = [0; SCAN_CURSOR_SIZE];
        cursor[0] = match self.descriptor.settings.mode {
            Mode::User => BY_SEQ,
            Mode::Sequential => BY_ID,
        };
        cursor[1..9].copy_from_slice(&position.to_le_bytes());
        let check = self.keys.as_ref().map_or(0, |keys| keys.hasher.hash(&cursor[..9]));
        cursor[9..].copy_from_slice(&check.to_le_bytes());
        cursor
    }

    fn start(&self, cursor: Option<&[u8]>) -> Result<From, Error> {
        let Some(cursor) = cursor else { return Ok(From::Start) };
        let position = cursor.get(1..9).and_then(|bytes| bytes.first_chunk());
        let position = u64::from_le_bytes(*position.ok_or(Error::BadCursor)?);
        if cursor == self.cursor_at(position) {
            Ok(From::After(position))
        } else {
            Err(Error::BadCursor)
        }
    }

    /// Shows live keys one by one, after `cursor` or from the start, until `show` breaks or
    /// there are no more. A damaged record is passed over. The server's `show` breaks when its
    /// time is up.
    ///
    /// # Errors
    ///
    /// [`Error::BadCursor`], and as [`get`](Self::get).
    pub fn scan(
        &mut self,
        direction: Direction,
        cursor: Option<&[u8]>,
        show: &mut dyn FnMut(ScanItem<'_>) -> ControlFlow<()>,
    ) -> Result<Scanned, Error> {
        self.may_read()?;
        let from = self.start(cursor)?;
        let mut shown = Shown { count: 0, last: None, show };
        // Breaking is the caller's wish: how far it came is all that counts.
        let _ = match self.descriptor.settings.mode {
            Mode::User => self.scan_log(direction, from, &mut shown)?,
            Mode::Sequential => self.scan_ids(direction, from, &mut shown)?,
        };
        Ok(Scanned { count: shown.count, cursor: shown.last.map(|last| self.cursor_at(last)) })
    }

    fn scan_log(
        &mut self,
        direction: Direction,
        from: From,
        shown: &mut Shown<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let count = self.segments.len();
        for step in 0..count {
            let position = match direction {
                Direction::Forward => step,
                Direction::Backward => count - 1 - step,
            };
            let segment = &self.segments[position];
            let passed = match (direction, from) {
                (Direction::Forward, From::After(seq)) => segment.last_seq <= seq,
                (Direction::Backward, From::After(seq)) => segment.header.base + 1 >= seq,
                (_, From::Start) => false,
            };
            if passed || segment.live_size == 0 {
                continue;
            }
            if self.scan_segment(position, direction, from, shown)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn scan_segment(
        &mut self,
        position: usize,
        direction: Direction,
        from: From,
        shown: &mut Shown<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let count = self.segments[position].group_count();
        let start = match from {
            From::After(seq) => self.segments[position].group_of(seq),
            From::Start => 0,
        };
        let groups: Vec<usize> = match (direction, from) {
            (Direction::Forward, _) => (start..count).collect(),
            (Direction::Backward, From::After(_)) => (0..=start).rev().collect(),
            (Direction::Backward, From::Start) => (0..count).rev().collect(),
        };
        let mut entries = Vec::new();
        for group in groups {
            entries.clear();
            let keys = self.keys.as_ref().ok_or(Error::KeyNeeded)?;
            self.segments[position].group(&self.folders, keys, group, &mut entries)?;
            if direction == Direction::Backward {
                entries.reverse();
            }
            let name = self.segments[position].name;
            for entry in &entries {
                let passed = match (direction, from) {
                    (Direction::Forward, From::After(seq)) => entry.seq <= seq,
                    (Direction::Backward, From::After(seq)) => entry.seq >= seq,
                    (_, From::Start) => false,
                };
                if !passed && self.show_entry(name, entry, shown)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn show_entry(
        &mut self,
        segment: u32,
        entry: &Entry,
        shown: &mut Shown<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        if entry.kind != Kind::Value {
            return Ok(ControlFlow::Continue(()));
        }
        match self.find_entry(segment, entry) {
            Some((_, slot)) => self.show_slot(&slot, entry.seq, shown),
            None => Ok(ControlFlow::Continue(())),
        }
    }

    fn show_slot(
        &mut self,
        slot: &Slot,
        position: u64,
        shown: &mut Shown<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let mut record = std::mem::take(&mut self.scratch);
        let read = self.read_key(slot, &mut record);
        let flow = match read {
            Ok((head, key_at)) => {
                let key = record.get(key_at..key_at + usize::from(head.key_size));
                shown.show(key.unwrap_or_default(), &head, position)
            }
            Err(Error::Damaged { .. }) => ControlFlow::Continue(()),
            Err(error) => {
                self.scratch = record;
                return Err(error);
            }
        };
        self.scratch = record;
        Ok(flow)
    }

    /// A record's fixed part and key, verified: the whole record is read only if it is small, or
    /// must be opened.
    fn read_key(&mut self, slot: &Slot, record: &mut Vec<u8>) -> Result<(Head, usize), Error> {
        let size = self.record_size(slot);
        if self.is_encrypted() || size <= super::locate::WHOLE_SIZE_MAX {
            return self.read_opened(slot.segment(), slot.offset, size, record);
        }
        if !slot.is_verified() {
            self.verify(slot)?;
        }
        let head = self.head_of(slot)?;
        let head = head.ok_or_else(|| super::locate::damaged(slot.segment(), slot.offset))?;
        let key_end = head.head_size() + usize::from(head.key_size);
        record.clear();
        record.resize(key_end, 0);
        if let Some(bytes) = self.in_memory(slot.segment(), slot.offset, key_end) {
            record.copy_from_slice(bytes);
        } else {
            let file = self.file(slot.segment())?;
            let read = crate::storage::read_full(&*file, record, slot.offset.into());
            read.map_err(|error| self.read_error(error))?;
        }
        Ok((head, head.head_size()))
    }

    fn scan_ids(
        &mut self,
        direction: Direction,
        from: From,
        shown: &mut Shown<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let mut from = from;
        loop {
            let Index::Sequential(map) = &self.index else { return Ok(ControlFlow::Continue(())) };
            let live = |(_, slot): &(&u64, &Slot)| !slot.is_tombstone();
            let next = match (direction, from) {
                (Direction::Forward, From::Start) => map.iter().find(live),
                (Direction::Forward, From::After(id)) => {
                    let Some(next) = id.checked_add(1) else { break };
                    map.range(next..).find(live)
                }
                (Direction::Backward, From::Start) => map.iter().rev().find(live),
                (Direction::Backward, From::After(id)) => map.range(..id).rev().find(live),
            };
            let Some((id, slot)) = next.map(|(id, slot)| (*id, *slot)) else { break };
            if self.show_slot(&slot, id, shown)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            from = From::After(id);
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What was shown so far.
struct Shown<'a> {
    count: usize,
    last: Option<u64>,
    show: &'a mut dyn FnMut(ScanItem<'_>) -> ControlFlow<()>,
}

impl Shown<'_> {
    fn show(&mut self, key: &[u8], head: &Head, position: u64) -> ControlFlow<()> {
        self.count += 1;
        self.last = Some(position);
        (self.show)(ScanItem { key, size: head.value_size.into(), timestamp: head.timestamp })
    }
}
