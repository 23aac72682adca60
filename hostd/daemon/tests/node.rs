//! A node from a configuration, against a grid of its own: registered, restarted, cut off.
//!
//! The grid is `devgrid`, which is built into the same folder as `hostd`. The machine pretends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hostd_daemon::{Config, Daemon};
use hostd_grid::WorkloadType;
use hostd_grid::capacity::Capacity;
use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::network::Network;
use hostd_node::host::{
    About, Card, Doing, Hardware, Host, HostError, Pool, Resources, Task, UpdateError,
};
use hostd_node::{Node, Place};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Nothing here takes longer than that when it works.
const PATIENCE: Duration = Duration::from_secs(60);

/// A grid; killed when the test ends.
struct Grid {
    process: Child,
    folder: PathBuf,
}

impl Drop for Grid {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Grid {
    fn up(folder: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_hostd")).with_file_name("devgrid");
        let shown = program.display();
        assert!(program.exists(), "build {shown} first: cargo build --workspace --bin devgrid");
        let _ = std::fs::remove_file(folder.join("network.json"));
        let mut command = Command::new(program);
        command.args(["up", "--port", "0", "--block-time-ms", "0", "--dir"]).arg(folder);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let grid = Self { process, folder: folder.to_owned() };
        let end = Instant::now() + PATIENCE;
        while !grid.network_path().exists() {
            assert!(Instant::now() < end, "no network.json");
            std::thread::sleep(Duration::from_millis(20));
        }
        grid
    }

    fn network_path(&self) -> PathBuf {
        self.folder.join("network.json")
    }

    fn network(&self) -> Network {
        Network::parse(&std::fs::read(self.network_path()).unwrap()).unwrap().network
    }

    fn chain(&self) -> hostd_chain::Chain {
        let roots = TrustedRoots::new(None).unwrap();
        let config = hostd_chain::ChainConfig::new(self.network().substrate_urls, roots);
        hostd_chain::Chain::new(config).unwrap()
    }

    /// Somebody with a twin.
    async fn somebody(&self, seed: u8) -> hostd_chain::SigningChain {
        let identity = Identity::from_seed(Scheme::Sr25519, &[seed; 32]).unwrap();
        let somebody = self.chain().signed_by(Arc::new(identity));
        somebody.ensure_account(&self.network().activation_urls).await.unwrap();
        somebody.ensure_twin(None, None).await.unwrap();
        somebody
    }

    /// A farm, and its number.
    async fn farm(&self) -> u32 {
        self.somebody(3).await.create_farm("test", &[]).await.unwrap()
    }
}

/// A machine that pretends.
#[derive(Default)]
struct Machine {
    there: Mutex<BTreeSet<WorkloadId>>,
    memory: Mutex<u64>,
}

impl Host for Machine {
    fn supported(&self) -> &[WorkloadType] {
        &[WorkloadType::Zdb]
    }

    fn extra_features(&self) -> &[&'static str] {
        &[]
    }

    fn provision(&self, task: Task) -> Doing<'_, Result<RawJson, HostError>> {
        Box::pin(async move {
            self.there.lock().unwrap().insert(task.id());
            Ok(RawJson::default())
        })
    }

    fn update(&self, _old: Task, _new: Task) -> Doing<'_, Result<RawJson, UpdateError>> {
        Box::pin(async { Ok(RawJson::default()) })
    }

    fn remove(&self, id: WorkloadId) -> Doing<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.there.lock().unwrap().remove(&id);
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
        Box::pin(async { Ok(self.there.lock().unwrap().iter().cloned().collect()) })
    }

    fn resources(&self) -> Resources {
        let mru = (16 << 30) + *self.memory.lock().unwrap();
        let total = Capacity { cru: 8, mru, sru: 1 << 40, hru: 1 << 40, ipv4u: 0 };
        Resources { total, system: Capacity::default(), available_memory: mru }
    }

    fn pools(&self) -> Vec<Pool> {
        vec![Pool { name: "hdd-1".into(), kind: "hdd", size: 1 << 40, used: 0 }]
    }

    fn about(&self) -> About {
        About { version: "1.0.0".into(), hypervisor: "kvm".into(), ..About::default() }
    }

    fn hardware(&self) -> Hardware {
        let card = Card { ips: vec!["10.0.0.2".parse().unwrap()], mac: "02:00:00:00:00:01".into() };
        Hardware { cards: [("zos".to_owned(), card)].into(), ..Hardware::default() }
    }
}

/// A folder for a node and a grid.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn grid(&self) -> Grid {
        Grid::up(&self.folder.path().join("grid"))
    }

    fn config(&self, network: &Path, farm: u32) -> Config {
        let place = Place { country_name: "Belgium".into(), ..Place::default() };
        let state = self.folder.path().join("node");
        let config = Config::new(state, network.to_str().unwrap(), farm);
        Config { place: Some(place), ..config }
    }
}

async fn node(daemon: &Daemon) -> Arc<Node> {
    let mut watch = daemon.node();
    let found = timeout(PATIENCE, watch.wait_for(Option::is_some)).await.expect("no node");
    found.unwrap().clone().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "in vain: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// What `hostd status` says.
async fn status(config: &Config) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostd"));
    command.args(["status", "--json", "--socket"]).arg(config.status_path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_and_stays_itself_without_a_chain() {
    let bench = Bench::new();
    let grid = bench.grid();
    let farm = grid.farm().await;
    let config = bench.config(&grid.network_path(), farm);
    let machine: Arc<dyn Host> = Arc::new(Machine::default());
    let daemon = Daemon::start(config.clone(), Arc::clone(&machine)).await.unwrap();
    let first = node(&daemon).await;
    let (node_id, twin_id) = (first.node_id, first.twin_id);
    drop(first);
    let known = grid.chain().node(node_id).await.unwrap().unwrap();
    assert_eq!((known.farm_id, known.twin_id, known.virtualized), (farm, twin_id, true));
    assert_eq!(known.interfaces[0].mac.as_str(), "02:00:00:00:00:01");
    assert_eq!(known.location.country.as_str(), "Belgium");

    // Duties are done, and whoever is on the machine can see it.
    until("all is well", async || {
        let status = status(&config).await;
        let duties = status["node"]["duties"].clone();
        ["registration", "uptime", "comparison", "power", "events"]
            .iter()
            .all(|duty| duties[duty]["done_at"].is_i64() && duties[duty]["error"].is_null())
            && status["node"]["relay_count"] == 1
    })
    .await;
    let error = Daemon::start(config.clone(), Arc::clone(&machine)).await.err().unwrap();
    assert!(format!("{error:#}").ends_with("another hostd uses this folder"), "{error:#}");

    // Without a chain it is the node that it was.
    daemon.stop().await;
    assert!(!config.status_path().exists());
    drop(grid);
    let daemon = Daemon::start(config.clone(), machine).await.unwrap();
    let second = node(&daemon).await;
    assert_eq!((second.node_id, second.twin_id), (node_id, twin_id));
    until("what can't be done is said", async || {
        let status = status(&config).await;
        status["node"]["duties"]["uptime"]["error"].is_string()
    })
    .await;
    drop(second);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_its_network_to_another_chain() {
    let bench = Bench::new();
    let grid = bench.grid();
    let farm = grid.farm().await;
    let network = bench.folder.path().join("network.json");
    // A chain that nobody answers at.
    let mut nowhere = grid.network();
    nowhere.substrate_urls = vec!["ws://127.0.0.1:1".to_owned()];
    std::fs::write(&network, nowhere.to_json()).unwrap();
    let config = bench.config(&network, farm);
    let daemon = Daemon::start(config.clone(), Arc::new(Machine::default())).await.unwrap();
    until("it says why it does not start", async || {
        let problem = status(&config).await["problem"].as_str().unwrap().to_owned();
        problem.contains("127.0.0.1:1")
    })
    .await;

    daemon.stop().await;

    // The chain is there, and then another one, on which the node is new.
    let other = Grid::up(&bench.folder.path().join("other"));
    let other_farm = other.farm().await;
    assert_eq!(other_farm, farm);
    // So that it has other numbers there.
    other.somebody(4).await;
    for grid in [&grid, &other] {
        std::fs::write(&network, grid.network().to_json()).unwrap();
        let daemon = Daemon::start(config.clone(), Arc::new(Machine::default())).await.unwrap();
        until("the chain knows it by its numbers", async || {
            let (node_id, twin_id) = {
                let node = node(&daemon).await;
                (node.node_id, node.twin_id)
            };
            let known = grid.chain().node(node_id).await.unwrap();
            known.is_some_and(|known| known.twin_id == twin_id)
        })
        .await;
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_moves_to_other_relays_and_endpoints() {
    let bench = Bench::new();
    let grid = bench.grid();
    let farm = grid.farm().await;
    let network = bench.folder.path().join("network.json");
    std::fs::write(&network, grid.network().to_json()).unwrap();
    let config = bench.config(&network, farm);
    let machine = Arc::new(Machine::default());
    let host = Arc::clone(&machine) as Arc<dyn Host>;
    let daemon = Daemon::start(config.clone(), host).await.unwrap();
    let before = node(&daemon).await;
    let (node_id, twin_id) = (before.node_id, before.twin_id);
    drop(before);
    let relays = async || {
        let twin = grid.chain().twin_by_id(twin_id).await.unwrap().unwrap();
        twin.relay.map(|relay| relay.as_str().to_owned())
    };
    until("the chain has its relay", async || relays().await.as_deref() == Some("127.0.0.1")).await;

    // The machine has more memory meanwhile. The same relay under another name, and an endpoint more, at which nobody answers.
    let mut moved = grid.network();
    moved.relays_urls = vec![moved.relays_urls[0].replace("127.0.0.1", "localhost")];
    moved.substrate_urls.insert(0, "ws://127.0.0.1:1".to_owned());
    *machine.memory.lock().unwrap() = 1 << 30;
    std::fs::write(&network, moved.to_json()).unwrap();
    until("the chain has the other", async || relays().await.as_deref() == Some("localhost")).await;
    until("it is well again", async || {
        let status = status(&config).await;
        status["node"]["relay_count"] == 1 && status["node"]["twin_id"] == twin_id
    })
    .await;
    let known = grid.chain().node(node_id).await.unwrap().unwrap();
    assert_eq!(known.resources.mru, 17 << 30);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_farm_is_there_and_is_no_node() {
    let bench = Bench::new();
    let grid = bench.grid();
    let config = bench.config(&grid.network_path(), 0);
    let machine: Arc<Machine> = Arc::default();
    let daemon = Daemon::start(config.clone(), Arc::clone(&machine) as Arc<dyn Host>);
    let daemon = daemon.await.unwrap();
    let no_farm = "it belongs to no farm, and runs nothing";
    until("it says why it is no node", async || {
        status(&config).await["problem"].as_str().unwrap().starts_with(no_farm)
    })
    .await;
    // It goes on saying so, and nobody on the chain has heard of it.
    sleep(Duration::from_secs(3)).await;
    let told = status(&config).await;
    assert!(told["problem"].as_str().unwrap().starts_with(no_farm), "{told}");
    assert!(told["node"].is_null() && daemon.node().borrow().is_none());
    let account = told["account"].as_str().unwrap();
    let account = hostd_rmb::identity::AccountId::from_ss58(account).unwrap();
    assert!(grid.chain().account(*account.as_bytes()).await.unwrap().is_none());
    daemon.stop().await;

    // It is given one.
    let config = Config { farm: grid.farm().await, ..config };
    let daemon = Daemon::start(config.clone(), machine as Arc<dyn Host>).await.unwrap();
    node(&daemon).await;
    daemon.stop().await;
}
