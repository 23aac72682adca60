//! One twin sends a node more than it may: others are served, and nothing of it stays.

use std::time::{Duration, Instant};

use hostd_rmb::peer::Call;
use serde_json::json;

use crate::lies::Liar;
use crate::world::{TIME_MAX, World, until};

/// Deployments that are sent, as many as can be at a time.
const COUNT: u64 = 1000;
/// Messages that are under way at a time.
const BATCH: u64 = 100;
/// What a node takes of a twin before any of it is paid for.
const TAKEN_MAX: usize = 32;

#[test]
fn a_thousand_deployments_of_one_twin_at_once_take_nothing_from_others() {
    let world = World::new(&[]);
    let liar = Liar::new(&world);
    world.machine.take_done();
    let start = Instant::now();
    let (mut taken, mut refused, mut unanswered) = (0, Vec::new(), 0);
    let node = hostd_rmb::twins::TwinId::new(world.node_twin()).unwrap();
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let start = Instant::now();
            world.zdb("users");
            start.elapsed()
        });
        // Nobody pays for any of them.
        for first in (0..COUNT).step_by(usize::try_from(BATCH).unwrap()) {
            let calls = (first..first + BATCH).map(|number| {
                let deployment = liar.deployment(liar.twin, 10_000 + number);
                let payload = serde_json::to_string(&deployment).unwrap();
                Call::new(node, "zos.deployment.deploy", payload).time_max(TIME_MAX)
            });
            for answer in liar.call_all(calls) {
                match answer {
                    Ok(_) => taken += 1,
                    Err(error) if error.contains("too many requests") => refused.push(error),
                    Err(error) if error.contains("no contract pays for yet") => refused.push(error),
                    // The relay itself does not take everything.
                    Err(_) => unanswered += 1,
                }
            }
        }
        eprintln!("a user's deployment meanwhile: {:?}", user.join().unwrap());
    });
    eprintln!(
        "{COUNT} in {:?}: {taken} taken, {} refused, {unanswered} not answered",
        start.elapsed(),
        refused.len()
    );
    assert!(taken <= TAKEN_MAX, "{taken}");
    assert!(refused.len() > usize::try_from(COUNT / 2).unwrap(), "{refused:?}");
    assert_eq!(world.machine.take_done(), ["make users"]);

    // After a rest, that twin is served like everybody.
    until("the twin is served again", || {
        let question = json!({"contract_id": 9999});
        let answer = liar.call("zos.deployment.get", &question).unwrap_err();
        std::thread::sleep(Duration::from_millis(200));
        answer == "deployment not found"
    });
}
