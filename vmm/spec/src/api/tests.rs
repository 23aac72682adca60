//! The document, the routes and the types say the same.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::strategies::sensible_spec;
use crate::testing::{check, openapi};
use crate::{
    BalloonSpec, CpuSpec, DiskSpec, FsSpec, JailSpec, MemorySpec, NetSpec, RateSpec, VmSpec,
    VsockSpec, WatchdogSpec,
};

fn names(object: &Value) -> BTreeSet<String> {
    object.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

fn schema_of(content: &Value) -> Body {
    let Some((kind, content)) = content.as_object().and_then(|content| content.iter().next())
    else {
        return Body::Empty;
    };
    let reference = content["schema"]["$ref"].as_str();
    match (kind.as_str(), reference.and_then(|r| r.strip_prefix("#/components/schemas/"))) {
        ("application/json", Some(name)) => Body::Json(name.to_owned().leak()),
        ("application/json", None) => Body::OpenApi,
        ("text/plain", _) => Body::Metrics,
        _ => panic!("{kind}"),
    }
}

/// Every route is in the document, with what it takes and gives, and nothing else is.
#[test]
fn the_document_has_the_routes_of_the_table() {
    let document = openapi();
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            documented.insert((method.to_uppercase(), path.clone()));
            let target = path.replace("{id}", "x");
            let Routed::Found(found) = find(&method.to_uppercase(), &target) else {
                panic!("{method} {path} is not in the table");
            };
            let route = found.route;
            assert_eq!(operation["operationId"], format!("{:?}", route.operation));
            assert_eq!(schema_of(&operation["requestBody"]["content"]), route.request, "{path}");
            let success = &operation["responses"][route.status.to_string()];
            assert!(success.is_object(), "{method} {path} {}", route.status);
            if route.answer != Body::Stream {
                assert_eq!(schema_of(&success["content"]), route.answer, "{method} {path}");
            }
            let has_id = operation["parameters"][0]["in"] == "path";
            assert_eq!(has_id, path.contains("{id}"), "{method} {path}");
        }
    }
    let table: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| (route.method.name().to_owned(), route.path.to_owned()))
        .collect();
    assert_eq!(documented, table);
}

#[test]
fn requests_find_their_way() {
    let id = |method, target| match find(method, target) {
        Routed::Found(found) => Some((found.route.operation, found.id)),
        _ => None,
    };
    assert_eq!(id("GET", "/vm?x=1"), Some((Operation::ShowVm, "")));
    assert_eq!(id("PUT", "/disks/disk0"), Some((Operation::ResizeDisk, "disk0")));
    assert_eq!(id("DELETE", "/nets/net0"), Some((Operation::RemoveNet, "net0")));
    for target in ["/", "", "/vm/", "/disks/", "/disks/a/b", "/VM", "*"] {
        assert_eq!(find("GET", target), Routed::Unknown, "{target}");
    }
    assert_eq!(find("DELETE", "/vm"), Routed::WrongMethod("GET"));
    assert_eq!(find("get", "/vm"), Routed::WrongMethod("GET"));
    assert_eq!(find("POST", "/balloon"), Routed::WrongMethod("GET, PUT"));
    assert_eq!(find("GET", "/disks/x"), Routed::WrongMethod("PUT, DELETE"));
    assert_eq!(find("GET", "/disks"), Routed::WrongMethod("POST"));
    assert_eq!(find("GET", "/nets/x"), Routed::WrongMethod("DELETE"));
    assert_eq!(find("GET", "/snapshot"), Routed::WrongMethod("PUT"));
}

/// Holds a type against the schema of its name. `full` has every field; each that the schema
/// requires must be required by the type too, and no other; `closed` types refuse unknown fields.
fn agrees<T: Serialize + DeserializeOwned>(name: &str, full: &Value, closed: bool) {
    let schema = &openapi()["components"]["schemas"][name];
    check(name, full).unwrap();
    let typed: T = serde_json::from_value(full.clone()).unwrap();
    let written = serde_json::to_value(typed).unwrap();
    check(name, &written).unwrap();
    assert_eq!(names(&written), names(&schema["properties"]), "{name}: fields");
    let required: Vec<&str> =
        schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for field in names(full) {
        let mut partial = full.clone();
        partial.as_object_mut().unwrap().remove(&field);
        let needed = serde_json::from_value::<T>(partial).is_err();
        assert_eq!(needed, required.contains(&field.as_str()), "{name}.{field}: required");
    }
    let mut more = full.clone();
    more.as_object_mut().unwrap().insert("no_such_field".to_owned(), json!(1));
    assert_eq!(serde_json::from_value::<T>(more).is_err(), closed, "{name}: unknown fields");
    assert_eq!(schema["additionalProperties"] == json!(false), closed, "{name}: unknown fields");
}

fn full_spec() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/full-v1.json")).unwrap()
}

#[test]
fn types_have_the_fields_of_their_schemas() {
    let spec = full_spec();
    agrees::<VmSpec>("VmSpec", &spec, true);
    agrees::<CpuSpec>("CpuSpec", &spec["cpus"], true);
    agrees::<MemorySpec>("MemorySpec", &spec["memory"], true);
    agrees::<DiskSpec>("DiskSpec", &spec["disks"][0], true);
    agrees::<RateSpec>("RateSpec", &spec["disks"][0]["rate"], true);
    let mut net = spec["nets"][0].clone();
    net["fds"] = json!([5]);
    agrees::<NetSpec>("NetSpec", &net, true);
    agrees::<FsSpec>("FsSpec", &spec["fs"][0], true);
    agrees::<VsockSpec>("VsockSpec", &spec["vsock"], true);
    agrees::<BalloonSpec>("BalloonSpec", &spec["balloon"], true);
    agrees::<WatchdogSpec>("WatchdogSpec", &spec["watchdog"], true);
    let mut jail = spec["jail"].clone();
    (jail["memory_max"], jail["cpu_max_percent"]) = (json!("2G"), json!(150));
    (jail["pids_max"], jail["io_max"]) = (json!(64), json!({"bytes_per_s": "10M"}));
    agrees::<JailSpec>("JailSpec", &jail, true);
    let wall = json!({"name": "seccomp", "stands": true, "detail": "a filter a thread"});
    agrees::<Wall>("Wall", &wall, false);
    let info = json!({
        "vmm_version": "1", "pid": 1, "state": "running", "uptime_ms": 1, "reboots": 0, "exits": 1,
        "console_pty": "/dev/pts/1", "serial_pty": "/dev/pts/2", "walls": [wall], "spec": spec,
    });
    agrees::<VmInfo>("VmInfo", &info, false);
    agrees::<BalloonTarget>("BalloonTarget", &json!({"target_mib": 1}), true);
    agrees::<BalloonInfo>("BalloonInfo", &json!({"target_mib": 1, "actual_mib": 0}), false);
    agrees::<Created>("Created", &json!({"id": "disk0"}), false);
    agrees::<DiskResize>("DiskResize", &json!({"size": "1G"}), true);
    for then in ["continue", "pause", "stop"] {
        let request = json!({"path": "/s", "then": then});
        agrees::<SnapshotRequest>("SnapshotRequest", &request, true);
    }
    agrees::<ErrorBody>("ErrorBody", &json!({"error": "e", "hint": "h"}), false);
}

/// Every schema in the document is used by a route, or by a schema that is.
#[test]
fn the_document_has_no_schema_that_nothing_uses() {
    let document = openapi();
    let text = document.to_string();
    for name in names(&document["components"]["schemas"]) {
        let reference = format!("\"#/components/schemas/{name}\"");
        assert!(text.contains(&reference), "{name} is not used");
    }
    for state in [State::Starting, State::Running, State::Paused, State::Stopping] {
        check("State", &serde_json::to_value(state).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}

proptest! {
    /// Whatever passes verification fits the schema.
    #[test]
    fn verified_descriptions_fit_the_schema(spec in sensible_spec()) {
        let verified = spec.verify().unwrap();
        let json = serde_json::to_value(verified.spec()).unwrap();
        prop_assert_eq!(check("VmSpec", &json), Ok(()));
    }
}
