//! Connections to peers: made, tuned, and handed over to links.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mycelium_router::LinkInfo;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::endpoint::{Address, Endpoint, Protocol};
use crate::link::Carrier;
use crate::link::layer::Layer;
use crate::link::stream::{StreamCarrier, tune_tcp};
use crate::link::tls::Side;
use crate::link::udp::socket::Sockets;
use crate::peers::private::PrivateNetwork;
use crate::peers::race::race;
use crate::peers::{AddPeerError, quic, shown, udp, websocket};
use crate::sys::{self, VsockAddress};

/// How long a dial may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried.
const ADDRESS_COUNT_MAX: usize = 8;

/// Makes connections as a node's settings ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connector {
    /// `SO_MARK` of all sockets.
    pub(crate) mark: Option<u32>,
    /// The network whose members alone are peers.
    pub(crate) private: Option<PrivateNetwork>,
    /// What dials over QUIC.
    pub(crate) quic: Option<quinn::Endpoint>,
    /// What dials over UDP.
    pub(crate) udp: Option<Arc<Sockets>>,
}

/// A connection that is ready to be a link.
pub(crate) struct Connection {
    pub(crate) carrier: Carrier,
    /// As the API shows it: protocol and both ends.
    pub(crate) description: String,
    pub(crate) info: LinkInfo,
    /// This node's address, where there is one: without it the connection is dead.
    pub(crate) local: Option<IpAddr>,
}

impl Connector {
    /// Whether links to this endpoint can be made at all.
    pub(crate) fn check(&self, endpoint: &Endpoint) -> Result<(), AddPeerError> {
        match endpoint.protocol {
            Protocol::Tls if self.private.is_none() => {
                Err(AddPeerError::NoPrivateNetwork(endpoint.clone()))
            }
            Protocol::Quic | Protocol::Ws | Protocol::Wss if self.private.is_some() => {
                Err(AddPeerError::NotInPrivateNetwork(endpoint.clone()))
            }
            Protocol::Quic if self.quic.is_none() => {
                Err(AddPeerError::QuicDisabled(endpoint.clone()))
            }
            Protocol::Udp if self.udp.is_none() => Err(AddPeerError::UdpDisabled(endpoint.clone())),
            _ => Ok(()),
        }
    }

    /// Connects to a peer.
    pub(crate) async fn dial(&self, endpoint: &Endpoint) -> anyhow::Result<Connection> {
        let late = || format!("no connection in {} s", DIAL_TIMEOUT.as_secs());
        timeout(DIAL_TIMEOUT, self.connect(endpoint)).await.with_context(late)?
    }

    async fn connect(&self, endpoint: &Endpoint) -> anyhow::Result<Connection> {
        if let Address::Vsock { cid, port } = endpoint.address {
            return self.dial_vsock(cid, port).await;
        }
        let addresses = resolve(&endpoint.address).await?;
        race(addresses, |address| {
            let (connector, endpoint) = (self.clone(), endpoint.clone());
            async move { connector.connect_to(&endpoint, address).await }
        })
        .await
    }

    /// Connects to one address of a peer.
    pub(crate) async fn connect_to(
        &self,
        endpoint: &Endpoint,
        address: SocketAddr,
    ) -> anyhow::Result<Connection> {
        match (endpoint.protocol, &self.quic, &self.udp) {
            (Protocol::Quic, Some(quic), _) => quic::dial(quic, address).await,
            (Protocol::Udp, _, Some(udp)) => udp::dial(udp, address).await,
            (Protocol::Ws | Protocol::Wss, ..) => {
                websocket::connect(self.stream(address).await?, endpoint).await
            }
            _ => Ok(self.tcp(self.stream(address).await?, Side::Client).await?),
        }
    }

    async fn stream(&self, address: SocketAddr) -> anyhow::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        self.mark(&socket)?;
        Ok(socket.connect(address).await?)
    }

    /// A link over a TCP connection; with TLS in a private network.
    pub(crate) async fn tcp(&self, stream: TcpStream, side: Side) -> io::Result<Connection> {
        tune_tcp(&stream)?;
        let (local, peer) = (canonical(stream.local_addr()?), canonical(stream.peer_addr()?));
        let file = OwnedFd::from(stream.into_std()?);
        let (layer, protocol) = match &self.private {
            Some(network) => {
                (Some(Layer::Tls(network.establish(&file, side).await?)), Protocol::Tls)
            }
            None => (None, Protocol::Tcp),
        };
        Ok(Connection {
            carrier: Carrier::Stream(StreamCarrier::with_layer(file, layer)?),
            description: format!("{} {local} <-> {peer}", shown(protocol)),
            info: if peer.is_ipv4() { LinkInfo::TCP4 } else { LinkInfo::TCP6 },
            local: Some(local.ip()),
        })
    }

    /// What links over TCP are called here.
    pub(crate) fn tcp_protocol(&self) -> Protocol {
        if self.private.is_some() { Protocol::Tls } else { Protocol::Tcp }
    }

    async fn dial_vsock(&self, cid: u32, port: u32) -> anyhow::Result<Connection> {
        let socket = vsock_socket()?;
        self.mark(&socket)?;
        // The kernel gives up by itself after two seconds.
        let connect = move || {
            rustix::net::connect(&socket, &VsockAddress::new(cid, port))?;
            Ok::<_, io::Error>(socket)
        };
        let socket = tokio::task::spawn_blocking(connect).await??;
        Ok(vsock(socket, &format!("{cid}:{port}"))?)
    }

    /// Marks a socket as the settings ask.
    pub(crate) fn mark(&self, socket: impl AsFd) -> anyhow::Result<()> {
        if let Some(mark) = self.mark {
            let failed = || format!("firewall mark {mark} can't be set (needs CAP_NET_ADMIN)");
            sys::set_socket_mark(socket, mark).with_context(failed)?;
        }
        Ok(())
    }
}

/// All addresses of a peer, by a look at DNS if it has a name: each time anew, since names move.
pub(crate) async fn resolve(address: &Address) -> anyhow::Result<Vec<SocketAddr>> {
    match address {
        Address::Socket(address) => Ok(vec![*address]),
        Address::Name(name, port) => {
            let found = tokio::net::lookup_host((name.as_str(), *port)).await;
            let found = found.with_context(|| format!("{name} can't be resolved"))?;
            Ok(found.take(ADDRESS_COUNT_MAX).collect())
        }
        Address::Vsock { .. } | Address::Instance(_) => Ok(Vec::new()),
    }
}

/// A link over a vsock connection.
pub(crate) fn vsock(socket: OwnedFd, peer: &str) -> io::Result<Connection> {
    Ok(Connection {
        carrier: Carrier::Stream(StreamCarrier::new(socket)?),
        description: format!("{} <-> {peer}", shown(Protocol::Vsock)),
        info: LinkInfo::VSOCK,
        local: None,
    })
}

/// A new vsock socket.
pub(crate) fn vsock_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?)
}

/// An IPv4 address that an IPv6 socket shows as a mapped one, as itself.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}
