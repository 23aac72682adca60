//! A node of the grid whose machine only says that it did what it was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hostd_chain::types::Ip4;
use hostd_chain::{Chain, ChainConfig};
use hostd_grid::WorkloadType;
use hostd_grid::capacity::Capacity;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::network::Network;
use hostd_node::host::{About, Doing, Host, HostError, Pool, Resources, Task, UpdateError};
use hostd_node::state::MemoryState;
use hostd_node::{Node, NodeConfig, Place, StoreKey};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

/// Registers a farm and a node in it, and runs the node out of `folder`.
pub(crate) async fn start(network: &Network, folder: PathBuf, ca: &[u8]) -> Node {
    let roots = TrustedRoots::new(Some(ca)).unwrap();
    let config = ChainConfig::new(network.substrate_urls.clone(), roots.clone());
    let chain = Chain::connect(config).await.unwrap();
    let farmer = Identity::from_phrase(Scheme::Sr25519, "//StockFarmer").unwrap();
    let farmer = chain.signed_by(Arc::new(farmer));
    farmer.ensure_account(&network.activation_urls).await.unwrap();
    farmer.ensure_twin(None, None).await.unwrap();
    let no_ips: &[Ip4] = &[];
    let farm_id = farmer.create_farm("stock-farm", no_ips).await.unwrap();
    let config = NodeConfig {
        reports: folder.join("reports"),
        folder: folder.join("deployments"),
        key: StoreKey::from_seed(&[7; 32]),
        state: Arc::new(MemoryState::default()),
        relays: network.relays_urls.iter().map(|url| url.parse().unwrap()).collect(),
        roots,
        activation_urls: network.activation_urls.clone(),
        limits: Default::default(),
        confirm_patience: Duration::from_secs(5),
        kyc_url: String::new(),
        farm_id,
        place: Place {
            latitude: 51.05,
            longitude: 3.71,
            country_name: "Belgium".into(),
            city_name: "Ghent".into(),
            ..Place::default()
        },
        admin_twins: Vec::new(),
    };
    let identity = Identity::from_phrase(Scheme::Ed25519, "//StockNode").unwrap();
    Node::start(config, Arc::new(identity), chain, Arc::new(Machine::default())).await.unwrap()
}

#[derive(Default)]
struct Machine(Mutex<BTreeSet<WorkloadId>>);

impl Machine {
    fn there(&self) -> std::sync::MutexGuard<'_, BTreeSet<WorkloadId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a node says of a workload that runs.
fn result(task: &Task) -> RawJson {
    let id = task.id().to_string();
    let data = match task.workload().data.kind() {
        WorkloadType::Zdb => json!({ "Namespace": id, "IPs": ["400::1"], "Port": 9900 }),
        WorkloadType::ZMount => json!({ "volume_id": id }),
        WorkloadType::ZMachineLight => json!({
            "id": id, "ip": "10.20.2.2", "mycelium_ip": "400::2", "console_url": "[400::1]:20002",
        }),
        _ => Value::Null,
    };
    RawJson::of(&data).unwrap()
}

impl Host for Machine {
    fn supported(&self) -> &[WorkloadType] {
        use WorkloadType::{NetworkLight, ZMachineLight, ZMount, Zdb};
        &[ZMachineLight, NetworkLight, Zdb, ZMount]
    }

    fn extra_features(&self) -> &[&'static str] {
        &["mycelium"]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        self.there().insert(task.id());
        Box::pin(async move { Ok(result(&task)) })
    }

    fn update(&self, _old: Task, new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        Box::pin(async move { Ok(result(&new)) })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        self.there().remove(&id);
        Box::pin(async { Ok(()) })
    }

    fn pause(&self, _task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn resume(&self, _task: Task) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn inventory(&self) -> Doing<'_, Result<Vec<WorkloadId>, HostError>> {
        let there = self.there().iter().cloned().collect();
        Box::pin(async { Ok(there) })
    }

    fn resources(&self) -> Resources {
        let total = Capacity {
            cru: 8,
            mru: 16 * GIB,
            sru: 1024 * GIB,
            hru: 1024 * GIB,
            ..Capacity::default()
        };
        let system = Capacity { mru: GIB, ..Capacity::default() };
        Resources { total, system, available_memory: 15 * GIB }
    }

    fn pools(&self) -> Vec<Pool> {
        let pool = |name: &str, kind| Pool { name: name.into(), kind, size: 1024 * GIB, used: 0 };
        vec![pool("ssd", "ssd"), pool("hdd", "hdd")]
    }

    fn about(&self) -> About {
        let interfaces = BTreeMap::from([("zos".to_owned(), vec!["10.0.0.1".parse().unwrap()])]);
        About { version: "1.0.0".into(), interfaces, ..About::default() }
    }
}
