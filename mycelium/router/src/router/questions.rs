//! Routes and sequence numbers are asked for, and such questions answered (RFC 8966 3.8).

use mycelium_wire::control::{RouteRequest, Seqno, SeqnoRequest, Tlv};
use mycelium_wire::identity::{RouterId, Subnet};

use super::{Router, is_nodes};
use crate::event::{Event, LinkId, Wanted};
use crate::limits::{
    ALMOST_EXPIRED, CONFIRM_AFTER, DUMP_INTERVAL, GENERATION_MAX, GENERATIONS_PER_HOP,
    REFRESH_INTERVAL, SEQNO_ASK_INTERVAL, SEQNO_BUMP_INTERVAL, SEQNO_HOLD, SEQNO_HOP_COUNT,
};
use crate::request::{Asker, Opened, Wish};
use crate::source::{Origin, satisfies};
use crate::timer::Timer;

impl Router {
    pub(super) fn want(&mut self, subnet: Subnet) -> Wanted {
        if !is_nodes(subnet) || subnet == self.subnet {
            return Wanted::Refused;
        }
        if let Some(route) = self.route(subnet) {
            return Wanted::Known(route);
        }
        self.look_for(subnet)
    }

    /// Asks all neighbours for a route, and those whose routes are infeasible for a newer one.
    pub(super) fn look_for(&mut self, subnet: Subnet) -> Wanted {
        match self.queries.open(subnet, Asker::Own, self.now) {
            Opened::Refused => return Wanted::Refused,
            Opened::Waits => {}
            Opened::Ask => {
                self.ask_routes(subnet, None, 0);
                self.ask_seqnos(subnet, None, SEQNO_HOP_COUNT);
            }
        }
        self.table.keep(subnet);
        self.schedule_query(subnet);
        Wanted::Asked
    }

    /// A route carries traffic.
    pub(super) fn note_use(&mut self, subnet: Subnet) {
        let now = self.now;
        let Some(destination) = self.table.get_mut(&subnet) else { return };
        let Some(route) = destination.selected else { return };
        let link = route.link;
        let expires = destination.selected_entry().map_or(now, |entry| entry.expires);
        let since_refresh = now.since(destination.refreshed);
        // What nobody vouches for may be a lie that came before the truth was asked for.
        let is_first = destination.used.is_none_or(|used| used < destination.refreshed);
        let is_doubtful = is_first && !route.is_proved && self.proofs.is_some();
        let is_old = since_refresh >= REFRESH_INTERVAL
            || is_doubtful
            || (expires.since(now) < ALMOST_EXPIRED && since_refresh >= CONFIRM_AFTER);
        if destination.used.is_none() {
            self.table.keep(subnet);
        }
        if let Some(destination) = self.table.get_mut(&subnet) {
            destination.used = Some(now);
            if is_old {
                destination.refreshed = now;
                destination.confirm_by.get_or_insert(now + CONFIRM_AFTER);
            }
        }
        if is_old {
            self.ask_routes(subnet, None, 0);
            self.schedule_destination(subnet);
        }
        if let Some(neighbour) = self.links.get_mut(&link) {
            neighbour.life.sent(now);
            self.schedule_link(link);
        }
    }

    pub(super) fn on_route_request(&mut self, link: LinkId, request: &RouteRequest) {
        self.counters.route_requests += 1;
        if !self.may_ask(link) {
            return;
        }
        let Some(subnet) = request.subnet else { return self.on_wildcard(link) };
        if !is_nodes(subnet) {
            return;
        }
        if subnet == self.subnet {
            return self.answer(link, subnet);
        }
        match self.route(subnet) {
            Some(route) if route.link == link => self.doubt(link, subnet),
            Some(_) => self.answer(link, subnet),
            None => self.pass_on(link, subnet, request.generation),
        }
    }

    /// Our next hop asks us the way. It may want to renew its route, or it has none, and we missed
    /// that: then it won't answer the same question, and its route ends here before it expires.
    fn doubt(&mut self, link: LinkId, subnet: Subnet) {
        let Some(destination) = self.table.get_mut(&subnet) else { return };
        if destination.confirm_by.is_some() {
            return;
        }
        destination.confirm_by = Some(self.now + CONFIRM_AFTER);
        self.send_route_request(link, subnet, 0);
        self.schedule_destination(subnet);
    }

    /// The neighbour asks for all that we know, which costs more than one answer.
    fn on_wildcard(&mut self, link: LinkId) {
        let now = self.now;
        let Some(neighbour) = self.links.get_mut(&link) else { return };
        if neighbour.dumped_at.is_some_and(|at| now.since(at) < DUMP_INTERVAL) {
            self.counters.paced += 1;
            return;
        }
        neighbour.dumped_at = Some(now);
        self.dump(link);
    }

    /// A neighbour asks for what we don't know: others may.
    fn pass_on(&mut self, link: LinkId, subnet: Subnet, generation: u8) {
        if generation >= GENERATION_MAX {
            return;
        }
        if self.queries.open(subnet, Asker::Link(link), self.now) == Opened::Ask {
            self.ask_routes(subnet, Some(link), generation + 1);
            let hop_count = (GENERATION_MAX - generation) / GENERATIONS_PER_HOP;
            self.ask_seqnos(subnet, Some(link), hop_count);
        }
        self.schedule_query(subnet);
    }

    pub(super) fn ask_routes(&mut self, subnet: Subnet, except: Option<LinkId>, generation: u8) {
        let all = self.links.keys().copied();
        let asked: Vec<LinkId> = all.filter(|link| Some(*link) != except).collect();
        for link in asked {
            self.send_route_request(link, subnet, generation);
        }
    }

    pub(super) fn send_route_request(&mut self, link: LinkId, subnet: Subnet, generation: u8) {
        let request = RouteRequest { generation, subnet: Some(subnet) };
        self.questions.push((link, Tlv::RouteRequest(request)));
    }

    pub(super) fn on_query_timer(&mut self, subnet: Subnet) {
        let Some(query) = self.queries.get(&subnet) else { return };
        if query.expires() <= self.now {
            if query.is_own() {
                self.events.push_back(Event::Unreachable(subnet));
            }
            self.queries.close(subnet);
            return;
        }
        if self.queries.resend(subnet, self.now) {
            self.ask_routes(subnet, None, 0);
            self.ask_seqnos(subnet, None, SEQNO_HOP_COUNT);
        }
        self.schedule_query(subnet);
    }

    fn schedule_query(&mut self, subnet: Subnet) {
        if let Some(query) = self.queries.get(&subnet) {
            self.timers.set(Timer::Query(subnet), query.deadline());
        }
    }

    /// Asks for newer sequence numbers through all neighbours whose routes are infeasible.
    pub(super) fn ask_seqnos(&mut self, subnet: Subnet, except: Option<LinkId>, hop_count: u8) {
        let Some(destination) = self.table.get(&subnet) else { return };
        let others = destination.entries().iter().filter(|entry| Some(entry.link) != except);
        let wishes = others.filter_map(|entry| {
            let seqno = destination.sources.wanted_seqno(entry.origin())?;
            Some((entry.link, entry.router_id, seqno))
        });
        for (link, router_id, seqno) in wishes.collect::<Vec<_>>() {
            self.send_seqno_request(link, subnet, router_id, seqno, hop_count);
        }
    }

    /// Asks a neighbour whose update is infeasible for a newer one, not too often.
    pub(super) fn ask_seqno_of(&mut self, link: LinkId, subnet: Subnet, origin: Origin) {
        let now = self.now;
        let Some(destination) = self.table.get_mut(&subnet) else { return };
        let is_recent = |(asked, at)| asked == link && now.since(at) < SEQNO_ASK_INTERVAL;
        if destination.asked_seqno.is_some_and(is_recent) {
            return;
        }
        let Some(seqno) = destination.sources.wanted_seqno(origin) else { return };
        let router_id = origin.router_id();
        destination.asked_seqno = Some((link, now));
        self.send_seqno_request(link, subnet, router_id, seqno, SEQNO_HOP_COUNT);
    }

    fn send_seqno_request(
        &mut self,
        link: LinkId,
        subnet: Subnet,
        router_id: RouterId,
        seqno: Seqno,
        hop_count: u8,
    ) {
        let request = SeqnoRequest { seqno, hop_count, subnet, router_id };
        self.questions.push((link, Tlv::SeqnoRequest(request)));
    }

    pub(super) fn on_seqno_request(&mut self, link: LinkId, request: &SeqnoRequest) {
        self.counters.seqno_requests += 1;
        if !self.may_ask(link) || request.hop_count == 0 || !is_nodes(request.subnet) {
            return;
        }
        if request.subnet == self.subnet {
            return self.on_own_seqno_request(link, request);
        }
        if let Some(route) = self.route(request.subnet)
            && route.link != link
            && (route.router_id != request.router_id || satisfies(route.seqno, request.seqno))
        {
            return self.answer(link, request.subnet);
        }
        if request.hop_count >= 2 {
            self.forward_seqno_request(link, request);
        }
    }

    fn forward_seqno_request(&mut self, link: LinkId, request: &SeqnoRequest) {
        let SeqnoRequest { seqno, hop_count, subnet, router_id } = *request;
        let wish = Wish::new(subnet, router_id, seqno);
        if !self.seqnos.ask(wish, link, self.now) {
            return;
        }
        self.timers.advance(Timer::Seqnos, self.now + SEQNO_HOLD);
        let cost = |link| Some(self.links.get(&link)?.cost.applied());
        let known = self.table.get(&subnet).map(|d| d.candidates(cost).collect::<Vec<_>>());
        match self.seqnos.next_hop(wish, link, known.unwrap_or_default().into_iter()) {
            Some(next) => self.send_seqno_request(next, subnet, router_id, seqno, hop_count - 1),
            // Whoever asks lost its route, and we have none to the owner either: any route will do.
            None if self.route(subnet).is_none() => {
                let left = hop_count.saturating_mul(GENERATIONS_PER_HOP);
                self.pass_on(link, subnet, GENERATION_MAX.saturating_sub(left));
            }
            None => {}
        }
    }

    /// Somebody needs a newer sequence number of ours. Greater than the next one is what nobody honest
    /// can need, since we never gave the one before it: see [`Router::renew`].
    fn on_own_seqno_request(&mut self, link: LinkId, request: &SeqnoRequest) {
        if request.router_id != self.router_id || !self.is_unused(request.seqno) {
            return self.answer(link, self.subnet);
        }
        if request.seqno != self.seqno.next() {
            return self.renew();
        }
        match self.bumped_at.map(|at| at + SEQNO_BUMP_INTERVAL).filter(|next| *next > self.now) {
            Some(next) => self.timers.advance(Timer::Bump, next),
            None => self.bump(),
        }
    }

    /// Increases the own sequence number. After the last one comes another router id, so that a
    /// number that is greater than ours was never given.
    pub(super) fn bump(&mut self) {
        self.timers.cancel(Timer::Bump);
        if !self.is_unused(self.seqno.next()) {
            return self.renew();
        }
        self.bumped_at = Some(self.now);
        self.seqno = self.seqno.next();
        self.announce_own();
    }

    /// Whether a sequence number was never announced under the present router id.
    pub(super) fn is_unused(&self, seqno: Seqno) -> bool {
        seqno.0 > self.seqno.0
    }

    pub(super) fn on_seqnos_timer(&mut self) {
        self.seqnos.expire(self.now);
        if !self.seqnos.is_empty() {
            self.timers.set(Timer::Seqnos, self.now + SEQNO_HOLD);
        }
    }

    fn may_ask(&mut self, link: LinkId) -> bool {
        let now = self.now;
        let may = self.links.get_mut(&link).is_some_and(|l| l.requests_in.take(now));
        self.counters.paced += u64::from(!may);
        may
    }
}
