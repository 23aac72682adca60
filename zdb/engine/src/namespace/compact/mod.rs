//! Replacing segments by smaller ones, in small steps, while reads and writes go on: what asks or tells
//! the index is done in slices of some records, everything else by other threads.
//!
//! ```text
//!  d3 |A..B.....C| d4 |.D...|      dots: superseded, or deletions that hide nothing any more
//!        └────────────┴─> d.new |A B C D|   ── rename ──> d3 (stands for 3 through 4), d4 removed
//! ```
//!
//! The order of records stays, so a segment goes on covering its range of sequence numbers. The new
//! file is durable before the rename, and the rename before the index points to it. What was
//! overwritten meanwhile is garbage in the new file. A crash leaves `d.new`, which is removed, or
//! `d4`, which `d3` says it stands for.
//!
//! A deletion stays while an older record of its key is in the log, for it would come back at the
//! next start: the index counts them. It also stays while followers need it.

mod chunk;
mod publish;
mod run;
mod switch;
#[cfg(test)]
mod tests;

pub(super) use publish::{Copying, CopyingDone, Publication, PublicationDone};
use run::Run;
use switch::Switch;

use super::{Compaction, Namespace};
use crate::log::header::HEADER_SIZE;
use crate::log::segment::Segment;
use crate::{Error, History};

/// Files may be larger than what lives by this many hundredths, and by [`SLACK_SIZE`].
const TARGET_PERCENT: u64 = 140;
/// Garbage below which nothing is done, in bytes; a segment's limit if that is smaller.
const SLACK_SIZE: u64 = 1024 * 1024;
/// Garbage of a segment below which it is not worth a rewrite, in hundredths.
const GARBAGE_PERCENT_MIN: u64 = 5;
/// A neighbour with so much garbage, in hundredths, is rewritten along.
const NEIGHBOUR_PERCENT_MIN: u64 = 40;
/// A segment is small if it has less than this part of what it may have. Restarts leave such, and
/// rotation on demand.
const SMALL_PART: u64 = 4;
/// Small neighbours beyond which they are merged, garbage or not.
const SMALL_COUNT_MAX: usize = 16;
/// Segments rewritten at once.
const SOURCE_COUNT_MAX: usize = 16;
/// What a record costs of a step's budget, in bytes, where the index is asked for it or told of it.
const RECORD_COST: u64 = 64;

/// A rewrite, and how far it is.
///
/// ```text
///  Copying <──> Beside ──> Copied ──> Publishing ──> Switching
/// ```
#[derive(Debug)]
pub(super) enum Rewrite {
    /// Records are to be judged, or wait to be copied.
    Copying(Box<Run>),
    /// Another thread copies. If it is given up, what that thread brings is thrown away.
    Beside { given_up: bool },
    /// All are copied. The last steps wait until writes up to this number are durable.
    Copied { run: Box<Run>, needed: u64 },
    /// Another thread does the last steps.
    Publishing,
    /// The files are in place, and the index is told.
    Switching(Box<Switch>),
}

impl Rewrite {
    /// The new segment, once the index may point to it.
    pub(super) fn incoming(&self) -> Option<&Segment> {
        match self {
            Self::Switching(switch) => Some(&switch.out),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn incoming_mut(&mut self) -> Option<&mut Segment> {
        match self {
            Self::Switching(switch) => Some(&mut switch.out),
            _ => None,
        }
    }
}

/// Writes a segment once more, with all that can be read of it. Blocks. Says whether the old file can't
/// come back.
pub(super) fn write_again(namespace: &mut Namespace, name: u32) -> Result<bool, Error> {
    let mut run = Box::new(Run::again(namespace, name)?);
    while !run.turn()? {
        namespace.judge(&mut run, usize::MAX);
    }
    Ok(run.finish(namespace)?.durable)
}

/// Upkeep, in small steps that the server's scheduler calls.
impl Namespace {
    /// A step of compaction. `now` is the time of day, in seconds, against which the age of history is
    /// measured. Writes that go on meanwhile are not disturbed.
    ///
    /// With [`Options::defers`](crate::Options::defers) all that reads and writes files becomes tickets,
    /// and a step asks or tells the index about one record for each 64 bytes of `budget`. Without it,
    /// steps block, some on syncs.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`], [`Error::Read`], [`Error::Write`], [`Error::Sync`], [`Error::File`],
    /// [`Error::Damaged`]: this attempt is given up, nothing is lost.
    pub fn compact_step(&mut self, budget: u64, now: u32) -> Result<Compaction, Error> {
        self.keys()?;
        if let Some(error) = self.compaction_error.take() {
            return Err(error);
        }
        let count = usize::try_from(budget / RECORD_COST).unwrap_or(usize::MAX).max(1);
        let run = match self.compaction.take() {
            Some(Rewrite::Copying(run)) => run,
            Some(others_turn) => {
                let is_ours = matches!(others_turn, Rewrite::Switching(_));
                self.compaction = Some(others_turn);
                return Ok(if is_ours { self.switch_some(count) } else { Compaction::Waiting });
            }
            None => {
                let Some(sources) = self.choose(now)? else {
                    let waits = self.change.is_some();
                    return Ok(if waits { Compaction::Waiting } else { Compaction::Idle });
                };
                Box::new(Run::new(self, &sources, now)?)
            }
        };
        if self.claim.shared.options.defers {
            return Ok(self.step_beside(run, count));
        }
        self.step_here(run, count)
    }

    /// Judges, and leaves the rest to others.
    fn step_beside(&mut self, mut run: Box<Run>, count: usize) -> Compaction {
        self.judge(&mut run, count);
        run.is_due = !run.is_to_be_judged();
        let step = if run.is_due { Compaction::Waiting } else { Compaction::Working };
        self.compaction = Some(Rewrite::Copying(run));
        step
    }

    /// Does all of it, for those who may block.
    fn step_here(&mut self, mut run: Box<Run>, count: usize) -> Result<Compaction, Error> {
        if run.is_to_be_judged() {
            self.judge(&mut run, count);
            self.compaction = Some(Rewrite::Copying(run));
            return Ok(Compaction::Working);
        }
        match run.turn() {
            Ok(false) => {
                self.compaction = Some(Rewrite::Copying(run));
                Ok(Compaction::Working)
            }
            Ok(true) => match run.finish(self) {
                Ok(finished) => Ok(Compaction::Reclaimed { size: finished.size }),
                Err(error) => {
                    self.folders.remove_half_compacted();
                    Err(error)
                }
            },
            Err(error) => Err(self.give_run_up(&run, error)),
        }
    }

    /// Names of the segments to rewrite now, if any.
    fn choose(&mut self, now: u32) -> Result<Option<Vec<u32>>, Error> {
        if self.change.is_some() {
            // What is ending is not durable yet.
            return Ok(None);
        }
        let live = self.numbers.live_size;
        let total = self.file_size();
        let kept: u64 = self.segments.iter().map(|segment| kept_size(segment, now)).sum();
        let full = self.claim.shared.disk_full();
        let target = (live + kept) * TARGET_PERCENT / 100 + if full { 0 } else { self.slack() };
        let history = self.descriptor.settings.history;
        let wanted = total > target && history != History::All;
        if wanted {
            self.end_segment_of_garbage(total - live - kept)?;
            if self.change.is_some() {
                return Ok(None);
            }
        }
        let current = self.keys()?.current;
        let old_key = |segment: &Segment| segment.header.key_id != current;
        let count = self.segments.len() - usize::from(self.tail.is_some()).min(self.segments.len());
        let sealed = &self.segments[..count];
        // The newest stays: it says where ids go on, and its file may still be continued.
        let sealed = sealed.get(..sealed.len().min(self.segments.len().saturating_sub(1)));
        let sealed = sealed.unwrap_or_default();
        let small = self.segment_size_limit() / SMALL_PART;
        let is_pair = |pair: &&[Segment]| pair.iter().all(|s| !s.damaged && s.end < small);
        let crowded = sealed.windows(2).filter(is_pair).count() >= SMALL_COUNT_MAX;
        let has_small_neighbour = |at: usize| sealed.get(at..at + 2).is_some_and(|p| is_pair(&p));
        let candidates = sealed.iter().enumerate().filter(|(_, segment)| !segment.damaged);
        let best = candidates
            .filter(|(at, segment)| {
                let percent = garbage_percent(segment, now);
                let garbage = wanted && percent >= GARBAGE_PERCENT_MIN;
                old_key(segment) || garbage || (crowded && has_small_neighbour(*at))
            })
            .max_by_key(|(_, segment)| match full {
                true => (0, u64::MAX - segment.live_size),
                false => (u64::from(old_key(segment)), garbage_percent(segment, now)),
            });
        let Some((first, _)) = best else { return Ok(None) };
        Ok(Some(self.with_neighbours(first, sealed.len(), now, full)))
    }

    /// When most garbage is in the segment that is written, it ends.
    fn end_segment_of_garbage(&mut self, garbage: u64) -> Result<(), Error> {
        let Some(segment) = self.segments.last().filter(|_| self.tail.is_some()) else {
            return Ok(());
        };
        let here = segment.end.saturating_sub(segment.live_size);
        if segment.end >= self.slack() && here * 2 >= garbage {
            self.flush_amid_batch()?;
            self.mend()?;
            self.next_segment()?;
        }
        Ok(())
    }

    /// Names of a segment and those around it that are worth it, as far as they fit one segment.
    fn with_neighbours(&self, chosen: usize, count: usize, now: u32, full: bool) -> Vec<u32> {
        let limit = self.segment_size_limit();
        let needed = |segment: &Segment| segment.live_size + kept_size(segment, now);
        let worth = |segment: &Segment| {
            let small = segment.end < limit / SMALL_PART;
            let garbage = garbage_percent(segment, now) >= NEIGHBOUR_PERCENT_MIN;
            !segment.damaged && !full && (small || garbage)
        };
        let (mut first, mut end) = (chosen, chosen + 1);
        let mut size = needed(&self.segments[chosen]);
        while end - first < SOURCE_COUNT_MAX {
            let before = first.checked_sub(1).map(|at| (at, end));
            let after = (end < count).then_some((first, end + 1));
            let wider = [(before, first.wrapping_sub(1)), (after, end)];
            let fits = wider.into_iter().find_map(|(range, at)| {
                let segment = self.segments.get(at).filter(|segment| worth(segment))?;
                Some((range?, size + needed(segment))).filter(|(_, size)| *size <= limit)
            });
            let Some((range, wider_size)) = fits else { break };
            ((first, end), size) = (range, wider_size);
        }
        self.segments[first..end].iter().map(|segment| segment.name).collect()
    }

    fn slack(&self) -> u64 {
        SLACK_SIZE.min(self.claim.shared.options.segment_size.into())
    }

    /// Bytes of all segments.
    pub(super) fn file_size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }
}

fn kept_size(segment: &Segment, now: u32) -> u64 {
    let (size, until) = segment.kept;
    if now < until { size } else { 0 }
}

fn garbage_percent(segment: &Segment, now: u32) -> u64 {
    let needed = HEADER_SIZE as u64 + segment.live_size + kept_size(segment, now);
    segment.end.saturating_sub(needed) * 100 / segment.end.max(1)
}
