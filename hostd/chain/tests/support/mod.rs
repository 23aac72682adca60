//! An endpoint that lies, hangs, forgets and breaks off, as a test wants it.
//!
//! It speaks the part of Substrate's JSON-RPC that the client uses, over websockets on loopback. What it
//! says comes from a [`State`] that the test changes while it runs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

/// What the endpoint does with a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Submit {
    /// Refuses it: its sender can't pay.
    CantPay,
    /// Takes it, and says nothing more.
    Silence,
    /// Puts it into the next block, and breaks the connection without having said so.
    IncludeAndBreak,
}

/// What the endpoint says.
pub(crate) struct State {
    pub(crate) genesis: [u8; 32],
    pub(crate) height: u32,
    pub(crate) hang: bool,
    pub(crate) spec_version: u32,
    pub(crate) metadata: Vec<u8>,
    /// By hexadecimal key, at any block.
    pub(crate) storage: HashMap<String, Vec<u8>>,
    /// Of many keys, the last is not answered for.
    pub(crate) leaves_out: bool,
    /// Events by block.
    pub(crate) events: HashMap<u32, Vec<u8>>,
    /// Blocks before this one have no state.
    pub(crate) pruned_before: u32,
    pub(crate) submit: Submit,
    pub(crate) submitted: Vec<String>,
    /// Extrinsics by block.
    pub(crate) included: HashMap<u32, Vec<String>>,
    pub(crate) nonce: u32,
    /// Every method that was called; runtime calls by their own name.
    pub(crate) called: Vec<String>,
}

/// A running endpoint.
pub(crate) struct Endpoint {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// The storage key of the block's events.
const EVENTS_KEY: &str = "0x26aa394eea5630e07c48ae0c9558cef780d41e5e16056765bc8461851072c9d7";

impl Endpoint {
    pub(crate) async fn start() -> Self {
        let state = State {
            genesis: [1; 32],
            height: 100,
            hang: false,
            spec_version: 152,
            metadata: Vec::new(),
            storage: HashMap::new(),
            leaves_out: false,
            events: HashMap::new(),
            pruned_before: 0,
            submit: Submit::Silence,
            submitted: Vec::new(),
            included: HashMap::new(),
            nonce: 0,
            called: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut clients = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { url, state, task }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often a method was called.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.state().called.iter().filter(|called| *called == method).count()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// TFChain's recorded metadata; nothing where it is absent, which is said.
pub(crate) fn recorded_metadata() -> Option<Vec<u8>> {
    let shared = std::env::var_os("ZERO_OS_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = shared.join("vectors/tfchain-spec152.scale");
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        eprintln!("skipped: there is no {}", path.display());
    }
    bytes
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let (mut sink, mut source) = socket.split();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
    let mut told = None;
    loop {
        tokio::select! {
            message = source.next() => {
                let Some(Ok(message)) = message else { return };
                let Message::Text(text) = message else { continue };
                let request: Value = serde_json::from_str(&text).unwrap();
                let method = request["method"].as_str().unwrap();
                if method == "chain_subscribeFinalizedHeads" {
                    told = Some(0);
                }
                let Some(answer) = answer(&state, method, &request["params"]) else { return };
                let Some(answer) = answer.0 else { continue };
                let mut whole = json!({ "jsonrpc": "2.0", "id": request["id"] });
                match answer {
                    Ok(result) => whole["result"] = result,
                    Err((code, text)) => whole["error"] = json!({ "code": code, "message": text }),
                }
                let text = Message::text(whole.to_string());
                if sink.send(text).await.is_err() { return }
            }
            _ = tick.tick() => {
                let height = state.lock().unwrap().height;
                if told.is_some_and(|told| told != height) && !state.lock().unwrap().hang {
                    told = Some(height);
                    let notice = json!({
                        "jsonrpc": "2.0", "method": "chain_finalizedHead",
                        "params": { "subscription": "heads", "result": header(height) },
                    });
                    if sink.send(Message::text(notice.to_string())).await.is_err() { return }
                }
            }
        }
    }
}

/// A result, an error, or silence.
struct Answer(Option<Result<Value, (i32, &'static str)>>);

/// Nothing if the connection is to break.
fn answer(state: &Mutex<State>, method: &str, params: &Value) -> Option<Answer> {
    let mut state = state.lock().unwrap();
    let called = if method == "state_call" { params[0].as_str().unwrap() } else { method };
    state.called.push(called.to_owned());
    if state.hang {
        return Some(Answer(None));
    }
    let result = match method {
        "chain_getBlockHash" => block_hash(&state, &params[0]),
        "chain_getHeader" => Ok(header(number_of(&params[0]).unwrap_or(state.height))),
        "chain_getFinalizedHead" => Ok(json!(hash(state.height))),
        "chain_getBlock" => Ok(block(&state, &params[0])),
        "chain_subscribeFinalizedHeads" => Ok(json!("heads")),
        "state_getStorage" => storage(&state, params),
        "state_queryStorageAt" => storage_of_many(&state, params),
        "state_call" => runtime_call(&state, params),
        "system_accountNextIndex" => Ok(json!(state.nonce)),
        "author_submitAndWatchExtrinsic" => {
            let extrinsic = params[0].as_str().unwrap().to_owned();
            state.submitted.push(extrinsic.clone());
            match state.submit {
                Submit::CantPay => Err((1010, "Invalid Transaction: Inability to pay some fees")),
                Submit::Silence => Ok(json!("watch")),
                Submit::IncludeAndBreak => {
                    state.height += 1;
                    state.nonce += 1;
                    let height = state.height;
                    state.included.insert(height, vec![extrinsic]);
                    return None;
                }
            }
        }
        _ => Err((-32601, "Method not found")),
    };
    Some(Answer(Some(result)))
}

/// Blocks have hashes from which their numbers can be read.
fn hash(number: u32) -> String {
    format!("0x{:064x}", u128::from(number) | 0xf << 64)
}

/// The number of a hash of ours. The client computes the newest block's hash itself, and that isn't one.
fn number_of(hash: &Value) -> Option<u32> {
    let digits = hash.as_str()?.strip_prefix("0x")?;
    let marked = digits.get(..48)? == format!("{:048x}", 0xf);
    marked.then(|| u32::from_str_radix(&digits[56..], 16).unwrap())
}

fn header(number: u32) -> Value {
    let zero = hex(&[0; 32]);
    json!({
        "parentHash": zero, "number": format!("{number:#x}"), "stateRoot": zero,
        "extrinsicsRoot": zero, "digest": { "logs": [] },
    })
}

fn block_hash(state: &State, number: &Value) -> Result<Value, (i32, &'static str)> {
    match number.as_u64().and_then(|number| u32::try_from(number).ok()) {
        Some(0) => Ok(json!(hex(&state.genesis))),
        Some(number) if number <= state.height => Ok(json!(hash(number))),
        _ => Ok(Value::Null),
    }
}

fn block(state: &State, hash: &Value) -> Value {
    let number = number_of(hash).unwrap_or(state.height);
    let extrinsics = state.included.get(&number).cloned().unwrap_or_default();
    json!({
        "block": { "header": header(number), "extrinsics": extrinsics }, "justifications": null,
    })
}

fn storage(state: &State, params: &Value) -> Result<Value, (i32, &'static str)> {
    let key = params[0].as_str().unwrap();
    let number = number_of(&params[1]).unwrap_or(state.height);
    if number < state.pruned_before {
        return Err((4003, "Client error: State already discarded"));
    }
    let value = if key == EVENTS_KEY {
        Some(state.events.get(&number).cloned().unwrap_or_else(|| vec![0]))
    } else {
        state.storage.get(key).cloned()
    };
    Ok(value.map_or(Value::Null, |value| json!(hex(&value))))
}

fn storage_of_many(state: &State, params: &Value) -> Result<Value, (i32, &'static str)> {
    let keys = params[0].as_array().unwrap();
    let count = keys.len() - usize::from(state.leaves_out);
    let pair = |key: &Value| Ok(json!([key, storage(state, &json!([key, params[1]]))?]));
    let changes: Result<Vec<_>, _> = keys[..count].iter().map(pair).collect();
    Ok(json!([{ "block": params[1], "changes": changes? }]))
}

fn runtime_call(state: &State, params: &Value) -> Result<Value, (i32, &'static str)> {
    let number = number_of(&params[2]).unwrap_or(state.height);
    if number < state.pruned_before {
        return Err((4003, "Client error: State already discarded"));
    }
    let bytes = match params[0].as_str().unwrap() {
        "Core_version" => {
            let mut version = b"\x04t\x04t\0\0\0\0".to_vec();
            version.extend(state.spec_version.to_le_bytes());
            version.extend([0; 5]);
            version.extend(2_u32.to_le_bytes());
            version.push(0);
            version
        }
        "Metadata_metadata" => {
            let size = u32::try_from(state.metadata.len()).unwrap() << 2 | 2;
            [&size.to_le_bytes()[..], &state.metadata].concat()
        }
        "AccountNonceApi_account_nonce" => state.nonce.to_le_bytes().to_vec(),
        _ => return Err((-32000, "Client error: no such runtime call")),
    };
    Ok(json!(hex(&bytes)))
}
