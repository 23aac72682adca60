//! No step does more than its budget allows, counted in records, and everything can be asked between any
//! two of them.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Rewrite;
use super::switch::Told;
use crate::storage::sim::SimDisk;
use crate::{Compaction, Direction, Durability, Engine, Found, Name, Namespace, Options, Settings};

/// Keys that live, all of them in segments that are rewritten.
const KEY_COUNT: u32 = 6000;
/// Records that a step may ask or tell the index about.
const SLICE: usize = 100;
/// Steps until it must be over.
const STEP_COUNT_MAX: usize = 10_000;

fn key(number: u32) -> Vec<u8> {
    format!("key-{number:06}").into_bytes()
}

fn value(number: u32, round: u32) -> Vec<u8> {
    format!("{number} of round {round}, and as long as such values often are").into_bytes()
}

/// A namespace with much garbage: of each key a record or two that is superseded.
fn namespace(engine: &Engine) -> Namespace {
    let settings = Settings { durability: Durability::None, ..Settings::default() };
    let mut namespace = engine.create(&Name::new(b"n").unwrap(), settings).unwrap();
    for round in 0..3 {
        for number in 0..KEY_COUNT {
            namespace.set(&key(number), &value(number, round), 0).unwrap();
            if number % 100 == 0 {
                namespace.commit(Duration::ZERO).unwrap();
            }
        }
        namespace.commit(Duration::ZERO).unwrap();
        namespace.rotate().unwrap();
    }
    namespace
}

/// What the index was asked or told, as far as a rewrite is.
fn progress(namespace: &Namespace) -> Option<(bool, usize)> {
    match namespace.compaction.as_ref()? {
        Rewrite::Copying(run) => Some((false, run.judged)),
        Rewrite::Switching(switch) => {
            let Told { moved, freed, dropped } = switch.told;
            Some((true, moved + freed + dropped))
        }
        _ => None,
    }
}

fn check(namespace: &mut Namespace) {
    for number in (0..KEY_COUNT).step_by(7) {
        let mut out = Vec::new();
        let found = namespace.get(&key(number), usize::MAX, &mut out, |_, _| {}).unwrap();
        assert!(matches!(found, Found::Inline { .. }));
        assert_eq!(out, value(number, 2), "key {number}");
    }
    let shown = namespace.scan(Direction::Forward, None, &mut |_| ControlFlow::Continue(()));
    assert_eq!(shown.unwrap().count, KEY_COUNT as usize);
}

#[test]
fn no_step_does_more_than_its_budget_allows() {
    let mut options = Options::new(PathBuf::from("/data"), PathBuf::from("/index"));
    options.segment_size = Options::SEGMENT_SIZE_MIN;
    options.defers = true;
    let engine = Engine::open(Arc::new(SimDisk::new(1)), options).unwrap();
    let mut namespace = namespace(&engine);
    let (mut judged, mut told) = (0, 0);
    for step in 0..STEP_COUNT_MAX {
        let before = progress(&namespace);
        let stepped = namespace.compact_step(super::RECORD_COST * SLICE as u64, 0).unwrap();
        let after = progress(&namespace);
        if let (Some((is_telling, from)), Some((still, to))) = (before, after)
            && is_telling == still
        {
            let done = to - from;
            assert!(done <= SLICE, "{done} records in a step");
            *if is_telling { &mut told } else { &mut judged } += done;
            if is_telling && step % 16 == 0 {
                check(&mut namespace);
            }
        }
        if stepped == Compaction::Idle {
            break;
        }
        // What would block is never done by a step.
        while let Some(ticket) = namespace.begin_sync(Duration::ZERO) {
            namespace.finish_sync(ticket.run()).unwrap();
        }
        assert!(step + 1 < STEP_COUNT_MAX, "it ends");
    }
    assert!(judged > KEY_COUNT as usize, "{judged} judged in steps that could be watched");
    assert!(told > KEY_COUNT as usize, "{told} told in steps that could be watched");
    check(&mut namespace);
    let stats = namespace.stats();
    assert!(stats.data_file_size * 2 < stats.live_record_size * 3, "{stats:?}");
    assert!(stats.reclaimed_size > 0);
}
