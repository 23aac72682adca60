//! Neighbours are told.
//!
//! # Who hears what
//!
//! The own subnet goes to every neighbour when its link comes up, each 300 s, and with each new
//! sequence number. Any other route goes to neighbours that asked for it, and afterwards to those as
//! long as they may hold it: when its owner's router id or its metric changes, and when it is lost.
//! Existing nodes among them also hear of newer sequence numbers. They pass a request for one on to the
//! first neighbour that has a route, always the same, and answer with the route that they use, which may
//! be another's: what we have and don't say, they would never get.
//! Existing nodes also pass on each route that they acquire, to everybody, so that all know all.
//! None of them needs that from us. A node without a route asks its neighbours before it sends, and
//! answers come hop by hop over those who asked; one that floods its routes to us has its flood end
//! here. What it would miss is a better way that appears later: our nodes ask again for routes in use
//! each 120 s, existing nodes when a route is about to expire.
//!
//! # What is said to the next hop
//!
//! Never a route that leads through it (split horizon); nor is an owner told the way to itself. If it was told another before, it hears that
//! this one is gone, so that it does not keep a fallback that is none.

use mycelium_wire::control::{Metric, ProvedUpdate, Seqno, Tlv, Update};
use mycelium_wire::identity::{RouterId, Subnet};
use mycelium_wire::xeddsa::Signature;

use super::Router;
use super::links::centiseconds;
use crate::event::{LinkId, Route};
use crate::limits::{ROUTES_PER_LINK_MAX, TIMER_PAUSE_MIN, UPDATE_INTERVAL};
use crate::link::Link;
use crate::source::Distance;
use crate::table::{Told, is_news};
use crate::timer::Timer;

impl Router {
    /// Marks those neighbours that a change of the chosen route is news for.
    pub(super) fn tell_change(&mut self, subnet: Subnet, before: Option<Route>) {
        let Some(destination) = self.table.get(&subnet) else { return };
        let after = destination.selected;
        let id = |route: Option<Route>| route.map(|route| route.router_id);
        let seqno = |route: Option<Route>| route.map(|route| route.seqno);
        let proved = |route: Option<Route>| route.map(|route| route.is_proved);
        let is_other_life = id(before) != id(after);
        for (link, told) in destination.told() {
            let metric = match after {
                Some(route) if route.link != *link => route.metric,
                _ => Metric::INFINITE,
            };
            let is_end = metric.is_infinite() && !told.is_retraction();
            let Some(neighbour) = self.links.get_mut(link) else { continue };
            let is_newer = seqno(before) != seqno(after) && neighbour.is_existing();
            let is_better_known = proved(before) != proved(after) && neighbour.takes_proofs();
            let is_change = is_news(told.metric, metric) || is_other_life || is_newer;
            let is_change = is_change || is_better_known;
            if is_end {
                neighbour.outbox.add_urgent(subnet);
            } else if is_change && !metric.is_infinite() {
                neighbour.outbox.add(subnet);
            } else {
                continue;
            }
            self.unsent.insert(*link);
        }
    }

    /// Marks a neighbour that waits to hear of a route.
    pub(super) fn answer(&mut self, link: LinkId, subnet: Subnet) {
        if let Some(neighbour) = self.links.get_mut(&link) {
            neighbour.outbox.add_urgent(subnet);
            self.unsent.insert(link);
        }
    }

    /// Marks all that a neighbour may be told, as much as it may be told at all.
    pub(super) fn dump(&mut self, link: LinkId) {
        let Some(neighbour) = self.links.get_mut(&link) else { return };
        let known = self.table.iter();
        let others = known.filter(|(_, d)| d.selected.is_some_and(|route| route.link != link));
        for (subnet, _) in others.take(ROUTES_PER_LINK_MAX) {
            neighbour.outbox.add(*subnet);
        }
        neighbour.outbox.add_urgent(self.subnet);
        self.unsent.insert(link);
    }

    /// Marks the own subnet for everybody.
    pub(super) fn announce_own(&mut self) {
        for (id, link) in &mut self.links {
            link.outbox.add_urgent(self.subnet);
            self.unsent.insert(*id);
        }
    }

    /// Sends what is marked, as far as paces allow, the rest when they do; then asks.
    pub(super) fn flush(&mut self) {
        while let Some(link) = self.unsent.pop_first() {
            while let Some(subnet) = self.take_unsent(link) {
                self.tell(link, subnet);
            }
            self.schedule_link(link);
        }
        for (link, tlv) in std::mem::take(&mut self.questions) {
            self.send(link, tlv);
        }
    }

    fn take_unsent(&mut self, link: LinkId) -> Option<Subnet> {
        self.links.get_mut(&link)?.outbox.take(self.now)
    }

    /// Tells a neighbour what is true of a subnet now.
    fn tell(&mut self, link: LinkId, subnet: Subnet) {
        if subnet == self.subnet {
            return self.send_own(link);
        }
        let Some(destination) = self.table.get(&subnet) else { return };
        let told = destination.told().get(&link).copied();
        let announced = destination.entry(link).map(|entry| entry.distance.metric);
        let is_owner = announced == Some(Metric::ZERO);
        match (destination.selected, told) {
            (Some(route), _) if route.link != link && !is_owner => {
                self.send_route(link, subnet, route);
            }
            (_, Some(told)) => self.send_retraction(link, subnet, told),
            (_, None) => {}
        }
    }

    pub(super) fn send_own(&mut self, link: LinkId) {
        let proof = self.takes_proofs(link).then(|| self.own_proof()).flatten();
        let update = update(self.subnet, self.router_id, self.seqno, Metric::ZERO);
        self.send_update(link, update, proof);
    }

    fn takes_proofs(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(Link::takes_proofs)
    }

    fn send_route(&mut self, link: LinkId, subnet: Subnet, route: Route) {
        let link_count = self.links.len();
        let Some(neighbour) = self.links.get_mut(&link) else { return };
        let is_told = neighbour.told.contains(&subnet);
        if !is_told && !self.table.may_tell(neighbour.told.len(), link_count) {
            return;
        }
        let distance = Distance { seqno: route.seqno, metric: route.metric };
        if !self.table.announce(subnet, route.origin(), distance, self.now) {
            return;
        }
        neighbour.told.insert(subnet);
        self.table.set_told(subnet, link, Told::new(route.metric, self.now));
        self.schedule_destination(subnet);
        let entry = self.table.get(&subnet).and_then(|destination| destination.selected_entry());
        let proof = entry
            .and_then(|entry| entry.proof)
            .filter(|_| route.is_proved && self.takes_proofs(link));
        let update = update(subnet, route.router_id, route.seqno, route.metric);
        self.send_update(link, update, proof);
    }

    fn send_retraction(&mut self, link: LinkId, subnet: Subnet, told: Told) {
        let told = if told.is_retraction() {
            Told { repeat_count: told.repeat_count + 1, ..told }
        } else {
            Told::new(Metric::INFINITE, self.now)
        };
        self.table.set_told(subnet, link, told);
        self.schedule_destination(subnet);
        self.send_update(link, update(subnet, self.router_id, self.seqno, Metric::INFINITE), None);
    }

    fn send_update(&mut self, link: LinkId, update: Update, proof: Option<Signature>) {
        self.counters.updates_sent += 1;
        let tlv = match proof {
            Some(signature) => Tlv::ProvedUpdate(ProvedUpdate { update, signature }),
            None => Tlv::Update(update),
        };
        self.send(link, tlv);
    }

    /// What neighbours hold from us: repeats of retractions, and what is over.
    pub(super) fn review_told(&mut self, subnet: Subnet) {
        let Some(destination) = self.table.get(&subnet) else { return };
        let all = destination.told().iter();
        let repeats = all.clone().filter(|(_, told)| told.is_repeat_due(self.now));
        let repeats: Vec<LinkId> = repeats.map(|(link, _)| *link).collect();
        let over = all.filter(|(_, told)| told.is_over(self.now));
        let over: Vec<LinkId> = over.map(|(link, _)| *link).collect();
        for link in repeats {
            self.answer(link, subnet);
        }
        for link in over {
            self.table.remove_told(subnet, link);
            if let Some(neighbour) = self.links.get_mut(&link) {
                neighbour.told.remove(&subnet);
            }
        }
    }

    pub(super) fn schedule_destination(&mut self, subnet: Subnet) {
        if let Some(deadline) = self.table.get(&subnet).and_then(|d| d.deadline()) {
            let deadline = deadline.max(self.now + TIMER_PAUSE_MIN);
            self.timers.advance(Timer::Destination(subnet), deadline);
        }
    }
}

fn update(subnet: Subnet, router_id: RouterId, seqno: Seqno, metric: Metric) -> Update {
    Update { flags: 0, interval: centiseconds(UPDATE_INTERVAL), seqno, metric, subnet, router_id }
}
