//! Somebody who speaks the protocols lies. Each lie is refused in the words that existing clients know, and nothing
//! is made.

use std::sync::Arc;

use bytes::Bytes;
use hostd_chain::SigningChain;
use hostd_chain::calls::NodeContractSpec;
use hostd_grid::challenge::Form;
use hostd_grid::deployment::{SignatureRequest, SignatureRequirement};
use hostd_grid::secret::SecretText;
use hostd_grid::signature::Scheme as GridScheme;
use hostd_grid::workload::{WorkloadResult, Zdb};
use hostd_grid::{ContractId, Deployment, Name, TwinId, Workload, WorkloadData};
use hostd_rmb::identity::Identity;
use hostd_rmb::peer::{Call, Peer, PeerConfig};
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::server::Commands;
use hostd_rmb::signature::{Scheme, Version};
use hostd_rmb::twins::CachedTwins;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::world::{TIME_MAX, World, spec};

/// The user's twin, who was there first.
const USER: TwinId = TwinId(1);

/// Somebody with an account, a twin, and a connection.
pub(crate) struct Liar<'a> {
    world: &'a World,
    identity: Arc<Identity>,
    chain: SigningChain,
    pub(crate) twin: TwinId,
    peer: Arc<Peer>,
}

impl<'a> Liar<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let identity = Arc::new(Identity::from_seed(Scheme::Ed25519, &[0x44; 32]).unwrap());
        let chain = world.chain(&identity);
        let inside = world.runtime.enter();
        let twin = world.runtime.block_on(async {
            chain.ensure_account(&world.network.activation_urls).await.unwrap();
            let key = identity.encryption_key(Version::V1).to_bytes();
            chain.ensure_twin(Some("127.0.0.1"), Some(&key)).await.unwrap()
        });
        let config = PeerConfig {
            twin: hostd_rmb::twins::TwinId::new(twin).unwrap(),
            session: None,
            relays: vec![world.network.relays_urls[0].parse().unwrap()],
            encryption: Some(Version::V1),
            roots: TrustedRoots::new(None).unwrap(),
            limits: Default::default(),
        };
        let twins = Arc::new(CachedTwins::new(Arc::new(chain.chain().clone())));
        let peer = Peer::start(config, Arc::clone(&identity), twins, Commands::default()).unwrap();
        assert!(world.runtime.block_on(peer.wait_connected(TIME_MAX)));
        drop(inside);
        Self { world, identity, chain, twin: TwinId(twin), peer: Arc::new(peer) }
    }

    /// A deployment of `twin` for that contract, which this one signs.
    pub(crate) fn deployment(&self, twin: TwinId, contract: u64) -> Deployment {
        let password = SecretText::new("secret");
        let zdb = Zdb { size: 1 << 30, mode_name: "user".into(), password, public: false };
        let workload = Workload {
            version: 0,
            name: Name::new("db"),
            data: WorkloadData::Zdb(zdb),
            metadata: String::new(),
            description: String::new(),
            result: WorkloadResult::default(),
        };
        let requests = vec![SignatureRequest { twin_id: twin, required: true, weight: 1 }];
        let signature_requirement =
            SignatureRequirement { requests, weight_required: 1, ..Default::default() };
        let mut deployment = Deployment {
            twin_id: twin,
            contract_id: ContractId(contract),
            signature_requirement,
            workloads: vec![workload],
            ..Deployment::default()
        };
        self.sign(&mut deployment);
        deployment
    }

    fn sign(&self, deployment: &mut Deployment) {
        let signature = self.identity.sign_bare(&deployment.signing_message());
        deployment.add_signature(deployment.twin_id, GridScheme::Ed25519, &signature);
    }

    /// A contract for a deployment that says of itself what `hash` says.
    fn pay(&self, chain: &SigningChain, node_id: u32, hash: &str) -> u64 {
        let hash = hash.as_bytes().try_into().unwrap();
        let (data, public_ips, solution_provider) = (b"{}".to_vec(), 0, None);
        let spec = NodeContractSpec { node_id, hash, data, public_ips, solution_provider };
        self.world.runtime.block_on(chain.create_node_contract(&spec)).unwrap()
    }

    /// Makes many calls at a time.
    pub(crate) fn call_all(&self, calls: impl Iterator<Item = Call>) -> Vec<Result<Bytes, String>> {
        self.world.runtime.block_on(async {
            let mut answers = JoinSet::new();
            for call in calls {
                let peer = Arc::clone(&self.peer);
                answers.spawn(async move { peer.call(call).await });
            }
            let answers = answers.join_all().await.into_iter();
            answers.map(|answer| answer.map_err(|error| error.to_string())).collect()
        })
    }

    pub(crate) fn call(&self, command: &str, payload: &Value) -> Result<Bytes, String> {
        let node = hostd_rmb::twins::TwinId::new(self.world.node_twin()).unwrap();
        let call = Call::new(node, command, payload.to_string()).time_max(TIME_MAX);
        let answer = self.world.runtime.block_on(self.peer.call(call));
        answer.map_err(|error| error.to_string())
    }

    fn deploy(&self, deployment: &Deployment) -> Result<Bytes, String> {
        self.call("zos.deployment.deploy", &serde_json::to_value(deployment).unwrap())
    }

    /// What the node thinks of a deployment that it took in.
    fn verdict(&self, contract: u64) -> String {
        let end = std::time::Instant::now() + TIME_MAX;
        loop {
            let question = json!({"contract_id": contract});
            let answer = self.call("zos.deployment.changes", &question).unwrap();
            let changes: Vec<Value> = serde_json::from_slice(&answer).unwrap();
            let result = &changes.last().unwrap()["result"];
            if result["state"] != "init" {
                assert_eq!(result["state"], "error", "{changes:?}");
                return result["message"].as_str().unwrap().to_owned();
            }
            assert!(std::time::Instant::now() < end, "{changes:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

#[test]
fn a_lie_is_refused_in_the_words_that_clients_know() {
    let world = World::new(&[]);
    let liar = Liar::new(&world);
    let users = world.zdb("users");
    world.machine.take_done();
    refused_at_once(&liar, users);
    refused_by_the_chain(&liar);
    assert_eq!(world.machine.take_done(), [""; 0], "nothing was made of any of it");
    assert_eq!(world.grid(&["show", &users.to_string(), "--json"]).json()["version"], 0);
}

/// Lies that a message gives away.
fn refused_at_once(liar: &Liar<'_>, users: u64) {
    let me = liar.twin;
    let honest = liar.deployment(me, 77);
    let wire = serde_json::to_value(&honest).unwrap();
    let refused = |deployment: &Deployment, why: &str| {
        assert_eq!(liar.deploy(deployment).unwrap_err(), why);
    };
    refused(
        &liar.deployment(USER, users),
        &format!("twin id mismatch (deployment: {USER}, message: {me})"),
    );

    let mut changed = honest.clone();
    changed.metadata = "something else was signed".to_owned();
    refused(&changed, "failed to verify signature");

    let mut unsigned = honest.clone();
    unsigned.signature_requirement.signatures.clear();
    refused(&unsigned, &format!("missing required signature for twin '{me}'"));

    let mut unasked = honest.clone();
    unasked.signature_requirement.requests.clear();
    refused(&unasked, "originator twin id must be in the signature requests");

    let mut light = honest.clone();
    light.signature_requirement.weight_required = 2;
    liar.sign(&mut light);
    refused(&light, "required signature weight is not reached");

    let mut second = honest;
    second.version = 1;
    liar.sign(&mut second);
    refused(&second, "expected version to be 0 on deployment creation: invalid version");

    // Somebody else's deployment is not there, for all that others are told.
    let mut theirs = liar.deployment(me, users);
    theirs.version = 1;
    liar.sign(&mut theirs);
    let update = liar.call("zos.deployment.update", &serde_json::to_value(&theirs).unwrap());
    assert_eq!(update.unwrap_err(), "deployment does not exist");
    let question = json!({"contract_id": users});
    for command in ["zos.deployment.get", "zos.deployment.changes"] {
        assert_eq!(liar.call(command, &question).unwrap_err(), "deployment not found");
    }
    assert_eq!(
        liar.call("zos.deployment.delete", &question).unwrap_err(),
        "deletion over the api is disabled, please cancel your contract instead"
    );

    // Numbers that overflow, and data that is not there.
    let mut overflow = wire.clone();
    overflow["workloads"][0]["data"]["size"] = json!("18446744073709551616");
    assert!(liar.call("zos.deployment.deploy", &overflow).is_err());
    let mut nothing = wire;
    nothing["workloads"][0]["data"] = Value::Null;
    assert!(liar.call("zos.deployment.deploy", &nothing).is_err());
    assert!(liar.call("zos.no.such", &Value::Null).unwrap_err().contains("function is not found"));
}

/// Lies that the contract gives away. Clients find the verdict in the states of workloads.
fn refused_by_the_chain(liar: &Liar<'_>) {
    let (me, world) = (liar.twin, liar.world);
    let node = world.node_id;
    let hash = liar.deployment(me, 0).hash(Form::Current).unwrap().to_string();
    let judged = |contract: u64, why: &str| {
        liar.deploy(&liar.deployment(me, contract)).unwrap();
        assert_eq!(liar.verdict(contract), why);
    };
    judged(4711, "failed to get deployment contract");

    let other = liar.pay(&liar.chain, node, &"0".repeat(32));
    judged(other, "contract hash does not match deployment hash");

    let name = world.runtime.block_on(liar.chain.create_name_contract("liar")).unwrap();
    judged(name, "invalid contract type, expecting node contract");

    // Another node of the farm, which is not on.
    let identity = Arc::new(Identity::from_seed(Scheme::Ed25519, &[0x55; 32]).unwrap());
    let chain = world.chain(&identity);
    let elsewhere = world.runtime.block_on(async {
        chain.ensure_account(&world.network.activation_urls).await.unwrap();
        chain.ensure_twin(Some("127.0.0.1"), None).await.unwrap();
        chain.ensure_node(&spec(1)).await.unwrap()
    });
    let there = liar.pay(&liar.chain, elsewhere, &hash);
    judged(there, "invalid node address in contract");

    // A contract that somebody else pays for.
    let theirs = liar.pay(&chain, node, &hash);
    let payer = world.runtime.block_on(chain.chain().twin_of_account(chain.account())).unwrap();
    let why =
        format!("contract of twin {} cannot pay for a deployment of twin {me}", payer.unwrap());
    judged(theirs, &why);
}
