//! What owners and everybody may know of deployments, in the JSON that clients read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostd_grid::capacity::Capacity;
use hostd_grid::timestamp::Timestamp;
use hostd_grid::workload::{Interface, SentData, State, WorkloadData};
use hostd_grid::{ContractId, Deployment, Name, TwinId, Workload, WorkloadType};
use serde::Serialize;
use serde_json::Value;

use super::record::{Record, Standing};
use super::{Engine, Shared, Slot};
use crate::host::Resources;
use crate::store::{Entry, Key};

/// What a node has, and what is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// All there is.
    pub total: Capacity,
    /// What workloads and the node itself take.
    pub used: Capacity,
    /// What the node itself takes.
    pub system: Capacity,
    /// How much is going on.
    pub users: Users,
    /// Connections to gateways.
    pub open_connections: u64,
}

/// How much is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Users {
    /// Deployments with something that runs.
    pub deployments: usize,
    /// Workloads that run.
    pub workloads: usize,
    /// When the last one was made, in seconds since 1970; 0 if never.
    pub last_deployment_timestamp: i64,
}

/// A deployment, without anything that its owner alone may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// Whose it is.
    pub twin_id: u32,
    /// Its contract.
    pub contract_id: u64,
    /// Its newest version.
    pub version: u32,
    /// How its contract stands: `paid`, `not paid`, `not confirmed`, `rejected` or `over`.
    pub contract: &'static str,
    /// Its workloads.
    pub workloads: Vec<WorkloadOverview>,
}

/// A workload, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadOverview {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The version in which it was added or last changed.
    pub version: u32,
    /// Its state.
    pub state: &'static str,
    /// Since when, in seconds since 1970.
    pub since: i64,
    /// Why.
    pub message: String,
}

impl Engine {
    /// A deployment of that twin, as its owner may see it: as it was sent, and what became of it.
    pub fn get(&self, twin_id: TwinId, contract_id: ContractId) -> Option<Deployment<SentData>> {
        let slot = self.shared.slot(Key { twin_id, contract_id })?;
        let record = slot.record();
        Some(record.shown())
    }

    /// All deployments of that twin of which something runs, or is about to.
    pub fn list(&self, twin_id: TwinId) -> Vec<Deployment<SentData>> {
        let slots = self.shared.slots().into_iter().filter(|slot| slot.key.twin_id == twin_id);
        let shown = slots.map(|slot| slot.record().shown());
        let is_alive = |workload: &Workload<SentData>| {
            !matches!(workload.result.state, State::Deleted | State::Error)
        };
        shown.filter(|deployment| deployment.workloads.iter().any(is_alive)).collect()
    }

    /// What happened to a deployment's workloads, in order.
    pub fn changes(
        &self,
        twin_id: TwinId,
        contract_id: ContractId,
    ) -> Option<Vec<Workload<SentData>>> {
        let slot = self.shared.slot(Key { twin_id, contract_id })?;
        let record = slot.record();
        let sent = record.sent();
        let changes = record.history.iter().filter_map(|entry| match entry {
            Entry::Workload { name, version, result } => {
                // The body of an old version may be gone, and that of a rejected one always is: what
                // came after it tells best, else what it was to replace.
                let after = sent.range(*version..);
                let mut versions = after.chain(sent.range(..*version).rev());
                let workload = versions.find_map(|(_, body)| workload_of(body, name))?;
                Some(Workload { version: *version, result: result.clone(), ..workload.clone() })
            }
            _ => None,
        });
        Some(changes.collect())
    }

    /// Addresses of that twin's machines on one of its networks.
    pub fn private_addresses(&self, twin_id: TwinId, network: &Name) -> Vec<IpAddr> {
        let mut addresses = BTreeSet::new();
        for slot in self.shared.slots().iter().filter(|slot| slot.key.twin_id == twin_id) {
            let record = slot.record();
            for (_, workload, _) in record.running() {
                let interfaces: &[Interface] = match &workload.data {
                    WorkloadData::ZMachine(machine) => &machine.network.interfaces,
                    WorkloadData::ZMachineLight(machine) => &machine.network.interfaces,
                    _ => &[],
                };
                let on_it = interfaces.iter().filter(|interface| interface.network == *network);
                addresses.extend(on_it.filter_map(|interface| interface.ip.0));
            }
        }
        addresses.into_iter().collect()
    }

    /// Public addresses that workloads have, with their prefixes.
    pub fn public_addresses(&self) -> Vec<String> {
        let mut addresses = Vec::new();
        for slot in self.shared.slots() {
            let record = slot.record();
            for (_, workload, place) in record.running() {
                let is_public = matches!(
                    workload.data.kind(),
                    WorkloadType::PublicIp | WorkloadType::PublicIpv4
                );
                let shown = place.shown().filter(|_| is_public);
                let result = shown.map(|(_, result)| result).filter(|it| it.state == State::Ok);
                let data = result.map(|result| serde_json::from_str(result.data.as_str()));
                let Some(Ok(Value::Object(data))) = data else { continue };
                let texts = ["ip", "ip6"].into_iter().filter_map(|key| data.get(key)?.as_str());
                addresses.extend(texts.filter(|text| !text.is_empty()).map(str::to_owned));
            }
        }
        addresses
    }

    /// All deployments, for whoever looks after the machine: what and how, not what is in it.
    pub fn overview(&self) -> Vec<Overview> {
        self.shared.slots().into_iter().map(|slot| slot.record().overview()).collect()
    }

    /// One deployment, for the same.
    pub fn overview_of(&self, twin_id: TwinId, contract_id: ContractId) -> Option<Overview> {
        let slot = self.shared.slot(Key { twin_id, contract_id })?;
        let record = slot.record();
        Some(record.overview())
    }

    /// What there is, and what is taken.
    pub fn statistics(&self) -> Statistics {
        let Resources { total, system, .. } = self.shared.host.resources();
        let mut used = system;
        let mut users = Users { deployments: 0, workloads: 0, last_deployment_timestamp: 0 };
        for slot in self.shared.slots() {
            let record = slot.record();
            let count = record.running().count();
            users.deployments += usize::from(count > 0);
            users.workloads += count;
            let made = record.history.iter().find_map(|entry| match entry {
                Entry::Workload { result, .. } => Some(result.created.0),
                _ => None,
            });
            users.last_deployment_timestamp =
                users.last_deployment_timestamp.max(made.unwrap_or(0));
            used += record.used();
        }
        Statistics { total, used, system, users, open_connections: 0 }
    }
}

impl Record {
    fn overview(&self) -> Overview {
        let contract = match &self.standing {
            _ if self.is_in_grace => "not paid",
            Standing::Unconfirmed => "not confirmed",
            Standing::Confirmed(_) => "paid",
            Standing::Rejected => "rejected",
            Standing::Cancelled => "over",
        };
        let newest = &self.newest().deployment().workloads;
        let workloads = newest.iter().map(|workload| {
            let shown = self.place(&workload.name).and_then(|place| place.shown());
            let (version, result) = match shown {
                Some((version, result)) => (*version, result),
                None => (workload.version, &workload.result),
            };
            WorkloadOverview {
                kind: workload.data.kind().name(),
                name: workload.name.to_string(),
                version,
                state: result.state.name(),
                since: result.created.0,
                message: result.message.clone(),
            }
        });
        Overview {
            twin_id: self.key.twin_id.0,
            contract_id: self.key.contract_id.0,
            version: self.version(),
            contract,
            workloads: workloads.collect(),
        }
    }

    /// All versions as they were sent.
    fn sent(&self) -> BTreeMap<u32, Deployment<SentData>> {
        self.bodies.iter().map(|(version, body)| (*version, body.sent())).collect()
    }

    /// The newest version, with each workload as it stands. It never ends by itself, whatever it says
    /// of an expiration, and so it says nothing of one.
    fn shown(&self) -> Deployment<SentData> {
        let sent = self.sent();
        let mut deployment = self.newest().sent();
        deployment.expiration = Timestamp::default();
        for workload in &mut deployment.workloads {
            let place = self.place(&workload.name);
            let Some((version, result)) = place.and_then(|place| place.shown()) else { continue };
            let as_it_is = sent.get(version).and_then(|body| workload_of(body, &workload.name));
            if let Some(as_it_is) = as_it_is {
                *workload = as_it_is.clone();
            }
            workload.result = result.clone();
        }
        deployment
    }
}

fn workload_of<'a, D>(deployment: &'a Deployment<D>, name: &Name) -> Option<&'a Workload<D>> {
    deployment.workloads.iter().find(|workload| workload.name == *name)
}

impl Shared {
    /// Whether there is memory for a workload, beside all others.
    pub(super) fn check_memory(&self, slot: &Slot, workload: &Workload) -> Result<(), String> {
        let needed = workload.data.capacity().mru;
        self.check_memory_size(needed, |key, name| key != slot.key || *name != workload.name)
    }

    /// Whether there is so much memory, beside what `is_other` says of.
    pub(super) fn check_memory_size(
        &self,
        needed: u64,
        is_other: impl Fn(Key, &Name) -> bool,
    ) -> Result<(), String> {
        if needed == 0 {
            return Ok(());
        }
        let Resources { total, system, available_memory } = self.host.resources();
        let mut reserved = system;
        for other in self.slots() {
            let record = other.record();
            if record.standing == Standing::Rejected {
                continue;
            }
            for (name, there, _) in record.running() {
                if is_other(other.key, name) {
                    reserved += there.data.capacity();
                }
            }
        }
        let in_use = reserved.mru.max(total.mru.saturating_sub(available_memory));
        let usable = total.mru.saturating_sub(in_use);
        if needed <= usable {
            return Ok(());
        }
        Err(format!(
            "cannot fulfil required memory size {needed} bytes out of usable {usable} bytes"
        ))
    }
}
