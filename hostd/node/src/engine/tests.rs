//! Deployments from message to workload, with a host and a chain that say what is wanted.

use std::path::Path;
use std::time::Instant;

use hostd_grid::TwinId;
use tokio::time::sleep;

use super::*;
use crate::ledger::ContractState;
use crate::store::StoreKey;
use crate::testing::{Body, NODE, TestHost, TestLedger, signed};

mod crash;

/// Nothing in these tests takes longer than that when it works.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    ledger: Arc<TestLedger>,
    host: Arc<TestHost>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, ledger: Arc::default(), host: Arc::default() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn start(&self) -> Engine {
        let config = EngineConfig { node_id: NODE, confirm_patience: Duration::from_millis(100) };
        let store = Store::open(self.path(), StoreKey::from_seed(&[9; 32])).unwrap();
        let ledger = Arc::clone(&self.ledger) as Arc<dyn Ledger>;
        let host = Arc::clone(&self.host) as Arc<dyn Host>;
        Engine::start(config, store, ledger, host).await.unwrap()
    }

    /// A deployment that runs.
    async fn running(&self, body: &Body) -> Engine {
        let engine = self.start().await;
        self.ledger.pay(body);
        engine.deploy(TwinId(body.twin), &signed(body)).await.unwrap();
        until("it runs", || states(&engine).iter().all(|state| state.ends_with(" ok"))).await;
        until("it is reported", || !self.ledger.reports.lock().unwrap().is_empty()).await;
        engine
    }
}

const TWIN: TwinId = TwinId(1);
const CONTRACT: ContractId = ContractId(5);

/// The states of the test's deployment, as `name version state`.
fn states(engine: &Engine) -> Vec<String> {
    let deployment = engine.get(TWIN, CONTRACT);
    let workloads = deployment.map(|deployment| deployment.workloads).unwrap_or_default();
    let shown = workloads.iter().map(|workload| {
        format!("{} {} {}", workload.name, workload.version, workload.result.state)
    });
    shown.collect()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_deployment_runs_is_updated_and_goes_with_its_contract() {
    let bench = Bench::new();
    let body = Body::of(&["vm", "disk", "net"], &["vm", "disk", "net"]);
    let engine = bench.running(&body).await;
    let calls = bench.host.take_calls();
    assert_eq!(calls, ["provision 1-5-disk", "provision 1-5-net", "provision 1-5-vm"]);
    let changes = engine.changes(TWIN, CONTRACT).unwrap();
    let shown: Vec<_> = changes.iter().map(|change| change.result.state.name()).collect();
    assert_eq!(shown, ["init", "init", "init", "ok", "ok", "ok"]);
    let ip = "10.1.2.3".parse::<std::net::IpAddr>().unwrap();
    assert_eq!(engine.private_addresses(TWIN, &"net".into()), [ip]);
    assert_eq!(engine.private_addresses(TwinId(2), &"net".into()), [ip; 0]);
    let statistics = engine.statistics();
    assert_eq!(statistics.users.workloads, 3);
    assert_eq!(statistics.used.mru, statistics.system.mru + (1 << 30));

    let update = Body {
        version: 1,
        size: 2 << 30,
        ..Body::of(&["vm", "disk", "net", "db"], &["disk", "db"])
    };
    bench.ledger.pay(&update);
    engine.update(TWIN, &signed(&update)).await.unwrap();
    // Once more, since the answer got lost.
    engine.update(TWIN, &signed(&update)).await.unwrap();
    let expected = ["vm 0 ok", "disk 1 ok", "net 0 ok", "db 1 ok"];
    until("the update is done", || states(&engine) == expected).await;
    assert_eq!(bench.host.take_calls(), ["update 1-5-disk", "provision 1-5-db"]);

    bench.ledger.contracts.lock().unwrap().clear();
    engine.cancel(CONTRACT, "contract canceled event received").await;
    until("it is gone", || engine.get(TWIN, CONTRACT).is_none()).await;
    let calls = bench.host.take_calls();
    let expected = ["remove 1-5-db", "remove 1-5-vm", "remove 1-5-net", "remove 1-5-disk"];
    assert_eq!(calls, expected);
    assert_eq!(std::fs::read_dir(bench.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_wrong_contract_shows_in_the_states() {
    let bench = Bench::new();
    let engine = bench.start().await;
    let body = Body::default();
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    until("no contract is an error", || states(&engine) == ["db 0 error"]).await;
    let message =
        |engine: &Engine| engine.get(TWIN, CONTRACT).unwrap().workloads[0].result.message.clone();
    assert_eq!(message(&engine), "failed to get deployment contract");
    // It never ran, so it can be sent again, with a contract of something else.
    bench.ledger.pay(&Body { size: 7, ..Body::default() });
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    until("another hash is an error", || {
        states(&engine) == ["db 0 error"] && message(&engine).contains("hash")
    })
    .await;
    assert_eq!(message(&engine), "contract hash does not match deployment hash");
    assert_eq!(bench.host.take_calls(), [""; 0]);
}

#[tokio::test]
async fn the_first_body_is_pinned() {
    let bench = Bench::new();
    let engine = bench.running(&Body::default()).await;
    engine.deploy(TWIN, &signed(&Body::default())).await.unwrap();
    let other = signed(&Body { size: 7, ..Body::default() });
    let refused = engine.deploy(TWIN, &other).await.unwrap_err();
    assert_eq!(refused.to_string(), "exists");
}

#[tokio::test]
async fn messages_are_refused_in_words() {
    let bench = Bench::new();
    let engine = bench.running(&Body::of(&["net"], &["net"])).await;
    let refusal = async |twin, message: Vec<u8>| {
        engine.deploy(TwinId(twin), &message).await.unwrap_err().to_string()
    };
    let mismatch = "twin id mismatch (deployment: 1, message: 2)";
    assert_eq!(refusal(2, signed(&Body::default())).await, mismatch);
    let version = Body { version: 1, ..Body::default() };
    let text = "expected version to be 0 on deployment creation: invalid version";
    assert_eq!(refusal(1, signed(&version)).await, text);
    let other = Body { contract: 6, ..Body::of(&["net"], &["net"]) };
    let text = "global workload with the same name 'net' exists: conflict";
    assert_eq!(refusal(1, signed(&other)).await, text);
    let forged = String::from_utf8(signed(&Body::default())).unwrap().replace("1073741824", "7");
    assert_eq!(refusal(1, forged.into_bytes()).await, "failed to verify signature");
    let text = "this node does not support workloads of type 'volume' yet";
    let volume = Body { contract: 6, ..Body::of(&["volume"], &["volume"]) };
    assert_eq!(refusal(1, signed(&volume)).await, text);
    let absent = signed(&Body { version: 1, contract: 9, ..Body::default() });
    let refused = engine.update(TWIN, &absent).await.unwrap_err();
    assert_eq!(refused.to_string(), "deployment does not exist");
}

#[tokio::test]
async fn an_unpaid_deployment_is_paused_and_goes_on_when_paid() {
    let bench = Bench::new();
    let engine = bench.running(&Body::of(&["disk", "net", "vm"], &["disk", "net", "vm"])).await;
    bench.host.take_calls();
    engine.set_grace(CONTRACT, true).await;
    until("it is paused", || states(&engine).iter().all(|state| state.ends_with("paused"))).await;
    // The chain's list agrees, so a comparison changes nothing.
    let set = |state| {
        bench.ledger.contracts.lock().unwrap().get_mut(&CONTRACT).unwrap().state = state;
    };
    set(ContractState::Grace);
    engine.reconcile().await.unwrap();
    assert_eq!(bench.host.take_calls(), ["pause 1-5-vm", "pause 1-5-net", "pause 1-5-disk"]);
    // The event that it was paid got lost.
    set(ContractState::Created);
    engine.reconcile().await.unwrap();
    until("it goes on", || states(&engine).iter().all(|state| state.ends_with("ok"))).await;
    assert_eq!(bench.host.take_calls(), ["resume 1-5-disk", "resume 1-5-net", "resume 1-5-vm"]);
}

#[tokio::test]
async fn a_chain_outage_changes_nothing() {
    let bench = Bench::new();
    let engine = bench.running(&Body::default()).await;
    bench.host.take_calls();
    bench.ledger.set_gone(true);
    let error = engine.reconcile().await.unwrap_err().to_string();
    let expected = "contracts were not compared: the chain does not answer: nobody listens";
    assert_eq!(error, expected);
    assert_eq!(states(&engine), ["db 0 ok"]);
    drop(engine);
    // Nor does a restart meanwhile.
    let engine = bench.start().await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(states(&engine), ["db 0 ok"]);
    assert_eq!(bench.host.take_calls(), [""; 0]);
    // It comes back, and the contract is gone from the list but not by its number, then both.
    bench.ledger.set_gone(false);
    engine.reconcile().await.unwrap();
    assert_eq!(states(&engine), ["db 0 ok"]);
    bench.ledger.contracts.lock().unwrap().clear();
    engine.reconcile().await.unwrap();
    until("it is gone", || engine.get(TWIN, CONTRACT).is_none()).await;
    assert_eq!(bench.host.take_calls(), ["remove 1-5-db"]);
}

#[tokio::test]
async fn a_deployment_waits_for_a_chain_that_does_not_answer() {
    let bench = Bench::new();
    let body = Body::default();
    let engine = bench.start().await;
    bench.ledger.pay(&body);
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    until("it was seen", || !states(&engine).is_empty()).await;
    drop(engine);
    // Nothing was promised but that it is taken: a restart in between goes on with it.
    bench.ledger.set_gone(true);
    let engine = bench.start().await;
    sleep(Duration::from_millis(200)).await;
    assert!(matches!(&states(&engine)[..], [state] if state != "db 0 error"));
    bench.ledger.set_gone(false);
    until("it runs", || states(&engine) == ["db 0 ok"]).await;
}

#[tokio::test]
async fn an_update_without_its_contract_leaves_everything() {
    let bench = Bench::new();
    let engine = bench.running(&Body::of(&["disk", "db"], &["disk", "db"])).await;
    bench.host.take_calls();
    let update = Body { version: 1, size: 2 << 30, ..Body::of(&["disk"], &["disk"]) };
    engine.update(TWIN, &signed(&update)).await.unwrap();
    let last = || engine.changes(TWIN, CONTRACT).unwrap().pop().unwrap();
    until("it is rejected", || last().result.state == State::Unchanged).await;
    let last = last();
    assert_eq!(states(&engine), ["disk 0 ok", "db 0 ok"]);
    assert_eq!(last.result.message, "contract hash does not match deployment hash");
    assert_eq!(bench.host.take_calls(), [""; 0]);
    // With the contract it is taken, under the same version.
    bench.ledger.pay(&update);
    engine.update(TWIN, &signed(&update)).await.unwrap();
    until("it is done", || states(&engine) == ["disk 1 ok"]).await;
    assert_eq!(bench.host.take_calls(), ["remove 1-5-db", "update 1-5-disk"]);
}

#[tokio::test]
async fn what_the_host_lost_is_made_again_and_what_nobody_knows_goes() {
    let bench = Bench::new();
    let engine = bench.running(&Body::of(&["vm", "disk", "net"], &["vm", "disk", "net"])).await;
    drop(engine);
    bench.host.take_calls();
    let stranger = WorkloadIdOf(3, 4, "x").id();
    *bench.host.there.lock().unwrap() = [stranger].into();
    let engine = bench.start().await;
    let calls = bench.host.take_calls();
    let expected = ["remove 3-4-x", "provision 1-5-disk", "provision 1-5-net", "provision 1-5-vm"];
    assert_eq!(calls, expected);
    assert!(states(&engine).iter().all(|state| state.ends_with(" ok")));
}

#[tokio::test]
async fn what_somebody_pays_for_stays_though_its_deployment_is_lost() {
    let bench = Bench::new();
    let (paid, unpaid) = (WorkloadIdOf(1, 5, "disk").id(), WorkloadIdOf(3, 4, "x").id());
    bench.ledger.pay(&Body::of(&["disk"], &["disk"]));
    *bench.host.there.lock().unwrap() = [paid, unpaid].into();
    // Without the chain, nobody knows.
    bench.ledger.set_gone(true);
    let engine = bench.start().await;
    assert_eq!(bench.host.take_calls(), [""; 0]);
    assert!(engine.reconcile().await.is_err());
    assert_eq!(bench.host.take_calls(), [""; 0]);
    bench.ledger.set_gone(false);
    engine.reconcile().await.unwrap();
    assert_eq!(bench.host.take_calls(), ["remove 3-4-x"]);
    // When it is not paid for any more, it goes.
    bench.ledger.contracts.lock().unwrap().clear();
    engine.reconcile().await.unwrap();
    assert_eq!(bench.host.take_calls(), ["remove 1-5-disk"]);
}

#[tokio::test]
async fn a_machine_whose_disk_failed_is_not_made() {
    let bench = Bench::new();
    bench.host.failing.lock().unwrap().insert("disk".into());
    let engine = bench.start().await;
    let body = Body::of(&["disk", "net", "vm"], &["disk", "net", "vm"]);
    bench.ledger.pay(&body);
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    let expected = ["disk 0 error", "net 0 ok", "vm 0 error"];
    until("it has settled", || states(&engine) == expected).await;
    let workloads = engine.get(TWIN, CONTRACT).unwrap().workloads;
    let messages: Vec<_> = workloads.iter().map(|workload| &workload.result.message[..]).collect();
    assert_eq!(messages, ["no room for 1-5-disk", "", "invalid disk 'disk' state"]);
}

#[tokio::test]
async fn what_takes_long_for_one_twin_holds_up_no_other() {
    let bench = Bench::new();
    bench.host.slow.lock().unwrap().insert("slow".into());
    let engine = bench.start().await;
    // More than all that is done at a time.
    for contract in 100..170 {
        let body = Body { contract, ..Body::of(&["slow"], &["slow"]) };
        bench.ledger.pay(&body);
        // Only so many are taken in before the chain has said that they are paid.
        while let Err(error) = engine.deploy(TWIN, &signed(&body)).await {
            assert!(matches!(error, AcceptError::TooManyUnpaid { .. }), "{error}");
            sleep(Duration::from_millis(5)).await;
        }
    }
    let other = Body { twin: 2, contract: 7, ..Body::default() };
    bench.ledger.pay(&other);
    engine.deploy(TwinId(2), &signed(&other)).await.unwrap();
    until("the other runs", || {
        let deployment = engine.get(TwinId(2), ContractId(7)).unwrap();
        deployment.workloads[0].result.state == State::Ok
    })
    .await;
    let is_made = |id: &hostd_grid::derived::WorkloadId| id.name.as_str() == "slow";
    assert!(!bench.host.there.lock().unwrap().iter().any(is_made));
    bench.host.slow.lock().unwrap().clear();
    until("all run in the end", || bench.host.there.lock().unwrap().len() == 71).await;
}

/// An id in three words.
struct WorkloadIdOf(u32, u64, &'static str);

impl WorkloadIdOf {
    fn id(&self) -> hostd_grid::derived::WorkloadId {
        let (twin_id, contract_id, name) = (TwinId(self.0), ContractId(self.1), self.2.into());
        hostd_grid::derived::WorkloadId { twin_id, contract_id, name }
    }
}

#[tokio::test]
async fn a_machine_that_was_given_up_is_taken_down_and_stays_down() {
    let bench = Bench::new();
    let names = ["vm", "disk", "net"];
    let engine = bench.running(&Body::of(&names, &names)).await;
    engine.take_down_fallen().await.unwrap();
    assert_eq!(states(&engine), ["vm 0 ok", "disk 0 ok", "net 0 ok"]);
    bench.host.take_calls();
    let there = bench.host.there.lock().unwrap().clone();
    let id = there.into_iter().find(|id| id.name.as_str() == "vm").unwrap();
    bench.host.fallen.lock().unwrap().push((id, "so many crashes".into()));
    engine.take_down_fallen().await.unwrap();
    assert_eq!(states(&engine), ["vm 0 deleted", "disk 0 ok", "net 0 ok"]);
    let message = engine.get(TWIN, CONTRACT).unwrap().workloads[0].result.message.clone();
    assert_eq!(message, "workload decommissioned by system, reason: so many crashes");
    until("it is taken down", || bench.host.fallen.lock().unwrap().is_empty()).await;
    assert_eq!(bench.host.take_calls(), ["remove 1-5-vm"]);

    // It is not made again, now or after a restart.
    engine.rest().await;
    drop(engine);
    let engine = bench.start().await;
    engine.reconcile().await.unwrap();
    assert_eq!(states(&engine), ["vm 0 deleted", "disk 0 ok", "net 0 ok"]);
    assert_eq!(bench.host.take_calls(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_removed_later() {
    let bench = Bench::new();
    let names = ["vm", "disk", "net"];
    let engine = bench.running(&Body::of(&names, &names)).await;
    let id = WorkloadIdOf(1, 5, "vm").id();
    bench.host.failing.lock().unwrap().insert("vm".into());
    bench.host.fallen.lock().unwrap().push((id.clone(), "so many crashes".into()));
    engine.take_down_fallen().await.unwrap();
    let tries = || {
        let calls = bench.host.calls.lock().unwrap();
        calls.iter().filter(|call| *call == "remove 1-5-vm").count()
    };
    until("it is tried again", || tries() >= 3).await;
    assert!(bench.host.there.lock().unwrap().contains(&id));
    // After a restart too, which finds it on the host.
    drop(engine);
    let engine = bench.start().await;
    until("it is tried again", || tries() >= 5).await;
    assert_eq!(states(&engine), ["vm 0 deleted", "disk 0 ok", "net 0 ok"]);
    bench.host.failing.lock().unwrap().clear();
    until("it is gone", || !bench.host.there.lock().unwrap().contains(&id)).await;
    engine.reconcile().await.unwrap();
    assert_eq!(states(&engine), ["vm 0 deleted", "disk 0 ok", "net 0 ok"]);
}

#[tokio::test]
async fn an_engine_that_rests_begins_nothing() {
    let bench = Bench::new();
    let engine = bench.start().await;
    engine.rest().await;
    let body = Body::default();
    bench.ledger.pay(&body);
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.host.take_calls(), Vec::<String>::new());
    drop(engine);
    let engine = bench.start().await;
    until("it runs", || states(&engine) == ["db 0 ok"]).await;
}

#[tokio::test]
async fn nobody_deploys_whom_the_operator_does_not_know() {
    let bench = Bench::new();
    let engine = bench.start().await;
    let body = Body::default();
    bench.ledger.pay(&body);
    bench.ledger.strangers.lock().unwrap().insert(TWIN);
    let refused = engine.deploy(TWIN, &signed(&body)).await.unwrap_err();
    assert_eq!(refused.to_string(), "user with twin id 1 is not verified");
    let trial = engine.validate(TWIN, &signed(&body)).await.unwrap();
    assert_eq!(trial.problems[0], "user with twin id 1 is not verified");
    assert!(engine.get(TWIN, CONTRACT).is_none());
    bench.ledger.strangers.lock().unwrap().clear();
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
}

#[tokio::test]
async fn the_answer_comes_before_the_work_and_nothing_ends_by_itself() {
    let bench = Bench::new();
    let engine = bench.start().await;
    // It says that it ended long ago.
    let body = Body { expiration: 7, ..Body::default() };
    bench.ledger.pay(&body);
    bench.host.slow.lock().unwrap().insert("db".into());
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    until("it is being made", || bench.host.calls.lock().unwrap().len() == 1).await;
    assert_eq!(states(&engine), ["db 0 init"]);
    bench.host.slow.lock().unwrap().clear();
    until("it runs", || states(&engine) == ["db 0 ok"]).await;
    engine.reconcile().await.unwrap();
    assert_eq!(states(&engine), ["db 0 ok"]);
    assert_eq!(engine.get(TWIN, CONTRACT).unwrap().expiration.0, 0);
    assert_eq!(bench.host.take_calls(), ["provision 1-5-db"]);
}

#[tokio::test]
async fn an_update_that_fails_leaves_what_was() {
    let bench = Bench::new();
    let engine = bench.running(&Body::of(&["disk", "db"], &["disk", "db"])).await;
    bench.host.take_calls();
    bench.host.failing.lock().unwrap().insert("disk".into());
    let update = Body { version: 1, size: 7, ..Body::of(&["disk", "db"], &["disk"]) };
    bench.ledger.pay(&update);
    engine.update(TWIN, &signed(&update)).await.unwrap();
    let last = || engine.changes(TWIN, CONTRACT).unwrap().pop().unwrap();
    until("it has failed", || last().result.state == State::Unchanged).await;
    assert_eq!((last().version, &*last().result.message), (1, "no room for 1-5-disk"));
    assert_eq!(bench.host.take_calls(), ["update 1-5-disk"]);
    // What runs is what ran, with the size that it had.
    assert_eq!(states(&engine), ["disk 0 ok", "db 0 ok"]);
    let shown = engine.get(TWIN, CONTRACT).unwrap();
    assert_eq!(shown.version, 1);
    assert_eq!(shown.workloads[0].data.json.as_str(), format!(r#"{{"size":{}}}"#, 1_u64 << 30));
    assert_eq!(engine.statistics().used.sru, 1 << 30);
}

#[tokio::test]
async fn no_more_memory_is_promised_than_there_is() {
    let bench = Bench::new();
    let engine = bench.start().await;
    let names = ["vm", "disk", "net"];
    let body = Body::of(&names, &names);
    bench.ledger.pay(&body);
    // Somebody else has it, whatever was promised to whom.
    *bench.host.taken_memory.lock().unwrap() = (15 << 30) + 1;
    let text = "cannot fulfil required memory size 1073741824 bytes out of usable 1073741823 bytes";
    let trial = engine.validate(TWIN, &signed(&body)).await.unwrap();
    assert_eq!(trial.problems, [text]);
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    until("it has settled", || states(&engine) == ["vm 0 error", "disk 0 ok", "net 0 ok"]).await;
    assert_eq!(engine.get(TWIN, CONTRACT).unwrap().workloads[0].result.message, text);
    *bench.host.taken_memory.lock().unwrap() = 15 << 30;
    let other = Body { twin: 2, ..Body::of(&names, &names) };
    bench.ledger.pay(&other);
    engine.deploy(TwinId(2), &signed(&other)).await.unwrap();
    until("there was just enough", || engine.statistics().used.cru == 1).await;
}

#[tokio::test]
async fn more_processors_are_promised_than_there_are() {
    let bench = Bench::new();
    let engine = bench.start().await;
    let names = ["vm", "disk", "net"];
    let total = engine.statistics().total.cru;
    for twin in 1..=u32::try_from(total).unwrap() + 1 {
        let body = Body { twin, contract: u64::from(twin), ..Body::of(&names, &names) };
        bench.ledger.pay(&body);
        engine.deploy(TwinId(twin), &signed(&body)).await.unwrap();
    }
    until("all of them run", || engine.statistics().used.cru == total + 1).await;
}

#[tokio::test]
async fn a_trial_says_what_would_come_of_an_update_and_what_the_machine_has_against_it() {
    let bench = Bench::new();
    let names = ["vm", "disk", "net"];
    let engine = bench.running(&Body::of(&names, &names)).await;
    bench.host.take_calls();
    let problems = async |body: &Body| engine.validate(TWIN, &signed(body)).await.unwrap().problems;
    let grown = Body { version: 1, size: 2 << 30, ..Body::of(&names, &["disk"]) };
    assert_eq!(problems(&grown).await, [""; 0]);
    // Of what it has, only the rest is to be there.
    let huge = Body { version: 1, size: (1 << 40) + (1 << 30), ..Body::of(&names, &["disk"]) };
    assert_eq!(problems(&huge).await, [""; 0]);
    let more = Body { version: 1, size: (1 << 40) + (1 << 30) + 1, ..Body::of(&names, &["disk"]) };
    assert!(problems(&more).await[0].starts_with("not enough space left"));
    let machine = Body { version: 1, ..Body::of(&names, &["vm"]) };
    assert_eq!(problems(&machine).await.len(), 1, "a machine can't be updated");
    let skipped = Body { version: 3, ..Body::of(&names, &["disk"]) };
    assert_eq!(problems(&skipped).await.len(), 1, "versions follow one another");
    let image = "vm: image: https://hub/x: the hub has no such image".to_owned();
    bench.host.objections.lock().unwrap().push(image.clone());
    assert_eq!(problems(&grown).await, [image]);
    assert_eq!(bench.host.take_calls(), [""; 0]);
}

#[tokio::test]
async fn a_contract_that_comes_after_its_message_is_seen_when_the_chain_tells_of_it() {
    let bench = Bench::new();
    let store = Store::open(bench.path(), StoreKey::from_seed(&[9; 32])).unwrap();
    let ledger = Arc::clone(&bench.ledger) as Arc<dyn Ledger>;
    let host = Arc::clone(&bench.host) as Arc<dyn Host>;
    // Nothing but news makes it look again before the test has given up.
    let config = EngineConfig { node_id: NODE, confirm_patience: PATIENCE * 10 };
    let engine = Engine::start(config, store, ledger, host).await.unwrap();
    let body = Body::default();
    engine.deploy(TWIN, &signed(&body)).await.unwrap();
    until("it waits", || bench.ledger.asked_count() > 0).await;
    bench.ledger.pay(&body);
    let asked = bench.ledger.asked_count();
    engine.look_again(CONTRACT);
    until("it is asked for again", || bench.ledger.asked_count() > asked).await;
    until("it runs", || states(&engine).iter().all(|state| state.ends_with(" ok"))).await;
}
