//! What is done when nobody asks: compaction, scrubbing, small repairs, rotation by time.
//!
//! All of it runs in the event loop in small steps; what blocks, other threads do. A step of compaction
//! or scrubbing that took some time is followed by a pause of several times as long while clients are
//! served, so that upkeep takes at most a fifth of the loop's time; when nobody asks for anything, it
//! takes half.

use std::time::{Duration, Instant};

use zdb_engine::{Compaction, Scrub};

use super::{Core, Entry, NamespaceId};
use crate::refusal::display_chain;

/// The budget of a step of compaction: the index is asked or told about one record for each 64 bytes of
/// it, 4096 of them, which takes about half a millisecond. Other threads copy.
const COMPACTION_STEP_SIZE: u64 = 256 * 1024;
/// Bytes that one step of scrubbing reads, about.
const SCRUB_STEP_SIZE: u64 = 256 * 1024;
/// How much longer than a step the pause after it is, while clients are served.
const PAUSE_BUSY: u32 = 4;
/// The same, while nobody asks for anything.
const PAUSE_IDLE: u32 = 1;
/// How long after a write garbage is looked for.
const COMPACTION_DELAY: Duration = Duration::from_secs(1);
/// How often garbage is looked for when nobody writes: history grows old.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(60);
/// How long until it is seen whether compaction can go on that waits for other threads.
const COMPACTION_WAIT: Duration = Duration::from_millis(5);
/// How long compaction rests after an error.
const COMPACTION_RETRY: Duration = Duration::from_secs(10);
/// How long after the start scrubbing begins.
const SCRUB_DELAY: Duration = Duration::from_secs(60);
/// Least time between two steps of scrubbing: 256 KiB each 50 ms are 5 MiB a second.
const SCRUB_PAUSE: Duration = Duration::from_millis(50);
/// How long a namespace rests after all of it was scrubbed.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Namespaces that are looked at in one step, at most.
const LOOK_COUNT_MAX: usize = 64;
/// Time between two rounds of small repairs.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What is due for the server.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Where the last step was.
    compacted: Option<NamespaceId>,
    scrubbed: Option<NamespaceId>,
    compaction_at: Duration,
    scrub_at: Duration,
    tick_at: Duration,
    rotated_at: Duration,
}

/// What is due for a namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    compaction_at: Duration,
    scrub_at: Duration,
    /// Whether it was written to since it was last rotated by time.
    is_written: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { compaction_at: COMPACTION_DELAY, scrub_at: SCRUB_DELAY, is_written: false }
    }
}

impl Upkeep {
    /// Small repairs, and with them syncs that are due, are needed by then.
    pub(crate) fn tick_by(&mut self, at: Duration) {
        self.tick_at = self.tick_at.min(at);
    }
}

impl Schedule {
    /// Others need the namespace: compaction comes later.
    pub(crate) fn rest(&mut self, now: Duration) {
        self.compaction_at = self.compaction_at.max(now + COMPACTION_WAIT);
    }

    /// There may be garbage soon.
    pub(crate) fn written(&mut self, now: Duration) {
        self.is_written = true;
        self.compaction_at = self.compaction_at.min(now + COMPACTION_DELAY);
    }
}

impl Core {
    /// Does what is due, in bounded time; says when to call again at the latest.
    pub fn upkeep(&mut self, is_idle: bool) -> Duration {
        let now = self.clock.now;
        if now >= self.upkeep.tick_at {
            self.upkeep.tick_at = now + TICK;
            self.tick();
        }
        self.end_waits();
        if now >= self.upkeep.compaction_at {
            let begin = Instant::now();
            let next = self.compact();
            let pause = begin.elapsed() * if is_idle { PAUSE_IDLE } else { PAUSE_BUSY };
            self.upkeep.compaction_at = next.unwrap_or(now + COMPACTION_DELAY).max(now + pause);
        }
        if now >= self.upkeep.scrub_at {
            let begin = Instant::now();
            let worked = self.scrub();
            let pause = if worked { begin.elapsed() * PAUSE_BUSY } else { TICK };
            self.upkeep.scrub_at = now + pause.max(SCRUB_PAUSE);
        }
        let due = [self.upkeep.tick_at, self.upkeep.compaction_at, self.upkeep.scrub_at];
        let due = due.into_iter().chain(self.waits.next()).chain(self.hooks.poll_at(now)).min();
        due.unwrap_or(now + TICK)
    }

    /// Small repairs, once a second.
    fn tick(&mut self) {
        let (now, unix) = (self.clock.now, self.clock.unix);
        self.engine.tick();
        self.finish_hooks();
        let rotates = self.policy.rotate.is_some_and(|after| {
            let due = now.saturating_sub(self.upkeep.rotated_at) >= after;
            if due {
                self.upkeep.rotated_at = now;
            }
            due
        });
        for id in self.namespaces.ids().to_vec() {
            let Some(entry) = self.namespaces.get_mut(id) else { continue };
            let Ok(namespace) = &mut entry.namespace else { continue };
            let result = namespace.tick(now);
            entry.note_errors(unix);
            let must_rotate = rotates && std::mem::take(&mut entry.upkeep.is_written);
            self.note(id, result);
            self.want_sync(id);
            self.announce_missing(id);
            // It is there, but a segment of it may be changing; then the next time will do.
            if must_rotate
                && self.begin_rotation(id, None).is_err()
                && let Some(entry) = self.namespaces.get_mut(id)
            {
                entry.upkeep.is_written = true;
            }
        }
    }

    /// A step of compaction where it is due; when the next may be, if that is known.
    fn compact(&mut self) -> Option<Duration> {
        let (now, unix) = (self.clock.now, self.clock.unix);
        let mut next: Option<Duration> = None;
        for _ in 0..LOOK_COUNT_MAX.min(self.namespaces.ids().len()) {
            let id = self.namespaces.after(self.upkeep.compacted)?;
            self.upkeep.compacted = Some(id);
            let entry = self.namespaces.get_mut(id)?;
            let due = entry.upkeep.compaction_at;
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            let Ok(namespace) = &mut entry.namespace else { continue };
            match namespace.compact_step(COMPACTION_STEP_SIZE, unix) {
                Ok(Compaction::Idle) => entry.upkeep.compaction_at = now + COMPACTION_INTERVAL,
                Ok(Compaction::Working | Compaction::Reclaimed { .. }) => return Some(now),
                Ok(Compaction::Waiting) => {
                    entry.upkeep.compaction_at = now + COMPACTION_WAIT;
                    self.want_sync(id);
                    return Some(now + COMPACTION_WAIT);
                }
                Err(error) => {
                    entry.upkeep.compaction_at = now + COMPACTION_RETRY;
                    let error = display_chain(&error);
                    tracing::warn!(namespace = %entry.name, error, "compaction gave up for now");
                }
            }
        }
        next.map(|next| next.min(now + COMPACTION_DELAY))
    }

    /// A step of scrubbing where it is due; whether anything was done.
    fn scrub(&mut self) -> bool {
        let now = self.clock.now;
        for _ in 0..LOOK_COUNT_MAX.min(self.namespaces.ids().len()) {
            // One namespace after the other: each is read to its end before the next.
            let last = self.upkeep.scrubbed.and_then(|id| self.namespaces.get(id));
            if last.is_none_or(|entry| entry.upkeep.scrub_at > now) {
                self.upkeep.scrubbed = self.namespaces.after(self.upkeep.scrubbed);
            }
            let Some(id) = self.upkeep.scrubbed else { return false };
            let Some(entry) = self.namespaces.get_mut(id) else { return false };
            if entry.upkeep.scrub_at > now {
                continue;
            }
            let Ok(namespace) = &mut entry.namespace else {
                entry.upkeep.scrub_at = now + SCRUB_INTERVAL;
                continue;
            };
            match namespace.scrub_step(SCRUB_STEP_SIZE) {
                Ok(Scrub::Working) => {}
                Ok(Scrub::Finished { damaged_count }) => {
                    entry.upkeep.scrub_at = now + SCRUB_INTERVAL;
                    self.metrics.scrub_count += 1;
                    if damaged_count > 0 {
                        tracing::error!(namespace = %entry.name, damaged_count, "damage found");
                    }
                }
                Err(error) => {
                    entry.upkeep.scrub_at = now + SCRUB_INTERVAL;
                    let error = display_chain(&error);
                    tracing::warn!(namespace = %entry.name, error, "scrubbing gave up");
                }
            }
            return true;
        }
        false
    }
}

impl Entry {
    /// Remembers when errors of the disk rose.
    fn note_errors(&mut self, unix: u32) {
        let Ok(namespace) = &self.namespace else { return };
        let stats = namespace.stats();
        if stats.data_error_count > self.errors.data_count {
            self.errors.data_count = stats.data_error_count;
            self.errors.data_last = unix;
        }
        if stats.index_error_count > self.errors.index_count {
            self.errors.index_count = stats.index_error_count;
            self.errors.index_last = unix;
        }
    }
}
