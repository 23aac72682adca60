//! What repeats: bytes, memory, system calls, packets that were lost. These have hard limits.

use super::overlay::{Line, Make};
use super::swarm::Swarm;
use super::traffic::{Amount, Way, bulk};
use super::{push, recovery};
use crate::process::Attached;
use crate::table::{Goal, Table};

/// Idle nodes; the table has fifty, which take a minute.
const SWARM_COUNT: usize = 12;
/// What is sent while system calls are counted.
const COUNTED_MIB: u32 = 64;
/// How often.
const COUNTED_ROUNDS: u32 = 3;

/// All counted rows.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let mut table = Table::default();
    // These are idle while the others are busy: bytes and memory don't mind.
    let swarm = Swarm::start(SWARM_COUNT)?;
    system_calls(&mut table)?;
    quic(&mut table)?;
    let before = swarm.settled()?;
    let lost = f64::from(recovery::lost_pings()?);
    // Three seconds are the goal, and what the table shows; a busy machine is given more.
    push(&mut table, "ring of 4, silent cut: pings lost of 10 a second", lost, Goal::AtMost(80.0));
    let idle = swarm.since(&before)?;
    push(&mut table, "idle: bytes sent a second", idle.bytes_per_second, Goal::AtMost(83.0));
    // What is resident of the program and of the system's libraries is there once for all nodes of a
    // machine, so a node costs its share of it.
    push(&mut table, "idle: private memory, MiB", idle.memory.private_mib, Goal::AtMost(4.0));
    push(&mut table, "idle: share of all memory, MiB", idle.memory.share_mib, Goal::AtMost(8.0));
    Ok(table)
}

/// A TCP stream over a TCP link: how much each call carries, at both ends. The least of a few rounds: whoever
/// is kept from running finds less to carry at once, and needs more calls for the same.
fn system_calls(table: &mut Table) -> anyhow::Result<()> {
    let line = Line::new(Make::Mycelium("tcp"), 2)?;
    // Once without, so that windows have grown.
    bulk(&line, Amount::MiB(COUNTED_MIB), Way::There)?;
    let mut least = [f64::INFINITY; 2];
    for _ in 0..COUNTED_ROUNDS {
        let attached: Vec<Attached> = line
            .nodes
            .iter()
            .map(|node| Attached::to(node.daemon.pid()))
            .collect::<anyhow::Result<_>>()?;
        bulk(&line, Amount::MiB(COUNTED_MIB), Way::There)?;
        for (least, attached) in least.iter_mut().zip(attached) {
            *least = least.min(attached.system_calls()? / f64::from(COUNTED_MIB));
        }
    }
    for (side, calls) in ["sender", "receiver"].into_iter().zip(least) {
        let what = format!("TCP bulk over tcp://: system calls per MiB, {side}");
        push(table, &what, calls, Goal::AtMost(150.0));
    }
    Ok(())
}

/// QUIC links carry full-size packets, both ways. Where they don't, iperf3 says so, and this fails. What is
/// under way when the sender is done is not counted as received, so not all that was sent is asked for.
fn quic(table: &mut Table) -> anyhow::Result<()> {
    const MIB: u32 = 16;
    let line = Line::new(Make::Mycelium("quic"), 2)?;
    for (way, name) in [(Way::There, "there"), (Way::Back, "back")] {
        let moved = bulk(&line, Amount::MiB(MIB), way)?.gigabits * 1e9 / 8.0 / f64::from(1 << 20);
        let what = format!("TCP bulk over quic://, {name}: MiB received of {MIB}");
        push(table, &what, moved, Goal::AtLeast(f64::from(MIB) / 2.0));
    }
    Ok(())
}
