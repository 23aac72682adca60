//! What would come of a deployment, without doing any of it.
//!
//! A client finds out most mistakes only after it paid for a contract, in the states of workloads. This
//! makes the same checks before: of the message, of what may follow on what runs, of what this node runs,
//! of names, of memory and disks, and of what the machine itself has against a workload: a mount that is
//! no disk, an image that can't be had. And it says the hash that the contract is to have. A signature is
//! not needed yet, but one that is there is checked. Whether there will be room when the contract is made,
//! nobody can promise.

use std::collections::BTreeSet;

use hostd_grid::capacity::Capacity;
use hostd_grid::challenge::Form;
use hostd_grid::deployment::VerifyError;
use hostd_grid::workload::ReadData;
use hostd_grid::{Deployment, Name, SignedDeployment, TwinId, Workload, WorkloadData};
use serde::Serialize;

use super::accept::AcceptError;
use super::record::Standing;
use super::{Engine, Shared, Slot};
use crate::store::Key;

/// What would come of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// The hash that its contract is to have.
    pub hash: String,
    /// Whether all signatures are there that it asks for.
    pub is_signed: bool,
    /// Whether it would run, as things are.
    pub is_possible: bool,
    /// Why not, a sentence each.
    pub problems: Vec<String>,
    /// What it takes.
    pub capacity: Capacity,
}

impl Engine {
    /// Checks a deployment that `sender` may want.
    ///
    /// # Errors
    ///
    /// It is no deployment, or breaks a rule, and would be refused with the same words.
    pub async fn validate(&self, sender: TwinId, message: &[u8]) -> Result<Trial, AcceptError> {
        let signed = SignedDeployment::read(message)?;
        signed.validate()?;
        signed.check_sender(sender)?;
        let is_signed = !signed.deployment().signature_requirement.signatures.is_empty();
        let hash = if is_signed {
            let keys =
                self.shared.ledger.keys(signed.signers()).await.map_err(AcceptError::Keys)?;
            signed.verify_signatures(&keys)?.1
        } else {
            signed.deployment().hash(Form::Current).map_err(VerifyError::from)?
        };
        let workloads = read_workloads(&signed);
        let mut capacity = Capacity::default();
        workloads.iter().for_each(|(_, data)| capacity += data.capacity());

        let key = Key { twin_id: sender, contract_id: signed.contract_id() };
        let mut problems = Vec::new();
        problems.extend(self.shared.check_fit().err().map(|error| error.to_string()));
        if let Err(error) = self.shared.check_verified(sender).await {
            problems.push(error.to_string());
        }
        let room = match self.shared.slot(key) {
            Some(slot) => slot.check_successor(&signed),
            None => self.shared.check_room(sender),
        };
        problems.extend(room.err().map(|error| error.to_string()));
        problems.extend(self.shared.problems(key, &workloads, capacity));
        problems.extend(self.shared.host.examine(workloads).await);
        let hash = hash.to_string();
        Ok(Trial { hash, is_signed, is_possible: problems.is_empty(), problems, capacity })
    }
}

/// Workloads that could be read: all of them, once the rules were checked.
fn read_workloads(signed: &SignedDeployment) -> Vec<(Name, WorkloadData)> {
    let workloads = signed.deployment().workloads.iter();
    let read = |workload: &Workload<_>| Some((workload.name.clone(), data_of(workload)?));
    workloads.filter_map(read).collect()
}

fn data_of(workload: &Workload<ReadData>) -> Option<WorkloadData> {
    workload.data.as_ref().ok().cloned()
}

impl Slot {
    /// Whether it can be the next version of the deployment, or is the same.
    fn check_successor(&self, signed: &SignedDeployment) -> Result<(), AcceptError> {
        let record = self.record();
        if record.is_over() {
            return Err(AcceptError::Absent);
        }
        let newest = record.newest();
        if newest.original() == signed.original() || record.standing == Standing::Rejected {
            return Ok(());
        }
        let sent = signed.deployment();
        let workloads = sent.workloads.iter().filter_map(|workload| {
            let Workload { version, name, metadata, description, result, .. } = workload.clone();
            Some(Workload {
                version,
                name,
                metadata,
                description,
                result,
                data: data_of(workload)?,
            })
        });
        let next = Deployment {
            version: sent.version,
            twin_id: sent.twin_id,
            contract_id: sent.contract_id,
            metadata: sent.metadata.clone(),
            description: sent.description.clone(),
            expiration: sent.expiration,
            signature_requirement: sent.signature_requirement.clone(),
            workloads: workloads.collect(),
        };
        newest.deployment().changes_to(&next)?;
        match record.is_unconfirmed() {
            true => Err(AcceptError::Waiting(record.version())),
            false => Ok(()),
        }
    }

    /// What the deployment has already.
    fn used(&self) -> Capacity {
        self.record().used()
    }
}

impl Shared {
    /// What this node has against these workloads.
    fn problems(
        &self,
        key: Key,
        workloads: &[(Name, WorkloadData)],
        capacity: Capacity,
    ) -> Vec<String> {
        let kinds: BTreeSet<_> = workloads.iter().map(|(_, data)| data.kind().name()).collect();
        let supported = self.host.supported().iter().chain(self.host.tolerated());
        let supported: BTreeSet<_> = supported.map(|kind| kind.name()).collect();
        let mut problems: Vec<_> = kinds
            .difference(&supported)
            .map(|kind| format!("this node does not support workloads of type '{kind}' yet"))
            .collect();
        let shared = workloads.iter().filter(|(_, data)| data.kind().is_shared());
        let shared: Vec<_> = shared.map(|(name, _)| name.clone()).collect();
        if let Some(name) = self.taken_name(key, &shared) {
            problems.push(AcceptError::Conflict(name.to_string()).to_string());
        }
        problems.extend(self.check_memory_size(capacity.mru, |other, _| other != key).err());
        let used = self.slot(key).map(|slot| slot.used()).unwrap_or_default();
        for (kind, needed, used) in
            [("ssd", capacity.sru, used.sru), ("hdd", capacity.hru, used.hru)]
        {
            let needed = needed.saturating_sub(used);
            let pools = self.host.pools().into_iter().filter(|pool| pool.kind == kind);
            let free = pools
                .fold(0_u64, |sum, pool| sum.saturating_add(pool.size.saturating_sub(pool.used)));
            if needed > free {
                problems.push(format!(
                    "not enough space left in pools of this type {kind}: {needed} bytes out of \
                     {free} bytes"
                ));
            }
        }
        problems
    }
}
