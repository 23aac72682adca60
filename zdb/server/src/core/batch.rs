//! The end of a batch: one write, one sync, and the news of both.

use std::time::{Duration, Instant};

use zdb_engine::{CommitFailed, Durability, SeqNo, SyncDone, SyncTicket};

use super::{Absence, Core, NamespaceId};
use crate::refusal::display_chain;

/// A sync that is due, or something else that the engine needs and that blocks, so another thread runs
/// it.
#[derive(Debug)]
pub struct Sync {
    namespace: NamespaceId,
    epoch: u32,
    ticket: SyncTicket,
}

/// A sync that was run.
#[derive(Debug)]
pub struct Synced {
    namespace: NamespaceId,
    epoch: u32,
    done: SyncDone,
    /// How long it took, if it was a sync.
    took: Option<Duration>,
}

/// Writes that failed after their replies were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub namespace: NamespaceId,
    /// This write, and all later ones up to now.
    pub from: SeqNo,
}

impl Sync {
    /// Whether clients wait for it.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.ticket.is_urgent()
    }

    /// Runs it. Blocks until the disk has done it.
    #[must_use]
    pub fn run(self) -> Synced {
        let begin = Instant::now();
        let syncs = self.ticket.syncs();
        let done = self.ticket.run();
        let took = syncs.then(|| begin.elapsed());
        Synced { namespace: self.namespace, epoch: self.epoch, done, took }
    }
}

impl Core {
    /// Writes what the batch wrote, and plans all that must be synced.
    pub fn commit(&mut self) {
        self.write();
        self.plan_syncs();
    }

    /// Writes what the batch wrote.
    fn write(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let now = self.clock.now;
            let Some(entry) = self.namespaces.get_mut(id) else { continue };
            entry.is_touched = false;
            entry.upkeep.written(now);
            let Ok(namespace) = &mut entry.namespace else { continue };
            let flushed = namespace.flush();
            if let Durability::Interval(interval) = namespace.settings().durability {
                self.upkeep.tick_by(now + interval);
            }
            self.note(id, flushed);
            self.want_sync(id);
            self.announce_rotation(id);
        }
        self.touched = touched;
    }

    /// Plans all that must be synced by now.
    fn plan_syncs(&mut self) {
        let now = self.clock.now;
        let mut unsynced = std::mem::take(&mut self.unsynced);
        for id in unsynced.drain(..) {
            let Some(entry) = self.namespaces.get_mut(id) else { continue };
            entry.is_unsynced = false;
            let Ok(namespace) = &mut entry.namespace else { continue };
            while let Some(ticket) = namespace.begin_sync(now) {
                self.syncs.push(Sync { namespace: id, epoch: entry.epoch, ticket });
            }
        }
        self.unsynced = unsynced;
    }

    /// Takes a sync's result. What was written meanwhile is to be synced next.
    pub fn synced(&mut self, synced: Synced) {
        let id = synced.namespace;
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        // A namespace that was loaded anew knows nothing of this sync.
        if entry.epoch != synced.epoch {
            return;
        }
        if entry.is_away() {
            entry.late_syncs.push(synced);
            return;
        }
        if let Some(took) = synced.took {
            self.metrics.syncs.record(took);
        }
        let Ok(namespace) = &mut entry.namespace else { return };
        let finished = namespace.finish_sync(synced.done);
        if !namespace.is_busy() && !entry.waiting.is_empty() {
            self.woken.append(&mut entry.waiting);
            // They come before the next step of compaction, which might have them wait again.
            entry.upkeep.rest(self.clock.now);
        }
        if finished.is_err() {
            // There may be more to hear of.
            self.touch(id);
        }
        self.note(id, finished);
        self.want_sync(id);
        self.announce_rotation(id);
    }

    /// Syncs that are due, to be run by another thread.
    pub fn take_syncs(&mut self) -> impl Iterator<Item = Sync> {
        self.syncs.drain(..)
    }

    /// Writes that failed since the last call.
    pub fn take_failures(&mut self) -> Vec<Failure> {
        std::mem::take(&mut self.failures)
    }

    /// Up to which write replies of a namespace may be sent; `None` if it is gone.
    #[must_use]
    pub fn acknowledged(&self, id: NamespaceId) -> Option<SeqNo> {
        let entry = self.namespaces.get(id)?;
        let acknowledged = match &entry.namespace {
            Ok(namespace) => namespace.acknowledged(),
            Err(Absence::Away { acknowledged, .. }) => *acknowledged,
            Err(Absence::Unavailable(_)) => return None,
        };
        Some(acknowledged.min(self.followed(entry)))
    }

    /// Remembers a namespace that has something to be synced.
    pub(crate) fn want_sync(&mut self, id: NamespaceId) {
        let now = self.clock.now;
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        let Ok(namespace) = &entry.namespace else { return };
        if !entry.is_unsynced && namespace.wants_sync(now) {
            entry.is_unsynced = true;
            self.unsynced.push(id);
        }
    }

    /// Remembers what failed.
    pub(crate) fn note(&mut self, id: NamespaceId, result: Result<(), CommitFailed>) {
        let Err(failed) = result else { return };
        let name = self.namespaces.get(id).map(|entry| entry.name.to_string());
        tracing::error!(
            namespace = name.unwrap_or_default(),
            error = display_chain(&failed),
            "writes are lost"
        );
        self.metrics.commit_failed_count += 1;
        self.failures.push(Failure { namespace: id, from: failed.from });
    }
}
