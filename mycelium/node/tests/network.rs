//! Nodes in namespaces, as users have them: they find each other, carry packets, and get over cuts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses its part of it")]
mod common;
mod nat;

use std::time::{Duration, Instant};

use common::{Lab, mycelium};

const PATIENCE: Duration = Duration::from_secs(20);
const ALONE: &str = "--disable-peer-discovery";

#[test]
fn a_line_of_three_carries_packets_from_end_to_end() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (_, b) = lab.join(0, 1);
    let (_, c) = lab.join(1, 2);
    let first = lab.start(0, &[ALONE, "--peers", &format!("tcp://{b}:9651")]);
    let middle = lab.start(1, &[ALONE, "--peers", &format!("tcp://{c}:9651")]);
    let last = lab.start(2, &[ALONE]);
    lab.echo(2, last.address);
    lab.echo(1, middle.address);
    let reached = lab.reach(0, last.address, 100, PATIENCE);
    assert!(reached.is_some(), "no answer from the other end");
    assert!(lab.reach(0, middle.address, 100, PATIENCE).is_some());
    // Full-size packets, and super packets cut and joined on the way.
    assert!(lab.reach(0, last.address, 1352, PATIENCE).is_some());
    lab.transfer(0, 2, last.address, 8 << 20);
    lab.transfer(2, 0, first.address, 8 << 20);
    assert!(first.stop() && middle.stop() && last.stop());
}

#[test]
fn a_node_is_there_soon_though_its_first_dial_fails() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (_, b) = lab.join(0, 1);
    let first = lab.start(0, &[ALONE, "--peers", &format!("tcp://{b}:9651")]);
    std::thread::sleep(Duration::from_millis(300));
    // Made before, so that the start is all that is measured.
    let (_, address) = lab.key("1");
    let start = Instant::now();
    let second = lab.start(1, &[ALONE]);
    lab.echo(1, address);
    let reached = lab.reach(0, address, 100, PATIENCE);
    println!("first answer {:?} after the peer's start", start.elapsed());
    assert!(reached.is_some());
    assert!(first.stop() && second.stop());
}

#[test]
fn a_ring_gets_over_a_link_that_loses_all_without_a_word() {
    let Some(mut lab) = Lab::new(4) else { return };
    let mut nodes = Vec::new();
    let ends: Vec<String> = (0..4).map(|at| lab.join(at, (at + 1) % 4).1).collect();
    for (at, end) in ends.iter().enumerate() {
        nodes.push(lab.start(at, &[ALONE, "--peers", &format!("tcp://{end}:9651")]));
    }
    let target = nodes[1].address;
    lab.echo(1, target);
    assert!(lab.reach(0, target, 100, PATIENCE).is_some());
    std::thread::sleep(Duration::from_secs(3));
    let pings = lab.ping(0, target, Duration::from_secs(15));
    std::thread::sleep(Duration::from_secs(2));
    lab.lose(1, 0, 1);
    let pings = pings.join().unwrap();
    println!("{pings:?}");
    // Three seconds are the goal; a loaded machine gets more.
    assert!(pings.lost_in_a_row < 80 && pings.answered > 40, "{pings:?}");
}

#[test]
fn quic_carries_small_and_full_size_packets() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (_, b) = lab.join(0, 1);
    let second = lab.start(1, &[ALONE]);
    let first = lab.start(0, &[ALONE, "--peers", &format!("quic://{b}:9651")]);
    lab.echo(1, second.address);
    for size in [100, 1200, 1352] {
        assert!(lab.reach(0, second.address, size, PATIENCE).is_some(), "{size} bytes");
    }
    lab.transfer(0, 1, second.address, 4 << 20);
    lab.transfer(1, 0, first.address, 4 << 20);
    assert!(first.stop() && second.stop());
}

#[test]
fn a_websocket_carries_what_other_links_carry() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (_, b) = lab.join(0, 1);
    let second = lab.start(1, &[ALONE, "--ws-listen-port", "8080"]);
    let first = lab.start(0, &[ALONE, "--peers", &format!("ws://{b}:8080")]);
    lab.echo(1, second.address);
    for size in [100, 1352] {
        assert!(lab.reach(0, second.address, size, PATIENCE).is_some(), "{size} bytes");
    }
    lab.transfer(0, 1, second.address, 8 << 20);
    lab.transfer(1, 0, first.address, 8 << 20);
    let status = lab.json(0, &["status", "--json"]);
    assert_eq!(status["peers"][0]["endpoint"], format!("ws://{b}:8080"));
    assert_eq!(status["peers"][0]["connectionState"], "alive");
    assert!(first.stop() && second.stop());
}

#[test]
fn a_link_ends_with_its_address_and_comes_back_with_it() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (a, b) = lab.join(0, 1);
    let second = lab.start(1, &[ALONE]);
    let first = lab.start(0, &[ALONE, "--peers", &format!("tcp://{b}:9651")]);
    lab.echo(1, second.address);
    assert!(lab.reach(0, second.address, 100, PATIENCE).is_some());
    lab.ip(0, &format!("addr del {a}/24 dev v1"));
    let start = Instant::now();
    while !first.log().contains("the address is gone") {
        assert!(start.elapsed() < Duration::from_secs(2), "nobody noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Long enough for waits between dials to grow.
    std::thread::sleep(Duration::from_secs(5));
    lab.ip(0, &format!("addr add {a}/24 dev v1"));
    let reached = lab.reach(0, second.address, 100, PATIENCE);
    println!("reached again after {reached:?}");
    // The longest wait between dials is 5 s.
    assert!(reached.is_some_and(|after| after < Duration::from_secs(2)), "{reached:?}");
    assert!(first.stop() && second.stop());
}

#[test]
fn the_node_measures_round_trips_without_a_device_or_a_privilege() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (_, b) = lab.join(0, 1);
    let second = lab.start(1, &[ALONE]);
    let first = lab.start(0, &[ALONE, "--no-tun", "--peers", &format!("tcp://{b}:9651")]);
    lab.json(0, &["status", "--json"]);
    let to = second.address.to_string();
    let ping = ["ping", "--json", "--count", "3", "--interval", "0.05", &to];
    let pinged = lab.json(0, &ping);
    println!("{pinged}");
    assert_eq!((&pinged["sent"], &pinged["answered"]), (&3.into(), &3.into()));
    let large = lab.json(0, &["ping", "--json", "--count", "1", "--size", "1352", &to]);
    assert_eq!(large["answered"], 1);
    let nobody = lab.run(0, &["ping", "--count", "1", "--timeout", "20", "400::1"]);
    let said = String::from_utf8_lossy(&nobody.stdout).into_owned();
    assert_eq!(nobody.status.code(), Some(1), "{said}");
    assert!(said.contains("no route"), "{said}");
    for (address, word) in [(first.address.to_string(), "own subnet"), ("::1".into(), "outside")] {
        let refused = lab.run(0, &["ping", &address]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(word), "{said}");
    }
    assert!(first.stop() && second.stop());
}

#[test]
fn a_private_network_has_its_members_alone() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (_, b) = lab.join(0, 1);
    let (_, c) = lab.join(0, 2);
    let (key, other) = (lab.path("network.key"), lab.path("other.key"));
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::write(&other, [8; 32]).unwrap();
    let private = ["--network-name", "house", "--network-key-file"];
    let member = [&private[..], &[key.to_str().unwrap()]].concat();
    let stranger = [&private[..], &[other.to_str().unwrap()]].concat();
    let peers = [format!("tls://{b}:9651"), format!("tcp://{c}:9651")];
    let first = lab.start(0, &[&[ALONE, "--peers", &peers[0], &peers[1]], &member[..]].concat());
    let second = lab.start(1, &[&[ALONE], &member[..]].concat());
    let third = lab.start(2, &[&[ALONE], &stranger[..]].concat());
    lab.echo(1, second.address);
    lab.echo(2, third.address);
    assert!(lab.reach(0, second.address, 1352, PATIENCE).is_some());
    lab.transfer(0, 1, second.address, 4 << 20);
    lab.transfer(1, 0, first.address, 4 << 20);
    assert!(lab.reach(0, third.address, 100, Duration::from_secs(2)).is_none());
    assert!(first.stop() && second.stop() && third.stop());
}

#[test]
fn nodes_on_one_link_find_each_other() {
    let Some(mut lab) = Lab::new(2) else { return };
    lab.join(0, 1);
    let (first, second) = (lab.start(0, &[]), lab.start(1, &[]));
    lab.echo(1, second.address);
    assert!(lab.reach(0, second.address, 100, Duration::from_secs(40)).is_some());
    assert!(first.stop() && second.stop());
}

#[test]
fn nodes_without_a_device_exchange_messages_and_say_how_they_are() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (_, b) = lab.join(0, 1);
    let (_, c) = lab.join(1, 2);
    let quiet = [ALONE, "--no-tun"];
    let b_endpoint = format!("tcp://{b}:9651");
    let first = lab.start(0, &[&quiet[..], &["--peers", &b_endpoint]].concat());
    let middle = lab.start(1, &quiet);
    let last = lab.start(2, &quiet);
    // The second link is made by a running node's API.
    lab.json(1, &["peers", "list", "--json"]);
    let c_endpoint = format!("tcp://{c}:9651");
    assert!(lab.run(1, &["peers", "add", &c_endpoint]).status.success());
    assert_eq!(lab.run(1, &["peers", "add", &c_endpoint]).status.code(), Some(4));

    let (to, from) = (last.address.to_string(), first.address.to_string());
    let lab = std::sync::Arc::new(lab);
    let sender = std::thread::spawn({
        let lab = std::sync::Arc::clone(&lab);
        move || lab.json(0, &["message", "send", "--wait", "--timeout", "20", &to, "who is there?"])
    });
    let message = lab.json(2, &["message", "receive", "--timeout", "20"]);
    assert_eq!(message["srcIp"], from);
    assert_eq!(message["payload"], "d2hvIGlzIHRoZXJlPw==");
    let id = message["id"].as_str().unwrap();
    assert!(lab.run(2, &["message", "send", "--reply-to", id, &from, "me"]).status.success());
    assert_eq!(sender.join().unwrap()["payload"], "bWU=");

    let peers = lab.json(1, &["peers", "list", "--json"]);
    let alive = peers.as_array().unwrap().iter().filter(|peer| peer["connectionState"] == "alive");
    assert_eq!(alive.count(), 2, "{peers}");
    let status = lab.json(0, &["status", "--json"]);
    assert_eq!(status["node"]["nodeIp"], from);
    assert_eq!(status["routes"].as_array().unwrap().len(), 2, "{status}");
    assert!(lab.run(1, &["peers", "remove", &c_endpoint]).status.success());
    assert_eq!(lab.run(1, &["peers", "remove", &c_endpoint]).status.code(), Some(3));
    assert!(first.stop() && middle.stop() && last.stop());
}

#[test]
fn sighup_takes_the_peers_of_the_configuration_anew() {
    let Some(mut lab) = Lab::new(2) else { return };
    let (_, b) = lab.join(0, 1);
    let config = lab.path("mycelium.toml");
    std::fs::write(&config, "disable_peer_discovery = true\n").unwrap();
    let first = lab.start(0, &["--config-file", config.to_str().unwrap()]);
    let second = lab.start(1, &[ALONE]);
    lab.echo(1, second.address);
    assert!(lab.reach(0, second.address, 100, Duration::from_secs(1)).is_none());
    std::fs::write(&config, format!("peers = [\"tcp://{b}:9651\"]\n")).unwrap();
    first.signal("HUP");
    assert!(lab.reach(0, second.address, 100, PATIENCE).is_some());
    assert!(first.stop() && second.stop());
}

#[test]
fn what_is_wrong_is_said_with_an_exit_code_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.key");
    std::fs::write(&short, [1; 31]).unwrap();
    let short = short.to_str().unwrap();
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let key = folder.path().join("good.key");
    let key = key.to_str().unwrap();
    let instances = folder.path().join("instances.toml");
    std::fs::write(&instances, "[[instance]]\nname = \"a\"\nkey_file = \"k\"\nthreads = 99\n")
        .unwrap();
    let instances = instances.to_str().unwrap();
    for (arguments, code, words) in [
        (vec!["--key-file", short, "--no-tun"], 1, "31 bytes"),
        (vec!["--key-file", key, "--no-tun", "--peers", "192.0.2.1"], 2, "PROTOCOL://HOST:PORT"),
        (vec!["--key-file", key, "--no-tun", "--tcp-listen-port", &port], 75, "hint:"),
        (vec!["--key-file", key, "--config-file", "/nowhere.toml"], 3, "/nowhere.toml"),
        (vec!["--key-file", key, "--network-name", "x"], 2, "go together"),
        (vec!["inspect", "--key-file", "/nowhere.key"], 3, "/nowhere.key"),
        (vec!["inspect", "xyz"], 2, "xyz"),
        (vec!["--instances", "/nowhere.toml"], 3, "/nowhere.toml"),
        (vec!["--instances", instances, "--no-tun"], 2, "--instances takes no flags"),
        (vec!["--instances", instances], 2, "threads"),
        (vec!["--instance", "x", "--control-socket", "/nowhere.sock", "status"], 75, "hint:"),
        (vec!["instances", "--control-socket", "/nowhere.sock", "list"], 75, "/nowhere.sock"),
        (vec!["--api-addr", "127.0.0.1:1", "ping", "host"], 1, "neither an address"),
        (vec!["--api-addr", "127.0.0.1:1", "ping", "400::1"], 75, "127.0.0.1:1"),
    ] {
        let output = mycelium(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn every_subcommand_explains_itself_and_takes_json() {
    for words in [
        "inspect",
        "generate-keys",
        "status",
        "ping",
        "doctor",
        "peers list",
        "peers add",
        "peers remove",
        "routes selected",
        "routes fallback",
        "routes queried",
        "stats packets",
        "message send",
        "message receive",
        "instances list",
        "instances add",
        "instances remove",
    ] {
        let arguments: Vec<&str> = words.split(' ').chain(["--help"]).collect();
        let output = mycelium(&arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("--json"), "{words}: {said}");
    }
}

#[test]
fn inspect_and_generate_keys_are_those_of_existing_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("node.key");
    std::fs::write(&key, [0x42; 32]).unwrap();
    let key = key.to_str().unwrap();
    let shown = mycelium(&["--key-file", key, "inspect", "--json"]);
    assert_eq!(shown.stdout, mycelium(&["inspect", "--json", "--key-file", key]).stdout);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let public = shown["publicKey"].as_str().unwrap();
    assert_eq!(public.len(), 64);
    let by_key = mycelium(&["inspect", "--json", public]);
    let by_key: serde_json::Value = serde_json::from_slice(&by_key.stdout).unwrap();
    assert_eq!(by_key, shown);
    assert_eq!(mycelium(&["generate-keys", "--key-file", key]).status.code(), Some(4));
    assert!(mycelium(&["generate-keys", "--force", "--key-file", key]).status.success());
}
