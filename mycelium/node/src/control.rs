//! What the APIs ask of a node, answered ([`Control`]).

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mycelium_router::{LinkId, LinkStatus, RouteInfo as RouterRoute};
use mycelium_wire::icmp::{IcmpError, Unreachable};
use mycelium_wire::identity::PublicKey;
use tokio::sync::mpsc;

use crate::api::status::{
    NodeStatus, PacketCounts, PeerHealth, ProbeRequest, ProbeResult, RouteCounts,
};
use crate::api::types::{
    AddressInfo, ConnectionState, EndpointInfo, NodeInfo, PacketStatistics, PeerInfo,
    PeerKind as ShownKind, QueriedSubnet, RouteInfo, Routes, SessionInfo, SessionState,
};
use crate::api::{Control, Later, PeerError};
use crate::data::DataPlane;
use crate::data::session::State;
use crate::data::table::{Destination, Prefix, Table};
use crate::endpoint::{Address, Endpoint};
use crate::messages::mailbox::Mailbox;
use crate::peers::{AddPeerError, PeerKind, PeerState, PeerStatus, Peers};
use crate::probe::Outcome;
use crate::routing::{Input, View, ask};

/// What a node's answers come from.
pub(crate) struct NodeControl {
    started: SystemTime,
    since: Instant,
    mailbox: Arc<Mailbox>,
    peers: Arc<Peers>,
    table: Arc<Table>,
    plane: Arc<DataPlane>,
    inputs: mpsc::Sender<Input>,
    /// Peers are added from threads that may not be the runtime's.
    runtime: tokio::runtime::Handle,
}

impl NodeControl {
    /// Must be called inside a runtime.
    pub(crate) fn new(
        mailbox: Arc<Mailbox>,
        peers: Arc<Peers>,
        table: Arc<Table>,
        plane: Arc<DataPlane>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let (started, since) = (SystemTime::now(), Instant::now());
        Self { started, since, mailbox, peers, table, plane, inputs, runtime }
    }
}

impl Control for NodeControl {
    fn info(&self) -> NodeInfo {
        let own = self.mailbox.own();
        let age = self.started.duration_since(UNIX_EPOCH);
        NodeInfo {
            node_subnet: own.key.subnet(),
            node_ip: own.address,
            node_pubkey: own.key,
            node_start_time: age.map_or(0, |age| age.as_secs()),
        }
    }

    fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    fn peers(&self) -> Vec<PeerInfo> {
        self.peers.list().into_iter().map(shown_peer).collect()
    }

    fn add_peer(&self, endpoint: &str) -> Result<(), PeerError> {
        let _inside = self.runtime.enter();
        match self.peers.add(parse(endpoint)?, PeerKind::Static) {
            Ok(()) => Ok(()),
            Err(AddPeerError::Exists(endpoint)) => Err(PeerError::Exists(endpoint.to_string())),
            Err(error) => Err(PeerError::Invalid(error.to_string())),
        }
    }

    fn remove_peer(&self, endpoint: &str) -> Result<(), PeerError> {
        let parsed = parse(endpoint)?;
        let is_removed = self.peers.remove(&parsed);
        if is_removed { Ok(()) } else { Err(PeerError::Unknown(endpoint.to_owned())) }
    }

    fn public_key(&self, address: Ipv6Addr) -> Option<PublicKey> {
        let own = self.mailbox.own();
        let prefix = Prefix::of(address);
        if prefix == Prefix::of(own.address) {
            return Some(own.key);
        }
        let destination = self.table.get(prefix)?;
        destination.link().is_some().then(|| destination.public_key())
    }

    fn packet_statistics(&self) -> PacketStatistics {
        self.plane.statistics().shown()
    }

    fn sessions(&self) -> Vec<SessionInfo> {
        let now = Instant::now();
        let shown = |destination: Arc<Destination>| shown_session(&self.plane, &destination, now);
        self.table.all().filter_map(shown).collect()
    }

    fn forget_session(&self, address: Ipv6Addr) -> bool {
        let destination = self.table.get(Prefix::of(address));
        destination.is_some_and(|known| self.plane.sessions().forget(known.public_key()))
    }

    fn routes(&self) -> Later<'_, Routes> {
        Box::pin(async { ask(&self.inputs, shown_routes).await.unwrap_or_default() })
    }

    fn status(&self) -> Later<'_, NodeStatus> {
        Box::pin(async {
            let (links, route_counts) = ask(&self.inputs, look).await.unwrap_or_default();
            let counters = self.plane.counters();
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let peers = self.peers.list();
            NodeStatus {
                version: env!("CARGO_PKG_VERSION"),
                node: self.info(),
                uptime_seconds: self.since.elapsed().as_secs(),
                peers: peers.into_iter().map(|peer| peer_health(peer, &links)).collect(),
                route_counts,
                packets: PacketCounts {
                    sent: load(&counters.sent),
                    received: load(&counters.received),
                    forwarded: load(&counters.forwarded),
                    without_route: load(&counters.without_route),
                    expired: load(&counters.expired),
                    forged: load(&counters.forged),
                },
                sessions: self.sessions(),
            }
        })
    }

    fn probe(&self, request: ProbeRequest) -> Later<'_, Result<ProbeResult, String>> {
        let ProbeRequest { address, size, timeout_ms } = request;
        Box::pin(async move {
            let wait = Duration::from_millis(timeout_ms);
            let outcome = self.plane.probe(address, size, wait).await;
            Ok(match outcome.map_err(|error| error.to_string())? {
                Outcome::Answered { round_trip, hop_limit } => {
                    let round_trip_us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
                    ProbeResult::Answered { round_trip_us, hop_limit }
                }
                Outcome::Refused { error, by } => {
                    ProbeResult::Refused { reason: reason(error), by }
                }
                Outcome::Silent => ProbeResult::Silent,
            })
        })
    }
}

/// What the router knows of links, and how many routes it has.
fn look(view: &View<'_>) -> (HashMap<LinkId, LinkStatus>, RouteCounts) {
    let links = view.router.links().map(|link| (link.id, link)).collect();
    let routes = RouteCounts {
        selected: view.router.routes().count(),
        fallback: view.router.fallbacks().count(),
        queried: view.router.queried().count(),
    };
    (links, routes)
}

fn peer_health(peer: PeerStatus, links: &HashMap<LinkId, LinkStatus>) -> PeerHealth {
    let status = peer.link.as_ref().and_then(|(id, _)| links.get(id));
    let is_alive = peer.state == PeerState::Alive;
    let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    PeerHealth {
        endpoint: peer.endpoint.to_string(),
        kind: shown_kind(peer.kind),
        connection_state: shown_state(peer.state),
        link: peer.link.as_ref().map(|(_, description)| description.clone()),
        connected_seconds: peer.connected_before.filter(|_| is_alive).map(|at| at.as_secs()),
        cost: status.map(|link| link.cost),
        round_trip_us: status.and_then(|link| link.round_trip).map(microseconds),
        lost_hellos: status.map(|link| link.lost_hellos),
        routes: status.map(|link| link.route_count),
        tx_bytes: peer.sent_size,
        rx_bytes: peer.received_size,
        dropped_packets: peer.dropped_count,
        trouble: peer.trouble,
    }
}

/// Why a packet was dropped, for people.
fn reason(error: IcmpError) -> String {
    match error {
        IcmpError::Unreachable(Unreachable::NoRoute) => "no route".to_owned(),
        IcmpError::Unreachable(Unreachable::Address) => "no such address in its subnet".to_owned(),
        IcmpError::Unreachable(Unreachable::SourcePolicy) => "the source is refused".to_owned(),
        IcmpError::PacketTooBig { mtu } => format!("larger than {mtu} bytes"),
        IcmpError::TimeExceeded => "too many hops".to_owned(),
        IcmpError::Other { error_type, code, .. } => {
            format!("ICMPv6 type {error_type} code {code}")
        }
    }
}

fn shown_session(plane: &DataPlane, to: &Destination, now: Instant) -> Option<SessionInfo> {
    let sessions = plane.sessions();
    let state = sessions.state(to, now)?;
    let public_key = to.public_key();
    let mut info = SessionInfo {
        address: public_key.address(),
        public_key,
        state: match state {
            State::Old => SessionState::Old,
            State::Asking => SessionState::Asking,
            State::ForwardSecret { .. } => SessionState::ForwardSecret,
            State::Unanswered => SessionState::Unanswered,
            State::Refused => SessionState::Refused,
        },
        announced: to.is_announced(),
        proved: sessions.is_proved(&public_key),
        cipher: None,
        age: None,
        packets_sent: None,
    };
    if let State::ForwardSecret { since, suite, sealed_count } = state {
        info.cipher = Some(suite.name());
        info.age = Some(sessions.time(now).since(since).as_secs());
        info.packets_sent = Some(sealed_count);
    }
    Some(info)
}

fn parse(endpoint: &str) -> Result<Endpoint, PeerError> {
    endpoint.parse().map_err(|error| PeerError::Invalid(format!("{error}")))
}

fn shown_routes(view: &View<'_>) -> Routes {
    let shown = |info: RouterRoute| RouteInfo {
        subnet: info.subnet,
        next_hop: view
            .links
            .get(&info.route.link)
            .map_or_else(|| "none".to_owned(), |link| link.description().to_owned()),
        metric: info.route.metric,
        seqno: info.route.seqno.0,
    };
    Routes {
        selected: view.router.routes().map(shown).collect(),
        fallback: view.router.fallbacks().map(shown).collect(),
        queried: view
            .router
            .queried()
            .map(|(subnet, until)| QueriedSubnet { subnet, expiration: until.since(view.now) })
            .collect(),
    }
}

fn shown_peer(peer: PeerStatus) -> PeerInfo {
    let addr = match peer.endpoint.address {
        Address::Vsock { cid, port } => AddressInfo::Vsock { cid, port },
        address => AddressInfo::Socket(address.to_string()),
    };
    PeerInfo {
        endpoint: EndpointInfo { proto: peer.endpoint.protocol.name(), addr },
        kind: shown_kind(peer.kind),
        connection_state: shown_state(peer.state),
        tx_bytes: peer.sent_size,
        rx_bytes: peer.received_size,
        discovered: peer.known_for.as_secs(),
        last_connected: peer.connected_before.map(|before| before.as_secs()),
    }
}

/// Existing daemons know three kinds; what the operator wrote down, here or in another file, is the first.
fn shown_kind(kind: PeerKind) -> ShownKind {
    match kind {
        PeerKind::Static | PeerKind::Instance => ShownKind::Static,
        PeerKind::LinkLocalDiscovery => ShownKind::LinkLocalDiscovery,
        PeerKind::Inbound => ShownKind::Inbound,
        PeerKind::Direct => ShownKind::Direct,
    }
}

fn shown_state(state: PeerState) -> ConnectionState {
    match state {
        PeerState::Alive => ConnectionState::Alive,
        PeerState::Connecting => ConnectionState::Connecting,
        PeerState::Dead => ConnectionState::Dead,
    }
}
