//! Connections from peers: listeners for TCP (and WebSockets) and vsock.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::endpoint::{Address, Endpoint, Protocol};
use crate::link::tls::Side;
use crate::peers::Peers;
use crate::peers::connect::{Connector, canonical, vsock, vsock_socket};
use crate::sys::{self, VsockAddress};

/// Connections that the kernel keeps until they are taken.
const BACKLOG: u32 = 128;
/// How long a listener rests when the system is out of descriptors or memory.
const REST: Duration = Duration::from_millis(100);

/// A port that is taken or may not be used.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on port {port} ({flag})")]
pub struct ListenError {
    /// The port.
    pub port: u32,
    /// The flag that chooses it.
    pub flag: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Listens for TCP connections on all addresses, at the port that `flag` chose.
pub(crate) fn tcp_listener(
    connector: &Connector,
    port: u16,
    flag: &'static str,
) -> anyhow::Result<TcpListener> {
    let failed = |source| ListenError { port: port.into(), flag, source };
    let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let any4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    // A kernel without IPv6 still has peers.
    let (socket, address) = match TcpSocket::new_v6() {
        Ok(socket) => (socket, any6),
        Err(_) => (TcpSocket::new_v4().map_err(failed)?, any4),
    };
    connector.mark(&socket)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    Ok(socket.listen(BACKLOG).map_err(failed)?)
}

/// Takes TCP connections for as long as the node runs.
pub(crate) async fn serve_tcp(peers: Arc<Peers>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                tokio::spawn(accept_tcp(Arc::clone(&peers), stream, canonical(from)));
            }
            Err(error) => rest(&error).await,
        }
    }
}

async fn accept_tcp(peers: Arc<Peers>, stream: TcpStream, from: SocketAddr) {
    // Held through a handshake as well, so that those are bounded too.
    let Ok(permit) = peers.inbound_permit() else { return };
    match peers.connector().tcp(stream, Side::Server).await {
        Ok(connection) => {
            let endpoint = Endpoint::new(peers.connector().tcp_protocol(), from);
            peers.serve(endpoint, connection, permit).await;
        }
        Err(error) => tracing::debug!(%from, %error, "a connection ended at once"),
    }
}

/// Listens for vsock connections from anywhere.
pub(crate) fn vsock_listener(connector: &Connector, port: u32) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let failed = |source| ListenError { port, flag: "--vsock-listen-port", source };
    let socket = vsock_socket().map_err(failed)?;
    connector.mark(&socket)?;
    let address = VsockAddress::new(VsockAddress::CID_ANY, port);
    rustix::net::bind(&socket, &address).map_err(|error| failed(error.into()))?;
    let backlog = i32::try_from(BACKLOG).unwrap_or(i32::MAX);
    rustix::net::listen(&socket, backlog).map_err(|error| failed(error.into()))?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(|error| failed(error.into()))?;
    sys::watch(socket).context("vsock listener")
}

/// Takes vsock connections for as long as the node runs.
pub(crate) async fn serve_vsock(peers: Arc<Peers>, listener: AsyncFd<OwnedFd>) {
    // The kernel says who connects in an address that safe crates can't read, so connections are
    // numbered instead.
    for number in 0.. {
        let accepted = listener.readable().await.and_then(|mut ready| {
            let accept = |listener: &AsyncFd<OwnedFd>| {
                Ok(rustix::net::accept_with(listener.get_ref(), SocketFlags::CLOEXEC)?)
            };
            ready.try_io(accept).unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()))
        });
        match accepted.and_then(|socket| vsock(socket, &format!("inbound {number}"))) {
            Ok(connection) => {
                let address = Address::Vsock { cid: VsockAddress::CID_ANY, port: number };
                let endpoint = Endpoint { protocol: Protocol::Vsock, address };
                if let Ok(permit) = peers.inbound_permit() {
                    tokio::spawn(Arc::clone(&peers).serve(endpoint, connection, permit));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => rest(&error).await,
        }
    }
}

/// Rests for a moment, after a connection that could not be taken.
pub(super) async fn rest(error: &io::Error) {
    tracing::warn!(%error, "no connection can be taken for a moment");
    tokio::time::sleep(REST).await;
}
