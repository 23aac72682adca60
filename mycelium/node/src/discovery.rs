//! Peers on the local network find each other: each says by multicast, on every suitable interface, that
//! it is there and at which port (`mycelium_wire::beacon`).
//!
//! The kernel tells which interfaces there are ([`crate::interfaces`]); a new one is greeted at once, all
//! of them once a minute. Anybody on the link may send beacons, so only few peers
//! are added because of them, and one that can't be reached is forgotten.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mycelium_wire::beacon::{BEACON_SIZE, Beacon, GROUP};
use rustix::net::sockopt;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::endpoint::Endpoint;
use crate::interfaces::Interfaces;
use crate::peers::{AddPeerError, ListenError, PeerKind, Peers};

/// How discovery is done.
#[derive(Clone, Debug)]
pub(crate) struct DiscoveryConfig {
    /// UDP port, the same for all.
    pub(crate) port: u16,
    /// Interfaces; all that are suitable when empty.
    pub(crate) interfaces: Vec<String>,
}

/// Time between beacons.
const BEACON_INTERVAL: Duration = Duration::from_secs(60);
/// Time between looks at who is to be greeted.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Peers that are known by their beacons alone.
const DISCOVERED_COUNT_MAX: usize = 128;
/// Interfaces that are used.
const INTERFACE_COUNT_MAX: usize = 64;

/// Says and hears who is there.
pub(crate) struct Discovery {
    socket: UdpSocket,
    config: DiscoveryConfig,
    beacon: Beacon,
    peers: Arc<Peers>,
    interfaces: watch::Receiver<Interfaces>,
    /// Interfaces by their index, and when each was greeted.
    joined: BTreeMap<u32, Instant>,
}

impl Discovery {
    /// Opens the socket. Must be called inside a runtime.
    pub(crate) fn new(
        config: DiscoveryConfig,
        beacon: Beacon,
        peers: Arc<Peers>,
        interfaces: watch::Receiver<Interfaces>,
    ) -> anyhow::Result<Self> {
        let port = config.port;
        let failed =
            |source| ListenError { port: port.into(), flag: "--peer-discovery-port", source };
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
        peers.connector().mark(&socket)?;
        sockopt::set_ipv6_multicast_loop(&socket, false).context("multicast loop")?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { socket, config, beacon, peers, interfaces, joined: BTreeMap::new() })
    }

    /// Runs for as long as the node does.
    pub(crate) async fn run(mut self) {
        let mut scan = interval(SCAN_INTERVAL);
        scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One byte more, so that a longer datagram is not taken for a beacon.
        let mut datagram = [0; BEACON_SIZE + 1];
        loop {
            tokio::select! {
                _ = scan.tick() => self.greet().await,
                Ok(()) = self.interfaces.changed() => self.greet().await,
                received = self.socket.recv_from(&mut datagram) => match received {
                    Ok((size, from)) => self.hear(&datagram[..size], from),
                    Err(error) => {
                        tracing::debug!(%error, "no beacon can be heard for a moment");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
            }
        }
    }

    /// Sends beacons where they are due.
    async fn greet(&mut self) {
        let now = Instant::now();
        let mut interfaces = self.interfaces.borrow().for_discovery(&self.config.interfaces);
        interfaces.truncate(INTERFACE_COUNT_MAX);
        self.joined.retain(|index, _| interfaces.contains(index));
        for index in interfaces {
            let greeted = self.joined.get(&index).copied();
            if greeted.is_none() {
                // It may still be a member, if the interface was away for a moment.
                if let Err(error) = sockopt::set_ipv6_add_membership(&self.socket, &GROUP, index) {
                    tracing::debug!(index, %error, "no beacons from this interface");
                }
            }
            if greeted.is_none_or(|at| now.saturating_duration_since(at) >= BEACON_INTERVAL) {
                let group = SocketAddrV6::new(GROUP, self.config.port, 0, index);
                match self.socket.send_to(&self.beacon.encode(), group).await {
                    Ok(_) => {
                        self.joined.insert(index, now);
                    }
                    Err(error) => tracing::debug!(index, %error, "no beacon on this interface"),
                }
            }
        }
    }

    fn hear(&self, datagram: &[u8], from: SocketAddr) {
        let SocketAddr::V6(from) = from else { return };
        let Ok(beacon) = Beacon::parse(datagram) else { return };
        let is_us = beacon.router_id.public_key() == self.beacon.router_id.public_key();
        if !from.ip().is_unicast_link_local() || is_us || beacon.tcp_port == 0 {
            return;
        }
        let address = SocketAddrV6::new(*from.ip(), beacon.tcp_port, 0, from.scope_id());
        let endpoint = Endpoint::new(self.peers.connector().tcp_protocol(), address.into());
        if self.peers.count(PeerKind::LinkLocalDiscovery) >= DISCOVERED_COUNT_MAX {
            return;
        }
        match self.peers.add(endpoint.clone(), PeerKind::LinkLocalDiscovery) {
            Ok(()) => tracing::info!(%endpoint, "a peer on the local network"),
            Err(AddPeerError::Exists(_)) => {}
            Err(error) => tracing::debug!(%error, "a peer on the local network is left out"),
        }
    }
}
