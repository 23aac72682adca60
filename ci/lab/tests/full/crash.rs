//! A node that is killed at any moment, and one whose plug is pulled, in the middle of what somebody
//! deploys: in the end there is what was wanted, once, and the user is told so.

use std::time::Duration;

use serde_json::Value;

use crate::parts::Chance;
use crate::world::{Options, World};

/// Longest that the node's program lives before it is killed, while it has something to do.
const LIFE_MAX_MS: u64 = 3000;
/// How often it is killed while something is made, changed or taken down.
const KILL_COUNT: u32 = 3;

fn world(name: &'static str, loses_power: bool) -> World {
    World::new(Options { name, loses_power, ..Options::default() })
}

/// A network, a namespace, and a machine with a disk; and what is deployed beside it later.
fn plan(world: &World, more: &str) -> String {
    let plan = format!(
        "project: test\n\
         networks: [{{name: lan, nodes: [1], range: 10.7.0.0/16}}]\n\
         zdbs: [{{name: keys, node: 1, size: {}, password: secret}}]\n\
         vms:\n  - {}\n",
        if more.is_empty() { "1G" } else { "2G" },
        world.serving_vm(", disks: [{name: data, size: 1G, mount: /data}]"),
    );
    world.plan(&format!("{plan}{more}"))
}

/// Kills the node's program, again and again.
fn kill(world: &World, chance: &mut Chance) {
    for _ in 0..KILL_COUNT {
        std::thread::sleep(Duration::from_millis(chance.below(LIFE_MAX_MS)));
        world.hostd_dies();
        world.start_hostd();
    }
}

fn all_run(world: &World, count: usize) -> Vec<Value> {
    let workloads = world.workloads();
    let is_running = |workload: &&Value| workload["result"]["state"] == "ok";
    assert_eq!(workloads.iter().filter(is_running).count(), count, "{workloads:#?}");
    assert_eq!(workloads.len(), count, "{workloads:#?}");
    workloads
}

#[test]
fn a_node_that_is_killed_again_and_again_makes_each_thing_once() {
    let (world, mut chance) = (world("killed", false), Chance(0x5eed));
    let before = world.holdings();
    let deploying = world.grid_beside(&["deploy", "-f", &plan(&world, "")]);
    world.until("set -- /data/hostd/deployments/*/states.log; [ -e $1 ]");
    kill(&world, &mut chance);
    deploying.done();
    all_run(&world, 4);
    let said = world.answers(&world.ip_of("web"));
    let holdings = world.holdings();
    assert_eq!(holdings.count("process", "mycelium"), 1);
    assert_eq!(holdings.count("namespace", ""), 1);

    // The namespace grows, and a volume comes.
    let more = "volumes: [{name: spare, node: 1, size: 1G}]\n";
    let updating = world.grid_beside(&["deploy", "-f", &plan(&world, more)]);
    kill(&world, &mut chance);
    updating.done();
    all_run(&world, 5);
    assert_eq!(world.answers(&world.ip_of("web")), said);
    let difference = world.holdings().since(&holdings);
    let is_wanted = |line: &String| {
        let file = line.trim_start_matches(['+', '-']);
        file.starts_with(" file /data/hostd/deployments/")
            || line.starts_with("+ file /data/ssd/volumes/")
    };
    assert!(difference.iter().all(is_wanted), "{difference:#?}");

    world.cancel_all();
    kill(&world, &mut chance);
    world.holds_again(&before);
}

#[test]
fn a_node_whose_plug_is_pulled_finishes_what_it_had_taken() {
    let (world, mut chance) = (world("plug", true), Chance(0x5eed));
    let before = world.holdings();
    let deploying = world.grid_beside(&["deploy", "-f", &plan(&world, "")]);
    // When the first deployment was taken, when the second was, and when the machine has just begun.
    world.until("set -- /data/hostd/deployments/*/states.log; [ -e $1 ]");
    world.pull_plug(&mut chance);
    world.until("set -- /data/hostd/deployments/*/states.log; [ $# -ge 2 ]");
    world.pull_plug(&mut chance);
    world.until("set -- /data/machine/vms/*/log/console.log; [ -s $1 ]");
    world.pull_plug(&mut chance);
    deploying.done();
    let workloads = all_run(&world, 4);
    let ip = world.ip_of("web");
    let said = world.answers(&ip);
    let holdings = world.holdings();

    // Once more, when all is done: the same machines, disks, addresses and states.
    world.pull_plug(&mut chance);
    assert_eq!(world.answers(&ip), said, "it is another disk");
    assert_eq!(all_run(&world, 4), workloads);
    let difference = world.holdings().since(&holdings);
    assert!(difference.is_empty(), "{difference:#?}");
    world.cancel_all();
    world.holds_again(&before);
}
