//! Random work against maps: both modes, plain and encrypted, with restarts, rotation, compaction.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use proptest::prelude::*;

use super::{create, get, load, name, open};
use crate::storage::sim::SimDisk;
use crate::{
    Direction, Durability, Error, Mode, Name, Namespace, SCAN_CURSOR_SIZE, SeqNo, Settings,
};

#[derive(Clone, Debug)]
enum Step {
    Set(u8, Vec<u8>),
    Delete(u8),
    Commit,
    Rotate,
    Compact,
    Restart,
    Tick,
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..20),
        1 => (any::<u8>(), 3000..20_000usize).prop_map(|(byte, size)| vec![byte; size]),
    ];
    let step = prop_oneof![
        12 => (0..12u8, value).prop_map(|(key, value)| Step::Set(key, value)),
        4 => (0..12u8).prop_map(Step::Delete),
        2 => Just(Step::Commit),
        1 => Just(Step::Rotate),
        2 => Just(Step::Compact),
        1 => Just(Step::Restart),
        1 => Just(Step::Tick),
        1 => prop_oneof![9 => Just(Step::Tick), 1 => Just(Step::Clear)],
    ];
    proptest::collection::vec(step, 1..120)
}

/// Keys in the order of their last write, with their values.
#[derive(Default)]
struct Model {
    order: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Model {
    fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        if self.order.iter().any(|(k, v)| k == key && v == value) {
            return false;
        }
        self.delete(key);
        self.order.push((key.to_vec(), value.to_vec()));
        true
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        let before = self.order.len();
        self.order.retain(|(k, _)| k != key);
        self.order.len() != before
    }
}

/// All keys in order, a few per call.
fn scan(namespace: &mut Namespace, direction: Direction) -> Vec<Vec<u8>> {
    let (mut keys, mut cursor) = (Vec::new(), None::<[u8; SCAN_CURSOR_SIZE]>);
    loop {
        let mut rest = 3;
        let from = cursor.as_ref().map(|cursor| &cursor[..]);
        let scanned = namespace.scan(direction, from, &mut |item| {
            keys.push(item.key.to_vec());
            rest -= 1;
            if rest == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match scanned.unwrap().cursor {
            Some(next) => cursor = Some(next),
            None => return keys,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn user_mode_is_a_map_in_order_of_writes(steps in steps(), encrypted: bool) {
        let (_disk, engine, mut namespace) = create(1, Durability::None, encrypted);
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Set(key, value) => {
                    let written = namespace.set(&[*key], value, 9).unwrap();
                    prop_assert_eq!(written.is_some(), model.set(&[*key], value));
                }
                Step::Delete(key) => {
                    let deleted = namespace.delete(&[*key], 9).unwrap();
                    prop_assert_eq!(deleted.is_some(), model.delete(&[*key]));
                }
                Step::Commit => namespace.commit(Duration::ZERO).unwrap(),
                Step::Rotate => drop(namespace.rotate().unwrap()),
                Step::Compact => drop(namespace.compact_step(50_000, 0).unwrap()),
                Step::Tick => namespace.tick(Duration::ZERO).unwrap(),
                Step::Clear => {
                    namespace.clear().unwrap();
                    model.order.clear();
                }
                Step::Restart => {
                    namespace.close().unwrap();
                    namespace = load(&engine).unwrap();
                }
            }
            for key in 0..12u8 {
                let wanted = model.order.iter().find(|(k, _)| *k == [key]).map(|(_, v)| v.clone());
                prop_assert_eq!(get(&mut namespace, &[key]).unwrap(), wanted);
            }
        }
        let mut keys: Vec<_> = model.order.iter().map(|(key, _)| key.clone()).collect();
        prop_assert_eq!(scan(&mut namespace, Direction::Forward), keys.clone());
        keys.reverse();
        prop_assert_eq!(scan(&mut namespace, Direction::Backward), keys);
        prop_assert_eq!(namespace.len(), model.order.len() as u64);
    }

    #[test]
    fn sequential_mode_gives_ids_once(steps in steps()) {
        let disk = SimDisk::new(1);
        let engine = open(&disk).unwrap();
        let settings = Settings { mode: Mode::Sequential, ..Settings::default() };
        let mut namespace = engine.create(&name(), settings).unwrap();
        let (mut model, mut next): (BTreeMap<u64, Vec<u8>>, u64) = (BTreeMap::new(), 0);
        for step in &steps {
            match step {
                // Small numbers append; others name an id, known or not.
                Step::Set(0..6, value) => {
                    let written = namespace.set(b"", value, 9).unwrap().unwrap();
                    prop_assert_eq!(written.id, Some(next));
                    model.insert(next, value.clone());
                    next += 1;
                }
                Step::Set(key, value) => {
                    let id = u64::from(*key) - 6;
                    let written = namespace.set(&id.to_le_bytes(), value, 9);
                    match model.get_mut(&id) {
                        None => prop_assert!(matches!(written, Err(Error::UnknownId))),
                        Some(known) if known == value => prop_assert!(written.unwrap().is_none()),
                        Some(known) => {
                            prop_assert!(written.unwrap().is_some());
                            known.clone_from(value);
                            next += 1;
                        }
                    }
                }
                Step::Delete(key) => {
                    let id = u64::from(*key);
                    let deleted = namespace.delete(&id.to_le_bytes(), 9).unwrap();
                    prop_assert_eq!(deleted.is_some(), model.remove(&id).is_some());
                }
                Step::Commit => namespace.commit(Duration::ZERO).unwrap(),
                Step::Rotate => drop(namespace.rotate().unwrap()),
                Step::Compact => drop(namespace.compact_step(50_000, 0).unwrap()),
                Step::Tick | Step::Clear => namespace.tick(Duration::ZERO).unwrap(),
                Step::Restart => {
                    namespace.close().unwrap();
                    namespace = load(&engine).unwrap();
                }
            }
            prop_assert_eq!(namespace.stats().next_id, next);
        }
        for (id, value) in &model {
            let found = get(&mut namespace, &id.to_le_bytes()).unwrap();
            prop_assert_eq!(found.as_ref(), Some(value));
        }
        let ids: Vec<_> = model.keys().map(|id| id.to_le_bytes().to_vec()).collect();
        prop_assert_eq!(scan(&mut namespace, Direction::Forward), ids);
    }

    /// A follower that takes the stream in pieces, while compaction goes on, ends up equal.
    #[test]
    fn a_follower_becomes_equal(steps in steps()) {
        let (_disk, engine, mut leader) = create(1, Durability::Group, false);
        let other = Name::new(b"follower").unwrap();
        let mut follower = engine.create(&other, Settings::default()).unwrap();
        let mut model = Model::default();
        leader.hold(Some(SeqNo(0)));
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Set(key, value) => {
                    leader.set(&[*key], value, 9).unwrap();
                    model.set(&[*key], value);
                }
                Step::Delete(key) => {
                    leader.delete(&[*key], 9).unwrap();
                    model.delete(&[*key]);
                }
                Step::Clear => {
                    leader.clear().unwrap();
                    model.order.clear();
                }
                Step::Rotate => drop(leader.rotate().unwrap()),
                _ => drop(leader.compact_step(50_000, 0).unwrap()),
            }
            if number % 7 == 0 || number + 1 == steps.len() {
                leader.sync().unwrap();
                let known = follower.last();
                let through = leader.read_log(known, 2000, &mut |record| {
                    follower.apply(&record).unwrap();
                    ControlFlow::Continue(())
                }).unwrap();
                prop_assert!(through >= follower.last());
                leader.hold(Some(follower.last()));
            }
        }
        while follower.last() < leader.last() {
            let known = follower.last();
            let through = leader.read_log(known, 2000, &mut |record| {
                follower.apply(&record).unwrap();
                ControlFlow::Continue(())
            }).unwrap();
            if follower.last() == known {
                prop_assert_eq!(through, leader.last());
                break;
            }
        }
        for key in 0..12u8 {
            let wanted = model.order.iter().find(|(k, _)| *k == [key]).map(|(_, v)| v.clone());
            prop_assert_eq!(get(&mut follower, &[key]).unwrap(), wanted);
        }
    }
}
