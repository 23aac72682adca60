//! The index is told where a rewrite's records are now: slice by slice, in the order of the index, while
//! reads and writes go on.
//!
//! ```text
//!  index  |A'B'C'D'|E F G H|      ' points to the new file, the others to the old ones
//!         └─ told ─┘
//!  files   d3 (new)  d3, d4 (old: without names, open until all is told)
//! ```
//!
//! The new segment has the id of the first old one, but another [name](crate::index::slot::next_name), so
//! each slot says by itself which file it means. The list of segments has the old ones until the end:
//! whoever walks through it finds every record once.

use super::Rewrite;
use super::publish::Published;
use super::run::{Moved, Run};
use crate::History;
use crate::index::At;
use crate::index::slot::Slot;
use crate::log::block::Entry;
use crate::log::segment::Segment;
use crate::namespace::{Compaction, Namespace};

/// How a rewrite ended: the new file is in use.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::namespace) struct Finished {
    /// Bytes freed.
    pub(super) size: u64,
    /// Whether a crash can't bring the old files back.
    pub(super) durable: bool,
}

/// What the index is to be told, and how far that is.
#[derive(Debug)]
pub(in crate::namespace) struct Switch {
    /// Names of the segments that are replaced.
    sources: Vec<u32>,
    pub(super) out: Segment,
    published: Published,
    /// Bytes freed.
    size: u64,
    /// By hash.
    moved: Vec<Moved>,
    freed: Vec<(u64, u32, u32)>,
    dropped: Vec<u64>,
    /// So many of each the index knows.
    pub(super) told: Told,
}

/// Counts of records.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) moved: usize,
    pub(super) freed: usize,
    pub(super) dropped: usize,
}

impl Namespace {
    /// Begins to tell the index about a new file, which has its place.
    pub(super) fn begin_switch(&mut self, run: Run, published: Published) {
        let sources: Vec<u32> = run.names().collect();
        let segments = sources.iter().filter_map(|name| self.segment(*name));
        let old_size: u64 = segments.map(|segment| segment.end).sum();
        let mut out = run.out;
        out.dirty = true;
        out.kept = match self.descriptor.settings.history {
            _ if run.again => (0, 0),
            History::Younger(age) => {
                let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
                (run.kept_size, run.now.saturating_add(age / 2 + 1))
            }
            _ => (run.kept_size, u32::MAX),
        };
        let new_size = if published.replaced { out.end } else { 0 };
        self.compaction = Some(Rewrite::Switching(Box::new(Switch {
            sources,
            out,
            published,
            size: old_size.saturating_sub(new_size),
            moved: run.moved,
            freed: run.freed,
            // A crash may bring back what is older.
            dropped: if published.durable { run.dropped } else { Vec::new() },
            told: Told::default(),
        })));
    }

    /// Tells the index about so many records.
    pub(super) fn switch_some(&mut self, count: usize) -> Compaction {
        match self.switch_step(count) {
            Some(Finished { size, .. }) => Compaction::Reclaimed { size },
            None => Compaction::Working,
        }
    }

    /// Tells the index about all that it doesn't know yet; how that ended, if there was anything.
    pub(in crate::namespace) fn finish_switch(&mut self) -> Option<Finished> {
        self.switch_step(usize::MAX)
    }

    fn switch_step(&mut self, count: usize) -> Option<Finished> {
        match self.compaction.take() {
            Some(Rewrite::Switching(mut switch)) => {
                if switch.tell(self, count) {
                    return Some(switch.end(self));
                }
                self.compaction = Some(Rewrite::Switching(switch));
            }
            other => self.compaction = other,
        }
        None
    }

    /// The slot that stands for a record of a segment in the list, even if the index points to its copy
    /// by now.
    pub(in crate::namespace) fn find_entry(
        &self,
        segment: u32,
        entry: &Entry,
    ) -> Option<(At, Slot)> {
        let found = self.index.find_record(entry.hash, segment, entry.offset);
        found.or_else(|| {
            let Some(Rewrite::Switching(switch)) = &self.compaction else { return None };
            let moved = switch.moved(entry.hash, segment, entry.offset)?;
            self.index.find_record(entry.hash, switch.out.name, moved.to)
        })
    }

    /// One older record of the key with this hash is gone. If several keys have the hash, nobody
    /// knows whose it was, and their deletions stay until the next start. Gives the slot of a deletion
    /// that is not needed any more.
    fn forget_older(&mut self, hash: u64) -> Option<Slot> {
        let (at, slot) = self.index.find(hash, None)?;
        if self.index.find(hash, Some(at)).is_some() {
            return None;
        }
        let fewer: Slot = slot.with_one_older_less();
        self.index.replace(at, fewer);
        (slot.is_needed() && !fewer.is_needed()).then_some(slot)
    }
}

impl Switch {
    /// Tells the index about so many records; says whether that were all.
    fn tell(&mut self, namespace: &mut Namespace, count: usize) -> bool {
        let left = self.tell_moved(namespace, count);
        let left = self.tell_freed(namespace, left);
        self.tell_dropped(namespace, left);
        let Told { moved, freed, dropped } = self.told;
        (moved, freed, dropped) == (self.moved.len(), self.freed.len(), self.dropped.len())
    }

    /// Gives how many more may be told.
    fn tell_moved(&mut self, namespace: &mut Namespace, count: usize) -> usize {
        let (first, all) = (self.told.moved, self.moved.len());
        let mut end = first.saturating_add(count).min(all);
        // What was overwritten is looked up by hash, so records of one hash are told together. They are
        // as many as keys with that hash: hardly ever more than one.
        let hash_at = |at: usize| self.moved.get(at).map(|moved| moved.hash);
        while end > first && end < all && hash_at(end) == hash_at(end - 1) {
            end += 1;
        }
        for moved in &self.moved[first..end] {
            let found = namespace.index.find_record(moved.hash, moved.segment, moved.from);
            let Some((at, slot)) = found else { continue };
            let slot = slot.moved(self.out.name, moved.to);
            namespace.index.replace(at, slot);
            if slot.is_needed() {
                self.out.live_size += namespace.record_size(&slot) as u64;
            }
        }
        self.told.moved = end;
        let through = if end == all { Some(u64::MAX) } else { hash_at(end.wrapping_sub(1)) };
        if let Some(through) = through {
            self.move_undo(namespace, through);
        }
        count.saturating_sub(end - first)
    }

    /// What a failed batch would bring back is at its new place, or gone if it was a deletion that hid
    /// nothing.
    fn move_undo(&self, namespace: &mut Namespace, through: u64) {
        for undo in &mut namespace.undo {
            let is_told = undo.hash <= through;
            let old = undo.old.filter(|old| is_told && self.sources.contains(&old.segment()));
            let Some(old) = old else { continue };
            let moved = self.moved(undo.hash, old.segment(), old.offset);
            undo.old = moved.map(|moved| old.moved(self.out.name, moved.to));
        }
    }

    fn tell_freed(&mut self, namespace: &mut Namespace, count: usize) -> usize {
        let end = self.told.freed.saturating_add(count).min(self.freed.len());
        for (hash, segment, offset) in &self.freed[self.told.freed..end] {
            let found = namespace.index.find_record(*hash, *segment, *offset);
            if let Some((at, _)) = found.filter(|(_, slot)| slot.is_tombstone()) {
                namespace.index.remove(at);
            }
        }
        count - (end - std::mem::replace(&mut self.told.freed, end))
    }

    fn tell_dropped(&mut self, namespace: &mut Namespace, count: usize) {
        let end = self.told.dropped.saturating_add(count).min(self.dropped.len());
        for hash in &self.dropped[self.told.dropped..end] {
            let Some(slot) = namespace.forget_older(*hash) else { continue };
            let size = namespace.record_size(&slot) as u64;
            namespace.take_live(slot.segment(), size);
            if slot.segment() == self.out.name {
                // It is not where the namespace would look for it.
                self.out.live_size = self.out.live_size.saturating_sub(size);
            }
        }
        self.told.dropped = end;
    }

    /// Where a record went.
    fn moved(&self, hash: u64, segment: u32, from: u32) -> Option<&Moved> {
        let first = self.moved.partition_point(|moved| moved.hash < hash);
        let mut same = self.moved.iter().skip(first).take_while(|moved| moved.hash == hash);
        same.find(|moved| moved.segment == segment && moved.from == from)
    }

    /// The list of segments.
    fn end(self, namespace: &mut Namespace) -> Finished {
        let Self { sources, out, published, size, .. } = self;
        let first = sources.first().and_then(|name| namespace.position(*name)).unwrap_or(0);
        namespace.segments.retain(|segment| !sources.contains(&segment.name));
        namespace.damage.retain(|(segment, _)| !sources.contains(segment));
        namespace.open_files.retain(|open| !sources.contains(open));
        namespace.numbers.forgotten = namespace.numbers.forgotten.max(out.header.forgotten);
        if published.replaced {
            namespace.open_files.push_back(out.name);
            namespace.segments.insert(first.min(namespace.segments.len()), out);
        }
        namespace.counters.reclaimed_size += size;
        Finished { size, durable: published.durable }
    }
}
