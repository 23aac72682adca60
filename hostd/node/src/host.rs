//! What a node can do to its machine, behind a trait.
//!
//! The [engine](crate::Engine) decides what is to happen, in which order, and remembers what came of
//! it; a [`Host`] does it, and decides nothing. It may be asked the same again: after a crash nobody
//! knows whether the last step was done, so every step is safe to repeat, and [`Host::provision`] of
//! what is there already says again what it said before.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hostd_grid::capacity::Capacity;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::{Name, VerifiedDeployment, Workload, WorkloadData, WorkloadType};
use serde::{Deserialize, Serialize};

/// A step that is under way.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One workload, and the deployment that it stands in.
#[derive(Debug, Clone)]
pub struct Task {
    deployment: Arc<VerifiedDeployment>,
    index: usize,
}

impl Task {
    /// The workload at `index` of a deployment; none if it has no such.
    pub(crate) fn new(deployment: Arc<VerifiedDeployment>, index: usize) -> Option<Self> {
        (index < deployment.deployment().workloads.len()).then_some(Self { deployment, index })
    }

    /// The deployment. Only the version in which the workload was added or last changed says what it is.
    pub fn deployment(&self) -> &VerifiedDeployment {
        &self.deployment
    }

    /// The workload.
    pub fn workload(&self) -> &Workload {
        // The index was checked when the task was made, and a verified deployment never changes.
        &self.deployment.deployment().workloads[self.index]
    }

    /// What it is called on this node.
    pub fn id(&self) -> WorkloadId {
        WorkloadId::of(self.deployment.deployment(), self.workload())
    }
}

/// Why a step was not done. The text reaches the owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

/// Why an update was not done. The texts reach the owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// What was before still runs.
    #[error("{0}")]
    Unchanged(String),
    /// Nothing runs any more.
    #[error("{0}")]
    Lost(String),
}

/// What a node has, and how much of it is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// All there is.
    pub total: Capacity,
    /// What the node itself needs.
    pub system: Capacity,
    /// Bytes of memory that are free now.
    pub available_memory: u64,
}

/// A disk or a group of disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// `ssd` or `hdd`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Bytes.
    pub size: u64,
    /// Bytes that are promised.
    pub used: u64,
}

/// What a node says about itself when asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// The version of the node's software.
    pub version: String,
    /// The version of what starts it.
    pub supervisor: String,
    /// What it runs on; empty for bare metal.
    pub hypervisor: String,
    /// Addresses by interface; clients look for `zos`.
    pub interfaces: BTreeMap<String, Vec<IpAddr>>,
    /// Whether it has a public IPv6 address.
    pub has_ipv6: bool,
    /// Ports of WireGuard that are taken.
    pub wireguard_ports: Vec<u16>,
}

/// What the machine itself is, as the chain and others may know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hardware {
    /// Network cards by name; clients look for `zos`.
    pub cards: BTreeMap<String, Card>,
    /// Whether its firmware checked what it boots.
    pub secure_boot: bool,
    /// What its board says.
    pub board_serial: Option<String>,
    /// What its firmware says of it, part by part.
    pub firmware: Vec<FirmwarePart>,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Card {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its hardware address, `02:00:00:00:00:01`.
    pub mac: String,
}

/// What firmware says of one part of the machine (SMBIOS 3.7 section 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwarePart {
    /// The number of its kind: 0 for the firmware itself, 1 for the machine, 2 for its board …
    pub kind: u8,
    /// What people call that kind.
    pub title: &'static str,
    /// What it says, by name.
    pub properties: BTreeMap<&'static str, String>,
}

/// What a workload has sent and received over public addresses, for which its owner pays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Which workload.
    pub id: WorkloadId,
    /// Bytes, both ways, since some time that does not change until the machine starts again.
    pub bytes: u64,
}

/// What an owner may want of a machine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineAction {
    /// Start it, if it was stopped.
    Start,
    /// Stop it, until it is to start. It stays reserved, and stays stopped when the node starts again.
    Stop,
    /// Stop it and start it.
    Restart,
}

/// How an owner reaches the console of a machine that runs.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Console {
    /// `address:port`, where a websocket at `/ws` is the console: over mycelium first, then within the
    /// machine's private network.
    pub addresses: Vec<SocketAddr>,
    /// What to add as `?ticket=…`, soon and once, to be let in from outside of that network. Secret.
    pub ticket: String,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// One part of a node, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Module {
    /// What it is doing, in words.
    #[serde(default)]
    pub status: String,
    /// What is wrong with it; empty if nothing is.
    #[serde(default)]
    pub error: String,
}

/// How a machine is, for whoever would have opened a shell to find out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Diagnosis {
    /// Its parts by name, for everybody to see.
    pub modules: BTreeMap<String, Module>,
    /// Whatever helps, for the farmer alone: the kernel's log, processes, disks, cards.
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// A machine that workloads run on.
///
/// Methods with a body are what a machine can do without: one that does not say otherwise has no
/// traffic to bill, can't stop its machines, and finds nothing wrong with itself.
pub trait Host: Send + Sync {
    /// Types of workloads that it can run.
    fn supported(&self) -> &[WorkloadType];

    /// Types that it runs and does not offer: clients choose by what is offered which types they use, and
    /// would take one for a sign of others.
    fn tolerated(&self) -> &[WorkloadType] {
        &[]
    }

    /// What else it can do, by the names that clients look for.
    fn extra_features(&self) -> &[&'static str];

    /// Makes a workload, or finds it made. What it returns is the result's data.
    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>>;

    /// Makes what `old` says into what `new` says.
    fn update(&self, old: Task, new: Task) -> Doing<'_, Result<RawJson, UpdateError>>;

    /// Takes a workload down, with its data. One that is not there is no error.
    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>>;

    /// Stops it without losing anything.
    fn pause(&self, task: Task) -> Doing<'_, Result<(), HostError>>;

    /// Goes on where it was paused.
    fn resume(&self, task: Task) -> Doing<'_, Result<(), HostError>>;

    /// All workloads that are there, whole, in whatever state: those that need not be made again.
    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>>;

    /// Workloads of which something is there, but not all: what a step left that did not come to its end,
    /// or what a machine has kept that lost its power.
    fn remains(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What there is.
    fn resources(&self) -> Resources;

    /// Disks.
    fn pools(&self) -> Vec<Pool>;

    /// What it says about itself.
    fn about(&self) -> About;

    /// What it is.
    fn hardware(&self) -> Hardware {
        Hardware::default()
    }

    /// What workloads have sent and received over public addresses.
    fn traffic(&self) -> Doing<'_, Result<Vec<Traffic>, HostError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Starts or stops a machine that is there, for its owner.
    fn control(&self, task: Task, action: MachineAction) -> Doing<'_, Result<(), HostError>> {
        let _ = (task, action);
        let reason = "this node does not start or stop single machines".to_owned();
        Box::pin(async { Err(HostError(reason)) })
    }

    /// Lets a machine's owner use its console from anywhere.
    fn console(&self, task: Task) -> Doing<'_, Result<Console, HostError>> {
        let _ = task;
        let reason = "this node serves no consoles".to_owned();
        Box::pin(async { Err(HostError(reason)) })
    }

    /// Machines that crash again and again, so that the host has given them up, and why, in words. Each
    /// is in the [inventory](Self::inventory) until it is removed, so that nothing starts it again.
    fn fallen(&self) -> Doing<'_, Result<Vec<(WorkloadId, String)>, HostError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Why it can't be a node at all, in words for the farmer; none if it can.
    fn unfit(&self) -> Option<String> {
        None
    }

    /// What is wrong with the disks that the node itself works from, a sentence each.
    fn check(&self) -> Doing<'_, Vec<String>> {
        Box::pin(async { Vec::new() })
    }

    /// What would keep these workloads of one deployment from running here, a sentence each: rules of this
    /// machine, and images that can't be had. Nothing is made of them.
    fn examine(&self, workloads: Vec<(Name, WorkloadData)>) -> Doing<'_, Vec<String>> {
        let _ = workloads;
        Box::pin(async { Vec::new() })
    }

    /// Has its network card listen for whoever wakes it, so that it may be switched off.
    fn enable_wake(&self) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async { Err(HostError("nothing can wake this machine".to_owned())) })
    }

    /// Switches it off, which takes a moment.
    fn power_off(&self) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async { Err(HostError("this machine can't switch itself off".to_owned())) })
    }

    /// Runs a machine that nobody reserved, to its end, and says how long that took.
    fn rehearse(&self) -> Doing<'_, Result<Duration, HostError>> {
        Box::pin(async { Err(HostError("this machine runs no machines".to_owned())) })
    }

    /// Sets its clock, to seconds since 1970.
    fn set_clock(&self, time: i64) -> Doing<'_, Result<(), HostError>> {
        let _ = time;
        Box::pin(async { Err(HostError("this machine's clock is not ours".to_owned())) })
    }

    /// How it is.
    fn diagnose(&self) -> Doing<'_, Diagnosis> {
        Box::pin(async { Diagnosis::default() })
    }
}
