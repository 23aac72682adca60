//! The router: links, table and requests put together.
//!
//! | file | what |
//! |---|---|
//! | `mod` | what callers call, and the two ends of every call: time goes on, and what waits is sent |
//! | `links` | links come, say Hello, are measured, and go |
//! | `routes` | updates come in, and routes are chosen |
//! | `proofs` | what owners signed |
//! | `announce` | neighbours are told |
//! | `questions` | routes and sequence numbers are asked for, and such questions answered |
//!
//! Every public call first sets the time, then does its work, and at last sends what its changes
//! amount to: work marks subnets in the outboxes of links, and only [`Router::flush`] makes updates of
//! them.

mod announce;
mod links;
mod proofs;
mod questions;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mycelium_wire::claim::Claim;
use mycelium_wire::control::{Seqno, Tlv};
use mycelium_wire::identity::{NODE_PREFIX_LEN, OVERLAY, RouterId, Subnet};
use mycelium_wire::xeddsa::Signature;

use crate::event::{Counters, Event, LinkId, LinkInfo, LinkStatus, Route, RouteInfo, Wanted};
use crate::limits::{PASSED_MAX, PROOFS_IN_ALL, Pace};
use crate::link::Link;
use crate::request::{Queries, Seqnos};
use crate::table::{Destination, Table};
use crate::time::Time;
use crate::timer::{Timer, Timers};

pub use proofs::Proofs;

/// Who this node is.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The node's router id. Its last six bytes are new at each start, and should be greater than at
    /// the start before: see [`incarnation`](crate::incarnation).
    pub router_id: RouterId,
    /// The node's own /64, the only one that it announces.
    pub subnet: Subnet,
    /// Moves timers about, so that nodes don't speak all at once. Equal seeds make equal runs.
    pub seed: u64,
}

/// A node's routing. See the [crate's story](crate).
#[derive(Debug)]
pub struct Router {
    router_id: RouterId,
    subnet: Subnet,
    seed: u64,
    /// What has passed, as far as it counts.
    now: Time,
    /// The caller's time at its last call.
    called: Time,
    seqno: Seqno,
    /// When the sequence number was last increased.
    bumped_at: Option<Time>,
    /// When the router id was last renewed.
    renewed_at: Option<Time>,
    proofs: Option<Box<dyn Proofs>>,
    proofs_in: Pace,
    /// The signature of the last own announcement that was proved.
    own_proof: Option<(Claim, Signature)>,
    links: BTreeMap<LinkId, Link>,
    table: Table,
    queries: Queries,
    seqnos: Seqnos,
    timers: Timers,
    /// Links in whose outbox something is.
    unsent: BTreeSet<LinkId>,
    /// Requests to be sent when all updates are: whoever is asked the way must know by then that ours
    /// is gone, or may think that it is ours.
    questions: Vec<(LinkId, Tlv)>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Router {
    /// A router without links; its time is the start.
    pub fn new(config: Config) -> Self {
        Self {
            router_id: config.router_id,
            subnet: config.subnet,
            seed: config.seed,
            now: Time::default(),
            called: Time::default(),
            seqno: Seqno::default(),
            bumped_at: None,
            renewed_at: None,
            proofs: None,
            proofs_in: PROOFS_IN_ALL,
            own_proof: None,
            links: BTreeMap::new(),
            table: Table::default(),
            queries: Queries::default(),
            seqnos: Seqnos::default(),
            timers: Timers::default(),
            unsent: BTreeSet::new(),
            questions: Vec::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The same, and it proves what it announces, and has others' proofs checked. The router id says so
    /// ([`mycelium_wire::claim::ZONE`]), or nobody sends any.
    pub fn with_proofs(config: Config, proofs: Box<dyn Proofs>) -> Self {
        Self { proofs: Some(proofs), ..Self::new(config) }
    }

    /// A neighbour is connected. Beyond 4096 links at a time it is [`Event::Dead`] at once.
    pub fn link_up(&mut self, link: LinkId, info: LinkInfo, now: Time) {
        self.advance(now);
        self.connect(link, info);
        self.flush();
    }

    /// A connection is closed or broken.
    pub fn link_down(&mut self, link: LinkId, now: Time) {
        self.advance(now);
        self.disconnect(link);
        self.flush();
    }

    /// A neighbour sent a message.
    pub fn received(&mut self, link: LinkId, tlv: &Tlv, now: Time) {
        self.advance(now);
        let Some(neighbour) = self.links.get_mut(&link) else { return };
        neighbour.life.heard(self.now);
        match tlv {
            Tlv::Hello(_) => self.on_hello(link),
            Tlv::Ihu(_) => self.on_ihu(link),
            Tlv::Update(update) => self.on_update(link, update, None),
            Tlv::ProvedUpdate(proved) => {
                self.on_update(link, &proved.update, Some(proved.signature));
            }
            Tlv::RouteRequest(request) => self.on_route_request(link, request),
            Tlv::SeqnoRequest(request) => self.on_seqno_request(link, request),
        }
        self.flush();
    }

    /// Bytes of any kind came from a neighbour: the link lives. It needs no call for each packet; one
    /// in 100 ms is enough.
    pub fn heard(&mut self, link: LinkId, now: Time) {
        self.advance(now);
        if let Some(neighbour) = self.links.get_mut(&link) {
            neighbour.life.heard(self.now);
        }
    }

    /// The data plane has a packet for a /64, and no route.
    pub fn wanted(&mut self, subnet: Subnet, now: Time) -> Wanted {
        self.advance(now);
        let wanted = self.want(subnet);
        self.flush();
        wanted
    }

    /// The data plane sends packets along a route, of its own or in transit. A silent link is found by
    /// this, and routes in use are kept and renewed: call it for each route in use at least each
    /// 250 ms, not for each packet.
    pub fn used(&mut self, subnet: Subnet, now: Time) {
        self.advance(now);
        self.note_use(subnet);
        self.flush();
    }

    /// What the data plane sends by way of `link` to a /64 does not arrive, as its owner's silence shows,
    /// although the link lives. If that is the way in use, others are preferred for a while.
    pub fn astray(&mut self, subnet: Subnet, link: LinkId, now: Time) {
        self.advance(now);
        self.avoid(subnet, link);
        self.flush();
    }

    /// The [`deadline`](Self::deadline) has come.
    pub fn tick(&mut self, now: Time) {
        self.advance(now);
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::Link(link) => self.on_link_timer(link),
                Timer::Destination(subnet) => self.on_destination_timer(subnet),
                Timer::Query(subnet) => self.on_query_timer(subnet),
                Timer::Bump => self.bump(),
                Timer::Seqnos => self.on_seqnos_timer(),
            }
        }
        self.flush();
    }

    /// When [`tick`](Self::tick) is to be called.
    pub fn deadline(&self) -> Option<Time> {
        self.timers.next().map(|moment| self.callers(moment))
    }

    /// What the caller is to do. To be called until there is nothing, after each call of the others:
    /// events are bounded by what one call causes, not in number.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The chosen way to a /64.
    pub fn route(&self, subnet: Subnet) -> Option<Route> {
        self.table.get(&subnet)?.selected
    }

    /// All chosen routes.
    pub fn routes(&self) -> impl Iterator<Item = RouteInfo> {
        self.table.iter().filter_map(|(subnet, destination)| {
            let (route, entry) = (destination.selected?, destination.selected_entry()?);
            Some(RouteInfo { subnet: *subnet, route, expires: self.callers(entry.expires) })
        })
    }

    /// All routes that are not chosen.
    pub fn fallbacks(&self) -> impl Iterator<Item = RouteInfo> {
        self.table.iter().flat_map(|(subnet, destination)| {
            let chosen = destination.selected.map(|route| route.link);
            let others = destination.entries().iter().filter(move |e| Some(e.link) != chosen);
            others.filter_map(|entry| {
                let route = entry.route(self.links.get(&entry.link)?.cost.applied());
                Some(RouteInfo { subnet: *subnet, route, expires: self.callers(entry.expires) })
            })
        })
    }

    /// Subnets that are looked for, and until when.
    pub fn queried(&self) -> impl Iterator<Item = (Subnet, Time)> {
        self.queries.iter().map(|(subnet, query)| (*subnet, self.callers(query.expires())))
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = LinkStatus> {
        self.links.iter().map(|(id, link)| LinkStatus {
            id: *id,
            cost: link.cost.applied(),
            round_trip: link.cost.round_trip(),
            lost_hellos: link.cost.lost_count(),
            route_count: self.table.route_count_of(*id),
        })
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The router id under which the own subnet is announced.
    pub fn router_id(&self) -> RouterId {
        self.router_id
    }

    /// The sequence number with which the own subnet is announced.
    pub fn seqno(&self) -> Seqno {
        self.seqno
    }

    /// Time goes on: never back, and not by a leap.
    fn advance(&mut self, now: Time) {
        self.now = self.now + now.since(self.called).min(PASSED_MAX);
        self.called = self.called.max(now);
    }

    /// A moment to come, by the caller's clock.
    fn callers(&self, moment: Time) -> Time {
        self.called + moment.since(self.now)
    }

    fn send(&mut self, link: LinkId, tlv: Tlv) {
        self.events.push_back(Event::Send { link, tlv });
    }

    /// The announcement that is followed, whose order keeps packets from running in circles.
    #[cfg(test)]
    pub(crate) fn followed(&self, subnet: Subnet) -> Option<crate::source::Distance> {
        Some(self.table.get(&subnet)?.selected_entry()?.distance)
    }

    /// All that is known about a subnet, for people.
    #[cfg(test)]
    pub(crate) fn explain(&self, subnet: Subnet) -> String {
        format!("own {}, query {:?}", self.seqno.0, self.queries.get(&subnet))
            + &format!(", {:?}", self.table.get(&subnet))
    }

    /// Counts are within bounds, and right.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.table.check();
    }

    fn destination(&self, subnet: Subnet) -> Option<&Destination> {
        self.table.get(&subnet)
    }
}

/// Whether a subnet may be a node's: a /64 of the overlay. Longer prefixes are nobody's, and would
/// take traffic away from those that are.
fn is_nodes(subnet: Subnet) -> bool {
    subnet.prefix_len() == NODE_PREFIX_LEN && OVERLAY.covers(&subnet)
}
