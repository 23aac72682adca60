//! State files that are what they say, and those that are not.

use serde_json::json;
use vmm_spec::Size;

use super::*;

/// A state without CPUs and devices.
fn saved() -> serde_json::Value {
    let spec = VmSpec { kernel: Some("vmlinux".into()), ..VmSpec::default() };
    assert_eq!(spec.memory.size, Size::from_mib(256));
    json!({
        "vmm_version": "0.1.0",
        "spec": spec,
        "machine": {
            "kvm": { "vcpus": [], "interrupt_controllers": [] },
            "clock": { "guest_ns": 1, "wall_ns": 2 },
            "ports": {
                "acpi": { "events": 0, "slots": { "up": 0, "down": 0, "leaving": 0 } },
                "serial": null,
            },
        },
        "places": [{ "kind": "disk", "id": "disk0", "slot": 1 }],
        "functions": { "0": [1, 2] },
        "memory": { "size": 256 << 20, "id": vec![7; 16], "checksums": [1, 2, 3, 4] },
    })
}

fn bytes(state: &serde_json::Value) -> Vec<u8> {
    state_file::with_header(&serde_json::to_vec(state).unwrap())
}

#[test]
fn what_is_written_is_read() {
    let saved = SavedVm::from_bytes(&bytes(&saved())).unwrap();
    assert_eq!(saved.spec().kernel.as_deref(), Some(Path::new("vmlinux")));
    let place = Place { kind: "disk".into(), id: "disk0".into(), slot: 1 };
    assert_eq!(saved.places, [place]);
    assert_eq!(saved.functions()[&0], json!([1, 2]));
    let again = SavedVm::from_bytes(&saved.to_bytes().unwrap()).unwrap();
    assert_eq!(again.memory, saved.memory);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let error = |pointer: &str, value: serde_json::Value| {
        let mut state = saved();
        *state.pointer_mut(pointer).unwrap() = value;
        SavedVm::from_bytes(&bytes(&state)).unwrap_err().to_string()
    };
    assert!(error("/machine/clock", json!(7)).starts_with("state: machine.clock: invalid type"));
    assert!(error("/places/0/slot", json!(-1)).starts_with("state: places[0].slot:"));
    assert!(error("/spec/version", json!(9)).contains("a description of version 9"));
    assert!(error("/functions", json!({ "x": 1 })).starts_with("state: functions"));
    let size = error("/memory/size", json!(128 << 20));
    assert_eq!(size, "state: 134217728 bytes of memory for a machine of 268435456");
    let sums = error("/memory/checksums", json!([1]));
    assert_eq!(sums, "state: 1 checksums of memory that has 4 parts");
    let mut more = saved();
    more["more"] = json!(1);
    assert!(SavedVm::from_bytes(&bytes(&more)).unwrap_err().to_string().contains("unknown field"));
    // Deep nesting does not overflow the stack.
    let deep = format!("{{\"functions\":{}", "[".repeat(1 << 20));
    SavedVm::from_bytes(&state_file::with_header(deep.as_bytes())).unwrap_err();
}

#[test]
fn a_directory_is_opened_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let error = || Snapshot::open(folder.path()).unwrap_err();
    let missing = error();
    assert!(missing.to_string().ends_with("/state: cannot open it"), "{missing}");
    assert_eq!(missing.into_host().unwrap().kind(), std::io::ErrorKind::NotFound);
    std::fs::write(folder.path().join("state"), bytes(&saved())).unwrap();
    let memory = File::create(folder.path().join("memory")).unwrap();
    memory.set_len(12345).unwrap();
    assert!(
        error().to_string().ends_with("/memory: 12345 bytes, where the snapshot has 268439552")
    );
    std::fs::write(folder.path().join("state"), b"").unwrap();
    assert!(error().to_string().ends_with("/state: a file of a snapshot begins with other bytes"));
    let state = File::create(folder.path().join("state")).unwrap();
    state.set_len(STATE_SIZE_MAX + 1).unwrap();
    assert!(error().to_string().contains("are more than a snapshot can have"));
    std::fs::remove_file(folder.path().join("state")).unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    assert!(error().to_string().ends_with("/state: not a regular file"));
}
