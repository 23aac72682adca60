//! The log as folds of entries, and the step that each leads to.

use hostd_grid::timestamp::Timestamp;
use hostd_grid::{ContractId, TwinId};

use super::*;
use crate::testing::{Body, verified};

fn result(state: State) -> WorkloadResult {
    WorkloadResult { created: Timestamp(1), state, ..WorkloadResult::default() }
}

fn entry(name: &str, version: u32, state: State) -> Entry {
    Entry::Workload { name: name.into(), version, result: result(state) }
}

fn record(names: &[&str]) -> Record {
    let key = Key { twin_id: TwinId(1), contract_id: ContractId(5) };
    let mut record = Record::new(key, BTreeMap::new(), Vec::new());
    accept(&mut record, 0, names, names);
    record
}

/// Takes in a version with workloads `names`, of which `changed` are new or changed.
fn accept(record: &mut Record, version: u32, names: &[&str], changed: &[&str]) {
    let body = verified(&Body { version, ..Body::of(names, changed) });
    record.apply(Entry::Accepted { version });
    let entries: Vec<_> = Record::init_entries(body.deployment(), || result(State::Init)).collect();
    record.bodies.insert(version, Arc::new(body));
    entries.into_iter().for_each(|entry| record.apply(entry));
}

/// A step in a word.
fn shown(record: &Record) -> String {
    let name = |task: &Task| task.workload().name.to_string();
    match record.next_step() {
        None => "rest".into(),
        Some(Step::Confirm(version)) => format!("confirm {version}"),
        Some(Step::Restore(task)) => format!("restore {}", name(&task)),
        Some(Step::Remove(name, version)) => format!("remove {name} {version}"),
        Some(Step::Clear(name)) => format!("clear {name}"),
        Some(Step::Add(task)) => format!("add {}", name(&task)),
        Some(Step::Update { old, new }) => {
            format!("update {} {}-{}", name(&new), old.workload().version, new.workload().version)
        }
        Some(Step::Pause(task)) => format!("pause {}", name(&task)),
        Some(Step::Resume(task)) => format!("resume {}", name(&task)),
        Some(Step::Report) => "report".into(),
        Some(Step::Forget) => "forget".into(),
    }
}

/// Compares with a host, where nothing changes meanwhile.
fn look(record: &mut Record, found: impl Fn(&str) -> Presence) {
    let expected = record.expected();
    record.compare(&expected, |name| found(name.as_str()));
}

fn step(record: &mut Record, expected: &str, entry: Entry) {
    assert_eq!(shown(record), expected);
    record.apply(entry);
}

fn running(names: &[&str]) -> Record {
    let mut record = record(names);
    record.apply(Entry::Confirmed { version: 0 });
    names.iter().for_each(|name| record.apply(entry(name, 0, State::Ok)));
    record.is_unreported = false;
    record
}

#[test]
fn nothing_is_made_before_the_chain_has_spoken() {
    let mut record = record(&["disk", "net", "vm", "db"]);
    step(&mut record, "confirm 0", Entry::Confirmed { version: 0 });
    step(&mut record, "add disk", entry("disk", 0, State::Ok));
    step(&mut record, "add net", entry("net", 0, State::Error));
    step(&mut record, "add vm", entry("vm", 0, State::Ok));
    step(&mut record, "add db", entry("db", 0, State::Ok));
    assert_eq!(shown(&record), "report");
    record.is_unreported = false;
    assert_eq!(shown(&record), "rest");
}

#[test]
fn what_has_no_contract_rests() {
    let mut record = record(&["vm"]);
    record.apply(Entry::Rejected { version: 0, reason: "no".into() });
    assert_eq!(shown(&record), "rest");
}

#[test]
fn an_update_removes_first_and_leaves_the_rest_alone() {
    let mut record = running(&["disk", "net", "vm"]);
    accept(&mut record, 1, &["disk", "net", "db"], &["disk", "db"]);
    step(&mut record, "confirm 1", Entry::Confirmed { version: 1 });
    step(&mut record, "remove vm 0", entry("vm", 0, State::Deleted));
    step(&mut record, "update disk 0-1", entry("disk", 1, State::Unchanged));
    step(&mut record, "add db", entry("db", 1, State::Ok));
    record.is_unreported = false;
    assert_eq!(shown(&record), "rest");
    let disk = record.place(&"disk".into()).unwrap();
    assert_eq!((disk.running, disk.shown().unwrap().0), (Some(0), 0));
    assert_eq!(record.place(&"net".into()).unwrap().running, Some(0));
    // The old disk and network are of version 0, so it is kept.
    assert_eq!(record.unneeded(), [0_u32; 0]);
}

#[test]
fn an_update_that_the_chain_does_not_know_changes_nothing() {
    let mut record = running(&["disk", "vm"]);
    accept(&mut record, 1, &["disk"], &["disk"]);
    assert_eq!(shown(&record), "confirm 1");
    record.apply(entry("disk", 1, State::Unchanged));
    record.apply(Entry::Rejected { version: 1, reason: "no".into() });
    assert_eq!(shown(&record), "rest");
    assert_eq!(record.version(), 0);
    assert_eq!(record.running().count(), 2);
}

#[test]
fn machines_stop_first_and_start_last() {
    let mut record = running(&["disk", "vm"]);
    record.apply(Entry::Grace { is_on: true });
    step(&mut record, "pause vm", entry("vm", 0, State::Paused));
    step(&mut record, "pause disk", entry("disk", 0, State::Paused));
    assert_eq!(shown(&record), "rest");
    record.apply(Entry::Grace { is_on: false });
    step(&mut record, "resume disk", entry("disk", 0, State::Ok));
    step(&mut record, "resume vm", entry("vm", 0, State::Ok));
    assert_eq!(shown(&record), "rest");
}

#[test]
fn everything_goes_in_reverse_when_the_contract_is_over() {
    let mut record = running(&["disk", "net", "vm"]);
    accept(&mut record, 1, &["disk", "net", "vm", "db"], &["db"]);
    record.apply(Entry::Cancelled { reason: "gone".into() });
    // Whether the pending one was begun, nobody knows.
    step(&mut record, "remove db 1", entry("db", 1, State::Deleted));
    step(&mut record, "remove vm 0", entry("vm", 0, State::Deleted));
    step(&mut record, "remove net 0", entry("net", 0, State::Deleted));
    step(&mut record, "remove disk 0", entry("disk", 0, State::Deleted));
    assert_eq!(shown(&record), "forget");
}

#[test]
fn what_is_missing_is_made_again_even_while_the_chain_is_silent() {
    let mut record = running(&["disk", "vm"]);
    accept(&mut record, 1, &["disk", "vm"], &["disk"]);
    look(&mut record, |name| if name == "vm" { Presence::Whole } else { Presence::Part });
    step(&mut record, "restore disk", entry("disk", 0, State::Ok));
    assert_eq!(record.place(&"disk".into()).unwrap().pending, None);
}

#[test]
fn what_an_update_takes_down_is_not_made_again_for_that() {
    let mut record = running(&["disk", "db"]);
    accept(&mut record, 1, &["disk"], &["disk"]);
    record.apply(Entry::Confirmed { version: 1 });
    // Removed, but before that could be written down the program ended.
    look(&mut record, |name| if name == "db" { Presence::Absent } else { Presence::Whole });
    step(&mut record, "remove db 0", entry("db", 0, State::Deleted));
    step(&mut record, "update disk 0-1", entry("disk", 1, State::Ok));
}

#[test]
fn what_is_left_is_taken_down_and_what_was_begun_is_known() {
    let mut record = record(&["disk", "vm", "db"]);
    record.apply(Entry::Confirmed { version: 0 });
    record.apply(entry("disk", 0, State::Error));
    record.apply(entry("db", 0, State::Deleted));
    let before = record.expected();
    look(&mut record, |_| Presence::Part);
    assert!(record.place(&"vm".into()).unwrap().is_begun);
    step(&mut record, "add vm", entry("vm", 0, State::Error));
    assert!(!record.place(&"vm".into()).unwrap().is_begun);
    record.is_unreported = false;
    for name in ["db", "disk"] {
        assert_eq!(shown(&record), format!("clear {name}"));
        record.set_left(&name.into(), false);
    }
    assert_eq!(shown(&record), "rest");
    // When the host was looked at it was on its way, so what was seen of it is none the worse.
    record.compare(&before, |_| Presence::Part);
    let left = |name: &str| record.place(&name.into()).unwrap().is_left;
    assert!(left("db") && !left("vm"));
    // What takes its place comes after.
    accept(&mut record, 1, &["disk", "vm", "db"], &["db"]);
    record.apply(Entry::Confirmed { version: 1 });
    assert_eq!(shown(&record), "clear db");
    record.set_left(&"db".into(), false);
    assert_eq!(shown(&record), "add db");
}

#[test]
fn what_failed_may_have_left_something_when_the_contract_is_over() {
    let mut record = record(&["disk", "vm"]);
    record.apply(Entry::Confirmed { version: 0 });
    record.apply(entry("disk", 0, State::Ok));
    record.apply(entry("vm", 0, State::Error));
    record.apply(Entry::Cancelled { reason: "gone".into() });
    step(&mut record, "remove vm 0", entry("vm", 0, State::Deleted));
    step(&mut record, "remove disk 0", entry("disk", 0, State::Deleted));
    assert_eq!(shown(&record), "forget");
}

#[test]
fn entries_lead_to_the_same_record_again_also_compacted() {
    let mut record = running(&["disk", "vm", "db"]);
    for round in 0..HISTORY_COUNT_MAX {
        let state = if round % 2 == 0 { State::Paused } else { State::Ok };
        record.apply(Entry::Grace { is_on: round % 2 == 0 });
        record.apply(entry("vm", 0, state));
    }
    let compacted = record.compacted().unwrap();
    assert!(compacted.len() < HISTORY_COUNT_MAX / 2);
    for entries in [record.history.clone(), compacted] {
        let again = Record::new(record.key, record.bodies.clone(), entries);
        assert_eq!(again.standing, record.standing);
        assert_eq!(again.is_in_grace, record.is_in_grace);
        for name in ["disk", "vm", "db"] {
            let (a, b) = (again.place(&name.into()).unwrap(), record.place(&name.into()).unwrap());
            assert_eq!((a.running, a.pending, a.is_paused), (b.running, b.pending, b.is_paused));
            assert_eq!(a.shown(), b.shown());
        }
    }
}

#[test]
fn what_was_left_goes_when_nothing_else_is_to_be_done_or_when_it_is_in_the_way() {
    let mut record = running(&["disk", "vm"]);
    record.find("disk".into());
    record.find("vm".into());
    assert_eq!(shown(&record), "rest");
    record.apply(entry("vm", 0, State::Error));
    record.is_unreported = false;
    record.find("vm".into());
    record.find("unknown".into());
    step(&mut record, "remove unknown 0", entry("unknown", 0, State::Deleted));
    record.set_left(&"unknown".into(), false);
    assert_eq!(shown(&record), "clear vm");
    // A making of the same name waits until it is gone; another does not.
    accept(&mut record, 1, &["disk", "vm", "db"], &["vm", "db"]);
    record.find("old".into());
    step(&mut record, "confirm 1", Entry::Confirmed { version: 1 });
    step(&mut record, "remove old 0", entry("old", 0, State::Deleted));
    record.set_left(&"old".into(), false);
    assert_eq!(shown(&record), "clear vm");
    record.set_left(&"vm".into(), false);
    step(&mut record, "add vm", entry("vm", 1, State::Ok));
    step(&mut record, "add db", entry("db", 1, State::Ok));
    record.find("old".into());
    // With the contract everything goes, and nothing is forgotten before.
    record.apply(Entry::Cancelled { reason: String::new() });
    let mut removed = Vec::new();
    while let Some(Step::Remove(name, version)) = record.next_step() {
        record.apply(entry(name.as_str(), version, State::Deleted));
        record.set_left(&name, false);
        removed.push(name);
    }
    removed.sort();
    assert_eq!(removed, ["db", "disk", "old", "vm"].map(Name::from));
    assert_eq!(shown(&record), "forget");
}

#[test]
fn what_cannot_be_made_again_holds_up_nothing_else() {
    let mut record = running(&["disk", "vm", "db"]);
    record.is_unreported = false;
    look(&mut record, |_| Presence::Absent);
    assert_eq!(shown(&record), "restore disk");
    record.set_failed(&"disk".into());
    assert_eq!(shown(&record), "restore vm");
    record.set_failed(&"vm".into());
    step(&mut record, "restore db", entry("db", 0, State::Ok));
    record.is_unreported = false;
    // Both are tried in turns, and a new version comes first.
    assert_eq!(shown(&record), "restore disk");
    record.set_failed(&"disk".into());
    assert_eq!(shown(&record), "restore vm");
    accept(&mut record, 1, &["vm", "db"], &[]);
    step(&mut record, "confirm 1", Entry::Confirmed { version: 1 });
    step(&mut record, "remove disk 0", entry("disk", 0, State::Deleted));
}
