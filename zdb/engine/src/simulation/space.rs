//! Full disks, and files that must not grow for ever.

use std::time::Duration;

use super::{Chance, check, contents_after, create, get, load, open, options, write};
use crate::{Compaction, Durability, Error, History, Namespace, Settings};

fn compact_all(namespace: &mut Namespace, now: u32) -> u64 {
    let mut reclaimed = 0;
    for _ in 0..10_000 {
        match namespace.compact_step(100_000, now).unwrap() {
            Compaction::Idle => return reclaimed,
            Compaction::Working => {}
            Compaction::Waiting => panic!("nothing is deferred"),
            Compaction::Reclaimed { size } => reclaimed += size,
        }
    }
    panic!("compaction does not come to rest");
}

#[test]
fn overwriting_for_ever_keeps_files_small() {
    let (_, engine, mut namespace) = create(1, Durability::None, false);
    let mut chance = Chance(1);
    for round in 0..6000u64 {
        let key = format!("key-{}", chance.below(400));
        let value = [round.to_le_bytes().repeat(120), vec![0; 7]].concat();
        namespace.set(key.as_bytes(), &value, 0).unwrap();
        namespace.compact_step(4000, 0).unwrap();
        if round > 1000 && round % 100 == 0 {
            namespace.flush().unwrap();
            let stats = namespace.stats();
            let bound = stats.live_record_size * 3 / 2 + u64::from(options().segment_size);
            assert!(stats.data_file_size <= bound, "{stats:?}");
        }
    }
    assert_eq!(namespace.len(), 400);
    namespace.close().unwrap();
    assert_eq!(load(&engine).unwrap().len(), 400);
}

#[test]
fn what_was_deleted_leaves_nothing_behind() {
    let (_, engine, mut namespace) = create(1, Durability::None, false);
    for number in 0..3000u32 {
        let key = number.to_le_bytes();
        namespace.set(&key, &[1; 100], 0).unwrap();
        if number >= 10 {
            namespace.delete(&(number - 10).to_le_bytes(), 0).unwrap();
        }
    }
    namespace.rotate().unwrap();
    for _ in 0..4 {
        compact_all(&mut namespace, 0);
    }
    let stats = namespace.stats();
    assert_eq!(stats.entry_count, 10);
    assert!(stats.data_file_size < 3 * u64::from(options().segment_size), "{stats:?}");
    namespace.close().unwrap();
    let namespace = load(&engine).unwrap();
    assert_eq!(namespace.len(), 10, "nothing came back");
}

#[test]
fn a_full_disk_refuses_writes_and_takes_deletions() {
    let (disk, engine, mut namespace) = create(1, Durability::Group, false);
    disk.set_capacity(1024 * 1024);
    engine.tick();
    let value = [3; 5000];
    let mut count = 0u32;
    let refused = loop {
        let set = namespace.set(&count.to_le_bytes(), &value, 0);
        let committed = namespace.commit(Duration::from_secs(count.into()));
        match (set, committed) {
            (Ok(_), Ok(())) => count += 1,
            (Err(error), _) => break error,
            (_, Err(failed)) => break failed.source,
        }
    };
    assert!(matches!(refused, Error::DiskFull), "{refused}");
    assert!(count > 100, "{count} values fit");
    assert!(engine.disk_full());
    for number in 0..count {
        assert_eq!(get(&mut namespace, &number.to_le_bytes()).unwrap().unwrap(), value);
    }
    // Deleting works, and gives space back without any help from outside.
    for number in (0..count).filter(|number| number % 4 != 0) {
        namespace.delete(&number.to_le_bytes(), 0).unwrap().unwrap();
        namespace.commit(Duration::from_secs(number.into())).unwrap();
    }
    for _ in 0..100 {
        let _ = namespace.compact_step(1 << 20, 0);
        engine.tick();
    }
    assert!(!engine.disk_full(), "{:?}", namespace.stats());
    namespace.set(b"again", &value, 0).unwrap();
    namespace.commit(Duration::from_secs(100)).unwrap();
    namespace.close().unwrap();
    let mut namespace = load(&engine).unwrap();
    assert_eq!(namespace.len(), u64::from(count.div_ceil(4)) + 1);
    assert_eq!(get(&mut namespace, b"again").unwrap().unwrap(), value);
}

#[test]
fn small_segments_are_merged() {
    let (_, engine, mut namespace) = create(1, Durability::None, true);
    for number in 0..100u32 {
        namespace.set(&number.to_le_bytes(), b"value", 0).unwrap();
        namespace.rotate().unwrap();
    }
    assert!(compact_all(&mut namespace, 0) > 0);
    assert!(namespace.stats().segment_count < 40, "{:?}", namespace.stats());
    namespace.close().unwrap();
    let mut namespace = load(&engine).unwrap();
    for number in 0..100u32 {
        assert_eq!(get(&mut namespace, &number.to_le_bytes()).unwrap().unwrap(), b"value");
    }
}

#[test]
fn history_is_kept_as_long_as_it_is_young() {
    let (_, engine, mut namespace) = create(1, Durability::None, false);
    let history = History::Younger(Duration::from_secs(100));
    namespace.update(Settings { history, ..namespace.settings().clone() }).unwrap();
    for round in 0..200u32 {
        namespace.set(b"key", &[1; 1000].map(|_: u8| u8::try_from(round).unwrap()), round).unwrap();
    }
    for number in 0..100u32 {
        namespace.set(&number.to_le_bytes(), &[2; 1000], 0).unwrap();
    }
    namespace.rotate().unwrap();
    compact_all(&mut namespace, 250);
    namespace.close().unwrap();
    let mut namespace = load(&engine).unwrap();
    let (mut cursor, mut times) = (None::<[u8; 8]>, Vec::new());
    loop {
        let mut value = Vec::new();
        let cursor_bytes = cursor.as_ref().map(|cursor| &cursor[..]);
        let entry = namespace.history(b"key", cursor_bytes, &mut value).unwrap().unwrap();
        assert_eq!(value, [u8::try_from(entry.timestamp).unwrap(); 1000]);
        times.push(entry.timestamp);
        match entry.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert!(times.is_sorted_by(|newer, older| newer == &(older + 1)), "{times:?}");
    assert!(times.contains(&151), "young values are kept: {times:?}");
    assert!(times.len() < 150, "old values are not: {times:?}");
}

#[test]
fn crashes_amid_compaction_lose_nothing() {
    for seed in super::seeds(25) {
        let (disk, engine, mut namespace) = create(seed, Durability::Group, seed % 4 == 0);
        let mut chance = Chance(seed);
        let mut log = Vec::new();
        while log.len() < 300 {
            let op = chance.op();
            if write(&mut namespace, &op).unwrap().is_some() {
                log.push(op);
            }
        }
        namespace.rotate().unwrap();
        disk.cut_power_at(disk.calls() + chance.below(60));
        while namespace.compact_step(30_000, 0).is_ok_and(|step| step != Compaction::Idle) {}
        disk.cut_power_at(0);
        drop((namespace, engine));
        disk.crash();
        let engine = open(&disk).unwrap();
        let mut namespace = load(&engine).unwrap();
        let context = format!("seed {seed}");
        check(&mut namespace, &contents_after(&log, log.len()), &context);
        // And once more, to its end.
        compact_all(&mut namespace, 0);
        check(&mut namespace, &contents_after(&log, log.len()), &context);
        namespace.close().unwrap();
        check(&mut load(&engine).unwrap(), &contents_after(&log, log.len()), &context);
    }
}

#[test]
fn quotas_count_live_values_and_files() {
    let (_, _engine, mut namespace) = create(1, Durability::None, false);
    namespace.update(Settings { size_max: 16, ..namespace.settings().clone() }).unwrap();
    let mut set = |key: &[u8], value: &[u8]| namespace.set(key, value, 0).map(|_| ());
    // The steps of the reference's vector `maxsize`.
    set(b"k1", b"0123456789").unwrap();
    set(b"k2", b"abcde").unwrap();
    set(b"k3", b"+").unwrap();
    assert!(matches!(set(b"k4", b"X"), Err(Error::Quota { .. })));
    set(b"k3", b"-").unwrap();
    set(b"k1", b"12345").unwrap();
    assert!(matches!(set(b"k5", b"67890X"), Err(Error::Quota { .. })));
    set(b"k5", b"67890").unwrap();
    namespace.delete(b"k1", 0).unwrap();
    namespace.set(b"k6", b"12345", 0).unwrap();
    namespace.set(b"k7", b"", 0).unwrap();
    let settings = Settings { size_max: 0, file_size_max: 5000, ..namespace.settings().clone() };
    namespace.update(settings).unwrap();
    let refused = (0..=u8::MAX).find_map(|byte| namespace.set(b"k", &[byte; 100], 0).err());
    assert!(matches!(refused, Some(Error::Quota { size_max: 5000, .. })), "{refused:?}");
}
