//! One process with several identities, each in a namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses its part of it")]
mod common;

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Lab, Node, mycelium};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// A process with instances.
struct Process {
    node: Node,
    socket: PathBuf,
}

impl Process {
    fn start(lab: &Lab, text: &str) -> Self {
        let (file, socket) = (lab.path("instances.toml"), lab.path("run/control.sock"));
        std::fs::write(&file, text).unwrap();
        Self { node: lab.start_instances(&file, &socket), socket }
    }

    /// Runs the program against its control socket.
    fn run(&self, arguments: &[&str]) -> std::process::Output {
        let socket = ["--control-socket", self.socket.to_str().unwrap()];
        mycelium(&[&socket[..], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", self.node.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until an instance is as wanted.
    fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let output = self.run(&["instances", "list", "--json"]);
            let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let found = all.as_array().into_iter().flatten().find(|one| one["name"] == name);
            match found {
                Some(found) if wanted(found) => return found.clone(),
                _ => assert!(start.elapsed() < PATIENCE, "{name}: {all}\n{}", self.node.log()),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn until_running(&self, name: &str) -> Value {
        self.until(name, |instance| instance["state"] == "running")
    }
}

/// The entry of an instance in a file, and its address.
fn instance(lab: &Lab, name: &str, more: &str) -> (String, Ipv6Addr) {
    let (key, address) = lab.key(name);
    let key = key.to_str().unwrap();
    (format!("[[instance]]\nname = \"{name}\"\nkey_file = \"{key}\"\n{more}\n"), address)
}

/// More of an entry: a namespace, and a device there.
fn inside(lab: &Lab, at: usize) -> String {
    format!("namespace = \"{}\"\ntun_name = \"my0\"", lab.name(at))
}

#[test]
fn instances_reach_each_other_and_a_node_elsewhere() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (_, c) = lab.join(0, 2);
    let peers = format!("{}\npeers = [\"tcp://{c}:9651\"]", inside(&lab, 0));
    let (host, host_address) = instance(&lab, "host", &peers);
    let (user, user_address) = instance(&lab, "user", &inside(&lab, 1));
    let third = lab.start(2, &["--disable-peer-discovery"]);
    let process = Process::start(&lab, &(host + &user));
    process.until_running("user");
    lab.echo(2, third.address);
    lab.echo(1, user_address);
    lab.echo(0, host_address);
    // The user's instance has no way out of its namespace but by the other's.
    for (from, to) in [(1, host_address), (0, user_address), (1, third.address), (2, user_address)]
    {
        assert!(lab.reach(from, to, 1352, PATIENCE).is_some(), "{from} to {to}");
    }
    lab.transfer(1, 2, third.address, 8 << 20);
    lab.transfer(2, 1, user_address, 8 << 20);
    lab.transfer(0, 1, user_address, 8 << 20);
    let shown = process.until("user", |user| user["joinedInstances"] == 1);
    assert_eq!(shown["address"], user_address.to_string());
    // Each has its API under its name.
    let status = process.json(&["--instance", "user", "status", "--json"]);
    assert_eq!(status["node"]["nodeIp"], user_address.to_string());
    assert_eq!(status["peers"][0]["endpoint"], "instance://host");
    let to = third.address.to_string();
    let pinged = process.json(&["--instance", "user", "ping", "--json", "--count", "2", &to]);
    assert_eq!(pinged["answered"], 2, "{pinged}");
    assert!(process.node.stop() && third.stop());
    assert!(!process.socket.exists());
}

#[test]
fn one_that_fails_harms_nobody_and_comes_back() {
    let Some(lab) = Lab::new(3) else { return };
    let (host, _) = instance(&lab, "host", &inside(&lab, 0));
    let (user, user_address) = instance(&lab, "user", &inside(&lab, 1));
    let (other, other_address) = instance(&lab, "other", &inside(&lab, 2));
    let (lost, _) = instance(&lab, "lost", "namespace = \"no-such-namespace\"");
    let (twin, _) = instance(&lab, "twin", "");
    let twin = twin.replace("twin.key", "host.key");
    let process = Process::start(&lab, &(host + &user + &other + &lost + &twin));
    process.until_running("other");
    let lost = process.until("lost", |lost| lost["state"] == "failed");
    assert!(lost["error"].as_str().unwrap().contains("no-such-namespace"), "{lost}");
    let twin = process.until("twin", |twin| twin["state"] == "failed");
    assert!(twin["error"].as_str().unwrap().contains("instance host"), "{twin}");
    lab.echo(1, user_address);
    lab.echo(2, other_address);
    assert!(lab.reach(1, other_address, 100, PATIENCE).is_some());
    // The one that joins them loses its device, and with it all that it is.
    lab.ip(0, "link del my0");
    process.until("host", |host| host["state"] == "failed");
    let reached = lab.reach(1, other_address, 100, PATIENCE);
    println!("the next joins them after {reached:?}");
    assert!(reached.is_some(), "{}", process.node.log());
    process.until_running("host");
    process.until("other", |other| other["joinedInstances"] == 1);
    assert!(lab.reach(1, other_address, 100, PATIENCE).is_some());
    assert!(process.node.stop());
}

#[test]
fn instances_come_and_go_while_others_run() {
    let Some(lab) = Lab::new(2) else { return };
    let (host, host_address) = instance(&lab, "host", &inside(&lab, 0));
    let process = Process::start(&lab, &host);
    process.until_running("host");
    let (user, user_address) = instance(&lab, "user", &inside(&lab, 1));
    let added = lab.path("added.toml");
    std::fs::write(&added, &user).unwrap();
    let added = added.to_str().unwrap();
    let shown = process.json(&["instances", "add", added, "--json"]);
    assert_eq!((&shown[0]["state"], &shown[0]["isFromFile"]), (&"running".into(), &false.into()));
    assert_eq!(process.run(&["instances", "add", added]).status.code(), Some(4));
    lab.echo(1, user_address);
    assert!(lab.reach(0, user_address, 100, PATIENCE).is_some());
    assert!(process.run(&["instances", "remove", "user"]).status.success());
    assert_eq!(process.run(&["instances", "remove", "user"]).status.code(), Some(3));
    assert!(lab.reach(0, user_address, 100, Duration::from_secs(1)).is_none());
    // Its device is gone with it, and its name is free.
    process.json(&["instances", "add", added, "--json"]);
    assert!(lab.reach(0, user_address, 100, PATIENCE).is_some());
    // One that can't start is said so and not kept.
    let (bad, _) = instance(&lab, "bad", "namespace = \"nowhere\"");
    std::fs::write(lab.path("bad.toml"), bad).unwrap();
    let refused = process.run(&["instances", "add", lab.path("bad.toml").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("nowhere"), "{said}");
    // The file anew: the host is gone, another is there, and what was added stays.
    let (next, next_address) = instance(&lab, "next", &inside(&lab, 0));
    std::fs::write(lab.path("instances.toml"), next).unwrap();
    process.node.signal("HUP");
    process.until_running("next");
    process.until_running("user");
    lab.echo(0, next_address);
    assert!(lab.reach(1, next_address, 100, PATIENCE).is_some());
    assert_ne!(host_address, next_address);
    assert_eq!(process.json(&["instances", "list", "--json"]).as_array().unwrap().len(), 2);
    assert!(process.node.stop());
}

#[test]
fn a_further_instance_takes_little_memory() {
    const COUNT: u64 = 10;
    let Some(lab) = Lab::new(1) else { return };
    let (host, _) = instance(&lab, "host", &inside(&lab, 0));
    let process = Process::start(&lab, &host);
    process.until_running("host");
    std::thread::sleep(Duration::from_secs(1));
    let before = process.node.private_kib();
    let more: String = (0..COUNT)
        .map(|number| {
            let place = format!("namespace = \"{}\"\ntun_name = \"t{number}\"", lab.name(0));
            instance(&lab, &format!("n{number}"), &place).0
        })
        .collect();
    std::fs::write(lab.path("more.toml"), more).unwrap();
    process.json(&["instances", "add", "--json", lab.path("more.toml").to_str().unwrap()]);
    process.until("n9", |instance| instance["joinedInstances"] == 1);
    std::thread::sleep(Duration::from_secs(2));
    let each = process.node.private_kib().saturating_sub(before) / COUNT;
    println!("{before} KiB with one instance, {each} KiB for each further one");
    // A process of its own takes about 15 MiB.
    assert!(each < 2048, "{each} KiB");
    assert!(process.node.stop());
}
