//! Segments change and are replaced beside the caller: what blocks runs late, in any order, between
//! any two calls; and calls fail, or the power goes, at any of them.

use std::sync::Arc;
use std::time::Duration;

use super::{Chance, Op, check, contents_after, load, name, options, secret, write};
use crate::storage::sim::{EIO, ENOSPC, SimDisk};
use crate::{
    CommitFailed, Durability, Engine, Error, Namespace, Options, Settings, SyncDone, SyncTicket,
};

const STEP_COUNT: u64 = 150;

/// A namespace, its clients, and the threads that block for it.
struct Story {
    namespace: Namespace,
    log: Vec<Op>,
    chance: Chance,
    now: u64,
    /// Not yet run.
    tickets: Vec<SyncTicket>,
    /// Run, and not told.
    done: Vec<SyncDone>,
    /// How often a write had to wait.
    busy_count: u64,
}

fn open(disk: &SimDisk) -> Engine {
    let options = Options { defers: true, ..options() };
    Engine::open(Arc::new(disk.clone()), options).unwrap()
}

impl Story {
    fn new(seed: u64, durability: Durability, encrypted: bool) -> (SimDisk, Engine, Self) {
        let disk = SimDisk::new(seed);
        let engine = open(&disk);
        let settings = Settings { durability, ..Settings::default() };
        let namespace = if encrypted {
            engine.create_encrypted(&name(), settings, &secret()).unwrap()
        } else {
            engine.create(&name(), settings).unwrap()
        };
        let (log, tickets, done) = (Vec::new(), Vec::new(), Vec::new());
        let chance = Chance(seed);
        let story = Self { namespace, log, chance, now: 0, tickets, done, busy_count: 0 };
        (disk, engine, story)
    }

    /// Does one of many things.
    fn step(&mut self) {
        self.now += 1;
        let now = Duration::from_secs(self.now);
        match self.chance.below(14) {
            0 => {
                let ticked = self.namespace.tick(now);
                self.note(ticked);
            }
            // From one record to all.
            1 | 2 => {
                let budget = 64 << self.chance.below(9);
                drop(self.namespace.compact_step(budget, 0));
            }
            3 => drop(self.namespace.scrub_step(20_000)),
            4 | 5 => self.tickets.extend(self.namespace.begin_sync(now)),
            6 | 7 => self.run_one(),
            8 | 9 => self.tell_one(),
            _ => self.write_some(),
        }
    }

    fn write_some(&mut self) {
        // Now and then, more than a segment holds.
        let is_burst = self.chance.below(24) == 0;
        for _ in 0..if is_burst { 300 } else { self.chance.below(8) } {
            let op = self.chance.op();
            match write(&mut self.namespace, &op) {
                Ok(Some(seq)) => {
                    assert_eq!(seq, self.log.len() as u64 + 1, "numbers are given out one by one");
                    self.log.push(op);
                }
                Err(Error::Busy) => self.busy_count += 1,
                Ok(None) | Err(_) => {}
            }
        }
        let flushed = self.namespace.flush();
        self.note(flushed);
    }

    fn run_one(&mut self) {
        if !self.tickets.is_empty() {
            let which = self.chance.below(self.tickets.len() as u64);
            let ticket = self.tickets.swap_remove(usize::try_from(which).unwrap());
            self.done.push(ticket.run());
        }
    }

    fn tell_one(&mut self) {
        if !self.done.is_empty() {
            let which = self.chance.below(self.done.len() as u64);
            let done = self.done.swap_remove(usize::try_from(which).unwrap());
            let finished = self.namespace.finish_sync(done);
            self.note(finished);
        }
    }

    /// Until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let flushed = self.namespace.flush();
            self.note(flushed);
            self.now += 1;
            self.tickets.extend(self.namespace.begin_sync(Duration::from_secs(self.now)));
            if self.tickets.is_empty() && self.done.is_empty() {
                return;
            }
            self.run_one();
            self.tell_one();
        }
        panic!("there is always something to do");
    }

    /// Undone writes never happened; those whose sync failed may or may not survive.
    fn note(&mut self, mut result: Result<(), CommitFailed>) {
        for _ in 0..100 {
            let Err(CommitFailed { from, source }) = result else { break };
            if !matches!(source, Error::Sync(_)) {
                self.log.truncate(usize::try_from(from.0).unwrap() - 1);
            }
            result = self.namespace.flush();
        }
        assert_eq!(self.namespace.last().0, self.log.len() as u64, "undone, or visible");
    }

    fn check(&mut self, context: &str) {
        let expected = contents_after(&self.log, self.log.len());
        check(&mut self.namespace, &expected, context);
    }
}

#[test]
fn reads_are_right_and_all_becomes_durable_whatever_runs_when() {
    let mut busy_count = 0;
    for seed in super::seeds(30) {
        let encrypted = seed % 3 == 0;
        let durability = if seed % 2 == 0 { Durability::Group } else { Durability::None };
        let context = format!("seed {seed}, {durability:?}, encrypted {encrypted}");
        let (disk, engine, mut story) = Story::new(seed, durability, encrypted);
        for step in 0..4 * STEP_COUNT {
            story.step();
            if step % 20 == 0 {
                story.check(&context);
            }
        }
        story.settle();
        story.check(&context);
        assert_eq!(story.namespace.acknowledged().0, story.log.len() as u64, "{context}");
        assert!(story.namespace.stats().active_segment > 0, "{context}: segments changed");
        busy_count += story.busy_count;
        let Story { namespace, log, .. } = story;
        namespace.close().unwrap();
        disk.cut_power_at(0);
        drop(engine);
        disk.crash();
        let engine = open(&disk);
        check(&mut load(&engine).unwrap(), &contents_after(&log, log.len()), &context);
    }
    assert!(busy_count > 0, "memory is bounded while there is no file");
}

#[test]
fn a_crash_leaves_a_prefix_with_all_that_was_acknowledged() {
    for seed in super::seeds(40) {
        let encrypted = seed % 4 == 0;
        let context = format!("seed {seed}, encrypted {encrypted}");
        let (disk, mut engine, mut story) = Story::new(seed, Durability::Group, encrypted);
        for round in 0..4 {
            let context = format!("{context}, round {round}");
            let cut_at = disk.calls() + story.chance.below(500);
            disk.cut_power_at(cut_at);
            let mut acknowledged = story.namespace.acknowledged().0;
            for _ in 0..STEP_COUNT {
                story.step();
                if disk.calls() > cut_at {
                    break;
                }
                acknowledged = story.namespace.acknowledged().0;
            }
            let Story { namespace, mut log, chance, now, busy_count, .. } = story;
            // Nothing may be saved by an orderly end.
            disk.cut_power_at(0);
            drop(namespace);
            drop(engine);
            disk.crash();
            engine = open(&disk);
            let mut namespace = load(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
            let last = namespace.last().0;
            assert!(last >= acknowledged, "{context}: {last} of {acknowledged} acknowledged");
            let known = usize::try_from(last).unwrap();
            if known > log.len() {
                // Undone in memory when the power had gone already, and yet in the file.
                break;
            }
            log.truncate(known);
            assert_eq!(namespace.stats().damaged_record_count, 0, "{context}");
            check(&mut namespace, &contents_after(&log, log.len()), &context);
            let (tickets, done) = (Vec::new(), Vec::new());
            story = Story { namespace, log, chance, now, tickets, done, busy_count };
        }
    }
}

#[test]
fn after_failures_all_is_well_when_the_disk_is() {
    for seed in super::seeds(60) {
        let context = format!("seed {seed}");
        let (disk, engine, mut story) = Story::new(seed, Durability::Group, seed % 4 == 0);
        let first = story.chance.below(200);
        let count = 1 + story.chance.below(12);
        let error = if story.chance.below(2) == 0 { EIO } else { ENOSPC };
        disk.fail(disk.calls() + first, count, error);
        for _ in 0..STEP_COUNT {
            story.step();
        }
        disk.heal();
        engine.tick();
        story.settle();
        story.check(&context);
        let ticked = story.namespace.tick(Duration::from_secs(story.now));
        story.note(ticked);
        story.settle();
        for _ in 0..STEP_COUNT {
            story.step();
        }
        story.settle();
        story.check(&context);
        assert_eq!(story.namespace.acknowledged().0, story.log.len() as u64, "{context}");
        let log = std::mem::take(&mut story.log);
        disk.cut_power_at(0);
        drop((story, engine));
        disk.crash();
        let engine = open(&disk);
        let mut namespace = load(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
        check(&mut namespace, &contents_after(&log, log.len()), &context);
    }
}
