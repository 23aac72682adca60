//! A machine that pretends: it remembers what it was asked, and does nothing.
//!
//! What it holds outlives the node's program, as that of a real machine does. Workloads whose name begins with
//! `broken` fail, and those with `slow` take until the test says so. Consoles are where the test says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hostd_grid::capacity::Capacity;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::{WorkloadData, WorkloadType};
use hostd_node::host::{
    About, Console, Doing, Host, HostError, MachineAction, Pool, Resources, Task, UpdateError,
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Why nothing named `broken…` is made.
pub(crate) const BROKEN: &str = "the disk under it is broken";

/// A pretended machine.
pub(crate) struct Machine {
    there: Mutex<BTreeMap<WorkloadId, bool>>,
    /// What was begun, by name.
    begun: Mutex<Vec<String>>,
    /// What changed on it, in order.
    done: Mutex<Vec<String>>,
    has_no_volumes: AtomicBool,
    /// Where consoles are.
    console: Mutex<Option<SocketAddr>>,
    is_fast: watch::Sender<bool>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            there: Mutex::default(),
            begun: Mutex::default(),
            done: Mutex::default(),
            has_no_volumes: AtomicBool::default(),
            console: Mutex::default(),
            is_fast: watch::channel(false).0,
        }
    }
}

impl Machine {
    /// Names of what is there, each with whether it stands still.
    pub(crate) fn there(&self) -> BTreeMap<String, bool> {
        let there = self.there.lock().unwrap();
        there.iter().map(|(id, is_paused)| (id.name.to_string(), *is_paused)).collect()
    }

    /// Names of what is there.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.there().into_keys().collect()
    }

    /// What changed since this was asked last.
    pub(crate) fn take_done(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock().unwrap())
    }

    /// Whether somebody asked for that workload.
    pub(crate) fn has_begun(&self, name: &str) -> bool {
        self.begun.lock().unwrap().iter().any(|begun| begun == name)
    }

    /// Lets what is slow go on.
    pub(crate) fn hurry(&self) {
        self.is_fast.send_replace(true);
    }

    /// Loses a workload, as after a crash.
    pub(crate) fn lose(&self, name: &str) {
        self.there.lock().unwrap().retain(|id, _| id.name.as_str() != name);
    }

    /// Supports volumes no more.
    pub(crate) fn forget_volumes(&self) {
        self.has_no_volumes.store(true, Ordering::Relaxed);
    }

    /// Has consoles there from now on.
    pub(crate) fn set_console(&self, address: SocketAddr) {
        *self.console.lock().unwrap() = Some(address);
    }

    fn note(&self, what: &str, id: &WorkloadId) {
        self.done.lock().unwrap().push(format!("{what} {}", id.name));
    }

    fn set_paused(&self, what: &str, id: &WorkloadId, is_paused: bool) -> Result<(), HostError> {
        let mut there = self.there.lock().unwrap();
        let was = there.get_mut(id).ok_or_else(|| HostError(format!("{id} is not there")))?;
        if *was != is_paused {
            *was = is_paused;
            self.note(what, id);
        }
        Ok(())
    }
}

/// The data of a workload's result, as existing nodes say it.
fn told(task: &Task) -> Value {
    let id = task.id().to_string();
    match &task.workload().data {
        WorkloadData::Zdb(_) => json!({"Namespace": id, "IPs": ["400::1"], "Port": 9900}),
        WorkloadData::ZMachineLight(machine) => {
            let ip = machine.network.interfaces[0].ip.to_string();
            json!({"id": id, "ip": ip, "mycelium_ip": "400::2", "console_url": ""})
        }
        WorkloadData::ZMount(_) => json!({"volume_id": id}),
        WorkloadData::Volume(_) => json!({"id": id}),
        _ => Value::Null,
    }
}

impl Host for Machine {
    fn supported(&self) -> &[WorkloadType] {
        use WorkloadType::{NetworkLight, Volume, ZMachineLight, ZMount, Zdb, Zlogs};
        match self.has_no_volumes.load(Ordering::Relaxed) {
            true => &[ZMachineLight, NetworkLight, Zdb, ZMount],
            false => &[ZMachineLight, NetworkLight, Zdb, ZMount, Zlogs, Volume],
        }
    }

    fn extra_features(&self) -> &[&'static str] {
        &["mycelium"]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        Box::pin(async move {
            let id = task.id();
            self.begun.lock().unwrap().push(id.name.to_string());
            if id.name.as_str().starts_with("broken") {
                return Err(HostError(BROKEN.to_owned()));
            }
            if id.name.as_str().starts_with("slow") {
                // The sender lives as long as the machine.
                let _ = self.is_fast.subscribe().wait_for(|is_fast| *is_fast).await;
            }
            if self.there.lock().unwrap().insert(id.clone(), false).is_none() {
                self.note("make", &id);
            }
            Ok(RawJson::of(&told(&task)).unwrap())
        })
    }

    fn update(&self, _old: Task, new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        Box::pin(async move {
            self.note("change", &new.id());
            Ok(RawJson::of(&told(&new)).unwrap())
        })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move {
            if self.there.lock().unwrap().remove(&id).is_some() {
                self.note("remove", &id);
            }
            Ok(())
        })
    }

    fn pause(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move { self.set_paused("pause", &task.id(), true) })
    }

    fn resume(&self, task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move { self.set_paused("resume", &task.id(), false) })
    }

    fn control(&self, task: Task, action: MachineAction) -> Doing<'_, Result<(), HostError>> {
        self.note(&format!("{action:?}").to_lowercase(), &task.id());
        Box::pin(async { Ok(()) })
    }

    fn console(&self, task: Task) -> Doing<'_, Result<Console, HostError>> {
        let addresses = self.console.lock().unwrap().iter().copied().collect();
        let ticket = format!("ticket{}", task.id().name);
        Box::pin(async { Ok(Console { addresses, ticket }) })
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(async { Ok(self.there.lock().unwrap().keys().cloned().collect()) })
    }

    fn resources(&self) -> Resources {
        let total = Capacity { cru: 64, mru: 256 << 30, sru: 8 << 40, hru: 64 << 40, ipv4u: 0 };
        let system = Capacity { mru: 2 << 30, ..Capacity::default() };
        Resources { total, system, available_memory: 256 << 30 }
    }

    fn pools(&self) -> Vec<Pool> {
        vec![Pool { name: "ssd-1".into(), kind: "ssd", size: 8 << 40, used: 0 }]
    }

    fn about(&self) -> About {
        About { version: "1.2.3".into(), supervisor: "pretended".into(), ..About::default() }
    }
}
