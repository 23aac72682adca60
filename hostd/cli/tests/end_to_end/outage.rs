//! Chain and relay go away and come back. Meanwhile nothing changes; afterwards, everything that should
//! have.

use crate::world::{QUIET_TIME, World, until};

#[test]
fn without_the_chain_nothing_changes_and_later_everything_is_caught_up_with() {
    let world = World::new(&[]);
    let (kept, over) = (world.zdb("kept"), world.zdb("over"));
    let before = world.machine.names();
    world.machine.take_done();

    world.cut_chain();
    world.grid(&["cancel", &over.to_string()]).done();
    // Who may ask is known already, so questions are answered.
    let shown = world.grid(&["show", &kept.to_string()]).done();
    assert!(shown.out.contains("kept runs\n"), "{}", shown.out);
    // What is new is taken, since its sender is known; whether it is paid for, only the chain can say.
    let zdb = ["deploy", "zdb", "new", "--node", "1", "--size", "1G"];
    let deploying = world.grid_beside(&zdb);
    std::thread::sleep(QUIET_TIME);
    assert_eq!(world.machine.names(), before);
    assert_eq!(world.machine.take_done(), [""; 0]);

    world.mend();
    until("what ended meanwhile is taken down", || !world.machine.names().contains("over"));
    deploying.wait().done();
    let mut done = world.machine.take_done();
    done.sort();
    assert_eq!(done, ["make new", "remove over"]);
}

#[test]
fn without_a_relay_the_chain_is_obeyed_and_nobody_is_answered() {
    let world = World::new(&[]);
    let (kept, over) = (world.zdb("kept"), world.zdb("over"));
    world.machine.take_done();

    // The node's, and that of the grid's proxy, which asks nodes what they can do.
    until("both are there", || world.devgrid(&["status"])["relay_sessions"] == 2);
    world.cut_relay();
    until("the relay knows", || world.devgrid(&["status"])["relay_sessions"] == 1);
    let zdb = ["deploy", "zdb", "new", "--node", "1", "--size", "1G"];
    let refused = world.grid(&zdb).failed(&["node 1", "offline"]).with(75);
    assert!(!refused.err.contains("contract"), "none was made: {}", refused.err);
    world.grid(&["cancel", &over.to_string()]).done();
    until("the chain is obeyed", || world.machine.take_done() == ["remove over"]);

    world.mend();
    until("it answers again", || world.grid(&["show", &kept.to_string()]).is_done);
    world.zdb("new");
    assert_eq!(world.machine.take_done(), ["make new"]);
}

#[test]
fn when_the_whole_grid_fails_the_node_goes_on() {
    let mut world = World::new(&[]);
    let (kept, over) = (world.zdb("kept"), world.zdb("over"));
    world.machine.take_done();

    world.kill_grid();
    world.grid(&["show", &kept.to_string()]).failed(&["the chain can't be reached"]).with(75);
    std::thread::sleep(QUIET_TIME);
    assert_eq!(world.machine.take_done(), [""; 0]);

    // What was in a block is there again.
    world.restart_grid();
    until("it answers again", || world.grid(&["show", &kept.to_string()]).is_done);
    world.grid(&["cancel", &over.to_string()]).done();
    until("the chain is obeyed", || world.machine.take_done() == ["remove over"]);
    world.zdb("new");
}
