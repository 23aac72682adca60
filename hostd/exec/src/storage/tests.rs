//! Promises on directories of this machine. Pools that fill up are in `tests/storage.rs`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hostd_grid::{ContractId, Name, TwinId};

use super::*;

const MIB: u64 = 1 << 20;

fn id(name: &str) -> WorkloadId {
    WorkloadId { twin_id: TwinId(11), contract_id: ContractId(4242), name: Name::new(name) }
}

fn config(name: &str, path: &Path, kind: PoolKind, size_max: u64) -> PoolConfig {
    PoolConfig {
        name: name.to_owned(),
        path: path.to_owned(),
        kind,
        size_max: Some(size_max),
        mount_point: false,
    }
}

fn open(folder: &Path) -> Storage {
    let (one, two) = (folder.join("one"), folder.join("two"));
    fs::create_dir_all(&one).unwrap();
    fs::create_dir_all(&two).unwrap();
    let pools =
        [config("one", &one, PoolKind::Ssd, 8 * MIB), config("two", &two, PoolKind::Hdd, 8 * MIB)];
    Storage::open(&pools).unwrap()
}

/// Every path below a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(tree(&path));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

#[test]
fn a_disk_is_allocated_found_grown_and_gone() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    for kind in [Kind::ZMount, Kind::RootDisk] {
        let made = storage.create(kind, &id("data"), MIB).unwrap();
        assert_eq!((made.size, made.pool.as_str()), (MIB, "one"));
        assert!(fs::metadata(&made.path).unwrap().blocks() * 512 >= MIB);
        assert_eq!(storage.create(kind, &id("data"), MIB).unwrap(), made);
        fs::write(&made.path, b"kept").unwrap();
        fs::File::options().write(true).open(&made.path).unwrap().set_len(MIB).unwrap();
        let grown = storage.grow(kind, &id("data"), 2 * MIB).unwrap();
        let metadata = fs::metadata(&grown.path).unwrap();
        assert_eq!(metadata.len(), 2 * MIB);
        assert_eq!(&fs::read(&grown.path).unwrap()[..4], b"kept");
        assert_eq!(storage.grow(kind, &id("data"), 2 * MIB).unwrap(), grown);
        let error = storage.grow(kind, &id("data"), MIB).unwrap_err().to_string();
        assert_eq!(error, "not safe to shrink a disk");
        drop(storage.find(kind, &id("data")).unwrap().unwrap());
        storage.remove(kind, &id("data")).unwrap();
        storage.remove(kind, &id("data")).unwrap();
        assert_eq!(storage.find(kind, &id("data")).unwrap(), None);
        assert!(!made.path.exists());
        let absent = storage.grow(kind, &id("data"), MIB).unwrap_err().to_string();
        assert_eq!(absent, "11-4242-data does not exist");
    }
    let serial = storage.create(Kind::ZMount, &id("data"), MIB).unwrap().serial();
    assert_eq!(serial.as_str().len(), 13);
}

#[test]
fn a_volume_keeps_its_promise_beside_its_data_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    let made = storage.create(Kind::Volume, &id("files"), MIB).unwrap();
    let before = tree(folder.path()).len();
    fs::write(made.path.join("file"), b"data").unwrap();
    // As a machine may leave it: deep, and with names that removal uses.
    let mut deep = made.path.clone();
    for _ in 0..50 {
        deep = deep.join("up-0");
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("up-1"), b"x").unwrap();
    }
    std::os::unix::fs::symlink("/etc", made.path.join("link")).unwrap();
    assert_eq!(storage.grow(Kind::Volume, &id("files"), 3 * MIB).unwrap().size, 3 * MIB);
    let error = storage.grow(Kind::Volume, &id("files"), MIB).unwrap_err().to_string();
    assert!(error.starts_with("cannot shrink volume"), "{error}");
    drop(storage);
    let storage = open(folder.path());
    assert_eq!(storage.find(Kind::Volume, &id("files")).unwrap().unwrap().size, 3 * MIB);
    storage.remove(Kind::Volume, &id("files")).unwrap();
    // The volume's folder, its data and its size.
    assert_eq!(tree(folder.path()).len(), before - 3);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_volume_deeper_than_a_path_can_say_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    let made = storage.create(Kind::Volume, &id("files"), MIB).unwrap();
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let mut here = rustix::fs::open(&made.path, flags, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..2100 {
        rustix::fs::mkdirat(&here, "d", rustix::fs::Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "d", flags, rustix::fs::Mode::empty()).unwrap();
    }
    storage.remove(Kind::Volume, &id("files")).unwrap();
    assert_eq!(storage.find(Kind::Volume, &id("files")).unwrap(), None);
    assert!(tree(&folder.path().join("one/volumes")).is_empty());
}

#[test]
fn no_more_is_promised_than_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    storage.create(Kind::ZMount, &id("a"), 3 * MIB).unwrap();
    storage.create(Kind::Volume, &id("b"), 3 * MIB).unwrap();
    storage.create(Kind::RootFolder, &id("c"), MIB).unwrap();
    let full = "not enough space left in pools of this type ssd";
    for kind in Kind::ALL {
        let error = storage.create(kind, &id("d"), 2 * MIB).unwrap_err().to_string();
        assert_eq!(error, full);
        let error = storage.create(kind, &id("d"), u64::MAX).unwrap_err().to_string();
        assert_eq!(error, full);
        assert_eq!(storage.create(kind, &id("d"), 0).unwrap_err().to_string(), "invalid size");
    }
    for (kind, name) in [(Kind::ZMount, "a"), (Kind::Volume, "b")] {
        let error = storage.grow(kind, &id(name), 5 * MIB).unwrap_err().to_string();
        assert_eq!(error, full);
        assert_eq!(storage.grow(kind, &id(name), 3 * MIB).unwrap().size, 3 * MIB);
    }
    storage.create(Kind::RootDisk, &id("d"), MIB).unwrap();
    let elsewhere = BTreeMap::from([("two".to_owned(), 5)]);
    let pools = storage.pools(&elsewhere);
    let seen: Vec<_> = pools.iter().map(|pool| (pool.kind, pool.size, pool.used)).collect();
    assert_eq!(seen, [("ssd", 8 * MIB, 8 * MIB), ("hdd", 8 * MIB, 5)]);
    let capacity = storage.capacity();
    assert_eq!((capacity.sru, capacity.hru), (8 * MIB, 8 * MIB));
    assert_eq!(storage.inventory().unwrap(), [id("a"), id("b")]);
    assert_eq!(storage.list(Kind::RootDisk).unwrap().len(), 1);
    let disks = storage.hard_disks().unwrap();
    assert_eq!((disks.len(), disks[0].pool.as_str(), disks[0].size), (1, "two", 8 * MIB));
    assert!(disks[0].path.is_dir());
}

#[test]
fn names_of_users_are_no_paths() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    for name in ["../../x", "a/b", "", "a-b", "\0"] {
        for kind in Kind::ALL {
            let refused = storage.create(kind, &id(name), MIB).unwrap_err().to_string();
            assert_eq!(refused, "invalid workload name");
            assert!(storage.remove(kind, &id(name)).is_err());
        }
    }
    assert!(!folder.path().join("one/vdisks").exists());
}

#[test]
fn what_a_crash_left_half_done_is_swept_and_done_again() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let (disks, volumes) = (folder.path().join("one/vdisks"), folder.path().join("one/volumes"));
    fs::create_dir(&disks).unwrap();
    fs::create_dir(&volumes).unwrap();
    // A disk half allocated, a volume half made, one half removed, a promise half written.
    fs::write(disks.join(".making-11-4242-a"), [1; 4096]).unwrap();
    fs::create_dir_all(volumes.join(".making-11-4242-b/data")).unwrap();
    fs::create_dir_all(volumes.join(".removing-11-4242-c/data/x")).unwrap();
    fs::create_dir_all(volumes.join("11-4242-d/data")).unwrap();
    fs::write(volumes.join("11-4242-d/size"), "1048576").unwrap();
    fs::write(volumes.join("11-4242-d/size.new"), "20").unwrap();
    let storage = open(folder.path());
    assert_eq!(fs::read_dir(&disks).unwrap().count(), 0);
    assert_eq!(storage.inventory().unwrap(), [id("d")]);
    assert_eq!(storage.grow(Kind::Volume, &id("d"), 2 * MIB).unwrap().size, 2 * MIB);
    for (kind, name) in [(Kind::ZMount, "a"), (Kind::Volume, "b"), (Kind::Volume, "c")] {
        storage.create(kind, &id(name), MIB).unwrap();
    }
    assert_eq!(fs::read(disks.join("11-4242-a")).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn a_broken_pool_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    storage.create(Kind::ZMount, &id("a"), MIB).unwrap();
    let (place, away) = (folder.path().join("one"), folder.path().join("away"));
    drop(storage);
    fs::rename(&place, &away).unwrap();
    let pools = [
        config("one", &place, PoolKind::Ssd, 8 * MIB),
        config("other", &folder.path().join("other"), PoolKind::Ssd, 8 * MIB),
    ];
    fs::create_dir(folder.path().join("other")).unwrap();
    let storage = Storage::open(&pools).unwrap();
    let problems: Vec<bool> = storage.check().iter().map(|one| one.problem.is_some()).collect();
    assert_eq!(problems, [true, false]);
    // It may be on the pool that is away: no second one is made.
    let error = storage.create(Kind::ZMount, &id("a"), MIB).unwrap_err().to_string();
    assert!(error.starts_with("storage pool one is not available:"), "{error}");
    assert!(storage.inventory().is_err());
    assert!(storage.remove(Kind::ZMount, &id("a")).is_err());
    assert_eq!(storage.capacity().sru, 8 * MIB);
    fs::rename(&away, &place).unwrap();
    assert_eq!(storage.find(Kind::ZMount, &id("a")).unwrap().unwrap().pool, "one");
    assert_eq!(storage.capacity().sru, 16 * MIB);
}

#[test]
fn a_pool_has_one_user_and_one_name_and_its_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    let second = open(folder.path());
    let problem = second.check().remove(0).problem.unwrap();
    assert!(problem.contains("another process uses this pool"), "{problem}");
    drop(storage);
    assert_eq!(second.check()[0].problem, None);
    let one = config("one", &folder.path().join("one"), PoolKind::Ssd, MIB);
    assert!(Storage::open(&[one.clone(), one.clone()]).is_err());
    let unmounted = PoolConfig { name: "three".into(), mount_point: true, ..one };
    let storage = Storage::open(&[unmounted]).unwrap();
    let problem = storage.check().remove(0).problem.unwrap();
    assert!(problem.contains("its file system is not mounted"), "{problem}");
}
