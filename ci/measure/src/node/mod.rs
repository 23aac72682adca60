//! A node: what deploying costs it beyond the machines themselves, and what it costs to be there.
//!
//! Everything is real: the grid, hostd, its supervisor, networks in namespaces, one VMM a machine by this
//! host's KVM. Only the guest's kernel is one instruction, which sleeps; so what is counted is the node's.
//! Costs are processor time of all of the node's programs together, from when deploy messages leave their
//! senders until these see that everything runs, a tenth of a second later at most.
//!
//! | room | what |
//! |---|---|
//! | `world` | the grid, the node, and who deploys |
//! | `meter` | processor time of a group of programs |
//! | `waits` | who was woken by a clock |

mod meter;
mod waits;
mod world;

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::table::{Goal, Row, Table};
use waits::Watched;
use world::World;

/// Rounds of deploying one machine, and of starting one without a node.
const ROUND_COUNT: u32 = 5;
/// People who deploy at once, with so many machines and so many volumes each.
const CROWD: [u8; 3] = [10, 5, 5];
/// The same for `--check`.
const FEW: [u8; 3] = [2, 3, 2];
/// How long a node is watched that has nothing to do.
const IDLE_TIME: Duration = Duration::from_secs(60);
const IDLE_TIME_CHECK: Duration = Duration::from_secs(15);
/// Until a node has done what follows from something.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// Memory of hostd that is of no file, whoever built it.
const ANONYMOUS_MIB_MAX: f64 = 40.0;
/// Workloads that are compared.
const COMPARED: &str = "500";
/// While a machine is deployed: a VMM whose guest does not run yet is asked again two milliseconds later.
const SLEEPS_MAX: f64 = 8.0;
/// Timers of duties that may be due meanwhile.
const TIMEOUTS_MAX: f64 = 8.0;

/// What repeats. The node is as tests have it: larger and slower than it is meant to be, so what it holds
/// of its program, and its processor time, are for the reader.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let mut table = Table::default();
    let mut world = World::new()?;
    deploy(&world, &mut table, 2, Goal::None)?;
    clocks(&world, &mut table)?;
    crowd(&world, &mut table, FEW)?;
    restart(&mut world, &mut table)?;
    idle(&world, &mut table, IDLE_TIME_CHECK, Goal::None)?;
    Ok(table)
}

/// All rows.
pub(crate) fn timed() -> anyhow::Result<Table> {
    let mut table = Table::default();
    let mut world = World::new()?;
    idle(&world, &mut table, IDLE_TIME, Goal::AtMost(60.0))?;
    deploy(&world, &mut table, ROUND_COUNT, Goal::AtMost(150.0))?;
    clocks(&world, &mut table)?;
    crowd(&world, &mut table, CROWD)?;
    restart(&mut world, &mut table)?;
    idle(&world, &mut table, IDLE_TIME, Goal::AtMost(60.0))?;
    compare(&world, &mut table)?;
    Ok(table)
}

/// One machine after the other, beside its VMM alone.
fn deploy(world: &World, table: &mut Table, rounds: u32, cost: Goal) -> anyhow::Result<()> {
    // The first one fetches the image, and makes the network.
    world.deployer([1, 1, 0])?.go()?;
    let (mut least, mut soonest) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        let deployer = world.deployer([1, 1, 0])?;
        thread::sleep(SETTLE_TIME);
        let before = world.used_ms()?;
        let figures = deployer.go()?;
        least = least.min(world.used_ms()? - before);
        soonest = soonest.min(find(&figures, "all run after: ms")?);
    }
    let alone = world.alone_ms(rounds)?;
    push(table, "vmm run alone: ms of processor", alone, Goal::None);
    let what = "deploying a machine, beyond that: ms of processor";
    push(table, what, least - alone, cost);
    push(table, "deploying a machine, until its owner sees it run: ms", soonest, Goal::None);
    Ok(())
}

/// Who waits for a clock while a machine is deployed.
fn clocks(world: &World, table: &mut Table) -> anyhow::Result<()> {
    let deployer = world.deployer([1, 1, 0])?;
    thread::sleep(SETTLE_TIME);
    let watched = Watched::start(&[world.hostd.pid(), world.supervise.pid()])?;
    deployer.go()?;
    let waits = watched.stop()?;
    let what = "deploying a machine: sleeps";
    push(table, what, f64::from(waits.sleeps), Goal::AtMost(SLEEPS_MAX));
    let what = "deploying a machine: short waits that ran into their time";
    push(table, what, f64::from(waits.timeouts), Goal::AtMost(TIMEOUTS_MAX));
    Ok(())
}

/// Many at once.
fn crowd(world: &World, table: &mut Table, counts: [u8; 3]) -> anyhow::Result<()> {
    let deployer = world.deployer(counts)?;
    thread::sleep(SETTLE_TIME);
    let before = world.used_ms()?;
    let figures = deployer.go()?;
    let used = world.used_ms()? - before;
    let count = find(&figures, "in flight")?;
    for (what, value) in &figures {
        push(table, &format!("{count} deployments in flight, {what}"), *value, Goal::None);
    }
    let what = format!("{count} deployments in flight: ms of processor each");
    push(table, &what, used / count, Goal::None);
    Ok(())
}

/// hostd dies and comes again; machines are none the wiser.
fn restart(world: &mut World, table: &mut Table) -> anyhow::Result<()> {
    thread::sleep(SETTLE_TIME);
    let before = world.machines()?;
    let (hostd, rest) = (world.hostd_meter.used_ms()?, world.rest_meter.used_ms()?);
    world.restart_hostd()?;
    thread::sleep(SETTLE_TIME);
    let after = world.machines()?;
    let count = before.len();
    // The one that was stopped behind hostd's back is made again, which is as it should be.
    let touched = before.iter().filter(|machine| !after.contains(machine)).count();
    let what = format!("hostd anew among {count} machines: machines touched");
    push(table, &what, f64::from(u32::try_from(touched)?), Goal::AtMost(0.0));
    let what = format!("hostd anew among {count} machines: ms of hostd's processor time");
    push(table, &what, world.hostd_meter.used_ms()? - hostd, Goal::None);
    let what = format!("hostd anew among {count} machines: ms of all others'");
    push(table, &what, world.rest_meter.used_ms()? - rest, Goal::None);
    Ok(())
}

/// Nothing to do.
fn idle(world: &World, table: &mut Table, time: Duration, resident: Goal) -> anyhow::Result<()> {
    thread::sleep(SETTLE_TIME * 3);
    let count = world.machines()?.len();
    let (begin, before) = (Instant::now(), world.hostd_meter.used_ms()?);
    thread::sleep(time);
    let used = world.hostd_meter.used_ms()? - before;
    let share = used / begin.elapsed().as_secs_f64() / 10.0;
    let what = format!("hostd idle with {count} machines: % of a core");
    push(table, &what, share, Goal::AtMost(0.5));
    let what = format!("hostd idle with {count} machines: MiB resident");
    push(table, &what, world.hostd.memory_mib()?, resident);
    let what = format!("hostd idle with {count} machines: MiB of no file");
    push(table, &what, world.hostd.anonymous_mib()?, Goal::AtMost(ANONYMOUS_MIB_MAX));
    Ok(())
}

/// Everything compared, and nothing to change.
fn compare(world: &World, table: &mut Table) -> anyhow::Result<()> {
    let output = Command::new("compare").arg(world.network()).arg(COMPARED).output()?;
    if !output.status.success() {
        bail!("compare: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let (what, value) = line.split_once('\t').with_context(|| line.to_owned())?;
        let is_cost = what.ends_with("processor");
        let goal = if is_cost { Goal::AtMost(20.0) } else { Goal::None };
        push(table, what, value.parse()?, goal);
    }
    Ok(())
}

fn find(figures: &[(String, f64)], what: &str) -> anyhow::Result<f64> {
    let found = figures.iter().find(|(name, _)| name == what);
    Ok(found.with_context(|| format!("no figure {what:?}"))?.1)
}

fn push(table: &mut Table, what: &str, ours: f64, goal: Goal) {
    table.push(Row { what: what.to_owned(), ours, peer: None, goal });
}
