//! Values, what is known about them, and what they were before.

use super::locate::{Located, WHOLE_SIZE_MAX, Wanted, damaged};
use super::{Extent, Found, Health, HistoryEntry, Metadata, Namespace, RawRecord};
use crate::index::At;
use crate::index::slot::Slot;
use crate::log::block::Entry;
use crate::log::header::HEADER_SIZE;
use crate::log::record::{self, HEAD_SIZE_MAX, Head, Kind, head_size};
use crate::log::segment::Segment;
use crate::storage::{read_full, read_two_full};
use crate::{Error, HISTORY_CURSOR_SIZE, KEY_SIZE_MAX, SeqNo};

/// Reading.
impl Namespace {
    /// Reads a value, appended to `out`.
    ///
    /// `before` is called with the value's size before the value is appended: a reply's header
    /// goes there. If there is no value after all, `out` is as it was. Values of `extent_from`
    /// bytes or more are verified and given as [`Found::Extent`] instead, without a call of
    /// `before`, where that is possible: not of encrypted namespaces, nor what is not yet written
    /// to its file.
    ///
    /// # Errors
    ///
    /// [`Error::Frozen`], [`Error::KeyNeeded`], [`Error::Damaged`], [`Error::Read`].
    pub fn get(
        &mut self,
        key: &[u8],
        extent_from: usize,
        out: &mut Vec<u8>,
        mut before: impl FnMut(&mut Vec<u8>, usize),
    ) -> Result<Found, Error> {
        self.may_read()?;
        let Some(hash) = self.keys()?.hash(key) else { return Ok(Found::Missing) };
        let mut found = self.index.find(hash, None);
        while let Some((at, slot)) = found {
            if !slot.is_tombstone() && usize::from(slot.key_size()) == key.len() {
                let from = out.len();
                let read = self.get_slot(at, &slot, key, extent_from, out, &mut before);
                match read {
                    Ok(Some(value)) => return Ok(value),
                    Ok(None) => out.truncate(from),
                    Err(error) => {
                        out.truncate(from);
                        return Err(error);
                    }
                }
            }
            found = self.index.find(hash, Some(at));
        }
        Ok(Found::Missing)
    }

    /// The value of a slot if its record has this key.
    fn get_slot(
        &mut self,
        at: At,
        slot: &Slot,
        key: &[u8],
        extent_from: usize,
        out: &mut Vec<u8>,
        before: &mut impl FnMut(&mut Vec<u8>, usize),
    ) -> Result<Option<Found>, Error> {
        let size = slot.value_size() as usize;
        let key_at = head_size(slot.has_previous());
        let value_at = key_at + key.len();
        if self.is_encrypted() || self.record_size(slot) <= WHOLE_SIZE_MAX && size < extent_from {
            let Some(record) = self.record_in_place(slot) else {
                return self.get_whole(slot, key, out, before);
            };
            if record.get(key_at..value_at) != Some(key) {
                return Ok(None);
            }
            before(out, size);
            out.extend_from_slice(record.get(value_at..).unwrap_or_default());
            return Ok(Some(Found::Inline { size }));
        }
        if let Some(bytes) = self.in_memory(slot.segment(), slot.offset, value_at + size) {
            if bytes.get(key_at..value_at) != Some(key) {
                return Ok(None);
            }
            before(out, size);
            out.extend_from_slice(bytes.get(value_at..).unwrap_or_default());
            return Ok(Some(Found::Inline { size }));
        }
        if size >= extent_from {
            return self.get_extent(at, slot, key);
        }
        let mut head = [0; HEAD_SIZE_MAX + KEY_SIZE_MAX];
        let head = &mut head[..value_at];
        let file = self.file(slot.segment())?;
        before(out, size);
        let from = out.len();
        out.resize(from + size, 0);
        let read = read_two_full(&*file, head, &mut out[from..], slot.offset.into());
        let read = read.map_err(|error| self.read_error(error))?;
        let Some(seed) = self.segment(slot.segment()).map(|it| it.seed) else { return Ok(None) };
        let whole = read == value_at + size
            && record::verify_two(head, &out[from..], seed, slot.offset.into());
        if !whole {
            self.note_damage(slot.segment(), slot.offset);
            return Err(damaged(slot.segment(), slot.offset));
        }
        let same = head.get(key_at..) == Some(key);
        Ok(same.then_some(Found::Inline { size }))
    }

    /// By way of the scratch buffer: what is small and not in one piece in memory, and what must be
    /// opened.
    fn get_whole(
        &mut self,
        slot: &Slot,
        key: &[u8],
        out: &mut Vec<u8>,
        before: &mut impl FnMut(&mut Vec<u8>, usize),
    ) -> Result<Option<Found>, Error> {
        let mut record = std::mem::take(&mut self.scratch);
        let opened =
            self.read_opened(slot.segment(), slot.offset, self.record_size(slot), &mut record);
        let found = opened.map(|(_, key_at)| {
            let size = slot.value_size() as usize;
            let body = record.get(key_at..key_at + key.len() + size).unwrap_or_default();
            let (stored, value) = body.split_at_checked(key.len())?;
            if stored != key {
                return None;
            }
            before(out, size);
            out.extend_from_slice(value);
            Some(Found::Inline { size })
        });
        self.scratch = record;
        found
    }

    /// Verifies a large value once, then says where it is.
    fn get_extent(&mut self, at: At, slot: &Slot, key: &[u8]) -> Result<Option<Found>, Error> {
        if !slot.is_verified() {
            self.verify(slot)?;
            self.index.replace(at, slot.with_verified());
        }
        let key_at = head_size(slot.has_previous());
        let value_at = key_at + key.len();
        let mut head = [0; HEAD_SIZE_MAX + KEY_SIZE_MAX];
        let head = &mut head[..value_at];
        let file = self.file(slot.segment())?;
        let read = read_full(&*file, head, slot.offset.into());
        if read.map_err(|error| self.read_error(error))? < value_at {
            return Err(damaged(slot.segment(), slot.offset));
        }
        let offset = u64::from(slot.offset) + value_at as u64;
        let extent = Extent { file, offset, size: slot.value_size().into() };
        Ok((head.get(key_at..) == Some(key)).then_some(Found::Extent(extent)))
    }

    /// What `EXISTS`, `LENGTH` and `KEYTIME` ask.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn metadata(&mut self, key: &[u8]) -> Result<Option<Metadata>, Error> {
        self.may_read()?;
        let Some(Located { at, slot, head, .. }) = self.locate_live(key)? else {
            return Ok(None);
        };
        if !slot.is_verified() && head.is_none() {
            self.verify(&slot)?;
            self.index.replace(at, slot.with_verified());
        }
        let head = match head {
            Some(head) => Some(head),
            None => self.head_of(&slot)?,
        };
        let head = head.ok_or_else(|| damaged(slot.segment(), slot.offset))?;
        Ok(Some(Metadata {
            size: head.value_size.into(),
            timestamp: head.timestamp,
            seq: SeqNo(head.seq),
        }))
    }

    /// The fixed part of a verified record.
    pub(super) fn head_of(&mut self, slot: &Slot) -> Result<Option<Head>, Error> {
        let mut buffer = [0; HEAD_SIZE_MAX];
        let buffer = &mut buffer[..head_size(slot.has_previous())];
        if let Some(bytes) = self.in_memory(slot.segment(), slot.offset, buffer.len()) {
            buffer.copy_from_slice(bytes);
        } else {
            let file = self.file(slot.segment())?;
            read_full(&*file, buffer, slot.offset.into())
                .map_err(|error| self.read_error(error))?;
        }
        Ok(Head::parse(buffer))
    }

    /// Verifies a key's record where it lies; `None` if there is no such key.
    ///
    /// # Errors
    ///
    /// [`Error::Frozen`], [`Error::KeyNeeded`].
    pub fn check(&mut self, key: &[u8]) -> Result<Option<Health>, Error> {
        self.may_read()?;
        let Some(hash) = self.keys()?.hash(key) else { return Ok(None) };
        let wanted = Wanted { key, hash, value: None };
        let located = self.locate(&wanted, true)?.filter(|located| !located.slot.is_tombstone());
        let Some(located) = located else { return Ok(None) };
        match self.verify(&located.slot) {
            Ok(()) => Ok(Some(Health::Good)),
            Err(Error::Damaged { .. }) => Ok(Some(Health::Bad)),
            Err(_) => Ok(Some(Health::Unreadable)),
        }
    }

    /// Live keys.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.numbers.entry_count
    }

    /// The newest write.
    #[must_use]
    pub fn last(&self) -> SeqNo {
        SeqNo(self.numbers.last)
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A key's value now (without cursor) or an earlier one, appended to `out`; `None` if there is
    /// no such key, or the cursor says that the history ended (eight zeroes).
    ///
    /// # Errors
    ///
    /// [`Error::BadCursor`] if it has not 8 bytes, [`Error::UnknownHistory`],
    /// [`Error::ForeignHistory`], and as [`get`](Self::get).
    pub fn history(
        &mut self,
        key: &[u8],
        cursor: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> Result<Option<HistoryEntry>, Error> {
        self.may_read()?;
        let (segment, offset, size) = match cursor {
            None => {
                let Some(Located { slot, .. }) = self.locate_live(key)? else { return Ok(None) };
                (slot.segment(), slot.offset, self.record_size(&slot))
            }
            Some(cursor) => {
                let cursor: [u8; HISTORY_CURSOR_SIZE] =
                    cursor.try_into().map_err(|_| Error::BadCursor)?;
                let seq = u64::from_le_bytes(cursor);
                if seq == 0 {
                    return Ok(None);
                }
                let Some((segment, entry)) = self.find_value(seq)? else {
                    return Err(Error::UnknownHistory { seq: SeqNo(seq) });
                };
                (segment, entry.offset, entry.record_size(self.is_encrypted()) as usize)
            }
        };
        let mut record = std::mem::take(&mut self.scratch);
        let entry = self.history_at(key, (segment, offset, size), &mut record, out);
        self.scratch = record;
        entry.map(Some)
    }

    fn history_at(
        &mut self,
        key: &[u8],
        (segment, offset, size): (u32, u32, usize),
        record: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<HistoryEntry, Error> {
        let (head, key_at) = self.read_opened(segment, offset, size, record)?;
        let value_at = key_at + usize::from(head.key_size);
        if record.get(key_at..value_at) != Some(key) {
            return Err(Error::ForeignHistory { seq: SeqNo(head.seq) });
        }
        let next = match head.previous {
            Some(previous) => self.find_value(previous)?.map(|_| previous.to_le_bytes()),
            None => None,
        };
        let size = head.value_size as usize;
        out.extend_from_slice(record.get(value_at..value_at + size).unwrap_or_default());
        Ok(HistoryEntry { timestamp: head.timestamp, size, next })
    }

    /// The value that was written with this number, if it was kept: its segment's name, and its entry.
    pub(super) fn find_value(&mut self, seq: u64) -> Result<Option<(u32, Entry)>, Error> {
        let after = self.segments.partition_point(|segment| segment.header.base < seq);
        let Some(position) = after.checked_sub(1) else { return Ok(None) };
        let keys = self.keys.as_ref().ok_or(Error::KeyNeeded)?;
        let segment = &mut self.segments[position];
        let group = segment.group_of(seq);
        let mut entries = Vec::new();
        segment.group(&self.folders, keys, group, &mut entries)?;
        let found = entries.into_iter().find(|entry| entry.seq == seq && entry.kind == Kind::Value);
        Ok(found.map(|entry| (segment.name, entry)))
    }

    /// The record at this place, key and payload appended to `out`; `None` at or past the end of
    /// the segment. Offset 0 stands for the first record.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] also if no record starts there, [`Error::UnknownHistory`] (with number
    /// 0) if there is no such segment, [`Error::Read`], [`Error::KeyNeeded`].
    pub fn raw(
        &mut self,
        segment: u32,
        offset: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<RawRecord>, Error> {
        self.keys()?;
        let Ok(position) = self.segments.binary_search_by_key(&segment, Segment::id) else {
            return Err(Error::UnknownHistory { seq: SeqNo(0) });
        };
        let name = self.segments[position].name;
        let offset = if offset == 0 { HEADER_SIZE as u64 } else { offset };
        let end = self.segments[position].end;
        if offset >= end {
            return Ok(None);
        }
        let none_here = Error::Damaged { segment, offset, reason: "no record starts here" };
        let Ok(place) = u32::try_from(offset) else { return Err(none_here) };
        let head_size = usize::try_from(end - offset).unwrap_or(usize::MAX).min(HEAD_SIZE_MAX);
        let mut head = [0; HEAD_SIZE_MAX];
        let head = &mut head[..head_size];
        if let Some(bytes) = self.in_memory(name, place, head_size) {
            head.copy_from_slice(bytes);
        } else {
            let file = self.file(name)?;
            read_full(&*file, head, offset).map_err(|error| self.read_error(error))?;
        }
        let Some(head) = Head::parse(head) else { return Err(none_here) };
        if offset + head.record_size() as u64 > end {
            return Err(none_here);
        }
        let mut record = std::mem::take(&mut self.scratch);
        let opened = self.read_whole_raw(name, place, &head, &mut record);
        let raw = opened.map(|key_at| {
            let value_at = key_at + usize::from(head.key_size);
            let body = record.get(key_at..value_at + head.value_size as usize).unwrap_or_default();
            out.extend_from_slice(body);
            RawRecord {
                key_size: head.key_size.into(),
                value_size: head.value_size as usize,
                deleted: head.kind == Kind::Tombstone,
                timestamp: head.timestamp,
                previous: SeqNo(head.previous.unwrap_or(0)),
                payload_crc: crate::import::payload_crc(
                    body.get(usize::from(head.key_size)..).unwrap_or_default(),
                ),
                next_offset: offset + head.record_size() as u64,
            }
        });
        self.scratch = record;
        raw.map(Some)
    }

    /// Like [`read_opened`](Self::read_opened), but a place where no record starts is no damage.
    fn read_whole_raw(
        &mut self,
        segment: u32,
        offset: u32,
        head: &Head,
        record: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        let known = self.damage.len();
        let was_damaged = self.segment_mut(segment).is_some_and(|segment| segment.damaged);
        let opened = self.read_opened(segment, offset, head.record_size(), record);
        if opened.is_err() {
            if self.damage.len() > known {
                self.damage.remove(&(segment, offset));
            }
            if let Some(segment) = self.segment_mut(segment) {
                segment.damaged = was_damaged;
            }
        }
        opened.map(|(_, key_at)| key_at)
    }

    /// The slot of a live key.
    pub(super) fn locate_live(&mut self, key: &[u8]) -> Result<Option<Located>, Error> {
        let Some(hash) = self.keys()?.hash(key) else { return Ok(None) };
        let wanted = Wanted { key, hash, value: None };
        Ok(self.locate(&wanted, false)?.filter(|located| !located.slot.is_tombstone()))
    }

    pub(super) fn may_read(&self) -> Result<(), Error> {
        if self.keys.is_none() {
            return Err(Error::KeyNeeded);
        }
        if self.descriptor.settings.frozen { Err(Error::Frozen) } else { Ok(()) }
    }
}
