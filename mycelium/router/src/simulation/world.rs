//! A network on a simulated clock: nodes, wires that misbehave, and a queue of what happens next.
//!
//! Everything is decided by one seed. After each call of a node its choices are held against the
//! [`Oracle`], and each changed next hop is followed to see whether it leads back.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use mycelium_wire::control::Tlv;
use mycelium_wire::identity::{PublicKey, RouterId, Subnet};

use super::chance::Chance;
use super::forger::Forger;
use super::notary::Notary;
use super::oracle::Oracle;
use super::upstream::Upstream;
use crate::event::{Event, LinkId, LinkInfo};
use crate::router::{Config, Router};
use crate::time::Time;

/// Bytes that TCP and IPv6 add to a message, and that its acknowledgement costs the other side.
const HEADER_SIZE: u64 = 72;
/// After a connection broke, or could not be made.
const REDIAL: Duration = Duration::from_millis(500);
/// Between two turns of a forger.
const FORGER_TURN: Duration = Duration::from_millis(200);

pub(super) enum Kind {
    Ours(Box<Router>),
    Upstream(Box<Upstream>),
    Forger(Box<Forger>),
    Off,
}

/// Which software a node runs.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Make {
    Ours,
    /// Ours of a kind that knows no proofs.
    Plain,
    Upstream,
    Forger,
}

pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) make: Make,
    pub(super) subnet: Subnet,
    key: PublicKey,
    router_id: RouterId,
    /// Its clock is ahead of the world's by this.
    ahead: Duration,
    /// The earliest tick that is in the queue for it.
    tick_at: Option<Time>,
    pub(super) bytes_sent: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum State {
    Up,
    /// All is lost, and nobody is told.
    Silent,
    /// Both ends know.
    Down,
}

pub(super) struct Wire {
    pub(super) ends: [usize; 2],
    pub(super) link: Option<LinkId>,
    pub(super) state: State,
    pub(super) delay: Duration,
    last_arrival: [Time; 2],
    /// What a stream keeps while its wire is silent.
    held: Vec<(LinkId, usize, Tlv)>,
}

/// How messages fare.
#[derive(Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) loss_per_thousand: u64,
    pub(super) duplicates_per_thousand: u64,
    pub(super) reorders: bool,
    /// Connections are streams: what a silent wire swallows arrives when it is up again, in order, if the
    /// connection lives until then. Existing nodes rely on that; they say most things once.
    pub(super) is_stream: bool,
}

/// Something to come. Of two at the same moment, the one that was planned first comes first.
struct Plan {
    moment: Time,
    serial: u64,
    action: Action,
}

enum Action {
    Deliver { link: LinkId, to: usize, tlv: Tlv },
    Closed { link: LinkId, node: usize },
    Tick(usize),
    Dial(usize),
    Forge(usize),
}

impl Ord for Plan {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.moment, self.serial).cmp(&(other.moment, other.serial))
    }
}

impl PartialOrd for Plan {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for Plan {}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) nodes: Vec<Node>,
    pub(super) wires: Vec<Wire>,
    pub(super) weather: Weather,
    pub(super) chance: Chance,
    pub(super) delivered_count: u64,
    /// Times that a node turned to another next hop, each of which was followed; and the longest way.
    pub(super) turn_count: u64,
    pub(super) hops_max: usize,
    /// The wire of each connection: its number is its place.
    by_link: Vec<usize>,
    lives: u32,
    queue: BinaryHeap<Reverse<Plan>>,
    serial: u64,
    oracle: Oracle,
}

impl World {
    pub(super) fn new(seed: u64, makes: &[Make], edges: &[(usize, usize)]) -> Self {
        let mut world = Self {
            now: Time(Duration::from_secs(1)),
            nodes: Vec::new(),
            wires: Vec::new(),
            weather: Weather::default(),
            chance: Chance::new(seed),
            delivered_count: 0,
            turn_count: 0,
            hops_max: 0,
            by_link: Vec::new(),
            lives: 1_000_000,
            queue: BinaryHeap::new(),
            serial: 0,
            oracle: Oracle::default(),
        };
        for make in makes {
            let key = PublicKey::from_bytes(world.chance.bytes());
            let (subnet, ahead) = (key.subnet(), Duration::from_millis(world.chance.below(9000)));
            let router_id = RouterId::new(key, [0; 2], [0; 6]);
            let (kind, tick_at, bytes_sent) = (Kind::Off, None, 0);
            let make = *make;
            let node = Node { kind, make, subnet, key, router_id, ahead, tick_at, bytes_sent };
            world.nodes.push(node);
        }
        for (a, b) in edges {
            let delay = Duration::from_micros(200 + world.chance.below(20_000));
            let (link, state, last_arrival) = (None, State::Up, [Time::default(); 2]);
            let (ends, held) = ([*a, *b], Vec::new());
            world.wires.push(Wire { ends, link, state, delay, last_arrival, held });
        }
        (0..makes.len()).for_each(|node| world.start(node, true));
        for wire in 0..edges.len() {
            let delay = Duration::from_millis(world.chance.below(300));
            world.after(delay, Action::Dial(wire));
        }
        world
    }

    fn after(&mut self, delay: Duration, action: Action) {
        self.serial += 1;
        let (moment, serial) = (self.now + delay, self.serial);
        self.queue.push(Reverse(Plan { moment, serial, action }));
    }

    fn clock(&self, node: usize) -> Time {
        self.now + self.nodes[node].ahead
    }

    /// A node begins a new life; a greater one, unless its clock went back.
    pub(super) fn start(&mut self, node: usize, is_ordered: bool) {
        self.lives += 1;
        let unordered = u32::try_from(self.chance.below(1_000_000)).unwrap();
        let life = if is_ordered { self.lives } else { unordered };
        let key = self.nodes[node].key;
        let random = if self.nodes[node].make == Make::Upstream {
            self.chance.bytes()
        } else {
            crate::incarnation(life.into(), 0)
        };
        let zone = match self.nodes[node].make {
            Make::Upstream => [0, 0],
            Make::Plain => [0, 1],
            Make::Ours | Make::Forger => [0, 3],
        };
        let router_id = RouterId::new(key, zone, random);
        let (now, seed) = (self.clock(node), self.chance.next());
        let subnet = self.nodes[node].subnet;
        let kind = match self.nodes[node].make {
            Make::Ours => {
                let config = Config { router_id, subnet, seed };
                Kind::Ours(Box::new(Router::with_proofs(config, Box::new(Notary::new(key)))))
            }
            Make::Plain => Kind::Ours(Box::new(Router::new(Config { router_id, subnet, seed }))),
            Make::Upstream => {
                let phase = Duration::from_millis(seed % 20_000);
                Kind::Upstream(Box::new(Upstream::new(router_id, phase, now)))
            }
            Make::Forger => {
                self.after(FORGER_TURN, Action::Forge(node));
                Kind::Forger(Box::new(Forger::new(router_id, Chance::new(seed))))
            }
        };
        let slot = &mut self.nodes[node];
        (slot.kind, slot.router_id, slot.tick_at) = (kind, router_id, None);
        self.oracle.forget(node);
        self.drain(node, &BTreeSet::new());
    }

    /// A node dies; neighbours learn of it unless `silently`.
    pub(super) fn stop(&mut self, node: usize, silently: bool) {
        self.nodes[node].kind = Kind::Off;
        self.oracle.forget(node);
        for wire in 0..self.wires.len() {
            let ends = self.wires[wire].ends;
            if let Some(link) = self.wires[wire].link.filter(|_| ends.contains(&node)) {
                self.wires[wire].link = None;
                let other = if ends[0] == node { ends[1] } else { ends[0] };
                if !silently && self.wires[wire].state == State::Up {
                    let delay = self.wires[wire].delay;
                    self.after(delay, Action::Closed { link, node: other });
                }
                self.after(REDIAL, Action::Dial(wire));
            }
        }
    }

    /// A node's clock jumps forward.
    pub(super) fn jump(&mut self, node: usize, by: Duration) {
        self.nodes[node].ahead += by;
        self.nodes[node].tick_at = None;
        self.drain(node, &BTreeSet::new());
    }

    pub(super) fn set_state(&mut self, wire: usize, state: State) {
        self.wires[wire].state = state;
        if state == State::Down
            && let Some(link) = self.wires[wire].link.take()
        {
            for node in self.wires[wire].ends {
                self.after(Duration::ZERO, Action::Closed { link, node });
            }
            self.after(REDIAL, Action::Dial(wire));
        }
        if state == State::Up {
            for (link, to, tlv) in std::mem::take(&mut self.wires[wire].held) {
                self.after(Duration::ZERO, Action::Deliver { link, to, tlv });
            }
        }
    }

    pub(super) fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    pub(super) fn run_until(&mut self, end: Time) {
        while self.queue.peek().is_some_and(|Reverse(plan)| plan.moment <= end) {
            let Some(Reverse(plan)) = self.queue.pop() else { break };
            self.now = plan.moment;
            self.act(plan.action);
        }
        self.now = end;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Deliver { link, to, tlv } => self.deliver(link, to, &tlv),
            Action::Closed { link, node } => self.link_down(link, node),
            Action::Tick(node) => self.tick(node),
            Action::Dial(wire) => self.dial(wire),
            Action::Forge(node) => self.forge(node),
        }
    }

    fn deliver(&mut self, link: LinkId, to: usize, tlv: &Tlv) {
        let place = self.wire_of(link);
        let wire = &mut self.wires[place];
        if wire.link != Some(link) {
            return;
        }
        if wire.state != State::Up {
            if self.weather.is_stream {
                wire.held.push((link, to, tlv.clone()));
            }
            return;
        }
        self.delivered_count += 1;
        self.nodes[to].bytes_sent += HEADER_SIZE;
        let now = self.clock(to);
        let mut touched = BTreeSet::new();
        touched.extend(tlv.update().map(|update| update.subnet));
        match &mut self.nodes[to].kind {
            Kind::Ours(router) => router.received(link, tlv, now),
            Kind::Upstream(upstream) => upstream.received(link, tlv, now),
            Kind::Forger(forger) => {
                for (link, tlv) in forger.received(link, tlv) {
                    self.transmit(to, link, tlv);
                }
            }
            Kind::Off => {}
        }
        self.drain(to, &touched);
    }

    fn link_down(&mut self, link: LinkId, node: usize) {
        let now = self.clock(node);
        match &mut self.nodes[node].kind {
            Kind::Ours(router) => router.link_down(link, now),
            Kind::Upstream(upstream) => upstream.link_down(link, now),
            Kind::Forger(forger) => forger.links.retain(|known| *known != link),
            Kind::Off => {}
        }
        self.drain(node, &BTreeSet::new());
    }

    fn tick(&mut self, node: usize) {
        // One that was planned before an earlier one was, or for a former life.
        if self.nodes[node].tick_at != Some(self.now) {
            return;
        }
        let now = self.clock(node);
        self.nodes[node].tick_at = None;
        match &mut self.nodes[node].kind {
            Kind::Ours(router) => router.tick(now),
            Kind::Upstream(upstream) => upstream.tick(now),
            Kind::Forger(_) | Kind::Off => {}
        }
        self.drain(node, &BTreeSet::new());
    }

    fn dial(&mut self, wire: usize) {
        let Wire { ends, link, state, .. } = self.wires[wire];
        let is_off = ends.iter().any(|end| matches!(self.nodes[*end].kind, Kind::Off));
        if link.is_some() {
            return;
        }
        if is_off || state != State::Up {
            self.after(REDIAL, Action::Dial(wire));
            return;
        }
        let link = LinkId(self.by_link.len() as u64);
        self.wires[wire].link = Some(link);
        self.by_link.push(wire);
        for node in ends {
            let now = self.clock(node);
            match &mut self.nodes[node].kind {
                Kind::Ours(router) => router.link_up(link, LinkInfo::TCP6, now),
                Kind::Upstream(upstream) => upstream.link_up(link, 10, now),
                Kind::Forger(forger) => forger.links.push(link),
                Kind::Off => {}
            }
            self.drain(node, &BTreeSet::new());
        }
    }

    fn forge(&mut self, node: usize) {
        let ids: Vec<_> = self.nodes.iter().map(|node| node.router_id).collect();
        let Kind::Forger(forger) = &mut self.nodes[node].kind else { return };
        for (link, tlv) in forger.act(&ids) {
            self.transmit(node, link, tlv);
        }
        self.after(FORGER_TURN, Action::Forge(node));
    }

    /// Does what a node asks for, after checking what it decided. `touched`: subnets that it heard
    /// about.
    fn drain(&mut self, node: usize, touched: &BTreeSet<Subnet>) {
        let mut touched = touched.clone();
        let (mut sends, mut dead, mut renewed) = (Vec::new(), Vec::new(), None);
        match &mut self.nodes[node].kind {
            Kind::Ours(router) => {
                while let Some(event) = router.poll() {
                    match event {
                        Event::Send { link, tlv } => sends.push((link, tlv)),
                        Event::Route { subnet, .. } => {
                            touched.insert(subnet);
                        }
                        Event::Dead(link) => dead.push(link),
                        Event::Renewed(id) => renewed = Some(id),
                        Event::Unreachable(_) => {}
                    }
                }
            }
            Kind::Upstream(upstream) => {
                sends.append(&mut upstream.sent);
                dead.append(&mut upstream.dead);
            }
            Kind::Forger(_) | Kind::Off => {}
        }
        self.nodes[node].router_id = renewed.unwrap_or(self.nodes[node].router_id);
        self.judge(node, &touched, &sends);
        sends.into_iter().for_each(|(link, tlv)| self.transmit(node, link, tlv));
        dead.into_iter().for_each(|link| self.close(node, link));
        self.schedule(node);
    }

    fn judge(&mut self, node: usize, touched: &BTreeSet<Subnet>, sends: &[(LinkId, Tlv)]) {
        let now = self.now;
        let Kind::Ours(router) = &self.nodes[node].kind else { return };
        let mut turned = Vec::new();
        for subnet in touched {
            let choice = router.route(*subnet).zip(router.followed(*subnet));
            if self.oracle.follows(node, *subnet, choice, now) {
                turned.push(*subnet);
            }
        }
        for update in sends.iter().filter_map(|(_, tlv)| tlv.update()) {
            let is_proved = router.route(update.subnet).is_some_and(|route| route.is_proved);
            self.oracle.sent(node, update, is_proved, now);
        }
        for subnet in turned {
            self.turn_count += 1;
            self.hops_max = self.hops_max.max(self.check_no_loop(node, subnet));
        }
    }

    /// Follows next hops among honest nodes of ours: they must not lead back. A loop begins where a node
    /// turns to another next hop, and nowhere else: next hops to a destination form a forest, in which
    /// one edge was moved, so the way from there to its root is all there is to look at. Gives its length.
    fn check_no_loop(&self, start: usize, subnet: Subnet) -> usize {
        let mut path = vec![start];
        while let Some(next) = self.next_node(path[path.len() - 1], subnet) {
            assert!(next != start, "{subnet}: a loop at {:?}: {path:?}", self.now);
            path.push(next);
            if self.nodes[next].subnet == subnet || path.len() > self.nodes.len() {
                break;
            }
        }
        path.len() - 1
    }

    fn next_node(&self, node: usize, subnet: Subnet) -> Option<usize> {
        let Kind::Ours(router) = &self.nodes[node].kind else { return None };
        let link = router.route(subnet)?.link;
        self.across(node, link)
    }

    /// Whether packets from one node to another run in a circle of existing nodes. Two of them can each
    /// take the other for the way to a node that restarted: one follows its old life and one its new, and
    /// neither is told otherwise, since they say nothing to their next hop. It lasts until a route
    /// expires, after 1050 s, and nobody else can end it.
    pub(super) fn is_trapped(&self, from: usize, to: usize) -> bool {
        let subnet = self.nodes[to].subnet;
        let mut path = vec![from];
        loop {
            let node = path[path.len() - 1];
            let link = match &self.nodes[node].kind {
                Kind::Ours(router) => router.route(subnet).map(|route| route.link),
                Kind::Upstream(upstream) => upstream.next_hop(subnet),
                Kind::Forger(_) | Kind::Off => None,
            };
            let Some(next) = link.and_then(|link| self.across(node, link)) else { return false };
            if let Some(begin) = path.iter().position(|passed| *passed == next) {
                return path[begin..].iter().all(|node| self.nodes[*node].make == Make::Upstream);
            }
            path.push(next);
        }
    }

    /// The wire of a connection, present or past.
    fn wire_of(&self, link: LinkId) -> usize {
        self.by_link[usize::try_from(link.0).unwrap()]
    }

    /// The node at the other end, if the connection is the present one.
    fn across(&self, node: usize, link: LinkId) -> Option<usize> {
        let wire = &self.wires[self.wire_of(link)];
        let other = if wire.ends[0] == node { wire.ends[1] } else { wire.ends[0] };
        (wire.link == Some(link)).then_some(other)
    }

    pub(super) fn transmit(&mut self, from: usize, link: LinkId, tlv: Tlv) {
        let mut bytes = Vec::new();
        tlv.encode(&mut bytes);
        self.nodes[from].bytes_sent += HEADER_SIZE + bytes.len() as u64;
        let place = self.wire_of(link);
        let weather = self.weather;
        let is_lost = self.chance.happens(weather.loss_per_thousand);
        if self.wires[place].link != Some(link) || is_lost {
            return;
        }
        let copies = 1 + usize::from(self.chance.happens(weather.duplicates_per_thousand));
        for _ in 0..copies {
            let wire = &mut self.wires[place];
            let direction = usize::from(wire.ends[0] == from);
            let mut arrival = self.now + wire.delay;
            if weather.reorders {
                arrival = arrival + Duration::from_micros(self.chance.below(200_000));
            } else {
                arrival = arrival.max(wire.last_arrival[direction]);
                wire.last_arrival[direction] = arrival;
            }
            let to = wire.ends[direction];
            let action = Action::Deliver { link, to, tlv: tlv.clone() };
            let delay = arrival.since(self.now);
            self.after(delay, action);
        }
    }

    /// A node gives a connection up.
    fn close(&mut self, node: usize, link: LinkId) {
        let place = self.wire_of(link);
        let Wire { ends, state, delay, .. } = self.wires[place];
        if self.wires[place].link != Some(link) {
            return;
        }
        self.wires[place].link = None;
        let other = if ends[0] == node { ends[1] } else { ends[0] };
        if state == State::Up {
            self.after(delay, Action::Closed { link, node: other });
        }
        self.after(REDIAL, Action::Dial(place));
    }

    fn schedule(&mut self, node: usize) {
        let deadline = match &self.nodes[node].kind {
            Kind::Ours(router) => router.deadline(),
            Kind::Upstream(upstream) => Some(upstream.deadline()),
            Kind::Forger(_) | Kind::Off => None,
        };
        let Some(deadline) = deadline else { return };
        let delay = deadline.since(self.clock(node));
        let moment = self.now + delay;
        if self.nodes[node].tick_at.is_none_or(|at| at > moment) {
            self.nodes[node].tick_at = Some(moment);
            self.after(delay, Action::Tick(node));
        }
    }

    /// Sends a packet from node to node at once, as data planes would. Whether it arrived.
    pub(super) fn packet(&mut self, from: usize, to: usize) -> bool {
        let subnet = self.nodes[to].subnet;
        let mut node = from;
        for _ in 0..self.nodes.len() {
            if node == to {
                return true;
            }
            let now = self.clock(node);
            let link = match &mut self.nodes[node].kind {
                Kind::Ours(router) => match router.route(subnet) {
                    Some(route) => {
                        router.used(subnet, now);
                        Some(route.link)
                    }
                    None => {
                        router.wanted(subnet, now);
                        None
                    }
                },
                Kind::Upstream(upstream) => {
                    let next_hop = upstream.next_hop(subnet);
                    if next_hop.is_none() {
                        upstream.want(subnet, now);
                    }
                    next_hop
                }
                Kind::Forger(_) | Kind::Off => None,
            };
            self.drain(node, &BTreeSet::new());
            let Some(next) = link.and_then(|link| self.carry(node, link)) else { return false };
            node = next;
        }
        false
    }

    /// Carries a packet over a link: the node there, unless it is lost.
    fn carry(&mut self, node: usize, link: LinkId) -> Option<usize> {
        let next = self.across(node, link)?;
        let wire = &self.wires[self.wire_of(link)];
        let now = self.clock(next);
        if wire.state != State::Up {
            return None;
        }
        if let Kind::Ours(router) = &mut self.nodes[next].kind {
            router.heard(link, now);
        }
        Some(next)
    }

    /// A packet there and one back.
    pub(super) fn ping(&mut self, from: usize, to: usize) -> bool {
        self.packet(from, to) && self.packet(to, from)
    }

    pub(super) fn router(&self, node: usize) -> &Router {
        match &self.nodes[node].kind {
            Kind::Ours(router) => router,
            _ => panic!("node {node} is not ours"),
        }
    }

    /// What all nodes know about one.
    pub(super) fn explain(&self, about: usize) -> String {
        let subnet = self.nodes[about].subnet;
        let mut text = format!("about {about}, which is {:?}", self.nodes[about].router_id);
        for (node, of) in self.nodes.iter().enumerate() {
            let known = match &of.kind {
                Kind::Ours(router) => router.explain(subnet),
                Kind::Upstream(upstream) => upstream.explain(subnet),
                Kind::Forger(_) | Kind::Off => continue,
            };
            let at = self.wires.iter().filter(|wire| wire.ends.contains(&node));
            let links: Vec<_> = at.map(|wire| (wire.link, wire.ends)).collect();
            text += &format!("\nnode {node} at {:?}, {links:?}: {known}", self.clock(node));
        }
        text
    }

    /// Tables are within bounds.
    pub(super) fn check_tables(&self) {
        for node in &self.nodes {
            if let Kind::Ours(router) = &node.kind {
                router.check();
            }
        }
    }
}
