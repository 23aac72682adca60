//! Neighbours that outdo an owner's own announcements, with and without proofs.

use std::time::Duration;

use super::chance::Chance;
use super::world::{Kind, Make, World};
use super::{grid, named, random, seeds};

const STEP: Duration = Duration::from_millis(200);
/// Whom the forger is after.
const VICTIM: usize = 0;

/// A network in which one node, the last, announces newer numbers of another than that ever gave.
fn besieged(seed: u64, make: Make) -> World {
    let (count, mut edges) = (16, grid(4, 4));
    edges.extend(random(count, 4, &mut Chance::new(seed)));
    edges.sort_unstable();
    edges.dedup();
    let mut makes = vec![make; count];
    makes.push(Make::Forger);
    edges.extend([5, 10, 15].map(|neighbour| (neighbour, count)));
    let mut world = World::new(seed, &makes, &edges);
    aim(&mut world);
    world.run_for(Duration::from_secs(3));
    world
}

/// Tells the forger under which router id its victim is known now. It makes up numbers, and no more: who says
/// again what the owner signed, with a metric of its own, is not found out by proofs.
fn aim(world: &mut World) {
    let (victim, forger) = (world.router(VICTIM).router_id(), world.nodes.len() - 1);
    if let Kind::Forger(forger) = &mut world.nodes[forger].kind {
        forger.victim = Some(victim);
    }
}

/// Pings from everybody to the victim that were lost, of how many, after a time to settle.
fn lost(world: &mut World, duration: Duration) -> (usize, usize) {
    let begin = world.now;
    let forger = world.nodes.len() - 1;
    let (mut lost, mut sent) = (0, 0);
    while world.now.since(begin) < duration {
        world.run_for(STEP);
        aim(world);
        for from in (0..forger).filter(|from| *from != VICTIM) {
            let arrived = world.packet(from, VICTIM);
            if world.now.since(begin) > Duration::from_secs(8) {
                (lost, sent) = (lost + usize::from(!arrived), sent + 1);
            }
        }
    }
    (lost, sent)
}

#[test]
fn who_makes_up_numbers_attracts_nothing_where_proofs_arrive() {
    let (mut proved, mut plain) = (0, 0);
    for seed in seeds(4) {
        named(seed, |seed| {
            let duration = Duration::from_secs(60);
            let mut world = besieged(seed, Make::Ours);
            let (of_proved, sent) = lost(&mut world, duration);
            let (of_plain, _) = lost(&mut besieged(seed, Make::Plain), duration);
            println!("of {sent} packets {of_proved} are lost with proofs, {of_plain} without");
            (proved, plain) = (proved + of_proved, plain + of_plain);
            for node in 1..16 {
                let route = world.router(node).route(world.nodes[VICTIM].subnet).expect("a route");
                assert!(route.is_proved, "node {node} follows {route:?}");
            }
            world.check_tables();
        });
    }
    assert_eq!(proved, 0);
    assert!(plain > 0, "nothing that proofs are needed for");
}

#[test]
fn an_owner_that_starts_anew_is_believed_whatever_its_clock_says() {
    for seed in seeds(6) {
        named(seed, |seed| {
            let mut world = besieged(seed, Make::Ours);
            lost(&mut world, Duration::from_secs(12));
            world.stop(VICTIM, seed.is_multiple_of(3));
            world.run_for(Duration::from_secs(2));
            world.start(VICTIM, seed.is_multiple_of(2));
            let id = world.router(VICTIM).router_id();
            // Some have learned by then that it is gone, and wait until others have.
            let (lost, _) = lost(&mut world, Duration::from_secs(40));
            println!("{lost} packets are lost after 8 s");
            let end = world.now + Duration::from_secs(20);
            let reaches = |world: &mut World| (1..16).all(|from| world.packet(from, VICTIM));
            while !reaches(&mut world) {
                assert!(world.now < end, "{}", world.explain(VICTIM));
                world.run_for(STEP);
            }
            for node in 1..16 {
                let route = world.router(node).route(world.nodes[VICTIM].subnet).expect("a route");
                assert!(route.is_proved && route.router_id >= id, "node {node}: {route:?}");
            }
        });
    }
}
