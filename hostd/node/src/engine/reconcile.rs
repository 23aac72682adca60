//! Everything compared: deployments with the chain's contracts, and both with what is on the host.
//!
//! At start, and then from time to time, since events get lost and hosts lose things. Whoever compares
//! must not be fooled by half an answer: if the chain does not answer, its half is left out; a
//! deployment goes only when its contract is neither in the list of the node nor there by its number;
//! and what is on the host goes only when its deployment is surely unknown, not when it can't be read or
//! was lost with the disk that it was on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hostd_grid::derived::WorkloadId;
use hostd_grid::{ContractId, Name, WorkloadType};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::record::{Presence, Standing};
use super::{Engine, Shared, Slot, now};
use crate::host::HostError;
use crate::ledger::{ContractState, LedgerError};
use crate::store::{Entry, Key};

/// How long it can be seen why a deployment was rejected, in seconds.
const REJECTED_TIME: i64 = 3600;
/// How long the chain is waited for before what is on the host is left alone. Starts wait for it, too.
const STRAY_TIME_MAX: Duration = Duration::from_secs(10);

/// Why a comparison is not complete. What was not compared stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The chain's half.
    #[error("contracts were not compared: {0}")]
    Ledger(#[from] LedgerError),
    /// The host's half.
    #[error("workloads were not compared: {0}")]
    Host(#[from] HostError),
}

impl Engine {
    /// Compares everything, and sets going what follows from it.
    ///
    /// # Errors
    ///
    /// A part could not be compared; the other was.
    pub async fn reconcile(&self) -> Result<(), ReconcileError> {
        let host = self.shared.compare_host().await;
        for slot in self.shared.slots() {
            slot.wake.notify_one();
        }
        self.shared.compare_contracts().await?;
        self.shared.forget_rejected().await;
        Ok(host?)
    }
}

impl Shared {
    /// Makes again what the host has lost: all disks, then all networks, and so on, since deployments
    /// stand on one another's. On namespaces nothing stands, and their servers may be slow to start: those
    /// are left to the tasks of their deployments.
    pub(super) async fn restore(self: &Arc<Self>) {
        if let Err(error) = self.compare_host().await {
            warn!(%error, "what the host has lost is not known");
            return;
        }
        let mut missing = Vec::new();
        for slot in self.slots() {
            let mut tasks = slot.record().restorations();
            tasks.retain(|(_, task)| task.workload().data.kind() != WorkloadType::Zdb);
            missing.extend(tasks.into_iter().map(|(rank, task)| (rank.0, Arc::clone(&slot), task)));
        }
        missing.sort_by_key(|(rank, ..)| *rank);
        if !missing.is_empty() {
            info!(count = missing.len(), "workloads are made again");
        }
        for group in missing.chunk_by(|(a, ..), (b, ..)| a == b) {
            let mut making = JoinSet::new();
            for (_, slot, task) in group.iter().cloned() {
                let shared = Arc::clone(self);
                making.spawn(async move {
                    // What fails is tried again by the deployment's own task.
                    shared.restore_workload(&slot, task).await;
                });
            }
            while making.join_next().await.is_some() {}
        }
    }

    /// Compares what should be on the host with what is there, and removes what nobody knows.
    async fn compare_host(&self) -> Result<(), HostError> {
        // What changes while the host counts may or may not be counted: only what was so before counts.
        let before: Vec<_> = self.slots().into_iter().map(|slot| (slot.expected(), slot)).collect();
        let whole: BTreeSet<_> = self.host.inventory().await?.into_iter().collect();
        let parts: BTreeSet<_> = self.host.remains().await?.into_iter().collect();
        for (expected, slot) in before {
            let Key { twin_id, contract_id } = slot.key;
            let id = |name: &Name| WorkloadId { twin_id, contract_id, name: name.clone() };
            slot.record().compare(&expected, |name| match id(name) {
                id if whole.contains(&id) => Presence::Whole,
                id if parts.contains(&id) => Presence::Part,
                _ => Presence::Absent,
            });
        }
        let mut strays = Vec::new();
        for id in whole.union(&parts) {
            let key = Key { twin_id: id.twin_id, contract_id: id.contract_id };
            if self.damaged.contains(&key) {
                continue;
            }
            let Some(slot) = self.slot(key) else {
                strays.push(id.clone());
                continue;
            };
            // Of what it knows, it knows by now. Its own task removes the rest, between its other steps.
            let mut record = slot.record();
            if record.place(&id.name).is_none() {
                record.find(id.name.clone());
                slot.wake.notify_one();
            }
        }
        self.remove_strays(strays).await;
        Ok(())
    }

    /// Removes what no deployment knows, unless the chain says that somebody pays for it: a node that lost
    /// the disk with its deployments must not remove what its other disks hold of them.
    async fn remove_strays(&self, strays: Vec<WorkloadId>) {
        if strays.is_empty() {
            return;
        }
        let asked = timeout(STRAY_TIME_MAX, self.ledger.active_contracts()).await;
        let active: BTreeSet<ContractId> = match asked {
            Ok(Ok(active)) => active.into_iter().collect(),
            Ok(Err(error)) => return warn!(%error, "what nobody reserved stays for now"),
            Err(_) => {
                return warn!("what nobody reserved stays for now: the chain does not answer");
            }
        };
        for id in strays {
            if active.contains(&id.contract_id) {
                error!(workload = %id, "its contract is active and its deployment is lost: left alone");
                continue;
            }
            warn!(workload = %id, "nobody reserved it: removed");
            if let Err(error) = self.host.remove(id.clone()).await {
                warn!(workload = %id, %error, "not removed");
            }
        }
    }

    /// Compares deployments with contracts.
    async fn compare_contracts(&self) -> Result<(), LedgerError> {
        let active: BTreeSet<ContractId> =
            self.ledger.active_contracts().await?.into_iter().collect();
        let mut slots = self.slots();
        slots.retain(|slot| matches!(slot.record().standing, Standing::Confirmed(_)));
        let ids = slots.iter().map(|slot| slot.key.contract_id).collect();
        let found = self.ledger.contracts(ids).await?.into_iter();
        let states: BTreeMap<_, _> = found.map(|contract| (contract.id, contract.state)).collect();
        for slot in slots {
            let state = states.get(&slot.key.contract_id).copied();
            let state = state.unwrap_or(ContractState::Deleted);
            match state {
                ContractState::Deleted if !active.contains(&slot.key.contract_id) => {
                    self.cancel(&slot, "contract not active on chain").await;
                }
                ContractState::Deleted => {
                    warn!(deployment = %slot.key, "the chain contradicts itself: nothing is done");
                }
                ContractState::Created => self.set_grace(&slot, false).await,
                ContractState::Grace => self.set_grace(&slot, true).await,
            }
        }
        Ok(())
    }

    /// Forgets deployments that were rejected some time ago.
    async fn forget_rejected(&self) {
        let _accepting = self.accepting.lock().await;
        for slot in self.slots() {
            if !slot.is_old_reject(now() - REJECTED_TIME) {
                continue;
            }
            if let Err(error) = self.forget(&slot).await {
                warn!(deployment = %slot.key, %error, "not forgotten");
            }
        }
    }
}

impl Slot {
    fn expected(&self) -> (BTreeSet<Name>, BTreeSet<Name>) {
        self.record().expected()
    }

    /// Whether it was rejected, and nothing was new since then.
    fn is_old_reject(&self, time: i64) -> bool {
        let record = self.record();
        let last = record.history.iter().rev().find_map(|entry| match entry {
            Entry::Workload { result, .. } => Some(result.created.0),
            _ => None,
        });
        record.standing == Standing::Rejected && last.is_none_or(|last| last < time)
    }
}
