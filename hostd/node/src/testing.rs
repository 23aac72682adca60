//! Deployments, a chain and a machine for tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use hostd_grid::capacity::Capacity;
use hostd_grid::deployment::Keys;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::signature::{AccountKey, Scheme};
use hostd_grid::{
    ContractId, Name, SignedDeployment, TwinId, VerifiedDeployment, WorkloadData, WorkloadType,
};
use serde_json::{Value, json};

use crate::host::{
    About, Console, Doing, Host, HostError, MachineAction, Pool, Resources, Task, UpdateError,
};
use crate::ledger::{Contract, ContractState, Ledger, LedgerError, Reply, Subject};

/// By how much the clock of a test that has stopped its time is ahead of the machine's.
pub(crate) fn ahead() -> Duration {
    let simulated = tokio::time::Instant::now().into_std();
    simulated.saturating_duration_since(std::time::Instant::now())
}

/// The node of all tests.
pub(crate) const NODE: u32 = 11;

/// What a test deployment says.
pub(crate) struct Body {
    pub(crate) version: u32,
    pub(crate) twin: u32,
    pub(crate) contract: u64,
    pub(crate) names: Vec<String>,
    pub(crate) changed: Vec<String>,
    pub(crate) size: u64,
    /// When it says that it ends.
    pub(crate) expiration: i64,
}

impl Default for Body {
    fn default() -> Self {
        Self::of(&["db"], &["db"])
    }
}

impl Body {
    pub(crate) fn of(names: &[&str], changed: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (names, changed) = (owned(names), owned(changed));
        Self { version: 0, twin: 1, contract: 5, names, changed, size: 1 << 30, expiration: 0 }
    }
}

fn secret(twin: u32) -> SigningKey {
    SigningKey::from_bytes(&[u8::try_from(twin).unwrap(); 32])
}

pub(crate) fn key_of(twin: u32) -> AccountKey {
    AccountKey(secret(twin).verifying_key().to_bytes())
}

fn workload(name: &str, version: u32, size: u64) -> Value {
    let (kind, data) = match name {
        "disk" => ("zmount", json!({"size": size})),
        "net" => (
            "network-light",
            json!({"subnet": "10.1.2.0/24", "mycelium": {"hex_key": "ab".repeat(32), "peers": []}}),
        ),
        "vm" => (
            "zmachine-light",
            json!({
                "flist": "https://hub/x.flist", "size": 0, "entrypoint": "/init",
                "network": {"interfaces": [{"network": "net", "ip": "10.1.2.3"}]},
                "compute_capacity": {"cpu": 1, "memory": 1_u64 << 30},
                "mounts": [{"name": "disk", "mountpoint": "/data"}],
            }),
        ),
        "volume" => ("volume", json!({"size": size})),
        _ => ("zdb", json!({"size": size, "mode": "user", "password": "s3cr3t"})),
    };
    json!({"version": version, "name": name, "type": kind, "data": data})
}

/// The JSON of a deployment, signed by its twin.
pub(crate) fn signed(body: &Body) -> Vec<u8> {
    let Body { version, twin, contract, names, changed, size, expiration } = body;
    let workloads: Vec<Value> = { names.iter() }
        .map(|name| workload(name, if changed.contains(name) { *version } else { 0 }, *size))
        .collect();
    let mut value = json!({
        "version": version, "twin_id": twin, "contract_id": contract, "workloads": workloads,
        "expiration": expiration,
        "signature_requirement": {
            "weight_required": 1, "requests": [{"twin_id": twin, "required": true, "weight": 1}],
        },
    });
    let read = SignedDeployment::read(value.to_string().as_bytes()).unwrap();
    let hash = read.deployment().hash(Default::default()).unwrap();
    let signature = secret(*twin).sign(hash.as_bytes()).to_bytes();
    let digits: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let scheme = Scheme::Ed25519.to_string();
    value["signature_requirement"]["signatures"] =
        json!([{"twin_id": twin, "signature": digits, "signature_type": scheme}]);
    value.to_string().into_bytes()
}

/// A deployment that was verified.
pub(crate) fn verified(body: &Body) -> VerifiedDeployment {
    let keys = Keys::from([(TwinId(body.twin), key_of(body.twin))]);
    SignedDeployment::read(signed(body)).unwrap().verify(&keys).unwrap()
}

/// A chain that says what a test wants.
#[derive(Default)]
pub(crate) struct TestLedger {
    pub(crate) is_gone: Mutex<bool>,
    pub(crate) contracts: Mutex<BTreeMap<ContractId, Contract>>,
    pub(crate) reports: Mutex<Vec<(ContractId, Capacity)>>,
    /// Twins that the grid's operator does not know.
    pub(crate) strangers: Mutex<BTreeSet<TwinId>>,
    /// Questions about single contracts.
    asked: AtomicUsize,
    /// Everything that it was asked or told, heard or not.
    tried: AtomicUsize,
}

impl TestLedger {
    /// Makes or changes the contract of a deployment.
    pub(crate) fn pay(&self, body: &Body) {
        let id = ContractId(body.contract);
        let hash = verified(body).hash().to_string();
        let subject = Subject::Node { node_id: NODE, hash };
        let (twin_id, state) = (TwinId(body.twin), ContractState::Created);
        self.contracts.lock().unwrap().insert(id, Contract { id, twin_id, state, subject });
    }

    /// How often somebody asked for a contract.
    pub(crate) fn asked_count(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// How often somebody turned to it.
    pub(crate) fn tried_count(&self) -> usize {
        self.tried.load(Ordering::Relaxed)
    }

    pub(crate) fn set_gone(&self, is_gone: bool) {
        *self.is_gone.lock().unwrap() = is_gone;
    }

    fn answer<'a, T: Send + 'a>(&self, value: impl FnOnce() -> T) -> Reply<'a, T> {
        self.tried.fetch_add(1, Ordering::Relaxed);
        let answer = match *self.is_gone.lock().unwrap() {
            true => Err(LedgerError::Unreachable("nobody listens".into())),
            false => Ok(value()),
        };
        Box::pin(async move { answer })
    }
}

impl Ledger for TestLedger {
    fn contract(&self, id: ContractId) -> Reply<'_, Option<Contract>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.answer(|| self.contracts.lock().unwrap().get(&id).cloned())
    }

    fn active_contracts(&self) -> Reply<'_, Vec<ContractId>> {
        self.answer(|| self.contracts.lock().unwrap().keys().copied().collect())
    }

    fn keys(&self, twins: BTreeSet<TwinId>) -> Reply<'_, Keys> {
        self.answer(|| twins.into_iter().map(|twin| (twin, key_of(twin.0))).collect())
    }

    fn is_verified(&self, twin: TwinId) -> Reply<'_, bool> {
        self.answer(|| !self.strangers.lock().unwrap().contains(&twin))
    }

    fn report_resources(&self, used: Vec<(ContractId, Capacity)>) -> Reply<'_, ()> {
        self.answer(|| self.reports.lock().unwrap().extend(used))
    }
}

/// A machine that remembers what it was asked.
#[derive(Default)]
pub(crate) struct TestHost {
    pub(crate) there: Mutex<BTreeSet<WorkloadId>>,
    pub(crate) calls: Mutex<Vec<String>>,
    /// Names of workloads that fail, however they are made.
    pub(crate) failing: Mutex<BTreeSet<String>>,
    /// Names of workloads whose making takes as long as they are here.
    pub(crate) slow: Mutex<BTreeSet<String>>,
    /// Machines that are given up until they are removed.
    pub(crate) fallen: Mutex<Vec<(WorkloadId, String)>>,
    /// Bytes of memory that somebody else took.
    pub(crate) taken_memory: Mutex<u64>,
    /// What it has against every workload when it is asked before.
    pub(crate) objections: Mutex<Vec<String>>,
}

impl TestHost {
    fn note(&self, what: &str, id: &WorkloadId) -> Result<(), HostError> {
        self.calls.lock().unwrap().push(format!("{what} {id}"));
        match self.failing.lock().unwrap().contains(id.name.as_str()) {
            true => Err(HostError(format!("no room for {id}"))),
            false => Ok(()),
        }
    }

    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Host for TestHost {
    fn supported(&self) -> &[WorkloadType] {
        use WorkloadType::{NetworkLight, ZMachineLight, ZMount, Zdb};
        &[ZMachineLight, NetworkLight, Zdb, ZMount]
    }

    fn extra_features(&self) -> &[&'static str] {
        &["mycelium"]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        let id = task.id();
        Box::pin(async move {
            self.note("provision", &id)?;
            while self.slow.lock().unwrap().contains(id.name.as_str()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.there.lock().unwrap().insert(id.clone());
            Ok(RawJson::of(&json!({"id": id.to_string()})).unwrap())
        })
    }

    fn update(&self, _old: Task, new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        let id = new.id();
        Box::pin(async move {
            self.note("update", &id).map_err(|error| UpdateError::Unchanged(error.0))?;
            Ok(RawJson::of(&json!({"id": id.to_string()})).unwrap())
        })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.note("remove", &id)?;
            self.there.lock().unwrap().remove(&id);
            self.fallen.lock().unwrap().retain(|(fallen, _)| *fallen != id);
            Ok(())
        })
    }

    fn pause(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move { self.note("pause", &task.id()) })
    }

    fn resume(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move { self.note("resume", &task.id()) })
    }

    fn control(&self, task: Task, action: MachineAction) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move { self.note(&format!("{action:?}"), &task.id()) })
    }

    fn console(&self, task: Task) -> Doing<'_, Result<Console, HostError>> {
        Box::pin(async move {
            self.note("console", &task.id())?;
            let addresses = vec!["[5ab::1]:20005".parse().unwrap()];
            Ok(Console { addresses, ticket: "s3cr3t".to_owned() })
        })
    }

    fn fallen(&self) -> Doing<'_, Result<Vec<(WorkloadId, String)>, HostError>> {
        Box::pin(async { Ok(self.fallen.lock().unwrap().clone()) })
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(async { Ok(self.there.lock().unwrap().iter().cloned().collect()) })
    }

    fn resources(&self) -> Resources {
        let total = Capacity { cru: 8, mru: 16 << 30, sru: 1 << 40, hru: 1 << 40, ipv4u: 0 };
        let system = Capacity { mru: 2 << 30, ..Capacity::default() };
        let available_memory = total.mru - *self.taken_memory.lock().unwrap();
        Resources { total, system, available_memory }
    }

    fn pools(&self) -> Vec<Pool> {
        vec![Pool { name: "ssd-1".into(), kind: "ssd", size: 1 << 40, used: 0 }]
    }

    fn examine(&self, _workloads: Vec<(Name, WorkloadData)>) -> Doing<'_, Vec<String>> {
        Box::pin(async { self.objections.lock().unwrap().clone() })
    }

    fn about(&self) -> About {
        About { version: "1.0.0".into(), ..About::default() }
    }
}
