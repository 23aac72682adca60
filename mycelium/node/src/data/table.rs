//! Which link leads to which subnet, and the key that is shared with it, for readers that never wait.
//!
//! The router's owner alone writes. A [`Destination`] stays the same while its route changes: only its
//! link is swapped. New subnets replace one of [`SHARD_COUNT`] maps, so that learning ten thousand of
//! them does not copy ten thousand entries each time.
//!
//! A subnet whose route is lost keeps its key for a while: its node may still reach us, and its packets
//! are still worth opening.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use mycelium_wire::cipher::PairKey;
use mycelium_wire::identity::{NODE_PREFIX_LEN, PublicKey, RouterId, SecretKey, Subnet};
use mycelium_wire::session;

use crate::data::session::channel::Channel;
use crate::link::Link;

/// First eight bytes of an address: the /64 that routes are made of.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Prefix(pub(crate) u64);

impl Prefix {
    pub(crate) fn of(address: std::net::Ipv6Addr) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = address.octets();
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    pub(crate) fn subnet(self) -> Subnet {
        Subnet::of(std::net::Ipv6Addr::from(u128::from(self.0) << 64))
    }
}

/// A node's subnet that has, or recently had, a route.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) prefix: Prefix,
    public_key: PublicKey,
    /// Made when it is first needed: most subnets that are heard of are never spoken to.
    key: OnceLock<PairKey>,
    /// Its sessions, once it is known that it can have any.
    pub(super) channel: OnceLock<Arc<Channel>>,
    /// It says that it speaks sessions.
    is_announced: AtomicBool,
    link: ArcSwapOption<Link>,
    /// Packets went there since the router was last told so.
    is_used: AtomicBool,
    /// Packets of this node's own hosts were among them.
    is_used_here: AtomicBool,
    /// The largest packet that a node on the way takes, and when it said so.
    limit: ArcSwapOption<(u16, Instant)>,
}

impl Destination {
    /// Where packets for it go, while there is a route.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.link.load_full()
    }

    /// The key that this node shares with it.
    pub(crate) fn key(&self, secret: &SecretKey) -> &PairKey {
        self.key.get_or_init(|| PairKey::new(&secret.shared(&self.public_key)))
    }

    /// Whether it was ever spoken to in the old form.
    pub(crate) fn is_spoken_to(&self) -> bool {
        self.key.get().is_some()
    }

    /// Whether it says that it speaks sessions.
    pub(crate) fn is_announced(&self) -> bool {
        self.is_announced.load(Ordering::Relaxed)
    }

    /// The node's public key.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Notes a use. True when the router has not been told of one since [`Self::listen`].
    pub(crate) fn used(&self) -> bool {
        !self.is_used.load(Ordering::Relaxed) && !self.is_used.swap(true, Ordering::Relaxed)
    }

    /// Notes a use by this node's own hosts.
    pub(crate) fn used_here(&self) {
        if !self.is_used_here.load(Ordering::Relaxed) {
            self.is_used_here.store(true, Ordering::Relaxed);
        }
    }

    /// Whether own hosts used it since this was asked last.
    pub(crate) fn was_used_here(&self) -> bool {
        self.is_used_here.swap(false, Ordering::Relaxed)
    }

    /// A node on the way takes no larger packets than this.
    pub(crate) fn limit(&self, mtu: u16, now: Instant) {
        self.limit.store(Some(Arc::new((mtu, now))));
    }

    /// The largest packet that nodes on the way take, as far as it is known.
    pub(crate) fn limited(&self, now: Instant) -> Option<u16> {
        let limit = self.limit.load();
        let (mtu, since) = limit.as_deref()?;
        (now.saturating_duration_since(*since) < LIMIT_KEPT).then_some(*mtu)
    }

    /// The router wants to know of the next use.
    pub(crate) fn listen(&self) {
        self.is_used.store(false, Ordering::Relaxed);
    }
}

/// All destinations.
#[derive(Debug)]
pub(crate) struct Table {
    shards: [ArcSwap<Shard>; SHARD_COUNT],
}

type Shard = HashMap<Prefix, Arc<Destination>>;

/// Maps that the table consists of.
const SHARD_COUNT: usize = 64;
/// How long it is remembered what nodes on the way take. Routes change; hosts try larger packets again after
/// ten minutes (RFC 8201 §4).
const LIMIT_KEPT: Duration = Duration::from_secs(60);
/// How long a key is kept without a route.
pub(crate) const KEY_KEPT: Duration = Duration::from_secs(600);
/// Keys that are kept without a route.
const LOST_COUNT_MAX: usize = 4096;

impl Default for Table {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| ArcSwap::default()) }
    }
}

impl Table {
    /// The destination with this prefix.
    pub(crate) fn get(&self, prefix: Prefix) -> Option<Arc<Destination>> {
        self.shard(prefix).load().get(&prefix).cloned()
    }

    /// All destinations, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Destination>> {
        self.shards.iter().flat_map(|shard| shard.load().values().cloned().collect::<Vec<_>>())
    }

    fn shard(&self, prefix: Prefix) -> &ArcSwap<Shard> {
        // The last bits are hash bits, as all after the first seven are.
        &self.shards[usize::try_from(prefix.0 % SHARD_COUNT as u64).unwrap_or(0)]
    }

    fn insert(&self, destination: Arc<Destination>) {
        let mut shard = Shard::clone(&self.shard(destination.prefix).load());
        shard.insert(destination.prefix, Arc::clone(&destination));
        self.shard(destination.prefix).store(Arc::new(shard));
    }

    fn remove(&self, prefix: Prefix) {
        let mut shard = Shard::clone(&self.shard(prefix).load());
        shard.remove(&prefix);
        self.shard(prefix).store(Arc::new(shard));
    }
}

/// The one that writes a [`Table`].
#[derive(Debug)]
pub(crate) struct TableWriter {
    table: Arc<Table>,
    /// Destinations without a route, oldest first.
    lost: std::collections::VecDeque<(Instant, Prefix)>,
}

impl TableWriter {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Self { table, lost: std::collections::VecDeque::new() }
    }

    /// Notes the route of a subnet; only /64s, which all nodes have, take part. Gives the destination
    /// when there is one. What comes from there is believed when this key has sealed it, so it must be
    /// the key that the subnet is a hash of.
    pub(crate) fn set(
        &mut self,
        subnet: Subnet,
        router_id: &RouterId,
        link: Arc<Link>,
    ) -> Option<Arc<Destination>> {
        if subnet.prefix_len() != NODE_PREFIX_LEN {
            return None;
        }
        let public_key = router_id.public_key();
        let is_announced = session::is_announced(router_id);
        let prefix = Prefix::of(subnet.network());
        if let Some(known) = self.table.get(prefix)
            && known.public_key == public_key
        {
            known.is_announced.store(is_announced, Ordering::Relaxed);
            known.link.store(Some(link));
            return Some(known);
        }
        if public_key.subnet() != subnet {
            return None;
        }
        let destination = Arc::new(Destination {
            prefix,
            public_key,
            key: OnceLock::new(),
            channel: OnceLock::new(),
            is_announced: AtomicBool::new(is_announced),
            link: ArcSwapOption::new(Some(link)),
            is_used: AtomicBool::new(false),
            is_used_here: AtomicBool::new(false),
            limit: ArcSwapOption::empty(),
        });
        self.table.insert(Arc::clone(&destination));
        Some(destination)
    }

    /// Notes that a subnet has no route any more.
    pub(crate) fn lose(&mut self, subnet: Subnet, now: Instant) {
        let prefix = Prefix::of(subnet.network());
        let Some(known) = self.table.get(prefix) else { return };
        if subnet.prefix_len() == NODE_PREFIX_LEN && known.link.swap(None).is_some() {
            self.lost.push_back((now, prefix));
            self.forget(now);
        }
    }

    /// Forgets keys that were of no use for long.
    pub(crate) fn forget(&mut self, now: Instant) {
        while let Some((since, prefix)) = self.lost.front().copied() {
            let is_old = now.saturating_duration_since(since) >= KEY_KEPT;
            if !is_old && self.lost.len() <= LOST_COUNT_MAX {
                break;
            }
            self.lost.pop_front();
            let is_lost = |known: Arc<Destination>| known.link.load().is_none();
            // It may have a route again, or be lost anew and stand further back.
            let is_behind = self.lost.iter().any(|(_, other)| *other == prefix);
            if !is_behind && self.table.get(prefix).is_some_and(is_lost) {
                self.table.remove(prefix);
            }
        }
    }
}
