//! Nodes in namespaces that speak to each other with forward secrecy, past nodes that know nothing of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "not all of it is needed here")]
mod common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{Lab, Node};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const ALONE: &str = "--disable-peer-discovery";

/// Asks a node's HTTP API, and gives status and body.
fn ask(lab: &Lab, at: usize, method: &'static str, path: String) -> (u16, String) {
    let answer = lab.inside(at, move || {
        let mut stream = TcpStream::connect(("127.0.0.1", 8989)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\n");
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.join().unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// How node `at` talks to the node with `address`.
fn state(lab: &Lab, at: usize, address: Ipv6Addr) -> Value {
    let (_, body) = ask(lab, at, "GET", "/sessions".to_owned());
    let all: Value = serde_json::from_str(&body).unwrap();
    let found = all.as_array().unwrap().iter().find(|one| one["address"] == address.to_string());
    found.cloned().unwrap_or_default()
}

/// Two nodes, and one between them that speaks no sessions.
fn line(lab: &mut Lab, first: &[&str]) -> [Node; 3] {
    let (_, b) = lab.join(0, 1);
    let (_, c) = lab.join(1, 2);
    let (b, c) = (format!("tcp://{b}:9651"), format!("tcp://{c}:9651"));
    let first = lab.start(0, &[&[ALONE, "--peers", &b], first].concat());
    let middle = lab.start(1, &[ALONE, "--no-sessions", "--peers", &c]);
    let last = lab.start(2, &[ALONE]);
    [first, middle, last]
}

#[test]
fn two_nodes_have_a_session_past_one_that_knows_of_none() {
    let Some(mut lab) = Lab::new(3) else { return };
    let [first, middle, last] = line(&mut lab, &[]);
    lab.echo(1, middle.address);
    lab.echo(2, last.address);
    let reached = lab.reach(0, last.address, 100, PATIENCE);
    println!("first answer after {reached:?}");
    assert!(reached.is_some(), "no answer from the other end");
    // Full-size packets, and super packets cut and joined on the way.
    assert!(lab.reach(0, last.address, 1352, PATIENCE).is_some());
    println!("{:?}", lab.transfer(0, 2, last.address, 8 << 20));
    println!("{:?}", lab.transfer(2, 0, first.address, 8 << 20));
    for (at, other) in [(0, last.address), (2, first.address)] {
        let state = state(&lab, at, other);
        assert_eq!(state["state"], "forwardSecret", "{state}");
        assert!(state["packetsSent"].as_u64().unwrap() > 1000, "{state}");
    }
    assert!(lab.reach(0, middle.address, 100, PATIENCE).is_some());
    assert_eq!(state(&lab, 0, middle.address)["state"], "old");
    assert!(first.stop() && middle.stop() && last.stop());
}

#[test]
fn a_node_that_is_killed_and_started_anew_is_reached_soon() {
    let Some(mut lab) = Lab::new(3) else { return };
    let [first, middle, last] = line(&mut lab, &[]);
    lab.echo(2, last.address);
    assert!(lab.reach(0, last.address, 100, PATIENCE).is_some());
    assert_eq!(state(&lab, 0, last.address)["state"], "forwardSecret");
    let address = last.address;
    drop(last);
    let last = lab.start(2, &[ALONE]);
    // The first node does not know that its session is gone. Links need a moment as well.
    lab.echo(2, address);
    let start = Instant::now();
    assert!(lab.reach(0, address, 100, PATIENCE).is_some());
    println!("reached again after {:?}", start.elapsed());
    assert_eq!(state(&lab, 0, address)["state"], "forwardSecret");
    assert_eq!(state(&lab, 2, first.address)["state"], "forwardSecret");
    assert!(first.stop() && middle.stop() && last.stop());
}

#[test]
fn who_had_a_session_is_not_talked_to_with_less_until_an_operator_says_so() {
    let Some(mut lab) = Lab::new(3) else { return };
    let folder = lab.path("state");
    let state_dir = ["--state-dir", folder.to_str().unwrap()];
    let [first, middle, last] = line(&mut lab, &state_dir);
    lab.echo(2, last.address);
    assert!(lab.reach(0, last.address, 100, PATIENCE).is_some());
    let address = last.address;
    assert_eq!(state(&lab, 0, address)["proved"], true);
    let start = Instant::now();
    let known = loop {
        let known = std::fs::read_to_string(folder.join("proved-peers")).unwrap_or_default();
        if !known.is_empty() || start.elapsed() > PATIENCE {
            break known;
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(known.lines().count(), 1, "{known:?}");

    // Both start anew; one of them as if it were an existing release.
    assert!(first.stop() && last.stop());
    let last = lab.start(2, &[ALONE, "--no-sessions"]);
    lab.echo(2, address);
    let peer = "tcp://10.1.0.2:9651";
    let first = lab.start(0, &[&[ALONE, "--peers", peer][..], &state_dir].concat());
    assert!(lab.reach(1, address, 100, PATIENCE).is_some());
    assert!(lab.reach(0, address, 100, Duration::from_secs(7)).is_none());
    assert_eq!(state(&lab, 0, address)["state"], "refused");
    assert_eq!(ask(&lab, 0, "DELETE", format!("/sessions/{address}")).0, 204);
    assert!(lab.reach(0, address, 100, PATIENCE).is_some());
    assert_eq!(ask(&lab, 0, "DELETE", format!("/sessions/{address}")).0, 404);
    assert!(first.stop() && middle.stop() && last.stop());
}
