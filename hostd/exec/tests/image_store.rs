//! A store of images that is slow, and one that lies: what their users are told by the node's engine, on a
//! real machine with a program that pretends to be `flist`, and what becomes of everybody else meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use hostd_exec::machine::{Config, Machine};
use hostd_grid::capacity::Capacity;
use hostd_grid::deployment::Keys;
use hostd_grid::signature::{AccountKey, Scheme};
use hostd_grid::workload::State;
use hostd_grid::{ContractId, SignedDeployment, TwinId};
use hostd_node::ledger::{Contract, ContractState, Reply, Subject};
use hostd_node::{Engine, EngineConfig, Host, Ledger, Store, StoreKey};
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const NODE: u32 = 11;
/// The twin whose images don't come, and another.
const UNLUCKY: u32 = 1;
const OTHER: u32 = 2;
/// Machines of the first: more than all steps that a node does at a time.
const SLOW_COUNT: u64 = 70;

/// Serves nothing. A store is slow until there is a file `go`, and says then that it is; one lies about what it
/// has; one has no such image.
const FLIST: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin; here=$(dirname "$0")
case "$*" in
cached*) exec sleep 1000;;
*slow*) echo asked >> "$here/asked"; until [ -e "$here/go" ]; do sleep 0.1; done
    echo 'flist: https://slow/x: not done within 120 s' >&2; exit 1;;
*lies*) echo '{"result":"fetched","hash":"../../../etc/passwd","md5":"x"}';;
*) echo 'flist: https://none/x: the hub has no such image' >&2; exit 1;;
esac
"#;

/// A chain on which everything is paid.
#[derive(Default)]
struct Paid(Mutex<BTreeMap<ContractId, Contract>>);

impl Ledger for Paid {
    fn contract(&self, id: ContractId) -> Reply<'_, Option<Contract>> {
        let contract = self.0.lock().unwrap().get(&id).cloned();
        Box::pin(async move { Ok(contract) })
    }

    fn active_contracts(&self) -> Reply<'_, Vec<ContractId>> {
        let ids = self.0.lock().unwrap().keys().copied().collect();
        Box::pin(async move { Ok(ids) })
    }

    fn keys(&self, twins: BTreeSet<TwinId>) -> Reply<'_, Keys> {
        Box::pin(async move { Ok(twins.into_iter().map(|twin| (twin, key_of(twin.0))).collect()) })
    }

    fn report_resources(&self, _used: Vec<(ContractId, Capacity)>) -> Reply<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

fn secret(twin: u32) -> SigningKey {
    SigningKey::from_bytes(&[u8::try_from(twin).unwrap(); 32])
}

fn key_of(twin: u32) -> AccountKey {
    AccountKey(secret(twin).verifying_key().to_bytes())
}

fn machine(flist: &str) -> Value {
    json!({"version": 0, "name": "vm", "type": "zmachine-light", "data": {
        "flist": flist, "size": 0, "entrypoint": "/init",
        "network": {"interfaces": [{"network": "net", "ip": "10.1.2.3"}]},
        "compute_capacity": {"cpu": 1, "memory": 256 << 20},
    }})
}

fn volume() -> Value {
    json!({"version": 0, "name": "data", "type": "volume", "data": {"size": 1 << 20}})
}

/// A deployment of one workload, signed by its twin, and its hash.
fn signed(twin: u32, contract: u64, workload: &Value) -> (Vec<u8>, String) {
    let mut value = json!({
        "version": 0, "twin_id": twin, "contract_id": contract, "workloads": [workload],
        "signature_requirement": {
            "weight_required": 1, "requests": [{"twin_id": twin, "required": true, "weight": 1}],
        },
    });
    let read = SignedDeployment::read(value.to_string().as_bytes()).unwrap();
    let hash = read.deployment().hash(Default::default()).unwrap();
    let signature = secret(twin).sign(hash.as_bytes()).to_bytes();
    let digits: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let scheme = Scheme::Ed25519.to_string();
    value["signature_requirement"]["signatures"] =
        json!([{"twin_id": twin, "signature": digits, "signature_type": scheme}]);
    (value.to_string().into_bytes(), hash.to_string())
}

/// A node's engine on this machine.
struct World {
    folder: TempDir,
    supervisor: Child,
    ledger: Arc<Paid>,
    machine: Arc<Machine>,
    engine: Engine,
}

impl World {
    /// None, with a message, if something is missing.
    async fn start() -> Option<Self> {
        let test = std::env::current_exe().unwrap();
        let supervise = test.parent()?.parent()?.join("supervise");
        if !supervise.is_file() {
            eprintln!("skipped: {} is not built", supervise.display());
            return None;
        }
        // Without it, a machine is no node and takes no deployments.
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            eprintln!("skipped: /dev/kvm: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let socket = at("supervise.sock");
        let mut command = Command::new(supervise);
        let supervisor =
            command.arg("--socket").arg(&socket).stderr(Stdio::null()).spawn().unwrap();
        until("it supervises", || supervise::Client::connect(&socket).is_ok()).await;
        std::fs::create_dir(at("pool")).unwrap();
        std::fs::write(at("flist"), FLIST).unwrap();
        std::fs::set_permissions(at("flist"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let machine = Arc::new(Machine::open(config(&folder, &socket)).unwrap());
        let store = Store::open(at("deployments"), StoreKey::from_seed(&[9; 32])).unwrap();
        let (ledger, host) = (Arc::new(Paid::default()), Arc::clone(&machine) as Arc<dyn Host>);
        let contracts = Arc::clone(&ledger) as Arc<dyn Ledger>;
        let engine = Engine::start(EngineConfig::new(NODE), store, contracts, host);
        let engine = engine.await.unwrap();
        Some(Self { folder, supervisor, ledger, machine, engine })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn deploy(&self, twin: u32, contract: u64, workload: &Value) {
        let (bytes, hash) = signed(twin, contract, workload);
        let (id, twin_id) = (ContractId(contract), TwinId(twin));
        let subject = Subject::Node { node_id: NODE, hash };
        let paid = Contract { id, twin_id, state: ContractState::Created, subject };
        self.ledger.0.lock().unwrap().insert(id, paid);
        // Of one twin, only so many are taken in before the chain has said that they are paid.
        while let Err(error) = self.engine.deploy(twin_id, &bytes).await {
            assert!(error.to_string().contains("no contract pays for yet"), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// State and words of a deployment's workload.
    fn result(&self, twin: u32, contract: u64) -> (State, String) {
        let deployment = self.engine.get(TwinId(twin), ContractId(contract)).unwrap();
        let result = &deployment.workloads[0].result;
        (result.state, result.message.clone())
    }

    async fn settled(&self, twin: u32, contract: u64) -> (State, String) {
        until("it settles", || self.result(twin, contract).0 != State::Init).await;
        self.result(twin, contract)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Programs die with it.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn config(folder: &TempDir, supervisor: &Path) -> Config {
    let at = |name: &str| folder.path().join(name);
    let flist = at("flist");
    let value = json!({
        "state": at("state"), "runtime": at("run"), "supervisor": supervisor,
        // Of these, none comes to be run.
        "programs": {
            "vmm": flist, "flist": flist, "mycelium": flist, "zdb": flist, "guestio": flist,
            "nft": flist,
        },
        "guest": {"kernel": flist, "initramfs": flist},
        "pools": [{"name": "ssd", "path": at("pool"), "kind": "ssd"}],
    });
    serde_json::from_value(value).unwrap()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_does_reaches_its_users_in_words_and_nobody_else() {
    let Some(world) = World::start().await else { return };
    for contract in 0..SLOW_COUNT {
        // Each at an address of its own, so that nobody waits for anybody else's.
        world.deploy(UNLUCKY, 100 + contract, &machine(&format!("https://slow/{contract}"))).await;
    }
    until("stores are asked", || world.path("asked").exists()).await;

    // Somebody else gets a volume, and answers from other stores, while all of those are waited for.
    world.deploy(OTHER, 1, &volume()).await;
    world.deploy(OTHER, 2, &machine("https://none/x")).await;
    world.deploy(OTHER, 3, &machine("https://lies/x")).await;
    assert_eq!(world.settled(OTHER, 1).await, (State::Ok, String::new()));
    let words = "image: https://none/x: the hub has no such image";
    assert_eq!(world.settled(OTHER, 2).await, (State::Error, words.to_owned()));
    let words = "image: the node's flist program says what makes no sense";
    assert_eq!(world.settled(OTHER, 3).await, (State::Error, words.to_owned()));
    for contract in 0..SLOW_COUNT {
        assert_eq!(world.result(UNLUCKY, 100 + contract).0, State::Init);
    }
    // Nor does a node that looks what there is wait for them.
    let begin = Instant::now();
    world.engine.reconcile().await.unwrap();
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());

    std::fs::write(world.path("go"), "").unwrap();
    for contract in 0..SLOW_COUNT {
        let (state, words) = world.settled(UNLUCKY, 100 + contract).await;
        assert_eq!(state, State::Error);
        assert!(words.ends_with(": not done within 120 s"), "{words}");
    }
    // Of machines that never were, nothing is left.
    let there: Vec<_> = world.machine.inventory().await.unwrap();
    let there: Vec<_> = there.iter().map(ToString::to_string).collect();
    assert_eq!(there, ["2-1-data"]);
    assert_eq!(world.machine.remains().await.unwrap(), []);
    assert_eq!(std::fs::read_dir(world.path("state/vms")).unwrap().count(), 0);
    let asked = std::fs::read_to_string(world.path("asked")).unwrap();
    assert_eq!(asked.lines().count(), usize::try_from(SLOW_COUNT).unwrap(), "each once");
}
