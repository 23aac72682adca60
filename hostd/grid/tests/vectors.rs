//! Descriptors and tables recorded from existing nodes (`ci/vectors/zos.json`): each is read, judged,
//! hashed and verified as they do it, with their words.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostd_grid::address::{Cidr, Maybe};
use hostd_grid::challenge::Form;
use hostd_grid::deployment::{Change, Keys};
use hostd_grid::derived::network::{
    mycelium_address, mycelium_gateway, slaac_address, wireguard_address,
};
use hostd_grid::derived::{MacAddress, NetworkId, WorkloadId};
use hostd_grid::signature::AccountKey;
use hostd_grid::workload::{
    Backend, ComputeCapacity, ReadData, Readable, Siblings, Workload, ZMachine, min_root_size,
};
use hostd_grid::{
    ContractId, Deployment, Name, SignedDeployment, TwinId, VerifiedDeployment, WorkloadData,
};
use serde_json::Value;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/vectors/zos.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The vectors of one table, of which there are `count`.
fn each<'a>(all: &'a Value, table: &str, count: usize) -> &'a [Value] {
    let vectors = all[table].as_array().unwrap();
    assert_eq!(vectors.len(), count, "{table}");
    vectors
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number<T: TryFrom<u64>>(value: &Value) -> T {
    value.as_u64().unwrap().try_into().ok().unwrap()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    let digits = text(value);
    let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
    assert_eq!(digits.len(), 2 * N);
    std::array::from_fn(byte)
}

fn keys(all: &Value) -> Keys {
    let key = |key: &Value| (TwinId(number(&key["Twin"])), AccountKey(bytes(&key["Pub"])));
    each(all, "keys", 5).iter().map(key).collect()
}

fn read(json: &str) -> SignedDeployment {
    SignedDeployment::read(json.as_bytes()).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// The error's text that a vector expects, if it does not say `ok`.
fn error_of<'a>(vector: &'a Value, error: &str, ok: &str) -> Option<&'a str> {
    let expected = vector.get(error).map(text);
    assert!(expected.is_some() != vector.get(ok).is_some(), "{ok} and {error} of {vector}");
    expected
}

/// The challenge of one workload: what a deployment's has beside the head and tail of an empty one.
fn challenge_of(workload: &Value) -> Result<String, String> {
    let deployment = serde_json::json!({ "workloads": [workload] });
    challenge_of_only_workload(&read(&deployment.to_string()))
}

fn challenge_of_only_workload(signed: &SignedDeployment) -> Result<String, String> {
    let challenge =
        signed.deployment().challenge(Form::Current).map_err(|error| error.to_string())?;
    let inside = challenge.strip_prefix("000").unwrap().strip_suffix('0').unwrap();
    Ok(inside.to_owned())
}

#[test]
fn descriptors() {
    let all = vectors();
    let keys = keys(&all);
    let mut verified = 0;
    for case in each(&all, "cases", 68) {
        let name = text(&case["name"]);
        let signed = read(&case["deployment"].to_string());
        if case.get("panic").is_some() {
            assert_eq!(signed.validate().unwrap_err().to_string(), NULL_DATA);
            assert!(signed.deployment().hash(Form::Current).is_err());
            continue;
        }
        let valid = signed.validate().map_err(|error| error.to_string());
        let expected = error_of(case, "valid_error", "valid");
        assert_eq!(valid.as_ref().err().map(String::as_str), expected, "{name}");
        let proven = signed.verify_signatures(&keys).map_err(|error| error.to_string());
        let expected = error_of(case, "verify_error", "verify");
        assert_eq!(proven.as_ref().err().map(String::as_str), expected, "{name}");
        if let Some(challenge) = case.get("challenge") {
            assert_eq!(
                signed.deployment().challenge(Form::Current).unwrap(),
                text(challenge),
                "{name}"
            );
            let hash = signed.deployment().hash(Form::Current).unwrap();
            assert_eq!(hash.to_string(), text(&case["hash"]), "{name}");
        }
        workloads(case, signed.deployment());
        let both = valid.is_ok() && proven.is_ok();
        let result = signed.verify(&keys);
        assert_eq!(result.is_ok(), both, "{name}");
        if let Ok(deployment) = result {
            let owner = deployment.deployment().twin_id;
            assert_eq!(deployment.check_contract(text(&case["hash"]), owner), Ok(()), "{name}");
            goes_round(&deployment);
            verified += 1;
        }
    }
    assert_eq!(verified, 27);
}

const NULL_DATA: &str = "data of a workload of type 'ipv4' cannot be null";

/// Each workload's own part of the challenge, capacity, and validity.
fn workloads(case: &Value, deployment: &Deployment<ReadData>) {
    let sent = case["deployment"]["workloads"].as_array().map_or(&[][..], Vec::as_slice);
    let expected = case["workloads"].as_array().map_or(&[][..], Vec::as_slice);
    let siblings = Siblings::of(&deployment.workloads);
    for ((workload, sent), expected) in deployment.workloads.iter().zip(sent).zip(expected) {
        let name = text(&expected["name"]);
        assert_eq!(workload.name.as_str(), name);
        let Ok(data) = workload.data.readable() else {
            assert_eq!(text(&expected["type"]), "container", "{name}");
            continue;
        };
        assert_eq!(data.kind().name(), text(&expected["type"]));
        assert_eq!(challenge_of(sent).unwrap(), text(&expected["challenge"]), "{name}");
        assert_eq!(serde_json::to_value(data.capacity()).unwrap(), expected["capacity"], "{name}");
        let valid = data.validate(&siblings).map_err(|error| error.to_string());
        let valid_error = expected.get("valid_error").map(text);
        assert_eq!(valid.err().as_deref(), valid_error, "{name}");
    }
    assert_eq!(deployment.workloads.len(), sent.len());
}

/// What is written again is the same deployment, with the same hash and signatures.
fn goes_round(verified: &VerifiedDeployment) {
    let json = serde_json::to_string(verified.deployment()).unwrap();
    let again = read(&json).recheck(verified.hash()).unwrap();
    assert_eq!(again.deployment(), verified.deployment());
    let stored = SignedDeployment::read(verified.original().clone()).unwrap();
    let stored = stored.recheck(verified.hash()).unwrap();
    assert_eq!(stored.deployment(), verified.deployment());
}

#[test]
fn every_type_is_among_the_descriptors() {
    let all = vectors();
    for kind in hostd_grid::WorkloadType::ALL {
        let with_kind = each(&all, "cases", 68).iter().filter(|case| {
            let workloads = case["deployment"]["workloads"].as_array();
            workloads
                .is_some_and(|list| list.iter().any(|workload| workload["type"] == kind.name()))
        });
        assert!(with_kind.count() > 0, "{kind}");
    }
}

#[test]
fn decoding() {
    for vector in each(&vectors(), "decoding", 26) {
        let (kind, data) = (text(&vector["type"]), text(&vector["data"]));
        let json = format!(r#"{{"workloads":[{{"name":"w","type":"{kind}","data":{data}}}]}}"#);
        let expected = match vector.get("error") {
            Some(error) => Err(text(error).to_owned()),
            None => Ok(text(&vector["challenge"]).to_owned()),
        };
        assert_eq!(challenge_of_only_workload(&read(&json)), expected, "{}", vector["note"]);
    }
}

#[test]
fn legacy_network_light() {
    let all = vectors();
    let vector = &all["network_light_legacy_challenge"];
    let signed = read(&vector["deployment"].to_string());
    assert_eq!(signed.deployment().challenge(Form::Omitting).unwrap(), text(&vector["challenge"]));
    assert_ne!(signed.deployment().challenge(Form::Current).unwrap(), text(&vector["challenge"]));
    let verified = signed.recheck(text(&vector["hash"]).parse().unwrap()).unwrap();
    assert_eq!(verified.form(), Form::Omitting);
    assert_eq!(verified.check_contract(text(&vector["hash"]), TwinId(11)), Ok(()));
}

fn plain(value: &Value) -> Deployment {
    let signed = read(&value.to_string());
    let hash = signed.deployment().hash(Form::Current).unwrap();
    signed.recheck(hash).unwrap().deployment().clone()
}

#[test]
fn upgrades() {
    for vector in each(&vectors(), "upgrades", 9) {
        let name = text(&vector["name"]);
        let (current, new) = (plain(&vector["current"]), plain(&vector["new"]));
        let changes = current.changes_to(&new).map_err(|error| error.to_string());
        let expected = match vector.get("error") {
            Some(error) => Err(text(error).to_owned()),
            None => Ok(vector["ops"].as_array().cloned().unwrap_or_default()),
        };
        let shown = changes.map(|changes| {
            changes.iter().map(|change| shown(change, &new)).collect::<Vec<Value>>()
        });
        assert_eq!(shown, expected, "{name}");
    }
}

fn shown(change: &Change<'_>, deployment: &Deployment) -> Value {
    let op = match change {
        Change::Add(_) => "add",
        Change::Update(_) => "update",
        Change::Remove(_) => "remove",
    };
    let workload: &Workload = change.workload();
    let id = WorkloadId::of(deployment, workload).to_string();
    serde_json::json!({ "id": id, "op": op, "version": workload.version })
}

#[test]
fn names() {
    for vector in each(&vectors(), "names", 10) {
        let error = Name::new(text(&vector["name"])).check().err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), error_of(vector, "error", "ok"), "{vector}");
    }
}

#[test]
fn timestamps() {
    for vector in each(&vectors(), "timestamps", 6) {
        let json = format!(r#"{{"expiration":{}}}"#, text(&vector["json"]));
        let read = SignedDeployment::read(json.as_bytes());
        let value = read.map(|signed| signed.deployment().expiration.0);
        match vector.get("error") {
            Some(error) => assert_eq!(value.unwrap_err().to_string(), text(error), "{json}"),
            None => assert_eq!(value.unwrap(), vector["value"].as_i64().unwrap(), "{json}"),
        }
    }
}

#[test]
fn networks_and_addresses() {
    let all = vectors();
    for vector in each(&all, "ipnets", 6) {
        let parsed = Maybe::<Cidr>::parse(text(&vector["in"]));
        if let Some(error) = vector.get("error") {
            assert_eq!(parsed.unwrap_err().to_string(), text(error));
            continue;
        }
        let parsed = parsed.unwrap();
        assert_eq!(parsed.to_string(), text(&vector["string_in_challenge"]));
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text(&vector["json"]));
    }
    for vector in each(&all, "ips", 6) {
        let ip = text(&vector["json"]);
        let json = format!(
            r#"{{"workloads":[{{"name":"w","type":"zmachine","data":{{"network":{{"interfaces":[
                {{"network":"n","ip":{ip}}}]}}}}}}]}}"#
        );
        let signed = read(&json);
        let Ok(WorkloadData::ZMachine(machine)) = &signed.deployment().workloads[0].data else {
            panic!("{ip}")
        };
        let read = machine.network.interfaces[0].ip;
        assert_eq!(read.to_string(), text(&vector["string_in_challenge"]));
    }
}

#[test]
fn ids() {
    for vector in each(&vectors(), "ids", 3) {
        let id = WorkloadId {
            twin_id: TwinId(number(&vector["twin"])),
            contract_id: ContractId(text(&vector["contract"]).parse().unwrap()),
            name: Name::new(text(&vector["name"])),
        };
        assert_eq!(id.to_string(), text(&vector["workload_id"]));
        for tag in ["net1", "pub", "ygg", "mycelium"] {
            let unique = id.device(tag);
            assert_eq!(unique.as_str(), text(&vector[format!("unique_{tag}")]));
            for (prefix, key) in [
                ("", ""),
                ("ygg:", "_prefixed_ygg_colon"),
                ("mycelium:", "_prefixed_mycelium_colon"),
            ] {
                let mac = MacAddress::of(&format!("{prefix}{unique}"));
                assert_eq!(mac.to_string(), text(&vector[format!("mac_of_unique_{tag}{key}")]));
            }
        }
        let taps = [
            (id.private_tap(&Name::new("net1")), "t-", "net1", ""),
            (id.public_tap(), "p-", "pub", ""),
            (id.planetary_tap(), "t-", "ygg", "_prefixed_ygg_colon"),
            (id.mycelium_tap(), "t-", "mycelium", "_prefixed_mycelium_colon"),
        ];
        for (tap, prefix, tag, key) in taps {
            assert_eq!(tap.name, format!("{prefix}{}", text(&vector[format!("unique_{tag}")])));
            assert_eq!(tap.mac.to_string(), text(&vector[format!("mac_of_unique_{tag}{key}")]));
        }
        let network = NetworkId::of(id.twin_id, &id.name);
        assert_eq!(network.as_str(), text(&vector["network_id_of_twin_and_name"]));
        for host in [1, 5] {
            let private = network.private_ipv6(Ipv4Addr::new(10, 20, 2, host));
            assert_eq!(private.to_string(), text(&vector[format!("convert4to6_10.20.2.{host}")]));
        }
    }
}

#[test]
fn macs() {
    for vector in each(&vectors(), "macs", 7) {
        assert_eq!(MacAddress::of(text(&vector["input"])).to_string(), text(&vector["mac"]));
    }
}

#[test]
fn root_sizes() {
    for vector in each(&vectors(), "root_sizes", 10) {
        let compute_capacity =
            ComputeCapacity { cpu: number(&vector["cpu"]), memory: number(&vector["memory"]) };
        let ComputeCapacity { cpu, memory } = compute_capacity;
        assert_eq!(min_root_size(cpu, memory), number::<u64>(&vector["min_root_size"]), "{vector}");
        let size = number(&vector["size"]);
        let machine = ZMachine { size, compute_capacity, ..ZMachine::default() };
        assert_eq!(machine.root_size(), number::<u64>(&vector["root_size"]), "{vector}");
    }
}

#[test]
fn gateway_backends() {
    for vector in each(&vectors(), "gateway_backends", 14) {
        let backend = Backend::new(text(&vector["backend"]));
        let address = backend.address(vector["tls_passthrough"].as_bool().unwrap());
        match vector.get("error") {
            Some(error) => assert_eq!(address.unwrap_err().to_string(), text(error)),
            None => assert_eq!(address.unwrap().to_string(), text(&vector["address"])),
        }
    }
}

#[test]
fn formulas() {
    let all = vectors();
    let [wireguard, mycelium, slaac] = each(&all, "formulas", 3) else { unreachable!() };
    let example = &wireguard["example"];
    let subnet = Cidr::parse(text(&example["subnet"])).unwrap();
    assert_eq!(wireguard_address(&subnet).unwrap().to_string(), text(&example["ip"]));

    let example = &mycelium["example"];
    let node: Ipv6Addr = text(&example["address"]).parse().unwrap();
    let address = mycelium_address(node, bytes(&example["seed"])).unwrap();
    assert_eq!(address.to_string(), text(&example["ip"]));
    assert_eq!(mycelium_gateway(node).to_string(), text(&example["gateway"]));

    // Given in words: the prefix, and the MAC with its second bit turned over and fffe in its middle.
    assert!(text(&slaac["public_ip6"]).contains("mac[0]^2"));
    let mac = MacAddress::from_bytes([0xba, 0x88, 0x4f, 0x0e, 0x10, 0xac]);
    let address = slaac_address("2a02:1:2:3::".parse().unwrap(), mac);
    assert_eq!(IpAddr::from(address), "2a02:1:2:3:b888:4fff:fe0e:10ac".parse::<IpAddr>().unwrap());
}
