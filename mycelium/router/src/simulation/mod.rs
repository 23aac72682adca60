//! Networks of routers on a simulated clock: seeded runs, with invariants checked at every step.
//!
//! Whatever wires and neighbours do, at every instant and for every destination the next hops of our
//! nodes must not form a loop, no node may follow an announcement that is not better than all it
//! announced itself, and no table may outgrow its bounds. When the trouble is over, all that can be
//! reached must be. A failure says how to repeat it; `MYCELIUM_SEEDS=n` runs n seeds instead of a few.
//!
//! | file | what |
//! |---|---|
//! | `world` | nodes, wires, the queue of what happens |
//! | `oracle` | what must hold |
//! | `upstream` | a model of the nodes that exist |
//! | `forger` | a neighbour that lies |
//! | `notary` | owners' proofs, without the work |
//! | `trouble` | runs with loss, cuts, restarts, jumps, forgers, mixed networks |
//! | `claims` | who makes up what owners never said |
//! | `figures` | recovery after a cut, idle traffic, size |

mod chance;
mod claims;
mod figures;
mod forger;
mod notary;
mod oracle;
mod trouble;
mod upstream;
mod world;

use chance::Chance;

/// Which seeds to run: a few, as many as `MYCELIUM_SEEDS` says, or the one that `MYCELIUM_SEED` names.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("MYCELIUM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MYCELIUM_SEEDS").unwrap_or(usual),
    }
}

/// Runs a seed, and names it if it fails.
fn named(seed: u64, run: impl FnOnce(u64)) {
    struct Name(u64);
    impl Drop for Name {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("to repeat it: MYCELIUM_SEED={} cargo test -p mycelium-router", self.0);
            }
        }
    }
    let name = Name(seed);
    run(seed);
    drop(name);
}

fn line(count: usize) -> Vec<(usize, usize)> {
    (1..count).map(|node| (node - 1, node)).collect()
}

fn ring(count: usize) -> Vec<(usize, usize)> {
    (0..count).map(|node| (node, (node + 1) % count)).collect()
}

fn grid(width: usize, height: usize) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    for node in 0..width * height {
        if node % width + 1 < width {
            edges.push((node, node + 1));
        }
        if node + width < width * height {
            edges.push((node, node + width));
        }
    }
    edges
}

/// A tree, so that all are connected, and some more edges.
fn random(count: usize, more: usize, chance: &mut Chance) -> Vec<(usize, usize)> {
    let mut edges: Vec<_> = (1..count).map(|node| (chance.index(node), node)).collect();
    for _ in 0..more {
        let (a, b) = (chance.index(count), chance.index(count));
        let edge = (a.min(b), a.max(b));
        if a != b && !edges.contains(&edge) {
            edges.push(edge);
        }
    }
    edges
}

/// One of them, of a moderate size.
fn some_network(chance: &mut Chance) -> (usize, Vec<(usize, usize)>) {
    let count = 4 + chance.index(16);
    match chance.index(4) {
        0 => (count, line(count)),
        1 => (count, ring(count)),
        2 => {
            let (width, height) = (2 + chance.index(3), 2 + chance.index(3));
            (width * height, grid(width, height))
        }
        _ => (count, random(count, 1 + count / 2, chance)),
    }
}
