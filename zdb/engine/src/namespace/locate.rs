//! From a key to its record, verified.
//!
//! The index knows hashes. A key is compared with the one in the record, which is where damage is
//! met: a record whose key differs is believed only if its checksum is right; if not, hash and size
//! of the key are proof enough that it is the key's own record that is damaged. So damage is an
//! error for its key, not a missing key, and a write over it heals it.

use super::Namespace;
use crate::Error;
use crate::cache::{BLOCK_SIZE, Owner};
use crate::index::At;
use crate::index::slot::{Slot, segment_id};
use crate::log::record::{self, Head, TAG_SIZE, head_size};
use crate::storage::{File, read_full};

/// Bytes read at once when only a checksum is wanted.
const VERIFY_CHUNK_SIZE: usize = 256 * 1024;
/// Records up to this size are read whole where a part would do: it costs the same.
pub(super) const WHOLE_SIZE_MAX: usize = 4096;

/// A key's slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located {
    pub(super) at: At,
    pub(super) slot: Slot,
    /// The number of its record, if that could be read.
    pub(super) seq: Option<u64>,
    /// If its record was read whole and verified: its fixed part.
    pub(super) head: Option<Head>,
    /// If its record was read whole and verified, and was compared: whether it has this value.
    pub(super) is_same: Option<bool>,
}

/// What to look for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) key: &'a [u8],
    pub(super) hash: u64,
    /// What to compare its value with.
    pub(super) value: Option<&'a [u8]>,
}

enum Match {
    Own { seq: Option<u64>, head: Option<Head>, is_same: Option<bool> },
    Foreign,
}

impl Match {
    /// What a verified record is, of which the fixed part was parsed.
    fn of(record: &[u8], head: &Head, key_at: usize, wanted: &Wanted<'_>) -> Self {
        let value_at = key_at + wanted.key.len();
        if record.get(key_at..value_at) != Some(wanted.key) {
            return Self::Foreign;
        }
        let value = record.get(value_at..value_at + head.value_size as usize);
        let is_same = wanted.value.map(|wanted| value == Some(wanted));
        Self::Own { seq: Some(head.seq), head: Some(*head), is_same }
    }
}

impl Namespace {
    /// Bytes of the record that a slot stands for.
    pub(super) fn record_size(&self, slot: &Slot) -> usize {
        let tag = if self.is_encrypted() { TAG_SIZE } else { 0 };
        head_size(slot.has_previous())
            + usize::from(slot.key_size())
            + slot.value_size() as usize
            + tag
    }

    /// Bytes of a record that are in memory.
    pub(super) fn in_memory(&self, segment: u32, offset: u32, size: usize) -> Option<&[u8]> {
        let tail = self.tail.as_ref()?;
        self.is_last(segment).then(|| tail.bytes(offset.into(), size)).flatten()
    }

    /// A small record where it stands in memory, verified: at the tail, or whole in one block of the
    /// cache. `None` also if it must be opened, or its checksum is wrong: whoever reads it the long
    /// way says so.
    pub(super) fn record_in_place(&mut self, slot: &Slot) -> Option<&[u8]> {
        if self.is_encrypted() {
            return None;
        }
        let (offset, size) = (slot.offset as usize, self.record_size(slot));
        let segment = self.segment(slot.segment())?;
        if let Some(tail) = self.tail.as_ref().filter(|_| self.is_last(slot.segment()))
            && let Some(bytes) = tail.bytes(slot.offset.into(), size)
        {
            return Some(bytes);
        }
        let (number, within) = (offset / BLOCK_SIZE, offset % BLOCK_SIZE);
        let (place, seed) = (segment.cached(u32::try_from(number).ok()?)?, segment.seed);
        let record = self.cache.get(place)?.get(within..within + size)?;
        record::verify(record, seed, slot.offset.into()).then_some(record)
    }

    /// The slot of a key, live or a tombstone; `None` if the index doesn't know it.
    ///
    /// `lenient`: a record that can't be read is taken for the key's own, so that it can be
    /// overwritten and deleted.
    pub(super) fn locate(
        &mut self,
        wanted: &Wanted<'_>,
        lenient: bool,
    ) -> Result<Option<Located>, Error> {
        let mut found = self.index.find(wanted.hash, None);
        while let Some((at, slot)) = found {
            if usize::from(slot.key_size()) == wanted.key.len() {
                match self.match_slot(&slot, wanted) {
                    Ok(Match::Own { seq, head, is_same }) => {
                        return Ok(Some(Located { at, slot, seq, head, is_same }));
                    }
                    Ok(Match::Foreign) => {}
                    Err(error) if !lenient && !matches!(error, Error::Damaged { .. }) => {
                        return Err(error);
                    }
                    Err(_) => {
                        return Ok(Some(Located {
                            at,
                            slot,
                            seq: None,
                            head: None,
                            is_same: None,
                        }));
                    }
                }
            }
            found = self.index.find(wanted.hash, Some(at));
        }
        Ok(None)
    }

    /// Whether a slot's record has this key.
    fn match_slot(&mut self, slot: &Slot, wanted: &Wanted<'_>) -> Result<Match, Error> {
        if let Some(record) = self.record_in_place(slot)
            && let Some(head) = Head::parse(record)
            && head.record_size() == record.len()
        {
            return Ok(Match::of(record, &head, head.head_size(), wanted));
        }
        let mut record = std::mem::take(&mut self.scratch);
        let matched = self.match_record(slot, wanted, &mut record);
        self.scratch = record;
        matched
    }

    /// The same by way of the scratch buffer. Small records are read and verified whole.
    fn match_record(
        &mut self,
        slot: &Slot,
        wanted: &Wanted<'_>,
        record: &mut Vec<u8>,
    ) -> Result<Match, Error> {
        let size = self.record_size(slot);
        if size > WHOLE_SIZE_MAX && !self.is_encrypted() {
            return self.match_head(slot, wanted.key, record);
        }
        let (head, key_at) = self.read_opened(slot.segment(), slot.offset, size, record)?;
        Ok(Match::of(record, &head, key_at, wanted))
    }

    fn match_head(
        &mut self,
        slot: &Slot,
        key: &[u8],
        record: &mut Vec<u8>,
    ) -> Result<Match, Error> {
        let key_at = head_size(slot.has_previous());
        let size = key_at + key.len();
        record.clear();
        record.resize(size, 0);
        if let Some(bytes) = self.in_memory(slot.segment(), slot.offset, size) {
            record.copy_from_slice(bytes);
        } else {
            let file = self.file(slot.segment())?;
            read_full(&*file, record, slot.offset.into()).map_err(|e| self.read_error(e))?;
        }
        if record.get(key_at..) == Some(key) {
            let seq = Head::parse(record).map(|head| head.seq);
            return Ok(Match::Own { seq, head: None, is_same: None });
        }
        // Another key with the same hash, or damage.
        self.verify(slot)?;
        Ok(Match::Foreign)
    }

    /// Reads a record and verifies its checksum.
    pub(super) fn read_record(
        &mut self,
        segment: u32,
        offset: u32,
        size: usize,
        record: &mut Vec<u8>,
    ) -> Result<(), Error> {
        record.clear();
        if let Some(bytes) = self.in_memory(segment, offset, size) {
            record.extend_from_slice(bytes);
            return Ok(());
        }
        let Some(seed) = self.segment(segment).map(|it| it.seed) else {
            return Err(missing(segment));
        };
        let cached = size <= WHOLE_SIZE_MAX && self.read_cached(segment, offset, size, record)?;
        let mut read = size;
        if !cached {
            let file = self.file(segment)?;
            record.resize(size, 0);
            read = read_full(&*file, record, offset.into()).map_err(|e| self.read_error(e))?;
        }
        if read == size && record::verify(record, seed, offset.into()) {
            return Ok(());
        }
        self.note_damage(segment, offset);
        Err(damaged(segment, offset))
    }

    /// Reads bytes by way of the cache; says whether that was possible. Blocks that are still
    /// written have no place there.
    fn read_cached(
        &mut self,
        segment: u32,
        offset: u32,
        size: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        let written = match &self.tail {
            Some(tail) if self.is_last(segment) => tail.written,
            _ => u64::MAX,
        };
        let (mut at, end) = (offset as usize, offset as usize + size);
        if end.next_multiple_of(BLOCK_SIZE) as u64 > written {
            return Ok(false);
        }
        while at < end {
            let number = at / BLOCK_SIZE;
            let within = at % BLOCK_SIZE..(end - number * BLOCK_SIZE).min(BLOCK_SIZE);
            at = (number + 1) * BLOCK_SIZE;
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let place = self.segment(segment).and_then(|segment| segment.cached(number));
            if let Some(block) = place.and_then(|place| self.cache.get(place)) {
                bytes.extend_from_slice(block.get(within).unwrap_or_default());
                continue;
            }
            let file = self.file(segment)?;
            let mut block = [0; BLOCK_SIZE];
            let start = u64::from(number) * BLOCK_SIZE as u64;
            read_full(&*file, &mut block, start).map_err(|error| self.read_error(error))?;
            bytes.extend_from_slice(block.get(within).unwrap_or_default());
            self.keep_block(segment, number, &block);
        }
        Ok(true)
    }

    /// Keeps a block of a segment in the cache.
    pub(super) fn keep_block(&mut self, name: u32, number: u32, block: &[u8; BLOCK_SIZE]) {
        let Some(file) = self.segment(name).map(|segment| segment.cache_name) else { return };
        let owner = Owner { segment: name, file, number };
        let Some((place, evicted)) = self.cache.put(owner, block) else { return };
        if let Some(evicted) = evicted {
            let segment = self.segment_mut(evicted.segment);
            // A file that was replaced asks for nothing any more.
            if let Some(segment) = segment.filter(|segment| segment.cache_name == evicted.file) {
                segment.set_cached(evicted.number, None);
            }
        }
        if let Some(segment) = self.segment_mut(name) {
            segment.set_cached(number, Some(place));
        }
    }

    /// Reads a record, verifies and opens it. Gives its fixed part and where its key starts in
    /// `record`; the value follows the key.
    pub(super) fn read_opened(
        &mut self,
        segment: u32,
        offset: u32,
        size: usize,
        record: &mut Vec<u8>,
    ) -> Result<(Head, usize), Error> {
        self.read_record(segment, offset, size, record)?;
        let opened = (|| {
            let head = Head::parse(record)?;
            let header = self.segment(segment)?.header;
            if head.record_size() != size {
                return None;
            }
            self.keys.as_ref()?.open(&header, &head, record, offset.into())?;
            Some((head, head.head_size()))
        })();
        if opened.is_none() {
            self.note_damage(segment, offset);
        }
        opened.ok_or_else(|| damaged(segment, offset))
    }

    /// Verifies a slot's record where it lies, in little memory.
    pub(super) fn verify(&mut self, slot: &Slot) -> Result<(), Error> {
        let size = self.record_size(slot);
        let (segment, offset) = (slot.segment(), slot.offset);
        if self.in_memory(segment, offset, size).is_some() {
            return Ok(());
        }
        let file = self.file(segment)?;
        let Some(seed) = self.segment(segment).map(|it| it.seed) else {
            return Err(missing(segment));
        };
        let mut chunk = std::mem::take(&mut self.scratch);
        chunk.resize(size.min(VERIFY_CHUNK_SIZE), 0);
        let whole = verify_chunks(&*file, seed, offset.into(), size, &mut chunk);
        self.scratch = chunk;
        if whole.map_err(|error| self.read_error(error))? {
            return Ok(());
        }
        self.note_damage(segment, offset);
        Err(damaged(segment, offset))
    }

    /// Counts an error of a read.
    pub(super) fn read_error(&mut self, error: std::io::Error) -> Error {
        self.counters.data_error_count += 1;
        Error::Read(error)
    }
}

fn verify_chunks(
    file: &dyn File,
    seed: record::Seed,
    offset: u64,
    size: usize,
    chunk: &mut [u8],
) -> std::io::Result<bool> {
    let (mut done, mut stored, mut crc) = (0, None, 0);
    while done < size {
        let part = chunk.len().min(size - done);
        let part = &mut chunk[..part];
        if read_full(file, part, offset + done as u64)? < part.len() {
            return Ok(false);
        }
        done += part.len();
        crc = match stored {
            Some(_) => crc32c::crc32c_append(crc, part),
            None => {
                let Some((first, rest)) = part.split_first_chunk() else { return Ok(false) };
                stored = Some(u32::from_le_bytes(*first));
                seed.crc(offset, rest)
            }
        };
    }
    Ok(stored == Some(crc))
}

/// A record of the segment with this name is damaged.
pub(super) fn damaged(segment: u32, offset: u32) -> Error {
    let segment = segment_id(segment);
    Error::Damaged { segment, offset: offset.into(), reason: "the checksum is wrong" }
}

pub(super) fn missing(segment: u32) -> Error {
    let segment = segment_id(segment);
    Error::Damaged { segment, offset: 0, reason: "the segment is missing" }
}
