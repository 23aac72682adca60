//! A user finds a node, makes things on it, changes them, and is done with them.

use std::collections::BTreeSet;

use serde_json::json;

use crate::machine::BROKEN;
use crate::world::{World, text, until};

const PLAN: &str = "
project: shop
networks: [{name: lan, nodes: [1], range: 10.7.0.0/16}]
vms:
  - {name: web, node: 1, network: lan, flist: 'https://hub/nginx.flist', memory: 512M,
     disks: [{name: data, size: 2G, mount: /data}], env: {GREETING: hello}}
zdbs: [{name: db, node: 1, size: 1G}]
volumes: [{name: spare, node: 1, size: 1G}]
";

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_file_is_deployed_changed_and_cancelled() {
    let world = World::new(&[]);
    let shop = world.file("shop.yaml", PLAN);
    let deploy = ["deploy", "-f", text(&shop)];

    let planned = world.grid(&["deploy", "-f", text(&shop), "--dry-run"]).done();
    let expected = ["network lan", "vm web", "zdb db", "volume spare"]
        .map(|what| format!("would create: {what} on node 1\n"));
    assert_eq!(planned.out, expected.concat());
    assert!(world.contracts().is_empty(), "nothing was made");

    world.grid(&deploy).done();
    assert_eq!(world.machine.names(), names(&["lan", "web", "data", "db", "spare"]));
    let done = world.machine.take_done();
    let place = |what: &str| done.iter().position(|done| done == what).unwrap();
    assert!(place("make lan") < place("make web") && place("make data") < place("make web"));
    let contracts = world.contracts();
    assert!(contracts.values().all(|(_, state)| state == "paid"), "{contracts:?}");
    // What nobody wrote down was taken over: the same file again changes nothing.
    let again = world.grid(&["deploy", "-f", text(&shop), "--json"]).json();
    let again = again.as_array().unwrap();
    assert!(again.len() == 4 && again.iter().all(|done| done["action"] == "nothing"), "{again:?}");
    assert_eq!(world.machine.take_done(), [""; 0]);

    look(&world, contracts["web"].0);

    // The node's user changes one thing.
    world.file("shop.yaml", &PLAN.replace("db, node: 1, size: 1G", "db, node: 1, size: 2G"));
    let changed = world.grid(&deploy).done();
    let line = format!("updated: zdb db on node 1, contract {} (db)\n", contracts["db"].0);
    assert!(changed.out.contains(&line), "{}", changed.out);
    assert_eq!(world.machine.take_done(), ["change db"]);
    let shown = world.grid(&["show", &contracts["db"].0.to_string(), "--json"]).json();
    assert_eq!(
        (&shown["version"], &shown["workloads"][0]["data"]["size"]),
        (&json!(1), &json!(2_u64 << 30))
    );
    // What can't be changed is refused before anything is done.
    world.file("shop.yaml", &PLAN.replace("memory: 512M", "memory: 1G"));
    world.grid(&deploy).failed(&["can't be changed while it exists"]);
    assert_eq!(world.machine.take_done(), [""; 0]);

    let numbers: Vec<_> = contracts.values().map(|(number, _)| number.to_string()).collect();
    let mut cancel = vec!["cancel"];
    cancel.extend(numbers.iter().map(String::as_str));
    world.grid(&cancel).done();
    until("everything is taken down", || world.machine.names().is_empty());
    assert!(world.contracts().is_empty());
}

/// What `grid` says of a node and of a machine on it.
fn look(world: &World, contract: u64) {
    let nodes = world.grid(&["node", "ls", "--farm", "testers"]).done();
    assert!(nodes.out.contains("Belgium") && nodes.out.contains("256G"), "{}", nodes.out);
    let node = world.grid(&["node", "show", "1"]).json();
    assert_eq!(node["version"], json!({"zos": "1.2.3", "zinit": "pretended"}));
    assert_eq!(node["statistics"]["users"]["deployments"], 4, "{node}");
    assert_eq!(node["is_up"], true);

    let contract = contract.to_string();
    let shown = world.grid(&["show", &contract]).done();
    assert!(shown.out.contains("zmachine-light web runs\n"), "{}", shown.out);
    assert!(shown.out.contains("10.7.1.2"), "{}", shown.out);
    let logs = world.grid(&["logs", &contract]).done();
    assert!(logs.out.contains("web version 0 was taken in and waits"), "{}", logs.out);
    assert!(logs.out.contains("web version 0 runs"), "{}", logs.out);
    world.grid(&["wait", &contract]).done();
    world.grid(&["show", "4711"]).failed(&["there is no contract 4711"]).with(3);
}

#[test]
fn what_fails_costs_nothing() {
    let world = World::new(&[]);
    let zdb = |name, node| world.grid(&["deploy", "zdb", name, "--node", node, "--size", "1G"]);
    zdb("db", "99").failed(&["there is no node 99"]).with(3);
    world.grid(&["deploy"]).failed(&["grid deploy --help"]).with(2);
    world.machine.forget_volumes();
    let volume = world.grid(&["deploy", "volume", "spare", "--node", "1", "--size", "1G"]);
    let volume = volume.failed(&["node 1 does not support volume yet"]);
    assert!(!volume.err.contains("contract"), "{}", volume.err);

    // The node finds out when there is a contract already.
    zdb("broken_db", "1").failed(&[BROKEN, "contract 1 was cancelled"]);
    assert!(world.contracts().is_empty());

    // The user changes his mind.
    let deploying = world.grid_beside(&["deploy", "zdb", "slow_db", "--node", "1", "--size", "1G"]);
    until("it is being made", || world.machine.has_begun("slow_db"));
    deploying.interrupt();
    deploying.wait().failed(&["interrupted", "contract 2 was cancelled"]);
    assert!(world.contracts().is_empty());
    world.machine.hurry();
    until("what was half made is gone", || {
        world.machine.take_done().contains(&"remove slow_db".to_owned())
            || world.grid(&["node", "show", "1"]).json()["statistics"]["users"]["workloads"] == 0
    });
    assert_eq!(world.machine.names(), names(&[]));
    world.zdb("db");
}

#[test]
fn a_node_is_chosen_and_one_thing_is_changed() {
    let world = World::new(&[]);
    until("the proxy knows that the node is up", || {
        world.grid(&["node", "ls"]).done().out.contains(" up ")
    });
    let made = world.grid(&["deploy", "zdb", "db", "--size", "1G", "--json"]).json();
    let contract = made[0]["contract_id"].as_u64().unwrap().to_string();
    assert_eq!((&made[0]["node"], &made[0]["action"]), (&json!(1), &json!("create")), "{made}");
    // The same again stays where it is.
    let again = world.grid(&["deploy", "zdb", "db", "--size", "1G", "--json"]).json();
    assert_eq!(again[0]["action"], "nothing", "{again}");
    until("the proxy knows the contract", || {
        let known = world.grid(&["ls", "--json"]).json()[0]["contract_id"].to_string();
        known == contract
    });

    let grown = world.grid(&["update", &contract, "--size", "3G"]).done();
    assert_eq!(grown.out, "updated: zdb db on node 1, db, version 1\n");
    world.grid(&["update", &contract]).failed(&["say what is to be different"]).with(2);
    assert_eq!(world.machine.take_done(), ["make db", "change db"]);
    let shown = world.grid(&["show", &contract, "--json"]).json();
    assert_eq!(shown["workloads"][0]["data"]["size"], json!(3_u64 << 30));
    world.grid(&["deploy", "zdb", "huge", "--size", "100T"]).failed(&["no node"]);
}
