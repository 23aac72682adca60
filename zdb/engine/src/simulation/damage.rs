//! A byte changes where it lies: a key answers with its value or an error, never with another
//! value, and never as if it had not been written.

use std::time::Duration;

use super::{
    Chance, Contents, KEY_COUNT, Op, check, contents_after, create, data_file, get, index_file,
    load, open, write,
};
use crate::storage::Storage;
use crate::storage::sim::SimDisk;
use crate::{Durability, Error};

/// A disk with some segments, closed in order or left as after a power loss, and what is on it.
fn filled(encrypted: bool, closed: bool) -> (SimDisk, Contents) {
    let (disk, engine, mut namespace) = create(1, Durability::Group, encrypted);
    let mut chance = Chance(3);
    let mut log: Vec<Op> = Vec::new();
    for step in 0..70 {
        let mut op = chance.op();
        op.value = op.value.map(|value| value[value.len().saturating_sub(40)..].to_vec());
        if write(&mut namespace, &op).unwrap().is_some() {
            log.push(op);
        }
        if step % 3 == 0 {
            namespace.commit(Duration::from_secs(step)).unwrap();
        }
        if step == 40 {
            namespace.rotate().unwrap();
        }
    }
    namespace.commit(Duration::from_secs(100)).unwrap();
    let expected = contents_after(&log, log.len());
    if closed {
        namespace.close().unwrap();
        drop(engine);
        return (disk, expected);
    }
    let copy = disk.copy(2);
    drop((namespace, engine));
    (copy, expected)
}

/// Every key is right, or says that it is damaged. Gives how many are damaged.
fn check_damaged(disk: &SimDisk, expected: &Contents, context: &str) -> usize {
    let engine = open(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut namespace = load(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut damaged = 0;
    for number in 0..KEY_COUNT {
        let key = format!("key-{number}").into_bytes();
        let wanted = expected.get(&key).map(|(value, _)| value);
        match get(&mut namespace, &key) {
            Ok(value) => assert_eq!(value.as_ref(), wanted, "{context}: key {number}"),
            Err(Error::Damaged { .. }) => damaged += 1,
            Err(error) => panic!("{context}: key {number}: {error}"),
        }
    }
    // The others go on being served, and damaged keys can be set anew.
    for number in 0..KEY_COUNT {
        let key = format!("key-{number}").into_bytes();
        namespace.set(&key, b"anew", 1).unwrap();
    }
    namespace.sync().unwrap();
    drop(namespace);
    let mut namespace = load(&engine).unwrap();
    for number in 0..KEY_COUNT {
        let key = format!("key-{number}").into_bytes();
        assert_eq!(get(&mut namespace, &key).unwrap().unwrap(), b"anew", "{context}");
    }
    damaged
}

fn flip_everywhere(
    disk: &SimDisk,
    expected: &Contents,
    paths: &[std::path::PathBuf],
    stride: usize,
) {
    for path in paths {
        let size = disk.contents(path).unwrap().len();
        let offsets = (0..size).step_by(stride).chain(size.saturating_sub(8)..size);
        for (count, offset) in offsets.enumerate() {
            let copy = disk.copy(offset as u64);
            copy.flip(path, offset, 1 << (count % 8)).unwrap();
            let context = format!("{}, byte {offset}", path.display());
            let damaged = check_damaged(&copy, expected, &context);
            assert!(damaged <= 1, "{context}: one byte damages one record, not {damaged}");
        }
    }
}

fn all_files() -> Vec<std::path::PathBuf> {
    vec![
        data_file(0),
        data_file(1),
        index_file(0),
        index_file(1),
        "/data/n/zdb-namespace".into(),
        "/index/n/zdb-namespace".into(),
    ]
}

#[test]
fn any_flipped_byte_is_an_error_or_repaired() {
    let (disk, expected) = filled(false, true);
    flip_everywhere(&disk, &expected, &all_files(), 5);
}

#[test]
fn any_flipped_byte_of_an_encrypted_namespace_is_an_error_or_repaired() {
    let (disk, expected) = filled(true, true);
    flip_everywhere(&disk, &expected, &all_files(), 23);
}

/// All was synced, so the index file proves it, though nothing was closed.
#[test]
fn any_flipped_byte_after_a_power_loss_is_an_error_or_repaired() {
    let (disk, expected) = filled(false, false);
    flip_everywhere(&disk, &expected, &all_files(), 11);
}

#[test]
fn without_index_files_everything_comes_back() {
    for (encrypted, closed) in [(false, true), (false, false), (true, true)] {
        let (disk, expected) = filled(encrypted, closed);
        for file in [index_file(0), index_file(1), "/index/n/zdb-namespace".into()] {
            disk.remove(&file).unwrap();
        }
        let engine = open(&disk).unwrap();
        let mut namespace = load(&engine).unwrap();
        check(&mut namespace, &expected, "without index files");
        namespace.tick(Duration::ZERO).unwrap();
        drop(namespace);
        assert!(disk.contents(&index_file(0)).is_ok(), "made again");
        assert!(disk.contents("/index/n/zdb-namespace".as_ref()).is_ok(), "made again");
        check(&mut load(&engine).unwrap(), &expected, "made again");
    }
}

/// Whoever takes a segment away takes its keys' values, and nothing else: they say so, the others are
/// right, no number comes twice, and with the file they are back.
#[test]
fn a_missing_segment_is_missed_and_its_return_heals() {
    for (encrypted, id) in [(false, 0), (false, 1), (true, 0)] {
        let (disk, expected) = filled(encrypted, true);
        let path = data_file(id);
        let taken = disk.contents(&path).unwrap();
        let last = load(&open(&disk).unwrap()).unwrap().last();
        disk.remove(&path).unwrap();
        let copy = disk.copy(1);
        assert!(check_damaged(&copy, &expected, "taken away") > 0);

        let engine = open(&disk).unwrap();
        let mut namespace = load(&engine).unwrap();
        assert_eq!(namespace.missing_files(), std::slice::from_ref(&path));
        assert_eq!(namespace.stats().quarantined_segments, [id]);
        // Of the tail nobody knows what else was in it.
        let is_known = namespace.last() == last;
        assert!(is_known == (id == 0) && namespace.last() >= last, "{:?}", namespace.last());
        assert!(matches!(namespace.scrub_step(1 << 30).unwrap(), crate::Scrub::Finished { .. }));
        let file = disk.open(&path, crate::storage::Open::New).unwrap();
        crate::storage::write_full(&*file, &taken, 0).unwrap();
        check(&mut namespace, &expected, "put back");
        assert_eq!(namespace.missing_files(), [] as [std::path::PathBuf; 0]);
        drop(namespace);
        check(&mut load(&engine).unwrap(), &expected, "put back, loaded again");
    }
}

/// The tail's index file may lack its newest records: nobody knows their numbers, so none that they may
/// have had is given out again.
#[test]
fn numbers_of_a_missing_tail_are_not_given_out_again() {
    let (disk, _) = filled(false, false);
    let last = load(&open(&disk).unwrap()).unwrap().last();
    disk.remove(&data_file(1)).unwrap();
    let engine = open(&disk).unwrap();
    let mut namespace = load(&engine).unwrap();
    let written = namespace.set(b"new", b"value", 1).unwrap().unwrap();
    assert!(written.seq > last, "{written:?}");
    namespace.sync().unwrap();
    drop(namespace);
    assert_eq!(get(&mut load(&engine).unwrap(), b"new").unwrap().unwrap(), b"value");
}

#[test]
fn a_namespace_without_descriptor_is_not_served_and_others_are() {
    let (disk, _) = filled(false, true);
    let engine = open(&disk).unwrap();
    let other = crate::Name::new(b"other").unwrap();
    engine.create(&other, crate::Settings::default()).unwrap().close().unwrap();
    for path in ["/data/n/zdb-namespace", "/index/n/zdb-namespace"] {
        disk.flip(path.as_ref(), 20, 1).unwrap();
    }
    assert!(matches!(load(&engine), Err(Error::Descriptor { .. })));
    assert_eq!(engine.names().unwrap().len(), 2);
    engine.load(&other).unwrap();
}

#[test]
fn scrubbing_finds_what_nobody_read() {
    let (disk, _) = filled(false, true);
    disk.flip(&data_file(0), 500, 4).unwrap();
    let engine = open(&disk).unwrap();
    let mut namespace = load(&engine).unwrap();
    assert_eq!(namespace.stats().damaged_record_count, 0);
    let finished = std::iter::repeat_with(|| namespace.scrub_step(1000).unwrap())
        .take(1000)
        .find(|step| *step != crate::Scrub::Working);
    assert_eq!(finished, Some(crate::Scrub::Finished { damaged_count: 1 }));
    assert_eq!(namespace.stats().quarantined_segments, [0]);
}

/// A value too large to be read whole is compared by its checksum first; that must see the same as reading
/// it, wherever it lies.
#[test]
fn a_large_value_is_written_again_only_if_it_is_another_or_damaged() {
    for encrypted in [false, true] {
        let (disk, _engine, mut namespace) = create(1, Durability::Group, encrypted);
        let (value, other) = (vec![1; 20_000], vec![2; 20_000]);
        let mut set = |value: &[u8], reload: bool| {
            let set = namespace.set(b"key", value, 0).unwrap().is_some();
            namespace.commit(Duration::ZERO).unwrap();
            if reload {
                namespace.rotate().unwrap();
            }
            set
        };
        for reload in [false, true] {
            assert!(set(&value, reload));
            assert!(!set(&value, reload), "the same, encrypted {encrypted}");
            assert!(set(&other, reload));
        }
        let id = namespace.stats().active_segment - 1;
        let id = (0..=id).rev().find(|id| disk.contents(&data_file(*id)).unwrap().len() > 20_000);
        disk.flip(&data_file(id.unwrap()), 15_000, 1).unwrap();
        assert!(namespace.set(b"key", &other, 0).unwrap().is_some(), "it heals");
        assert_eq!(get(&mut namespace, b"key").unwrap().unwrap(), other);
    }
}
