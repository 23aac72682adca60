//! A grid of one test: who is there, and how they are asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostd_chain::calls::NodeSpec;
use hostd_chain::types::{Interface, Location, Resources};
use hostd_chain::{Chain, ChainConfig, SigningChain};
use hostd_grid::network::Network;
use hostd_node::state::MemoryState;
use hostd_node::{Node, NodeConfig, Place, StoreKey};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::line::Line;
use crate::machine::Machine;

/// How long anything may take.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(40);
/// How long what must not happen is waited for.
pub(crate) const QUIET_TIME: Duration = Duration::from_secs(2);
/// Seconds that one command may take, as `timeout` reads them.
const COMMAND_TIME_S: &str = "50";
/// The user.
pub(crate) const USER_SEED: [u8; 32] = [0x11; 32];
const NODE_SEED: [u8; 32] = [0x22; 32];

/// Everybody of one grid.
pub(crate) struct World {
    devgrid: Process,
    node: Option<Node>,
    pub(crate) machine: Arc<Machine>,
    /// What the node's program remembers; it outlives the program, as the machine does.
    remembered: Arc<MemoryState>,
    pub(crate) node_id: u32,
    farm_id: u32,
    chain_line: Line,
    relay_line: Line,
    pub(crate) network: Network,
    pub(crate) runtime: Runtime,
    dir: TempDir,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) is_done: bool,
    code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    /// Starts a grid with those flags, on which the user has a farm with one node.
    pub(crate) fn new(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (devgrid, network) = up(dir.path(), flags);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let chain_line = runtime.block_on(Line::lay(address(&network.substrate_urls[0])));
        let relay_line = runtime.block_on(Line::lay(address(&network.relays_urls[0])));
        let machine = Arc::default();
        let (node, node_id, farm_id) = (None, 0, 0);
        let mut world = Self {
            devgrid,
            node,
            machine,
            remembered: Arc::default(),
            node_id,
            farm_id,
            chain_line,
            relay_line,
            network,
            runtime,
            dir,
        };
        let key = world.file("key", &format!("0x{}", "11".repeat(32)));
        let network = world.grid_folder().join("network.json");
        let login = ["login", "--network", text(&network), "--key-file", text(&key)];
        assert!(world.grid(&login).done().out.starts_with("twin 1, account 5"));
        let farm = world.grid(&["farm", "create", "testers", "--json"]).json();
        world.farm_id = u32::try_from(farm["farm_id"].as_u64().unwrap()).unwrap();
        world.start_node();
        world
    }

    /// Runs the `grid` command as the user.
    pub(crate) fn grid(&self, arguments: &[&str]) -> Said {
        let output = self.command(arguments).stdin(Stdio::null()).output().unwrap();
        said(output)
    }

    /// Runs the `grid` command with that standard input.
    pub(crate) fn grid_with(&self, arguments: &[&str], input: &str) -> Said {
        let input = std::fs::File::open(self.file("input", input)).unwrap();
        said(self.command(arguments).stdin(input).output().unwrap())
    }

    /// Starts the `grid` command, and does not wait for it.
    pub(crate) fn grid_beside(&self, arguments: &[&str]) -> Process {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Process(Some(command.spawn().unwrap()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", COMMAND_TIME_S, env!("CARGO_BIN_EXE_grid")]);
        command.args(arguments).env("GRID_HOME", self.dir.path().join("home"));
        command
    }

    /// Runs a command of devgrid.
    pub(crate) fn devgrid(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(devgrid());
        command.arg(arguments[0]).arg("--dir").arg(self.grid_folder()).args(&arguments[1..]);
        said(command.output().unwrap()).json()
    }

    /// Lets blocks pass.
    pub(crate) fn pass(&self, blocks: u32) {
        self.devgrid(&["fast-forward", "--blocks", &blocks.to_string()]);
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Contracts of the user on the node, by name, with the state in words.
    pub(crate) fn contracts(&self) -> BTreeMap<String, (u64, String)> {
        let found = self.grid(&["ls", "--node", &self.node_id.to_string(), "--json"]).json();
        let found = found.as_array().unwrap().iter().map(|found| {
            let name = found["name"].as_str().unwrap().to_owned();
            let state = found["state"].as_str().unwrap().to_owned();
            (name, (found["contract_id"].as_u64().unwrap(), state))
        });
        found.collect()
    }

    /// Makes a database, and returns its contract's number.
    pub(crate) fn zdb(&self, name: &str) -> u64 {
        let node = self.node_id.to_string();
        self.grid(&["deploy", "zdb", name, "--node", &node, "--size", "1G"]).done();
        self.contracts()[name].0
    }

    /// The chain, as somebody who knows that seed, without any line.
    pub(crate) fn chain(&self, identity: &Arc<Identity>) -> SigningChain {
        let endpoints = self.network.substrate_urls.clone();
        let config = ChainConfig::new(endpoints, TrustedRoots::new(None).unwrap());
        let chain = self.runtime.block_on(Chain::connect(config)).unwrap();
        chain.signed_by(Arc::clone(identity))
    }

    /// Starts the node's program; what the machine holds is there already.
    pub(crate) fn start_node(&mut self) {
        let roots = TrustedRoots::new(None).unwrap();
        let endpoint = format!("ws://{}", self.chain_line.address);
        let chain_config = ChainConfig {
            genesis: self.network.genesis_hash,
            retry_max: Duration::from_millis(500),
            resubscribe_pause: Duration::from_millis(300),
            ..ChainConfig::new(vec![endpoint], roots.clone())
        };
        let relay = format!("ws://{}", self.relay_line.address);
        let config = NodeConfig {
            folder: self.dir.path().join("node"),
            reports: self.dir.path().join("reports"),
            key: StoreKey::from_seed(&NODE_SEED),
            state: Arc::clone(&self.remembered) as Arc<_>,
            relays: vec![relay.parse().unwrap()],
            roots,
            activation_urls: self.network.activation_urls.clone(),
            kyc_url: self.network.kyc_url.clone(),
            limits: Default::default(),
            confirm_patience: Duration::from_secs(1),
            farm_id: self.farm_id,
            place: Place {
                latitude: 51.05,
                longitude: 3.71,
                country_name: "Belgium".into(),
                city_name: "Ghent".into(),
                ..Place::default()
            },
            admin_twins: Vec::new(),
        };
        let identity = Arc::new(Identity::from_seed(Scheme::Ed25519, &NODE_SEED).unwrap());
        let machine = Arc::clone(&self.machine);
        let started = self.runtime.block_on(async {
            let chain = Chain::connect(chain_config).await.unwrap();
            let node = Node::start(config, identity, chain, machine).await.unwrap();
            assert!(node.peer().wait_connected(TIME_MAX).await, "no relay");
            node
        });
        self.node_id = started.node_id;
        self.node = Some(started);
    }

    /// Ends the node's program, as `kill -9` does: nothing is told, nothing is finished.
    pub(crate) fn stop_node(&mut self) {
        let _inside = self.runtime.enter();
        self.node = None;
    }

    /// Cuts the node off from the chain.
    pub(crate) fn cut_chain(&self) {
        self.chain_line.cut();
    }

    /// Cuts the node off from its relay.
    pub(crate) fn cut_relay(&self) {
        self.relay_line.cut();
    }

    /// Mends both.
    pub(crate) fn mend(&self) {
        self.chain_line.mend(address(&self.network.substrate_urls[0]));
        self.relay_line.mend(address(&self.network.relays_urls[0]));
    }

    /// Ends chain, relay and all services, as a power cut does.
    pub(crate) fn kill_grid(&mut self) {
        self.devgrid = Process(None);
        self.cut_chain();
        self.cut_relay();
    }

    /// Starts them again, at other ports.
    pub(crate) fn restart_grid(&mut self) {
        (self.devgrid, self.network) = up(self.dir.path(), &[]);
        self.mend();
    }

    /// The node's own twin.
    pub(crate) fn node_twin(&self) -> u32 {
        self.node.as_ref().unwrap().twin_id
    }

    fn grid_folder(&self) -> PathBuf {
        self.dir.path().join("grid")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_node();
    }
}

impl Said {
    /// It did what it was asked.
    pub(crate) fn done(self) -> Self {
        assert!(self.is_done, "{}{}", self.out, self.err);
        self
    }

    /// It did not, and said why.
    pub(crate) fn failed(self, why: &[&str]) -> Self {
        assert!(!self.is_done, "{}{}", self.out, self.err);
        for why in why {
            assert!(self.err.contains(why), "{why:?} is not in {}", self.err);
        }
        self
    }

    /// It ended with that status.
    pub(crate) fn with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    /// It printed JSON.
    pub(crate) fn json(self) -> Value {
        let said = self.done();
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.out))
    }
}

/// A program that runs beside the test, and never longer.
pub(crate) struct Process(Option<Child>);

impl Process {
    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Said {
        said(self.0.take().unwrap().wait_with_output().unwrap())
    }

    /// Types Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let id = self.0.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + TIME_MAX;
    while !is_so() {
        assert!(Instant::now() < end, "not within {TIME_MAX:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A path as a flag takes it.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: std::process::Output) -> Said {
    Said {
        is_done: output.status.success(),
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a grid in a folder of `dir`, at any ports.
fn up(dir: &Path, flags: &[&str]) -> (Process, Network) {
    let folder = dir.join("grid");
    let path = folder.join("network.json");
    let _ = std::fs::remove_file(&path);
    let mut command = Command::new(devgrid());
    command.args(["up", "--port", "0", "--block-time-ms", "0", "--dir"]).arg(&folder).args(flags);
    let log = std::fs::File::create(dir.join("devgrid.log")).unwrap();
    let process = Process(Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap()));
    let end = Instant::now() + TIME_MAX;
    loop {
        if let Ok(bytes) = std::fs::read(&path) {
            return (process, Network::parse(&bytes).unwrap().network);
        }
        let log = || std::fs::read_to_string(dir.join("devgrid.log")).unwrap();
        assert!(Instant::now() < end, "no network.json: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program, which is built into the same folder as `grid`.
fn devgrid() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_grid")).with_file_name("devgrid");
    assert!(path.exists(), "build {} first: cargo build --workspace --bin devgrid", path.display());
    path
}

/// The address in a URL.
fn address(url: &str) -> SocketAddr {
    url.rsplit('/').next().unwrap().parse().unwrap()
}

/// What a node says of itself.
pub(crate) fn spec(farm_id: u32) -> NodeSpec {
    let resources = Resources { hru: 64 << 40, sru: 8 << 40, cru: 64, mru: 256 << 30 };
    NodeSpec {
        farm_id,
        resources,
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
