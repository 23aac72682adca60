//! The end of a batch: one write, one sync, and the news of both.

use std::time::{Duration, Instant};

use zdb_engine::{CommitFailed, Durability, SeqNo, SyncDone, SyncTicket};

use super::{Absence, Core, NamespaceId};
use crate::refusal::display_chain;

/// A sync that is due. It blocks, so another thread runs it.
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
    took: Duration,
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
    /// Runs it. Blocks until the disk has everything.
    #[must_use]
    pub fn run(self) -> Synced {
        let begin = Instant::now();
        let done = self.ticket.run();
        Synced { namespace: self.namespace, epoch: self.epoch, done, took: begin.elapsed() }
    }
}

impl Core {
    /// Writes what the batch wrote, and plans the syncs that are due.
    pub fn commit(&mut self) {
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
            self.plan_sync(id);
            self.announce_rotation(id);
        }
        self.touched = touched;
    }

    /// Takes a sync's result. What was written meanwhile is planned to be synced next.
    pub fn synced(&mut self, synced: Synced) {
        let id = synced.namespace;
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        // A namespace that was loaded anew knows nothing of this sync.
        if entry.epoch != synced.epoch {
            return;
        }
        if entry.is_away() {
            entry.late_sync = Some(synced);
            return;
        }
        self.metrics.syncs.record(synced.took);
        let Ok(namespace) = &mut entry.namespace else { return };
        let finished = namespace.finish_sync(synced.done);
        self.note(id, finished);
        self.plan_sync(id);
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

    /// Plans a namespace's sync if one is due.
    pub(crate) fn plan_sync(&mut self, id: NamespaceId) {
        let now = self.clock.now;
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        let Ok(namespace) = &mut entry.namespace else { return };
        if let Some(ticket) = namespace.begin_sync(now) {
            self.syncs.push(Sync { namespace: id, epoch: entry.epoch, ticket });
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
