//! Open questions for routes: who waits for the answer, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mycelium_wire::identity::Subnet;

use crate::event::LinkId;
use crate::limits::{
    OWN_QUERIES_MAX, QUERIES_MAX, QUERIES_PER_LINK_MAX, QUERY_HOLD, QUERY_REPEAT, QUERY_RESENDS,
};
use crate::time::Time;

/// A route that is looked for.
#[derive(Debug)]
pub(crate) struct Query {
    /// Whether this node's own data plane waits.
    is_own: bool,
    askers: BTreeSet<LinkId>,
    expires: Time,
    /// When neighbours were last asked.
    asked: Time,
    resend_count: usize,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// This node.
    Own,
    /// A neighbour.
    Link(LinkId),
}

/// What to do about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Ask the neighbours.
    Ask,
    /// They have been asked.
    Waits,
    /// There are too many questions.
    Refused,
}

/// All of them; those of this node and of each neighbour are bounded apart.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    open: BTreeMap<Subnet, Query>,
    by_link: BTreeMap<LinkId, BTreeSet<Subnet>>,
    own_count: usize,
}

impl Queries {
    /// Opens a question, or lets one more wait for it.
    pub(crate) fn open(&mut self, subnet: Subnet, asker: Asker, now: Time) -> Opened {
        let known = self.open.get(&subnet);
        let waits = known.is_some_and(|query| query.has(asker));
        if !waits && !self.has_room(asker, known.is_some()) {
            return Opened::Refused;
        }
        let is_new = known.is_none();
        let query = self.open.entry(subnet).or_insert_with(|| Query::new(now));
        let repeats = matches!(asker, Asker::Link(_)) && now.since(query.asked) >= QUERY_REPEAT;
        if repeats {
            query.asked = now;
        }
        match asker {
            Asker::Own if !waits => {
                query.is_own = true;
                query.expires = now + QUERY_HOLD;
                self.own_count += 1;
            }
            Asker::Link(link) if !waits => {
                query.askers.insert(link);
                self.by_link.entry(link).or_default().insert(subnet);
            }
            Asker::Own | Asker::Link(_) => {}
        }
        if is_new || repeats { Opened::Ask } else { Opened::Waits }
    }

    fn has_room(&self, asker: Asker, is_known: bool) -> bool {
        match asker {
            Asker::Own => self.own_count < OWN_QUERIES_MAX,
            Asker::Link(link) => {
                let of_link = self.by_link.get(&link).map_or(0, BTreeSet::len);
                let has_room = is_known || self.open.len() - self.own_count < QUERIES_MAX;
                of_link < QUERIES_PER_LINK_MAX && has_room
            }
        }
    }

    pub(crate) fn get(&self, subnet: &Subnet) -> Option<&Query> {
        self.open.get(subnet)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Subnet, &Query)> {
        self.open.iter()
    }

    /// Closes a question.
    pub(crate) fn close(&mut self, subnet: Subnet) -> Option<Query> {
        let query = self.open.remove(&subnet)?;
        self.own_count -= usize::from(query.is_own);
        for link in &query.askers {
            if let Some(subnets) = self.by_link.get_mut(link) {
                subnets.remove(&subnet);
                if subnets.is_empty() {
                    self.by_link.remove(link);
                }
            }
        }
        Some(query)
    }

    /// A neighbour is gone and waits no longer.
    pub(crate) fn forget(&mut self, link: LinkId) {
        for subnet in self.by_link.remove(&link).unwrap_or_default() {
            if let Some(query) = self.open.get_mut(&subnet) {
                query.askers.remove(&link);
            }
        }
    }

    /// Whether it is time to ask for it once more; notes that this is done.
    pub(crate) fn resend(&mut self, subnet: Subnet, now: Time) -> bool {
        let Some(query) = self.open.get_mut(&subnet) else { return false };
        let is_due = query.next_resend().is_some_and(|moment| moment <= now);
        if is_due {
            query.resend_count += 1;
            query.asked = now;
        }
        is_due
    }
}

impl Query {
    fn new(now: Time) -> Self {
        let (expires, askers) = (now + QUERY_HOLD, BTreeSet::new());
        Self { is_own: false, askers, expires, asked: now, resend_count: 0 }
    }

    fn has(&self, asker: Asker) -> bool {
        match asker {
            Asker::Own => self.is_own,
            Asker::Link(link) => self.askers.contains(&link),
        }
    }

    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    pub(crate) fn askers(&self) -> impl Iterator<Item = LinkId> {
        self.askers.iter().copied()
    }

    pub(crate) fn expires(&self) -> Time {
        self.expires
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Time {
        self.next_resend().map_or(self.expires, |resend| resend.min(self.expires))
    }

    /// Only who has the question asks again: those who pass it on don't.
    fn next_resend(&self) -> Option<Time> {
        let pause: Duration = *QUERY_RESENDS.get(self.resend_count)?;
        self.is_own.then(|| self.asked + pause)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn subnet(number: u64) -> Subnet {
        Subnet::of(Ipv6Addr::from_bits(0x0400 << 112 | u128::from(number) << 64))
    }

    fn at(ms: u64) -> Time {
        Time(Duration::from_millis(ms))
    }

    const FIRST: Asker = Asker::Link(LinkId(1));

    #[test]
    fn neighbours_are_asked_once() {
        let mut queries = Queries::default();
        assert_eq!(queries.open(subnet(1), FIRST, at(5)), Opened::Ask);
        assert_eq!(queries.open(subnet(1), FIRST, at(5)), Opened::Waits);
        assert_eq!(queries.open(subnet(1), Asker::Link(LinkId(2)), at(6)), Opened::Waits);
        assert_eq!(queries.open(subnet(1), Asker::Own, at(7)), Opened::Waits);
        assert_eq!(queries.open(subnet(1), FIRST, at(1505)), Opened::Ask, "it was lost somewhere");
        let query = queries.close(subnet(1)).unwrap();
        assert!(query.is_own() && query.expires() == at(15_007));
        assert_eq!(query.askers().collect::<Vec<_>>(), [LinkId(1), LinkId(2)]);
        assert_eq!((queries.own_count, queries.by_link.len()), (0, 0));
    }

    #[test]
    fn own_questions_are_asked_again() {
        let mut queries = Queries::default();
        queries.open(subnet(1), FIRST, at(0));
        queries.open(subnet(2), Asker::Own, at(0));
        assert_eq!(queries.get(&subnet(1)).unwrap().deadline(), at(15_000));
        let resent: Vec<u64> =
            (0..15_000).step_by(500).filter(|ms| queries.resend(subnet(2), at(*ms))).collect();
        assert_eq!(resent, [2000, 6000]);
    }

    #[test]
    fn a_neighbours_flood_leaves_room_for_others() {
        let mut queries = Queries::default();
        let flood = (0..5000).map(|number| queries.open(subnet(number), FIRST, at(0)));
        assert_eq!(flood.filter(|opened| *opened == Opened::Ask).count(), QUERIES_PER_LINK_MAX);
        assert_eq!(queries.open(subnet(9999), Asker::Own, at(0)), Opened::Ask);
        assert_eq!(queries.open(subnet(9998), Asker::Link(LinkId(2)), at(0)), Opened::Ask);
        queries.forget(LinkId(1));
        assert_eq!(queries.open(subnet(9997), FIRST, at(0)), Opened::Ask);
    }
}
