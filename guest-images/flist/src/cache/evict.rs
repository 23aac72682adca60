//! Making room: which segments go, and what is saved from them.
//!
//! Room is made before a segment is begun, for all that it may become, so that the bound on disk
//! holds at every instant. Segments that another process still appends to are left alone.

use std::fs::File;
use std::io;
use std::sync::Arc;

use flist_view::block::{BlockCipher, BlockRef};

use super::directory::StructureLock;
use super::segment::{MEMORY_NUMBER, Segment, Writer};
use super::statistics::count;
use super::{Active, Cache, SEGMENT_COUNT_MAX, layout};

/// Blocks of segments that go are carried forward up to this share of a new segment.
const CARRIED_SHARE: u32 = 4;

/// A block to be carried forward.
struct Hot {
    cipher: BlockCipher,
    block: BlockRef,
    offset: u32,
    size: u32,
}

impl Cache {
    /// Begins a segment on disk, after making room for it.
    pub(super) fn begin_segment(&self, writing: &super::Writing) -> io::Result<Active> {
        let lock = self.directory.lock()?;
        self.read_news(writing)?;
        let victims = self.victims()?;
        if self.missing_free_bytes()? > 0 {
            // Space comes back before the new segment takes any: nothing can be carried forward.
            for place in victims {
                self.remove_segment(place, &lock)?;
            }
            if self.missing_free_bytes()? > 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            return self.create_segment(&lock);
        }
        let mut active = self.create_segment(&lock)?;
        let mut budget = self.segment_size / CARRIED_SHARE;
        for place in victims {
            self.carry_forward(place, &mut active, &mut budget);
            self.remove_segment(place, &lock)?;
        }
        Ok(active)
    }

    /// Bytes that the file system lacks for one more segment beside what must stay free.
    pub(super) fn missing_free_bytes(&self) -> io::Result<u64> {
        let needed = self.config.free_min.saturating_add(self.segment_size.into());
        Ok(needed.saturating_sub(self.directory.free_bytes()?))
    }

    /// Drops one memory segment if there are as many as there may be.
    pub(super) fn retire_oldest_memory(&self) {
        let mut table = self.table_mut();
        let mut memory: Vec<(u64, u32)> = table
            .segments()
            .filter(|(_, segment)| segment.is_memory())
            .map(|(place, segment)| (segment.number & !MEMORY_NUMBER, place))
            .collect();
        memory.sort_unstable();
        if memory.len() >= super::MEMORY_SEGMENT_COUNT_MAX
            && let Some((_, place)) = memory.first()
        {
            self.retire(&mut table, *place);
        }
    }

    /// Drops all memory segments, once the disk works again.
    pub(super) fn retire_memory(&self, writing: &mut super::Writing) {
        writing.memory = None;
        let mut table = self.table_mut();
        let memory: Vec<u32> = table
            .segments()
            .filter(|(_, segment)| segment.is_memory())
            .map(|(place, _)| place)
            .collect();
        for place in memory {
            self.retire(&mut table, place);
        }
    }

    fn create_segment(&self, lock: &StructureLock) -> io::Result<Active> {
        let new = self.directory.create(self.segment_size, lock)?;
        let (writer, segment) = Writer::on_disk(new, self.segment_size);
        let place = self.table_mut().add(segment);
        Ok(Active { writer, place })
    }

    /// The oldest segments that must go for one more to fit.
    fn victims(&self) -> io::Result<Vec<u32>> {
        let table = self.table();
        let mut segments: Vec<(u64, u32, u64, bool)> = table
            .segments()
            .filter(|(_, segment)| !segment.is_memory())
            .map(|(place, s)| (s.number, place, s.disk_size(), s.is_settled()))
            .collect();
        drop(table);
        segments.sort_unstable();
        let mut used: u64 = segments.iter().map(|(_, _, size, _)| size).sum();
        let mut count = segments.len();
        // The new segment, and what is carried into it while its sources are still there.
        let carried = u64::from(self.segment_size / CARRIED_SHARE);
        let new = layout::disk_size_max(self.segment_size) + carried;
        let limit = self.config.size_max.saturating_sub(new);
        let mut missing = self.missing_free_bytes()?;
        let mut victims = Vec::new();
        for (_, place, size, settled) in segments {
            if used <= limit && count < SEGMENT_COUNT_MAX && missing == 0 {
                return Ok(victims);
            }
            if settled {
                victims.push(place);
                used -= size;
                count -= 1;
                missing = missing.saturating_sub(size);
            }
        }
        if used > limit { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(victims) }
    }

    /// Copies blocks that were used since they came into a segment, as far as the budget goes. They
    /// are checked again when they are next handed out.
    fn carry_forward(&self, place: u32, active: &mut Active, budget: &mut u32) {
        let Some((blocks, hot)) = self.hot_blocks(place, budget) else { return };
        for hot in hot {
            let appended = Segment::read(&blocks, hot.offset, hot.size)
                .and_then(|bytes| active.writer.append_plaintext(hot.cipher, hot.block, &bytes));
            let Ok(record) = appended else { return };
            let mut table = self.table_mut();
            if let Some(segment) = table.segment_mut(active.place) {
                segment.note_written(&record);
                table.insert(active.place, &record, false);
                count(&self.counters.carried_blocks, 1);
            }
        }
    }

    fn hot_blocks(&self, place: u32, budget: &mut u32) -> Option<(Arc<File>, Vec<Hot>)> {
        let table = self.table();
        let segment = table.segment(place)?;
        let mut hot = Vec::new();
        for (number, entry) in (0u32..).zip(&segment.entries) {
            let size = entry.size();
            if entry.is_used() && size <= *budget && table.is_current(place, number) {
                *budget -= size;
                let block = BlockRef { id: entry.id, key: entry.key };
                hot.push(Hot { cipher: entry.cipher(), block, offset: entry.offset, size });
            }
        }
        Some((Arc::clone(&segment.blocks), hot))
    }

    fn remove_segment(&self, place: u32, lock: &StructureLock) -> io::Result<()> {
        let Some(segment) = self.retire(&mut self.table_mut(), place) else { return Ok(()) };
        count(&self.counters.evicted_segments, 1);
        self.directory.remove(segment.number, lock)
    }
}
