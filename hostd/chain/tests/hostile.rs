//! Endpoints that hang, lie, go back, forget, break off and change under us.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostd_chain::config::Confirmation;
use hostd_chain::error::EndpointFault;
use hostd_chain::event::NodeContractCanceled;
use hostd_chain::{Chain, ChainConfig, ChainError, Event};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;
use hostd_rmb::twins::{TwinId, Twins as _};
use support::{Endpoint, Submit, hex, recorded_metadata};

/// Nothing here takes longer, whatever an endpoint does.
const BOUND: Duration = Duration::from_secs(20);

fn config(endpoints: &[&Endpoint]) -> ChainConfig {
    let urls = endpoints.iter().map(|endpoint| endpoint.url.clone()).collect();
    let mut config = ChainConfig::new(urls, TrustedRoots::new(None).unwrap());
    config.call_timeout = Duration::from_millis(500);
    config.retry_max = Duration::from_millis(100);
    config.inclusion_timeout = Duration::from_secs(4);
    config.resubscribe_pause = Duration::from_millis(100);
    config.head_silence_max = Duration::from_secs(1);
    config
}

fn faults(error: ChainError) -> Vec<EndpointFault> {
    match error {
        ChainError::Unreachable(faults) => faults.0.into_iter().map(|(_, fault)| fault).collect(),
        other => panic!("{other}"),
    }
}

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("it takes too long")
}

#[tokio::test]
async fn one_that_hangs_is_left_for_the_next() {
    let (hanging, good) = (Endpoint::start().await, Endpoint::start().await);
    hanging.state().hang = true;
    let chain = bounded(Chain::connect(config(&[&hanging, &good]))).await.unwrap();
    assert_eq!(bounded(chain.head()).await.unwrap(), 100);
    assert_eq!(good.count("chain_getHeader"), 3, "the good one is kept");
}

#[tokio::test]
async fn one_that_hangs_later_is_left_too() {
    let (first, second) = (Endpoint::start().await, Endpoint::start().await);
    let chain = bounded(Chain::connect(config(&[&first, &second]))).await.unwrap();
    assert_eq!(second.count("chain_getHeader"), 0);
    first.state().hang = true;
    second.state().height = 101;
    assert_eq!(bounded(chain.head()).await.unwrap(), 101);
}

#[tokio::test]
async fn nobody_to_ask_is_an_error_that_says_why_and_comes_soon() {
    let (one, two) = (Endpoint::start().await, Endpoint::start().await);
    one.state().hang = true;
    two.state().hang = true;
    let chain = Chain::new(config(&[&one, &two])).unwrap();
    let started = Instant::now();
    let found = bounded(chain.contract(7)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(8));
    assert!(found.is_unreachable());
    assert!(faults(found).iter().all(|fault| matches!(fault, EndpointFault::Timeout(_))));
}

#[tokio::test]
async fn many_who_ask_in_vain_do_not_dial_each_for_themselves() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let roots = TrustedRoots::new(None).unwrap();
    let address = format!("ws://{}", listener.local_addr().unwrap());
    let mut config = ChainConfig::new(vec![address], roots);
    config.retry_max = Duration::from_secs(2);
    let chain = Chain::new(config).unwrap();
    let dialled = tokio::spawn(async move {
        let mut count = 0;
        while tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.is_ok() {
            count += 1;
        }
        count
    });
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let chain = chain.clone();
        asking.spawn(async move { bounded(chain.head()).await.unwrap_err().is_unreachable() });
    }
    assert!(asking.join_all().await.into_iter().all(|is_so| is_so));
    // Each of them asked three times or more.
    let dialled = dialled.await.unwrap();
    assert!((2..=20).contains(&dialled), "{dialled} times");
}

#[tokio::test]
async fn another_chain_is_refused_and_named() {
    let (liar, good) = (Endpoint::start().await, Endpoint::start().await);
    liar.state().genesis = [9; 32];
    let mut ours = config(&[&liar, &good]);
    ours.genesis = Some([1; 32]);
    let chain = bounded(Chain::connect(ours)).await.unwrap();
    assert_eq!(chain.genesis(), Some([1; 32]));
    let mut alone = config(&[&liar]);
    alone.genesis = Some([1; 32]);
    let error = bounded(Chain::connect(alone)).await.err().unwrap();
    let text = error.to_string();
    assert!(text.contains(&hex(&[9; 32])) && text.contains(&hex(&[1; 32])), "{text}");
}

#[tokio::test]
async fn the_first_chain_that_is_met_is_ours_from_then_on() {
    let (first, other) = (Endpoint::start().await, Endpoint::start().await);
    other.state().genesis = [9; 32];
    let chain = bounded(Chain::connect(config(&[&first, &other]))).await.unwrap();
    first.state().hang = true;
    let found = faults(bounded(chain.head()).await.unwrap_err());
    let named = |fault: &EndpointFault| matches!(fault, EndpointFault::Genesis { .. });
    assert!(found.iter().any(named), "{found:?}");
}

#[tokio::test]
async fn one_that_goes_back_is_refused_until_it_catches_up() {
    let endpoint = Endpoint::start().await;
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap();
    endpoint.state().height = 60;
    let found = faults(bounded(chain.head()).await.unwrap_err());
    let [EndpointFault::Behind { height: 60, seen: 100 }] = found.as_slice() else {
        panic!("{found:?}");
    };
    endpoint.state().height = 97;
    assert_eq!(bounded(chain.head()).await.unwrap(), 97, "a small lag is honest");
}

#[tokio::test]
async fn an_absent_thing_and_an_outage_are_two_answers() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    endpoint.state().metadata = metadata;
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap();
    assert_eq!(bounded(chain.contract(7)).await.unwrap(), None);
    assert_eq!(bounded(chain.farm_by_name("none")).await.unwrap(), None);
    assert_eq!(bounded(chain.account([3; 32])).await.unwrap(), None);
    assert!(bounded(chain.node_contracts(3)).await.unwrap().ids.is_empty());
    assert!(bounded(chain.confirmed_gone(7, 100)).await.unwrap());
    assert!(!bounded(chain.confirmed_gone(7, 101)).await.unwrap(), "it may only not be there yet");
    endpoint.state().hang = true;
    assert!(bounded(chain.contract(7)).await.unwrap_err().is_unreachable());
    assert!(bounded(chain.confirmed_gone(7, 100)).await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn an_upgrade_of_the_chain_is_noticed_and_its_metadata_fetched() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    endpoint.state().metadata = metadata;
    let key = "0x19a2526838feefd7695a3b5715b415b1311378229266fc86f673a3f4cf398e69\
               9017d1c733ec2aeaa6fd0230614e397e2a000000";
    // Twin 42: id, account, relay "r.grid.tf", no entities, no key.
    let mut twin = 42_u32.to_le_bytes().to_vec();
    twin.extend([7; 32]);
    twin.extend(b"\x01\x24r.grid.tf\0\0");
    endpoint.state().storage.insert(key.to_owned(), twin);
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap();
    for (version, fetched) in [(152, 1), (152, 1), (153, 2), (153, 2), (154, 3)] {
        endpoint.state().spec_version = version;
        let twin = bounded(chain.twin_by_id(42)).await.unwrap().unwrap();
        assert_eq!((twin.id, twin.account_id), (42, [7; 32]));
        assert_eq!(twin.relay.unwrap(), "r.grid.tf");
        assert_eq!(endpoint.count("Metadata_metadata"), fetched, "at version {version}");
        assert_eq!(bounded(chain.spec_version()).await.unwrap(), version);
    }
    let twin = bounded(chain.twin(TwinId::new(42).unwrap())).await.unwrap().unwrap();
    assert_eq!(twin.relays, ["r.grid.tf"]);
}

#[tokio::test]
async fn metadata_that_is_none_and_values_that_do_not_fit_are_refused() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    endpoint.state().metadata = vec![0xff; 1000];
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap();
    assert!(bounded(chain.twin_by_id(42)).await.unwrap_err().is_unreachable());
    let key = "0x19a2526838feefd7695a3b5715b415b1311378229266fc86f673a3f4cf398e69\
               9017d1c733ec2aeaa6fd0230614e397e2a000000";
    endpoint.state().metadata = metadata;
    endpoint.state().storage.insert(key.to_owned(), vec![1, 2, 3]);
    let error = bounded(chain.twin_by_id(42)).await.unwrap_err();
    assert!(matches!(error, ChainError::Incompatible(_)), "{error}");
    assert!(endpoint.count("Metadata_metadata") >= 3, "the metadata is tried anew");
}

/// The events of a block in which a contract of node 11 ended.
fn canceled(contract: u64) -> (Vec<u8>, Event) {
    let mut bytes = vec![4, 0, 0, 0, 0, 0, 26, 2];
    bytes.extend(contract.to_le_bytes());
    bytes.extend(11_u32.to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
    bytes.push(0);
    let event = NodeContractCanceled { contract_id: contract, node_id: 11, twin_id: 5 };
    (bytes, Event::NodeContractCanceled(event))
}

#[tokio::test]
async fn blocks_are_caught_up_with_and_followed() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    let (bytes, event) = canceled(7);
    {
        let mut state = endpoint.state();
        state.metadata = metadata;
        state.pruned_before = 95;
        state.events.insert(98, bytes);
    }
    let chain = Chain::new(config(&[&endpoint])).unwrap();
    let mut follow = chain.follow(3);
    let missed = bounded(follow.next()).await;
    assert_eq!((missed.number, missed.missed), (94, Some(3..=94)));
    for number in 95..=100 {
        let block = bounded(follow.next()).await;
        assert_eq!((block.number, &block.missed), (number, &None));
        assert_eq!(block.events, if number == 98 { vec![event.clone()] } else { Vec::new() });
    }
    let waiting = tokio::time::timeout(Duration::from_millis(200), follow.next()).await;
    assert!(waiting.is_err(), "there is no block 101 yet");
    endpoint.state().height = 103;
    for number in 101..=103 {
        assert_eq!(bounded(follow.next()).await.number, number);
    }
}

#[tokio::test]
async fn following_survives_an_outage_and_a_change_of_endpoints() {
    let Some(metadata) = recorded_metadata() else { return };
    let (first, second) = (Endpoint::start().await, Endpoint::start().await);
    first.state().metadata = metadata.clone();
    second.state().metadata = metadata;
    let chain = Chain::new(config(&[&first, &second])).unwrap();
    let mut follow = chain.follow(100);
    assert_eq!(bounded(follow.next()).await.number, 100);
    first.state().hang = true;
    second.state().hang = true;
    let outage = tokio::time::timeout(Duration::from_secs(3), follow.next()).await;
    assert!(outage.is_err(), "nothing is shown while nobody answers");
    second.state().height = 102;
    second.state().hang = false;
    for number in 101..=102 {
        let block = bounded(follow.next()).await;
        assert_eq!((block.number, block.missed), (number, None));
    }
}

#[tokio::test]
async fn a_block_that_nobody_can_read_is_missed_and_not_waited_for() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    {
        let mut state = endpoint.state();
        state.metadata = metadata;
        state.events.insert(99, vec![4, 0, 0, 0, 0, 0, 250, 1]);
    }
    let mut follow = Chain::new(config(&[&endpoint])).unwrap().follow(98);
    assert_eq!(bounded(follow.next()).await.missed, None);
    assert_eq!(bounded(follow.next()).await.missed, Some(99..=99));
    assert_eq!(bounded(follow.next()).await.number, 100);
}

fn alice() -> Arc<Identity> {
    Arc::new(Identity::from_phrase(Scheme::Ed25519, "//Alice").unwrap())
}

#[tokio::test]
async fn who_cannot_pay_is_told_at_once() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    endpoint.state().metadata = metadata;
    endpoint.state().submit = Submit::CantPay;
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap().signed_by(alice());
    let error = bounded(chain.cancel_contract(5)).await.unwrap_err();
    assert!(matches!(error, ChainError::NotAccepted { .. }), "{error}");
    assert!(error.to_string().starts_with("SmartContractModule.cancel_contract is not accepted"));
    assert_eq!(endpoint.state().submitted.len(), 1);
}

#[tokio::test]
async fn a_transaction_that_gets_into_no_block_is_given_up_in_time() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    endpoint.state().metadata = metadata;
    let mut slow = config(&[&endpoint]);
    slow.inclusion_timeout = Duration::from_secs(1);
    slow.confirmation = Confirmation::Finalized;
    let chain = bounded(Chain::connect(slow)).await.unwrap().signed_by(alice());
    let error = bounded(chain.cancel_contract(5)).await.unwrap_err();
    assert!(matches!(error, ChainError::Unconfirmed { .. }), "{error}");
}

#[tokio::test]
async fn a_transaction_whose_fate_was_lost_is_found_and_not_sent_twice() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    {
        let mut state = endpoint.state();
        state.metadata = metadata;
        state.submit = Submit::IncludeAndBreak;
        // Extrinsic 0 succeeded.
        state.events.insert(101, vec![4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap().signed_by(alice());
    bounded(chain.cancel_contract(5)).await.unwrap();
    assert_eq!(endpoint.state().submitted.len(), 1);
    assert_eq!(endpoint.state().nonce, 1);
}

#[tokio::test]
async fn what_an_endpoint_leaves_out_is_not_thereby_gone() {
    let Some(metadata) = recorded_metadata() else { return };
    let endpoint = Endpoint::start().await;
    endpoint.state().metadata = metadata;
    let chain = bounded(Chain::connect(config(&[&endpoint]))).await.unwrap();
    assert_eq!(bounded(chain.contracts(&[1, 2])).await.unwrap(), []);
    endpoint.state().leaves_out = true;
    let error = bounded(chain.contracts(&[1, 2])).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
}
