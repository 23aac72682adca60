//! Sets and deletions: appended to memory, in the index at once, undone if the file refuses them.

use super::locate::{Located, WHOLE_SIZE_MAX, Wanted};
use super::undo::Undo;
use super::{Namespace, Written};
use crate::index::At;
use crate::index::slot::{SEGMENT_ID_MAX, Slot};
use crate::log::block::Entry;
use crate::log::record::{self, HEAD_SIZE_MAX, Head, Kind, SEQ_MAX, TAG_SIZE, head_size};
use crate::{Change, Error, KEY_SIZE_MAX, LogRecord, Mode, SeqNo, VALUE_SIZE_MAX};

/// Bytes appended but not written beyond which a batch is written before its end.
const PENDING_SIZE_MAX: u64 = 4 * 1024 * 1024;
/// Most records of a segment: what compaction keeps in memory of one is bounded by it.
const SEGMENT_RECORD_COUNT_MAX: u32 = 1024 * 1024;

/// A write that is to be appended.
#[derive(Clone, Copy)]
struct Append<'a> {
    kind: Kind,
    key: &'a [u8],
    value: &'a [u8],
    timestamp: u32,
    hash: u64,
    old: Option<Located>,
    /// Its number; the next one if there is none.
    seq: Option<u64>,
}

/// Writing.
impl Namespace {
    /// Sets a key; in sequential mode an empty key gives the next id. `None` if the stored value
    /// is the same already, and nothing was written.
    ///
    /// # Errors
    ///
    /// In this order [`Error::KeyNeeded`], [`Error::Frozen`], [`Error::Locked`],
    /// [`Error::KeySize`], [`Error::ValueSize`], [`Error::UnknownId`], [`Error::Worm`],
    /// [`Error::Quota`]; [`Error::DiskFull`], [`Error::Write`], [`Error::Sync`].
    pub fn set(
        &mut self,
        key: &[u8],
        value: &[u8],
        timestamp: u32,
    ) -> Result<Option<Written>, Error> {
        self.may_write()?;
        let sequential = self.descriptor.settings.mode == Mode::Sequential;
        if key.len() > KEY_SIZE_MAX || (key.is_empty() && !sequential) {
            return Err(Error::KeySize { size: key.len() });
        }
        if value.len() > VALUE_SIZE_MAX {
            return Err(Error::ValueSize { size: value.len() });
        }
        let id = self.numbers.next_id.to_le_bytes();
        let is_new_id = sequential && key.is_empty();
        let key = if is_new_id { &id[..] } else { key };
        let hash = self.keys()?.hash(key).ok_or(Error::UnknownId)?;
        let wanted = Wanted { key, hash, value: Some(value) };
        let old = if is_new_id { None } else { self.locate(&wanted, true)? };
        let live = old.filter(|located| !located.slot.is_tombstone());
        if sequential && !is_new_id && live.is_none() {
            return Err(Error::UnknownId);
        }
        if live.is_some() && self.descriptor.settings.worm {
            return Err(Error::Worm);
        }
        self.check_quota(value.len() as u64, live.map(|located| located.slot))?;
        if let Some(located) = &live
            && located.slot.value_size() as usize == value.len()
            && self.is_value(located, key, value)
        {
            return Ok(None);
        }
        if self.claim.shared.disk_full() {
            return Err(Error::DiskFull);
        }
        let seq = self.append(&Append {
            kind: Kind::Value,
            key,
            value,
            timestamp,
            hash,
            old,
            seq: None,
        })?;
        let id = key.first_chunk().map(|id| u64::from_le_bytes(*id)).filter(|_| sequential);
        Ok(Some(Written { seq: SeqNo(seq), id }))
    }

    /// Deletes a key; `None` if there is no such key. Works on a full disk.
    ///
    /// # Errors
    ///
    /// [`Error::Worm`] if it exists, and as [`set`](Self::set).
    pub fn delete(&mut self, key: &[u8], timestamp: u32) -> Result<Option<SeqNo>, Error> {
        self.may_write()?;
        let Some(hash) = self.keys()?.hash(key) else { return Ok(None) };
        let old = self.locate(&Wanted { key, hash, value: None }, true)?;
        if old.is_none_or(|located| located.slot.is_tombstone()) {
            return Ok(None);
        }
        if self.descriptor.settings.worm {
            return Err(Error::Worm);
        }
        let kind = Kind::Tombstone;
        let seq =
            self.append(&Append { kind, key, value: &[], timestamp, hash, old, seq: None })?;
        Ok(Some(SeqNo(seq)))
    }

    /// Takes a write of another namespace, with its number. Quota, worm, lock and freeze were
    /// the other's matter.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`], and as [`set`](Self::set).
    pub fn apply(&mut self, record: &LogRecord<'_>) -> Result<(), Error> {
        self.keys()?;
        let (seq, last) = (record.seq.0, self.numbers.last);
        if seq <= last || seq > SEQ_MAX {
            return Err(Error::OutOfOrder { seq: record.seq, last: SeqNo(last) });
        }
        let (kind, key, value, timestamp) = match record.change {
            Change::Set { key, value, timestamp } => (Kind::Value, key, value, timestamp),
            Change::Delete { key, timestamp } => (Kind::Tombstone, key, &[][..], timestamp),
            Change::Clear => return self.clear_at(seq).map(drop),
        };
        if key.is_empty() || key.len() > KEY_SIZE_MAX {
            return Err(Error::KeySize { size: key.len() });
        }
        if value.len() > VALUE_SIZE_MAX {
            return Err(Error::ValueSize { size: value.len() });
        }
        let hash = self.keys()?.hash(key).ok_or(Error::UnknownId)?;
        let old = self.locate(&Wanted { key, hash, value: None }, true)?;
        if kind == Kind::Value && self.claim.shared.disk_full() {
            return Err(Error::DiskFull);
        }
        self.append(&Append { kind, key, value, timestamp, hash, old, seq: Some(seq) }).map(drop)
    }

    pub(super) fn may_write(&self) -> Result<(), Error> {
        self.may_read()?;
        if self.descriptor.settings.locked { Err(Error::Locked) } else { Ok(()) }
    }

    /// `reference: zdb 2.3`, quota: only payloads of live keys count.
    fn check_quota(&self, size: u64, replaced: Option<Slot>) -> Result<(), Error> {
        let settings = &self.descriptor.settings;
        let live_size = self.numbers.value_size;
        let refused = |size_max| Error::Quota { live_size, value_size: size, size_max };
        let freed = replaced.map_or(0, |slot| u64::from(slot.value_size()));
        if settings.size_max > 0 && live_size + size > settings.size_max.saturating_add(freed) {
            return Err(refused(settings.size_max));
        }
        if settings.file_size_max > 0 && self.file_size() + size > settings.file_size_max {
            return Err(refused(settings.file_size_max));
        }
        Ok(())
    }

    /// Whether a key's record, which was just located, has this value. A damaged or unreadable one has
    /// not.
    fn is_value(&mut self, located: &Located, key: &[u8], value: &[u8]) -> bool {
        if let Some(is_same) = located.is_same {
            return is_same;
        }
        let slot = &located.slot;
        if !self.may_be_value(slot, key, value) {
            return false;
        }
        let mut record = std::mem::take(&mut self.scratch);
        let opened =
            self.read_opened(slot.segment(), slot.offset, self.record_size(slot), &mut record);
        let equal = opened.is_ok_and(|(_, key_at)| {
            let value_at = key_at + key.len();
            record.get(value_at..value_at + value.len()) == Some(value)
        });
        self.scratch = record;
        equal
    }

    /// Whether a large record's checksum is the one that it would have with this value. Almost always
    /// that spares reading the old value. Locating it has left its head and key in the scratch buffer.
    fn may_be_value(&self, slot: &Slot, key: &[u8], value: &[u8]) -> bool {
        let head = self.scratch.get(..head_size(slot.has_previous()) + key.len());
        let seed = self.segment(slot.segment()).map(|segment| segment.seed);
        match (head, seed) {
            (Some(head), Some(seed)) => record::verify_two(head, value, seed, slot.offset.into()),
            _ => false,
        }
    }

    /// Appends a record, and lets the index point to it.
    fn append(&mut self, append: &Append<'_>) -> Result<u64, Error> {
        let size_max = HEAD_SIZE_MAX + append.key.len() + append.value.len() + TAG_SIZE;
        let moved = self.make_room(size_max as u64)?;
        let old = match append.old {
            // Earlier writes of the batch may have been undone, or written again elsewhere.
            Some(_) if moved => {
                let wanted = Wanted { key: append.key, hash: append.hash, value: None };
                self.locate(&wanted, true)?
            }
            old => old,
        };
        let seq = append.seq.unwrap_or(self.numbers.last + 1);
        if seq > SEQ_MAX {
            return Err(Error::OutOfOrder { seq: SeqNo(seq), last: SeqNo(self.numbers.last) });
        }
        // A predecessor that can't be read is none for history.
        let live = old.filter(|located| !located.slot.is_tombstone());
        let previous = live.and_then(|located| located.seq).filter(|previous| *previous < seq);
        let head = Head {
            kind: append.kind,
            seq,
            previous,
            supersedes: old.is_some(),
            sealed: self.is_encrypted(),
            after_sync: false,
            key_size: u8::try_from(append.key.len()).unwrap_or_default(),
            value_size: u32::try_from(append.value.len()).unwrap_or_default(),
            timestamp: append.timestamp,
        };
        let (segment, offset) = self.put_record(head, append.key, append.value)?;
        let entry = Entry {
            hash: append.hash,
            seq,
            previous: previous.unwrap_or(0),
            offset,
            value_size: head.value_size,
            key_size: head.key_size,
            kind: append.kind,
            supersedes: head.supersedes,
        };
        let undo =
            Undo { hash: append.hash, segment, offset, old: old.map(|located| located.slot) };
        self.undo.push(undo);
        self.install(
            entry.hash,
            entry.slot(segment),
            old.map(|located| (located.at, located.slot)),
        );
        self.note_append(&entry);
        Ok(seq)
    }

    /// Puts a record at the end of the tail, in memory.
    fn put_record(&mut self, head: Head, key: &[u8], value: &[u8]) -> Result<(u32, u32), Error> {
        let (Some(tail), Some(segment), Some(keys)) =
            (&mut self.tail, self.segments.last(), &self.keys)
        else {
            return Err(Error::KeyNeeded);
        };
        let offset = tail.end();
        let head = Head { after_sync: tail.synced == offset, ..head };
        let from = tail.buffer.len();
        tail.buffer.reserve(head.record_size());
        head.put(&mut tail.buffer);
        tail.buffer.extend_from_slice(key);
        tail.buffer.extend_from_slice(value);
        if head.sealed {
            let sealed = keys.sealers.get(&segment.header.key_id).and_then(|sealer| {
                let number = segment.header.number;
                sealer.seal(&mut tail.buffer, from, head.head_size(), number, offset)
            });
            if sealed.is_none() {
                tail.buffer.truncate(from);
                return Err(Error::WrongKey);
            }
        }
        record::finish(&mut tail.buffer[from..], segment.seed, offset);
        if tail.buffer.len() - from > WHOLE_SIZE_MAX {
            tail.large_size += tail.buffer.len() - from;
        }
        let place = u32::try_from(offset).map_err(|_| segment.damage(offset, "too large"))?;
        Ok((segment.name, place))
    }

    /// Numbers that follow from an appended record.
    fn note_append(&mut self, entry: &Entry) {
        self.numbers.last = entry.seq;
        if self.descriptor.settings.mode == Mode::Sequential {
            self.numbers.next_id = next_id(self.numbers.next_id, entry);
        }
        if let (Some(segment), Some(tail)) = (self.segments.last_mut(), &self.tail) {
            segment.pending.push(*entry);
            segment.last_seq = entry.seq;
            segment.count += 1;
            segment.end = tail.end();
            segment.dirty = true;
        }
    }

    /// Lets the index point to a record, and counts what that changes. `old` is what it pointed to.
    pub(super) fn install(&mut self, hash: u64, slot: Slot, old: Option<(At, Slot)>) {
        match old {
            Some((at, replaced)) => {
                self.uncount(&replaced);
                let slot = slot.with_older(replaced.older() + 1);
                self.index.replace(at, slot);
                self.count(&slot);
            }
            None => {
                self.index.insert(hash, slot);
                self.count(&slot);
            }
        }
    }

    pub(super) fn count(&mut self, slot: &Slot) {
        if slot.is_needed() {
            let size = self.record_size(slot) as u64;
            self.add_live(slot.segment(), size);
        }
        if !slot.is_tombstone() {
            self.numbers.entry_count += 1;
            self.numbers.value_size += u64::from(slot.value_size());
        }
    }

    pub(super) fn uncount(&mut self, slot: &Slot) {
        if slot.is_needed() {
            let size = self.record_size(slot) as u64;
            self.take_live(slot.segment(), size);
        }
        if !slot.is_tombstone() {
            self.numbers.entry_count = self.numbers.entry_count.saturating_sub(1);
            let size = u64::from(slot.value_size());
            self.numbers.value_size = self.numbers.value_size.saturating_sub(size);
        }
    }

    pub(super) fn add_live(&mut self, segment: u32, size: u64) {
        self.numbers.live_size += size;
        if let Some(segment) = self.segment_mut(segment) {
            segment.live_size += size;
        }
    }

    pub(super) fn take_live(&mut self, segment: u32, size: u64) {
        self.numbers.live_size = self.numbers.live_size.saturating_sub(size);
        if let Some(segment) = self.segment_mut(segment) {
            segment.live_size = segment.live_size.saturating_sub(size);
        }
    }

    /// A tail with room for a record of this size. Says whether records may have moved.
    fn make_room(&mut self, size: u64) -> Result<bool, Error> {
        self.check_batch()?;
        let mut moved = self.mend()?;
        let limit = self.segment_size_limit();
        let Some((crowded, full)) = self.lack_of_room(size, limit) else {
            self.next_segment()?;
            return Ok(moved);
        };
        if crowded || full {
            if self.change.is_some() {
                // There is no file yet to write to.
                return Err(Error::Busy);
            }
            self.flush_amid_batch()?;
        }
        if full {
            self.next_segment()?;
            moved = true;
        }
        Ok(moved)
    }

    /// Whether what is in memory must be written first, and whether the segment must end; `None`
    /// without a segment.
    fn lack_of_room(&self, size: u64, limit: u64) -> Option<(bool, bool)> {
        let (tail, segment) = (self.tail.as_ref()?, self.segments.last()?);
        let end = tail.end();
        let full =
            segment.count > 0 && (end + size > limit || segment.count >= SEGMENT_RECORD_COUNT_MAX);
        Some((end - tail.written > PENDING_SIZE_MAX, full || tail.spoilt))
    }

    /// The next segment's id.
    pub(super) fn next_segment_id(&self) -> Result<u32, Error> {
        let id = self.segments.last().map_or(0, |last| last.header.through + 1);
        if id > SEGMENT_ID_MAX { Err(Error::DiskFull) } else { Ok(id) }
    }
}

/// The id after this record's: each value takes one, updates too (`reference: zdb 2.4`).
pub(super) fn next_id(next_id: u64, entry: &Entry) -> u64 {
    match entry.kind {
        Kind::Value => next_id.max(entry.hash).saturating_add(1),
        Kind::Tombstone => next_id,
    }
}
