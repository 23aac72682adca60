//! Where a rewrite reads from: a segment as it was, with records read many at once and verified one by
//! one.

use std::sync::Arc;

use crate::Error;
use crate::log::block::Entry;
use crate::log::record;
use crate::log::segment::Segment;
use crate::namespace::Namespace;
use crate::namespace::locate::{damaged, missing};
use crate::storage::{File, read_full};

/// Bytes read and written at once.
pub(super) const CHUNK_SIZE: usize = 1024 * 1024;

/// A segment that is rewritten. It needs no namespace, so any thread may read it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) segment: Segment,
    file: Arc<dyn File>,
    /// The part of it that is believed more than the file.
    memory: Chunk,
    /// The part of the file that was read last.
    chunk: Chunk,
}

/// Some bytes of a segment, and where they start.
#[derive(Debug, Default)]
struct Chunk {
    start: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    fn get(&self, offset: u64, size: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from.checked_add(size)?)
    }
}

impl Source {
    /// A segment as it is now. What is set later is not in it.
    pub(super) fn new(namespace: &mut Namespace, name: u32) -> Result<Self, Error> {
        let file = namespace.file(name)?;
        let position = namespace.position(name).ok_or_else(|| missing(name))?;
        let memory = match &namespace.tail {
            Some(tail) if namespace.is_last(name) => {
                Chunk { start: tail.start, bytes: tail.buffer.clone() }
            }
            _ => Chunk::default(),
        };
        let segment = namespace.segments[position].frozen(Arc::clone(&file));
        Ok(Self { segment, file, memory, chunk: Chunk::default() })
    }

    /// A record, verified.
    pub(super) fn record(&mut self, entry: &Entry) -> Result<&[u8], Error> {
        let size = entry.record_size(self.segment.is_encrypted()) as usize;
        let offset = u64::from(entry.offset);
        if self.memory.get(offset, size).is_none() && self.chunk.get(offset, size).is_none() {
            self.chunk.bytes.resize(size.max(CHUNK_SIZE), 0);
            let read = read_full(&*self.file, &mut self.chunk.bytes, offset);
            let read = read.inspect_err(|_| self.chunk.bytes.clear()).map_err(Error::Read)?;
            self.chunk.bytes.truncate(read);
            self.chunk.start = offset;
        }
        if let Some(bytes) = self.memory.get(offset, size) {
            return Ok(bytes);
        }
        let bytes = self.chunk.get(offset, size);
        let bytes = bytes.filter(|bytes| record::verify(bytes, self.segment.seed, offset));
        bytes.ok_or_else(|| damaged(self.segment.name, entry.offset))
    }

    /// Gives memory back: nothing more is read.
    pub(super) fn release(&mut self) {
        self.chunk = Chunk::default();
        self.memory = Chunk::default();
    }
}
