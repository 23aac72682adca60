//! The chain as a client sees it: registration, contracts, bills, grace, power and restarts.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

use std::time::{Duration, Instant};

use codec::Decode as _;
use devchain::{
    Block, ChainOptions, DevChain, TxStatus, genesis,
    pallets::{smart_contract, tfgrid},
    runtime::{Runtime, RuntimeCall, RuntimeEvent},
    sign_call,
    types::{
        AccountId32, ContractResources, ContractState, IP4, Interface, Location, Power, Resources,
        TFT,
    },
};
use sp_core::{Pair as _, sr25519};
use sp_runtime::DispatchError;

const TIMEOUT: Duration = Duration::from_secs(20);
const GIB: u64 = 1 << 30;

/// A chain with bills every ten blocks and thirty blocks of grace, in memory.
fn chain() -> DevChain {
    DevChain::open(options()).unwrap()
}

fn options() -> ChainOptions {
    ChainOptions {
        block_time: None,
        billing_frequency: 10,
        grace_blocks: 30,
        ..ChainOptions::default()
    }
}

/// Someone with a key.
struct User<'a> {
    chain: &'a DevChain,
    key: sr25519::Pair,
}

impl<'a> User<'a> {
    fn new(chain: &'a DevChain, name: &str) -> Self {
        Self { chain, key: genesis::dev_key(name) }
    }

    fn account(&self) -> AccountId32 {
        self.key.public().into()
    }

    /// Signs and sends a call, and answers the block it is in.
    fn send(&self, call: impl Into<RuntimeCall>) -> Block {
        let nonce = self.chain.next_nonce(&self.account());
        let extrinsic = sign_call(call.into(), &self.key, nonce, self.chain.genesis());
        let (_, mut statuses) = self.chain.submit_and_watch(extrinsic).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match statuses.try_recv() {
                Ok(TxStatus::Finalized(hash)) => {
                    let head = self.chain.head().number;
                    let mut blocks = (0..=head).rev().filter_map(|number| self.chain.block(number));
                    return blocks.find(|block| block.hash == hash).unwrap();
                }
                Ok(TxStatus::Ready | TxStatus::Future | TxStatus::InBlock(_)) => {}
                Ok(status) => panic!("{status:?}"),
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("no block: {error}"),
            }
        }
    }

    /// Sends a call that must fail with this error.
    fn fails(&self, call: impl Into<RuntimeCall>, error: &str) {
        let block = self.send(call);
        let failure = block.events.iter().find_map(|event| match event {
            RuntimeEvent::System(frame_system::Event::ExtrinsicFailed {
                dispatch_error, ..
            }) => Some(error_name(dispatch_error)),
            _ => None,
        });
        let failure = failure.unwrap_or_else(|| panic!("{error} did not happen"));
        assert!(failure.contains(error), "{failure} is not {error}");
    }

    /// Sends a call that must succeed.
    fn does(&self, call: impl Into<RuntimeCall>) -> Block {
        let block = self.send(call);
        for event in &block.events {
            if let RuntimeEvent::System(frame_system::Event::ExtrinsicFailed {
                dispatch_error,
                ..
            }) = event
            {
                panic!("{dispatch_error:?}");
            }
        }
        block
    }

    fn twin(&self) -> u32 {
        self.does(tfgrid::Call::user_accept_tc {
            document_link: b"https://example.org/terms".to_vec().try_into().unwrap(),
            document_hash: b"c0ffee".to_vec().try_into().unwrap(),
        });
        self.does(tfgrid::Call::create_twin { relay: None, pk: None });
        self.chain.view(None).unwrap().twin_of_account(&self.account()).unwrap()
    }
}

/// The name of an error. A chain keeps its number only.
fn error_name(error: &DispatchError) -> String {
    match error {
        DispatchError::Module(module) => {
            let mut number = &module.error[..];
            match module.index {
                25 => format!("{:?}", tfgrid::Error::<Runtime>::decode(&mut number).unwrap()),
                26 => {
                    format!("{:?}", smart_contract::Error::<Runtime>::decode(&mut number).unwrap())
                }
                _ => format!("{error:?}"),
            }
        }
        other => format!("{other:?}"),
    }
}

fn location() -> Location {
    Location {
        city: b"Ghent".to_vec().try_into().unwrap(),
        country: b"Belgium".to_vec().try_into().unwrap(),
        latitude: b"51.05".to_vec().try_into().unwrap(),
        longitude: b"3.72".to_vec().try_into().unwrap(),
    }
}

fn create_node() -> tfgrid::Call<Runtime> {
    let interface = Interface {
        name: b"zos".to_vec().try_into().unwrap(),
        mac: b"00:16:3e:5e:6c:00".to_vec().try_into().unwrap(),
        ips: vec![b"10.0.0.2/24".to_vec().try_into().unwrap()].try_into().unwrap(),
    };
    tfgrid::Call::create_node {
        farm_id: 1,
        resources: Resources { hru: 0, sru: 200 * GIB, cru: 4, mru: 8 * GIB },
        location: location(),
        interfaces: vec![interface].try_into().unwrap(),
        secure_boot: false,
        virtualized: true,
        serial_number: None,
    }
}

/// Farm 1 of Alice with two public addresses, node 1 of Bob.
fn farm_and_node<'a>(chain: &'a DevChain) -> (User<'a>, User<'a>) {
    let (alice, bob) = (User::new(chain, "Alice"), User::new(chain, "Bob"));
    alice.twin();
    bob.twin();
    let ip = |ip: &str| IP4 {
        ip: ip.as_bytes().to_vec().try_into().unwrap(),
        gw: b"185.206.122.1".to_vec().try_into().unwrap(),
    };
    alice.does(tfgrid::Call::create_farm {
        name: b"freefarm".to_vec().try_into().unwrap(),
        public_ips: vec![ip("185.206.122.33/24"), ip("185.206.122.34/24")].try_into().unwrap(),
    });
    bob.does(create_node());
    (alice, bob)
}

fn create_contract(hash: u8, public_ips: u32) -> smart_contract::Call<Runtime> {
    smart_contract::Call::create_node_contract {
        node_id: 1,
        deployment_hash: [hash; 32],
        deployment_data: b"{}".to_vec().try_into().unwrap(),
        public_ips,
        solution_provider_id: None,
    }
}

fn contract_events(blocks: impl IntoIterator<Item = Block>) -> Vec<String> {
    blocks
        .into_iter()
        .flat_map(|block| block.events)
        .filter_map(|event| match event {
            RuntimeEvent::SmartContractModule(event) => {
                let text = format!("{event:?}");
                let end = text.find([' ', '(', '{']).unwrap_or(text.len());
                Some(text[..end].trim_start_matches("Event::").to_owned())
            }
            _ => None,
        })
        .collect()
}

fn blocks(chain: &DevChain, after: u32) -> Vec<Block> {
    (after + 1..=chain.head().number).filter_map(|number| chain.block(number)).collect()
}

#[test]
fn registration_follows_the_order_of_checks() {
    let chain = chain();
    let dave = User::new(&chain, "Dave");
    dave.fails(
        tfgrid::Call::create_twin { relay: None, pk: None },
        "UserDidNotSignTermsAndConditions",
    );
    assert_eq!(dave.twin(), 1);
    dave.fails(tfgrid::Call::create_twin { relay: None, pk: None }, "TwinWithPubkeyExists");
    dave.fails(create_node(), "FarmNotExists");
    let relay = Some(b"relay:80".to_vec().try_into().unwrap());
    dave.fails(tfgrid::Call::update_twin { relay, pk: None }, "InvalidRelay");
    let (_, bob) = farm_and_node(&chain);
    bob.fails(create_node(), "NodeWithTwinIdExists");
    let now = chain.timestamp_ms() / 1000;
    let before = chain.view(None).unwrap().account(&bob.account()).data.free;
    bob.does(tfgrid::Call::report_uptime_v2 { uptime: 5, timestamp_hint: now });
    let after = chain.view(None).unwrap().account(&bob.account()).data.free;
    assert_eq!(before, after, "an uptime report is free");
    bob.fails(
        tfgrid::Call::report_uptime_v2 { uptime: 5, timestamp_hint: now - 100 },
        "InvalidTimestampHint",
    );
}

#[test]
fn a_contract_takes_addresses_and_gives_them_back() {
    let chain = chain();
    let (_, bob) = farm_and_node(&chain);
    let charlie = User::new(&chain, "Charlie");
    charlie.twin();
    charlie.fails(create_contract(1, 3), "FarmHasNotEnoughPublicIPs");
    charlie.does(create_contract(1, 1));
    charlie.fails(create_contract(1, 0), "ContractIsNotUnique");
    charlie.fails(create_contract(2, 2), "FarmHasNotEnoughPublicIPsFree");
    bob.fails(
        smart_contract::Call::cancel_contract { contract_id: 1 },
        "TwinNotAuthorizedToCancelContract",
    );
    let view = chain.view(None).unwrap();
    assert_eq!(view.active_contracts(1), [1]);
    assert_eq!(view.farm(1).unwrap().public_ips[0].contract_id, 1);
    let block = charlie.does(smart_contract::Call::cancel_contract { contract_id: 1 });
    let events = contract_events([block]);
    assert!(events.contains(&"IPsFreed".to_owned()), "{events:?}");
    assert_eq!(events.last().unwrap(), "NodeContractCanceled");
    let now = chain.view(None).unwrap();
    assert!(now.contract(1).is_none() && now.active_contracts(1).is_empty());
    assert!(now.farm(1).unwrap().public_ips.iter().all(|ip| ip.contract_id == 0));
    assert!(view.contract(1).is_some(), "the old view is still as it was");
}

#[test]
fn a_contract_that_never_reported_is_free() {
    let chain = chain();
    let (_, bob) = farm_and_node(&chain);
    let charlie = User::new(&chain, "Charlie");
    charlie.twin();
    charlie.does(create_contract(1, 0));
    let start = chain.head().number;
    chain.fast_forward(20).unwrap();
    assert!(contract_events(blocks(&chain, start)).is_empty());
    bob.does(smart_contract::Call::report_contract_resources {
        contract_resources: vec![ContractResources {
            contract_id: 1,
            used: Resources { hru: 0, sru: 20 * GIB, cru: 1, mru: GIB },
        }],
    });
    let start = chain.head().number;
    chain.fast_forward(10).unwrap();
    assert_eq!(contract_events(blocks(&chain, start)), ["ContractBilled"]);
}

/// A contract of Charlie with one public address, and no money but for fees.
fn poor_contract<'a>(chain: &'a DevChain) -> User<'a> {
    farm_and_node(chain);
    let charlie = User::new(chain, "Charlie");
    charlie.twin();
    charlie.does(create_contract(1, 1));
    let free = chain.view(None).unwrap().account(&charlie.account()).data.free;
    charlie.does(pallet_balances::Call::transfer_keep_alive {
        dest: genesis::dev_account("Dave").into(),
        value: free - TFT / 1000,
    });
    charlie
}

#[test]
fn grace_ends_when_the_money_comes() {
    let chain = chain();
    let charlie = poor_contract(&chain);
    let start = chain.head().number;
    chain.fast_forward(20).unwrap();
    let events = contract_events(blocks(&chain, start));
    // A block that came by itself while things were made can bring a bill that still could be paid.
    assert_eq!(
        events[events.len().saturating_sub(3)..],
        ["ContractBilled", "ContractPaymentOverdrawn", "ContractGracePeriodStarted"]
    );
    let contract = chain.view(None).unwrap().contract(1).unwrap();
    assert!(matches!(contract.state, ContractState::GracePeriod(_)));
    let funded = chain.fund(charlie.account(), 1000 * TFT).unwrap();
    assert_eq!(funded, chain.head());
    let update = smart_contract::Call::update_node_contract {
        contract_id: 1,
        deployment_hash: [7; 32],
        deployment_data: Default::default(),
    };
    charlie.fails(update.clone(), "CannotUpdateContractInGraceState");
    let start = chain.head().number;
    chain.fast_forward(10).unwrap();
    let events = contract_events(blocks(&chain, start));
    assert_eq!(events, ["ContractBilled", "ContractGracePeriodEnded"]);
    charlie.does(update);
}

#[test]
fn grace_elapses_and_the_contract_ends() {
    let chain = chain();
    poor_contract(&chain);
    let start = chain.head().number;
    chain.fast_forward(50).unwrap();
    let blocks = blocks(&chain, start);
    let ended = blocks.iter().any(|block| {
        block.events.iter().any(|event| {
            matches!(
                event,
                RuntimeEvent::SmartContractModule(smart_contract::Event::NodeContractCanceled {
                    contract_id: 1,
                    node_id: 1,
                    ..
                })
            )
        })
    });
    let events = contract_events(blocks);
    assert!(ended, "{events:?}");
    assert!(events.contains(&"ContractGracePeriodElapsed".to_owned()), "{events:?}");
    let view = chain.view(None).unwrap();
    assert!(view.contract(1).is_none());
    assert_eq!(view.account(&genesis::dev_account("Charlie")).data.reserved, 0);
}

#[test]
fn a_rented_node_is_its_tenants_alone() {
    let chain = chain();
    let (alice, _) = farm_and_node(&chain);
    let (charlie, dave) = (User::new(&chain, "Charlie"), User::new(&chain, "Dave"));
    charlie.twin();
    dave.twin();
    alice.does(smart_contract::Call::set_dedicated_node_extra_fee { node_id: 1, extra_fee: 5000 });
    charlie.fails(create_contract(1, 0), "NodeNotAvailableToDeploy");
    charlie.does(smart_contract::Call::create_rent_contract {
        node_id: 1,
        solution_provider_id: None,
    });
    dave.fails(create_contract(1, 0), "NodeNotAvailableToDeploy");
    charlie.does(create_contract(1, 0));
    let down = tfgrid::Call::change_power_target { node_id: 1, power_target: Power::Down };
    alice.fails(down, "NodeHasActiveContracts");
    charlie
        .fails(smart_contract::Call::cancel_contract { contract_id: 1 }, "NodeHasActiveContracts");
    let before = chain.view(None).unwrap().account(&alice.account()).data.free;
    chain.fast_forward(300).unwrap();
    let after = chain.view(None).unwrap().account(&alice.account()).data.free;
    assert!(after > before, "the farmer has the extra fee: {before} then {after}");
    charlie.does(smart_contract::Call::cancel_contract { contract_id: 2 });
    charlie.does(smart_contract::Call::cancel_contract { contract_id: 1 });
    assert_eq!(chain.view(None).unwrap().rent_contract(1), None);
}

#[test]
fn names_are_unique() {
    let chain = chain();
    let charlie = User::new(&chain, "Charlie");
    charlie.twin();
    let name = |name: &str| smart_contract::Call::create_name_contract { name: name.into() };
    charlie.fails(name("ab"), "NameContractNameTooShort");
    charlie.fails(name("Upper"), "NameNotValid");
    charlie.does(name("my-name"));
    charlie.fails(name("my-name"), "NameExists");
    charlie.does(smart_contract::Call::cancel_contract { contract_id: 1 });
    charlie.does(name("my-name"));
}

#[test]
fn a_batch_is_atomic_when_it_says_so() {
    let chain = chain();
    farm_and_node(&chain);
    let charlie = User::new(&chain, "Charlie");
    charlie.twin();
    let calls = vec![create_contract(1, 0).into(), create_contract(1, 0).into()];
    charlie.fails(pallet_utility::Call::batch_all { calls }, "ContractIsNotUnique");
    assert!(chain.view(None).unwrap().contracts().is_empty());
    let calls = vec![create_contract(1, 0).into(), create_contract(2, 0).into()];
    charlie.does(pallet_utility::Call::batch_all { calls });
    assert_eq!(chain.view(None).unwrap().contracts().len(), 2);
}

#[test]
fn a_restart_finds_every_block_and_every_state() {
    let dir = tempfile::tempdir().unwrap();
    let options = ChainOptions { dir: Some(dir.path().to_path_buf()), ..options() };
    let chain = DevChain::open(options.clone()).unwrap();
    farm_and_node(&chain);
    chain.fast_forward(100).unwrap();
    let head = chain.head();
    let time = chain.timestamp_ms();
    let early = chain.view(Some(3)).unwrap().twins();
    drop(chain);
    let chain = DevChain::open(options).unwrap();
    assert_eq!(chain.head(), head);
    assert_eq!(chain.view(Some(3)).unwrap().twins(), early);
    assert_eq!(chain.view(None).unwrap().nodes().len(), 1);
    User::new(&chain, "Dave").twin();
    assert!(chain.timestamp_ms() > time, "skipped time stays skipped");
}

#[test]
fn nonces_may_arrive_in_any_order() {
    let chain = chain();
    let dave = User::new(&chain, "Dave");
    let mut watched = Vec::new();
    for nonce in (0..20).rev() {
        let call = pallet_balances::Call::transfer_keep_alive {
            dest: genesis::dev_account("Eve").into(),
            value: TFT,
        };
        let extrinsic = sign_call(call.into(), &dave.key, nonce, chain.genesis());
        watched.push(chain.submit_and_watch(extrinsic).unwrap().1);
    }
    let deadline = Instant::now() + TIMEOUT;
    for mut statuses in watched {
        loop {
            match statuses.try_recv() {
                Ok(TxStatus::Finalized(_)) => break,
                Ok(_) => {}
                Err(_) => {
                    assert!(Instant::now() < deadline, "not every transaction got in");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
    assert_eq!(chain.next_nonce(&dave.account()), 20);
}
