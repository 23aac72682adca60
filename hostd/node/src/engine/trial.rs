//! What would come of a deployment, without doing any of it.
//!
//! A client finds out most mistakes only after it paid for a contract, in the states of workloads. This
//! makes the same checks before: of the message, of what this node runs, of names, of memory and disks;
//! and it says the hash that the contract is to have. A signature is not needed yet, but one that is
//! there is checked. Whether there will be room when the contract is made, nobody can promise.

use std::collections::BTreeSet;

use hostd_grid::capacity::Capacity;
use hostd_grid::challenge::Form;
use hostd_grid::deployment::VerifyError;
use hostd_grid::{Name, SignedDeployment, TwinId, WorkloadData};
use serde::Serialize;

use super::accept::AcceptError;
use super::{Engine, Shared};
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
        let workloads: Vec<_> = { signed.deployment().workloads.iter() }
            .filter_map(|workload| Some((workload.name.clone(), workload.data.as_ref().ok()?)))
            .collect();
        let mut capacity = Capacity::default();
        workloads.iter().for_each(|(_, data)| capacity += data.capacity());

        let key = Key { twin_id: sender, contract_id: signed.contract_id() };
        let mut problems = Vec::new();
        if let Err(error) = self.shared.check_verified(sender).await {
            problems.push(error.to_string());
        }
        if self.shared.slot(key).is_none()
            && let Err(error) = self.shared.check_room(sender)
        {
            problems.push(error.to_string());
        }
        problems.extend(self.shared.problems(key, &workloads, capacity));
        let hash = hash.to_string();
        Ok(Trial { hash, is_signed, is_possible: problems.is_empty(), problems, capacity })
    }
}

impl Shared {
    /// What this node has against these workloads.
    fn problems(
        &self,
        key: Key,
        workloads: &[(Name, &WorkloadData)],
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
        for (kind, needed) in [("ssd", capacity.sru), ("hdd", capacity.hru)] {
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
