//! How soon packets arrive again, or at all: after a cut, and after a dial that failed.

use std::thread;
use std::time::Duration;

use super::lab::{Joint, Lab, joined};
use super::overlay::{Key, Node, endpoint, mycelium};
use super::traffic::{Echo, Pace, first_answer, ping};

/// Between two pings.
const GAP: Duration = Duration::from_millis(100);
/// From the cut to the last ping.
const AFTER_CUT_COUNT: u32 = 100;
/// Pings before the cut.
const BEFORE_CUT_COUNT: u32 = 20;

/// Cuts the link in use in a ring of four, silently; how many pings in a row are lost, of ten a second.
pub(super) fn lost_pings() -> anyhow::Result<u32> {
    let mut lab = Lab::new(4)?;
    let joints: Vec<Joint> =
        (0..4).map(|at| lab.join(at, (at + 1) % 4)).collect::<anyhow::Result<_>>()?;
    let mut nodes: Vec<Node> = Vec::new();
    for (at, joint) in joints.iter().enumerate() {
        let next = endpoint("tcp", &joint.address(1));
        nodes.push(mycelium(&lab, at, &Key::make(&lab, at)?, &[next])?);
    }
    let target = nodes[1].address;
    let echo = Echo::start(&lab, 1, target);
    joined(first_answer(&lab, 0, target))?;
    // The other way is known, too, before the cut.
    thread::sleep(Duration::from_secs(2));
    let pings = ping(&lab, 0, target, Pace { gap: GAP, count: BEFORE_CUT_COUNT + AFTER_CUT_COUNT });
    thread::sleep(GAP * BEFORE_CUT_COUNT);
    lab.lose(joints[0])?;
    let pings = joined(pings)?;
    echo.stop()?;
    Ok(pings.lost_in_a_row)
}

/// Starts a node whose peer is not there yet, then the peer; how long from then to the first answer.
pub(super) fn after_failed_dial() -> anyhow::Result<Duration> {
    let mut lab = Lab::new(2)?;
    let joint = lab.join(0, 1)?;
    let keys = [Key::make(&lab, 0)?, Key::make(&lab, 1)?];
    let _first = mycelium(&lab, 0, &keys[0], &[endpoint("tcp", &joint.address(1))])?;
    thread::sleep(Duration::from_millis(300));
    let echo = Echo::start(&lab, 1, keys[1].address);
    let answered = first_answer(&lab, 0, keys[1].address);
    let _second = mycelium(&lab, 1, &keys[1], &[])?;
    let time = joined(answered)?;
    echo.stop()?;
    Ok(time)
}
