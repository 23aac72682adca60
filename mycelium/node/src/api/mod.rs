//! What programs ask of a running node: an HTTP API, and the same by JSON-RPC.
//!
//! Both are those of the existing daemon, path by path and field by field (`reference: mycelium 1.11`),
//! and both ask the node by way of [`Control`] and nothing else. What existing daemons have not has paths
//! of its own (`own`, and `/sessions`).
//!
//! ```text
//!  HTTP      127.0.0.1:8989 ──> [guard] ──> [http], [message_routes], [own] ─┐
//!  JSON-RPC  127.0.0.1:8990 ──> [guard] ──> [rpc] ──> [rpc_methods] ─────────┴──> dyn Control, Mailbox
//!            POST and WebSocket
//! ```
//!
//! There is no authentication: whoever reaches the port is the operator. Web pages are not, though a
//! browser on the same machine reaches it, so requests that one sends for a page from elsewhere are
//! refused. Connections, bodies, batches and waits are bounded.

pub(crate) mod guard;
mod http;
mod message_routes;
mod own;
mod rpc;
mod rpc_methods;
pub mod status;
#[cfg(test)]
mod tests;
pub mod types;

use std::future::Future;
use std::io;
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::sync::Arc;

use mycelium_wire::identity::PublicKey;
use tokio::net::TcpListener;

use crate::messages::mailbox::Mailbox;
use status::{NodeStatus, ProbeRequest, ProbeResult};
use types::{NodeInfo, PacketStatistics, PeerInfo, Routes, SessionInfo};

/// Port of the HTTP API, unless the operator chose another.
pub const HTTP_PORT: u16 = 8989;
/// Port of JSON-RPC, unless the operator chose another.
pub const RPC_PORT: u16 = 8990;
/// Largest body of a request, in bytes: the largest message in base64, and something around it.
pub const BODY_SIZE_MAX: usize = 24 * 1024 * 1024;
/// Connections to one port at a time; more wait to be accepted.
pub const CONNECTION_COUNT_MAX: usize = 256;

/// An answer that takes a while.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a node answers.
pub trait Control: Send + Sync + 'static {
    /// Who it is.
    fn info(&self) -> NodeInfo;

    /// Its messages.
    fn mailbox(&self) -> &Arc<Mailbox>;

    /// Its peers.
    fn peers(&self) -> Vec<PeerInfo>;

    /// Adds a peer.
    ///
    /// # Errors
    /// When it can't be one, or is.
    fn add_peer(&self, endpoint: &str) -> Result<(), PeerError>;

    /// Removes a peer, and ends its link.
    ///
    /// # Errors
    /// When it is none.
    fn remove_peer(&self, endpoint: &str) -> Result<(), PeerError>;

    /// The key of the node that has this address, if a route to it is known.
    fn public_key(&self, address: Ipv6Addr) -> Option<PublicKey>;

    /// Which addresses sent and received how much over this node.
    fn packet_statistics(&self) -> PacketStatistics;

    /// How it talks to which nodes: an addition to the existing daemon's API.
    fn sessions(&self) -> Vec<SessionInfo>;

    /// Forgets that a node ever had a session, so that it is talked to as existing releases are if it
    /// does not answer. False when it had none.
    fn forget_session(&self, address: Ipv6Addr) -> bool;

    /// Its routes; none of any kind when the node is about to stop.
    fn routes(&self) -> Later<'_, Routes>;

    /// How it and its peers are doing.
    fn status(&self) -> Later<'_, NodeStatus>;

    /// Asks another node whether it is there. An error says why that can't be asked.
    fn probe(&self, request: ProbeRequest) -> Later<'_, Result<ProbeResult, String>>;
}

/// Why peers stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The text is no endpoint, or none that this node may have.
    #[error("{0}")]
    Invalid(String),
    /// It is a peer already.
    #[error("{0} is a peer already")]
    Exists(String),
    /// It is no peer.
    #[error("{0} is no peer")]
    Unknown(String),
}

/// Serves the HTTP API, until the listener fails.
///
/// # Errors
/// When the listener fails.
pub async fn serve_http(control: Arc<dyn Control>, listener: TcpListener) -> io::Result<()> {
    guard::serve(listener, axum::Router::new().nest("/api/v1", routes(control))).await
}

/// The HTTP API of a node, without the front of its paths.
pub(crate) fn routes(control: Arc<dyn Control>) -> axum::Router {
    let routes = http::routes().merge(message_routes::routes()).merge(own::routes());
    routes.with_state(control)
}

/// Serves JSON-RPC, until the listener fails.
///
/// # Errors
/// When the listener fails.
pub async fn serve_rpc(control: Arc<dyn Control>, listener: TcpListener) -> io::Result<()> {
    guard::serve(listener, rpc::routes().with_state(control)).await
}
