//! What must hold at every instant, judged from outside by what was really sent.
//!
//! The router's own feasibility distances are not asked: the oracle keeps its own ledger of each
//! update that a node sent, and holds every choice of a route against it.

use std::collections::HashMap;
use std::time::Duration;

use mycelium_wire::control::Update;
use mycelium_wire::identity::{RouterId, Subnet};

use crate::event::Route;
use crate::limits::SOURCES_PER_SUBNET_MAX;
use crate::source::Distance;
use crate::time::Time;

/// How long a node must remember: less than the protocol's 30 minutes, since clocks jump.
const HOLD: Duration = Duration::from_secs(25 * 60);

#[derive(Default)]
pub(super) struct Oracle {
    nodes: Vec<Memory>,
}

/// What is held against one node.
#[derive(Default)]
struct Memory {
    ledger: HashMap<Subnet, Vec<Entry>>,
    followed: HashMap<Subnet, (Route, Distance)>,
}

/// The best that a node announced under a router id, and when it last did.
#[derive(Clone, Copy)]
struct Entry {
    router_id: RouterId,
    /// Whether the owner's proof of it was known.
    is_proved: bool,
    distance: Distance,
    at: Time,
}

impl Oracle {
    /// A node begins anew, and knows nothing.
    pub(super) fn forget(&mut self, node: usize) {
        *self.of(node) = Memory::default();
    }

    /// A node follows this announcement now: if that is new, it must be feasible. Whether it has turned
    /// to another next hop.
    pub(super) fn follows(
        &mut self,
        node: usize,
        subnet: Subnet,
        choice: Option<(Route, Distance)>,
        now: Time,
    ) -> bool {
        let memory = self.of(node);
        let Some((route, distance)) = choice else {
            memory.followed.remove(&subnet);
            return false;
        };
        let before = memory.followed.insert(subnet, (route, distance));
        let turns = before.is_none_or(|(old, _)| old.link != route.link);
        let same = |(old, old_distance): (Route, Distance)| {
            let of = |route: Route| (route.link, route.router_id, route.is_proved);
            of(old) == of(route) && old_distance == distance
        };
        let told = memory.ledger.get(&subnet).map_or(&[][..], Vec::as_slice);
        // What is proved need not be better than what somebody made up.
        let heeded = told.iter().filter(|entry| {
            entry.router_id == route.router_id && (entry.is_proved || !route.is_proved)
        });
        for Entry { distance: own, at, .. } in heeded.filter(|_| !before.is_some_and(same)) {
            let is_feasible = distance.seqno.is_newer_than(own.seqno)
                || (distance.seqno == own.seqno && distance.metric < own.metric);
            assert!(
                is_feasible || now.since(*at) >= HOLD,
                "node {node} follows {distance:?} to {subnet}, but announced {own:?} itself"
            );
        }
        turns
    }

    /// A node sent this, of a route whose proof it has or not.
    pub(super) fn sent(&mut self, node: usize, update: &Update, is_proved: bool, now: Time) {
        if update.metric.is_infinite() {
            return;
        }
        let router_id = update.router_id;
        let distance = Distance { seqno: update.seqno, metric: update.metric };
        let entries = self.of(node).ledger.entry(update.subnet).or_default();
        let same = |entry: &Entry| (entry.router_id, entry.is_proved) == (router_id, is_proved);
        let known = entries.iter().position(same);
        let known = known.map(|place| entries.remove(place).distance);
        let keeps = |own: &Distance| {
            own.seqno.is_newer_than(distance.seqno)
                || (distance.seqno == own.seqno && distance.metric >= own.metric)
        };
        let distance = known.filter(keeps).unwrap_or(distance);
        entries.push(Entry { router_id, is_proved, distance, at: now });
        if entries.len() > SOURCES_PER_SUBNET_MAX {
            entries.remove(0);
        }
    }

    fn of(&mut self, node: usize) -> &mut Memory {
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, Memory::default);
        }
        &mut self.nodes[node]
    }
}
