//! The methods over a real socket, and the subscriptions of a transaction and of heads.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use jsonrpsee::core::server::Subscription;
use serde_json::{Value, json};

use super::*;
use crate::{ChainOptions, genesis, runtime::RuntimeCall, sign_call, types::TFT};

const TIMEOUT: Duration = Duration::from_secs(20);

fn open() -> DevChain {
    DevChain::open(ChainOptions { block_time: None, ..ChainOptions::default() }).unwrap()
}

/// One request over HTTP, and its answer.
fn post(address: SocketAddr, method: &str, params: &Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let json = &answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()];
    serde_json::from_str(json).unwrap()
}

fn transfer(chain: &DevChain, nonce: u32) -> String {
    let call = RuntimeCall::Balances(pallet_balances::Call::transfer_keep_alive {
        dest: genesis::dev_account("Bob").into(),
        value: TFT,
    });
    hex(&sign_call(call, &genesis::dev_key("Alice"), nonce, chain.genesis()))
}

async fn next(subscription: &mut Subscription) -> Value {
    let next = tokio::time::timeout(TIMEOUT, subscription.next::<Value>()).await;
    next.unwrap().unwrap().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_find_what_they_ask_for_at_the_start() {
    let chain = open();
    let server = chain.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let address = server.address();
    let genesis = chain.genesis();
    tokio::task::spawn_blocking(move || {
        let ask = |method: &str, params: Value| post(address, method, &params)["result"].clone();
        assert_eq!(ask("chain_getBlockHash", json!([0])), json!(genesis));
        assert_eq!(ask("chain_getBlockHash", json!([7])), Value::Null);
        assert_eq!(ask("state_getRuntimeVersion", json!([]))["specVersion"], 152);
        let metadata = ask("state_getMetadata", json!([]));
        assert!(metadata.as_str().unwrap().starts_with("0x6d6574610e"), "metadata version 14");
        let versions = ask("state_call", json!(["Metadata_metadata_versions", "0x"]));
        assert!(versions.as_str().unwrap().contains("0e000000"));
        let header = ask("chain_getHeader", json!([]));
        assert_eq!(header["number"], "0x0");
        assert_eq!(ask("chain_getFinalizedHead", json!([])), json!(genesis));
        assert_eq!(ask("system_properties", json!([]))["tokenDecimals"], 7);
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(ask("system_accountNextIndex", json!([alice])), 0);
        let pages = ask("state_getKeysPaged", json!(["0x26aa394eea5630e0", 5, null, genesis]));
        assert_eq!(pages.as_array().unwrap().len(), 5);
        let methods = ask("rpc_methods", json!([]));
        let names = methods["methods"].as_array().unwrap();
        assert!(names.contains(&json!("author_submitAndWatchExtrinsic")));
        let error = post(address, "chain_getBlock", &json!(["nonsense"]));
        assert_eq!(error["error"]["code"], INVALID_PARAMS);
    })
    .await
    .unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_watched_into_its_block() {
    let chain = open();
    let module = module(chain.clone()).unwrap();
    let mut heads = module.subscribe_unbounded("chain_subscribeNewHeads", [(); 0]).await.unwrap();
    assert_eq!(next(&mut heads).await["number"], "0x0");
    let second = transfer(&chain, 1);
    let mut later =
        module.subscribe_unbounded("author_submitAndWatchExtrinsic", [second]).await.unwrap();
    assert_eq!(next(&mut later).await, "future");
    let first = transfer(&chain, 0);
    let mut now =
        module.subscribe_unbounded("author_submitAndWatchExtrinsic", [first]).await.unwrap();
    assert_eq!(next(&mut now).await, "ready");
    let in_block = next(&mut now).await["inBlock"].clone();
    assert_eq!(next(&mut now).await["finalized"], in_block);
    assert_eq!(next(&mut later).await, "ready");
    assert!(next(&mut later).await["inBlock"].is_string());
    assert_eq!(next(&mut heads).await["number"], "0x1");
    let stale = module.call::<_, Value>("author_submitExtrinsic", [transfer(&chain, 0)]).await;
    let error = stale.unwrap_err().to_string();
    assert!(error.contains("1010") || error.contains("Invalid Transaction"), "{error}");
    let junk = module.call::<_, Value>("author_submitExtrinsic", ["0x00"]).await;
    assert!(junk.unwrap_err().to_string().contains("invalid format"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_can_be_asked() {
    let chain = open();
    chain.fast_forward(3).unwrap();
    let module = module(chain.clone()).unwrap();
    let first = chain.hash(1).unwrap();
    let key = hex(&pallet_timestamp::Now::<crate::runtime::Runtime>::hashed_key());
    let then: Value = module.call("state_getStorage", (key.clone(), first)).await.unwrap();
    let now: Value = module.call("state_getStorage", [key.clone()]).await.unwrap();
    assert_ne!(then, now);
    let sets: Vec<Value> = module.call("state_queryStorage", ([key.clone()], first)).await.unwrap();
    assert_eq!(sets.len(), 3);
    assert_eq!(sets[0]["changes"][0][1], then);
    let account = hex(genesis::dev_account("Alice").as_ref());
    let nonce: String =
        module.call("state_call", ("AccountNonceApi_account_nonce", account, first)).await.unwrap();
    assert_eq!(nonce, "0x00000000");
    let unknown: Result<Value, _> = module.call("state_getStorage", (key, H256::zero())).await;
    assert!(unknown.unwrap_err().to_string().contains("UnknownBlock"));
}

/// A client that watches Alice's next transfer, after it asked for `first`: how long after `inBlock` it
/// heard that it is final.
fn finality_time(chain: &DevChain, address: SocketAddr, first: &str) -> Duration {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{address}"), stream).unwrap();
    let transfer = transfer(chain, chain.next_nonce(&genesis::dev_account("Alice")));
    for (id, method, params) in
        [(1, first, json!([])), (2, "author_submitAndWatchExtrinsic", json!([transfer]))]
    {
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        socket.send(request.to_string().into()).unwrap();
    }
    let mut in_block = None;
    loop {
        let message = socket.read().unwrap().into_text().unwrap();
        let message: Value = serde_json::from_str(&message).unwrap();
        let status = &message["params"]["result"];
        if status["inBlock"].is_string() {
            in_block = Some(Instant::now());
        }
        if status["finalized"].is_string() {
            return in_block.unwrap().elapsed();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finality_waits_for_clients_that_read_the_block() {
    let chain = open();
    let server = chain.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let address = server.address();
    tokio::task::spawn_blocking(move || {
        let others = finality_time(&chain, address, "system_chain");
        assert!(others < pace::FINALITY_TIME / 2, "{others:?}");
        let readers = finality_time(&chain, address, "system_properties");
        assert!(readers > pace::FINALITY_TIME / 2, "{readers:?}");
    })
    .await
    .unwrap();
    server.stop().await;
}
