//! JSON-RPC over HTTP and WebSocket, as a Substrate node speaks it.
//!
//! The methods are the "legacy" family, which every client knows: subxt and the Go client use about
//! twenty of them, `@polkadot/api` some more. `rpc_methods` names no `chainHead_` method, and clients
//! that prefer those fall back. Every block is final, so best and finalized heads are the same.
//!
//! [`chain`] reads blocks, [`state`] storage and the runtime, [`author`] takes transactions, [`pace`]
//! says when a client hears of them, and [`system`] what this is.

mod author;
mod chain;
mod pace;
mod state;
mod system;
#[cfg(test)]
mod tests;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use jsonrpsee::{
    RpcModule, SubscriptionSink,
    core::{RegisterMethodError, to_json_raw_value},
    server::{
        BatchRequestConfig, Server, ServerConfig, ServerHandle, middleware::rpc::RpcServiceBuilder,
    },
    types::ErrorObjectOwned,
};
use serde::Serialize;
use sp_core::H256;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{Block, ChainError, DevChain, types::BlockNumber};

/// Connections at once.
const CONNECTIONS_MAX: u32 = 1024;
/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: u32 = 1024;
/// The largest request.
const REQUEST_SIZE_MAX: u32 = 16 * 1024 * 1024;
/// The largest answer: the metadata in hexadecimal is one megabyte.
const RESPONSE_SIZE_MAX: u32 = 32 * 1024 * 1024;
/// Requests of one batch.
const BATCH_MAX: u32 = 256;
/// Notifications that a slow client may leave unread.
const MESSAGES_MAX: u32 = 1024;

/// What a method answers.
type RpcResult<T> = Result<T, ErrorObjectOwned>;

/// A served socket. It is served until this is dropped.
pub struct RpcServer {
    address: SocketAddr,
    handle: ServerHandle,
}

impl RpcServer {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it, and waits until its connections are closed.
    pub async fn stop(self) {
        let handle = self.handle.clone();
        drop(self);
        handle.stopped().await;
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        // It may have stopped already.
        let _ = self.handle.stop();
    }
}

impl DevChain {
    /// Serves clients on a socket, over HTTP and WebSocket. Called inside a tokio runtime.
    pub fn serve(&self, listener: TcpListener) -> Result<RpcServer, ChainError> {
        listener.set_nonblocking(true).map_err(ChainError::Serve)?;
        let address = listener.local_addr().map_err(ChainError::Serve)?;
        let config = ServerConfig::builder()
            .max_connections(CONNECTIONS_MAX)
            .max_subscriptions_per_connection(SUBSCRIPTIONS_MAX)
            .max_request_body_size(REQUEST_SIZE_MAX)
            .max_response_body_size(RESPONSE_SIZE_MAX)
            .set_batch_request_config(BatchRequestConfig::Limit(BATCH_MAX))
            .set_message_buffer_capacity(MESSAGES_MAX)
            .build();
        let server = Server::builder()
            .set_config(config)
            .set_rpc_middleware(RpcServiceBuilder::new().layer_fn(pace::Paced::new))
            .build_from_tcp(listener)
            .map_err(ChainError::Serve)?;
        let module = module(self.clone())
            .map_err(|error| ChainError::Serve(std::io::Error::other(error)))?;
        Ok(RpcServer { address, handle: server.start(module) })
    }
}

/// All methods over one chain.
fn module(chain: DevChain) -> Result<RpcModule<DevChain>, RegisterMethodError> {
    let mut module = RpcModule::new(chain);
    author::register(&mut module)?;
    chain::register(&mut module)?;
    state::register(&mut module)?;
    system::register(&mut module)?;
    let mut names: Vec<&'static str> = module.method_names().collect();
    names.push("rpc_methods");
    names.sort_unstable();
    module
        .register_method("rpc_methods", move |_, _, _| serde_json::json!({ "methods": names }))?;
    Ok(module)
}

/// Bytes as clients read them.
fn hex(bytes: &[u8]) -> String {
    sp_core::bytes::to_hex(bytes, false)
}

/// Bytes that a client sent.
fn from_hex(text: &str) -> RpcResult<Vec<u8>> {
    sp_core::bytes::from_hex(text).map_err(|error| {
        ErrorObjectOwned::owned(INVALID_PARAMS, format!("not hexadecimal: {error:?}"), None::<()>)
    })
}

/// A parameter is wrong (JSON-RPC 2.0 §5.1).
const INVALID_PARAMS: i32 = -32602;
/// A block or its state is not there: what a node answers for a pruned block.
const UNKNOWN_BLOCK: i32 = -32000;

/// The height of the block a client names; of the head when it names none.
fn block_number(chain: &DevChain, hash: Option<H256>) -> RpcResult<BlockNumber> {
    match hash {
        None => Ok(chain.head().number),
        Some(hash) => chain.number(&hash).ok_or_else(|| {
            ErrorObjectOwned::owned(
                UNKNOWN_BLOCK,
                format!("UnknownBlock: Header was not found in the database: {hash:?}"),
                None::<()>,
            )
        }),
    }
}

/// Sends a notification. False when the client is gone.
async fn notify(sink: &SubscriptionSink, value: &impl Serialize) -> bool {
    match to_json_raw_value(value) {
        Ok(message) => sink.send(message).await.is_ok(),
        Err(error) => {
            tracing::error!(%error, "a notification could not be written");
            false
        }
    }
}

/// The next block; `None` when there will be none. What a slow client missed is skipped: the next one
/// names its height.
async fn next_block(blocks: &mut Receiver<Arc<Block>>) -> Option<Arc<Block>> {
    loop {
        match blocks.recv().await {
            Ok(block) => return Some(block),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}
