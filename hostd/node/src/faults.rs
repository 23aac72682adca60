//! A program that may end anywhere, and a machine that outlives it.
//!
//! ```text
//!   Faults ── counts boundaries: before and after each change on disk, each step of the host and each
//!     │       question to the chain; at one of them the program is gone
//!     ├── Store::watched      the thread ends there
//!     ├── Mortal<Machine>     the step never returns, and what it had begun stays half done
//!     └── Mortal<TestLedger>  the answer never comes
//! ```
//!
//! What comes after such a moment finds the disk, the chain and the [`Machine`] as they are: a
//! program that is gone changes nothing any more.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use hostd_grid::capacity::Capacity;
use hostd_grid::deployment::Keys;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::{ContractId, TwinId, WorkloadType};
use serde_json::json;
use tokio::sync::Notify;

use crate::engine::lock;
use crate::host::{About, Doing, Host, HostError, Pool, Resources, Task, UpdateError};
use crate::ledger::{Contract, Ledger, Reply};
use crate::testing::TestLedger;

/// One life of the program.
#[derive(Default)]
pub(crate) struct Faults {
    /// At which boundary it ends; never, if there is none.
    limit: Option<usize>,
    passed: Mutex<Passed>,
    gone: Notify,
}

#[derive(Default)]
struct Passed {
    places: Vec<String>,
    is_gone: bool,
}

/// Ends a thread of a program that is gone.
struct Gone;

impl Faults {
    /// A life that ends at the boundary with that number, from 1.
    pub(crate) fn at(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    /// Passes a boundary; whether there is a program behind it.
    fn pass(&self, place: &str) -> bool {
        let mut passed = lock(&self.passed);
        if passed.is_gone {
            return false;
        }
        passed.places.push(place.to_owned());
        if Some(passed.places.len()) == self.limit {
            passed.is_gone = true;
            self.gone.notify_waiters();
            self.gone.notify_one();
        }
        !passed.is_gone
    }

    /// The boundaries that were passed.
    pub(crate) fn places(&self) -> Vec<String> {
        lock(&self.passed).places.clone()
    }

    /// For the threads that write to the disk.
    pub(crate) fn watcher(self: &Arc<Self>) -> crate::store::Watcher {
        let faults = Arc::clone(self);
        Arc::new(move |place| {
            if !faults.pass(place) {
                // Not a panic, which would be told.
                resume_unwind(Box::new(Gone));
            }
        })
    }

    /// Passes a boundary, or stays there for ever.
    async fn cross(&self, place: &str) {
        if !self.pass(place) {
            std::future::pending::<()>().await;
        }
    }

    /// Does what the program does, until it is done or the program is gone; whether it was done.
    pub(crate) async fn live(&self, living: impl Future<Output = ()>) -> bool {
        let mut living = pin!(living);
        let lives = poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| living.as_mut().poll(context)));
            match polled {
                Ok(polled) => polled,
                Err(end) if end.is::<Gone>() => Poll::Pending,
                Err(panic) => resume_unwind(panic as Box<dyn Any + Send>),
            }
        });
        tokio::select! {
            biased;
            () = self.gone.notified() => false,
            () = lives => true,
        }
    }
}

/// How much there is of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    /// A step was begun, and not finished.
    Part,
    /// All of it, in that version, standing still or not.
    Whole { version: u32, is_paused: bool },
}

/// A machine that does in two halves what it is asked.
#[derive(Default)]
pub(crate) struct Machine {
    there: Mutex<BTreeMap<WorkloadId, There>>,
    /// What changed on it.
    changes: Mutex<Vec<String>>,
    /// Names of workloads of which the second half fails.
    pub(crate) failing: Mutex<BTreeSet<String>>,
    /// Names of machines that crash again and again.
    pub(crate) fallen: Mutex<BTreeSet<WorkloadId>>,
}

impl Machine {
    /// What is there, by name.
    pub(crate) fn there(&self) -> BTreeMap<String, There> {
        let there = lock(&self.there);
        there.iter().map(|(id, there)| (id.name.to_string(), *there)).collect()
    }

    /// What became whole and what went, in order.
    pub(crate) fn changes(&self) -> Vec<String> {
        lock(&self.changes).clone()
    }

    /// The power fails: disks and volumes stay, of networks a part does, and machines are gone.
    pub(crate) fn lose_power(&self) {
        let mut there = lock(&self.there);
        there.retain(|id, _| !id.name.as_str().starts_with("vm"));
        for (id, found) in there.iter_mut() {
            if id.name.as_str() == "net" {
                *found = There::Part;
            }
        }
        lock(&self.changes).clear();
    }

    fn set(&self, what: &str, id: &WorkloadId, now: There) {
        let was = lock(&self.there).insert(id.clone(), now);
        if was != Some(now) && now != There::Part {
            lock(&self.changes).push(format!("{what} {}", id.name));
        }
    }

    fn of(&self, id: &WorkloadId) -> Option<There> {
        lock(&self.there).get(id).copied()
    }

    fn is_failing(&self, id: &WorkloadId) -> bool {
        lock(&self.failing).contains(id.name.as_str())
    }
}

/// What a program has that may be gone.
pub(crate) struct Mortal<T> {
    pub(crate) inner: Arc<T>,
    pub(crate) faults: Arc<Faults>,
}

impl Mortal<Machine> {
    async fn make(&self, task: Task) -> Result<RawJson, HostError> {
        let (id, version) = (task.id(), task.workload().version);
        let name = id.name.as_str();
        self.faults.cross(&format!("before {name} is made")).await;
        if !matches!(self.inner.of(&id), Some(There::Whole { .. })) {
            self.inner.set("begin", &id, There::Part);
            self.faults.cross(&format!("while {name} is made")).await;
            if self.inner.is_failing(&id) {
                return Err(HostError(format!("no room for {name}")));
            }
            self.inner.set("make", &id, There::Whole { version, is_paused: false });
        }
        self.faults.cross(&format!("after {name} was made")).await;
        RawJson::of(&json!({"id": id.to_string()})).map_err(|error| HostError(error.to_string()))
    }

    async fn set_paused(&self, task: Task, is_paused: bool) -> Result<(), HostError> {
        let id = task.id();
        self.faults.cross(&format!("before {} is paused: {is_paused}", id.name)).await;
        let Some(There::Whole { version, .. }) = self.inner.of(&id) else {
            return Err(HostError(format!("{id} is not there")));
        };
        let what = if is_paused { "pause" } else { "resume" };
        self.inner.set(what, &id, There::Whole { version, is_paused });
        self.faults.cross(&format!("after {} was paused: {is_paused}", id.name)).await;
        Ok(())
    }

    async fn list(&self, is_wanted: fn(&There) -> bool) -> Result<Vec<WorkloadId>, HostError> {
        self.faults.cross("before things are counted").await;
        let there = lock(&self.inner.there);
        Ok(there.iter().filter(|(_, there)| is_wanted(there)).map(|(id, _)| id.clone()).collect())
    }
}

impl Host for Mortal<Machine> {
    fn supported(&self) -> &[WorkloadType] {
        use WorkloadType::{NetworkLight, ZMachineLight, ZMount, Zdb};
        &[ZMachineLight, NetworkLight, Zdb, ZMount]
    }

    fn extra_features(&self) -> &[&'static str] {
        &[]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        Box::pin(self.make(task))
    }

    fn update(&self, _old: Task, new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        Box::pin(async move {
            let (id, version) = (new.id(), new.workload().version);
            self.faults.cross(&format!("before {} is changed", id.name)).await;
            let Some(There::Whole { is_paused, .. }) = self.inner.of(&id) else {
                return Err(UpdateError::Lost(format!("{id} is not there")));
            };
            self.inner.set("change", &id, There::Whole { version, is_paused });
            self.faults.cross(&format!("after {} was changed", id.name)).await;
            RawJson::of(&json!({"id": id.to_string()}))
                .map_err(|error| UpdateError::Lost(error.to_string()))
        })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.faults.cross(&format!("before {} is removed", id.name)).await;
            if self.inner.of(&id).is_some() {
                self.inner.set("begin", &id, There::Part);
                self.faults.cross(&format!("while {} is removed", id.name)).await;
                lock(&self.inner.there).remove(&id);
                lock(&self.inner.changes).push(format!("remove {}", id.name));
            }
            lock(&self.inner.fallen).remove(&id);
            self.faults.cross(&format!("after {} was removed", id.name)).await;
            Ok(())
        })
    }

    fn pause(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(self.set_paused(task, true))
    }

    fn resume(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(self.set_paused(task, false))
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(self.list(|there| matches!(there, There::Whole { .. })))
    }

    fn remains(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(self.list(|there| matches!(there, There::Part)))
    }

    fn fallen(&self) -> Doing<'_, Result<Vec<(WorkloadId, String)>, HostError>> {
        Box::pin(async {
            self.faults.cross("before fallen machines are counted").await;
            let fallen = lock(&self.inner.fallen);
            Ok(fallen.iter().map(|id| (id.clone(), "so many crashes".to_owned())).collect())
        })
    }

    /// There is memory for one machine, and one that runs uses it.
    fn resources(&self) -> Resources {
        const MEMORY: u64 = 3 << 29;
        let is_used = lock(&self.inner.there).keys().any(|id| id.name.as_str() == "vm");
        let total = Capacity { cru: 8, mru: MEMORY, sru: 1 << 40, hru: 1 << 40, ipv4u: 0 };
        let available_memory = if is_used { MEMORY - (1 << 30) } else { MEMORY };
        Resources { total, system: Capacity::default(), available_memory }
    }

    fn pools(&self) -> Vec<Pool> {
        vec![Pool { name: "ssd-1".into(), kind: "ssd", size: 1 << 40, used: 0 }]
    }

    fn about(&self) -> About {
        About::default()
    }
}

impl Ledger for Mortal<TestLedger> {
    fn contract(&self, id: ContractId) -> Reply<'_, Option<Contract>> {
        self.asked("contract", self.inner.contract(id))
    }

    fn active_contracts(&self) -> Reply<'_, Vec<ContractId>> {
        self.asked("active contracts", self.inner.active_contracts())
    }

    fn keys(&self, twins: BTreeSet<TwinId>) -> Reply<'_, Keys> {
        self.asked("keys", self.inner.keys(twins))
    }

    fn report_resources(&self, used: Vec<(ContractId, Capacity)>) -> Reply<'_, ()> {
        Box::pin(async move {
            self.faults.cross("before a report").await;
            // Only what is asked of it counts.
            let told = self.inner.report_resources(used).await;
            self.faults.cross("after a report").await;
            told
        })
    }
}

impl Mortal<TestLedger> {
    fn asked<'a, T: Send + 'a>(&'a self, what: &'static str, answer: Reply<'a, T>) -> Reply<'a, T> {
        Box::pin(async move {
            self.faults.cross(&format!("before the chain is asked: {what}")).await;
            let answer = answer.await;
            self.faults.cross(&format!("after the chain said: {what}")).await;
            answer
        })
    }
}
