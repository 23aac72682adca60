//! Each call fails once: reads go on, nothing acknowledged is lost, and all is well when the disk
//! is.

use std::time::Duration;

use super::{Chance, Op, check, contents_after, create, load, open, write};
use crate::storage::sim::{EIO, ENOSPC, SimDisk};
use crate::{CommitFailed, Durability, Engine, Error, Namespace};

/// A namespace, and what the clients know of it.
struct Story {
    namespace: Namespace,
    log: Vec<Op>,
    chance: Chance,
    now: u64,
}

impl Story {
    fn new(seed: u64, encrypted: bool) -> (SimDisk, Engine, Self) {
        let (disk, engine, namespace) = create(seed, Durability::Group, encrypted);
        (disk, engine, Self { namespace, log: Vec::new(), chance: Chance(seed), now: 0 })
    }

    /// Some batches; failures are taken as a server would.
    fn tell(&mut self, step_count: u64) {
        for step in 0..step_count {
            for _ in 0..3 {
                let op = self.chance.op();
                if let Ok(Some(seq)) = write(&mut self.namespace, &op) {
                    assert_eq!(seq, self.log.len() as u64 + 1);
                    self.log.push(op);
                }
            }
            self.now += 1;
            let committed = self.namespace.commit(Duration::from_secs(self.now));
            self.note(committed);
            if step % 5 == 4 {
                let _ = self.namespace.rotate();
                // A write amid the batch may have failed there.
                let flushed = self.namespace.flush();
                self.note(flushed);
            }
            if step % 4 == 3 {
                let _ = self.namespace.compact_step(30_000, 0);
                let ticked = self.namespace.tick(Duration::from_secs(self.now));
                self.note(ticked);
            }
        }
    }

    /// Undone writes never happened; those whose sync failed may or may not survive.
    fn note(&mut self, committed: Result<(), CommitFailed>) {
        match committed {
            Err(CommitFailed { source: Error::Sync(_), .. }) | Ok(()) => {}
            Err(CommitFailed { from, .. }) => {
                self.log.truncate(usize::try_from(from.0).unwrap() - 1);
            }
        }
        assert_eq!(self.namespace.last().0, self.log.len() as u64, "undone, or visible");
    }

    fn check(&mut self, context: &str) {
        let expected = contents_after(&self.log, self.log.len());
        check(&mut self.namespace, &expected, context);
    }
}

/// Lets some calls of a story fail, then heals the disk, goes on, and pulls the plug.
fn fault_run(seed: u64, first: u64, count: u64, error: i32, encrypted: bool) -> bool {
    let context = format!("seed {seed}: calls {first} to +{count} fail with {error}");
    let (disk, engine, mut story) = Story::new(seed, encrypted);
    let start = disk.calls();
    disk.fail(start + first, count, error);
    story.tell(20);
    let reached = disk.calls() > start + first;
    disk.heal();
    engine.tick();
    story.check(&context);
    // The reserve comes back, suspects are written again, index files are completed.
    story.namespace.tick(Duration::from_secs(story.now)).unwrap();
    story.tell(6);
    story.namespace.sync().unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(story.namespace.acknowledged().0, story.log.len() as u64, "{context}");
    story.check(&context);
    let log = std::mem::take(&mut story.log);
    disk.cut_power_at(0);
    drop((story, engine));
    disk.crash();
    let engine = open(&disk).unwrap();
    let mut namespace = load(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
    check(&mut namespace, &contents_after(&log, log.len()), &context);
    reached
}

#[test]
fn any_call_may_fail_once() {
    for error in [EIO, ENOSPC] {
        let mut call = 0;
        while fault_run(3, call, 1, error, false) {
            call += 1;
        }
        assert!(call > 100, "the story has {call} calls");
    }
}

#[test]
fn many_calls_may_fail_in_a_row() {
    for seed in super::seeds(30) {
        let mut chance = Chance(seed);
        let (first, count) = (chance.below(150), 2 + chance.below(60));
        let error = if chance.below(2) == 0 { EIO } else { ENOSPC };
        fault_run(seed, first, count, error, chance.below(3) == 0);
    }
}

/// What was acknowledged before a crash amid failures is there after it.
#[test]
fn failures_and_a_crash() {
    for seed in super::seeds(30) {
        let (disk, engine, mut story) = Story::new(seed, false);
        let mut chance = Chance(seed);
        story.tell(3);
        disk.fail(disk.calls() + chance.below(40), 1 + chance.below(5), EIO);
        story.tell(3);
        let acknowledged = story.namespace.acknowledged().0;
        let log = std::mem::take(&mut story.log);
        disk.cut_power_at(0);
        drop((story, engine));
        disk.crash();
        let engine = open(&disk).unwrap();
        let mut namespace = load(&engine).unwrap();
        let last = namespace.last().0;
        assert!(last >= acknowledged, "seed {seed}: {last} of {acknowledged}");
        // Writes that were undone may be in the file if the power goes before it was cut.
        let known = usize::try_from(last).unwrap().min(log.len());
        if last == known as u64 {
            check(&mut namespace, &contents_after(&log, known), &format!("seed {seed}"));
        }
    }
}
