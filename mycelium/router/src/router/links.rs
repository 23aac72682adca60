//! Links come, say Hello, are measured, and go.

use mycelium_wire::control::{HELLO_UNICAST, Hello, Ihu, RouteRequest, Seqno, Tlv};

use super::Router;
use crate::event::{Event, LinkId, LinkInfo};
use crate::limits::{HELLO_INTERVAL, IHU_INTERVAL, LINKS_MAX, TIMER_PAUSE_MIN, UPDATE_INTERVAL};
use crate::link::{Due, Link};
use crate::timer::Timer;

impl Router {
    /// A new link: a Hello to measure it, the own subnet, a question for all that the neighbour knows,
    /// and one for each subnet that is looked for.
    pub(super) fn connect(&mut self, id: LinkId, info: LinkInfo) {
        if self.links.contains_key(&id) {
            return;
        }
        if self.links.len() >= LINKS_MAX {
            self.events.push_back(Event::Dead(id));
            return;
        }
        self.counters.links_added += 1;
        let jitter = self.seed ^ id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.links.insert(id, Link::new(info, self.now, jitter));
        self.on_link_timer(id);
        self.send_own(id);
        self.send(id, Tlv::RouteRequest(RouteRequest { generation: 0, subnet: None }));
        let wanted: Vec<_> = self.queries.iter().map(|(subnet, _)| *subnet).collect();
        for subnet in wanted {
            self.send_route_request(id, subnet, 0);
        }
    }

    /// The link and all that depends on it is gone.
    pub(super) fn disconnect(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        self.counters.links_removed += 1;
        self.timers.cancel(Timer::Link(id));
        self.unsent.remove(&id);
        self.queries.forget(id);
        for subnet in link.told {
            self.table.remove_told(subnet, id);
            self.reselect(subnet);
            self.tidy(subnet);
        }
        for subnet in self.table.subnets_of(id) {
            self.table.remove(subnet, id, self.now);
            self.reselect(subnet);
            self.tidy(subnet);
        }
    }

    pub(super) fn on_hello(&mut self, id: LinkId) {
        self.counters.hellos += 1;
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        if !link.hellos_in.take(now) {
            self.counters.paced += 1;
            return;
        }
        let (rxcost, interval) = (link.cost.applied(), centiseconds(IHU_INTERVAL));
        self.send(id, Tlv::Ihu(Ihu { rxcost, interval, address: None }));
    }

    pub(super) fn on_ihu(&mut self, id: LinkId) {
        self.counters.ihus += 1;
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(round_trip) = link.life.ihu(now) else {
            self.counters.unsolicited_ihus += 1;
            return;
        };
        let changed = link.cost.answered(round_trip);
        self.schedule_link(id);
        if changed {
            self.cost_changed(id);
        }
    }

    pub(super) fn on_link_timer(&mut self, id: LinkId) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        let lost = link.life.give_up(now, link.cost.round_trip());
        let changed = (0..lost).fold(false, |changed, _| link.cost.lost() || changed);
        let due = link.life.due(now, link.cost.round_trip());
        // What a pace held back is sent at the end of this call.
        self.unsent.insert(id);
        let announces = link.announce_at <= now;
        if announces {
            link.announce_at = now + UPDATE_INTERVAL;
        }
        match due {
            Due::Dead => {
                self.counters.links_died += 1;
                self.events.push_back(Event::Dead(id));
                self.disconnect(id);
                return;
            }
            Due::Hello(seqno) => self.send_hello(id, seqno),
            Due::Nothing => {}
        }
        if announces {
            self.send_own(id);
        }
        self.schedule_link(id);
        if changed {
            self.cost_changed(id);
        }
    }

    fn send_hello(&mut self, id: LinkId, seqno: Seqno) {
        let (flags, interval) = (HELLO_UNICAST, centiseconds(HELLO_INTERVAL));
        self.send(id, Tlv::Hello(Hello { flags, seqno, interval }));
    }

    /// All routes over a link have another metric.
    fn cost_changed(&mut self, id: LinkId) {
        for subnet in self.table.subnets_of(id) {
            self.reselect(subnet);
        }
    }

    pub(super) fn schedule_link(&mut self, id: LinkId) {
        if let Some(link) = self.links.get(&id) {
            self.timers.set(Timer::Link(id), link.deadline().max(self.now + TIMER_PAUSE_MIN));
        }
    }
}

/// A duration as the wire has it.
pub(super) fn centiseconds(duration: std::time::Duration) -> u16 {
    u16::try_from(duration.as_millis() / 10).unwrap_or(u16::MAX)
}
