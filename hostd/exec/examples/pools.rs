//! Disks and volumes by hand: what a node does to its disks, one thing at a time.
//!
//! ```text
//! pools prepare MOUNTS MKFS                     make pools of disks, and mount them: JSON
//! pools create MOUNTS NAME SIZE                 a volume: its folder
//! pools grow MOUNTS NAME SIZE
//! pools remove MOUNTS NAME
//! pools fill FILE                               write without privileges until it ends: bytes, and why
//! pools free FOLDER                             bytes that it has, and that are free
//! pools cache MOUNTS PLACE                      the node's own folder, mounted: its size
//! pools rest MOUNTS                             have hard disks rest, none of which anybody uses: those that do
//! ```

#![allow(clippy::unwrap_used, reason = "who runs it by hand sees why it ends")]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hostd_exec::storage::disks::{DisksConfig, Rest, prepare};
use hostd_exec::storage::{Kind, Storage};
use hostd_grid::derived::WorkloadId;
use hostd_grid::{ContractId, Name, TwinId};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// How long disks are looked at until they rest, and how often: a file system that was just made writes
/// for a while.
const REST_TIME_MAX: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["prepare", mounts, mkfs] => {
            let prepared = prepare(&config(mounts, mkfs)).unwrap();
            println!("{}", serde_json::to_string_pretty(&prepared.disks).unwrap());
        }
        ["create", mounts, name, size] => {
            let made = storage(mounts).create(Kind::Volume, &id(name), size.parse().unwrap());
            println!("{}", made.unwrap().path.display());
        }
        ["grow", mounts, name, size] => {
            let size = size.parse().unwrap();
            println!("{}", storage(mounts).grow(Kind::Volume, &id(name), size).unwrap().size);
        }
        ["remove", mounts, name] => storage(mounts).remove(Kind::Volume, &id(name)).unwrap(),
        ["fill", file] => fill(Path::new(file)),
        ["free", folder] => {
            let all = rustix::fs::statvfs(*folder).unwrap();
            println!("{} {}", all.f_blocks * all.f_frsize, all.f_bavail * all.f_frsize);
        }
        ["cache", mounts, place] => {
            let folder = storage(mounts).mount_node_folder(Path::new(place)).unwrap();
            println!("{folder:?}");
        }
        ["rest", mounts] => println!("{}", rest(mounts).join(" ")),
        _ => panic!("see the file's begin for what there is"),
    }
}

fn config(mounts: &str, mkfs: &str) -> DisksConfig {
    let (mounts, mkfs) = (PathBuf::from(mounts), PathBuf::from(mkfs));
    DisksConfig { mounts, mkfs, fsck: "/sbin/e2fsck".into() }
}

fn storage(mounts: &str) -> Storage {
    // Nothing is left to be made.
    Storage::open(&prepare(&config(mounts, "/absent")).unwrap().pools).unwrap()
}

/// Looks until all hard disks rest, or for long enough.
fn rest(mounts: &str) -> Vec<String> {
    let prepared = prepare(&config(mounts, "/absent")).unwrap();
    let storage = Storage::open(&prepared.pools).unwrap();
    let nothing = prepared.pools.iter().map(|pool| (pool.name.clone(), 0)).collect();
    let disks = prepared.disks.iter().filter(|disk| disk.kind == Some("hdd"));
    let disks: Vec<_> = disks.map(|disk| disk.name.clone()).collect();
    let (mut rest, end) = (<Rest>::default(), Instant::now() + REST_TIME_MAX);
    loop {
        rest.look(&storage.empty_hard_disks(&nothing));
        let resting: Vec<_> = disks.iter().filter(|disk| rest.rests(disk)).cloned().collect();
        if resting.len() == disks.len() || Instant::now() >= end {
            return resting;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn id(name: &str) -> WorkloadId {
    WorkloadId { twin_id: TwinId(1), contract_id: ContractId(2), name: Name::new(name) }
}

fn fill(path: &Path) {
    // Who may exceed all limits is held to none.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::SYS_RESOURCE);
    sets.permitted.remove(CapabilitySet::SYS_RESOURCE);
    sets.inheritable.remove(CapabilitySet::SYS_RESOURCE);
    set_capabilities(None, sets).unwrap();
    let mut file = File::create(path).unwrap();
    let mut count = 0_u64;
    let error = loop {
        match file.write_all(&[7; 65_536]).and_then(|()| file.sync_data()) {
            Ok(()) => count += 65_536,
            Err(error) => break error,
        }
    };
    println!("{count} {:?}", error.kind());
}
