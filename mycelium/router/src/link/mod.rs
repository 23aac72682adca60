//! A link: what it costs, whether it lives, and what waits to be told to its neighbour.
//!
//! What waits is a set of subnets, not a queue of messages. The message is made when it is sent, so
//! it says what is true then, a neighbour that reads slowly is told the end of a story only, and
//! memory is bounded by the table.

mod cost;
mod life;

use std::collections::BTreeSet;

use mycelium_wire::claim;
use mycelium_wire::identity::{RouterId, Subnet};

pub(crate) use cost::Cost;
pub(crate) use life::{Due, Life};

use crate::event::LinkInfo;
use crate::limits::{
    HELLOS_IN, PROOFS_IN, Pace, REQUESTS_IN, UPDATE_INTERVAL, UPDATES_IN, UPDATES_OUT,
};
use crate::time::Time;

/// All that is known about the neighbour at its end, but its routes.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) life: Life,
    pub(crate) cost: Cost,
    pub(crate) outbox: Outbox,
    /// What the neighbour was told, so that it hears of changes.
    pub(crate) told: BTreeSet<Subnet>,
    /// When the own subnet is announced again.
    pub(crate) announce_at: Time,
    /// When it was last given the whole table.
    pub(crate) dumped_at: Option<Time>,
    /// What its router id says of its software, once it announced its own subnet.
    zone: Option<[u8; 2]>,
    /// Whether its router id says that it knows proofs.
    takes_proofs: bool,
    pub(crate) proofs_in: Pace,
    /// Proofs that were none.
    pub(crate) forged_count: u8,
    pub(crate) updates_in: Pace,
    pub(crate) requests_in: Pace,
    pub(crate) hellos_in: Pace,
}

/// Subnets that the neighbour is to be told about.
#[derive(Debug)]
pub(crate) struct Outbox {
    urgent: BTreeSet<Subnet>,
    rest: BTreeSet<Subnet>,
    pace: Pace,
}

impl Link {
    pub(crate) fn new(info: LinkInfo, now: Time, jitter: u64) -> Self {
        Self {
            life: Life::new(now, jitter),
            cost: Cost::new(info.static_cost),
            outbox: Outbox { urgent: BTreeSet::new(), rest: BTreeSet::new(), pace: UPDATES_OUT },
            told: BTreeSet::new(),
            announce_at: now + UPDATE_INTERVAL,
            dumped_at: None,
            zone: None,
            takes_proofs: false,
            proofs_in: PROOFS_IN,
            forged_count: 0,
            updates_in: UPDATES_IN,
            requests_in: REQUESTS_IN,
            hellos_in: HELLOS_IN,
        }
    }

    /// Whether the neighbour may be one of the nodes that exist, which leave the zone empty.
    pub(crate) fn is_existing(&self) -> bool {
        self.zone.is_none_or(|zone| zone == [0, 0])
    }

    /// Notes what the neighbour says of itself. Whether it knows proofs, which it did not before.
    pub(crate) fn introduced(&mut self, router_id: &RouterId) -> bool {
        self.zone = Some(router_id.zone());
        let before = std::mem::replace(&mut self.takes_proofs, claim::is_announced(router_id));
        self.takes_proofs && !before
    }

    /// Whether proofs may be sent there: existing nodes would lose their place in the stream.
    pub(crate) fn takes_proofs(&self) -> bool {
        self.takes_proofs
    }

    /// When something is to be done.
    pub(crate) fn deadline(&self) -> Time {
        let life = self.life.deadline(self.cost.round_trip());
        let outbox = self.outbox.ready_at().unwrap_or(life);
        life.min(self.announce_at).min(outbox)
    }
}

impl Outbox {
    /// Adds what can't wait: answers, and the ends of routes.
    pub(crate) fn add_urgent(&mut self, subnet: Subnet) {
        self.rest.remove(&subnet);
        self.urgent.insert(subnet);
    }

    /// Adds what changed.
    pub(crate) fn add(&mut self, subnet: Subnet) {
        if !self.urgent.contains(&subnet) {
            self.rest.insert(subnet);
        }
    }

    /// Takes what may be sent now.
    pub(crate) fn take(&mut self, now: Time) -> Option<Subnet> {
        if self.is_empty() || !self.pace.take(now) {
            return None;
        }
        self.urgent.pop_first().or_else(|| self.rest.pop_first())
    }

    /// When something may be sent, if anything waits.
    pub(crate) fn ready_at(&self) -> Option<Time> {
        (!self.is_empty()).then(|| self.pace.ready_at())
    }

    fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use super::*;

    fn subnet(number: u64) -> Subnet {
        Subnet::of(Ipv6Addr::from_bits(0x0400 << 112 | u128::from(number) << 64))
    }

    #[test]
    fn what_waits_is_sent_once_and_at_a_pace() {
        let now = Time(Duration::from_secs(50));
        let mut link = Link::new(LinkInfo::TCP4, now, 1);
        let outbox = &mut link.outbox;
        for number in (0..5000).chain(0..5000) {
            outbox.add(subnet(number));
        }
        outbox.add_urgent(subnet(4000));
        outbox.add(subnet(4000));
        assert_eq!(outbox.take(now), Some(subnet(4000)));
        let burst = std::iter::from_fn(|| outbox.take(now)).count();
        assert_eq!(burst, 999);
        let later = now + Duration::from_millis(1);
        assert_eq!(outbox.ready_at(), Some(later));
        assert_eq!(outbox.take(later), Some(subnet(999)));
        let rest = (2..9000).filter_map(|ms| outbox.take(now + Duration::from_millis(ms))).count();
        assert_eq!((rest, outbox.ready_at()), (5000 - 1000 - 1, None));
    }
}
