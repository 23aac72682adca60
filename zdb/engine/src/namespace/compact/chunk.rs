//! Records of a source, read many at once and verified one by one.

use crate::Error;
use crate::log::block::Entry;
use crate::log::record;
use crate::namespace::Namespace;
use crate::storage::read_full;

/// Bytes read and written at once.
pub(super) const CHUNK_SIZE: usize = 1024 * 1024;

/// Part of a source in memory.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    segment: u32,
    start: u64,
    bytes: Vec<u8>,
    record: Vec<u8>,
}

impl Chunk {
    /// A record, verified.
    pub(super) fn record(
        &mut self,
        namespace: &mut Namespace,
        id: u32,
        entry: &Entry,
    ) -> Result<&[u8], Error> {
        let size = entry.record_size(namespace.is_encrypted()) as usize;
        if let Some(bytes) = namespace.in_memory(id, entry.offset, size) {
            self.record.clear();
            self.record.extend_from_slice(bytes);
            return Ok(&self.record);
        }
        let offset = u64::from(entry.offset);
        let loaded = self.segment == id
            && offset >= self.start
            && offset + size as u64 <= self.start + self.bytes.len() as u64;
        if !loaded {
            let file = namespace.file(id)?;
            self.bytes.resize(size.max(CHUNK_SIZE), 0);
            let read = read_full(&*file, &mut self.bytes, offset);
            let read = read.map_err(|error| namespace.read_error(error))?;
            self.bytes.truncate(read);
            (self.segment, self.start) = (id, offset);
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(from..from + size);
        let seed = namespace.position(id).map(|position| namespace.segments[position].seed);
        match (bytes, seed) {
            (Some(bytes), Some(seed)) if record::verify(bytes, seed, offset) => Ok(bytes),
            _ => {
                namespace.note_damage(id, entry.offset);
                Err(crate::namespace::locate::damaged(id, entry.offset))
            }
        }
    }
}
