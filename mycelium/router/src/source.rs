//! Feasibility: why packets never run in circles (RFC 8966 2.4, 3.5.1, 3.7.3).
//!
//! For each destination and router id a node keeps the best it ever announced, the *feasibility
//! distance*. It takes a route only if the neighbour's announcement is better than that: a newer
//! sequence number, or the same one and a smaller metric. Whoever routes through this node has
//! something worse, so such a route can't lead back here.
//!
//! Two things make that true in more cases than the RFC promises.
//!
//! **Router ids have an order.** A node that restarts has a new router id, for which no distances
//! exist, and while routes of its old and its new life are both about, two nodes may each take the
//! other's. So as long as a neighbour may hold a route that it has from us, we only change to
//! a *greater* router id; to a smaller one only when all such neighbours have been told that the
//! route is gone. Nodes of ours begin their ids with the time of their start
//! ([`incarnation`](crate::incarnation)), so that the new life always is the greater one. Existing
//! nodes roll dice: half of their restarts wait for the retraction, 6 s.
//!
//! **Proved announcements come after all others.** Whether an announcement is proved by its owner
//! ([`mycelium_wire::claim`]) is part of whose it is ([`Origin`]), and what is proved is greater than what
//! is not, whatever the router ids. A neighbour has a proved route from us only if ours is, so origins never
//! grow along a way, and what was said of lives holds for them: from proved to unproved only when nobody
//! depends on us, and back at once. Distances are kept for each origin. A proved announcement is held
//! against proved ones alone, so sequence numbers that somebody made up don't stand in its way; one that
//! is not proved is held against both.
//!
//! **Sequence numbers run, they don't jump.** They are compared modulo 2^16, so three forged ones can
//! each be newer than the next. What is more than 4096 ahead of the known distance is not feasible.
//! No honest source gets there while the distance is remembered: it counts up once in 4 s at most.

use mycelium_wire::control::{Metric, Seqno};
use mycelium_wire::identity::RouterId;

use crate::limits::{SEQNO_JUMP_MAX, SOURCE_HOLD, SOURCES_PER_SUBNET_MAX};
use crate::time::Time;

/// Sequence number and metric of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distance {
    pub(crate) seqno: Seqno,
    pub(crate) metric: Metric,
}

/// Whether a route with this sequence number is what somebody who asked for `wanted` can use. One
/// that is not newer by RFC 8966 3.2.1 alone may still be too far behind a forged one.
pub(crate) fn satisfies(seqno: Seqno, wanted: Seqno) -> bool {
    seqno.0.wrapping_sub(wanted.0) <= SEQNO_JUMP_MAX
}

/// Whose announcement it is. Of two, the greater is what the other gives way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    is_proved: bool,
    router_id: RouterId,
}

impl Origin {
    pub(crate) const fn new(router_id: RouterId, is_proved: bool) -> Self {
        Self { is_proved, router_id }
    }

    pub(crate) const fn router_id(&self) -> RouterId {
        self.router_id
    }

    /// Whether what was announced of `other` says how far something of this origin may be.
    fn heeds(self, other: Self) -> bool {
        self.router_id == other.router_id && (other.is_proved || !self.is_proved)
    }
}

/// Feasibility distances of one destination; the origin announced last is the last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    list: Vec<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    origin: Origin,
    distance: Distance,
    expires: Time,
}

impl Distance {
    /// Whether a route with this distance can't lead through a node that announced `other`.
    fn is_better_than(self, other: Self) -> bool {
        if self.seqno == other.seqno {
            return self.metric < other.metric;
        }
        satisfies(self.seqno, other.seqno)
    }
}

impl Sources {
    /// Whether an announcement may be followed. `has_dependents`: whether a neighbour may hold a
    /// route to this destination through us.
    pub(crate) fn is_feasible(
        &self,
        origin: Origin,
        distance: Distance,
        has_dependents: bool,
    ) -> bool {
        let is_better = self.heeded(origin).all(|own| distance.is_better_than(own));
        let goes_back = self.list.last().is_some_and(|last| origin < last.origin);
        is_better && !(goes_back && has_dependents)
    }

    /// The sequence number that would make a route of this origin feasible; none if it doesn't
    /// depend on that.
    pub(crate) fn wanted_seqno(&self, origin: Origin) -> Option<Seqno> {
        let newer = |a: Seqno, b: Seqno| if b.is_newer_than(a) { b } else { a };
        let newest = self.heeded(origin).map(|distance| distance.seqno).reduce(newer);
        newest.map(Seqno::next)
    }

    /// Remembers what is being announced.
    pub(crate) fn announce(&mut self, origin: Origin, distance: Distance, now: Time) {
        let known = self.list.iter().position(|source| source.origin == origin);
        let before = known.map(|position| self.list.remove(position).distance);
        if self.list.len() == SOURCES_PER_SUBNET_MAX {
            self.list.remove(0);
        }
        let distance = before.filter(|own| !distance.is_better_than(*own)).unwrap_or(distance);
        self.list.push(Source { origin, distance, expires: now + SOURCE_HOLD });
    }

    /// Forgets what was not announced for long: how many.
    pub(crate) fn expire(&mut self, now: Time) -> usize {
        let before = self.list.len();
        self.list.retain(|source| source.expires > now);
        before - self.list.len()
    }

    /// Forgets all: how many.
    pub(crate) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.list).len()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.list.iter().map(|source| source.expires).min()
    }

    /// Distances that say how far something of this origin may be.
    fn heeded(&self, origin: Origin) -> impl Iterator<Item = Distance> {
        let heeded = self.list.iter().filter(move |source| origin.heeds(source.origin));
        heeded.map(|source| source.distance)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mycelium_wire::identity::ROUTER_ID_SIZE;

    use super::*;

    const NOW: Time = Time(Duration::from_secs(5));

    fn id(life: u8) -> Origin {
        let mut bytes = [7; ROUTER_ID_SIZE];
        bytes[ROUTER_ID_SIZE - 1] = life;
        Origin::new(RouterId::from_bytes(bytes), false)
    }

    fn proved(life: u8) -> Origin {
        Origin { is_proved: true, ..id(life) }
    }

    fn distance(seqno: u16, metric: u16) -> Distance {
        Distance { seqno: Seqno(seqno), metric: Metric(metric) }
    }

    fn announced(life: u8, seqno: u16, metric: u16) -> Sources {
        let mut sources = Sources::default();
        sources.announce(id(life), distance(seqno, metric), NOW);
        sources
    }

    #[test]
    fn rfc8966_3_5_1_newer_or_strictly_shorter() {
        let sources = announced(1, 5, 100);
        let feasible = |seqno, metric| sources.is_feasible(id(1), distance(seqno, metric), true);
        assert!(feasible(5, 99) && feasible(6, 60_000));
        assert!(!feasible(5, 100) && !feasible(5, 101) && !feasible(4, 1));
        assert!(announced(1, 0xffff, 9).is_feasible(id(1), distance(0, 9), true), "wraps around");
        assert!(Sources::default().is_feasible(id(1), distance(5, 9), true));
    }

    #[test]
    fn rfc8966_3_7_3_the_distance_only_becomes_better() {
        let mut sources = announced(1, 5, 100);
        for (announced, expected) in [((5, 120), (5, 100)), ((5, 80), (5, 80)), ((6, 90), (6, 90))]
        {
            sources.announce(id(1), distance(announced.0, announced.1), NOW);
            let expected = Some(distance(expected.0, expected.1));
            assert_eq!(sources.heeded(id(1)).next(), expected);
        }
    }

    #[test]
    fn a_jump_is_not_newer() {
        let sources = announced(1, 5, 100);
        let newest = 5 + SEQNO_JUMP_MAX;
        assert!(sources.is_feasible(id(1), distance(newest, 500), true));
        assert!(!sources.is_feasible(id(1), distance(newest + 1, 500), true));
    }

    #[test]
    fn no_way_back_to_an_older_life_while_others_depend_on_us() {
        let sources = announced(5, 0, 100);
        assert!(sources.is_feasible(id(6), distance(0, 900), true));
        assert!(!sources.is_feasible(id(4), distance(9, 0), true));
        assert!(sources.is_feasible(id(4), distance(9, 0), false));
    }

    #[test]
    fn what_is_proved_comes_after_what_is_not_and_is_held_against_its_own_kind() {
        let mut sources = announced(1, 900, 10);
        assert!(sources.is_feasible(proved(1), distance(5, 100), true), "900 was made up");
        sources.announce(proved(1), distance(5, 100), NOW);
        assert!(sources.is_feasible(proved(1), distance(5, 99), true));
        assert!(!sources.is_feasible(proved(1), distance(5, 100), true));
        assert_eq!(sources.wanted_seqno(proved(1)), Some(Seqno(6)));
        // What is not proved gives way, even that of a greater life, as long as others depend on us.
        for life in [1, 9] {
            assert!(!sources.is_feasible(id(life), distance(901, 0), true));
            assert!(sources.is_feasible(id(life), distance(901, 0), false));
        }
        assert!(!sources.is_feasible(id(1), distance(6, 0), false), "older than what we announced");
        assert_eq!(sources.wanted_seqno(id(1)), Some(Seqno(901)));
        let mut sources = Sources::default();
        sources.announce(proved(1), distance(5, 100), NOW);
        assert!(!sources.is_feasible(id(1), distance(5, 100), false), "it may be ours");
    }

    #[test]
    fn distances_are_few_and_end() {
        let mut sources = Sources::default();
        for life in 0..50 {
            sources.announce(id(life), distance(0, 9), NOW);
        }
        assert_eq!(sources.len(), SOURCES_PER_SUBNET_MAX);
        assert_eq!(sources.heeded(id(49)).next(), Some(distance(0, 9)));
        assert_eq!(sources.next_expiry(), Some(NOW + SOURCE_HOLD));
        assert_eq!((sources.expire(NOW), sources.expire(NOW + SOURCE_HOLD)), (0, 16));
    }
}
