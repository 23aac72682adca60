//! Peers on the local network find each other: each says by multicast, on every suitable interface, that
//! it is there and at which port (`mycelium_wire::beacon`).
//!
//! Interfaces are read from `/proc/net/if_inet6` anew now and then, since they come and go; a new one is
//! greeted at once, all of them once a minute. Anybody on the link may send beacons, so only few peers
//! are added because of them, and one that can't be reached is forgotten.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mycelium_wire::beacon::{BEACON_SIZE, Beacon, GROUP};
use rustix::net::sockopt;
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};

use crate::endpoint::Endpoint;
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
/// Time between looks at the interfaces.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Peers that are known by their beacons alone.
const DISCOVERED_COUNT_MAX: usize = 128;
/// Flags of an address that was not, or can't be, checked to be the only one (`IFA_F_TENTATIVE`,
/// `IFA_F_DADFAILED`).
const UNUSABLE: u32 = 0x48;
/// Interfaces that are used.
const INTERFACE_COUNT_MAX: usize = 64;

/// Says and hears who is there.
pub(crate) struct Discovery {
    socket: UdpSocket,
    config: DiscoveryConfig,
    beacon: Beacon,
    peers: Arc<Peers>,
    /// Interfaces by their index, and when each was greeted.
    joined: BTreeMap<u32, Instant>,
}

impl Discovery {
    /// Opens the socket. Must be called inside a runtime.
    pub(crate) fn new(
        config: DiscoveryConfig,
        beacon: Beacon,
        peers: Arc<Peers>,
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
        Ok(Self { socket, config, beacon, peers, joined: BTreeMap::new() })
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
        let interfaces = interfaces(&self.config.interfaces);
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

/// Indexes of interfaces with a link-local address that can multicast and are no tunnels.
fn interfaces(wanted: &[String]) -> Vec<u32> {
    // Without IPv6 there is no such file, and nobody to greet.
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let found = link_local(&table).filter(|(name, _)| {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
        let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/flags"));
        is_wanted && flags.map_or(true, |flags| is_suitable(&flags))
    });
    found.map(|(_, index)| index).take(INTERFACE_COUNT_MAX).collect()
}

/// Name and index of each interface with a link-local address, from lines such as
/// `fe80000000000000… 02 40 20 80 eth0`: address, index, prefix length, scope, flags, name.
fn link_local(table: &str) -> impl Iterator<Item = (&str, u32)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (address, index) = (fields.next()?, fields.next()?);
        let (prefix_len, _scope) = (fields.next()?, fields.next()?);
        let (flags, name) = (fields.next()?, fields.next()?);
        let is_link_local = address.starts_with("fe80000000000000") && prefix_len == "40";
        let is_usable = u32::from_str_radix(flags, 16).ok()? & UNUSABLE == 0;
        let index = u32::from_str_radix(index, 16).ok()?;
        (is_link_local && is_usable).then_some((name, index))
    })
}

/// Whether an interface with these flags (`/sys/class/net/NAME/flags`) reaches others by multicast.
fn is_suitable(flags: &str) -> bool {
    const UP: u32 = 0x1;
    const LOOPBACK: u32 = 0x8;
    const POINT_TO_POINT: u32 = 0x10;
    const MULTICAST: u32 = 0x1000;
    let flags = flags.trim().trim_start_matches("0x");
    u32::from_str_radix(flags, 16).is_ok_and(|flags| {
        flags & (UP | MULTICAST) == UP | MULTICAST && flags & (LOOPBACK | POINT_TO_POINT) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_found_with_their_interface() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe800000000000000000000000000001 0a 40 20 80     eth0\n\
                     fe800000000000000000000000000002 0b 40 20 c0     eth1\n\
                     fd000000000000000000000000000001 0a 40 00 80     eth0\n\
                     fe80000000000000 zz 40 20 80 bad\nfe80000000000000 02\n";
        assert_eq!(link_local(table).collect::<Vec<_>>(), [("eth0", 10)]);
    }

    #[test]
    fn tunnels_loopback_and_interfaces_that_are_down_are_left_out() {
        assert!(is_suitable("0x1003\n"));
        for flags in ["0x1002", "0x9", "0x1091", "0x3", "", "x"] {
            assert!(!is_suitable(flags), "{flags:?}");
        }
    }
}
