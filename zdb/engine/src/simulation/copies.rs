//! Snapshots, backups, imports: copies that must be equal.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Chance, check, contents_after, create, get, load, name, open, write};
use crate::storage::sim::SimDisk;
use crate::storage::{Disk, Open, Storage, write_full};
use crate::{
    Change, Compaction, Durability, Engine, Error, Found, LogRecord, Mode, Name, Namespace,
    Options, Password, SeqNo, Settings, backup, import,
};

pub(super) fn fill(namespace: &mut Namespace, seed: u64, count: usize) -> Vec<super::Op> {
    let mut chance = Chance(seed);
    let mut log = Vec::new();
    while log.len() < count {
        let op = chance.op();
        if write(namespace, &op).unwrap().is_some() {
            log.push(op);
        }
    }
    namespace.commit(Duration::ZERO).unwrap();
    log
}

#[test]
fn a_snapshot_stays_as_it_was() {
    for encrypted in [false, true] {
        let (disk, _engine, mut namespace) = create(1, Durability::Group, encrypted);
        let log = fill(&mut namespace, 1, 200);
        let at = namespace.snapshot("/snap-data".as_ref(), "/snap-index".as_ref()).unwrap();
        assert_eq!(at.0, 200);
        // The original goes on, and is compacted.
        fill(&mut namespace, 2, 200);
        namespace.rotate().unwrap();
        while namespace.compact_step(1 << 20, 0).unwrap() != Compaction::Idle {}
        namespace.close().unwrap();
        let options =
            Options { data: "/snap-data".into(), index: "/snap-index".into(), ..super::options() };
        let engine = Engine::open(Arc::new(disk.clone()), options).unwrap();
        let mut copy = load(&engine).unwrap();
        check(&mut copy, &contents_after(&log, 200), "snapshot");
        fill(&mut copy, 3, 50);
    }
}

#[test]
fn a_backup_comes_back_and_no_other_stream_does() {
    let (_disk, engine, mut namespace) = create(1, Durability::Group, true);
    let password = Some(Password::new(b"secret"));
    let settings = Settings { password, public: false, ..namespace.settings().clone() };
    namespace.update(settings.clone()).unwrap();
    let log = fill(&mut namespace, 1, 60);
    let mut stream = Vec::new();
    let summary = backup::export(&mut namespace, &mut stream).unwrap();
    assert_eq!(summary, backup::Summary { record_count: 60, last: SeqNo(60) });
    assert_eq!(backup::verify(&mut &stream[..]).unwrap(), summary);
    let other = Name::new(b"other").unwrap();
    let (mut copy, _) = backup::restore(&engine, &other, &mut &stream[..]).unwrap();
    assert_eq!(copy.settings(), &settings);
    check(&mut copy, &contents_after(&log, 60), "restored");
    drop(copy);
    engine.remove(&other).unwrap();
    for cut in (0..stream.len()).step_by(97) {
        assert!(backup::verify(&mut &stream[..cut]).is_err(), "cut at {cut}");
    }
    for offset in (0..stream.len()).step_by(89) {
        let mut flipped = stream.clone();
        flipped[offset] ^= 4;
        assert!(backup::verify(&mut &flipped[..]).is_err(), "flipped at {offset}");
        assert!(backup::restore(&engine, &other, &mut &flipped[..]).is_err());
        assert_eq!(engine.names().unwrap(), [name()], "nothing is left of it");
    }
}

#[test]
fn history_and_raw_records_tell_what_was_written() {
    let (_disk, _engine, mut namespace) = create(1, Durability::None, false);
    for (value, time) in [(&b"hello"[..], 101), (b"v2", 102), (b"v3", 103)] {
        namespace.set(b"k", value, time).unwrap();
    }
    namespace.set(b"j", b"x", 1).unwrap();
    let mut out = Vec::new();
    let newest = namespace.history(b"k", None, &mut out).unwrap().unwrap();
    assert_eq!((newest.timestamp, &out[..]), (103, &b"v3"[..]));
    let cursor = newest.next.unwrap();
    assert!(matches!(
        namespace.history(b"j", Some(&cursor), &mut out),
        Err(Error::ForeignHistory { .. })
    ));
    assert!(matches!(namespace.history(b"k", Some(b"bad"), &mut out), Err(Error::BadCursor)));
    assert!(namespace.history(b"k", Some(&[0; 8]), &mut out).unwrap().is_none());
    let unknown = 0x63_0000_0063u64.to_le_bytes();
    assert!(matches!(
        namespace.history(b"k", Some(&unknown), &mut out),
        Err(Error::UnknownHistory { .. })
    ));
    namespace.delete(b"k", 104).unwrap();
    assert!(namespace.history(b"k", None, &mut out).unwrap().is_none());
    let second = namespace.history(b"k", Some(&cursor), &mut out).unwrap().unwrap();
    assert_eq!(second.timestamp, 102);
    let first = namespace.history(b"k", Some(&second.next.unwrap()), &mut out).unwrap().unwrap();
    assert_eq!((first.timestamp, first.next), (101, None));

    let mut offset = 0;
    let mut seen = Vec::new();
    loop {
        out.clear();
        let Some(raw) = namespace.raw(0, offset, &mut out).unwrap() else { break };
        seen.push((out[..raw.key_size].to_vec(), raw.previous.0, raw.deleted, raw.timestamp));
        if seen.len() == 1 {
            // As recorded from the existing server: vector `data-raw`.
            assert_eq!(raw.payload_crc, 0xdf03_cd79);
        }
        offset = raw.next_offset;
    }
    let k = b"k".to_vec();
    let expected = [
        (k.clone(), 0, false, 101),
        (k.clone(), 1, false, 102),
        (k.clone(), 2, false, 103),
        (b"j".to_vec(), 0, false, 1),
        (k, 3, true, 104),
    ];
    assert_eq!(seen, expected);
    assert!(matches!(namespace.raw(0, 65, &mut out), Err(Error::Damaged { .. })));
    assert!(matches!(namespace.raw(9, 0, &mut out), Err(Error::UnknownHistory { .. })));
    assert_eq!(namespace.stats().damaged_record_count, 0, "asking for nonsense is no damage");
}

#[test]
fn a_follower_that_is_too_far_behind_is_told() {
    let (_disk, _engine, mut namespace) = create(1, Durability::None, false);
    namespace.set(b"a", b"1", 0).unwrap();
    namespace.set(b"b", &[0; 3000], 0).unwrap();
    namespace.delete(b"a", 0).unwrap();
    namespace.rotate().unwrap();
    for round in 0..3 {
        for byte in 0..100u8 {
            namespace.set(b"b", &[byte; 3000], round).unwrap();
        }
        namespace.rotate().unwrap();
        while namespace.compact_step(1 << 20, 0).unwrap() != Compaction::Idle {}
    }
    namespace.sync().unwrap();
    let mut nothing = |_: LogRecord<'_>| ControlFlow::Continue(());
    assert!(matches!(namespace.read_log(SeqNo(1), 1 << 20, &mut nothing), Err(Error::Gap { .. })));
    let mut seen = Vec::new();
    namespace
        .read_log(SeqNo(0), 1 << 20, &mut |record| {
            if let Change::Set { key, .. } = record.change {
                seen.push(key.to_vec());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [b"b"], "who has nothing gets what is left");
}

#[test]
fn large_values_stay_in_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("data"), folder.path().join("index"));
    let engine = Engine::open(Arc::new(Disk), options).unwrap();
    let mut namespace = engine.create(&name(), Settings::default()).unwrap();
    let value: Vec<u8> = (0..1_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
    namespace.set(b"large", &value, 0).unwrap();
    for number in 0..100u32 {
        namespace.set(&number.to_le_bytes(), b"small", 0).unwrap();
    }
    namespace.commit(Duration::ZERO).unwrap();
    let mut out = Vec::new();
    let found = namespace.get(b"large", 65_536, &mut out, |_, _| panic!("not inline")).unwrap();
    let Found::Extent(extent) = found else { panic!("{found:?}") };
    let mut read = vec![0; value.len()];
    assert!(extent.file.descriptor().is_some());
    assert_eq!(extent.size, value.len() as u64);
    extent.file.read_at(&mut read, extent.offset).unwrap();
    assert!(read == value && out.is_empty());
    let found = namespace.get(b"large", usize::MAX, &mut out, |out, size| {
        out.extend_from_slice(format!("${size}\r\n").as_bytes());
    });
    assert!(matches!(found, Ok(Found::Inline { size: 1_000_000 })));
    assert_eq!(&out[..10], b"$1000000\r\n");
    assert!(out[10..] == value);
    assert!(matches!(engine.load(&name()), Err(Error::Loaded(_))));
    drop(namespace);
    engine.remove(&name()).unwrap();
    engine.tick();
    assert!(engine.names().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 2, "lock, reserve");
}

/// A directory as the existing server writes it (`reference: zdb 2.5`).
struct Existing {
    data: Vec<u8>,
    entries: usize,
}

impl Existing {
    fn new() -> Self {
        let mut data = b"DAT0".to_vec();
        data.extend_from_slice(&3u32.to_le_bytes());
        data.extend_from_slice(&[0; 20]);
        Self { data, entries: 0 }
    }

    fn put(&mut self, key: &[u8], value: Option<&[u8]>, timestamp: u32) {
        let payload = value.unwrap_or_default();
        self.data.push(u8::try_from(key.len()).unwrap());
        self.data.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        self.data.extend_from_slice(&0u32.to_le_bytes());
        self.data.extend_from_slice(&import::payload_crc(payload).to_le_bytes());
        self.data.push(u8::from(value.is_none()));
        self.data.extend_from_slice(&timestamp.to_le_bytes());
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(payload);
        self.entries += usize::from(value.is_some());
    }

    fn store(&self, disk: &SimDisk, mode: u8, password: &[u8]) {
        let put = |path: &str, bytes: &[u8]| {
            let file = disk.open(&PathBuf::from(path), Open::Empty).unwrap();
            write_full(&*file, bytes, 0).unwrap();
        };
        for folder in ["/old-data", "/old-index", "/old-data/n", "/old-index/n"] {
            let _ = disk.create_folder(Path::new(folder));
        }
        put("/old-data/n/d0", &self.data);
        let mut index = b"IDX0".to_vec();
        index.extend_from_slice(&4u32.to_le_bytes());
        index.extend_from_slice(&[0; 20]);
        index.push(mode);
        index.extend_from_slice(&vec![0; self.entries * 42]);
        put("/old-index/n/i0", &index);
        let mut descriptor = 1u32.to_le_bytes().to_vec();
        descriptor.extend_from_slice(&[1, u8::try_from(password.len()).unwrap()]);
        descriptor.extend_from_slice(&12_345u64.to_le_bytes());
        descriptor.extend_from_slice(&[4 | 2]);
        descriptor.extend_from_slice(b"n");
        descriptor.extend_from_slice(password);
        put("/old-index/n/zdb-namespace", &descriptor);
    }
}

#[test]
fn the_existing_servers_directories_are_taken_over() {
    let disk = SimDisk::new(1);
    let mut existing = Existing::new();
    existing.put(b"a", Some(b"one"), 11);
    existing.put(b"b", Some(b"two"), 12);
    existing.put(b"a", Some(b"three"), 13);
    existing.put(b"b", None, 14);
    existing.put(b"c", Some(b""), 15);
    let damaged_at = existing.data.len();
    existing.put(b"lost", Some(b"payload"), 16);
    existing.put(b"d", Some(b"after damage"), 17);
    let header_damaged_at = existing.data.len();
    existing.put(b"gone", Some(b"payload"), 18);
    existing.put(b"e", Some(b"after worse damage"), 19);
    existing.data[damaged_at + 24] ^= 1;
    existing.data[header_damaged_at + 3] ^= 0x40;
    existing.put(b"torn", Some(&[5; 100]), 20);
    existing.data.truncate(existing.data.len() - 30);
    existing.store(&disk, 0, b"pw");
    let engine = open(&disk).unwrap();
    let (data, index) = (Path::new("/old-data"), Path::new("/old-index"));
    assert_eq!(import::find(&engine, data, index).unwrap(), [name()]);
    let (mut namespace, report) = import::import(&engine, data, index, &name()).unwrap();
    assert_eq!((report.record_count, report.damaged_count), (7, 2), "{report:?}");
    assert_eq!(report.torn_size, 18 + 4 + 100 - 30);
    let settings = namespace.settings();
    assert_eq!(settings.password, Some(Password::new(b"pw")));
    assert_eq!((settings.size_max, settings.worm, settings.public), (12_345, true, false));
    for (key, value) in
        [("a", "three"), ("c", ""), ("d", "after damage"), ("e", "after worse damage")]
    {
        assert_eq!(get(&mut namespace, key.as_bytes()).unwrap().unwrap(), value.as_bytes());
    }
    assert_eq!(namespace.len(), 4);
    assert_eq!(namespace.metadata(b"a").unwrap().unwrap().timestamp, 13);
}

#[test]
fn ids_of_the_existing_server_go_on() {
    let disk = SimDisk::new(1);
    let mut existing = Existing::new();
    for id in 0..3u64 {
        existing.put(&id.to_le_bytes(), Some(b"value"), 1);
    }
    existing.put(&1u64.to_le_bytes(), Some(b"updated"), 2);
    existing.put(&2u64.to_le_bytes(), None, 3);
    existing.store(&disk, 1, b"");
    let engine = open(&disk).unwrap();
    let (data, index) = (Path::new("/old-data"), Path::new("/old-index"));
    let (mut namespace, _) = import::import(&engine, data, index, &name()).unwrap();
    assert_eq!(namespace.settings().mode, Mode::Sequential);
    assert_eq!(get(&mut namespace, &1u64.to_le_bytes()).unwrap().unwrap(), b"updated");
    namespace
        .update(Settings { worm: false, size_max: 0, ..namespace.settings().clone() })
        .unwrap();
    let written = namespace.set(b"", b"new", 4).unwrap().unwrap();
    assert_eq!(written.id, Some(4), "three insertions and an update took ids");
}
