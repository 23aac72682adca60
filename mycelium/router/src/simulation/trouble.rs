//! Runs in which much goes wrong, and then nothing any more.

use std::time::Duration;

use super::chance::Chance;
use super::world::{Kind, Make, State, Weather, World};
use super::{named, seeds, some_network};

const STEP: Duration = Duration::from_millis(200);

/// What may go wrong in a run.
#[derive(Clone, Copy)]
struct Trouble {
    weather: Weather,
    /// Wires are cut and mended.
    cuts: bool,
    /// Nodes restart, sometimes with a clock that went back.
    restarts: bool,
    jumps: bool,
}

const CALM: Weather =
    Weather { loss_per_thousand: 0, duplicates_per_thousand: 0, reorders: false, is_stream: false };
const STORM: Weather =
    Weather { loss_per_thousand: 50, duplicates_per_thousand: 50, reorders: true, ..CALM };
const STREAMS: Weather = Weather { is_stream: true, ..CALM };

/// Troubles a network for some minutes under traffic.
fn trouble(world: &mut World, trouble: Trouble, steps: usize) {
    world.weather = trouble.weather;
    let mut chance = Chance::new(world.chance.next());
    let (nodes, wires) = (world.nodes.len(), world.wires.len());
    for step in 0..steps {
        world.run_for(STEP);
        for _ in 0..3 {
            let (from, to) = (chance.index(nodes), chance.index(nodes));
            world.ping(from, to);
        }
        if trouble.cuts && chance.happens(100) {
            let wire = chance.index(wires);
            let states = [State::Up, State::Up, State::Silent, State::Down];
            world.set_state(wire, states[chance.index(4)]);
        }
        if trouble.restarts && chance.happens(30) {
            let node = chance.index(nodes);
            if world.nodes[node].make != Make::Forger {
                world.stop(node, chance.happens(300));
                world.run_for(Duration::from_millis(chance.below(4000)));
                world.start(node, chance.happens(700));
            }
        }
        if trouble.jumps && chance.happens(40) {
            // A moment, or a night.
            let by = [chance.below(40), 2000 + chance.below(30_000)][chance.index(2)];
            world.jump(chance.index(nodes), Duration::from_secs(by));
        }
        if step % 50 == 0 {
            world.check_tables();
        }
    }
}

/// All is well again: everybody must reach everybody before long.
fn recover(world: &mut World, within: Duration) {
    world.weather = CALM;
    for wire in 0..world.wires.len() {
        world.set_state(wire, State::Up);
    }
    for node in 0..world.nodes.len() {
        if world.nodes[node].make == Make::Forger {
            world.stop(node, false);
        }
    }
    let nodes = (0..world.nodes.len()).filter(|node| !matches!(world.nodes[*node].kind, Kind::Off));
    let nodes: Vec<_> = nodes.collect();
    let mut missing: Vec<(usize, usize)> = Vec::new();
    for (place, from) in nodes.iter().enumerate() {
        missing.extend(nodes.iter().skip(place + 1).map(|to| (*from, *to)));
    }
    let begin = world.now;
    let end = begin + within;
    while !missing.is_empty() {
        if world.now >= end {
            let before = missing.len();
            missing.retain(|(a, b)| !world.is_trapped(*a, *b) && !world.is_trapped(*b, *a));
            println!("{} pairs are trapped among existing nodes", before - missing.len());
            if missing.is_empty() {
                break;
            }
            let (from, to) = missing[0];
            let why = world.explain(to) + "\n" + &world.explain(from);
            panic!("after {within:?} these don't reach each other: {missing:?}\n{why}");
        }
        world.run_for(Duration::from_millis(500));
        missing.retain(|(from, to)| !world.ping(*from, *to));
    }
    println!("{} nodes are well after {:?}", nodes.len(), world.now.since(begin));
    world.check_tables();
}

fn all(make: Make, count: usize) -> Vec<Make> {
    vec![make; count]
}

#[test]
fn networks_in_a_storm_have_no_loops_and_recover() {
    for seed in seeds(8) {
        named(seed, |seed| {
            let (count, edges) = some_network(&mut Chance::new(seed ^ 0x5707));
            let mut world = World::new(seed, &all(Make::Ours, count), &edges);
            let what = Trouble { weather: STORM, cuts: true, restarts: true, jumps: true };
            trouble(&mut world, what, 300);
            recover(&mut world, Duration::from_secs(40));
        });
    }
}

#[test]
fn networks_that_are_cut_and_restarted_recover() {
    for seed in seeds(8) {
        named(seed, |seed| {
            let (count, edges) = some_network(&mut Chance::new(seed ^ 0xc07));
            let mut world = World::new(seed, &all(Make::Ours, count), &edges);
            let what = Trouble { weather: CALM, cuts: true, restarts: true, jumps: false };
            trouble(&mut world, what, 400);
            recover(&mut world, Duration::from_secs(30));
        });
    }
}

#[test]
fn mixed_networks_converge() {
    for seed in seeds(8) {
        named(seed, |seed| {
            let mut chance = Chance::new(seed ^ 0x313);
            let (count, edges) = some_network(&mut chance);
            let kinds = [Make::Upstream, Make::Upstream, Make::Plain, Make::Ours, Make::Ours];
            let make = |_| kinds[chance.index(kinds.len())];
            let makes: Vec<_> = (0..count).map(make).collect();
            let mut world = World::new(seed, &makes, &edges);
            let what = Trouble { weather: STREAMS, cuts: true, restarts: true, jumps: false };
            trouble(&mut world, what, 200);
            // Existing nodes need 53 s to see that a link is dead.
            recover(&mut world, Duration::from_secs(180));
        });
    }
}

#[test]
fn forgers_make_no_loops_and_leave_no_trace() {
    for seed in seeds(8) {
        named(seed, |seed| {
            let mut chance = Chance::new(seed ^ 0xf06);
            let (count, mut edges) = some_network(&mut chance);
            let mut makes = all(Make::Ours, count);
            for forger in count..count + 1 + chance.index(2) {
                makes.push(Make::Forger);
                for _ in 0..3 {
                    let edge = (chance.index(count), forger);
                    if !edges.contains(&edge) {
                        edges.push(edge);
                    }
                }
            }
            let mut world = World::new(seed, &makes, &edges);
            let what = Trouble { weather: CALM, cuts: true, restarts: true, jumps: false };
            trouble(&mut world, what, 250);
            recover(&mut world, Duration::from_secs(90));
        });
    }
}
