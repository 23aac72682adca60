//! Pools that are really full, and processes that are really killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hostd_exec::storage::{Kind, PoolConfig, PoolKind, Storage};
use hostd_grid::derived::WorkloadId;
use hostd_grid::{ContractId, Name, TwinId};

const MIB: u64 = 1 << 20;
/// The pool's path, in a test that is a process of its own.
const POOL: &str = "STORAGE_TEST_POOL";
const FULL: &str = "not enough space left in pools of this type ssd";

fn id(name: &str) -> WorkloadId {
    WorkloadId { twin_id: TwinId(1), contract_id: ContractId(2), name: Name::new(name) }
}

fn open(path: &Path, size_max: Option<u64>) -> Storage {
    let pool = PoolConfig {
        name: "pool".to_owned(),
        path: path.to_owned(),
        kind: PoolKind::Ssd,
        size_max,
        mount_point: false,
    };
    Storage::open(&[pool]).unwrap()
}

fn inner_pool() -> Option<PathBuf> {
    std::env::var_os(POOL).map(PathBuf::from)
}

/// Runs a test of this file again, in a mount namespace where `mount` has made a small file system of the
/// folder `$POOL`. False if that can't be.
fn run_on(mount: &str, test: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let pool = folder.path().join("pool");
    fs::create_dir(&pool).unwrap();
    let script = format!("({mount}) 2>&1 || exit 77; exec \"$@\"");
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(POOL, &pool)
        .env("FOLDER", folder.path())
        .env("POOL", &pool)
        .stdout(Stdio::null())
        .status();
    match status.ok().and_then(|status| status.code()) {
        Some(0) => true,
        Some(77 | 1) | None if !rustix::process::geteuid().is_root() => false,
        Some(77) | None => false,
        Some(code) => panic!("{test} on {mount}: {code}"),
    }
}

/// Where files fill a file system for real.
const FILE_SYSTEMS: [&str; 2] = [
    "mount -t tmpfs -o size=16M none \"$POOL\"",
    "truncate -s 24M \"$FOLDER/image\" && mkfs.ext4 -q \"$FOLDER/image\" && \
     mount -o loop \"$FOLDER/image\" \"$POOL\"",
];

#[test]
fn a_full_pool_refuses_and_nothing_is_lost() {
    for mount in FILE_SYSTEMS {
        if !run_on(mount, "inner_full_pool") {
            eprintln!("skipped: this cannot be mounted here: {mount}");
        }
    }
}

/// Of the test above.
#[test]
fn inner_full_pool() {
    let Some(path) = inner_pool() else { return };
    let storage = open(&path, None);
    let first = storage.create(Kind::ZMount, &id("a"), 4 * MIB).unwrap();
    storage.create(Kind::Volume, &id("v"), MIB).unwrap();
    // Somebody else takes what is there: the promise can't be kept, and is not made.
    let other = path.join("other");
    let free = |path: &Path| {
        let statistics = rustix::fs::statvfs(path).unwrap();
        statistics.f_bavail * statistics.f_frsize
    };
    let taken = free(&path) - 2 * MIB;
    let file = fs::File::create(&other).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
    let error = storage.create(Kind::ZMount, &id("b"), 4 * MIB).unwrap_err().to_string();
    assert_eq!(error, FULL);
    assert_eq!(storage.find(Kind::ZMount, &id("b")).unwrap(), None);
    let error = storage.grow(Kind::ZMount, &id("a"), 8 * MIB).unwrap_err().to_string();
    assert_eq!(error, FULL);
    assert_eq!(storage.find(Kind::ZMount, &id("a")).unwrap().unwrap(), first);
    // With a block or so of the file system's own.
    assert!(fs::metadata(&first.path).unwrap().blocks() * 512 <= 4 * MIB + (64 << 10));
    assert!(free(&path) > MIB, "what was tried is given back");
    drop(file);
    fs::remove_file(&other).unwrap();
    // A volume that its machine has filled to the brim can grow, be found and go.
    let volume = storage.find(Kind::Volume, &id("v")).unwrap().unwrap();
    let filler = fs::File::create(volume.path.join("file")).unwrap();
    while std::io::Write::write_all(&mut &filler, &[1; 4096]).is_ok() {}
    assert_eq!(storage.check()[0].problem, None);
    // To replace a small file may need a block that is not there. Then the promise is as before.
    let grown = storage.grow(Kind::Volume, &id("v"), 2 * MIB);
    let size = storage.find(Kind::Volume, &id("v")).unwrap().unwrap().size;
    assert_eq!(size, if grown.is_ok() { 2 * MIB } else { MIB });
    storage.remove(Kind::Volume, &id("v")).unwrap();
    storage.remove(Kind::ZMount, &id("a")).unwrap();
    let left: Vec<_> = ["vdisks", "volumes"]
        .iter()
        .flat_map(|folder| fs::read_dir(path.join(folder)).unwrap())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Makes, grows and removes, until it is killed.
#[test]
fn inner_worker() {
    let Some(path) = inner_pool() else { return };
    let storage = open(&path, Some(64 * MIB));
    println!("ready");
    for round in 0_u64.. {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            let name = format!("w{}", (round + at as u64) % 3);
            let size = MIB * (1 + round % 3);
            match round % 4 {
                0 | 1 => drop(storage.create(kind, &id(&name), size).unwrap()),
                2 => drop(storage.grow(kind, &id(&name), 4 * MIB)),
                _ => storage.remove(kind, &id(&name)).unwrap(),
            }
            if let Some(space) = storage.find(kind, &id(&name)).unwrap()
                && !kind.is_disk()
            {
                fs::create_dir_all(space.path.join("a/b/c")).unwrap();
            }
        }
    }
}

#[test]
fn a_process_killed_anywhere_leaves_whole_things_only() {
    const KILL_COUNT: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 0..KILL_COUNT {
        assert!(Instant::now() < deadline, "only {round} kills");
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "inner_worker", "--nocapture"])
            .env(POOL, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(worker.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut output, &mut line).unwrap(), 0);
        }
        // Any moment, and others each time.
        std::thread::sleep(Duration::from_micros(150 * (round * 37 % 100)));
        worker.kill().unwrap();
        worker.wait().unwrap();
        check(folder.path());
    }
}

fn check(pool: &Path) {
    let storage = open(pool, Some(64 * MIB));
    assert_eq!(storage.check()[0].problem, None);
    for kind in Kind::ALL {
        for space in storage.list(kind).unwrap() {
            assert_eq!(space.size % MIB, 0);
            let metadata = fs::metadata(&space.path).unwrap();
            if kind.is_disk() {
                assert!(metadata.blocks() * 512 >= space.size, "{space:?} is sparse");
            } else {
                assert!(metadata.is_dir());
            }
            // The next one goes on where this one was.
            assert_eq!(storage.create(kind, &space.id, space.size).unwrap(), space);
        }
    }
    for folder in ["vdisks", "volumes", "root-disks", "root-folders"] {
        let Ok(entries) = fs::read_dir(pool.join(folder)) else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name();
            assert!(!name.to_str().unwrap().starts_with('.'), "{name:?} is left");
        }
    }
}
