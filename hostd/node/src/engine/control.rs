//! What happens to machines beside their contracts: owners stop and start them, and use their consoles, and hosts give up on
//! those that crash again and again.

use hostd_grid::workload::{State, WorkloadData};
use hostd_grid::{ContractId, Name, TwinId, WorkloadType};
use tracing::{info, warn};

use super::{Engine, result};
use crate::host::{Console, HostError, MachineAction, Task};
use crate::store::{Entry, Key};

/// Why nothing was done to a machine. The texts reach its owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum ControlError {
    #[error("deployment not found")]
    Absent,
    #[error("there is no workload '{0}' that runs")]
    NotRunning(Name),
    #[error("workload '{name}' is a {kind}, not a machine")]
    NoMachine { name: Name, kind: WorkloadType },
    #[error("'{0}' is paused until its contract is paid")]
    Paused(Name),
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Engine {
    /// Starts or stops a machine of that twin.
    ///
    /// # Errors
    ///
    /// It is none, it is paused, or the host can't.
    pub async fn control(
        &self,
        twin_id: TwinId,
        contract_id: ContractId,
        name: &Name,
        action: MachineAction,
    ) -> Result<(), ControlError> {
        let task = self.machine(twin_id, contract_id, name)?;
        info!(workload = %task.id(), ?action, "its owner wants it");
        let _turn = self.shared.turns.take(twin_id).await;
        Ok(self.shared.host.control(task, action).await?)
    }

    /// Lets that twin use the console of one of its machines.
    ///
    /// # Errors
    ///
    /// It is none, it is paused, or the host can't.
    pub async fn console(
        &self,
        twin_id: TwinId,
        contract_id: ContractId,
        name: &Name,
    ) -> Result<Console, ControlError> {
        let task = self.machine(twin_id, contract_id, name)?;
        Ok(self.shared.host.console(task).await?)
    }

    /// Takes down machines that the host has given up. Their owners see why, and they are not made again.
    ///
    /// # Errors
    ///
    /// The host does not say which.
    pub async fn take_down_fallen(&self) -> Result<(), HostError> {
        for (id, reason) in self.shared.host.fallen().await? {
            // What its guest said is for its owner alone.
            warn!(workload = %id, reason = reason.lines().next(), "given up");
            let key = Key { twin_id: id.twin_id, contract_id: id.contract_id };
            if let Some(slot) = self.shared.slot(key) {
                let running = slot.record().place(&id.name).and_then(|place| place.running);
                // Noted before it is gone, so that after a crash it is not taken for lost.
                if let Some(version) = running {
                    let message = format!("workload decommissioned by system, reason: {reason}");
                    let result = result(State::Deleted, message);
                    let name = id.name.clone();
                    self.shared.note(&slot, vec![Entry::Workload { name, version, result }]).await;
                }
                // The deployment's task removes it, again and again until that succeeds.
                slot.record().find(id.name);
                slot.wake.notify_one();
                continue;
            }
            let _turn = self.shared.turns.take(id.twin_id).await;
            if let Err(error) = self.shared.host.remove(id.clone()).await {
                // It is still given up when this is asked again.
                warn!(workload = %id, %error, "not removed");
            }
        }
        Ok(())
    }

    /// Waits until no step is under way, and lets none begin.
    pub async fn rest(&self) {
        self.shared.turns.end().await;
    }

    fn machine(
        &self,
        twin_id: TwinId,
        contract_id: ContractId,
        name: &Name,
    ) -> Result<Task, ControlError> {
        let slot = self.shared.slot(Key { twin_id, contract_id }).ok_or(ControlError::Absent)?;
        let record = slot.record();
        let mut running = record.running();
        let found = running.find(|(running, ..)| *running == name);
        let not_running = || ControlError::NotRunning(name.clone());
        let (_, workload, place) = found.ok_or_else(not_running)?;
        if !matches!(workload.data, WorkloadData::ZMachine(_) | WorkloadData::ZMachineLight(_)) {
            let (name, kind) = (name.clone(), workload.data.kind());
            return Err(ControlError::NoMachine { name, kind });
        }
        if place.is_paused || record.is_in_grace {
            return Err(ControlError::Paused(name.clone()));
        }
        let version = place.running.ok_or_else(not_running)?;
        record.task(version, name).ok_or_else(not_running)
    }
}
