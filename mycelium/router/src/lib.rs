//! Which neighbour leads where, without a socket or a clock.
//!
//! A [`Router`] is a node's part in the routing protocol. Its caller, `mycelium/node`, owns sockets,
//! clocks and packets; it hands in what happened and when, and does what comes out:
//!
//! ```text
//!   link up, link down ──┐                         ┌──> Send { link, tlv }
//!   bytes came, a TLV ───┤                         ├──> Route { subnet, route }
//!   a route is wanted ───┼──> Router ── poll() ────┼──> Unreachable(subnet)
//!   a route is used ─────┤      │                  └──> Dead(link)
//!   tick ────────────────┘      └── deadline(): when to tick
//! ```
//!
//! ```
//! use std::time::Duration;
//! use mycelium_router::{Config, Event, LinkId, LinkInfo, Router, Time, Wanted, incarnation};
//! use mycelium_wire::identity::{RouterId, SecretKey};
//!
//! // Two nodes, and a wire between them.
//! let node = |seed: u8| {
//!     let key = SecretKey::from_bytes([seed; 32]).public();
//!     let router_id = RouterId::new(key, [0; 2], incarnation(1_800_000_000, 7));
//!     Router::new(Config { router_id, subnet: key.subnet(), seed: seed.into() })
//! };
//! let (mut a, mut b) = (node(1), node(2));
//! let link = LinkId(1);
//! let mut now = Time(Duration::from_secs(1));
//! a.link_up(link, LinkInfo::TCP6, now);
//! b.link_up(link, LinkInfo::TCP6, now);
//! for _ in 0..10 {
//!     now = now + Duration::from_millis(1);
//!     while let Some(event) = a.poll() {
//!         if let Event::Send { tlv, .. } = event { b.received(link, &tlv, now) }
//!     }
//!     while let Some(event) = b.poll() {
//!         if let Event::Send { tlv, .. } = event { a.received(link, &tlv, now) }
//!     }
//! }
//! let there = b.router_id().public_key().subnet();
//! let Wanted::Known(route) = a.wanted(there, now) else { panic!("no route") };
//! assert_eq!((route.link, route.metric.0), (link, 11), "10 for TCP, 1 ms there and back");
//! ```
//!
//! # The protocol
//!
//! Babel (RFC 8966) with one TLV a packet, router ids of 40 bytes, and routes on demand. A node
//! announces one thing, its own /64, to its neighbours. Who needs a route to another asks; the
//! question is passed from node to node until one knows the way, and the answer comes back along the
//! nodes that passed it on. Feasibility (`source`) makes sure that packets never run in circles.
//! Everything on the wire is as the nodes that exist have it, and works with any number of them
//! among ours; `reference: mycelium 1.4, 1.5` says what they do.
//!
//! What we do better needs nothing of the neighbour:
//!
//! | | existing nodes | here |
//! |---|---|---|
//! | cost of a new link | 1000, right after 15 minutes | right after one round trip (`link`) |
//! | loss of packets | not seen | costs |
//! | a link that loses everything, silently | 47 to 53 s | 2.2 s under traffic, else at most 28 s |
//! | IHUs that nobody asked for | pull the cost to 0 | ignored |
//! | acquired routes | told to everybody | told to those who ask (`router`) |
//! | a restart | may make loops until routes expire | can't, among our nodes |
//! | tables, questions, answers | without bounds | bounded for each neighbour (`table`, `limits`) |
//! | forged sequence numbers | a subnet is gone for 30 minutes | its owner takes a new router id |
//!
//! Nodes of this kind also pass on their owners' signatures ([`Proofs`]), over links between them alone: a
//! proved route is preferred to any other, so whoever makes up sequence numbers attracts nothing where
//! owners' own announcements arrive.
//!
//! # What is not here
//!
//! Proof of how far an owner is: a neighbour that was told of a route can say that it is nearer, and attract
//! traffic, which it can't read but can drop. Choice of neighbours, connections, packets, keys
//! and the API are `mycelium/node`'s.
//!
//! # Cost
//!
//! Every event costs O(log n) in the size of the table, times the neighbours that are told of it; a
//! link that goes, or whose cost changes by more than 10, costs that for each of its routes. An idle
//! link costs one Hello and one IHU in 20 s each way, and one update in 300 s.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

mod event;
mod limits;
mod link;
mod request;
mod router;
#[cfg(test)]
mod simulation;
mod source;
mod table;
mod time;
mod timer;

pub use event::{Counters, Event, LinkId, LinkInfo, LinkStatus, Route, RouteInfo, Wanted};
pub use router::{Config, Proofs, Router};
pub use time::Time;

/// The last six bytes of a router id for a start at this time: greater than those of all starts
/// before, which lets routes move to the new life at once. Nobody else looks at these bytes.
///
/// ```
/// use mycelium_router::incarnation;
/// assert!(incarnation(1_800_000_001, 0) > incarnation(1_800_000_000, 0xffff));
/// ```
pub fn incarnation(unix_seconds: u64, random: u16) -> [u8; 6] {
    // Seconds since 1970 fit into 32 bits until 2106, and begin anew then.
    let [.., a, b, c, d] = unix_seconds.to_be_bytes();
    let [e, f] = random.to_be_bytes();
    [a, b, c, d, e, f]
}
