//! What a node is like while many deploy at once: `deploy NETWORK NODE IMAGE USERS MACHINES VOLUMES`.
//!
//! Each of `USERS` people gets a network, and contracts for so many machines from `IMAGE` and so many
//! volumes, each a deployment of its own. Then this says `ready`, and waits for a line; with that, all
//! deployments are sent at once, while a bystander asks the node for its version again and again. Prints a
//! line a figure when all of it runs, its name and its value with a tab in between. With `USERS` = 0 it
//! makes a farm, and prints its number.

mod user;

use std::io::{BufRead as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostd_grid::address::{Cidr, Maybe};
use hostd_grid::network::Network;
use hostd_grid::secret::SecretBytes;
use hostd_grid::workload::{
    ComputeCapacity, Interface, Machine, MachineNetworkLight, Mycelium, MyceliumAddress,
    NetworkLight, Volume,
};
use hostd_grid::{Name, WorkloadData};
use hostd_rmb::peer::{Call, Peer, PeerConfig, Retry};
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::server::Commands;
use hostd_rmb::signature::Version;
use hostd_rmb::twins::{CachedTwins, TwinId};
use serde_json::Value;
use tokio::task::JoinSet;

use user::{Failure, User};

/// The bystander.
const BYSTANDER: u8 = 200;
/// How often it asks: a twin may ask twenty times a second.
const ASK_INTERVAL: Duration = Duration::from_millis(60);
/// How often everybody looks whether it runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long all of it may take.
const TIME_MAX: Duration = Duration::from_secs(300);
/// Bytes of memory of a machine: the least that there may be.
const MEMORY: u64 = 250 << 20;
const VOLUME: u64 = 16 << 20;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [network, node, image, users, machines, volumes] = arguments.as_slice() else {
        return Err("usage: deploy NETWORK NODE IMAGE USERS MACHINES VOLUMES".into());
    };
    let network = user::network(network)?;
    let (users, node): (u8, u32) = (users.parse()?, node.parse()?);
    if users == 0 {
        let farmer = User::of(&network, BYSTANDER).await?;
        println!("{}", farmer.chain.create_farm("measured", &[]).await?);
        return Ok(());
    }
    let node = Node::find(&network, node).await?;
    let mut everybody = Vec::new();
    for number in 1..=users {
        let (machines, volumes) = (machines.parse()?, volumes.parse()?);
        everybody.push(Deployer::prepare(&network, &node, number, image, machines, volumes).await?);
    }
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    let bystander = Client::of(&network, &User::of(&network, BYSTANDER).await?).await?;
    let asking = tokio::spawn(ask(bystander, node.twin));
    let begin = Instant::now();
    let mut deploying = JoinSet::new();
    everybody.into_iter().for_each(|deployer| drop(deploying.spawn(deployer.deploy(node.twin))));
    let mut answers = Vec::new();
    while let Some(done) = deploying.join_next().await {
        answers.extend(done??);
    }
    let all = begin.elapsed();
    asking.abort();
    let asked = ASKED.lock().map_err(|_| "a bystander panicked")?.clone();
    figure("in flight", f64::from(u32::try_from(answers.len())?));
    figure("deploy message answered, slowest: ms", ms(answers.iter().max()));
    figure("bystander meanwhile answered, slowest: ms", ms(asked.iter().max()));
    figure("all run after: ms", ms(Some(&all)));
    Ok(())
}

/// How long the bystander waited for each answer.
static ASKED: std::sync::Mutex<Vec<Duration>> = std::sync::Mutex::new(Vec::new());

async fn ask(client: Client, node: TwinId) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(ASK_INTERVAL);
    loop {
        ticks.tick().await;
        let begin = Instant::now();
        client.ask(node, "zos.system.version", &Value::Null).await?;
        ASKED.lock().map_err(|_| "main panicked")?.push(begin.elapsed());
    }
}

fn figure(what: &str, value: f64) {
    println!("{what}\t{value:.3}");
}

fn ms(time: Option<&Duration>) -> f64 {
    time.map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// The node that is written to.
struct Node {
    id: u32,
    twin: TwinId,
}

impl Node {
    async fn find(network: &Network, id: u32) -> Result<Self, Failure> {
        let node = user::chain(network)?.node(id).await?.ok_or("there is no such node")?;
        Ok(Self { id, twin: TwinId::new(node.twin_id).ok_or("it has no twin")? })
    }
}

/// A connection to the bus.
struct Client(Peer);

impl Client {
    async fn of(network: &Network, user: &User) -> Result<Self, Failure> {
        let config = PeerConfig {
            twin: TwinId::new(user.twin.0).ok_or("twin 0")?,
            session: Some(format!("measure-{}", std::process::id())),
            relays: user::relays(network)?,
            encryption: Some(Version::V1),
            roots: TrustedRoots::new(None)?,
            limits: Default::default(),
        };
        let twins = Arc::new(CachedTwins::new(Arc::new(user.chain.chain().clone())));
        let identity = Arc::clone(&user.identity);
        let peer = Peer::start(config, identity, twins, Commands::default())?;
        match peer.wait_connected(Duration::from_secs(15)).await {
            true => Ok(Self(peer)),
            false => Err("no relay".into()),
        }
    }

    async fn ask(&self, node: TwinId, what: &str, payload: &Value) -> Result<Value, Failure> {
        let payload = serde_json::to_vec(payload)?;
        let call = Call::new(node, what, payload).time_max(TIME_MAX).retry(Retry::Never);
        Ok(serde_json::from_slice(&self.0.call(call).await?)?)
    }
}

/// Somebody with contracts whose deployments were not sent yet.
struct Deployer {
    client: Arc<Client>,
    deployments: Vec<(u64, Vec<u8>)>,
}

impl Deployer {
    /// Has the network of that user run, and makes the contracts for the rest.
    async fn prepare(
        network: &Network,
        node: &Node,
        number: u8,
        image: &str,
        machines: u8,
        volumes: u8,
    ) -> Result<Self, Failure> {
        let user = User::of(network, number).await?;
        let client = Arc::new(Client::of(network, &user).await?);
        // Names tell runs of this program apart, and addresses machines of a run.
        let run = user.chain.chain().node_contracts(node.id).await?.ids.len();
        let first = client.ask(node.twin, "zos.deployment.list", &Value::Null).await?;
        let is_new = first.as_array().is_none_or(Vec::is_empty);
        if is_new {
            let network = vec![("lan".to_owned(), lan(number)?)];
            let deployments = user.contracts(node.id, network).await?;
            let deployer = Self { client: Arc::clone(&client), deployments };
            deployer.deploy(node.twin).await?;
        }
        let mut wanted = Vec::new();
        for index in 0..machines {
            let host = 2 + u8::try_from(run % 200)? + index;
            wanted.push((format!("vm{run}x{index}"), machine(number, host, image)));
        }
        for index in 0..volumes {
            let volume = WorkloadData::Volume(Volume { size: VOLUME });
            wanted.push((format!("vol{run}x{index}"), volume));
        }
        let deployments = user.contracts(node.id, wanted).await?;
        Ok(Self { client, deployments })
    }

    /// Sends everything at once, and waits until it runs; how long each message took to be answered.
    async fn deploy(self, node: TwinId) -> Result<Vec<Duration>, Failure> {
        let mut sending = JoinSet::new();
        let begin = Instant::now();
        let mut waiting = Vec::new();
        for (contract, message) in self.deployments {
            waiting.push(contract);
            let client = Arc::clone(&self.client);
            sending.spawn(async move {
                let call = Call::new(node, "zos.deployment.deploy", message).time_max(TIME_MAX);
                client.0.call(call).await.map(|_| begin.elapsed())
            });
        }
        let mut answers = Vec::new();
        while let Some(sent) = sending.join_next().await {
            answers.push(sent??);
        }
        while !waiting.is_empty() {
            if begin.elapsed() > TIME_MAX {
                return Err(format!("contracts {waiting:?} don't run").into());
            }
            let there = self.client.ask(node, "zos.deployment.list", &Value::Null).await?;
            let there = there.as_array().cloned().unwrap_or_default();
            waiting.retain(|contract| {
                !there.iter().any(|one| one["contract_id"] == *contract && runs(one))
            });
            if waiting.is_empty() {
                break;
            }
            // What fails is not in the list any more.
            for contract in &waiting {
                if !there.iter().any(|one| one["contract_id"] == *contract) {
                    let question = serde_json::json!({"contract_id": contract});
                    let failed = self.client.ask(node, "zos.deployment.changes", &question).await?;
                    return Err(format!("contract {contract}: {failed}").into());
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(answers)
    }
}

fn runs(deployment: &Value) -> bool {
    let workloads = deployment["workloads"].as_array();
    workloads.is_some_and(|all| all.iter().all(|one| one["result"]["state"] == "ok"))
}

/// The network of that user.
fn lan(number: u8) -> Result<WorkloadData, Failure> {
    let subnet = Cidr::parse(&format!("10.{number}.0.0/24"))?;
    let mycelium = Mycelium { hex_key: SecretBytes::new([number; 32]), peers: Vec::new() };
    let network = NetworkLight { subnet: subnet.into(), mycelium, ..Default::default() };
    Ok(WorkloadData::NetworkLight(network))
}

/// A machine in the network of that user.
fn machine(number: u8, host: u8, image: &str) -> WorkloadData {
    let ip = Maybe::from(IpAddr::from([10, number, 0, host]));
    let interfaces = vec![Interface { network: Name::new("lan"), ip }];
    let hex_seed = SecretBytes::new([number, host, 0, 0, 0, 0]);
    let mycelium = Some(MyceliumAddress { network: Name::new("lan"), hex_seed });
    WorkloadData::ZMachineLight(Machine {
        flist: image.to_owned(),
        network: MachineNetworkLight { mycelium, interfaces },
        size: 0,
        compute_capacity: ComputeCapacity { cpu: 1, memory: MEMORY },
        mounts: Vec::new(),
        entrypoint: "/init".to_owned(),
        env: Default::default(),
        corex: false,
        gpu: Vec::new(),
    })
}
