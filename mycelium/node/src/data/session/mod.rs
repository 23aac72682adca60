//! Sessions of this node: who has one, for those who carry packets; and the task that keeps them.
//!
//! ```text
//!  egress, ingress ──read──> Channel <──written── Keeper ──owns──> mycelium_wire::session::Machine
//!         └───────────────orders (bounded)──────────┘  └──handshakes──> DataPlane::send
//! ```
//!
//! What becomes of packets for peers without a session, and of packets in the old form from peers that
//! had one, is the policy in `mycelium/wire/FORMAT.md`; [`channel`] carries it out.

pub(crate) mod channel;
pub(crate) mod keeper;
pub(crate) mod packets;
pub(crate) mod proved;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use mycelium_wire::identity::PublicKey;
use mycelium_wire::session::{self, Kind, PEER_COUNT_MAX, Suite, Time};
use tokio::sync::mpsc;

use crate::data::session::channel::{Channel, Parcel};
use crate::data::table::Destination;
use crate::data::{count, lock};

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Packets wait for a session with a peer, or would like one.
    Want(PublicKey),
    /// A peer sent a handshake message.
    Handshake(PublicKey, Box<[u8]>),
    /// A peer used the session that it had begun.
    Confirmed,
    /// An operator says that a peer never had a session.
    Forget(PublicKey),
}

/// What sessions met with.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Packets in the old form from peers that had a session before.
    pub(crate) refused: AtomicU64,
    /// Packets for peers without a session that were dropped.
    pub(crate) unsent: AtomicU64,
    /// Payloads that their subscriber had no room for.
    pub(crate) missed: AtomicU64,
}

/// How a peer is talked to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// With keys that last for ever.
    Old,
    /// A session is being made, or will be with the next packet.
    Asking,
    /// With keys that are forgotten soon.
    ForwardSecret {
        /// When the keys were agreed upon.
        since: Time,
        /// The cipher.
        suite: Suite,
        /// Packets sealed with them.
        sealed_count: u64,
    },
    /// With keys that last for ever, since nobody answered though the peer is said to be able to.
    Unanswered,
    /// Not at all: it had a session before and does not answer.
    Refused,
}

/// Payloads of one kind, and who sent each.
pub(crate) type Subscriber = mpsc::Sender<(PublicKey, Vec<u8>)>;

/// Orders that wait for the keeper; what comes on top is lost, and asked for again.
pub(crate) const ORDER_COUNT_MAX: usize = 1024;
/// Payloads that wait for a subscriber.
const SUBSCRIPTION_COUNT_MAX: usize = 256;
/// Handshake messages are shorter.
const HANDSHAKE_SIZE_MAX: usize = 256;

/// All channels, and what is common to them.
#[derive(Debug)]
pub(crate) struct Sessions {
    start: Instant,
    /// None when this node speaks no sessions.
    orders: Option<mpsc::Sender<Order>>,
    channels: Mutex<HashMap<PublicKey, Arc<Channel>>>,
    /// Read for peers that say nothing of sessions; changes rarely.
    proved: ArcSwap<HashSet<PublicKey>>,
    subscribers: Mutex<HashMap<Kind, Subscriber>>,
    parked_size: AtomicUsize,
    counters: Counters,
    /// Of the machine, as its keeper last saw them.
    handshakes: Mutex<session::Counters>,
}

impl Sessions {
    /// Those of a node whose keeper takes `orders`; of a node that speaks none without.
    pub(crate) fn new(orders: Option<mpsc::Sender<Order>>, proved: &[PublicKey]) -> Self {
        Self {
            start: Instant::now(),
            orders,
            channels: Mutex::default(),
            proved: ArcSwap::from_pointee(proved.iter().copied().collect()),
            subscribers: Mutex::default(),
            parked_size: AtomicUsize::new(0),
            counters: Counters::default(),
            handshakes: Mutex::default(),
        }
    }

    /// Time as sessions see it.
    pub(crate) fn time(&self, now: Instant) -> Time {
        Time(now.saturating_duration_since(self.start))
    }

    /// What sessions met with.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What handshakes met with.
    pub(crate) fn handshakes(&self) -> session::Counters {
        *lock(&self.handshakes)
    }

    /// The channel of a destination, if it can have a session: it says so, or it had one before.
    pub(crate) fn channel<'a>(&self, destination: &'a Destination) -> Option<&'a Arc<Channel>> {
        let known = destination.channel.get();
        if known.is_some() || self.orders.is_none() {
            return known;
        }
        let key = destination.public_key();
        if !destination.is_announced() && !self.proved.load().contains(&key) {
            return None;
        }
        let channel = self.channel_of(key)?;
        Some(destination.channel.get_or_init(|| channel))
    }

    /// The channel of a peer, made if need be. None when there are too many, or none at all.
    pub(crate) fn channel_of(&self, peer: PublicKey) -> Option<Arc<Channel>> {
        self.orders.as_ref()?;
        let mut channels = lock(&self.channels);
        if let Some(channel) = channels.get(&peer) {
            return Some(Arc::clone(channel));
        }
        if channels.len() >= PEER_COUNT_MAX {
            channels
                .retain(|_, channel| Arc::strong_count(channel) > 1 || !channel.ring().is_empty());
        }
        if channels.len() >= PEER_COUNT_MAX {
            return None;
        }
        let is_proved = self.proved.load().contains(&peer);
        let channel = Arc::new(Channel::new(peer, is_proved));
        channels.insert(peer, Arc::clone(&channel));
        Some(channel)
    }

    /// Asks the keeper for a session, now and then.
    pub(crate) fn want(&self, channel: &Channel, now: Instant) {
        if channel.asks(self.time(now)) && !self.order(Order::Want(channel.peer())) {
            channel.listen();
        }
    }

    /// Takes a handshake message, which `from` has sealed.
    pub(crate) fn handshake(&self, from: PublicKey, payload: &[u8]) {
        if payload.len() <= HANDSHAKE_SIZE_MAX {
            // What is lost is sent again.
            self.order(Order::Handshake(from, payload.into()));
        }
    }

    /// Tells the keeper that a peer used a session for the first time. It would see for itself, later.
    pub(crate) fn confirmed(&self) {
        self.order(Order::Confirmed);
    }

    /// Forgets that a peer ever had a session. False when it had none, or the keeper is too busy.
    pub(crate) fn forget(&self, peer: PublicKey) -> bool {
        self.proved.load().contains(&peer) && self.order(Order::Forget(peer))
    }

    fn order(&self, order: Order) -> bool {
        self.orders.as_ref().is_some_and(|orders| orders.try_send(order).is_ok())
    }

    /// Payloads of `kind` that come from now on, for direct paths and probes. There is one subscriber of a
    /// kind: the latest.
    pub(crate) fn subscribe(&self, kind: Kind) -> mpsc::Receiver<(PublicKey, Vec<u8>)> {
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_COUNT_MAX);
        lock(&self.subscribers).insert(kind, sender);
        receiver
    }

    /// Gives a payload to who subscribed to its kind.
    pub(crate) fn deliver(&self, kind: Kind, from: PublicKey, payload: &[u8]) {
        let subscribers = lock(&self.subscribers);
        if let Some(subscriber) = subscribers.get(&kind)
            && subscriber.try_send((from, payload.to_vec())).is_err()
        {
            count(&self.counters.missed, 1);
        }
    }

    /// How a destination is talked to; none when it is not.
    pub(crate) fn state(&self, destination: &Destination, now: Instant) -> Option<State> {
        let Some(channel) = destination.channel.get() else {
            return destination.is_spoken_to().then_some(State::Old);
        };
        let ring = channel.ring();
        if let Some(session) = ring.current().filter(|session| !session.is_over(self.time(now))) {
            return Some(State::ForwardSecret {
                since: session.established(),
                suite: session.suite(),
                sealed_count: session.sealed_count(),
            });
        }
        Some(match (channel.is_unanswered(), channel.is_proved()) {
            (false, _) => State::Asking,
            (true, false) => State::Unanswered,
            (true, true) => State::Refused,
        })
    }

    /// Keeps a packet until the handshake is done.
    fn park(&self, channel: &Channel, parcel: Parcel) {
        if !channel.park(parcel, &self.parked_size) {
            count(&self.counters.unsent, 1);
        }
    }

    /// Whether a peer ever had a session with this node.
    pub(crate) fn is_proved(&self, peer: &PublicKey) -> bool {
        self.proved.load().contains(peer)
    }

    /// Notes who ever had a session.
    fn set_proved(&self, peer: PublicKey, is_proved: bool) {
        let mut proved = HashSet::clone(&self.proved.load());
        if is_proved {
            proved.insert(peer);
        } else {
            proved.remove(&peer);
        }
        self.proved.store(Arc::new(proved));
        if let Some(channel) = lock(&self.channels).get(&peer) {
            channel.set_proved(is_proved);
        }
    }

    /// Bytes that wait for handshakes.
    pub(crate) fn parked_size(&self) -> usize {
        self.parked_size.load(Ordering::Relaxed)
    }
}
