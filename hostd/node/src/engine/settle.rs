//! The task of a deployment: does what its record says is next, until nothing is.

use std::sync::Arc;
use std::time::Duration;

use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::workload::{Mount, State, WorkloadData, WorkloadResult};
use hostd_grid::{Name, Workload};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::record::{Standing, Step};
use super::{PAUSE_MAX, PAUSE_MIN, Shared, Slot, lock, result};
use crate::host::{HostError, Task, UpdateError};
use crate::ledger::{Contract, ContractState, LedgerError, Subject};
use crate::store::{Entry, Key, StoreError};

/// Bytes of a workload's result.
const RESULT_SIZE_MAX: usize = 64 << 10;
/// How long to wait before a contract that is not as it should be is looked at again, if no news of the
/// chain are a reason to do so before.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);

/// What came of a step.
pub(super) enum After {
    /// Something is different now.
    Changed,
    /// It failed for reasons that may pass.
    Again(String),
    /// There is nothing left of the deployment.
    Gone,
}

impl Shared {
    /// Runs until the deployment is forgotten.
    pub(super) async fn settle(self: Arc<Self>, slot: Arc<Slot>) {
        let mut pause = PAUSE_MIN;
        loop {
            let step = slot.record().next_step();
            let Some(step) = step else {
                slot.wake.notified().await;
                if self.is_forgotten(&slot) {
                    return;
                }
                continue;
            };
            match self.run(&slot, step.clone()).await {
                After::Changed => pause = PAUSE_MIN,
                After::Gone => return,
                After::Again(reason) => {
                    debug!(deployment = %slot.key, ?step, reason, "again later");
                    // Whatever changes meanwhile may change what is next.
                    let _ = timeout(pause, slot.wake.notified()).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn run(&self, slot: &Slot, step: Step) -> After {
        match step {
            Step::Confirm(version) => self.confirm(slot, version).await,
            Step::Report => self.report(slot).await,
            Step::Forget => match self.forget(slot).await {
                Ok(()) => After::Gone,
                Err(error) => After::Again(error.to_string()),
            },
            Step::Remove(name, version) => match self.remove(slot, &name).await {
                Ok(()) => {
                    let result = result(State::Deleted, "");
                    self.note(slot, vec![Entry::Workload { name, version, result }]).await;
                    After::Changed
                }
                Err(error) => After::Again(error.0),
            },
            Step::Clear(name) => match self.remove(slot, &name).await {
                Ok(()) => After::Changed,
                Err(error) => After::Again(error.0),
            },
            Step::Add(task) => self.add(slot, task).await,
            Step::Update { old, new } => self.update_workload(slot, old, new).await,
            Step::Restore(task) => self.restore_workload(slot, task).await,
            Step::Pause(task) => {
                let done = self.on_host(slot, self.host.pause(task.clone())).await;
                self.paused(slot, &task, done, State::Paused).await
            }
            Step::Resume(task) => {
                let done = self.on_host(slot, self.host.resume(task.clone())).await;
                self.paused(slot, &task, done, State::Ok).await
            }
        }
    }

    /// Waits for a turn on the host.
    async fn on_host<T>(&self, slot: &Slot, doing: impl Future<Output = T>) -> T {
        let _turn = self.turns.take(slot.key.twin_id).await;
        doing.await
    }

    /// Takes down whatever is on the host of a workload.
    async fn remove(&self, slot: &Slot, name: &Name) -> Result<(), HostError> {
        let Key { twin_id, contract_id } = slot.key;
        let id = WorkloadId { twin_id, contract_id, name: name.clone() };
        let removed = self.on_host(slot, self.host.remove(id.clone())).await;
        match &removed {
            Ok(()) => slot.record().set_left(name, false),
            Err(error) => {
                warn!(workload = %id, %error, "not removed");
                slot.record().set_failed(name);
            }
        }
        removed
    }

    /// Asks the chain whether a version is paid for.
    async fn confirm(&self, slot: &Slot, version: u32) -> After {
        let deadline = Instant::now() + self.config.confirm_patience;
        let reason = loop {
            let verdict = match self.ledger.contract(slot.key.contract_id).await {
                Err(error) => return After::Again(error.to_string()),
                Ok(contract) => self.judge(slot, version, contract),
            };
            match verdict {
                Ok(state) => {
                    let is_on = state == ContractState::Grace;
                    let mut entries = vec![Entry::Confirmed { version }];
                    if slot.record().is_in_grace != is_on {
                        entries.push(Entry::Grace { is_on });
                    }
                    self.note(slot, entries).await;
                    return After::Changed;
                }
                Err(reason) if Instant::now() >= deadline => break reason,
                // The chain may show us its newest block a little later than others.
                Err(_) => {
                    let pause = CONFIRM_INTERVAL.min(self.config.confirm_patience);
                    // Either is a reason to look again.
                    let _ = timeout(pause, slot.wake.notified()).await;
                }
            }
            if slot.record().standing == Standing::Cancelled {
                return After::Changed;
            }
        };
        self.reject(slot, version, reason).await;
        After::Changed
    }

    /// Whether a contract pays for a version; if so, where it stands.
    fn judge(
        &self,
        slot: &Slot,
        version: u32,
        contract: Option<Contract>,
    ) -> Result<ContractState, String> {
        let absent = || "failed to get deployment contract".to_owned();
        let contract = contract.filter(|contract| contract.state != ContractState::Deleted);
        let contract = contract.ok_or_else(absent)?;
        let Subject::Node { node_id, hash } = &contract.subject else {
            return Err("invalid contract type, expecting node contract".to_owned());
        };
        if *node_id != self.config.node_id {
            return Err("invalid node address in contract".to_owned());
        }
        let body = slot.record().bodies.get(&version).cloned().ok_or_else(absent)?;
        let checked = body.check_contract(hash, contract.twin_id);
        checked.map(|()| contract.state).map_err(|error| error.to_string())
    }

    /// The chain has no contract for a version: what it would have changed is as it was.
    async fn reject(&self, slot: &Slot, version: u32, reason: String) {
        info!(deployment = %slot.key, version, reason, "rejected");
        let mut entries = Vec::new();
        {
            let record = slot.record();
            let Some(body) = record.bodies.get(&version) else { return };
            for workload in &body.deployment().workloads {
                let Some(place) = record.place(&workload.name) else { continue };
                if place.pending == Some(version) {
                    let is_there = place.running.is_some();
                    let state = if is_there { State::Unchanged } else { State::Error };
                    let (name, result) = (workload.name.clone(), result(state, reason.clone()));
                    entries.push(Entry::Workload { name, version, result });
                }
            }
        }
        entries.push(Entry::Rejected { version, reason });
        self.note(slot, entries).await;
    }

    async fn add(&self, slot: &Slot, task: Task) -> After {
        let made = match self.prerequisites(slot, task.workload()) {
            Err(reason) => Err(reason),
            Ok(()) => {
                let made = self.on_host(slot, self.host.provision(task.clone())).await;
                made.map_err(|error| error.0).and_then(checked)
            }
        };
        match made {
            Ok(data) => {
                let result = WorkloadResult { data, ..result(State::Ok, "") };
                self.note_workload(slot, &task, result).await;
            }
            Err(reason) => {
                // The host takes down what it could not make, unless the program ended before it came to
                // that, and this is the next one. Done before it is noted, so that the next but one knows.
                let name = &task.workload().name;
                let removed = self.remove(slot, name).await;
                self.note_workload(slot, &task, result(State::Error, reason)).await;
                slot.record().set_left(name, removed.is_err());
            }
        }
        After::Changed
    }

    async fn update_workload(&self, slot: &Slot, old: Task, new: Task) -> After {
        let made = match self.prerequisites(slot, new.workload()) {
            Err(reason) => Err(UpdateError::Unchanged(reason)),
            Ok(()) => {
                let made = self.on_host(slot, self.host.update(old, new.clone())).await;
                made.and_then(|data| checked(data).map_err(UpdateError::Lost))
            }
        };
        let result = match made {
            Ok(data) => WorkloadResult { data, ..result(State::Ok, "") },
            Err(UpdateError::Unchanged(reason)) => result(State::Unchanged, reason),
            Err(UpdateError::Lost(reason)) => result(State::Error, reason),
        };
        self.note_workload(slot, &new, result).await;
        After::Changed
    }

    /// Makes again what was lost. It ran once, so what fails now is the host's trouble, and passes.
    pub(super) async fn restore_workload(&self, slot: &Slot, task: Task) -> After {
        match self.on_host(slot, self.host.provision(task.clone())).await {
            Ok(data) => {
                info!(workload = %task.id(), "made again");
                let result = WorkloadResult { data, ..result(State::Ok, "") };
                // A workload that waits for a change goes on waiting.
                let pending = slot.record().place(&task.workload().name).and_then(|place| {
                    let (version, result) = place.shown()?;
                    (place.pending == Some(*version)).then(|| (*version, result.clone()))
                });
                let name = || task.workload().name.clone();
                let version = task.workload().version;
                let mut entries = vec![Entry::Workload { name: name(), version, result }];
                entries.extend(pending.map(|(version, result)| Entry::Workload {
                    name: name(),
                    version,
                    result,
                }));
                self.note(slot, entries).await;
                After::Changed
            }
            Err(error) => {
                warn!(workload = %task.id(), %error, "not made again");
                slot.record().set_failed(&task.workload().name);
                After::Again(error.0)
            }
        }
    }

    async fn paused(
        &self,
        slot: &Slot,
        task: &Task,
        done: Result<(), HostError>,
        state: State,
    ) -> After {
        if let Err(error) = done {
            warn!(workload = %task.id(), %error, %state, "not so");
            return After::Again(error.0);
        }
        let last = slot
            .record()
            .place(&task.workload().name)
            .and_then(|place| place.shown().map(|(_, result)| result.data.clone()));
        let message = if state == State::Paused { "paused" } else { "" };
        let result = WorkloadResult { data: last.unwrap_or_default(), ..result(state, message) };
        self.note_workload(slot, task, result).await;
        After::Changed
    }

    async fn note_workload(&self, slot: &Slot, task: &Task, result: WorkloadResult) {
        let workload = task.workload();
        info!(workload = %task.id(), state = %result.state, message = result.message, "settled");
        let (name, version) = (workload.name.clone(), workload.version);
        self.note(slot, vec![Entry::Workload { name, version, result }]).await;
    }

    /// Tells the chain what a deployment takes.
    async fn report(&self, slot: &Slot) -> After {
        let used = slot.record().used();
        let report = vec![(slot.key.contract_id, used)];
        match self.ledger.report_resources(report).await {
            Err(LedgerError::Unreachable(reason)) => return After::Again(reason),
            // The chain's reasons don't pass: the contract may be over by now.
            Err(LedgerError::Refused(reason)) => {
                warn!(deployment = %slot.key, reason, "the chain takes no report");
            }
            Ok(()) => {}
        }
        let mut record = slot.record();
        // Something may have changed while it was reported.
        record.is_unreported = record.used() != used;
        After::Changed
    }

    /// Forgets a deployment of which nothing is on the host.
    pub(super) async fn forget(&self, slot: &Slot) -> Result<(), StoreError> {
        let key = slot.key;
        let store = Arc::clone(&self.store);
        super::blocking(move || store.remove(key)).await?;
        lock(&self.deployments).remove(&key);
        info!(deployment = %key, "forgotten");
        // Its task may rest, and ends then.
        slot.wake.notify_one();
        Ok(())
    }

    fn is_forgotten(&self, slot: &Arc<Slot>) -> bool {
        !self.slot(slot.key).is_some_and(|current| Arc::ptr_eq(&current, slot))
    }

    /// What a workload needs of others, and of the node.
    fn prerequisites(&self, slot: &Slot, workload: &Workload) -> Result<(), String> {
        let mounts: &[Mount] = match &workload.data {
            WorkloadData::ZMachine(machine) => &machine.mounts,
            WorkloadData::ZMachineLight(machine) => &machine.mounts,
            _ => &[],
        };
        for mount in mounts {
            let is_there =
                slot.record().place(&mount.name).is_some_and(|place| place.running.is_some());
            if !is_there {
                return Err(format!("invalid disk '{}' state", mount.name));
            }
        }
        // What was begun is among what is in use, and would not fit a second time.
        let is_begun = slot.record().place(&workload.name).is_some_and(|place| place.is_begun);
        if is_begun { Ok(()) } else { self.check_memory(slot, workload) }
    }
}

/// A result that is not too large to be kept.
fn checked(data: RawJson) -> Result<RawJson, String> {
    let size = data.as_str().len();
    if size > RESULT_SIZE_MAX {
        return Err(format!("its result has {size} bytes, and at most {RESULT_SIZE_MAX} are kept"));
    }
    Ok(data)
}
