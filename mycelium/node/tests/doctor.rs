//! What `mycelium doctor` finds, and that it finds nothing where nothing is wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses its part of it")]
mod common;

use std::net::{Ipv4Addr, TcpListener};

use common::Lab;
use serde_json::Value;

const ALONE: &str = "--disable-peer-discovery";

/// Exit code and findings.
fn examine(lab: &Lab, at: usize, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let key = lab.key(&at.to_string()).0;
    let first = ["--key-file", key.to_str().unwrap(), "--tun-name", "my0", ALONE];
    let output = lab.run(at, &[&first[..], &["doctor", "--json"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown: Value = serde_json::from_slice(&output.stdout).expect(&said);
    (output.status.code(), shown["findings"].as_array().unwrap().clone())
}

/// What is said of one thing, in all its findings.
fn said(findings: &[Value], check: &str) -> String {
    let of_it = findings.iter().filter(|finding| finding["check"] == check);
    of_it.map(Value::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_node_that_is_well_has_no_problem() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (_, b) = lab.join(0, 1);
    let peer = format!("tcp://{b}:9651");
    let second = lab.start(1, &[ALONE]);
    // Before the start: all is ready, and the peer answers.
    let (code, findings) = examine(&lab, 0, &[&peer]);
    assert_eq!(code, Some(0), "{findings:#?}");
    assert!(said(&findings, "peer").contains(&second.address.to_string()), "{findings:#?}");
    let first = lab.start(0, &[ALONE, "--peers", &peer]);
    lab.echo(1, second.address);
    assert!(lab.reach(0, second.address, 100, std::time::Duration::from_secs(20)).is_some());
    let (code, findings) = examine(&lab, 0, &[&peer]);
    assert_eq!(code, Some(0), "{findings:#?}");
    assert!(said(&findings, "peer").contains("has a link"), "{findings:#?}");
    assert!(said(&findings, "TUN device").contains("is up"), "{findings:#?}");
    assert!(said(&findings, "route 400::/7").contains("good"), "{findings:#?}");
    // Without its route, the device gets nothing.
    lab.ip(0, "-6 route del 400::/7 dev my0");
    let (code, findings) = examine(&lab, 0, &[&peer]);
    assert_eq!(code, Some(1), "{findings:#?}");
    assert!(said(&findings, "route 400::/7").contains("ip -6 route replace"), "{findings:#?}");
    lab.ip(0, "link set my0 down");
    let (_, findings) = examine(&lab, 0, &[&peer]);
    assert!(said(&findings, "TUN device").contains("problem"), "{findings:#?}");
    assert!(first.stop() && second.stop());
}

#[test]
fn each_peer_is_told_what_is_wrong_with_it() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (a, b) = lab.join(0, 1);
    let second = lab.start(1, &[ALONE]);
    let peers = [
        format!("tcp://{b}:9650"),
        "tcp://203.0.113.1:9651".to_owned(),
        "tcp://no-such-host.invalid:9651".to_owned(),
        "tls://192.0.2.1:9651".to_owned(),
        format!("ws://{b}:9651"),
        format!("quic://{b}:9651"),
        format!("tcp://{a}:9651"),
    ];
    let itself = lab.start(0, &[ALONE]);
    lab.json(0, &["status", "--json"]);
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    let (code, findings) = examine(&lab, 0, &peers);
    assert_eq!(code, Some(1));
    let peers: Vec<&Value> = findings.iter().filter(|found| found["check"] == "peer").collect();
    let words = [
        "nothing listens",
        "no way there",
        "resolv.conf",
        "private network",
        "WebSocket",
        "answers",
        "this node itself",
    ];
    assert_eq!(peers.len(), words.len(), "{peers:#?}");
    for (finding, word) in peers.iter().zip(words) {
        assert!(finding.to_string().contains(word), "{word}: {finding}");
    }
    assert!(itself.stop() && second.stop());
}

#[test]
fn ports_that_others_hold_are_named_with_their_holder() {
    let Some(lab) = Lab::new(2) else { return };
    let (code, findings) = examine(&lab, 0, &[]);
    assert_eq!(code, Some(1), "nobody to dial is a problem");
    assert!(said(&findings, "port").contains("9651/tcp for TCP peers: free"), "{findings:#?}");
    assert!(said(&findings, "node").contains("no node answers"), "{findings:#?}");
    // This test holds a node's port, in the namespace.
    let (held, is_held) = std::sync::mpsc::channel();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let holder = lab.inside(0, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9651)).unwrap();
        held.send(()).unwrap();
        let _ = is_done.recv();
        drop(listener);
    });
    is_held.recv().unwrap();
    let (_, findings) = examine(&lab, 0, &[]);
    let process = format!("process {}", std::process::id());
    assert!(said(&findings, "port").contains(&process), "{findings:#?}");
    drop(done);
    holder.join().unwrap();
    // A device of the node's name that is somebody else's.
    lab.ip(1, "link add my0 type veth peer name my1");
    let (_, findings) = examine(&lab, 1, &[]);
    assert!(said(&findings, "TUN device").contains("--tun-name"), "{findings:#?}");
}
