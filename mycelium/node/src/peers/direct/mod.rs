//! Direct ways to nodes that this one has traffic with, through NATs.
//!
//! Two nodes that reach each other only by way of others tell each other where they may be reached: by
//! session messages, sealed end to end, over the way that they have. Then both send at the same time, so
//! that each one's NAT expects the other. What results is one more link, and routing prefers it since it
//! costs less; the way over others stays known and is taken again when the link dies.
//!
//! ```text
//!  this node                      by way of others                    the other
//!    traffic for a second
//!    offer: addresses ──────────────────────────────────────────────>  has traffic too?
//!    <──────────────────────────────────────────── answer: addresses
//!    init to each address, some times  ─────><─────  punch to each, some times
//!    link (Noise IK) <──────────────────────────────────────────────>
//! ```
//!
//! A node behind a NAT must know how the world sees its UDP port, which a neighbour over UDP tells. If it
//! has none, it first makes a UDP link to a neighbour of its kind that it reaches otherwise, at the usual
//! port.
//!
//! | module | what |
//! |---|---|
//! | `message` | offers and answers |
//! | `candidates` | addresses, and which are fit |
//! | `plan` | with whom and when |
//! | `mapping` | ports that routers pass on (PCP, NAT-PMP) |
//! | `upnp` | the same, of routers that know UPnP alone, with `web` and `xml` |

mod candidates;
pub(crate) mod mapping;
mod message;
mod plan;
mod upnp;
mod web;
mod xml;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelium_router::{LinkId, Route};
use mycelium_wire::identity::PublicKey;
use mycelium_wire::session::{self, Kind};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::UDP_LISTEN_PORT;
use crate::data::DataPlane;
use crate::endpoint::{Endpoint, Protocol};
use crate::link::udp::dial::{Reason, dial};
use crate::link::udp::socket::Sockets;
use crate::peers::direct::message::Message;
use crate::peers::direct::plan::Plan;
use crate::peers::{PeerKind, Peers, udp};
use crate::routing::{Input, View, ask};

/// What a director needs.
pub(crate) struct Means {
    pub(crate) own: PublicKey,
    pub(crate) peers: Arc<Peers>,
    pub(crate) sockets: Arc<Sockets>,
    /// What carries offers and answers.
    pub(crate) plane: Arc<DataPlane>,
    /// Questions to the router.
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Offers and answers that came.
    pub(crate) messages: mpsc::Receiver<(PublicKey, Vec<u8>)>,
    /// Whom packets go to.
    pub(crate) used: mpsc::Receiver<PublicKey>,
    /// Where a router passes on what comes for this node.
    pub(crate) mapped: watch::Receiver<Option<SocketAddr>>,
}

/// Reports of traffic that wait; more are lost without harm.
pub(crate) const USED_COUNT_MAX: usize = 64;
/// News of attempts that wait.
const NEWS_COUNT_MAX: usize = 16;
/// How often overdue attempts and idle links are looked for.
const TICK: Duration = Duration::from_secs(1);
/// Neighbours that are remembered as such, and for how long they are not asked again.
const ASKED_COUNT_MAX: usize = 256;
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// When the NATs on the way are opened, in milliseconds after an answer.
const PUNCHES_MS: [u64; 4] = [0, 200, 600, 1500];

/// What became of an attempt.
enum News {
    Up(PublicKey, Endpoint),
    Failed(PublicKey),
    Ended(PublicKey),
}

/// The task that looks for direct ways.
pub(crate) struct Director {
    means: Means,
    plan: Plan,
    /// Direct links that this node dialed.
    links: HashMap<PublicKey, Endpoint>,
    /// Neighbours that were dialed over UDP so that they say where this node is.
    asked: HashMap<PublicKey, Instant>,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
}

impl Director {
    pub(crate) fn new(means: Means) -> Self {
        let news = mpsc::channel(NEWS_COUNT_MAX);
        let (links, asked) = (HashMap::new(), HashMap::new());
        Self { means, plan: Plan::default(), links, asked, news }
    }

    /// Runs for as long as the node does.
    pub(crate) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                used = self.means.used.recv() => match used {
                    Some(peer) => self.used(peer).await,
                    None => return,
                },
                message = self.means.messages.recv() => match message {
                    Some((peer, payload)) => self.message(peer, &payload),
                    None => return,
                },
                // This task holds a sender itself, so there is always another one.
                Some(news) = self.news.1.recv() => self.news(news),
                _ = tick.tick() => self.tick(),
            }
        }
    }

    /// Packets went to `peer`: offers it a direct way if it is time, and it is reached by way of others.
    async fn used(&mut self, peer: PublicKey) {
        if !self.plan.used(peer, Instant::now()) {
            return;
        }
        let is_relayed = ask(&self.means.inputs, move |view| is_relayed(view, peer)).await;
        let now = Instant::now();
        if is_relayed == Some(true) && self.finds_observer().await {
            return self.plan.wait(&peer, now);
        }
        let attempt = mycelium_wire::random_bytes().ok().filter(|_| is_relayed == Some(true));
        let Some(attempt) = attempt else { return self.plan.put_off(&peer, now) };
        self.plan.offered(&peer, attempt, now);
        tracing::debug!(%peer, "a direct way is looked for");
        self.send(peer, false, attempt);
    }

    /// If no neighbour says where this node is: dials one that could. Whether there is one to wait for.
    async fn finds_observer(&mut self) -> bool {
        let now = Instant::now();
        self.asked.retain(|_, at| now.saturating_duration_since(*at) < ASK_AGAIN_AFTER);
        let observed = self.means.sockets.observations().addresses(now);
        if !observed.is_empty() || self.asked.len() >= ASKED_COUNT_MAX {
            return false;
        }
        let named = self.means.peers.named_neighbours();
        let found = ask(&self.means.inputs, move |view| capable(view, &named)).await;
        let found = found.unwrap_or_default().into_iter();
        let mut new = found.filter(|(peer, _)| !self.asked.contains_key(peer));
        let Some((peer, ip)) = new.next() else { return false };
        self.asked.insert(peer, now);
        self.dial(peer, vec![SocketAddr::new(ip, UDP_LISTEN_PORT)]);
        true
    }

    fn dial(&self, peer: PublicKey, addresses: Vec<SocketAddr>) {
        let (peers, sockets) = (Arc::clone(&self.means.peers), Arc::clone(&self.means.sockets));
        tokio::spawn(connect(peers, sockets, peer, addresses, self.news.0.clone()));
    }

    fn send(&self, peer: PublicKey, is_answer: bool, attempt: message::Attempt) {
        let mapped = *self.means.mapped.borrow();
        let observed = self.means.sockets.observations().addresses(Instant::now());
        let candidates = candidates::own(self.means.sockets.port(), mapped, &observed);
        let message = Message { is_answer, attempt, candidates };
        // What gets lost, or finds no session, is an attempt that failed.
        let _ = self.means.plane.send_session(peer, Kind::RENDEZVOUS, &message.encode());
    }

    fn message(&mut self, peer: PublicKey, payload: &[u8]) {
        let Some(message) = Message::parse(payload) else { return };
        let now = Instant::now();
        let addresses = candidates::fit(&message.candidates);
        tracing::debug!(%peer, message.is_answer, ?addresses, "addresses");
        if message.is_answer {
            if self.plan.answered(&peer, message.attempt, now) {
                self.dial(peer, addresses);
            }
        } else if self.plan.is_welcome(&peer, &self.means.own, now) {
            self.send(peer, true, message.attempt);
            tokio::spawn(punch(Arc::clone(&self.means.sockets), addresses));
        }
    }

    fn news(&mut self, news: News) {
        match news {
            News::Up(peer, endpoint) => {
                self.plan.succeeded(&peer);
                self.links.insert(peer, endpoint);
            }
            News::Failed(peer) => self.plan.failed(&peer, Instant::now()),
            News::Ended(peer) => {
                self.plan.ended(&peer, Instant::now());
                self.links.remove(&peer);
                self.asked.remove(&peer);
            }
        }
    }

    fn tick(&mut self) {
        for peer in self.plan.tick(Instant::now()) {
            if let Some(endpoint) = self.links.get(&peer) {
                self.means.peers.remove(endpoint);
            }
        }
    }
}

/// Whether packets for `peer` go by way of others.
fn is_relayed(view: &View<'_>, peer: PublicKey) -> bool {
    let Some(route) = view.router.route(peer.subnet()) else { return false };
    let link = view.links.get(&route.link);
    let cost = view.router.links().find(|link| link.id == route.link).map(|link| link.cost);
    // A neighbour announces its own subnet with metric 0, to which the link's cost is added.
    let is_neighbour =
        cost == Some(route.metric.0) || link.and_then(|link| link.peer()) == Some(peer);
    !is_neighbour
}

/// Owners of those subnets that are announced over these links by the subnets' own nodes, which say that
/// they are of this kind; and the links' addresses.
fn capable(view: &View<'_>, links: &[(LinkId, IpAddr)]) -> Vec<(PublicKey, IpAddr)> {
    let costs: HashMap<_, _> = view.router.links().map(|link| (link.id, link.cost)).collect();
    let known = |route: Route| {
        let (_, ip) = links.iter().find(|(link, _)| *link == route.link)?;
        let is_own = costs.get(&route.link) == Some(&route.metric.0);
        let is_capable = session::is_announced(&route.router_id);
        (is_own && is_capable).then_some((route.router_id.public_key(), *ip))
    };
    view.router.routes().filter_map(|info| known(info.route)).collect()
}

/// Dials a peer at its addresses, and carries the link that results.
async fn connect(
    peers: Arc<Peers>,
    sockets: Arc<Sockets>,
    peer: PublicKey,
    addresses: Vec<SocketAddr>,
    news: mpsc::Sender<News>,
) {
    let carrier = match dial(&sockets, &addresses, Some(&peer), Reason::Named).await {
        Ok(carrier) => carrier,
        Err(error) => {
            tracing::debug!(%peer, %error, "no direct way");
            // The director ends with the node only.
            let _ = news.send(News::Failed(peer)).await;
            return;
        }
    };
    let endpoint = Endpoint::new(Protocol::Udp, carrier.address());
    tracing::info!(%peer, %endpoint, "a direct way");
    let _ = news.send(News::Up(peer, endpoint.clone())).await;
    peers.carry_once(endpoint, udp::connection(carrier), PeerKind::Direct).await;
    let _ = news.send(News::Ended(peer)).await;
}

/// Opens the NATs on the way for what a peer sends from its addresses.
async fn punch(sockets: Arc<Sockets>, addresses: Vec<SocketAddr>) {
    let start = tokio::time::Instant::now();
    for after in PUNCHES_MS {
        tokio::time::sleep_until(start + Duration::from_millis(after)).await;
        for address in &addresses {
            sockets.punch(*address);
        }
    }
}
