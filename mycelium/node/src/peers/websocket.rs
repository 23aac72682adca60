//! WebSocket connections of peers, for networks that let nothing but web traffic pass.
//!
//! A node listens for `ws` at a port of its own (`--ws-listen-port`) and has no certificate: `wss` is for
//! a web server in front, which takes TLS off and passes `/mycelium` on. Existing releases know neither.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mycelium_router::LinkInfo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::endpoint::{Address, Endpoint, Protocol};
use crate::link::Carrier;
use crate::link::layer::Layer;
use crate::link::stream::{StreamCarrier, tune_tcp};
use crate::link::websocket::{Lower, WebSocketSession};
use crate::peers::connect::{Connection, canonical};
use crate::peers::listen::rest;
use crate::peers::{Peers, shown};

/// Time for a client's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than plain connections cost: who has both takes the other.
const LINK_INFO: LinkInfo = LinkInfo { static_cost: 20 };

/// Asks for a WebSocket over a connection to `endpoint`.
pub(super) async fn connect(stream: TcpStream, endpoint: &Endpoint) -> anyhow::Result<Connection> {
    tune_tcp(&stream)?;
    let (local, peer) = (canonical(stream.local_addr()?), canonical(stream.peer_addr()?));
    let socket = OwnedFd::from(stream.into_std()?);
    let lower = match (endpoint.protocol, &endpoint.address) {
        (Protocol::Wss, Address::Name(name, _)) => Lower::tls(&socket, name).await?,
        (Protocol::Wss, _) => Lower::tls(&socket, &peer.ip().to_string()).await?,
        _ => Lower::plain(&socket)?,
    };
    let session = WebSocketSession::connect(&endpoint.address.to_string(), lower, &socket).await?;
    connection(socket, session, endpoint.protocol, local, peer)
}

/// Takes WebSocket connections for as long as the node runs.
pub(crate) async fn serve(peers: Arc<Peers>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                tokio::spawn(accept(Arc::clone(&peers), stream, canonical(from)));
            }
            Err(error) => rest(&error).await,
        }
    }
}

async fn accept(peers: Arc<Peers>, stream: TcpStream, from: SocketAddr) {
    // Held through the handshake as well, so that those are bounded too.
    let Ok(permit) = peers.inbound_permit() else { return };
    let late = || anyhow::anyhow!("no handshake in {} s", HANDSHAKE_TIMEOUT.as_secs());
    let accepted = timeout(HANDSHAKE_TIMEOUT, shake_hands(stream, from)).await;
    match accepted.unwrap_or_else(|_| Err(late())) {
        Ok(connection) => {
            peers.serve(Endpoint::new(Protocol::Ws, from), connection, permit).await;
        }
        Err(error) => tracing::debug!(%from, error = format!("{error:#}"), "no WebSocket"),
    }
}

async fn shake_hands(stream: TcpStream, from: SocketAddr) -> anyhow::Result<Connection> {
    tune_tcp(&stream)?;
    let local = canonical(stream.local_addr()?);
    let socket = OwnedFd::from(stream.into_std()?);
    let session = WebSocketSession::accept(&socket).await?;
    connection(socket, session, Protocol::Ws, local, from)
}

fn connection(
    socket: OwnedFd,
    session: WebSocketSession,
    protocol: Protocol,
    local: SocketAddr,
    peer: SocketAddr,
) -> anyhow::Result<Connection> {
    let layer = Some(Layer::WebSocket(Box::new(session)));
    Ok(Connection {
        carrier: Carrier::Stream(StreamCarrier::with_layer(socket, layer)?),
        description: format!("{} {local} <-> {peer}", shown(protocol)),
        info: LINK_INFO,
        local: Some(local.ip()),
    })
}
