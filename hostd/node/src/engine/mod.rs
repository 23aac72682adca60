//! Deployments of this node, from message to running workload, and to the end of their contract.
//!
//! [`Engine::deploy`] and [`Engine::update`] take a message: checked, written to disk, answered. A task
//! of each deployment then does what its record says is next, one step after another, and
//! writes down what came of it. Nothing else changes a deployment but what the chain says: a contract
//! that is over ([`Engine::cancel`]), not paid or paid again ([`Engine::set_grace`]), or that is found to
//! be so when all are compared ([`Engine::reconcile`]).
//!
//! ```text
//!  message ─> accept: rules, sender, signatures, names ─> disk ─> "null"
//!                                                           │
//!  chain's events, reconcile ──> disk ──────────────────────┤
//!                                                           ▼
//!                         a task each: next step ─> chain or Host ─> disk ─> next step
//! ```
//!
//! **A chain that does not answer changes nothing.** What needs its word waits, and is asked again;
//! what is decided goes on. A contract's end is believed from an event of the chain, or when it is
//! neither among the node's contracts nor there when asked for by its number.
//!
//! **The first body that was accepted is pinned.** A contract's hash is MD5, for which two bodies can be
//! made; whatever comes later with the same version is not taken, unless it is the same bytes.

mod accept;
mod control;
mod order;
mod reconcile;
mod record;
mod settle;
mod trial;
mod turns;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostd_grid::timestamp::Timestamp;
use hostd_grid::workload::{State, WorkloadResult};
use hostd_grid::{ContractId, Name, TwinId, WorkloadType};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::host::Host;
use crate::ledger::Ledger;
use crate::store::{Entry, Key, Log, Store, StoreError};
use record::Record;
use turns::Turns;

pub use accept::AcceptError;
pub use control::ControlError;
pub use reconcile::ReconcileError;
pub use trial::Trial;
pub use view::{Overview, Statistics, Users, WorkloadOverview};

/// Changes that wait for whoever listens to them.
const CHANGE_COUNT_MAX: usize = 1024;
/// First pause after a step that failed for reasons that may pass.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What an engine is told.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The node's number on the chain.
    pub node_id: u32,
    /// How long a contract may not be there, or not have the hash of a deployment, before that is
    /// believed: the chain may show it a block later than the message comes.
    pub confirm_patience: Duration,
}

impl EngineConfig {
    /// How long the chain may lag, on the grid.
    pub const CONFIRM_PATIENCE: Duration = Duration::from_secs(12);

    /// For that node of the grid.
    pub fn new(node_id: u32) -> Self {
        Self { node_id, confirm_patience: Self::CONFIRM_PATIENCE }
    }
}

/// All deployments of a node, until it is dropped; what runs on the host goes on.
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: EngineConfig,
    ledger: Arc<dyn Ledger>,
    host: Arc<dyn Host>,
    store: Arc<Store>,
    deployments: Mutex<BTreeMap<Key, Arc<Slot>>>,
    /// Deployments that can't be read; what they have on the host is left alone.
    damaged: BTreeSet<Key>,
    /// One message is taken in at a time, so that no two take the same name.
    accepting: tokio::sync::Mutex<()>,
    turns: Turns,
    tasks: Mutex<JoinSet<()>>,
    changes: broadcast::Sender<Change>,
}

/// A workload that reached a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose it is.
    pub twin_id: TwinId,
    /// Its contract.
    pub contract_id: ContractId,
    /// Its name.
    pub name: Name,
    /// Its type.
    pub kind: WorkloadType,
    /// The version in which it was added or last changed.
    pub version: u32,
    /// The state.
    pub state: State,
    /// Why.
    pub message: String,
    /// Since when, in seconds since 1970.
    pub created: i64,
}

/// One deployment, and what guards it.
struct Slot {
    key: Key,
    record: Mutex<Record>,
    /// Where its log ends. Held while something becomes true.
    log: tokio::sync::Mutex<Log>,
    wake: Notify,
}

impl Slot {
    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

impl Engine {
    /// Reads what is on disk, makes again what the host lost, and goes on with everything. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// The folder can't be read. A deployment that can't be read is no error: it is left alone.
    pub async fn start(
        config: EngineConfig,
        store: Store,
        ledger: Arc<dyn Ledger>,
        host: Arc<dyn Host>,
    ) -> Result<Self, StoreError> {
        let store = Arc::new(store);
        let inventory = {
            let store = Arc::clone(&store);
            blocking(move || store.load()).await?
        };
        for (key, damage) in &inventory.damaged {
            error!(deployment = %key, error = %damage, "a deployment can't be read; it is left alone");
        }
        let mut deployments = BTreeMap::new();
        for loaded in inventory.deployments {
            let record = Record::new(loaded.key, loaded.bodies, loaded.entries);
            let slot = Arc::new(Slot::new(record, loaded.log));
            drop_unneeded(&store, &slot).await;
            deployments.insert(loaded.key, slot);
        }
        info!(count = deployments.len(), "deployments read");
        let shared = Arc::new(Shared {
            config,
            ledger,
            host,
            store,
            damaged: inventory.damaged.into_iter().map(|(key, _)| key).collect(),
            deployments: Mutex::new(deployments),
            accepting: tokio::sync::Mutex::default(),
            turns: Turns::new(),
            tasks: Mutex::default(),
            changes: broadcast::channel(CHANGE_COUNT_MAX).0,
        });
        shared.restore().await;
        for slot in shared.slots() {
            shared.spawn(slot);
        }
        Ok(Self { shared })
    }

    /// What happens to workloads from now on. Who does not listen fast enough is told how much was missed.
    pub fn listen(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Whether a twin has a deployment here.
    pub fn has_deployments(&self, twin_id: TwinId) -> bool {
        lock(&self.shared.deployments).keys().any(|key| key.twin_id == twin_id)
    }

    /// The contract is over: everything that it paid for goes, with its data.
    pub async fn cancel(&self, contract_id: ContractId, reason: &str) {
        for slot in self.shared.slots_of(contract_id) {
            self.shared.cancel(&slot, reason).await;
        }
    }

    /// The contract is new, or has another hash: who waits for the chain's word of it looks again.
    pub fn look_again(&self, contract_id: ContractId) {
        for slot in self.shared.slots_of(contract_id) {
            slot.wake.notify_one();
        }
    }

    /// The contract is not paid, or paid again.
    pub async fn set_grace(&self, contract_id: ContractId, is_on: bool) {
        for slot in self.shared.slots_of(contract_id) {
            self.shared.set_grace(&slot, is_on).await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        lock(&self.shared.tasks).abort_all();
    }
}

impl Slot {
    fn new(record: Record, log: Log) -> Self {
        let key = record.key;
        Self { key, record: Mutex::new(record), log: log.into(), wake: Notify::new() }
    }
}

impl Shared {
    fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.deployments).values().cloned().collect()
    }

    fn slot(&self, key: Key) -> Option<Arc<Slot>> {
        lock(&self.deployments).get(&key).cloned()
    }

    fn slots_of(&self, contract_id: ContractId) -> Vec<Arc<Slot>> {
        let mut slots = self.slots();
        slots.retain(|slot| slot.key.contract_id == contract_id);
        slots
    }

    /// Starts the task of a deployment.
    fn spawn(self: &Arc<Self>, slot: Arc<Slot>) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(Arc::clone(self).settle(slot));
    }

    async fn cancel(&self, slot: &Slot, reason: &str) {
        if slot.record().is_over() {
            return;
        }
        info!(deployment = %slot.key, reason, "the contract is over");
        self.note(slot, vec![Entry::Cancelled { reason: reason.to_owned() }]).await;
    }

    async fn set_grace(&self, slot: &Slot, is_on: bool) {
        let is_known = {
            let record = slot.record();
            record.is_over() || record.is_in_grace == is_on
        };
        if !is_known {
            info!(deployment = %slot.key, is_on, "grace period");
            self.note(slot, vec![Entry::Grace { is_on }]).await;
        }
    }

    /// Writes entries down, and then takes note of them. If the disk does not take them they are true
    /// all the same: after a restart, what led to them happens again.
    async fn note(&self, slot: &Slot, entries: Vec<Entry>) {
        if let Err(problem) = self.write(slot, entries.clone()).await {
            error!(deployment = %slot.key, error = %problem, "not written to disk");
            self.tell(slot, &entries);
            let mut record = slot.record();
            entries.into_iter().for_each(|entry| record.apply(entry));
        }
        slot.wake.notify_one();
    }

    /// Tells whoever listens which workloads reached a state.
    fn tell(&self, slot: &Slot, entries: &[Entry]) {
        let Key { twin_id, contract_id } = slot.key;
        let record = slot.record();
        for entry in entries {
            let Entry::Workload { name, version, result } = entry else { continue };
            // A body that is gone can't tell what it was, nor can anybody care any more.
            let Some(workload) = record.workload(*version, name) else { continue };
            let change = Change {
                twin_id,
                contract_id,
                name: name.clone(),
                kind: workload.data.kind(),
                version: *version,
                state: result.state,
                message: result.message.clone(),
                created: result.created.0,
            };
            // It is no error if nobody listens.
            let _ = self.changes.send(change);
        }
    }

    /// Writes entries down, and takes note of them when they are on disk.
    async fn write(&self, slot: &Slot, entries: Vec<Entry>) -> Result<(), StoreError> {
        let mut log = slot.log.lock().await;
        let (key, mut end) = (slot.key, *log);
        let store = Arc::clone(&self.store);
        let written = entries.clone();
        *log = blocking(move || store.append(key, &mut end, &written).map(|()| end)).await?;
        self.tell(slot, &entries);
        let compacted = {
            let mut record = slot.record();
            entries.into_iter().for_each(|entry| record.apply(entry));
            record.compacted()
        };
        drop_unneeded(&self.store, slot).await;
        if let Some(entries) = compacted {
            let (store, mut end) = (Arc::clone(&self.store), *log);
            let written = entries.clone();
            let rewritten = blocking(move || store.rewrite(key, &mut end, &written).map(|()| end));
            *log = rewritten.await?;
            slot.record().history = entries;
        }
        Ok(())
    }
}

/// Removes versions from disk of which nothing is needed any more.
async fn drop_unneeded(store: &Arc<Store>, slot: &Slot) {
    let key = slot.key;
    let unneeded = {
        let mut record = slot.record();
        let unneeded = record.unneeded();
        unneeded.iter().for_each(|version| drop(record.bodies.remove(version)));
        unneeded
    };
    for version in unneeded {
        let store = Arc::clone(store);
        // The body alone says nothing, so one that stays is no harm.
        if let Err(problem) = blocking(move || store.drop_body(key, version)).await {
            warn!(deployment = %key, version, error = %problem, "an old version stays on disk");
        }
    }
}

/// A result that is reached now.
fn result(state: State, message: impl Into<String>) -> WorkloadResult {
    let (created, message) = (Timestamp(now()), message.into());
    WorkloadResult { created, state, message, ..WorkloadResult::default() }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let now = std::time::SystemTime::now();
    // Hours of a test are moments of the machine.
    #[cfg(test)]
    let now = now + crate::testing::ahead();
    let since = now.duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|time| i64::try_from(time.as_secs()).ok()).unwrap_or(0)
}

/// Does something that may wait for the disk, to its end.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // It was not aborted, since it had begun, or the whole runtime ends.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Locks what is never left half done, so that a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
