//! Updates come in, and routes are chosen (RFC 8966 3.5.3 to 3.6).

use std::time::Duration;

use mycelium_wire::control::{Metric, Update};
use mycelium_wire::identity::{RouterId, Subnet};
use mycelium_wire::xeddsa::Signature;

use super::{Router, is_nodes};
use crate::event::{Event, LinkId, Route};
use crate::limits::{
    CONFIRM_AFTER, RENEWAL_INTERVAL, ROUTE_HOLD_MAX, ROUTE_HOLD_MIN, SEQNO_HOP_COUNT,
    UNCONFIRMED_MAX, USE_HOLD,
};
use crate::source::{Distance, Origin};
use crate::table::{Admission, Offer};
use crate::timer::Timer;

impl Router {
    pub(super) fn on_update(
        &mut self,
        link: LinkId,
        update: &Update,
        signature: Option<Signature>,
    ) {
        self.counters.updates += 1;
        let now = self.now;
        let Some(neighbour) = self.links.get_mut(&link) else { return };
        if !neighbour.updates_in.take(now) {
            self.counters.paced += 1;
            return;
        }
        if !self.is_allowed(link, update) {
            self.counters.denied_updates += 1;
        } else if update.subnet == self.subnet {
            self.on_own_update(update);
        } else if update.metric.is_infinite() {
            self.retract(link, update.subnet);
        } else if let Ok(proof) = self.checked(link, update, signature) {
            self.learn(link, update, proof);
        }
    }

    /// Whether a subnet is a node's, and its router id that of the node. A retraction may have any
    /// router id: existing nodes put their own into it.
    fn is_allowed(&self, link: LinkId, update: &Update) -> bool {
        let is_known = || {
            let entry = self.destination(update.subnet)?.entry(link)?;
            Some(entry.router_id == update.router_id)
        };
        is_nodes(update.subnet)
            && (update.metric.is_infinite()
                || is_known() == Some(true)
                || update.router_id.public_key().subnet() == update.subnet)
    }

    /// Somebody announces our subnet: we know better. But if it does so in our name with a sequence
    /// number that we never gave, others may believe it, and find ours too old for half an hour.
    fn on_own_update(&mut self, update: &Update) {
        let is_ours = update.router_id == self.router_id && !update.metric.is_infinite();
        if is_ours && self.is_unused(update.seqno) {
            self.renew();
        }
    }

    /// Takes a new router id, as after a restart, for which nobody has distances.
    pub(super) fn renew(&mut self) {
        let is_early = self.renewed_at.is_some_and(|at| self.now.since(at) < RENEWAL_INTERVAL);
        let Some(next) = successor(self.router_id).filter(|_| !is_early) else { return };
        self.renewed_at = Some(self.now);
        self.router_id = next;
        self.seqno = Default::default();
        self.events.push_back(Event::Renewed(next));
        self.announce_own();
    }

    /// Prefers other ways than `link`, if that is the present one, and asks for some.
    pub(super) fn avoid(&mut self, subnet: Subnet, link: LinkId) {
        let Some(destination) = self.table.get_mut(&subnet) else { return };
        if destination.selected.is_none_or(|route| route.link != link) {
            return;
        }
        destination.avoid(link, self.now);
        self.counters.avoided_routes += 1;
        self.reselect(subnet);
        let is_stuck = |route: Route| route.link == link;
        if self.destination(subnet).and_then(|d| d.selected).is_some_and(is_stuck) {
            self.ask_routes(subnet, None, 0);
            self.ask_seqnos(subnet, None, SEQNO_HOP_COUNT);
        }
        self.schedule_destination(subnet);
    }

    fn retract(&mut self, link: LinkId, subnet: Subnet) {
        if self.table.remove(subnet, link, self.now).is_some() {
            self.reselect(subnet);
            self.tidy(subnet);
        }
    }

    fn learn(&mut self, link: LinkId, update: &Update, proof: Option<Signature>) {
        let (subnet, router_id) = (update.subnet, update.router_id);
        let origin = Origin::new(router_id, proof.is_some());
        if update.metric == Metric::ZERO
            && let Some(neighbour) = self.links.get_mut(&link)
            && neighbour.introduced(&router_id)
        {
            self.prove_all(link);
        }
        let distance = Distance { seqno: update.seqno, metric: update.metric };
        let destination = self.table.get_mut(&subnet);
        let is_feasible = destination.as_ref().is_none_or(|d| d.is_feasible(origin, distance));
        if let Some(destination) = destination
            && let Some(route) = destination.selected.filter(|route| route.link == link)
        {
            (destination.confirm_by, destination.unconfirmed) = (None, 0);
            if !is_feasible && route.router_id == router_id {
                // The route stays as it was: its neighbour still leads there (RFC 8966 3.5.3).
                return self.ask_seqno_of(link, subnet, origin);
            }
        }
        let expires = self.now + hold(update.interval);
        let is_wanted = self.queries.get(&subnet).is_some();
        let offer = Offer { link, subnet, router_id, proof, distance, expires };
        match self.table.offer(offer, is_wanted, self.now) {
            Admission::Taken => {}
            Admission::TakenFor(victim) => {
                self.counters.evicted_routes += 1;
                self.reselect(victim);
                self.tidy(victim);
            }
            Admission::Refused => {
                self.counters.refused_routes += 1;
                return;
            }
        }
        self.schedule_destination(subnet);
        self.reselect(subnet);
        let is_lost = self.destination(subnet).is_some_and(|d| d.selected.is_none());
        if !is_feasible && is_lost {
            self.ask_seqno_of(link, subnet, origin);
        }
    }

    /// Chooses the route to a subnet, and does what follows if it is another.
    pub(super) fn reselect(&mut self, subnet: Subnet) {
        let Some(destination) = self.table.get_mut(&subnet) else { return };
        let before = destination.selected;
        let after = destination.select(|link| Some(self.links.get(&link)?.cost.applied()));
        if before == after {
            return;
        }
        destination.selected = after;
        let way = |route: Option<Route>| route.map(|route| (route.link, route.router_id));
        if way(before) != way(after) {
            destination.refreshed = self.now;
            (destination.confirm_by, destination.unconfirmed) = (None, 0);
            self.counters.route_selections += 1;
            self.events.push_back(Event::Route { subnet, route: after });
        }
        self.tell_change(subnet, before);
        match after {
            Some(route) => self.found(subnet, route),
            None => self.lost(subnet),
        }
    }

    /// There is a route, or a newer one: those who asked hear of it.
    fn found(&mut self, subnet: Subnet, route: Route) {
        if let Some(query) = self.queries.close(subnet) {
            self.timers.cancel(Timer::Query(subnet));
            query.askers().for_each(|link| self.answer(link, subnet));
        }
        for link in self.seqnos.satisfied(subnet, route.router_id, route.seqno) {
            self.answer(link, subnet);
        }
    }

    /// There is no route any more. If it is needed, it is looked for at once.
    fn lost(&mut self, subnet: Subnet) {
        let Some(destination) = self.destination(subnet) else { return };
        if destination.used.is_some_and(|used| self.now.since(used) < USE_HOLD) {
            self.look_for(subnet);
        }
    }

    /// Something about a destination is due.
    pub(super) fn on_destination_timer(&mut self, subnet: Subnet) {
        let Some(destination) = self.table.get(&subnet) else { return };
        let all = destination.entries().iter();
        let expired = all.filter(|entry| entry.expires <= self.now);
        let expired: Vec<LinkId> = expired.map(|entry| entry.link).collect();
        let is_unused = destination.used.is_none_or(|used| self.now.since(used) >= ROUTE_HOLD_MAX);
        for link in expired {
            self.counters.expired_routes += 1;
            self.table.remove(subnet, link, self.now);
        }
        if is_unused && self.queries.get(&subnet).is_none() {
            self.table.release(subnet, self.now);
            if let Some(destination) = self.table.get_mut(&subnet) {
                destination.used = None;
            }
        }
        if let Some(destination) = self.table.get_mut(&subnet) {
            destination.forgive(self.now);
        }
        self.review_confirmation(subnet);
        self.review_told(subnet);
        let expired = self.table.expire_sources(subnet, self.now);
        self.counters.expired_sources += u64::try_from(expired).unwrap_or(0);
        self.reselect(subnet);
        self.tidy(subnet);
        self.schedule_destination(subnet);
    }

    /// A next hop that does not answer for its route is asked again, and then not believed.
    fn review_confirmation(&mut self, subnet: Subnet) {
        let now = self.now;
        let Some(destination) = self.table.get_mut(&subnet) else { return };
        let Some(route) = destination.selected else { return };
        if destination.confirm_by.is_none_or(|moment| moment > now) {
            return;
        }
        destination.unconfirmed += 1;
        let is_used = destination.used.is_some_and(|used| now.since(used) < USE_HOLD);
        destination.confirm_by = is_used.then(|| now + CONFIRM_AFTER);
        if destination.unconfirmed >= UNCONFIRMED_MAX {
            self.counters.expired_routes += 1;
            self.table.remove(subnet, route.link, now);
        } else if is_used {
            self.send_route_request(route.link, subnet, 0);
        }
    }

    /// Forgets a destination of which nothing is left.
    pub(super) fn tidy(&mut self, subnet: Subnet) {
        if self.table.remove_if_empty(subnet) {
            self.timers.cancel(Timer::Destination(subnet));
        }
    }
}

/// How long a route lives whose next update is promised after so many centiseconds.
fn hold(interval: u16) -> Duration {
    (Duration::from_millis(35) * u32::from(interval)).clamp(ROUTE_HOLD_MIN, ROUTE_HOLD_MAX)
}

/// The router id of the next life; none after the last one.
fn successor(router_id: RouterId) -> Option<RouterId> {
    let mut bytes = *router_id.as_bytes();
    let (_, life) = bytes.split_last_chunk_mut::<6>()?;
    for byte in life.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(RouterId::from_bytes(bytes));
        }
    }
    None
}
