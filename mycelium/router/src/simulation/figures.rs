//! What the router promises in figures: recovery, quiet, size.

use std::time::{Duration, Instant};

use super::chance::Chance;
use super::world::{Make, State, World};
use super::{grid, line, named, random, ring, seeds};

const PING: Duration = Duration::from_millis(100);

/// Pings ten times a second; gives the longest time without an answer.
fn longest_silence(world: &mut World, from: usize, to: usize, duration: Duration) -> Duration {
    longest_silence_among(world, &[], from, to, duration)
}

/// The same, while these pairs talk too.
fn longest_silence_among(
    world: &mut World,
    pairs: &[(usize, usize)],
    from: usize,
    to: usize,
    duration: Duration,
) -> Duration {
    let end = world.now + duration;
    let (mut answered, mut longest) = (world.now, Duration::ZERO);
    while world.now < end {
        world.run_for(PING);
        for (from, to) in pairs {
            world.ping(*from, *to);
        }
        if world.ping(from, to) {
            answered = world.now;
        }
        longest = longest.max(world.now.since(answered));
    }
    longest
}

fn wire_of(world: &World, a: usize, b: usize) -> usize {
    let ends = |wire: &super::world::Wire| wire.ends == [a, b] || wire.ends == [b, a];
    world.wires.iter().position(ends).expect("a wire between them")
}

/// Cuts the first or last hop of the route in use.
fn cut(world: &mut World, state: State, is_first: bool) {
    let (start, end) = if is_first { (0, 2) } else { (2, 0) };
    let link = world.router(start).route(world.nodes[end].subnet).expect("a route").link;
    let middle = [1, 3].into_iter().find(|middle| {
        let wire = wire_of(world, start, *middle);
        world.wires[wire].link == Some(link)
    });
    let wire = wire_of(world, start, middle.expect("one of two ways"));
    world.set_state(wire, state);
}

#[test]
fn a_silent_cut_in_a_ring_of_four_is_healed_within_three_seconds() {
    for seed in seeds(6) {
        for is_first in [true, false] {
            named(seed, |seed| {
                let mut world = World::new(seed, &[Make::Ours; 4], &ring(4));
                world.run_for(Duration::from_secs(2));
                let start = longest_silence(&mut world, 0, 2, Duration::from_secs(40));
                assert!(start <= Duration::from_millis(300), "first ping after {start:?}");
                cut(&mut world, State::Silent, is_first);
                let silence = longest_silence(&mut world, 0, 2, Duration::from_secs(30));
                println!("{silence:?}");
                assert!(silence <= Duration::from_secs(3), "{silence:?}");
            });
        }
    }
}

/// Where all talk to all, each has announced its way to the others, and another way must be newer
/// before it is feasible.
#[test]
fn a_busy_ring_is_healed_within_three_seconds() {
    let pairs: Vec<_> = (0..4).flat_map(|a| (a + 1..4).map(move |b| (a, b))).collect();
    let mut all = Vec::new();
    for seed in seeds(8) {
        named(seed, |seed| {
            let mut world = World::new(seed, &[Make::Ours; 4], &ring(4));
            world.run_for(Duration::from_secs(2));
            longest_silence_among(&mut world, &pairs, 0, 2, Duration::from_secs(30));
            cut(&mut world, State::Silent, seed % 2 == 0);
            let time = Duration::from_secs(20);
            let silence = longest_silence_among(&mut world, &pairs, 0, 2, time);
            assert!(silence <= Duration::from_secs(3), "{silence:?}");
            all.push(silence);
        });
    }
    println!("{all:?}");
}

#[test]
fn a_broken_connection_is_healed_at_once() {
    for seed in seeds(6) {
        named(seed, |seed| {
            let mut world = World::new(seed, &[Make::Ours; 4], &ring(4));
            world.run_for(Duration::from_secs(2));
            longest_silence(&mut world, 0, 2, Duration::from_secs(20));
            cut(&mut world, State::Down, true);
            let silence = longest_silence(&mut world, 0, 2, Duration::from_secs(10));
            assert!(silence <= Duration::from_millis(500), "{silence:?}");
        });
    }
}

#[test]
fn a_ring_with_existing_nodes_heals_where_ours_see_the_cut() {
    for seed in seeds(5) {
        named(seed, |seed| {
            let makes = [Make::Ours, Make::Upstream, Make::Ours, Make::Upstream];
            let mut world = World::new(seed, &makes, &ring(4));
            world.run_for(Duration::from_secs(2));
            longest_silence(&mut world, 0, 2, Duration::from_secs(40));
            cut(&mut world, State::Silent, true);
            let silence = longest_silence(&mut world, 0, 2, Duration::from_secs(100));
            // The way back leads over the cut until the node there notices: 43 to 53 s.
            assert!(silence <= Duration::from_secs(55), "{silence:?}");
        });
    }
}

#[test]
fn an_idle_node_with_three_links_sends_at_most_83_bytes_a_second() {
    let count = 20;
    let edges: Vec<_> = (0..count)
        .flat_map(|node| [(node, (node + 1) % count), (node, (node + count / 2) % count)])
        .filter(|(a, b)| b != &((a + count / 2) % count) || a < b)
        .collect();
    let mut world = World::new(7, &vec![Make::Ours; count], &edges);
    world.run_for(Duration::from_secs(60));
    let before: Vec<u64> = world.nodes.iter().map(|node| node.bytes_sent).collect();
    world.run_for(Duration::from_secs(1200));
    for (node, before) in world.nodes.iter().zip(before) {
        let rate = (node.bytes_sent - before) / 1200;
        println!("{rate} B/s");
        assert!((10..=83).contains(&rate), "{rate} B/s");
    }
}

/// Builds a network, lets random pairs talk, and checks that all of them get through; says what it took.
fn converges(seed: u64, count: usize, edges: &[(usize, usize)], pairs: usize) -> World {
    let real = Instant::now();
    let mut world = World::new(seed, &vec![Make::Ours; count], edges);
    world.run_for(Duration::from_secs(5));
    let mut chance = Chance::new(seed);
    let mut missing: Vec<_> =
        (0..pairs).map(|_| (chance.index(count), chance.index(count))).collect();
    let (begin, before) = (world.now, world.delivered_count);
    let end = begin + Duration::from_secs(30);
    while !missing.is_empty() {
        assert!(world.now < end, "{count} nodes: {missing:?}");
        world.run_for(Duration::from_millis(500));
        missing.retain(|(from, to)| !world.ping(*from, *to));
    }
    let (found, real) = (world.now.since(begin), real.elapsed());
    world.check_tables();
    let messages = (world.delivered_count - before) / count as u64;
    let routes: Vec<usize> = (0..count).map(|node| world.router(node).routes().count()).collect();
    let (largest, all) = (routes.iter().max(), routes.iter().sum::<usize>());
    println!(
        "{count} nodes, {} links: {pairs} pairs found after {found:?} with {messages} messages a node; \
         {} routes a node, at most {largest:?}; {} changes of a next hop, ways of {} hops at most; \
         {real:?} of real time, {} MiB so far",
        edges.len(),
        all / count,
        world.turn_count,
        world.hops_max,
        peak_mib(),
    );
    world
}

/// The most memory that this process has had.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn networks(count: usize, seed: u64) -> [Vec<(usize, usize)>; 3] {
    let width = count.isqrt();
    let more = if count > 1000 { count / 2 } else { count };
    [grid(width, count / width), random(count, more, &mut Chance::new(seed)), ring(count)]
}

/// `MYCELIUM_NODES=n` takes networks of n nodes; ten thousand are for release builds.
#[test]
fn all_nodes_of_a_large_network_reach_each_other() {
    let count = std::env::var("MYCELIUM_NODES").ok().and_then(|text| text.parse().ok());
    let count = count.unwrap_or(196);
    // Questions go 248 hops: the far side of a larger ring is out of reach.
    let reachable = if count > 2 * 248 { 2 } else { 3 };
    for edges in networks(count, 1).iter().take(reachable) {
        let world = converges(1, count, edges, 12);
        let largest = (0..count).map(|n| world.router(n).routes().count()).max();
        // What a hub hears as its links come up grows with the logarithm of the network.
        let bound = 100 * usize::try_from(count.ilog10().max(2)).unwrap();
        assert!(largest <= Some(bound), "{largest:?}: routes that nobody asked for");
    }
    converges(1, 200, &line(200), 3);
}
