//! Power goes at any call; what was not synced is lost, kept or torn sector by sector.

use std::time::Duration;

use super::{Chance, Op, check, contents_after, create, data_file, index_file, load, open, write};
use crate::storage::Storage;
use crate::storage::sim::SimDisk;
use crate::{Durability, Namespace};

const ROUND_COUNT: u64 = 4;
const STEP_COUNT: u64 = 60;

/// Random work until something fails; says up to which write replies were sent.
fn work(namespace: &mut Namespace, chance: &mut Chance, log: &mut Vec<Op>, now: &mut u64) -> u64 {
    let mut acknowledged = namespace.acknowledged().0;
    for _ in 0..STEP_COUNT {
        let done = match chance.below(12) {
            0 => namespace.tick(Duration::from_secs(*now)).is_ok(),
            1 => namespace.compact_step(20_000, 0).is_ok(),
            2 => namespace.scrub_step(20_000).is_ok(),
            3 if chance.below(8) == 0 => namespace.rotate().is_ok(),
            _ => (0..chance.below(6)).all(|_| {
                let op = chance.op();
                let written = write(namespace, &op);
                if let Ok(Some(seq)) = written {
                    assert_eq!(seq, log.len() as u64 + 1, "numbers are given out one by one");
                    log.push(op);
                }
                written.is_ok()
            }),
        };
        *now += 1;
        if !done || namespace.commit(Duration::from_secs(*now)).is_err() {
            break;
        }
        acknowledged = namespace.acknowledged().0;
    }
    acknowledged
}

fn crash_run(seed: u64, durability: Durability, encrypted: bool) {
    let mut chance = Chance(seed);
    let (disk, mut engine, mut namespace) = create(seed, durability, encrypted);
    disk.set_short(seed.is_multiple_of(2));
    let (mut log, mut now): (Vec<Op>, u64) = (Vec::new(), 0);
    for round in 0..ROUND_COUNT {
        disk.cut_power_at(disk.calls() + chance.below(400));
        let acknowledged = work(&mut namespace, &mut chance, &mut log, &mut now);
        // Nothing may be saved by an orderly end.
        disk.cut_power_at(0);
        drop(namespace);
        drop(engine);
        disk.crash();
        let context = format!("seed {seed}, round {round}, {durability:?}, encrypted {encrypted}");
        engine = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        namespace = load(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
        let last = namespace.last().0;
        let promised = if durability == Durability::Group { acknowledged } else { 0 };
        assert!(last >= promised, "{context}: {last} of {promised} acknowledged writes");
        log.truncate(usize::try_from(last).unwrap());
        assert_eq!(log.len() as u64, last, "{context}: more than was written");
        let stats = namespace.stats();
        assert_eq!(stats.damaged_record_count, 0, "{context}: {stats:?}");
        check(&mut namespace, &contents_after(&log, log.len()), &context);
    }
}

#[test]
fn a_crash_leaves_a_prefix_with_all_that_was_acknowledged() {
    for seed in super::seeds(40) {
        crash_run(seed, Durability::Group, false);
    }
}

#[test]
fn without_syncs_a_crash_leaves_a_prefix() {
    for seed in super::seeds(20) {
        crash_run(seed, Durability::None, false);
        crash_run(seed, Durability::Interval(Duration::from_secs(5)), false);
    }
}

#[test]
fn an_encrypted_namespace_survives_crashes() {
    for seed in super::seeds(12) {
        crash_run(seed, Durability::Group, true);
    }
}

/// Writes one by one; gives the offsets at which the last three records start, and the end.
fn small_log() -> (SimDisk, Vec<Op>, Vec<usize>) {
    let (disk, engine, mut namespace) = create(1, Durability::None, false);
    let mut chance = Chance(5);
    let (mut log, mut offsets) = (Vec::new(), Vec::new());
    while log.len() < 12 {
        let mut op = chance.op();
        op.value = op.value.map(|value| value[value.len() - 8..].to_vec());
        let offset = namespace.stats().active_offset;
        if write(&mut namespace, &op).unwrap().is_some() {
            log.push(op);
            offsets.push(usize::try_from(offset).unwrap());
            namespace.flush().unwrap();
        }
    }
    let end = namespace.stats().active_offset;
    offsets.push(usize::try_from(end).unwrap());
    let copy = disk.copy(2);
    drop((namespace, engine));
    (copy, log, offsets[offsets.len() - 4..].to_vec())
}

#[test]
fn a_tail_cut_at_any_byte_of_the_last_three_records_loses_only_them() {
    let (disk, log, offsets) = small_log();
    assert!(disk.contents(&index_file(0)).is_err(), "nothing was synced, so nothing is proven");
    let (first, end) = (offsets[0], offsets[3]);
    for (cut, zeroes) in (first..=end).flat_map(|cut| [(cut, 0), (cut, 30), (cut, end - cut)]) {
        let disk = disk.copy(3);
        disk.cut(&data_file(0), cut).unwrap();
        let file = disk.open(&data_file(0), crate::storage::Open::Existing).unwrap();
        file.set_size((cut + zeroes) as u64).unwrap();
        let whole = offsets[1..].iter().filter(|end| **end <= cut).count();
        let count = log.len() - 3 + whole;
        let context = format!("cut at {cut}, {zeroes} zeroes");
        let mut log = log[..count].to_vec();
        // What is written after a recovery must survive the next one.
        for round in 0..2 {
            let engine = open(&disk).unwrap();
            let mut namespace = load(&engine).unwrap();
            assert_eq!(namespace.last().0, log.len() as u64, "{context}, round {round}");
            check(&mut namespace, &contents_after(&log, log.len()), &context);
            let op = Op { key: b"key-1".to_vec(), value: Some(vec![round; 50]), timestamp: 1 };
            write(&mut namespace, &op).unwrap();
            log.push(op);
            namespace.sync().unwrap();
        }
    }
}
