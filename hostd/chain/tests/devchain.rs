//! The client against a chain of our own: everything a deployer and a node do, in order.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

use std::sync::Arc;
use std::time::Duration;

use devchain::{ChainOptions, DevChain, RpcServer};
use hostd_chain::calls::{NodeContractSpec, NodeSpec};
use hostd_chain::event::{NodeContractCanceled, PowerTargetChanged};
use hostd_chain::types::{
    ContractData, ContractResources, ContractState, Interface, Ip4, Location, Power, PowerState,
    Resources,
};
use hostd_chain::{Chain, ChainConfig, ChainError, Event, SigningChain};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;

/// The whole story takes a second or two; a slow machine may take longer.
const BOUND: Duration = Duration::from_secs(120);

struct Grid {
    dev: DevChain,
    chain: Chain,
}

async fn grid() -> (Grid, RpcServer) {
    let options = ChainOptions { block_time: None, ..ChainOptions::default() };
    let dev = DevChain::open(options).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = dev.serve(listener).unwrap();
    let url = format!("ws://{}", server.address());
    let mut config = ChainConfig::new(vec![url], TrustedRoots::new(None).unwrap());
    config.genesis = Some(dev.genesis().0);
    let chain = Chain::connect(config).await.unwrap();
    (Grid { dev, chain }, server)
}

impl Grid {
    /// Somebody with money who has accepted the terms.
    async fn somebody(&self, scheme: Scheme, phrase: &str) -> SigningChain {
        let identity = Arc::new(Identity::from_phrase(scheme, phrase).unwrap());
        let chain = self.chain.signed_by(identity);
        let dev = self.dev.clone();
        let account = chain.account();
        tokio::task::spawn_blocking(move || dev.fund(account.into(), 1_000_000_000_000).unwrap())
            .await
            .unwrap();
        chain.ensure_account(&[]).await.unwrap();
        chain
    }
}

fn node_spec(farm_id: u32) -> NodeSpec {
    let gib = 1 << 30;
    NodeSpec {
        farm_id,
        resources: Resources { hru: 0, sru: 512 * gib, cru: 8, mru: 16 * gib },
        location: Location {
            city: "Ghent".into(),
            country: "Belgium".into(),
            latitude: "51.05".into(),
            longitude: "3.71".into(),
        },
        interfaces: vec![Interface {
            name: "zos".into(),
            mac: "aa:bb:cc:dd:ee:ff".into(),
            ips: vec!["10.0.0.1".into()],
        }],
        secure_boot: false,
        virtualized: true,
        serial_number: Some("board-1".to_owned()),
    }
}

fn contract(node_id: u32, digit: u8) -> NodeContractSpec {
    let hash = [digit; 32];
    NodeContractSpec {
        node_id,
        hash,
        data: br#"{"type":"vm"}"#.to_vec(),
        public_ips: 0,
        solution_provider: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_a_node_and_its_contracts() {
    tokio::time::timeout(BOUND, story()).await.expect("it takes too long");
}

async fn story() {
    let (grid, server) = grid().await;
    let farmer = grid.somebody(Scheme::Sr25519, "//Farmer").await;
    let node = grid.somebody(Scheme::Ed25519, "//Node").await;
    let farmer_twin = farmer.ensure_twin(None, None).await.unwrap();
    assert_eq!(farmer.ensure_twin(None, None).await.unwrap(), farmer_twin);
    let ip = Ip4 { ip: "185.206.122.33/24".into(), gw: "185.206.122.1".into() };
    let farm = farmer.create_farm("a-farm", &[ip]).await.unwrap();
    assert_eq!(grid.chain.farm_by_name("a-farm").await.unwrap(), Some(farm));
    let taken = farmer.create_farm("a-farm", &[]).await.unwrap_err();
    let refusal = taken.refusal().unwrap();
    assert!(refusal.pallet == "TfgridModule" && refusal.sentence().is_some(), "{refusal}");

    let node_twin = node.ensure_twin(Some("relay.grid.tf"), Some(&[2; 33])).await.unwrap();
    let twin = grid.chain.twin_by_id(node_twin).await.unwrap().unwrap();
    assert_eq!(twin.relay.unwrap(), "relay.grid.tf");
    let spec = node_spec(farm);
    let node_id = node.ensure_node(&spec).await.unwrap();
    let before = grid.chain.head().await.unwrap();
    assert_eq!(node.ensure_node(&spec).await.unwrap(), node_id);
    assert_eq!(grid.chain.head().await.unwrap(), before, "nothing differs, nothing is sent");
    assert_eq!(grid.chain.node_of_twin(node_twin).await.unwrap(), Some(node_id));
    assert_eq!(grid.chain.nodes_of_farm(farm).await.unwrap(), [node_id]);
    assert!(!spec.differs_from(&grid.chain.node(node_id).await.unwrap().unwrap()));
    let now = grid.dev.timestamp_ms() / 1000;
    node.report_uptime(60, now).await.unwrap();

    let mut follow = grid.chain.follow(grid.chain.head().await.unwrap() + 1);
    contracts(&grid, &farmer, &node, node_id, &mut follow).await;
    farmer.set_power_target(node_id, Power::Down).await.unwrap();
    node.set_power_state(Power::Down).await.unwrap();
    let power = grid.chain.node_power(node_id).await.unwrap();
    assert!(matches!(power.state, PowerState::Down(_)) && power.target == Power::Down);
    let changed = loop {
        let block = follow.next().await;
        assert_eq!(block.missed, None);
        if let Some(event) = block.events.into_iter().next() {
            break event;
        }
    };
    let power_target = Power::Down;
    let expected = PowerTargetChanged { farm_id: farm, node_id, power_target };
    assert_eq!(changed, Event::PowerTargetChanged(expected));

    farmer.kv_set(b"key", b"value").await.unwrap();
    let value = grid.chain.kv(farmer.account(), b"key").await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"value"[..]));
    server.stop().await;
    assert!(grid.chain.contract(1).await.unwrap_err().is_unreachable());
}

async fn contracts(
    grid: &Grid,
    farmer: &SigningChain,
    node: &SigningChain,
    node_id: u32,
    follow: &mut hostd_chain::Follow,
) {
    let first = contract(node_id, b'a');
    let id = farmer.create_node_contract(&first).await.unwrap();
    let found = grid.chain.contract(id).await.unwrap().unwrap();
    assert_eq!(found.state, ContractState::Created);
    let ContractData::NodeContract(data) = &found.contract_type else { panic!("{found:?}") };
    assert_eq!((data.node_id, data.deployment_hash), (node_id, first.hash));
    assert_eq!(grid.chain.contract_by_hash(node_id, first.hash).await.unwrap(), Some(id));
    let again = farmer.create_node_contract(&first).await.unwrap_err();
    assert!(again.refusal().unwrap().is("SmartContractModule", "ContractIsNotUnique"), "{again}");

    let used = Resources { hru: 0, sru: 1 << 30, cru: 1, mru: 1 << 30 };
    let report = ContractResources { contract_id: id, used };
    node.report_resources(&[report]).await.unwrap();
    assert_eq!(grid.chain.contract_resources(id).await.unwrap(), report);
    farmer.update_node_contract(id, &[b'b'; 32], b"").await.unwrap();
    assert_eq!(grid.chain.contract_by_hash(node_id, [b'b'; 32]).await.unwrap(), Some(id));

    let more = [contract(node_id, b'c'), contract(node_id, b'd')];
    let ids = farmer.create_node_contracts(&more).await.unwrap();
    let all = farmer.create_node_contracts(&[contract(node_id, b'e'), more[0].clone()]).await;
    assert!(matches!(all, Err(ChainError::Refused { .. })), "all or none: {all:?}");
    let active = grid.chain.node_contracts(node_id).await.unwrap();
    assert_eq!(active.ids, [&[id], ids.as_slice()].concat());
    let unknown = ids[1] + 100;
    let many = grid.chain.contracts(&[ids[1], unknown, id]).await.unwrap();
    let numbers: Vec<_> = many.iter().map(|contract| contract.contract_id).collect();
    assert_eq!(numbers, [ids[1], id]);
    assert_eq!(Some(&many[1]), grid.chain.contract(id).await.unwrap().as_ref());
    let name = farmer.create_name_contract("a-name").await.unwrap();
    assert_eq!(grid.chain.name_contract("a-name").await.unwrap(), Some(name));

    let wanted = [&[id], ids.as_slice()].concat();
    farmer.cancel_contracts(&wanted).await.unwrap();
    let since = grid.chain.head().await.unwrap();
    assert!(grid.chain.confirmed_gone(id, since).await.unwrap());
    assert!(grid.chain.node_contracts(node_id).await.unwrap().ids.is_empty());
    let mut canceled = Vec::new();
    while canceled.len() < wanted.len() {
        for event in follow.next().await.events {
            if let Event::NodeContractCanceled(NodeContractCanceled { contract_id, .. }) = event {
                canceled.push(contract_id);
            }
        }
    }
    assert_eq!(canceled, wanted);
}
