//! Peers: whom this node dials, who dialed it, and how those links are doing.
//!
//! Each peer to dial has a task that keeps a link to it: dial, carry, and after a while again
//! (`Backoff`), or at once when the machine gets a link or an address (`Peers::hurry`). Each link is
//! carried by a task of its own, which ends with the connection, or when the address that it is bound to
//! is gone. Peers found on the local network are forgotten when they can't be reached; those that dialed,
//! when their connection ends.

mod backoff;
pub(crate) mod connect;
pub(crate) mod direct;
pub(crate) mod listen;
pub(crate) mod private;
pub(crate) mod quic;
mod race;
pub(crate) mod udp;
pub(crate) mod websocket;

pub use listen::ListenError;
pub use private::PrivateNetworkError;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycelium_router::{LinkId, LinkInfo};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};

use crate::data::DataPlane;
use crate::data::ingress::Ingress;
use crate::endpoint::{Address, Endpoint, Protocol};
use crate::link::local::LocalCarrier;
use crate::link::stream::LinkError;
use crate::link::{Carrier, Link};
use crate::peers::backoff::Backoff;
use crate::peers::connect::{Connection, Connector};
use crate::routing::Input;

/// How a peer became one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerKind {
    /// Somebody named it: on the command line, in the configuration, or by the API.
    Static,
    /// It said on the local network that it is there.
    LinkLocalDiscovery,
    /// It dialed.
    Inbound,
    /// It is an instance of the same process.
    Instance,
    /// It has traffic with this node, which found a way to it without others between.
    Direct,
}

/// How a peer's link is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerState {
    /// There is a link.
    Alive,
    /// It is being dialed.
    Connecting,
    /// There is none, and it will be dialed again.
    Dead,
}

/// What is known of a peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Where it is.
    pub endpoint: Endpoint,
    /// How it became one.
    pub kind: PeerKind,
    /// How its link is.
    pub state: PeerState,
    /// Bytes sent to it.
    pub sent_size: u64,
    /// Bytes received from it.
    pub received_size: u64,
    /// Data packets that its link had to drop.
    pub dropped_count: u64,
    /// For how long it has been known.
    pub known_for: Duration,
    /// How long ago the last link to it began.
    pub connected_before: Option<Duration>,
    /// Its link, as routes name it.
    pub link: Option<(LinkId, String)>,
    /// Why the last dial failed or the last link ended.
    pub trouble: Option<String>,
}

/// Why a peer was not added.
#[derive(Clone, Debug, thiserror::Error, Eq, PartialEq)]
pub enum AddPeerError {
    /// It is known.
    #[error("peer {0} exists already")]
    Exists(Endpoint),
    /// There are too many.
    #[error("{PEER_COUNT_MAX} peers are known already, which is the most")]
    TooMany,
    /// TLS needs a private network's key.
    #[error("peer {0}: tls:// needs a private network (--network-name and --network-key-file)")]
    NoPrivateNetwork(Endpoint),
    /// Only TCP and vsock carry private networks.
    #[error("peer {0}: {proto}:// carries no private network", proto = .0.protocol.name())]
    NotInPrivateNetwork(Endpoint),
    /// QUIC was switched off.
    #[error("peer {0}: QUIC is disabled (--disable-quic)")]
    QuicDisabled(Endpoint),
    /// UDP was switched off, or is, in a private network.
    #[error("peer {0}: UDP is disabled (--disable-udp, or a private network)")]
    UdpDisabled(Endpoint),
}

/// All peers of a node.
pub(crate) struct Peers {
    connector: Connector,
    plane: Arc<DataPlane>,
    inputs: mpsc::Sender<Input>,
    records: Mutex<BTreeMap<Endpoint, Record>>,
    /// Links that are carried, and the address of this node that each is bound to.
    carried: Mutex<Carried>,
    /// Changes when it is worth dialing at once.
    hurry: watch::Sender<()>,
    next_link: AtomicU64,
    inbound: Arc<Semaphore>,
    connection_attempts: AtomicU64,
    peers_added: AtomicU64,
}

/// Links, and the address that each is bound to.
type Carried = HashMap<LinkId, (Arc<Link>, Option<IpAddr>)>;

/// Peers that are known at once.
const PEER_COUNT_MAX: usize = 4096;
/// Connections from others that are carried at once.
const INBOUND_COUNT_MAX: usize = 1024;
/// Of those, from one IP address.
const INBOUND_PER_ADDRESS_COUNT_MAX: usize = 64;
/// A peer found on the local network is forgotten after as many dials that fail in a row.
const DISCOVERED_FAILURE_COUNT_MAX: u32 = 10;
/// A dial that has been tried for this long begins anew when it is worth dialing at once.
const DIAL_AGE: Duration = Duration::from_millis(300);
/// Another instance of this process is as near as can be.
const INSTANCE: LinkInfo = LinkInfo { static_cost: 1 };
/// A link that lived this long was a good one: the next dial comes soon.
const GOOD_LINK_AGE: Duration = Duration::from_secs(10);

/// What is remembered of a peer.
struct Record {
    kind: PeerKind,
    state: PeerState,
    known_since: Instant,
    connected_at: Option<Instant>,
    /// Of links that ended.
    sent_size: u64,
    received_size: u64,
    link: Option<Arc<Link>>,
    trouble: Option<String>,
    stop: Arc<Notify>,
}

impl Record {
    fn new(kind: PeerKind) -> Self {
        Self {
            kind,
            state: PeerState::Connecting,
            known_since: Instant::now(),
            connected_at: None,
            sent_size: 0,
            received_size: 0,
            link: None,
            trouble: None,
            stop: Arc::default(),
        }
    }

    fn status(&self, endpoint: &Endpoint) -> PeerStatus {
        let link = self.link.as_ref();
        PeerStatus {
            endpoint: endpoint.clone(),
            kind: self.kind,
            state: self.state,
            sent_size: self.sent_size + link.map_or(0, |link| link.sent_size()),
            received_size: self.received_size + link.map_or(0, |link| link.received_size()),
            dropped_count: link.map_or(0, |link| link.dropped()),
            known_for: self.known_since.elapsed(),
            connected_before: self.connected_at.map(|at| at.elapsed()),
            link: link.map(|link| (link.id(), link.description().to_owned())),
            trouble: self.trouble.clone(),
        }
    }

    fn begin(&mut self, link: &Arc<Link>) {
        self.state = PeerState::Alive;
        self.connected_at = Some(Instant::now());
        self.link = Some(Arc::clone(link));
        self.trouble = None;
    }

    fn end(&mut self, trouble: String) {
        self.state = PeerState::Dead;
        self.trouble = Some(trouble);
        if let Some(link) = self.link.take() {
            self.sent_size += link.sent_size();
            self.received_size += link.received_size();
        }
    }
}

impl Peers {
    pub(crate) fn new(
        connector: Connector,
        plane: Arc<DataPlane>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self {
            connector,
            plane,
            inputs,
            records: Mutex::default(),
            carried: Mutex::default(),
            hurry: watch::Sender::new(()),
            next_link: AtomicU64::new(1),
            inbound: Arc::new(Semaphore::new(INBOUND_COUNT_MAX)),
            connection_attempts: AtomicU64::new(0),
            peers_added: AtomicU64::new(0),
        }
    }

    /// Adds a peer, which is dialed from now on. Must be called inside a runtime.
    pub(crate) fn add(
        self: &Arc<Self>,
        endpoint: Endpoint,
        kind: PeerKind,
    ) -> Result<(), AddPeerError> {
        self.connector.check(&endpoint)?;
        let mut records = self.records();
        if records.contains_key(&endpoint) {
            return Err(AddPeerError::Exists(endpoint));
        }
        if records.len() >= PEER_COUNT_MAX {
            return Err(AddPeerError::TooMany);
        }
        let record = Record::new(kind);
        let stop = Arc::clone(&record.stop);
        records.insert(endpoint.clone(), record);
        drop(records);
        self.peers_added.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(Arc::clone(self).keep(endpoint, kind, stop));
        Ok(())
    }

    /// Forgets a peer and ends its link. False when there is none.
    pub(crate) fn remove(&self, endpoint: &Endpoint) -> bool {
        let Some(record) = self.records().remove(endpoint) else { return false };
        record.stop.notify_one();
        if let Some(link) = record.link {
            link.close();
        }
        true
    }

    /// Ends all links, so that peers need not wait to find out.
    pub(crate) fn close(&self) {
        self.records()
            .values()
            .filter_map(|record| record.link.as_ref())
            .for_each(|link| link.close());
    }

    /// All peers, in order.
    pub(crate) fn list(&self) -> Vec<PeerStatus> {
        self.records().iter().map(|(endpoint, record)| record.status(endpoint)).collect()
    }

    /// Links to peers that are reached by other means than UDP, and where those are.
    pub(crate) fn named_neighbours(&self) -> Vec<(LinkId, IpAddr)> {
        let address = |(endpoint, record): (&Endpoint, &Record)| {
            let is_named = record.kind == PeerKind::Static && endpoint.protocol != Protocol::Udp;
            let Address::Socket(address) = endpoint.address else { return None };
            let link = record.link.as_ref().filter(|_| is_named)?;
            Some((link.id(), address.ip()))
        };
        self.records().iter().filter_map(address).collect()
    }

    /// How many peers of a kind are known.
    pub(crate) fn count(&self, kind: PeerKind) -> usize {
        self.records().values().filter(|record| record.kind == kind).count()
    }

    /// Makes the peers that somebody named those of `endpoints`; others stay.
    pub(crate) fn replace_static(self: &Arc<Self>, endpoints: &[Endpoint]) {
        let gone: Vec<_> = self
            .records()
            .iter()
            .filter(|(at, record)| record.kind == PeerKind::Static && !endpoints.contains(at))
            .map(|(at, _)| at.clone())
            .collect();
        for endpoint in gone {
            tracing::info!(%endpoint, "peer removed");
            self.remove(&endpoint);
        }
        for endpoint in endpoints {
            match self.add(endpoint.clone(), PeerKind::Static) {
                Ok(()) => tracing::info!(%endpoint, "peer added"),
                Err(AddPeerError::Exists(_)) => {}
                Err(error) => tracing::warn!(%error, "peer not added"),
            }
        }
    }

    /// Has all peers without a link dialed at once: the machine got a link or an address.
    pub(crate) fn hurry(&self) {
        self.hurry.send_replace(());
    }

    /// Closes links that are bound to an address that this machine no longer has. They would be noticed
    /// by their silence only.
    pub(crate) fn address_gone(&self, address: IpAddr) {
        for (link, local) in self.carried().values() {
            if *local == Some(address) {
                tracing::info!(link = link.description(), %address, "the address is gone");
                link.close();
            }
        }
    }

    /// Dials so far, and peers added so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.connection_attempts), load(&self.peers_added))
    }

    /// What makes connections.
    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Allows one more connection of somebody else, unless there are too many.
    fn inbound_permit(&self) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        Arc::clone(&self.inbound).try_acquire_owned()
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Endpoint, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carried(&self) -> MutexGuard<'_, Carried> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is remembered of a peer, unless it was removed.
    fn update(&self, endpoint: &Endpoint, stop: &Arc<Notify>, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.records().get_mut(endpoint)
            && Arc::ptr_eq(&record.stop, stop)
        {
            change(record);
        }
    }

    /// Keeps a link to a peer until it is removed.
    async fn keep(self: Arc<Self>, endpoint: Endpoint, kind: PeerKind, stop: Arc<Notify>) {
        let mut backoff = Backoff::default();
        let mut hurry = self.hurry.subscribe();
        loop {
            hurry.mark_unchanged();
            self.update(&endpoint, &stop, |record| record.state = PeerState::Connecting);
            self.connection_attempts.fetch_add(1, Ordering::Relaxed);
            let dialed = tokio::select! {
                dialed = self.connector.dial(&endpoint) => dialed,
                () = outdated(&mut hurry) => continue,
                () = stop.notified() => return,
            };
            match dialed {
                Ok(connection) => {
                    let begin = Instant::now();
                    if self.carry_until(&endpoint, connection, &stop).await.is_none() {
                        return;
                    }
                    if begin.elapsed() >= GOOD_LINK_AGE {
                        backoff = Backoff::default();
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(%endpoint, error, "not reached");
                    self.update(&endpoint, &stop, |record| record.end(error));
                }
            }
            let is_lost = backoff.failures() >= DISCOVERED_FAILURE_COUNT_MAX;
            if kind == PeerKind::LinkLocalDiscovery && is_lost {
                self.remove(&endpoint);
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.wait()) => {}
                Ok(()) = hurry.changed() => backoff = Backoff::default(),
                () = stop.notified() => return,
            }
        }
    }

    /// Carries a dialed link to its end. `None` when the peer was removed or the node stops.
    async fn carry_until(
        &self,
        endpoint: &Endpoint,
        connection: Connection,
        stop: &Arc<Notify>,
    ) -> Option<()> {
        let (link, info, local) = self.link(connection);
        self.update(endpoint, stop, |record| record.begin(&link));
        tracing::info!(%endpoint, "link up");
        self.inputs.send(Input::Up(Arc::clone(&link), info)).await.ok()?;
        let carry = self.carry(&link, local);
        tokio::pin!(carry);
        let (error, is_removed) = tokio::select! {
            error = &mut carry => (error, false),
            () = stop.notified() => {
                link.close();
                (carry.await, true)
            }
        };
        tracing::info!(%endpoint, reason = %Chain(&error), "link down");
        self.update(endpoint, stop, |record| record.end(Chain(&error).to_string()));
        self.inputs.send(Input::Down(link.id())).await.ok()?;
        (!is_removed).then_some(())
    }

    /// Carries a connection that somebody else made, to its end.
    async fn serve(
        self: Arc<Self>,
        endpoint: Endpoint,
        connection: Connection,
        _permit: OwnedSemaphorePermit,
    ) {
        self.carry_once(endpoint, connection, PeerKind::Inbound).await;
    }

    /// Carries a link to its end, after which its peer is forgotten.
    pub(crate) async fn carry_once(
        &self,
        endpoint: Endpoint,
        connection: Connection,
        kind: PeerKind,
    ) {
        let (link, info, local) = self.link(connection);
        let Some(stop) = self.begin_once(&endpoint, &link, kind) else { return };
        tracing::info!(%endpoint, ?kind, "link up");
        if self.inputs.send(Input::Up(Arc::clone(&link), info)).await.is_err() {
            return;
        }
        let error = self.carry(&link, local).await;
        tracing::info!(%endpoint, reason = %Chain(&error), "link down");
        self.end_once(&endpoint, &stop);
        // When the node stops, the router is gone.
        let _ = self.inputs.send(Input::Down(link.id())).await;
    }

    /// Carries a link to another instance of this process, until either end closes it. A link to one of
    /// that name which is there already ends.
    pub(crate) async fn join(self: Arc<Self>, name: String, carrier: LocalCarrier) {
        let description = format!("{} {name}", shown(Protocol::Instance));
        let endpoint = Endpoint { protocol: Protocol::Instance, address: Address::Instance(name) };
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let link = Arc::new(Link::new(id, description, Carrier::Local(carrier)));
        let mut record = Record::new(PeerKind::Instance);
        record.begin(&link);
        let stop = Arc::clone(&record.stop);
        let old = self.records().insert(endpoint.clone(), record);
        if let Some(link) = old.and_then(|old| old.link) {
            link.close();
        }
        if self.inputs.send(Input::Up(Arc::clone(&link), INSTANCE)).await.is_err() {
            return link.close();
        }
        self.carry(&link, None).await;
        self.end_once(&endpoint, &stop);
        // When the node stops, the router is gone.
        let _ = self.inputs.send(Input::Down(id)).await;
    }

    /// Notes a peer that is not dialed again, unless too many came from its address.
    fn begin_once(
        &self,
        endpoint: &Endpoint,
        link: &Arc<Link>,
        kind: PeerKind,
    ) -> Option<Arc<Notify>> {
        let mut record = Record::new(kind);
        record.begin(link);
        let stop = Arc::clone(&record.stop);
        let mut records = self.records();
        if inbound_count_from(&records, endpoint) >= INBOUND_PER_ADDRESS_COUNT_MAX {
            return None;
        }
        let known = records.get(endpoint).map(|known| known.kind);
        // One that is dialed from here as well keeps its record; the link is as good without.
        if known.is_none_or(|kind| matches!(kind, PeerKind::Inbound | PeerKind::Direct)) {
            let old = records.insert(endpoint.clone(), record);
            // A new connection from where one came already: that one is dead.
            if let Some(link) = old.and_then(|old| old.link) {
                link.close();
            }
        }
        Some(stop)
    }

    /// Forgets a peer whose link has ended, unless a newer one took its place.
    fn end_once(&self, endpoint: &Endpoint, stop: &Arc<Notify>) {
        let mut records = self.records();
        if records.get(endpoint).is_some_and(|known| Arc::ptr_eq(&known.stop, stop)) {
            records.remove(endpoint);
        }
    }

    fn link(&self, connection: Connection) -> (Arc<Link>, LinkInfo, Option<IpAddr>) {
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let Connection { carrier, description, info, local } = connection;
        (Arc::new(Link::new(id, description, carrier)), info, local)
    }

    async fn carry(&self, link: &Arc<Link>, local: Option<IpAddr>) -> LinkError {
        self.carried().insert(link.id(), (Arc::clone(link), local));
        let mut ingress = Ingress::new(&self.plane, link, &self.inputs);
        let error = link.carrier().run(&mut ingress).await;
        self.carried().remove(&link.id());
        error
    }
}

/// Comes back when a dial that has been tried for a while is worth beginning anew.
async fn outdated(hurry: &mut watch::Receiver<()>) {
    tokio::time::sleep(DIAL_AGE).await;
    if hurry.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Connections that came from the IP address of this one. A web server on this machine passes on those of
/// many, which are not counted.
fn inbound_count_from(records: &BTreeMap<Endpoint, Record>, endpoint: &Endpoint) -> usize {
    let Address::Socket(from) = endpoint.address else { return 0 };
    if from.ip().is_loopback() {
        return 0;
    }
    let is_from = |known: &Endpoint| matches!(known.address, Address::Socket(address) if address.ip() == from.ip());
    let inbound = records.iter().filter(|(_, record)| record.kind == PeerKind::Inbound);
    inbound.filter(|(known, _)| is_from(known)).count()
}

/// An error and what caused it, on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// What the API calls a link's protocol.
pub(crate) fn shown(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Quic => "QUIC",
        Protocol::Udp => "UDP",
        Protocol::Vsock => "VSOCK",
        Protocol::Ws => "WS",
        Protocol::Wss => "WSS",
        Protocol::Instance => "INSTANCE",
    }
}
