//! How one version of a deployment becomes the next.
//!
//! An update is a whole deployment again. A workload whose version is the new deployment's is added, or
//! changed if there is one of its name; one with an older version stays exactly as it runs, *whatever its
//! data says now*; one that is missing is taken down. So what runs is not always what the newest
//! deployment describes: whoever keeps the state of a workload keeps its data too.

use std::collections::BTreeMap;

use super::{Deployment, ValidationError};
use crate::id::Name;
use crate::workload::{Workload, WorkloadType};

/// One step from a version of a deployment to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// A workload that is new.
    Add(&'a Workload),
    /// A workload that is there and becomes this.
    Update(&'a Workload),
    /// A workload, of the older version, that goes.
    Remove(&'a Workload),
}

impl<'a> Change<'a> {
    /// The workload that comes, changes or goes.
    pub fn workload(&self) -> &'a Workload {
        match self {
            Self::Add(workload) | Self::Update(workload) | Self::Remove(workload) => workload,
        }
    }
}

/// Why a deployment can't be the first of its contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected version to be 0 on deployment creation: invalid version")]
pub struct CreateError;

/// Why a deployment can't follow another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum UpgradeError {
    #[error("new deployment is invalid: {0}")]
    Invalid(#[from] ValidationError),
    #[error("cannot change deployment or twin id")]
    Identity,
    #[error("expecting deployment version {expected}, got {got}")]
    Version { expected: u64, got: u32 },
    #[error("invalid version number for workload '{name}' expected '{expected}'")]
    WorkloadVersion { name: Name, expected: u32 },
    #[error("cannot change workload type '{0}'")]
    Type(Name),
    #[error("workload '{0}' does not support upgrade")]
    Fixed(WorkloadType),
}

impl UpgradeError {
    /// The text that clients of existing nodes get.
    pub fn to_wire(&self) -> String {
        format!("{self}: upgrade validation error")
    }
}

impl Deployment {
    /// The steps from this deployment, which runs, to `new`: additions and changes in the order of `new`,
    /// then removals in the order of this one. In which order they are done is for the plan to say.
    ///
    /// # Errors
    ///
    /// `new` can't follow this deployment.
    pub fn changes_to<'a>(&'a self, new: &'a Self) -> Result<Vec<Change<'a>>, UpgradeError> {
        new.validate()?;
        if self.twin_id != new.twin_id || self.contract_id != new.contract_id {
            return Err(UpgradeError::Identity);
        }
        // In 64 bits there is always a next version, even if no deployment can have it.
        let expected = u64::from(self.version) + 1;
        if expected != u64::from(new.version) {
            return Err(UpgradeError::Version { expected, got: new.version });
        }
        let mut old: BTreeMap<&Name, &Workload> =
            self.workloads.iter().map(|workload| (&workload.name, workload)).collect();
        let mut changes = Vec::new();
        for workload in &new.workloads {
            changes.extend(change(old.remove(&workload.name), workload, new.version)?);
        }
        let gone = self.workloads.iter().filter(|workload| old.contains_key(&workload.name));
        changes.extend(gone.map(Change::Remove));
        let fixed = changes.iter().find_map(|change| match change {
            Change::Update(workload) => {
                Some(workload.data.kind()).filter(|kind| !kind.is_updatable())
            }
            Change::Add(_) | Change::Remove(_) => None,
        });
        fixed.map_or(Ok(changes), |kind| Err(UpgradeError::Fixed(kind)))
    }
}

fn change<'a>(
    old: Option<&Workload>,
    new: &'a Workload,
    version: u32,
) -> Result<Option<Change<'a>>, UpgradeError> {
    let is_new_version = new.version == version;
    match old {
        None if is_new_version => Ok(Some(Change::Add(new))),
        None => Err(UpgradeError::WorkloadVersion { name: new.name.clone(), expected: version }),
        Some(old) if old.data.kind() != new.data.kind() => {
            Err(UpgradeError::Type(new.name.clone()))
        }
        Some(_) => Ok(is_new_version.then_some(Change::Update(new))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{WorkloadData, WorkloadResult, ZMount};
    use crate::{ContractId, TwinId};

    fn disk(name: &str, version: u32) -> Workload {
        Workload {
            version,
            name: Name::new(name),
            data: WorkloadData::ZMount(ZMount { size: 1 }),
            metadata: String::new(),
            description: String::new(),
            result: WorkloadResult::default(),
        }
    }

    fn deployment(version: u32, workloads: Vec<Workload>) -> Deployment {
        let (twin_id, contract_id) = (TwinId(1), ContractId(2));
        Deployment { version, twin_id, contract_id, workloads, ..Deployment::default() }
    }

    #[test]
    fn a_machine_cannot_be_updated() {
        let machine = |version| {
            let mut machine = crate::workload::ZMachine::default();
            machine.network.interfaces.push(crate::workload::Interface {
                network: Name::new("net"),
                ip: "10.1.1.2".parse::<std::net::IpAddr>().unwrap().into(),
            });
            machine.compute_capacity = crate::workload::ComputeCapacity { cpu: 1, memory: 1 << 30 };
            Workload { data: WorkloadData::ZMachine(machine), ..disk("vm", version) }
        };
        let (old, new) = (deployment(0, vec![machine(0)]), deployment(1, vec![machine(1)]));
        let error = old.changes_to(&new).unwrap_err();
        let text = "workload 'zmachine' does not support upgrade: upgrade validation error";
        assert_eq!(error.to_wire(), text);
        let kept = deployment(1, vec![machine(0)]);
        assert_eq!(old.changes_to(&kept), Ok(Vec::new()));
    }

    #[test]
    fn the_last_version_has_no_next() {
        let old = deployment(u32::MAX, vec![disk("a", 0)]);
        let error = old.changes_to(&deployment(0, vec![disk("a", 0)])).unwrap_err();
        assert_eq!(error.to_string(), "expecting deployment version 4294967296, got 0");
    }

    #[test]
    fn removals_come_last_in_their_old_order() {
        let old = deployment(0, vec![disk("b", 0), disk("a", 0), disk("c", 0)]);
        let new = deployment(1, vec![disk("d", 1), disk("c", 1)]);
        let expected = [
            Change::Add(&new.workloads[0]),
            Change::Update(&new.workloads[1]),
            Change::Remove(&old.workloads[0]),
            Change::Remove(&old.workloads[1]),
        ];
        assert_eq!(old.changes_to(&new).unwrap(), expected);
    }

    #[test]
    fn an_invalid_deployment_follows_nothing() {
        let old = deployment(0, Vec::new());
        let error = old.changes_to(&deployment(1, vec![disk("a-b", 1)])).unwrap_err();
        let text = "new deployment is invalid: name 'a-b' is invalid: unsupported character in \
                    workload name";
        assert_eq!(error.to_string(), text);
    }
}
