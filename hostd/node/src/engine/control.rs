//! What an owner may do to a machine beside its contract: stop it, start it.

use hostd_grid::workload::WorkloadData;
use hostd_grid::{ContractId, Name, TwinId, WorkloadType};
use tracing::info;

use super::Engine;
use crate::host::{HostError, MachineAction, Task};
use crate::store::Key;

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
        let _turn = self.shared.steps.acquire().await;
        Ok(self.shared.host.control(task, action).await?)
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
