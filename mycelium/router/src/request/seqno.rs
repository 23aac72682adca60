//! Requests for sequence numbers that pass through this node (RFC 8966 3.8.1.2).
//!
//! A request goes to one neighbour at a time, not to all. It is remembered who asked, so that the
//! answer finds its way back, and whom it was passed on to, so that the next try goes elsewhere. Who asked
//! is not asked before others, but is not left out either: of a request that is repeated each minute, as
//! existing nodes do, the memory never ends, and a neighbour that asked once would be left out for ever.

use std::collections::BTreeMap;

use mycelium_wire::control::Seqno;
use mycelium_wire::identity::{RouterId, Subnet};

use crate::event::LinkId;
use crate::limits::{SEQNO_HOLD, SEQNO_LINKS_MAX, SEQNO_REPEAT, SEQNOS_MAX, SEQNOS_PER_LINK_MAX};
use crate::source::satisfies;
use crate::time::Time;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wish {
    subnet: Subnet,
    router_id: RouterId,
    seqno: u16,
}

#[derive(Debug)]
struct Pending {
    asked: Time,
    /// Whose share it counts against.
    first: LinkId,
    askers: Vec<LinkId>,
    visited: Vec<LinkId>,
}

/// Those of the last minute.
#[derive(Debug, Default)]
pub(crate) struct Seqnos {
    pending: BTreeMap<Wish, Pending>,
    counts: BTreeMap<LinkId, usize>,
}

impl Wish {
    pub(crate) fn new(subnet: Subnet, router_id: RouterId, seqno: Seqno) -> Self {
        Self { subnet, router_id, seqno: seqno.0 }
    }
}

impl Seqnos {
    /// Notes that a neighbour asks. Whether the request is to be passed on: not if it just was, nor if
    /// too many are pending.
    pub(crate) fn ask(&mut self, wish: Wish, link: LinkId, now: Time) -> bool {
        if let Some(pending) = self.pending.get_mut(&wish) {
            if !pending.askers.contains(&link) && pending.askers.len() < SEQNO_LINKS_MAX {
                pending.askers.push(link);
            }
            let repeats = now.since(pending.asked) >= SEQNO_REPEAT;
            if repeats {
                pending.asked = now;
            }
            return repeats;
        }
        let of_link = self.counts.get(&link).copied().unwrap_or(0);
        if of_link >= SEQNOS_PER_LINK_MAX || self.pending.len() >= SEQNOS_MAX {
            return false;
        }
        self.counts.insert(link, of_link + 1);
        let (askers, visited) = (vec![link], Vec::new());
        self.pending.insert(wish, Pending { asked: now, first: link, askers, visited });
        true
    }

    /// The first of `candidates` that has neither asked nor been asked, for a request of `asker`; then
    /// those who asked, since whoever had no route then may have one now, and be the way itself; when all
    /// have been asked, the round begins again. Never `asker` (RFC 8966 3.8.1.2).
    pub(crate) fn next_hop(
        &mut self,
        wish: Wish,
        asker: LinkId,
        candidates: impl Iterator<Item = LinkId>,
    ) -> Option<LinkId> {
        let pending = self.pending.get_mut(&wish)?;
        let candidates: Vec<_> = candidates.filter(|link| *link != asker).collect();
        let unvisited = candidates.iter().filter(|link| !pending.visited.contains(link));
        let fresh = unvisited.clone().find(|link| !pending.askers.contains(link));
        let fresh = fresh.or_else(|| unvisited.clone().next()).copied();
        if fresh.is_none() || pending.visited.len() >= SEQNO_LINKS_MAX {
            pending.visited.clear();
        }
        let next = fresh.or_else(|| candidates.first().copied())?;
        pending.visited.push(next);
        Some(next)
    }

    /// Takes out who waits for what a route with this sequence number satisfies.
    pub(crate) fn satisfied(
        &mut self,
        subnet: Subnet,
        router_id: RouterId,
        seqno: Seqno,
    ) -> Vec<LinkId> {
        let lowest = RouterId::from_bytes([0; mycelium_wire::identity::ROUTER_ID_SIZE]);
        let from = Wish { subnet, router_id: lowest, seqno: 0 };
        let of_subnet = self.pending.range(from..).take_while(|(wish, _)| wish.subnet == subnet);
        let done: Vec<Wish> = of_subnet
            .map(|(wish, _)| *wish)
            .filter(|w| w.router_id != router_id || satisfies(seqno, Seqno(w.seqno)))
            .collect();
        done.into_iter().filter_map(|wish| self.remove(wish)).flatten().collect()
    }

    /// Forgets what is old.
    pub(crate) fn expire(&mut self, now: Time) {
        let old = self.pending.iter().filter(|(_, p)| now.since(p.asked) >= SEQNO_HOLD);
        for wish in old.map(|(wish, _)| *wish).collect::<Vec<_>>() {
            self.remove(wish);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    fn remove(&mut self, wish: Wish) -> Option<Vec<LinkId>> {
        let pending = self.pending.remove(&wish)?;
        if let Some(count) = self.counts.get_mut(&pending.first) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&pending.first);
            }
        }
        Some(pending.askers)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use mycelium_wire::identity::ROUTER_ID_SIZE;

    use super::*;

    fn wish(number: u64, seqno: u16) -> Wish {
        let network = Ipv6Addr::from_bits(0x0400 << 112 | u128::from(number) << 64);
        Wish::new(Subnet::of(network), id(1), Seqno(seqno))
    }

    fn id(number: u8) -> RouterId {
        RouterId::from_bytes([number; ROUTER_ID_SIZE])
    }

    fn at(ms: u64) -> Time {
        Time(Duration::from_millis(ms))
    }

    #[test]
    fn a_request_is_passed_on_to_one_neighbour_after_the_other() {
        let mut seqnos = Seqnos::default();
        let links = || [1, 2, 3].map(LinkId).into_iter();
        let asker = LinkId(2);
        assert!(seqnos.ask(wish(1, 5), asker, at(0)));
        assert_eq!(seqnos.next_hop(wish(1, 5), asker, links()), Some(LinkId(1)));
        assert!(!seqnos.ask(wish(1, 5), LinkId(4), at(10)));
        assert!(seqnos.ask(wish(1, 5), asker, at(1500)));
        assert_eq!(seqnos.next_hop(wish(1, 5), asker, links()), Some(LinkId(3)));
        assert_eq!(seqnos.next_hop(wish(1, 5), asker, links()), Some(LinkId(1)));
        assert_eq!(seqnos.next_hop(wish(1, 5), asker, [asker].into_iter()), None);
    }

    /// A neighbour that had no route asked us; now it has one, and is the only way there.
    #[test]
    fn who_asked_before_may_be_the_way_now() {
        let mut seqnos = Seqnos::default();
        seqnos.ask(wish(1, 5), LinkId(1), at(0));
        assert!(seqnos.ask(wish(1, 5), LinkId(2), at(2000)));
        let ways = || [1, 3].map(LinkId).into_iter();
        assert_eq!(seqnos.next_hop(wish(1, 5), LinkId(2), ways()), Some(LinkId(3)));
        assert_eq!(seqnos.next_hop(wish(1, 5), LinkId(2), ways()), Some(LinkId(1)));
        let way = [LinkId(1)].into_iter();
        assert_eq!(seqnos.next_hop(wish(1, 5), LinkId(2), way), Some(LinkId(1)));
    }

    #[test]
    fn an_answer_goes_to_all_who_wait_for_it() {
        let mut seqnos = Seqnos::default();
        seqnos.ask(wish(1, 5), LinkId(2), at(0));
        seqnos.ask(wish(1, 5), LinkId(3), at(0));
        seqnos.ask(wish(1, 6), LinkId(4), at(0));
        seqnos.ask(wish(2, 5), LinkId(5), at(0));
        assert_eq!(seqnos.satisfied(wish(1, 0).subnet, id(1), Seqno(4)), []);
        let waited = seqnos.satisfied(wish(1, 0).subnet, id(1), Seqno(5));
        assert_eq!(waited, [LinkId(2), LinkId(3)]);
        assert_eq!(seqnos.satisfied(wish(1, 0).subnet, id(2), Seqno(0)), [LinkId(4)]);
        seqnos.expire(at(59_999));
        assert!(!seqnos.is_empty());
        seqnos.expire(at(60_000));
        assert!(seqnos.is_empty() && seqnos.counts.is_empty());
    }

    #[test]
    fn a_flood_ends_at_its_senders_share() {
        let mut seqnos = Seqnos::default();
        let flood = (0..5000).filter(|number| seqnos.ask(wish(*number, 1), LinkId(1), at(0)));
        assert_eq!(flood.count(), SEQNOS_PER_LINK_MAX);
        assert!(seqnos.ask(wish(9999, 1), LinkId(2), at(0)));
    }
}
