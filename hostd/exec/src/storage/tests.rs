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

/// Several pools of these kinds, of so many MiB.
fn several(folder: &Path, pools: &[(&str, PoolKind, u64)]) -> Vec<PoolConfig> {
    let pool = |(name, kind, size): &(&str, PoolKind, u64)| {
        let path = folder.join(name);
        fs::create_dir_all(&path).unwrap();
        config(name, &path, *kind, size * MIB)
    };
    pools.iter().map(pool).collect()
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
fn a_hard_disk_is_empty_if_nothing_on_it_is_anybodys() {
    let folder = tempfile::tempdir().unwrap();
    let (ssd, hdd) = (PoolKind::Ssd, PoolKind::Hdd);
    let pools = several(folder.path(), &[("ssd", ssd, 8), ("one", hdd, 8), ("two", hdd, 8)]);
    let storage = Storage::open(&pools).unwrap();
    let names = |storage: &Storage, promised: &[(&str, u64)]| {
        let promised = promised.iter().map(|(pool, size)| ((*pool).to_owned(), *size)).collect();
        let folders = storage.empty_hard_disks(&promised);
        let name = |folder: PathBuf| folder.file_name().unwrap().to_str().unwrap().to_owned();
        folders.into_iter().map(name).collect::<Vec<_>>()
    };
    let nothing = [("ssd", 0), ("one", 0), ("two", 0)];
    assert_eq!(names(&storage, &nothing), ["one", "two"]);
    assert_eq!(names(&storage, &[("one", MIB), ("two", 0)]), ["two"]);
    // Of a server that does not answer, nobody knows.
    assert_eq!(names(&storage, &[("two", 0)]), ["two"]);
    drop(storage);
    // One that stands for an SSD has what that would have.
    let storage = Storage::open(&pools[1..]).unwrap().with_missing_ssd(true);
    storage.create(Kind::Volume, &id("a"), MIB).unwrap();
    let on = storage.find(Kind::Volume, &id("a")).unwrap().unwrap().pool;
    let left = if on == "one" { "two" } else { "one" };
    assert_eq!(names(&storage, &nothing), [left]);
    storage.remove(Kind::Volume, &id("a")).unwrap();
    assert_eq!(names(&storage, &nothing), ["one", "two"]);
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

#[test]
fn of_several_pools_the_emptiest_is_taken_and_figures_match() {
    let folder = tempfile::tempdir().unwrap();
    let pools = several(
        folder.path(),
        &[("a", PoolKind::Ssd, 8), ("b", PoolKind::Ssd, 12), ("h", PoolKind::Hdd, 99)],
    );
    let storage = Storage::open(&pools).unwrap();
    let placed: Vec<String> = ["one", "two", "three", "four"]
        .into_iter()
        .map(|name| storage.create(Kind::ZMount, &id(name), 4 * MIB).unwrap().pool)
        .collect();
    // 8 and 12 are left, 8 and 8, 4 and 8, 4 and 4.
    assert_eq!(placed, ["b", "a", "b", "a"]);
    let seen = storage.pools(&BTreeMap::from([("h".to_owned(), 7)]));
    for pool in &seen {
        // What is said to be used is there.
        let on_disk: u64 = tree(&folder.path().join(&pool.name))
            .iter()
            .map(|path| fs::metadata(path).unwrap())
            .filter(|metadata| metadata.is_file())
            .map(|metadata| metadata.blocks() * 512)
            .sum();
        let expected = if pool.name == "h" { 7 } else { on_disk };
        assert_eq!(pool.used, expected, "{pool:?}");
    }
    let sizes: Vec<_> = seen.iter().map(|pool| pool.size / MIB).collect();
    assert_eq!(sizes, [8, 12, 99]);
    // Together there would be room.
    let error = storage.create(Kind::ZMount, &id("five"), 5 * MIB).unwrap_err().to_string();
    assert_eq!(error, "not enough space left in pools of this type ssd");
}

#[test]
fn hard_disks_stand_for_ssds_only_if_that_is_wanted_and_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let hdd = several(folder.path(), &[("h", PoolKind::Hdd, 20)]);
    let storage = Storage::open(&hdd).unwrap();
    assert!(storage.create(Kind::Volume, &id("v"), MIB).is_err());
    assert_eq!((storage.capacity().sru, storage.capacity().hru), (0, 20 * MIB));
    drop(storage);
    let storage = Storage::open(&hdd).unwrap().with_missing_ssd(true);
    // Half is for each, so that neither promises what is the other's.
    assert_eq!((storage.capacity().sru, storage.capacity().hru), (10 * MIB, 10 * MIB));
    assert_eq!(storage.create(Kind::Volume, &id("v"), 8 * MIB).unwrap().pool, "h");
    assert!(storage.create(Kind::Volume, &id("w"), 3 * MIB).is_err());
    assert!(storage.grow(Kind::Volume, &id("v"), 11 * MIB).is_err());
    assert_eq!(storage.hard_disks().unwrap()[0].size, 10 * MIB);
    drop(storage);
    // With an SSD, what is on the hard disk stays there, and is not promised again.
    let both = several(folder.path(), &[("h", PoolKind::Hdd, 20), ("s", PoolKind::Ssd, 20)]);
    let storage = Storage::open(&both).unwrap().with_missing_ssd(true);
    assert_eq!(storage.find(Kind::Volume, &id("v")).unwrap().unwrap().pool, "h");
    assert_eq!(storage.create(Kind::Volume, &id("w"), MIB).unwrap().pool, "s");
    assert_eq!(storage.hard_disks().unwrap()[0].size, 12 * MIB);
}

#[test]
fn a_broken_hard_disk_keeps_nobody_from_the_ssds() {
    let folder = tempfile::tempdir().unwrap();
    let mut pools = several(folder.path(), &[("s", PoolKind::Ssd, 8), ("h", PoolKind::Hdd, 8)]);
    pools[1].path = folder.path().join("absent");
    let storage = Storage::open(&pools).unwrap();
    storage.create(Kind::ZMount, &id("a"), MIB).unwrap();
    assert_eq!(storage.inventory().unwrap(), [id("a")]);
    assert_eq!(storage.find(Kind::ZMount, &id("b")).unwrap(), None);
    storage.remove(Kind::ZMount, &id("b")).unwrap();
    let problems: Vec<_> = storage.check().into_iter().map(|pool| pool.problem).collect();
    assert!(problems[0].is_none() && problems[1].is_some(), "{problems:?}");
    assert!(storage.hard_disks().unwrap().is_empty());
    drop(storage);
    // Unless it may have stood for one.
    let storage = Storage::open(&pools).unwrap().with_missing_ssd(true);
    assert!(storage.create(Kind::ZMount, &id("b"), MIB).is_err());
}

#[test]
fn errors_name_the_pool_and_not_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("1a2b3c4d-5e6f-4711-89ab-cdef01234567");
    fs::create_dir(&place).unwrap();
    let storage = Storage::open(&[config("fast", &place, PoolKind::Ssd, 8 * MIB)]).unwrap();
    // Something is where disks belong.
    fs::create_dir_all(place.join("vdisks/11-4242-a")).unwrap();
    let error = storage.create(Kind::ZMount, &id("a"), MIB).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("storage pool fast: looking at vdisks/11-4242-a"), "{text}");
    fs::remove_dir_all(&place).unwrap();
    let error = storage.check().remove(0).problem.unwrap();
    for text in [text, error] {
        assert!(!text.contains("1a2b3c4d") && !text.contains("/tmp"), "{text}");
    }
}

#[test]
fn a_disk_that_may_not_shrink_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path());
    let made = storage.create(Kind::ZMount, &id("a"), 2 * MIB).unwrap();
    let file = fs::File::options().write(true).open(&made.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"the end", 2 * MIB - 7).unwrap();
    let before = fs::read(&made.path).unwrap();
    assert!(storage.grow(Kind::ZMount, &id("a"), MIB).is_err());
    assert_eq!(fs::read(&made.path).unwrap(), before);
    assert_eq!(storage.find(Kind::ZMount, &id("a")).unwrap().unwrap(), made);
}

#[test]
fn a_broken_pool_keeps_nobody_from_the_others_where_a_ledger_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let pools = several(folder.path(), &[("a", PoolKind::Ssd, 8), ("b", PoolKind::Ssd, 9)]);
    let ledger = folder.path().join("spaces.json");
    let open = || Storage::open(&pools).unwrap().with_ledger(&ledger).unwrap();
    let storage = open();
    for (name, pool) in [("one", "b"), ("two", "a")] {
        assert_eq!(storage.create(Kind::ZMount, &id(name), 4 * MIB).unwrap().pool, pool);
    }
    storage.create(Kind::Volume, &id("gone"), MIB).unwrap();
    storage.remove(Kind::Volume, &id("gone")).unwrap();
    drop(storage);
    let (place, away) = (folder.path().join("b"), folder.path().join("away"));
    fs::rename(&place, &away).unwrap();
    let storage = open();
    // What is there is known, and made nowhere else; what was never made can be.
    assert_eq!(storage.inventory().unwrap(), [id("two"), id("one")]);
    let text = storage.create(Kind::ZMount, &id("one"), MIB).unwrap_err().to_string();
    assert!(text.starts_with("storage pool b is not available:"), "{text}");
    assert!(storage.find(Kind::ZMount, &id("one")).is_err());
    assert!(storage.remove(Kind::ZMount, &id("one")).is_err());
    assert_eq!(storage.find(Kind::Volume, &id("gone")).unwrap(), None);
    assert_eq!(storage.create(Kind::ZMount, &id("new"), MIB).unwrap().pool, "a");
    storage.remove(Kind::ZMount, &id("two")).unwrap();
    fs::rename(&away, &place).unwrap();
    assert_eq!(storage.find(Kind::ZMount, &id("one")).unwrap().unwrap().pool, "b");
    drop(storage);
    // Without the ledger, a broken pool may have anything.
    fs::rename(&place, &away).unwrap();
    fs::remove_file(&ledger).unwrap();
    let storage = open();
    assert!(storage.create(Kind::ZMount, &id("other"), MIB).is_err());
    assert!(storage.inventory().is_err());
    fs::rename(&away, &place).unwrap();
    assert_eq!(storage.inventory().unwrap().len(), 2);
}
