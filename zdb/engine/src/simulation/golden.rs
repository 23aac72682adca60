//! The formats are what they were: files written once and kept beside this crate are read, and are
//! written again byte by byte. After a deliberate change of a format, `ZDB_GOLDEN=write` makes
//! them anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{create, get, load, open};
use crate::storage::sim::SimDisk;
use crate::storage::{Open, Storage, write_full};
use crate::{Durability, Settings};

const FILES: [(&str, &str); 5] = [
    ("d0", "/data/n/d0"),
    ("i0", "/index/n/i0"),
    ("d1", "/data/n/d1"),
    ("i1", "/index/n/i1"),
    ("zdb-namespace", "/data/n/zdb-namespace"),
];

fn golden(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(kind).join(name)
}

fn written(encrypted: bool) -> SimDisk {
    let (disk, engine, mut namespace) = create(42, Durability::Group, encrypted);
    namespace.update(Settings { size_max: 1 << 30, ..namespace.settings().clone() }).unwrap();
    namespace.set(b"one", b"first value", 1).unwrap();
    namespace.set(b"two", b"", 2).unwrap();
    namespace.commit(Duration::ZERO).unwrap();
    namespace.set(b"one", b"second value", 3).unwrap();
    namespace.delete(b"two", 4).unwrap();
    namespace.rotate().unwrap();
    namespace.set(b"three", &[3; 40], 5).unwrap();
    namespace.close().unwrap();
    drop(engine);
    disk
}

#[test]
fn files_are_written_as_ever() {
    for (kind, encrypted) in [("plain", false), ("encrypted", true)] {
        let disk = written(encrypted);
        for (name, path) in FILES {
            let contents = disk.contents(path.as_ref()).unwrap();
            let kept = golden(kind, name);
            if std::env::var("ZDB_GOLDEN").is_ok_and(|asked| asked == "write") {
                std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
                std::fs::write(&kept, &contents).unwrap();
            }
            assert_eq!(contents, std::fs::read(&kept).unwrap(), "{}", kept.display());
        }
    }
}

#[test]
fn files_of_yore_are_read() {
    for (kind, encrypted) in [("plain", false), ("encrypted", true)] {
        let disk = SimDisk::new(7);
        for folder in ["/data", "/index", "/data/n", "/index/n"] {
            disk.create_folder(folder.as_ref()).unwrap();
        }
        for (name, path) in FILES {
            let file = disk.open(path.as_ref(), Open::New).unwrap();
            write_full(&*file, &std::fs::read(golden(kind, name)).unwrap(), 0).unwrap();
        }
        let engine = open(&disk).unwrap();
        let mut namespace = load(&engine).unwrap();
        assert_eq!(namespace.stats().encrypted, encrypted);
        assert_eq!(namespace.settings().size_max, 1 << 30);
        assert_eq!(get(&mut namespace, b"one").unwrap().unwrap(), b"second value");
        assert_eq!(get(&mut namespace, b"two").unwrap(), None);
        assert_eq!(get(&mut namespace, b"three").unwrap().unwrap(), [3; 40]);
        assert_eq!(namespace.last().0, 5);
    }
}
