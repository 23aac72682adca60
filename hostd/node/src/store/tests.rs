//! What is on disk past restarts, torn tails and damage.

use super::*;
use crate::faults::Faults;
use crate::testing::{Body, verified};

fn store(folder: &Path) -> Store {
    Store::open(folder.join("deployments"), StoreKey::from_seed(&[3; 32])).unwrap()
}

fn key() -> Key {
    Key { twin_id: TwinId(1), contract_id: ContractId(5) }
}

fn body(version: u32) -> VerifiedDeployment {
    verified(&Body { version, ..Body::default() })
}

fn accept(store: &Store, log: &mut Log, version: u32) {
    store.put_body(key(), &body(version)).unwrap();
    store.append(key(), log, &[Entry::Accepted { version }]).unwrap();
}

fn loaded(store: &Store) -> Loaded {
    let mut inventory = store.load().unwrap();
    assert!(inventory.damaged.is_empty());
    assert_eq!(inventory.deployments.len(), 1);
    inventory.deployments.remove(0)
}

#[test]
fn what_was_accepted_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    accept(&store(folder.path()), &mut log, 0);
    accept(&store(folder.path()), &mut log, 1);
    let found = loaded(&store(folder.path()));
    assert_eq!(found.key, key());
    assert_eq!(found.log, log);
    assert_eq!(found.entries, [Entry::Accepted { version: 0 }, Entry::Accepted { version: 1 }]);
    assert_eq!(found.bodies.keys().copied().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(found.bodies[&1].original(), body(1).original());
}

#[test]
fn what_nobody_was_told_of_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    store.put_body(key(), &body(0)).unwrap();
    assert!(store.load().unwrap().deployments.is_empty());
    assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 0);

    let mut log = Log::default();
    accept(&store, &mut log, 0);
    store.put_body(key(), &body(1)).unwrap();
    assert_eq!(loaded(&store).bodies.len(), 1);
    assert!(!store.body_path(key(), 1).exists());
}

#[test]
fn a_rejected_update_leaves_the_version_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut log = Log::default();
    accept(&store, &mut log, 0);
    accept(&store, &mut log, 1);
    let rejected = Entry::Rejected { version: 1, reason: "no".into() };
    store.append(key(), &mut log, &[rejected]).unwrap();
    assert_eq!(loaded(&store).bodies.keys().copied().collect::<Vec<_>>(), [0]);
    // The same version once more, with another body.
    accept(&store, &mut log, 1);
    assert_eq!(loaded(&store).bodies.len(), 2);
}

#[test]
fn damage_is_told_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut log = Log::default();
    accept(&store, &mut log, 0);
    let path = store.body_path(key(), 0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let inventory = store.load().unwrap();
    assert!(inventory.deployments.is_empty());
    let (found, error) = &inventory.damaged[0];
    assert_eq!(*found, key());
    assert!(error.to_string().ends_with("it was cut, changed or moved, or another node wrote it"));
    assert!(path.exists());
}

#[test]
fn nothing_readable_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    accept(&store, &mut Log::default(), 0);
    for file in ["0.body", "states.log"] {
        let bytes = fs::read(store.folder_of(key()).join(file)).unwrap();
        let shown = String::from_utf8_lossy(&bytes);
        assert!(!shown.contains("accepted") && !shown.contains("s3cr3t"), "{file}");
    }
}

#[test]
fn a_removal_that_was_cut_short_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut log = Log::default();
    accept(&store, &mut log, 0);
    fs::rename(store.folder_of(key()), store.folder.join(format!("{}{GONE}", key()))).unwrap();
    assert!(store.load().unwrap().deployments.is_empty());
    assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 0);
    store.remove(key()).unwrap();
}

/// A call of the store.
type Ask = fn(&Store, &mut Log) -> Result<(), StoreError>;

/// What the store is asked, in order, as if one deployment had a whole life.
const LIFE: [Ask; 8] = [
    |store, _| store.put_body(key(), &body(0)),
    |store, log| store.append(key(), log, &[Entry::Accepted { version: 0 }]),
    |store, _| store.put_body(key(), &body(1)),
    |store, log| store.append(key(), log, &[Entry::Accepted { version: 1 }]),
    |store, log| store.append(key(), log, &[Entry::Confirmed { version: 1 }]),
    |store, log| {
        let entries = [Entry::Accepted { version: 1 }, Entry::Confirmed { version: 1 }];
        store.rewrite(key(), log, &entries)
    },
    |store, _| store.drop_body(key(), 0),
    |store, _| store.remove(key()),
];

/// What is found of it: versions and entries.
fn found(store: &Store) -> Option<(Vec<u32>, Vec<Entry>)> {
    let mut inventory = store.load().unwrap();
    assert!(inventory.damaged.is_empty(), "{:?}", inventory.damaged);
    let found = inventory.deployments.pop()?;
    Some((found.bodies.into_keys().collect(), found.entries))
}

#[test]
fn a_program_that_ends_anywhere_leaves_what_was_or_what_was_to_be() {
    // What is found after each call.
    let stage = |count: usize| {
        let folder = tempfile::tempdir().unwrap();
        let (undisturbed, mut log) = (store(folder.path()), Log::default());
        { LIFE }.iter().take(count).for_each(|call| call(&undisturbed, &mut log).unwrap());
        found(&undisturbed)
    };
    let stages: Vec<_> = (0..=LIFE.len()).map(stage).collect();
    let mut boundary_count = 0;
    for limit in 1.. {
        let faults = Faults::at(Some(limit));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let watched = Store::watched(&path, StoreKey::from_seed(&[3; 32]), faults.watcher());
        let (mut log, mut done) = (Log::default(), 0);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for call in LIFE {
                call(&watched, &mut log).unwrap();
                done += 1;
            }
        }));
        if lived.is_ok() {
            boundary_count = limit - 1;
            break;
        }
        let again = Store::open(&path, StoreKey::from_seed(&[3; 32])).unwrap();
        let is = found(&again);
        let places = faults.places();
        let place = places.last().unwrap();
        assert!(is == stages[done] || is == stages[done + 1], "{place}, call {done}: {is:?}");
        let is_clean = |path: std::path::PathBuf| {
            path.is_dir()
                && std::fs::read_dir(path).unwrap().all(|file| {
                    let name = file.unwrap().file_name();
                    name == "states.log" || name.to_str().unwrap().ends_with(".body")
                })
        };
        assert!(fs::read_dir(&path).unwrap().all(|one| is_clean(one.unwrap().path())), "{place}");
    }
    assert!(boundary_count >= 40, "{boundary_count}");
}
