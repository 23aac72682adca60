//! The main job: what somebody deploys on a grid runs on a node, and goes when it is cancelled.
//!
//! Nothing is pretended: `grid` deploys a network and a machine, the chain and the node do what they do,
//! and the guest says hello to whoever connects to it inside its network. Then `hostd` is killed, and
//! nothing is felt; and all is cancelled, and nothing is left. What can't be is said in words.

use std::fs;
use std::time::Instant;

use crate::world::{Options, World};

#[test]
fn what_is_deployed_runs_and_outlives_its_node_and_leaves_nothing() {
    let world = World::new(Options::default());
    let before = world.holdings();
    let plan = format!(
        "project: test\n\
         networks: [{{name: lan, nodes: [1], range: 10.7.0.0/16}}]\n\
         vms:\n  - {}\n",
        world.serving_vm(""),
    );
    let start = Instant::now();
    world.grid(&["deploy", "-f", &world.plan(&plan)]);
    eprintln!("deployed after {:?}", start.elapsed());
    let ip = world.ip_of("web");
    world.answers(&ip);
    eprintln!("answered after {:?}", start.elapsed());

    // What plans a node may die: what runs on it goes on.
    let vmms =
        || world.shell("for p in /proc/[0-9]*; do read n < $p/comm; [ $n = vmm ] && echo $p; done");
    let running = vmms();
    world.hostd_dies();
    world.answers(&ip);
    world.start_hostd();
    world.answers(&ip);
    assert_eq!(running, vmms(), "machines were started again");

    world.until_reachable();
    what_cannot_be_is_said_in_words(&world);
    world.cancel_all();
    world.holds_again(&before);
}

/// The user's command says what the node said, and nothing is left of it.
fn what_cannot_be_is_said_in_words(world: &World) {
    let before = world.holdings();
    let hub = world.path("grid/hub/lab");
    let image = fs::read(format!("{hub}/guest.fl")).unwrap();
    fs::write(format!("{hub}/cut.fl"), &image[..image.len() / 2]).unwrap();
    let mut lie = image;
    let middle = lie.len() / 2;
    lie[middle..middle + 64].fill(0xff);
    fs::write(format!("{hub}/lie.fl"), lie).unwrap();
    for (name, image) in [("none", "absent.fl"), ("cut", "cut.fl"), ("lie", "lie.fl")] {
        let flist = format!("{}/hub/lab/{image}", world.services());
        let vm = ["deploy", "vm", name, "--node", "1", "--network", "lan", "--flist", &flist];
        let said = world.grid_fails(&[&vm[..], &["--memory", "512M"]].concat());
        eprintln!("{name}: {said}");
        assert!(said.contains(&format!("{name} failed: ")) && said.contains(image), "{said}");
    }
    // More than there is, on each kind of disk.
    let zdb = ["deploy", "zdb", "vast", "--node", "1", "--size", "900G"];
    let volume = ["deploy", "volume", "vast", "--node", "1", "--size", "900G"];
    for deploy in [zdb, volume] {
        let said = world.grid_fails(&deploy);
        eprintln!("{}: {said}", deploy[1]);
        assert!(said.contains("space"), "{said}");
    }
    world.holds_again(&before);
}
