//! Mycelium's node beside userspace WireGuard, in network namespaces of this machine, under iperf3.
//!
//! Gbit/s depend on what else the machine does; processor seconds of a node for each Gbit hold, so they
//! are what goals are about. Runs alternate between the programs, and a figure is the best of its rounds,
//! because what a shared machine adds is never negative. Without `boringtun-cli` on the path (`ci/setup`
//! installs it) its column is empty, and the table says why.
//!
//! | room | rows |
//! |---|---|
//! | `overlay` | the programs, and lines of them |
//! | `traffic` | what they carry |
//! | `recovery` | cuts and failed dials |
//! | `swarm` | many idle nodes |
//! | `counted` | what has hard limits |
//! | `lab` | the namespaces that all of it runs in |

mod counted;
mod lab;
mod overlay;
mod recovery;
mod swarm;
mod traffic;

use std::time::Duration;

use crate::table::{Goal, Row, Table};

pub(crate) use counted::counted;

use lab::{is_installed, joined};
use overlay::{BORINGTUN, Line, Make, understands};
use swarm::Swarm;
use traffic::{Amount, Bulk, Echo, Pace, Way, bulk, ping, under_load};

/// Seconds of one round of bulk traffic.
const BULK_SECONDS: u32 = 3;
/// Idle nodes.
const SWARM_COUNT: usize = 50;
/// Rate of the link on which latency under load is measured.
const SHAPED_MEGABITS: u32 = 100;

/// All timed rows, and the counted ones that the issue names beside them.
pub(crate) fn timed(rounds: u32) -> anyhow::Result<Table> {
    let mut table = Table::default();
    let has_peer = is_installed(BORINGTUN);
    if !has_peer {
        table.note(format!("{BORINGTUN}: not measured, since it is not on the path (ci/setup)"));
    }
    speed(&mut table, rounds, has_peer)?;
    hops(&mut table, rounds)?;
    latency(&mut table, rounds, has_peer)?;
    recoveries(&mut table)?;
    idle(&mut table)?;
    Ok(table)
}

/// Bulk traffic over one kind of link, in one direction.
struct Speed {
    what: &'static str,
    line: usize,
    way: Way,
    /// Processor seconds for a Gbit, of either side.
    goal: Goal,
}

/// One TCP stream over each kind of link.
fn speed(table: &mut Table, rounds: u32, has_peer: bool) -> anyhow::Result<()> {
    let mut makes = vec![Make::Mycelium("tcp"), Make::Mycelium("quic")];
    let mut speeds = vec![
        Speed { what: "tcp://", line: 0, way: Way::There, goal: Goal::AtMost(0.22) },
        Speed { what: "quic://", line: 1, way: Way::There, goal: Goal::None },
        Speed { what: "quic://, back", line: 1, way: Way::Back, goal: Goal::None },
    ];
    if understands("udp") {
        let line = makes.len();
        makes.push(Make::Mycelium("udp"));
        speeds.push(Speed { what: "udp://", line, way: Way::There, goal: Goal::AtMost(0.15) });
    }
    let peer_line = has_peer.then_some(makes.len());
    if let Some(line) = peer_line {
        makes.push(Make::BoringTun);
        speeds.push(Speed { what: "peer", line, way: Way::There, goal: Goal::None });
    }
    let lines: Vec<Line> =
        makes.iter().map(|make| Line::new(*make, 2)).collect::<anyhow::Result<_>>()?;
    let mut best: Vec<Option<Bulk>> = speeds.iter().map(|_| None).collect();
    for _ in 0..rounds {
        for (speed, best) in speeds.iter().zip(&mut best) {
            let run = bulk(&lines[speed.line], Amount::Seconds(BULK_SECONDS), speed.way)?;
            *best = Some(better(best.take(), run));
        }
    }
    let peer = peer_line.and_then(|_| best.pop().flatten());
    for (speed, best) in speeds.iter().zip(best) {
        let Some(best) = best else { continue };
        speed.rows(table, &best, peer.as_ref());
    }
    Ok(())
}

impl Speed {
    fn rows(&self, table: &mut Table, bulk: &Bulk, peer: Option<&Bulk>) {
        let beside = |of: fn(&Bulk) -> f64| peer.map(|peer| (BORINGTUN, of(peer)));
        let row = |what: &str, of: fn(&Bulk) -> f64, goal| Row {
            what: format!("TCP bulk over {}: {what}", self.what),
            ours: of(bulk),
            peer: beside(of),
            goal,
        };
        table.push(row("s of processor per Gbit, sender", |bulk| bulk.costs[0], self.goal));
        table.push(row("s of processor per Gbit, receiver", |bulk| bulk.costs[1], self.goal));
        table.push(row("Gbit/s", |bulk| bulk.gigabits_per_second, Goal::None));
    }
}

/// The best of two runs, by each figure.
fn better(before: Option<Bulk>, run: Bulk) -> Bulk {
    let Some(before) = before else { return run };
    let costs = before.costs.iter().zip(&run.costs);
    Bulk {
        gigabits: before.gigabits.max(run.gigabits),
        gigabits_per_second: before.gigabits_per_second.max(run.gigabits_per_second),
        costs: costs.map(|(before, cost)| before.min(*cost)).collect(),
    }
}

/// A node between two others: what it spends, and what it adds to a round trip.
fn hops(table: &mut Table, rounds: u32) -> anyhow::Result<()> {
    let (one, two) = (Line::new(Make::Mycelium("tcp"), 2)?, Line::new(Make::Mycelium("tcp"), 3)?);
    let mut best = None;
    let (mut near, mut far) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        best = Some(better(best, bulk(&two, Amount::Seconds(BULK_SECONDS), Way::There)?));
        near = near.min(round_trip(&one)?);
        far = far.min(round_trip(&two)?);
    }
    let transit = best.map_or(f64::INFINITY, |best| best.costs[1]);
    push(table, "transit hop: s of processor per Gbit", transit, Goal::AtMost(0.10));
    push(table, "round trip to a neighbour, ms", near, Goal::None);
    // The existing daemon adds 0.25 ms; at most 0.6 of that.
    push(table, "round trip, what a hop adds, ms", far - near, Goal::AtMost(0.15));
    Ok(())
}

/// The usual round trip from end to end of an idle line, in milliseconds.
fn round_trip(line: &Line) -> anyhow::Result<f64> {
    let address = line.nodes[line.last()].address;
    let echo = Echo::start(&line.lab, line.last(), address);
    let pace = Pace { gap: Duration::from_millis(5), count: 300 };
    let pings = joined(ping(&line.lab, 0, address, pace))?;
    echo.stop()?;
    Ok(pings.quantile(0.5))
}

/// How long others wait while one stream fills a narrow link.
fn latency(table: &mut Table, rounds: u32, has_peer: bool) -> anyhow::Result<()> {
    let measure = |make| {
        let line = Line::new(make, 2)?;
        line.lab.shape(line.joints[0], SHAPED_MEGABITS)?;
        let mut quantiles = [f64::INFINITY; 2];
        for _ in 0..rounds {
            let pings = under_load(&line, 8)?;
            quantiles[0] = quantiles[0].min(pings.quantile(0.5));
            quantiles[1] = quantiles[1].min(pings.quantile(0.9));
        }
        anyhow::Ok(quantiles)
    };
    let mut makes = vec![("tcp://", Make::Mycelium("tcp")), ("quic://", Make::Mycelium("quic"))];
    if understands("udp") {
        makes.push(("udp://", Make::Mycelium("udp")));
    }
    let peer = has_peer.then(|| measure(Make::BoringTun)).transpose()?;
    for (name, make) in makes {
        let ours = measure(make)?;
        for (place, share) in ["half", "nine tenths"].into_iter().enumerate() {
            table.push(Row {
                what: format!("{name}, {SHAPED_MEGABITS} Mbit/s, full: {share} wait at most, ms"),
                ours: ours[place],
                peer: peer.map(|peer| (BORINGTUN, peer[place])),
                goal: Goal::AtMost(20.0),
            });
        }
    }
    Ok(())
}

fn recoveries(table: &mut Table) -> anyhow::Result<()> {
    let lost = f64::from(recovery::lost_pings()?) / 10.0;
    push(table, "ring of 4, silent cut: s without an answer", lost, Goal::AtMost(3.0));
    let first = recovery::after_failed_dial()?.as_secs_f64();
    push(table, "first answer after a failed dial, s", first, Goal::AtMost(0.3));
    Ok(())
}

fn idle(table: &mut Table) -> anyhow::Result<()> {
    let swarm = Swarm::start(SWARM_COUNT)?;
    let idle = swarm.since(&swarm.settled()?)?;
    let what = |what: &str| format!("{SWARM_COUNT} idle nodes, each: {what}");
    push(table, &what("bytes sent a second"), idle.bytes_per_second, Goal::AtMost(83.0));
    let processor = idle.processor_ms_per_second;
    push(table, &what("ms of processor a second"), processor, Goal::None);
    let memory = idle.memory;
    push(table, &what("resident memory, MiB"), memory.resident_mib, Goal::AtMost(8.0));
    push(table, &what("share of all memory, MiB"), memory.share_mib, Goal::AtMost(8.0));
    push(table, &what("private memory, MiB"), memory.private_mib, Goal::None);
    Ok(())
}

fn push(table: &mut Table, what: &str, ours: f64, goal: Goal) {
    table.push(Row { what: what.to_owned(), ours, peer: None, goal });
}
