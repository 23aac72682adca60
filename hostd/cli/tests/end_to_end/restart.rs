//! The node's program ends at any time and begins again; what runs on its machine is none the wiser.

use crate::world::{World, until};

#[test]
fn a_restart_finds_everything_and_makes_nothing_twice() {
    let mut world = World::new(&[]);
    let (node, twin) = (world.node_id, world.node_twin());
    let first = world.zdb("first");
    world.zdb("lost");
    let over = world.zdb("over");

    // It ends in the middle of a step, and its user waits.
    let slow = ["deploy", "zdb", "slow_second", "--node", "1", "--size", "1G"];
    let deploying = world.grid_beside(&slow);
    until("it is being made", || world.machine.has_begun("slow_second"));
    world.stop_node();
    // While nobody looks, a disk is lost, and a contract ends.
    world.machine.lose("lost");
    world.grid(&["cancel", &over.to_string()]).done();
    assert!(world.machine.names().contains("over"), "nobody was there to take it down");
    world.machine.hurry();
    world.start_node();
    deploying.wait().done();

    assert_eq!((world.node_id, world.node_twin()), (node, twin), "it is the same node");
    until("what is over is gone", || !world.machine.names().contains("over"));
    let mut done = world.machine.take_done();
    done[3..].sort();
    let expected =
        ["make first", "make lost", "make over", "make lost", "make slow_second", "remove over"];
    assert_eq!(done, expected);
    let shown = world.grid(&["show", &first.to_string()]).done();
    assert!(shown.out.contains("first runs\n"), "{}", shown.out);
    assert_eq!(world.contracts().len(), 3);

    // Again, and there is nothing to do.
    world.stop_node();
    world.start_node();
    world.grid(&["wait", &first.to_string()]).done();
    assert_eq!(world.machine.take_done(), [""; 0]);
}
