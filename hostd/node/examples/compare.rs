//! What it costs a node to find that nothing has changed: `compare NETWORK COUNT`, on a grid of its own.
//!
//! A node with a pretended machine gets so many deployments of one workload each, all of them paid for on
//! the chain, and then compares everything again and again: what is on disk, what is on the machine, and
//! what the chain says of each contract. Prints a line a figure, its name and its value with a tab in
//! between: this process's own time of one comparison, and how long one takes.

mod user;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hostd_chain::calls::NodeSpec;
use hostd_chain::types::{Interface, Location, Resources as NodeResources};
use hostd_grid::capacity::Capacity;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::workload::Volume;
use hostd_grid::{WorkloadData, WorkloadType};
use hostd_node::engine::Engine;
use hostd_node::host::{About, Doing, Host, HostError, Pool, Resources, Task, UpdateError};
use hostd_node::tfchain::TfChain;
use hostd_node::{EngineConfig, Store, StoreKey};
use hostd_rmb::twins::CachedTwins;
use rustix::time::{ClockId, clock_gettime};

use user::{Failure, User};

/// The node, and its only user.
const NODE: u8 = 100;
const USER: u8 = 101;
/// Comparisons.
const ROUND_COUNT: usize = 20;
/// Messages of one twin whose contracts the node has not looked for yet.
const UNPAID_COUNT: usize = 30;
/// How long anything may take.
const TIME_MAX: Duration = Duration::from_secs(120);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(network), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("usage: compare NETWORK COUNT".into());
    };
    let (network, count): (_, usize) = (user::network(&network)?, count.parse()?);
    let node = User::of(&network, NODE).await?;
    let farm = node.chain.create_farm("compared", &[]).await?;
    let node_id = node.chain.create_node(&spec(farm)).await?;
    let user = User::of(&network, USER).await?;
    let volume = |index| (format!("v{index}"), WorkloadData::Volume(Volume { size: 1 << 30 }));
    let messages = user.contracts(node_id, (0..count).map(volume).collect()).await?;

    let folder = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
    let store = Store::open(&folder, StoreKey::from_seed(&[NODE; 32]))?;
    let twins = Arc::new(CachedTwins::new(Arc::new(node.chain.chain().clone())));
    let ledger = Arc::new(TfChain::new(node.chain.clone(), node_id, twins));
    let host = Arc::new(Machine::default());
    let config = EngineConfig::new(node_id);
    let engine = Engine::start(config, store, ledger, Arc::clone(&host) as Arc<dyn Host>).await?;
    for batch in messages.chunks(UNPAID_COUNT) {
        let there = host.count();
        for (_, message) in batch {
            engine.deploy(user.twin, message).await?;
        }
        let begin = Instant::now();
        while host.count() < there + batch.len() {
            if begin.elapsed() > TIME_MAX {
                return Err("not all deployments run".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // Reports of what they take go to the chain meanwhile.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut costs, mut times) = (Vec::new(), Vec::new());
    for _ in 0..ROUND_COUNT {
        let (begin, used) = (Instant::now(), processor_time());
        engine.reconcile().await?;
        costs.push(processor_time().saturating_sub(used));
        times.push(begin.elapsed());
    }
    assert_eq!(host.count(), count, "nothing was to change");
    figure(&format!("compare {count} workloads, no change: ms of processor"), costs);
    figure(&format!("compare {count} workloads, no change: ms"), times);
    engine.rest().await;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// What most rounds stay below.
fn figure(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let median = times.get(ROUND_COUNT / 2).copied().unwrap_or_default();
    println!("{what}\t{:.2}", median.as_secs_f64() * 1e3);
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn spec(farm_id: u32) -> NodeSpec {
    NodeSpec {
        farm_id,
        resources: NodeResources { hru: 0, sru: 8 << 40, cru: 64, mru: 256 << 30 },
        location: Location {
            city: "Ghent".into(),
            country: "Belgium".into(),
            latitude: "51.05".into(),
            longitude: "3.71".into(),
        },
        interfaces: vec![Interface {
            name: "zos".into(),
            mac: "54:cd:80:00:00:01".into(),
            ips: vec!["127.0.0.1".into()],
        }],
        secure_boot: false,
        virtualized: true,
        serial_number: None,
    }
}

/// A machine that pretends: it remembers what it was asked for, and does nothing.
#[derive(Default)]
struct Machine(Mutex<BTreeSet<WorkloadId>>);

impl Machine {
    fn count(&self) -> usize {
        self.there().len()
    }

    fn there(&self) -> std::sync::MutexGuard<'_, BTreeSet<WorkloadId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Machine {
    fn supported(&self) -> &[WorkloadType] {
        &[WorkloadType::Volume]
    }

    fn extra_features(&self) -> &[&'static str] {
        &[]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        Box::pin(async move {
            self.there().insert(task.id());
            Ok(RawJson::default())
        })
    }

    fn update(&self, _old: Task, _new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        Box::pin(async { Ok(RawJson::default()) })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.there().remove(&id);
            Ok(())
        })
    }

    fn pause(&self, _task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn resume(&self, _task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        Box::pin(async { Ok(self.there().iter().cloned().collect()) })
    }

    fn resources(&self) -> Resources {
        let total = Capacity { cru: 64, mru: 256 << 30, sru: 8 << 40, ..Capacity::default() };
        Resources { total, system: Capacity::default(), available_memory: 256 << 30 }
    }

    fn pools(&self) -> Vec<Pool> {
        vec![Pool { name: "ssd-1".into(), kind: "ssd", size: 8 << 40, used: 0 }]
    }

    fn about(&self) -> About {
        About::default()
    }
}
