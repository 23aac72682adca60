//! A model of the nodes that exist: their timers, answers and floods, for mixed networks.
//!
//! Written from what is known of their behaviour (`reference: mycelium 1.4, 1.5`), shortcomings
//! included: costs that begin at 1000, samples from any IHU, routes that are flooded when they are
//! acquired, sequence numbers compared without a bound, nothing said to the next hop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mycelium_wire::control::{
    HELLO_UNICAST, Hello, Ihu, Metric, RouteRequest, Seqno, SeqnoRequest, Tlv, Update,
};
use mycelium_wire::identity::{OVERLAY, RouterId, Subnet};

use crate::event::LinkId;
use crate::source::Distance;
use crate::time::Time;

const HELLO: Duration = Duration::from_secs(20);
const PROPAGATE: Duration = Duration::from_secs(300);
const DEAD: Duration = Duration::from_secs(43);
const DEAD_CHECK: Duration = Duration::from_secs(10);
const ROUTE_HOLD: Duration = Duration::from_secs(1050);
const RETRACTED_HOLD: Duration = Duration::from_secs(6);
const SOURCE_HOLD: Duration = Duration::from_secs(1800);
const QUERY: Duration = Duration::from_secs(15);
const SEQNO_DEDUP: Duration = Duration::from_secs(60);
const BUMP: Duration = Duration::from_secs(4);

struct Peer {
    hello_seqno: Seqno,
    hello_at: Time,
    ihu_at: Time,
    smoothed: u32,
    static_cost: u16,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    router_id: RouterId,
    distance: Distance,
    expires: Time,
}

/// What was said of a subnet, to see what changed.
type Announced = Option<(RouterId, Metric)>;

pub(super) struct Upstream {
    router_id: RouterId,
    subnet: Subnet,
    seqno: Seqno,
    bumped_at: Option<Time>,
    now: Time,
    peers: BTreeMap<LinkId, Peer>,
    entries: BTreeMap<Subnet, BTreeMap<LinkId, Entry>>,
    selected: BTreeMap<Subnet, LinkId>,
    sources: BTreeMap<(Subnet, RouterId), (Distance, Time)>,
    queries: BTreeMap<Subnet, Time>,
    seqnos: BTreeMap<(RouterId, Subnet, u16), (Time, BTreeSet<LinkId>)>,
    hello_at: Time,
    propagate_at: Time,
    check_at: Time,
    pub(super) sent: Vec<(LinkId, Tlv)>,
    pub(super) dead: Vec<LinkId>,
}

impl Upstream {
    pub(super) fn new(router_id: RouterId, phase: Duration, now: Time) -> Self {
        Self {
            router_id,
            subnet: router_id.public_key().subnet(),
            seqno: Seqno(0),
            bumped_at: None,
            now,
            peers: BTreeMap::new(),
            entries: BTreeMap::new(),
            selected: BTreeMap::new(),
            sources: BTreeMap::new(),
            queries: BTreeMap::new(),
            seqnos: BTreeMap::new(),
            hello_at: now + phase,
            propagate_at: now + PROPAGATE,
            check_at: now + DEAD_CHECK,
            sent: Vec::new(),
            dead: Vec::new(),
        }
    }

    pub(super) fn link_up(&mut self, link: LinkId, static_cost: u16, now: Time) {
        self.now = now;
        let (hello_seqno, hello_at) = (Seqno(0), now);
        let peer = Peer { hello_seqno, hello_at, ihu_at: now, smoothed: 1000, static_cost };
        self.peers.insert(link, peer);
        self.send_own(link);
        for subnet in self.queries.keys().copied().collect::<Vec<_>>() {
            self.request(link, subnet, 0);
        }
    }

    pub(super) fn link_down(&mut self, link: LinkId, now: Time) {
        self.now = now;
        if self.peers.remove(&link).is_none() {
            return;
        }
        for subnet in self.entries.keys().copied().collect::<Vec<_>>() {
            self.change(subnet, |entries| {
                entries.remove(&link);
            });
        }
    }

    pub(super) fn received(&mut self, link: LinkId, tlv: &Tlv, now: Time) {
        self.now = now;
        if !self.peers.contains_key(&link) {
            return;
        }
        match tlv {
            Tlv::Hello(_) => {
                let rxcost = self.cost(link).0;
                self.sent.push((link, Tlv::Ihu(Ihu { rxcost, interval: 6000, address: None })));
            }
            Tlv::Ihu(_) => self.on_ihu(link),
            Tlv::Update(update) => self.on_update(link, update),
            Tlv::ProvedUpdate(_) => panic!("existing nodes lose their place in the stream"),
            Tlv::RouteRequest(request) => self.on_request(link, request),
            Tlv::SeqnoRequest(request) => self.on_seqno_request(link, request),
        }
    }

    pub(super) fn deadline(&self) -> Time {
        let queries = self.queries.values().copied();
        let entries = self.entries.values().flat_map(|of| of.values().map(|e| e.expires));
        let all = [self.hello_at, self.propagate_at, self.check_at].into_iter();
        all.chain(queries).chain(entries).min().unwrap_or(self.hello_at)
    }

    pub(super) fn tick(&mut self, now: Time) {
        self.now = now;
        if self.hello_at <= now {
            self.hello_at = now + HELLO;
            for (link, peer) in &mut self.peers {
                let hello = Hello { flags: HELLO_UNICAST, seqno: peer.hello_seqno, interval: 2000 };
                (peer.hello_seqno, peer.hello_at) = (peer.hello_seqno.next(), now);
                self.sent.push((*link, Tlv::Hello(hello)));
            }
        }
        if self.propagate_at <= now {
            self.propagate_at = now + PROPAGATE;
            self.announce_own();
        }
        if self.check_at <= now {
            self.check_at = now + DEAD_CHECK;
            let dead = self.peers.iter().filter(|(_, p)| now.since(p.ihu_at) > DEAD);
            for link in dead.map(|(link, _)| *link).collect::<Vec<_>>() {
                self.link_down(link, now);
                self.dead.push(link);
            }
        }
        self.queries.retain(|_, expires| *expires > now);
        self.seqnos.retain(|_, (at, _)| now.since(*at) < SEQNO_DEDUP);
        self.sources.retain(|_, (_, expires)| *expires > now);
        self.expire();
    }

    /// A selected route that expires is retracted and held; others are removed.
    fn expire(&mut self) {
        let now = self.now;
        for subnet in self.entries.keys().copied().collect::<Vec<_>>() {
            let of = &self.entries[&subnet];
            if of.values().all(|entry| entry.expires > now) {
                continue;
            }
            let selected = self.selected.get(&subnet).copied();
            self.change(subnet, |entries| {
                entries.retain(|link, entry| {
                    if entry.expires > now {
                        return true;
                    }
                    let is_held = Some(*link) == selected;
                    entry.distance.metric = Metric::INFINITE;
                    entry.expires = now + RETRACTED_HOLD;
                    is_held
                });
            });
        }
    }

    pub(super) fn next_hop(&self, subnet: Subnet) -> Option<LinkId> {
        self.selected.get(&subnet).copied()
    }

    /// A packet waits for a route.
    pub(super) fn want(&mut self, subnet: Subnet, now: Time) {
        self.now = now;
        if self.queries.get(&subnet).is_some_and(|expires| *expires > now) {
            return;
        }
        if self.entries.get(&subnet).is_some_and(|of| !of.is_empty()) {
            self.ask_seqno(subnet);
        }
        self.queries.insert(subnet, now + QUERY);
        for link in self.peers.keys().copied().collect::<Vec<_>>() {
            self.request(link, subnet, 0);
        }
    }

    /// All that is known about a subnet, for people.
    pub(super) fn explain(&self, subnet: Subnet) -> String {
        let sources: Vec<_> = self.sources.iter().filter(|((of, _), _)| *of == subnet).collect();
        let seqnos: Vec<_> = self.seqnos.iter().filter(|((_, of, _), _)| *of == subnet).collect();
        format!("existing, own {}, selected {:?}", self.seqno.0, self.next_hop(subnet))
            + &format!(", query {:?}, {:?}", self.queries.get(&subnet), self.entries.get(&subnet))
            + &format!(", sources {sources:?}, asked {seqnos:?}")
    }

    fn cost(&self, link: LinkId) -> Metric {
        let cost = |peer: &Peer| peer.smoothed + u32::from(peer.static_cost);
        let cost = self.peers.get(&link).map_or(u32::MAX, cost);
        Metric(u16::try_from(cost).unwrap_or(u16::MAX))
    }

    fn on_ihu(&mut self, link: LinkId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let sample = u32::try_from(now.since(peer.hello_at).as_millis()).unwrap_or(u32::MAX);
        peer.smoothed = (9 * peer.smoothed + sample.min(65_535)) / 10;
        peer.ihu_at = now;
    }

    fn is_feasible(&self, subnet: Subnet, entry: &Entry) -> bool {
        let Some((own, _)) = self.sources.get(&(subnet, entry.router_id)) else { return true };
        let Distance { seqno, metric } = entry.distance;
        seqno.is_newer_than(own.seqno) || (seqno == own.seqno && metric < own.metric)
    }

    fn on_update(&mut self, link: LinkId, update: &Update) {
        let Update { subnet, router_id, seqno, metric, .. } = *update;
        let is_infinite = metric.is_infinite();
        let owner = router_id.public_key().address();
        let is_allowed = OVERLAY.covers(&subnet) && subnet.prefix_len() >= 64;
        if !is_allowed || subnet == self.subnet || !(is_infinite || subnet.contains(owner)) {
            return;
        }
        let hold = if is_infinite { RETRACTED_HOLD } else { ROUTE_HOLD };
        let distance = Distance { seqno, metric };
        let entry = Entry { router_id, distance, expires: self.now + hold };
        let is_feasible = is_infinite || self.is_feasible(subnet, &entry);
        let known = self.entries.get(&subnet).and_then(|of| of.get(&link)).copied();
        match known {
            None if is_infinite => return,
            None if !is_feasible => {
                if self.entries.get(&subnet).is_none_or(BTreeMap::is_empty) {
                    self.ask_one(link, subnet, router_id);
                }
                return;
            }
            Some(known) if is_infinite && known.distance.metric.is_infinite() => return,
            Some(known)
                if !is_feasible
                    && self.next_hop(subnet) == Some(link)
                    && known.router_id == router_id =>
            {
                return self.ask_one(link, subnet, router_id);
            }
            _ => {}
        }
        let expires = if is_feasible { None } else { known.map(|known| known.expires) };
        let entry = Entry { expires: expires.unwrap_or(entry.expires), ..entry };
        self.change(subnet, |entries| {
            entries.insert(link, entry);
        });
    }

    fn announced(&self, subnet: Subnet) -> Announced {
        let link = self.next_hop(subnet)?;
        let entry = self.entries.get(&subnet)?.get(&link)?;
        Some((entry.router_id, entry.distance.metric + self.cost(link)))
    }

    /// Changes entries, selects, and tells everybody if that is news.
    fn change(&mut self, subnet: Subnet, change: impl FnOnce(&mut BTreeMap<LinkId, Entry>)) {
        let before = self.announced(subnet);
        change(self.entries.entry(subnet).or_default());
        match self.select(subnet) {
            Some(link) => {
                self.selected.insert(subnet, link);
            }
            None => {
                self.selected.remove(&subnet);
            }
        }
        if self.entries.get(&subnet).is_some_and(BTreeMap::is_empty) {
            self.entries.remove(&subnet);
        }
        let after = self.announced(subnet);
        let is_news = match (before, after) {
            (None, None) => false,
            (Some((id, metric)), Some((next_id, next))) => {
                id != next_id || metric.0.abs_diff(next.0) > 10
            }
            _ => true,
        };
        if after.is_some() {
            self.queries.remove(&subnet);
        }
        let waiting = self.satisfied(subnet);
        let next_hop = self.next_hop(subnet);
        for link in self.peers.keys().copied().collect::<Vec<_>>() {
            if Some(link) != next_hop && (is_news || waiting.contains(&link)) {
                self.tell(link, subnet);
            }
        }
        if before.is_some() && after.is_none() {
            self.ask_seqno(subnet);
        }
    }

    fn select(&self, subnet: Subnet) -> Option<LinkId> {
        let of = self.entries.get(&subnet)?;
        let usable = of.iter().filter(|(_, entry)| {
            !entry.distance.metric.is_infinite() && self.is_feasible(subnet, entry)
        });
        let total = |link: &LinkId, entry: &Entry| entry.distance.metric + self.cost(*link);
        let usable: Vec<_> = usable.map(|(l, e)| (total(l, e), *l, e.distance.metric)).collect();
        let best = *usable.iter().min_by_key(|(total, link, _)| (*total, *link))?;
        let present = self.next_hop(subnet);
        let Some(present) = usable.iter().find(|(_, link, _)| Some(*link) == present) else {
            return Some(best.1);
        };
        let is_better = best.2 == Metric::ZERO || present.0.0 - best.0.0 > 10;
        Some(if is_better { best.1 } else { present.1 })
    }

    /// Tells a peer what is selected, or that nothing is.
    fn tell(&mut self, link: LinkId, subnet: Subnet) {
        let Some((router_id, metric)) = self.announced(subnet) else {
            return self.send(link, subnet, self.router_id, self.seqno, Metric::INFINITE);
        };
        let entry = self.next_hop(subnet).and_then(|l| self.entries.get(&subnet)?.get(&l));
        let Some(seqno) = entry.map(|entry| entry.distance.seqno) else { return };
        let expires = self.now + SOURCE_HOLD;
        let distance = Distance { seqno, metric };
        let source = self.sources.entry((subnet, router_id)).or_insert((distance, expires));
        let own = source.0;
        if seqno.is_newer_than(own.seqno) || (seqno == own.seqno && metric < own.metric) {
            source.0 = distance;
        }
        source.1 = expires;
        self.send(link, subnet, router_id, seqno, metric);
    }

    fn send(&mut self, link: LinkId, subnet: Subnet, id: RouterId, seqno: Seqno, metric: Metric) {
        let router_id = id;
        let update = Update { flags: 0, interval: 30_000, seqno, metric, subnet, router_id };
        self.sent.push((link, Tlv::Update(update)));
    }

    fn send_own(&mut self, link: LinkId) {
        self.send(link, self.subnet, self.router_id, self.seqno, Metric::ZERO);
    }

    fn announce_own(&mut self) {
        for link in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_own(link);
        }
    }

    fn request(&mut self, link: LinkId, subnet: Subnet, generation: u8) {
        let request = RouteRequest { generation, subnet: Some(subnet) };
        self.sent.push((link, Tlv::RouteRequest(request)));
    }

    fn on_request(&mut self, link: LinkId, request: &RouteRequest) {
        let Some(subnet) = request.subnet else {
            self.send_own(link);
            let selected = self.selected.iter().filter(|(_, next_hop)| **next_hop != link);
            for subnet in selected.map(|(subnet, _)| *subnet).collect::<Vec<_>>() {
                self.tell(link, subnet);
            }
            return;
        };
        if subnet == self.subnet {
            return self.send_own(link);
        }
        if let Some(next_hop) = self.next_hop(subnet) {
            if next_hop != link {
                self.tell(link, subnet);
            }
            return;
        }
        let is_known = self.entries.contains_key(&subnet) || self.queries.contains_key(&subnet);
        if is_known || request.generation + 1 >= 16 {
            return;
        }
        self.queries.insert(subnet, self.now + QUERY);
        for other in self.peers.keys().copied().filter(|l| *l != link).collect::<Vec<_>>() {
            self.request(other, subnet, request.generation + 1);
        }
    }

    /// After a loss: all who announced it, or everybody, are asked for a newer number.
    fn ask_seqno(&mut self, subnet: Subnet) {
        let of = self.entries.get(&subnet).cloned().unwrap_or_default();
        let ids: BTreeSet<RouterId> = of.values().map(|entry| entry.router_id).collect();
        let known = self.sources.keys().filter(|(s, _)| *s == subnet).map(|(_, id)| *id);
        let all: Vec<LinkId> = self.peers.keys().copied().collect();
        let links = if of.is_empty() { all } else { of.keys().copied().collect() };
        for router_id in ids.into_iter().chain(known).take(1).collect::<Vec<_>>() {
            links.iter().for_each(|link| self.ask_one(*link, subnet, router_id));
        }
    }

    fn ask_one(&mut self, link: LinkId, subnet: Subnet, router_id: RouterId) {
        let Some((own, _)) = self.sources.get(&(subnet, router_id)) else { return };
        let request = SeqnoRequest { seqno: own.seqno.next(), hop_count: 64, subnet, router_id };
        self.sent.push((link, Tlv::SeqnoRequest(request)));
    }

    fn on_seqno_request(&mut self, link: LinkId, request: &SeqnoRequest) {
        let SeqnoRequest { seqno, hop_count, subnet, router_id } = *request;
        let key = (router_id, subnet, seqno.0);
        if hop_count == 0 || self.seqnos.contains_key(&key) {
            return;
        }
        self.seqnos.insert(key, (self.now, [link].into()));
        if subnet == self.subnet {
            if router_id != self.router_id || !seqno.is_newer_than(self.seqno) {
                return self.send_own(link);
            }
            if self.bumped_at.is_none_or(|at| self.now.since(at) >= BUMP) {
                self.bumped_at = Some(self.now);
                self.seqno = self.seqno.next();
                self.announce_own();
            }
            return;
        }
        let selected = self.next_hop(subnet).and_then(|l| self.entries.get(&subnet)?.get(&l));
        let helps = |e: &Entry| e.router_id != router_id || !seqno.is_newer_than(e.distance.seqno);
        if selected.is_some_and(helps) {
            return self.tell(link, subnet);
        }
        if hop_count < 2 || router_id == self.router_id {
            return;
        }
        let of = self.entries.get(&subnet).cloned().unwrap_or_default();
        let rank = |(l, e): (&LinkId, &Entry)| (!self.is_feasible(subnet, e), *l);
        let mut others: Vec<_> = of.iter().map(rank).filter(|(_, l)| *l != link).collect();
        others.sort_unstable();
        if let Some((_, next)) = others.first() {
            let request = SeqnoRequest { hop_count: hop_count - 1, ..*request };
            self.sent.push((*next, Tlv::SeqnoRequest(request)));
        }
    }

    /// Peers whose wish for a sequence number the selected route fulfils.
    fn satisfied(&mut self, subnet: Subnet) -> BTreeSet<LinkId> {
        let selected = self.next_hop(subnet).and_then(|l| self.entries.get(&subnet)?.get(&l));
        let Some(Entry { router_id, distance, .. }) = selected.copied() else {
            return BTreeSet::new();
        };
        let mut waiting = BTreeSet::new();
        for ((id, _, seqno), (_, askers)) in
            self.seqnos.iter_mut().filter(|((_, s, _), _)| *s == subnet)
        {
            if *id != router_id || !Seqno(*seqno).is_newer_than(distance.seqno) {
                waiting.append(askers);
            }
        }
        waiting
    }
}
