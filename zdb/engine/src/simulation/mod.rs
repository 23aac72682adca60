//! The engine on a disk that breaks: seeded runs against a model.
//!
//! The model is the list of writes by number. After a crash the namespace must hold exactly what
//! some prefix of that list amounts to, and no acknowledged write may be missing from the prefix.
//! After damage each key must answer with its value or an error. A failure names its seed;
//! `ZDB_SEEDS=n` runs n of them instead of a few.

mod beside;
mod copies;
mod crash;
mod damage;
mod faults;
mod golden;
mod model;
mod secrets;
mod space;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::sim::SimDisk;
use crate::{
    Direction, Durability, Engine, Error, Found, MasterKey, Name, Namespace, Options, Secret,
    Settings,
};

/// Keys are few, so that they are overwritten.
const KEY_COUNT: u64 = 24;

/// What a namespace holds: key, value, timestamp.
type Contents = BTreeMap<Vec<u8>, (Vec<u8>, u32)>;

/// One write; `None` deletes.
#[derive(Clone, Debug)]
struct Op {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    timestamp: u32,
}

/// How many seeds to run: a few, or as many as `ZDB_SEEDS` says.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("ZDB_SEEDS").ok().and_then(|text| text.parse().ok());
    0..asked.unwrap_or(usual)
}

/// A small generator of numbers, good enough for choices.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn op(&mut self) -> Op {
        let key = format!("key-{}", self.below(KEY_COUNT)).into_bytes();
        let size = match self.below(16) {
            0 => self.below(9000),
            1 => 0,
            _ => self.below(300),
        };
        let fill = u8::try_from(self.below(256)).unwrap();
        let value = (self.below(5) > 0).then(|| {
            let mut value = vec![fill; usize::try_from(size).unwrap()];
            // Values differ even if their sizes agree.
            value.extend_from_slice(&self.below(u64::MAX).to_le_bytes());
            // No value ends as a file does that was lengthened with zeroes.
            value.push(0xff);
            value
        });
        Op { key, value, timestamp: u32::try_from(self.below(1000)).unwrap() }
    }
}

fn options() -> Options {
    let mut options = Options::new(PathBuf::from("/data"), PathBuf::from("/index"));
    options.segment_size = Options::SEGMENT_SIZE_MIN;
    options.reserve_size = 64 * 1024;
    options.open_files_max = 3;
    options
}

fn open(disk: &SimDisk) -> Result<Engine, Error> {
    Engine::open(Arc::new(disk.clone()), options())
}

fn name() -> Name {
    Name::new(b"n").unwrap()
}

fn master() -> MasterKey {
    MasterKey::new([7; 32])
}

fn secret() -> Secret {
    master().into()
}

/// A new disk with a namespace that is durable.
fn create(seed: u64, durability: Durability, encrypted: bool) -> (SimDisk, Engine, Namespace) {
    let disk = SimDisk::new(seed);
    let engine = open(&disk).unwrap();
    let settings = Settings { durability, ..Settings::default() };
    let namespace = if encrypted {
        engine.create_encrypted(&name(), settings, &secret()).unwrap()
    } else {
        engine.create(&name(), settings).unwrap()
    };
    (disk, engine, namespace)
}

/// Loads it, with its key if it needs one.
fn load(engine: &Engine) -> Result<Namespace, Error> {
    let mut namespace = engine.load(&name())?;
    if namespace.stats().encrypted {
        namespace.unlock(&secret())?;
    }
    Ok(namespace)
}

/// Applies a write; gives its number if it changed anything.
fn write(namespace: &mut Namespace, op: &Op) -> Result<Option<u64>, Error> {
    match &op.value {
        Some(value) => {
            let written = namespace.set(&op.key, value, op.timestamp)?;
            Ok(written.map(|written| written.seq.0))
        }
        None => Ok(namespace.delete(&op.key, op.timestamp)?.map(|seq| seq.0)),
    }
}

/// What the first `count` writes amount to.
fn contents_after(log: &[Op], count: usize) -> Contents {
    let mut contents = Contents::new();
    for op in &log[..count] {
        match &op.value {
            Some(value) => drop(contents.insert(op.key.clone(), (value.clone(), op.timestamp))),
            None => drop(contents.remove(&op.key)),
        }
    }
    contents
}

fn get(namespace: &mut Namespace, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let mut out = Vec::new();
    match namespace.get(key, usize::MAX, &mut out, |_, _| {})? {
        Found::Missing => Ok(None),
        Found::Inline { .. } => Ok(Some(out)),
        Found::Extent(_) => panic!("nobody asked for it"),
    }
}

/// Compares everything that can be asked.
fn check(namespace: &mut Namespace, expected: &Contents, context: &str) {
    for number in 0..KEY_COUNT {
        let key = format!("key-{number}").into_bytes();
        let value = get(namespace, &key).unwrap_or_else(|error| panic!("{context}: {error}"));
        let wanted = expected.get(&key).map(|(value, _)| value);
        assert_eq!(value.as_ref(), wanted, "{context}: key {number}");
        let metadata = namespace.metadata(&key).unwrap();
        let wanted = expected.get(&key).map(|(value, time)| (value.len() as u64, *time));
        assert_eq!(metadata.map(|m| (m.size, m.timestamp)), wanted, "{context}: key {number}");
    }
    assert_eq!(namespace.len(), expected.len() as u64, "{context}: live keys");
    let size: u64 = expected.values().map(|(value, _)| value.len() as u64).sum();
    assert_eq!(namespace.stats().value_size, size, "{context}: bytes of values");
    let mut forward = Vec::new();
    let shown = namespace.scan(Direction::Forward, None, &mut |item| {
        forward.push(item.key.to_vec());
        ControlFlow::Continue(())
    });
    assert_eq!(shown.unwrap().count, expected.len(), "{context}: scanned keys");
    let mut backward = Vec::new();
    let shown = namespace.scan(Direction::Backward, None, &mut |item| {
        backward.push(item.key.to_vec());
        ControlFlow::Continue(())
    });
    assert_eq!(shown.unwrap().count, expected.len(), "{context}: keys scanned backwards");
    backward.reverse();
    assert_eq!(forward, backward, "{context}: both ways");
}

/// A file of the namespace.
fn data_file(id: u32) -> PathBuf {
    Path::new("/data/n").join(format!("d{id}"))
}

fn index_file(id: u32) -> PathBuf {
    Path::new("/index/n").join(format!("i{id}"))
}
