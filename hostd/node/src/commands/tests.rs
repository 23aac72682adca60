//! A user and a node on the message bus, with a relay between them.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use hostd_rmb::identity::Identity;
use hostd_rmb::peer::{Call, CallError, Peer, PeerConfig};
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::{Scheme, Version};
use hostd_rmb::twins::{self, Twin, TwinLookup, Twins};
use rmb_relay::{Relay, RelayConfig};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::engine::EngineConfig;
use crate::health::{Duty, Health};
use crate::ledger::Ledger;
use crate::perf::{Results, TestResult};
use crate::place::Place;
use crate::state::MemoryState;
use crate::store::{Store, StoreKey};
use crate::testing::{Body, NODE, TestHost, TestLedger, signed};

/// Nothing in these tests takes longer than that when it works.
const PATIENCE: Duration = Duration::from_secs(20);
/// The relay's name on the chain.
const RELAY: &str = "127.0.0.1";
/// The twins of the user and the node.
const USER: u32 = 1;
const NODE_TWIN: u32 = 2;
/// Who administers the grid.
const OPERATOR: u32 = 3;

/// Twins 1 to 9.
struct Table;

impl Twins for Table {
    fn twin(&self, id: twins::TwinId) -> TwinLookup<'_> {
        let number = id.number();
        let found = (1..10).contains(&number).then(|| {
            let identity = identity(number);
            let key = identity.encryption_key(Version::V1).to_bytes();
            let relay = Some(RELAY.as_bytes());
            Arc::new(Twin::from_chain(id, identity.account(), relay, Some(&key)))
        });
        Box::pin(async move { Ok(found) })
    }
}

fn identity(number: u32) -> Arc<Identity> {
    let seed = [u8::try_from(number).unwrap(); 32];
    Arc::new(Identity::from_seed(Scheme::Ed25519, &seed).unwrap())
}

struct Bus {
    user: Peer,
    operator: Peer,
    node: Arc<Peer>,
    _relay: JoinSet<()>,
}

async fn peer(relay: std::net::SocketAddr, twin: u32, commands: Commands) -> Peer {
    let config = PeerConfig {
        twin: twins::TwinId::new(twin).unwrap(),
        session: None,
        relays: vec![format!("ws://{relay}").parse().unwrap()],
        encryption: Some(Version::V1),
        roots: TrustedRoots::new(None).unwrap(),
        limits: Default::default(),
    };
    let peer = Peer::start(config, identity(twin), Arc::new(Table), commands).unwrap();
    assert!(peer.wait_connected(PATIENCE).await, "no connection");
    peer
}

impl Bus {
    async fn start(commands: Commands) -> Self {
        Self::with_user(commands, Commands::default()).await
    }

    /// With a user who answers, too.
    async fn with_user(commands: Commands, users: Commands) -> Self {
        let config = RelayConfig {
            domains: vec![RELAY.into()],
            routes: HashMap::new(),
            rate_limit: None,
            roots: TrustedRoots::new(None).unwrap(),
        };
        let relay = Relay::new(config, Arc::new(Table)).unwrap();
        let listener = TcpListener::bind((RELAY, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { relay.serve(listener).await.unwrap() });
        let node = Arc::new(peer(address, NODE_TWIN, commands).await);
        let user = peer(address, USER, users).await;
        let operator = peer(address, OPERATOR, Commands::default()).await;
        Self { user, operator, node, _relay: serving }
    }

    async fn call(&self, command: &str, payload: impl Into<Bytes>) -> Result<Value, String> {
        Self::call_by(&self.user, command, payload).await
    }

    async fn call_by(
        peer: &Peer,
        command: &str,
        payload: impl Into<Bytes>,
    ) -> Result<Value, String> {
        let node = twins::TwinId::new(NODE_TWIN).unwrap();
        let call = Call::new(node, command, payload.into()).time_max(PATIENCE);
        match peer.call(call).await {
            Ok(answer) => Ok(serde_json::from_slice(&answer).unwrap()),
            Err(CallError::Failed { code: 0, message }) => Err(message),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Nothing was found out yet.
fn results() -> Results {
    Results::new(Arc::new(MemoryState::default()))
}

/// Nobody is told anything yet.
fn news() -> Arc<News> {
    Arc::new(News::new(Arc::new(MemoryState::default())))
}

/// What a node knows whose farmer is somebody else than the user.
fn known() -> Known {
    let place = Place { country_name: "Belgium".into(), ..Place::default() };
    Known::new(place, Vec::new(), Arc::new(Health::default()), results())
}

#[tokio::test]
async fn a_user_reserves_and_looks_over_the_bus() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), StoreKey::from_seed(&[9; 32])).unwrap();
    let (ledger, host) = (Arc::new(TestLedger::default()), Arc::new(TestHost::default()));
    let config = EngineConfig { node_id: NODE, confirm_patience: Duration::from_millis(100) };
    let (chain, machine) = (Arc::clone(&ledger) as Arc<dyn Ledger>, host as Arc<dyn Host>);
    let engine = Engine::start(config, store, chain, Arc::clone(&machine)).await.unwrap();
    let known = Arc::new(known());
    let bus = Bus::start(commands(&Arc::new(engine), &machine, &known, &news())).await;

    let version = json!({"zos": "1.0.0", "zinit": ""});
    assert_eq!(bus.call("zos.system.version", "").await, Ok(version));
    let features = json!(["zmachine-light", "network-light", "zdb", "zmount", "mycelium"]);
    assert_eq!(bus.call("zos.system.node_features_get", "").await, Ok(features));
    assert_eq!(bus.call("zos.deployment.list", "").await, Ok(json!([])));
    let number = json!({"Contract_ID": 5}).to_string();
    let absent = Err("deployment not found".to_owned());
    assert_eq!(bus.call("zos.deployment.get", number.clone()).await, absent);

    let body = Body::default();
    ledger.pay(&body);
    assert_eq!(bus.call("zos.deployment.deploy", signed(&body)).await, Ok(Value::Null));
    let start = std::time::Instant::now();
    let deployment = loop {
        let found = bus.call("zos.deployment.get", number.clone()).await.unwrap();
        if found["workloads"][0]["result"]["state"] == "ok" {
            break found;
        }
        assert!(start.elapsed() < PATIENCE, "in vain: {found}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(deployment["workloads"][0]["data"]["size"], json!(1_u64 << 30));
    assert_eq!(deployment["workloads"][0]["result"]["data"], json!({"id": "1-5-db"}));
    let changes = bus.call("zos.deployment.changes", number.clone()).await.unwrap();
    let states: Vec<_> = changes.as_array().unwrap().iter().collect();
    assert_eq!(states.len(), 2);
    assert_eq!(states[0]["result"]["state"], "init");

    let refusal = bus.call("zos.deployment.delete", number).await.unwrap_err();
    assert!(refusal.starts_with("deletion over the api is disabled"), "{refusal}");
    let refusal = bus.call("zos.deployment.get", "[]").await.unwrap_err();
    assert_eq!(refusal, "the payload is not an object");
    let refusal = bus.call("zos.network.has_ipv6", "").await.unwrap_err();
    assert_eq!(refusal, "no public ipv6 found");
    let statistics = bus.call("zos.statistics.get", "").await.unwrap();
    assert_eq!(statistics["users"]["workloads"], 1);
}

#[tokio::test]
async fn a_node_tells_everybody_something_and_its_farmer_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), StoreKey::from_seed(&[9; 32])).unwrap();
    let (ledger, host) = (Arc::new(TestLedger::default()), Arc::new(TestHost::default()));
    let (chain, machine) = (Arc::clone(&ledger) as Arc<dyn Ledger>, host as Arc<dyn Host>);
    let config = EngineConfig::new(NODE);
    let engine = Engine::start(config, store, chain, Arc::clone(&machine)).await.unwrap();
    let health = Arc::new(Health::default());
    let place = Place { country_name: "Belgium".into(), ..Place::default() };
    let known = Arc::new(Known::new(place, vec![OPERATOR], Arc::clone(&health), results()));
    let bus = Bus::start(commands(&Arc::new(engine), &machine, &known, &news())).await;

    let place = bus.call("zos.location.get", "").await.unwrap();
    assert_eq!(place["country_name"], "Belgium");
    assert_eq!(bus.call("zos.gpu.list", "").await, Ok(Value::Null));
    assert_eq!(bus.call("zos.network.list_public_ips", "").await, Ok(json!([])));
    let refusal = bus.call("zos.network.public_config_get", "").await;
    assert_eq!(refusal, Err("public config not found".to_owned()));
    let refusal = bus.call("zos.perf.get", r#"{"Name": "healthcheck"}"#).await;
    assert_eq!(refusal, Err("result not found".to_owned()));
    for name in ["healthcheck", "cpu-benchmark"] {
        known.results.put(TestResult {
            name: name.to_owned(),
            description: "a test".to_owned(),
            timestamp: 7,
            result: json!({"cache": []}),
        });
    }
    let test = bus.call("zos.perf.get", r#"{"Name": "healthcheck"}"#).await.unwrap();
    let expected = json!({
        "name": "healthcheck", "description": "a test", "timestamp": 7, "result": {"cache": []},
    });
    assert_eq!(test, expected);
    let tests = bus.call("zos.perf.get_all", "").await.unwrap();
    let names: Vec<_> = tests.as_array().unwrap().iter().map(|test| &test["name"]).collect();
    assert_eq!(names, ["cpu-benchmark", "healthcheck"]);
    let pools = bus.call("zos.storage.pools", "").await.unwrap();
    let expected = json!([{"name": "ssd-1", "type": "ssd", "size": 1_u64 << 40, "used": 0}]);
    assert_eq!(pools, expected);
    assert_eq!(bus.call("zos.system.hypervisor", "").await, Ok(json!("")));
    assert_eq!(bus.call("zos.network.interfaces", "").await, Ok(json!({})));
    let ports = bus.call("zos.network.list_wg_ports", "").await.unwrap();
    assert_eq!(ports, json!([80, 443, 8082, 9651, 9943, 9944, 9945, 300]));
    let network = json!({"network_name": "net"}).to_string();
    assert_eq!(bus.call("zos.network.list_private_ips", network).await, Ok(json!([])));
    let firmware = bus.call("zos.system.dmi", "").await.unwrap();
    assert_eq!(firmware["sections"], json!([]));

    for prefix in ["zos.admin", "zos.network.admin"] {
        let command = format!("{prefix}.interfaces");
        assert_eq!(bus.call(&command, "").await, Err("unauthorized".to_owned()), "{command}");
    }
    health.note(Duty::Uptime, &Err("nobody listens"));
    let shown = bus.call("zos.system.diagnostics", "").await.unwrap();
    assert_eq!(shown["healthy"], false);
    assert_eq!(shown["modules"]["uptime"]["error"], "nobody listens");
    assert_eq!(shown.get("details"), None);

    known.set_farmer(USER);
    assert_eq!(bus.call("zos.admin.interfaces", "").await, Ok(json!({})));
    let refusal = bus.call("zos.admin.set_public_nic", "\"eth1\"").await;
    assert_eq!(refusal, Err("not supported".to_owned()));
    let shown = bus.call("zos.system.diagnostics", "").await.unwrap();
    assert_eq!(shown["details"], json!({}));
    for command in ["zos.debug.deployment.health", "zos.vm.logs", "zos"] {
        let unknown = Err("function is not found".to_owned());
        assert_eq!(bus.call(command, "").await, unknown, "{command}");
    }
}

#[tokio::test]
async fn a_deployment_is_tried_before_it_is_paid_and_its_machine_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), StoreKey::from_seed(&[9; 32])).unwrap();
    let (ledger, host) = (Arc::new(TestLedger::default()), Arc::new(TestHost::default()));
    let config = EngineConfig { node_id: NODE, confirm_patience: Duration::from_millis(100) };
    let chain = Arc::clone(&ledger) as Arc<dyn Ledger>;
    let machine = Arc::clone(&host) as Arc<dyn Host>;
    let engine = Engine::start(config, store, chain, Arc::clone(&machine)).await.unwrap();
    let bus = Bus::start(commands(&Arc::new(engine), &machine, &Arc::new(known()), &news())).await;

    let names = ["vm", "disk", "net"];
    let body = Body::of(&names, &names);
    let trial = bus.call("zos.deployment.validate", signed(&body)).await.unwrap();
    assert_eq!(trial["is_possible"], true, "{trial}");
    assert_eq!(trial["is_signed"], true);
    assert_eq!(trial["hash"], crate::testing::verified(&body).hash().to_string());
    let huge = Body { size: 1 << 50, ..Body::of(&["disk", "volume"], &["disk", "volume"]) };
    let trial = bus.call("zos.deployment.validate", signed(&huge)).await.unwrap();
    assert_eq!(trial["is_possible"], false);
    let problems = trial["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(problems[0], "this node does not support workloads of type 'volume' yet");
    assert!(host.take_calls().is_empty(), "nothing was done");

    let control = |name: &str| json!({"contract_id": 5, "name": name}).to_string();
    let refusal = bus.call("zos.vm.stop", control("vm")).await;
    assert_eq!(refusal, Err("deployment not found".to_owned()));
    ledger.pay(&body);
    bus.call("zos.deployment.deploy", signed(&body)).await.unwrap();
    let start = std::time::Instant::now();
    while let Err(refusal) = bus.call("zos.vm.stop", control("vm")).await {
        assert_eq!(refusal, "there is no workload 'vm' that runs");
        assert!(start.elapsed() < PATIENCE, "in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(host.take_calls().last().unwrap(), "Stop 1-5-vm");
    let console = bus.call("zos.vm.console", control("vm")).await.unwrap();
    assert_eq!(console, json!({"addresses": ["[5ab::1]:20005"], "ticket": "s3cr3t"}));
    let refusal = bus.call("zos.vm.console", control("other")).await;
    assert_eq!(refusal, Err("there is no workload 'other' that runs".to_owned()));
    let refusal = bus.call("zos.vm.restart", control("disk")).await;
    assert_eq!(refusal, Err("workload 'disk' is a zmount, not a machine".to_owned()));
}

#[tokio::test]
async fn an_owner_hears_what_becomes_of_a_deployment_and_an_operator_may_look_at_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), StoreKey::from_seed(&[9; 32])).unwrap();
    let (ledger, host) = (Arc::new(TestLedger::default()), Arc::new(TestHost::default()));
    let config = EngineConfig { node_id: NODE, confirm_patience: Duration::from_millis(100) };
    let chain = Arc::clone(&ledger) as Arc<dyn Ledger>;
    let machine = Arc::clone(&host) as Arc<dyn Host>;
    let engine = Arc::new(Engine::start(config, store, chain, Arc::clone(&machine)).await.unwrap());
    let health = Arc::new(Health::default());
    let known = Arc::new(Known::new(Place::default(), vec![OPERATOR], health, results()));
    let news = news();
    let (told, mut events) = tokio::sync::mpsc::unbounded_channel();
    let hear = Command::new(move |request: Request| {
        let told = told.clone();
        async move {
            told.send(request).unwrap();
            Ok(Bytes::new())
        }
    });
    let users = Commands::default().with(crate::news::COMMAND, hear);
    let bus = Bus::with_user(commands(&engine, &machine, &known, &news), users).await;
    let mut running = JoinSet::new();
    let courier: Arc<dyn crate::news::Courier> = Arc::new(Arc::downgrade(&bus.node));
    running.spawn(news.run(engine.listen(), courier));

    let refusal = bus.call("zos.event.subscribe", "").await;
    assert_eq!(refusal, Err("twin 1 has no deployments here".to_owned()));
    let first = Body { contract: 6, ..Body::default() };
    ledger.pay(&first);
    bus.call("zos.deployment.deploy", signed(&first)).await.unwrap();
    let start = std::time::Instant::now();
    while engine.statistics().users.workloads == 0 {
        assert!(start.elapsed() < PATIENCE, "in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = bus.call("zos.event.subscribe", r#"{"seconds": 60}"#).await.unwrap();
    assert!(answer["until"].as_i64().unwrap() > 0);
    let body = Body::default();
    ledger.pay(&body);
    bus.call("zos.deployment.deploy", signed(&body)).await.unwrap();
    let mut next = async || {
        let request = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert_eq!(request.source.number(), NODE_TWIN);
        assert!(request.is_encrypted);
        assert!(!request.payload.windows(6).any(|text| text == b"s3cr3t"));
        serde_json::from_slice::<Value>(&request.payload).unwrap()
    };
    let event = next().await;
    assert_eq!((&event["contract_id"], &event["name"]), (&json!(5), &json!("db")));
    assert_eq!((&event["type"], &event["state"]), (&json!("zdb"), &json!("ok")));
    assert_eq!((&event["sequence"], &event["lost"]), (&json!(1), &json!(0)));

    look_as_operator(&bus).await;

    ledger.contracts.lock().unwrap().clear();
    engine.cancel(hostd_grid::ContractId(5), "over").await;
    let event = next().await;
    assert_eq!((&event["state"], &event["sequence"]), (&json!("deleted"), &json!(2)));
    assert_eq!(bus.call("zos.event.unsubscribe", "").await, Ok(Value::Null));
}

/// Who administers the grid sees what happened to deployment 5, and not what is in it.
async fn look_as_operator(bus: &Bus) {
    let ask = async |what: &str, payload: Value| {
        let command = format!("zos.debug.deployment.{what}");
        Bus::call_by(&bus.operator, &command, payload.to_string()).await
    };
    let named = json!({"deployment": "1:5", "workload": "db"});
    let listed = ask("list", json!({"twin_id": 1})).await.unwrap();
    assert_eq!(listed["deployments"].as_array().unwrap().len(), 2);
    assert_eq!(ask("list", json!({"twin_id": 8})).await, Ok(json!({"deployments": []})));
    let got = ask("get", named.clone()).await.unwrap();
    assert_eq!(got["deployment"]["workloads"][0]["state"], "ok");
    let history = ask("history", named.clone()).await.unwrap();
    let states: Vec<_> = history["transactions"].as_array().unwrap().iter().collect();
    assert_eq!((&states[0]["state"], &states[1]["state"]), (&json!("init"), &json!("ok")));
    let info = ask("info", named.clone()).await.unwrap();
    assert_eq!(info["workload"]["type"], "zdb");
    for shown in [&listed, &got, &history, &info] {
        assert!(!shown.to_string().contains("s3cr3t"), "{shown}");
    }
    let absent = ask("get", json!({"deployment": "2:5"})).await;
    assert_eq!(absent, Err("deployment not found".to_owned()));
    let nonsense = ask("get", json!({"deployment": "5"})).await;
    assert_eq!(nonsense, Err("deployment is not twin:contract".to_owned()));
    assert_eq!(ask("health", named.clone()).await, Err("function is not found".to_owned()));
    let refused = bus.call("zos.debug.deployment.get", named.to_string()).await;
    assert_eq!(refused, Err("unauthorized".to_owned()));
}
