//! Deployments of people who mean harm: each is refused with a short text that says why, or read within
//! bounds, and none takes long.

use std::time::{Duration, Instant};

use hostd_grid::challenge::Form;
use hostd_grid::deployment::Keys;
use hostd_grid::limits::{
    DEPLOYMENT_SIZE_MAX, DEPTH_MAX, SIGNATURE_REQUEST_COUNT_MAX, WORKLOAD_COUNT_MAX,
};
use hostd_grid::signature::AccountKey;
use hostd_grid::{SignedDeployment, TwinId};

/// Debug builds on slow machines need some of this, and a loop that is not linear much more.
const TIME_MAX: Duration = Duration::from_secs(5);
const TEXT_SIZE_MAX: usize = 1024;

/// All that a node says about bytes that it was sent.
fn judge(json: &[u8]) -> String {
    let begin = Instant::now();
    let keys = Keys::from([(TwinId(1), AccountKey([1; 32]))]);
    let said = match SignedDeployment::read(json) {
        Err(error) => error.to_string(),
        Ok(signed) => {
            signed.verify(&keys).map(|_| "accepted".to_owned()).unwrap_or_else(|e| e.to_string())
        }
    };
    assert!(begin.elapsed() < TIME_MAX, "{:?}: {said}", begin.elapsed());
    assert!(said.len() <= TEXT_SIZE_MAX, "{} bytes: {said}", said.len());
    said
}

fn workload(name: &str, kind: &str, data: &str) -> String {
    format!(r#"{{"name":"{name}","type":"{kind}","data":{data}}}"#)
}

fn deployment(workloads: &[String]) -> String {
    format!(r#"{{"twin_id":1,"workloads":[{}]}}"#, workloads.join(","))
}

fn judge_workload(name: &str, kind: &str, data: &str) -> String {
    judge(deployment(&[workload(name, kind, data)]).as_bytes())
}

#[test]
fn numbers_that_do_not_fit() {
    let data = r#"{"size":18446744073709551616}"#;
    let expected = "failed to load data into object of type '*zos.ZMount': json: cannot unmarshal \
                    number 18446744073709551616 into Go struct field ZMount.size of type \
                    gridtypes.Unit";
    assert_eq!(judge_workload("w", "zmount", data), expected);
    let digits = "9".repeat(1 << 20);
    assert!(
        judge_workload("w", "zmount", &format!(r#"{{"size":{digits}}}"#)).contains("number 999")
    );
    let expected = "json: cannot unmarshal number 4294967296 into Go struct field \
                    Deployment.version of type uint32";
    assert_eq!(judge(br#"{"version":4294967296}"#), expected);
    let data = r#"{"size":18446744073709551615}"#;
    let all: Vec<String> = (0..3).map(|at| workload(&format!("w{at}"), "zmount", data)).collect();
    assert_eq!(judge(deployment(&all).as_bytes()), NO_ORIGINATOR);
}

const NO_ORIGINATOR: &str = "originator twin id must be in the signature requests";

#[test]
fn data_that_is_not_there() {
    for kind in hostd_grid::WorkloadType::ALL {
        let expected = format!("data of a workload of type '{kind}' cannot be null");
        assert_eq!(judge_workload("w", kind.name(), "null"), expected);
        let missing = format!(r#"{{"workloads":[{{"name":"w","type":"{kind}"}}]}}"#);
        assert!(judge(missing.as_bytes()).ends_with("': unexpected end of JSON input"));
        for data in ["[]", "7", "\"x\"", "true"] {
            let said = judge_workload("w", kind.name(), data);
            assert!(said.contains("into Go value of type zos."), "{said}");
        }
    }
}

#[test]
fn many_workloads() {
    let many = |count: usize| {
        let all: Vec<String> =
            (0..count).map(|at| workload(&format!("w{at}"), "ip", r#"{"v4":true}"#)).collect();
        judge(deployment(&all).as_bytes())
    };
    assert_eq!(many(WORKLOAD_COUNT_MAX), NO_ORIGINATOR);
    assert_eq!(many(10_000), "deployment of 10000 workloads, at most 1024 are accepted");
    let empty = format!(r#"{{"workloads":[{}{{}}]}}"#, "{},".repeat(1_000_000));
    assert_eq!(judge(empty.as_bytes()), "JSON has more than 32768 list elements and map entries");
    // Machines that all want the same address, of which each could look at all others.
    let machine = r#"{"network":{"public_ip":"p","interfaces":[{"network":"n","ip":"10.1.1.2"}]},
        "compute_capacity":{"cpu":1,"memory":1073741824}}"#;
    let mut all = vec![workload("p", "ipv4", "{}")];
    all.extend((1..WORKLOAD_COUNT_MAX).map(|at| workload(&format!("w{at}"), "zmachine", machine)));
    let said = judge(deployment(&all).as_bytes());
    assert_eq!(said, "public ip is assigned to multiple vms");
}

#[test]
fn names_of_megabytes() {
    let ip = r#"{"v6":true}"#;
    let said = judge_workload(&"a".repeat(3 << 20), "ip", ip);
    assert!(said.ends_with("…' is invalid: name cannot exceed 36 characters"), "{said}");
    let said = judge_workload(&"a".repeat(10 << 20), "ip", ip);
    assert!(said.starts_with("deployment of 1048"), "{said}");
    assert!(
        judge_workload("w", &"ü".repeat(1 << 20), ip).starts_with("invalid reservation type 'ü")
    );
    let name = "a".repeat(1 << 20);
    let gateway = format!(r#"{{"name":"{name}","backends":["http://1.2.3.4"]}}"#);
    assert!(judge_workload("w", "gateway-name-proxy", &gateway).ends_with("… is invalid"));
    let logs = format!(r#"{{"zmachine":"{name}"}}"#);
    assert!(judge_workload("w", "zlogs", &logs).starts_with("no zmachine with name 'aaa"));
    let backend = format!(r#"{{"name":"a","backends":["http://{name}"]}}"#);
    assert!(judge_workload("w", "gateway-name-proxy", &backend).contains("invalid ip address"));
    let network = format!(r#"{{"subnet":"{name}"}}"#);
    assert!(judge_workload("w", "network", &network).contains("invalid CIDR address: aaa"));
    let key = format!(r#"{{"mycelium":{{"hex_key":"{name}"}}}}"#);
    let said = judge_workload("w", "network", &key);
    assert_eq!(said, "network IP range cannot be empty");
}

#[test]
fn nesting() {
    let nested = |depth: usize| {
        let inside = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        judge(format!(r#"{{"unknown":{inside}}}"#).as_bytes())
    };
    assert_eq!(nested(DEPTH_MAX - 1), NO_ORIGINATOR);
    assert_eq!(nested(DEPTH_MAX), "JSON is nested deeper than 128 levels");
    assert_eq!(nested(1 << 20), "JSON is nested deeper than 128 levels");
    let objects = "{\"a\":".repeat(DEPLOYMENT_SIZE_MAX / 5);
    assert_eq!(judge(objects.as_bytes()), "JSON is nested deeper than 128 levels");
}

#[test]
fn many_signatures() {
    let many = |count: usize| {
        let requests = vec![r#"{"twin_id":1,"weight":18446744073709551615}"#; count].join(",");
        let signatures = vec![r#"{"twin_id":2,"signature":"00"}"#; 10_000].join(",");
        judge(
            format!(
                r#"{{"twin_id":1,"signature_requirement":{{"requests":[{requests}],
                    "signatures":[{signatures}]}}}}"#
            )
            .as_bytes(),
        )
    };
    assert_eq!(many(SIGNATURE_REQUEST_COUNT_MAX), "missing required signature for twin '1'");
    let expected = "65 signatures are asked for, at most 64 are accepted";
    assert_eq!(many(SIGNATURE_REQUEST_COUNT_MAX + 1), expected);
    let odd = r#"{"twin_id":1,"signature_requirement":{"requests":[{"twin_id":1}],
        "signatures":[{"twin_id":1,"signature":"000"}]}}"#;
    assert_eq!(judge(odd.as_bytes()), "invalid signature: encoding/hex: odd length hex string");
    let unknown = r#"{"twin_id":3,"signature_requirement":{"requests":[{"twin_id":3}],
        "signatures":[{"twin_id":3,"signature":"00"}]}}"#;
    assert_eq!(judge(unknown.as_bytes()), "failed to get public key for twin '3'");
}

#[test]
fn forms_do_not_open_a_second_way_in() {
    // With a WireGuard key there, what is absent may still be left out, and nothing else.
    let key = "00".repeat(32);
    let data = format!(
        r#"{{"subnet":"10.1.1.0/24","mycelium":{{"hex_key":"{key}"}},"wireguard_private_key":"k"}}"#
    );
    let json = deployment(&[workload("n", "network-light", &data)]);
    let signed = SignedDeployment::read(json.as_bytes()).unwrap();
    let challenge = signed.deployment().challenge(Form::Omitting).unwrap();
    assert_eq!(challenge, format!("0100nnetwork-light10.1.1.0/24k{key}0"));
    assert_eq!(signed.deployment().forms(), [Form::Current, Form::Omitting]);
    // A full network has one form.
    let json = deployment(&[workload("n", "network", &data)]);
    let signed = SignedDeployment::read(json.as_bytes()).unwrap();
    assert_eq!(signed.deployment().forms(), [Form::Current]);
}

#[test]
fn bytes_that_are_no_text() {
    assert_eq!(judge(b""), "unexpected end of JSON input");
    assert_eq!(judge(b"\xff"), "invalid character '\u{ff}' looking for beginning of value");
    let metadata = [b"{\"metadata\":\"" as &[u8], &[0xff; 1 << 20], b"\"}"].concat();
    assert_eq!(judge(&metadata), NO_ORIGINATOR);
}
