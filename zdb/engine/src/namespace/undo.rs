//! Taking back what was appended and is not in the file: what a write that the disk refuses was never told
//! to be.

use super::Namespace;
use crate::index::slot::Slot;

/// How to undo one write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Undo {
    pub(super) hash: u64,
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) old: Option<Slot>,
}

/// Where things stood when the file was written last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    last: u64,
    next_id: u64,
    pending_count: usize,
    segment_last: u64,
}

impl Namespace {
    /// Notes that everything appended is in the file.
    pub(super) fn set_mark(&mut self) {
        self.undo.clear();
        self.numbers.written = self.numbers.last;
        self.mark = Mark {
            last: self.numbers.last,
            next_id: self.numbers.next_id,
            pending_count: self.segments.last().map_or(0, |segment| segment.pending.len()),
            segment_last: self.segments.last().map_or(0, |segment| segment.last_seq),
        };
    }

    /// Entries left `pending` for a block: the mark counts what is left.
    pub(super) fn note_blocks(&mut self, before: usize, after: usize) {
        let gone = before.saturating_sub(after);
        self.mark.pending_count = self.mark.pending_count.saturating_sub(gone);
    }

    /// Undoes what was appended since the mark.
    pub(super) fn roll_back(&mut self) {
        // It may have left records out because of what was appended.
        self.give_rewrite_up();
        while let Some(undo) = self.undo.pop() {
            let Some((at, slot)) = self.index.find_record(undo.hash, undo.segment, undo.offset)
            else {
                continue;
            };
            self.uncount(&slot);
            match undo.old {
                Some(old) => {
                    self.index.replace(at, old);
                    self.count(&old);
                }
                None => self.index.remove(at),
            }
        }
        self.numbers.last = self.mark.last;
        self.numbers.next_id = self.mark.next_id;
        if let (Some(segment), Some(tail)) = (self.segments.last_mut(), &mut self.tail) {
            let undone = segment.pending.len().saturating_sub(self.mark.pending_count);
            segment.count = segment.count.saturating_sub(u32::try_from(undone).unwrap_or(u32::MAX));
            segment.pending.truncate(self.mark.pending_count);
            segment.last_seq = self.mark.segment_last;
            segment.end = tail.written;
            let keep = usize::try_from(tail.written - tail.start).unwrap_or_default();
            tail.buffer.truncate(keep);
        }
    }
}
