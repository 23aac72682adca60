//! A destination: the routes that neighbours offer, the one in use, and who depends on it.

use std::collections::BTreeMap;

use mycelium_wire::control::Metric;
use mycelium_wire::identity::RouterId;
use mycelium_wire::xeddsa::Signature;

use crate::event::{LinkId, Route};
use crate::limits::{
    AVOIDED_FOR_MAX, AVOIDED_FOR_MIN, AVOIDED_KEPT, AVOIDED_MAX, RETRACTION_HOLD,
    RETRACTION_REPEATS, ROUTE_HOLD_MARGIN, ROUTE_HOLD_MAX, SIGNIFICANT_CHANGE,
};
use crate::source::{Distance, Origin, Sources};
use crate::time::Time;

/// A subnet that we heard of.
#[derive(Debug, Default)]
pub(crate) struct Destination {
    /// At most one a neighbour, ordered by link.
    entries: Vec<Entry>,
    pub(crate) selected: Option<Route>,
    pub(crate) sources: Sources,
    told: BTreeMap<LinkId, Told>,
    /// When the data plane last sent something there.
    pub(crate) used: Option<Time>,
    /// When neighbours were last asked for a better route.
    pub(crate) refreshed: Time,
    /// Until when the next hop is to confirm its route.
    pub(crate) confirm_by: Option<Time>,
    /// How often it did not.
    pub(crate) unconfirmed: u8,
    /// Whom and when a sequence number was last asked for because of an infeasible update.
    pub(crate) asked_seqno: Option<(LinkId, Time)>,
    /// Next hops that lost what was sent there.
    avoided: BTreeMap<LinkId, Avoided>,
    /// Since when there is no entry, for the order in which distances are given up.
    pub(super) idle_since: Option<Time>,
    /// Whether its entries are never evicted, since it is in use or asked for.
    pub(super) is_kept: bool,
}

/// A next hop that lost what was sent there, and lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Avoided {
    /// Until when others are preferred.
    until: Time,
    is_over: bool,
    /// How often this was so.
    count: u32,
}

/// What a neighbour offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) link: LinkId,
    pub(crate) router_id: RouterId,
    /// What shows that the owner announced it under this router id with this sequence number.
    pub(crate) proof: Option<Signature>,
    pub(crate) distance: Distance,
    pub(crate) expires: Time,
    /// When the neighbour named this router id first, and last.
    pub(super) named: Time,
    pub(super) heard: Time,
    /// Its place in the order of eviction, if it has one.
    pub(super) spare_since: Option<Time>,
}

/// What a neighbour was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Infinite for a retraction.
    pub(crate) metric: Metric,
    /// When; of a retraction the first time.
    pub(crate) at: Time,
    /// How often a retraction was repeated.
    pub(crate) repeat_count: usize,
}

impl Destination {
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn entry(&self, link: LinkId) -> Option<&Entry> {
        self.place(link).ok().and_then(|place| self.entries.get(place))
    }

    pub(super) fn entry_mut(&mut self, link: LinkId) -> Option<&mut Entry> {
        self.place(link).ok().and_then(|place| self.entries.get_mut(place))
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut()
    }

    /// Adds an entry of a neighbour that has none.
    pub(super) fn insert(&mut self, entry: Entry) {
        if let Err(place) = self.place(entry.link) {
            self.entries.insert(place, entry);
        }
    }

    pub(super) fn remove(&mut self, link: LinkId) -> Option<Entry> {
        self.place(link).ok().map(|place| self.entries.remove(place))
    }

    fn place(&self, link: LinkId) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&link, |entry| entry.link)
    }

    /// The entry that is followed.
    pub(crate) fn selected_entry(&self) -> Option<&Entry> {
        self.selected.and_then(|route| self.entry(route.link))
    }

    /// Whether an announcement may be followed.
    pub(crate) fn is_feasible(&self, origin: Origin, distance: Distance) -> bool {
        self.sources.is_feasible(origin, distance, !self.told.is_empty())
    }

    /// The route that its entries amount to: the shortest of those that are feasible, and proved if some
    /// are; the present one unless another is shorter by more than 10, or leads to the owner itself.
    pub(crate) fn select(&self, cost: impl Fn(LinkId) -> Option<u16>) -> Option<Route> {
        let present = self.selected.map(|route| route.link);
        let owner = self.owner();
        let routes = || {
            let current = self.entries.iter().filter(|entry| !entry.is_of_life_before(owner));
            let followed = current.filter(|entry| self.is_feasible(entry.origin(), entry.distance));
            followed.filter_map(|entry| {
                let route = entry.route(cost(entry.link)?);
                // A sum that saturates has lost its order.
                (route.metric < Metric::FINITE_MAX).then_some((entry.distance.metric, route))
            })
        };
        // Who loses packets is better than nobody.
        let avoids = !self.avoided.is_empty() && routes().any(|(_, r)| !self.is_avoided(r.link));
        let taken = || routes().filter(|(_, r)| !avoids || !self.is_avoided(r.link));
        let proves = taken().any(|(_, route)| route.is_proved);
        let (mut best, mut stay) = (None::<(Metric, Route)>, None::<(Metric, Route)>);
        for (announced, route) in taken().filter(|(_, route)| route.is_proved == proves) {
            if best.is_none_or(|(_, best)| route.metric < best.metric) {
                best = Some((announced, route));
            }
            if Some(route.link) == present {
                stay = Some((announced, route));
            }
        }
        let (announced, route) = best?;
        let Some((staying, present)) = stay else { return Some(route) };
        let is_direct = announced == Metric::ZERO && staying != Metric::ZERO;
        let gain = present.metric.0 - route.metric.0;
        Some(if is_direct || gain > SIGNIFICANT_CHANGE { route } else { present })
    }

    /// The owner itself, if it is a neighbour that says which of its lives this is, and can be followed,
    /// if not now then when others have been told that what they had from us is gone.
    ///
    /// Lives of our nodes have an order, so nobody needs to be asked. Those of existing nodes have none:
    /// when one restarts, some of them pass routes to its former life round in a circle, each to the next,
    /// until they expire, and whoever follows them has dependents for as long. The owner knows better.
    fn owner(&self) -> Option<&Entry> {
        let owners = self.entries.iter().filter(|entry| {
            entry.distance.metric == Metric::ZERO
                && entry.router_id.zone() == ZONE_EXISTING
                && !self.is_avoided(entry.link)
                && self.sources.is_feasible(entry.origin(), entry.distance, false)
        });
        owners.max_by_key(|entry| entry.heard)
    }

    fn is_avoided(&self, link: LinkId) -> bool {
        self.avoided.get(&link).is_some_and(|avoided| !avoided.is_over)
    }

    /// Prefers other next hops for a while, which grows each time.
    pub(crate) fn avoid(&mut self, link: LinkId, now: Time) {
        self.avoided.retain(|_, avoided| now.since(avoided.until) < AVOIDED_KEPT);
        let count = self.avoided.get(&link).map_or(0, |avoided| avoided.count);
        if self.avoided.len() >= AVOIDED_MAX && count == 0 {
            let first = self.avoided.iter().min_by_key(|(_, avoided)| avoided.until);
            if let Some(first) = first.map(|(link, _)| *link) {
                self.avoided.remove(&first);
            }
        }
        let time = AVOIDED_FOR_MIN.saturating_mul(1 << count.min(16)).min(AVOIDED_FOR_MAX);
        let avoided = Avoided { until: now + time, is_over: false, count: count + 1 };
        self.avoided.insert(link, avoided);
    }

    /// Takes next hops that were avoided for long enough like others again.
    pub(crate) fn forgive(&mut self, now: Time) {
        self.avoided.values_mut().for_each(|avoided| avoided.is_over |= avoided.until <= now);
    }

    /// Links to ask for a newer sequence number, the best first.
    pub(crate) fn candidates(
        &self,
        cost: impl Fn(LinkId) -> Option<u16>,
    ) -> impl Iterator<Item = LinkId> {
        let rank = |entry: &Entry| {
            let is_feasible = self.is_feasible(entry.origin(), entry.distance);
            let route = entry.route(cost(entry.link).unwrap_or(u16::MAX));
            (!route.is_proved, !is_feasible, route.metric, entry.link)
        };
        let mut ranked: Vec<_> = self.entries.iter().map(rank).collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(.., link)| link)
    }

    pub(crate) fn told(&self) -> &BTreeMap<LinkId, Told> {
        &self.told
    }

    pub(super) fn told_mut(&mut self) -> &mut BTreeMap<LinkId, Told> {
        &mut self.told
    }

    /// When something about it ends or is due.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let entries = self.entries.iter().map(|entry| entry.expires).min();
        let told = self.told.values().map(|told| told.deadline()).min();
        let avoided = self.avoided.values().filter(|avoided| !avoided.is_over);
        let avoided = avoided.map(|avoided| avoided.until).min();
        let moments = [entries, told, avoided, self.sources.next_expiry(), self.confirm_by];
        moments.into_iter().flatten().min()
    }

    /// Whether nothing is left to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.told.is_empty() && self.sources.len() == 0
    }
}

impl Entry {
    /// Whether the owner has named another life since the neighbour named this one first. (A connection to
    /// a former life that is not known to be dead says nothing any more.) A life that is proved is not
    /// ended by who may not be the owner.
    fn is_of_life_before(&self, owner: Option<&Self>) -> bool {
        let is_later = |owner: &Self| owner.router_id != self.router_id && owner.heard > self.named;
        self.proof.is_none() && owner.is_some_and(is_later)
    }

    /// Whose announcement it is.
    pub(crate) fn origin(&self) -> Origin {
        Origin::new(self.router_id, self.proof.is_some())
    }

    /// The route over a link of this cost.
    pub(crate) fn route(&self, cost: u16) -> Route {
        let (link, router_id, seqno) = (self.link, self.router_id, self.distance.seqno);
        let (metric, is_proved) = (self.distance.metric + Metric(cost), self.proof.is_some());
        Route { link, metric, seqno, router_id, is_proved }
    }
}

impl Told {
    pub(crate) fn new(metric: Metric, at: Time) -> Self {
        Self { metric, at, repeat_count: 0 }
    }

    pub(crate) fn is_retraction(&self) -> bool {
        self.metric.is_infinite()
    }

    /// Whether the neighbour has forgotten it by now, or knows that the route is gone.
    pub(crate) fn is_over(&self, now: Time) -> bool {
        self.end() <= now
    }

    /// Whether a retraction is to be said again.
    pub(crate) fn is_repeat_due(&self, now: Time) -> bool {
        self.next_repeat().is_some_and(|moment| moment <= now)
    }

    fn deadline(&self) -> Time {
        self.next_repeat().map_or_else(|| self.end(), |repeat| repeat.min(self.end()))
    }

    fn end(&self) -> Time {
        let route = ROUTE_HOLD_MAX + ROUTE_HOLD_MARGIN;
        self.at + if self.is_retraction() { RETRACTION_HOLD } else { route }
    }

    fn next_repeat(&self) -> Option<Time> {
        let pause = RETRACTION_REPEATS.get(self.repeat_count)?;
        self.is_retraction().then(|| self.at + *pause)
    }
}

/// What router ids of existing nodes say of their software.
const ZONE_EXISTING: [u8; 2] = [0, 0];

/// Whether a neighbour that was told the one metric should hear of the other.
pub(crate) fn is_news(told: Metric, now: Metric) -> bool {
    told.is_infinite() != now.is_infinite() || told.0.abs_diff(now.0) > SIGNIFICANT_CHANGE
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mycelium_wire::control::Seqno;
    use mycelium_wire::identity::ROUTER_ID_SIZE;

    use super::*;

    fn entry(link: u64, seqno: u16, metric: u16) -> Entry {
        Entry {
            link: LinkId(link),
            router_id: RouterId::from_bytes([1; ROUTER_ID_SIZE]),
            proof: None,
            distance: Distance { seqno: Seqno(seqno), metric: Metric(metric) },
            expires: Time(Duration::from_secs(1000)),
            named: Time::default(),
            heard: Time::default(),
            spare_since: None,
        }
    }

    fn destination(entries: &[Entry]) -> Destination {
        let mut destination = Destination::default();
        entries.iter().for_each(|entry| destination.insert(entry.clone()));
        destination
    }

    fn selected(destination: &mut Destination) -> Option<(u64, u16)> {
        destination.selected = destination.select(|link| Some(if link.0 == 9 { 1 } else { 20 }));
        destination.selected.map(|route| (route.link.0, route.metric.0))
    }

    #[test]
    fn the_shortest_is_chosen_and_kept_unless_much_is_gained() {
        let mut destination = destination(&[entry(1, 0, 50), entry(2, 0, 40)]);
        assert_eq!(selected(&mut destination), Some((2, 60)));
        destination.entry_mut(LinkId(1)).unwrap().distance.metric = Metric(30);
        assert_eq!(selected(&mut destination), Some((2, 60)), "10 is not much");
        destination.entry_mut(LinkId(1)).unwrap().distance.metric = Metric(29);
        assert_eq!(selected(&mut destination), Some((1, 49)));
        destination.insert(entry(9, 0, 45));
        assert_eq!(selected(&mut destination), Some((1, 49)));
        destination.entry_mut(LinkId(9)).unwrap().distance.metric = Metric(0);
        assert_eq!(selected(&mut destination), Some((9, 1)));
        destination.insert(entry(3, 0, 0));
        assert_eq!(selected(&mut destination), Some((9, 1)));
    }

    #[test]
    fn what_is_not_feasible_is_not_chosen() {
        let mut destination = destination(&[entry(1, 3, 50), entry(2, 3, 40)]);
        let distance = Distance { seqno: Seqno(3), metric: Metric(45) };
        destination.sources.announce(entry(1, 0, 0).origin(), distance, Time::default());
        assert_eq!(selected(&mut destination), Some((2, 60)));
        destination.remove(LinkId(2));
        assert_eq!(selected(&mut destination), None);
        destination.entry_mut(LinkId(1)).unwrap().distance.seqno = Seqno(4);
        assert_eq!(selected(&mut destination), Some((1, 70)));
    }

    #[test]
    fn who_loses_packets_is_avoided_for_longer_each_time() {
        let mut destination = destination(&[entry(1, 0, 50), entry(2, 0, 40)]);
        let at = |seconds| Time(Duration::from_secs(seconds));
        assert_eq!(selected(&mut destination), Some((2, 60)));
        destination.avoid(LinkId(2), at(0));
        assert_eq!(selected(&mut destination), Some((1, 70)));
        assert_eq!(destination.avoided.values().next().unwrap().until, at(60));
        // When all lose packets, the shortest is as good as any.
        destination.avoid(LinkId(1), at(1));
        destination.entry_mut(LinkId(1)).unwrap().distance.metric = Metric(80);
        assert_eq!(selected(&mut destination), Some((2, 60)));
        destination.entry_mut(LinkId(1)).unwrap().distance.metric = Metric(60);
        destination.forgive(at(61));
        assert_eq!(selected(&mut destination), Some((2, 60)));
        destination.avoid(LinkId(2), at(70));
        assert_eq!(selected(&mut destination), Some((1, 80)));
        destination.forgive(at(189));
        assert_eq!(selected(&mut destination), Some((1, 80)));
        destination.forgive(at(190));
        assert_eq!(selected(&mut destination), Some((2, 60)));
        for link in 10..30 {
            destination.avoid(LinkId(link), at(200));
        }
        assert!(destination.avoided.len() <= AVOIDED_MAX);
    }

    /// One that begins with these bytes, of an existing node or one of ours.
    fn life(number: u8, zone: u8) -> RouterId {
        let mut bytes = [1; ROUTER_ID_SIZE];
        (bytes[32], bytes[33], bytes[34]) = (0, zone, number);
        RouterId::from_bytes(bytes)
    }

    #[test]
    fn an_existing_owner_beside_us_says_which_of_its_lives_are_over() {
        let at = |seconds| Time(Duration::from_secs(seconds));
        let named = |link, life, metric, named, heard| Entry {
            router_id: life,
            named: at(named),
            heard: at(heard),
            ..entry(link, 0, metric)
        };
        for zone in [0, 1] {
            let (old, new) = (life(9, zone), life(4, zone));
            let all = [named(1, old, 40, 5, 30), named(2, new, 0, 20, 20)];
            let mut known = destination(&all);
            let distance = Distance { seqno: Seqno(0), metric: Metric(60) };
            known.sources.announce(Origin::new(old, false), distance, at(6));
            known.told_mut().insert(LinkId(7), Told::new(Metric(60), at(6)));
            // Its new life is a smaller one, so all who depend on the old one must have heard first.
            let expected = if zone == 0 { None } else { Some((1, 60)) };
            assert_eq!(selected(&mut known), expected, "zone {zone}");
            known.told_mut().clear();
            assert_eq!(selected(&mut known), Some((2, 20)));
        }
        let (old, new) = (life(9, 0), life(4, 0));
        // A connection to a former life, which says nothing any more.
        let mut known = destination(&[named(1, new, 40, 21, 30), named(2, old, 0, 5, 20)]);
        let distance = Distance { seqno: Seqno(0), metric: Metric(60) };
        known.sources.announce(Origin::new(new, false), distance, at(22));
        known.told_mut().insert(LinkId(7), Told::new(Metric(60), at(22)));
        known.selected = known.entry(LinkId(1)).map(|entry| entry.route(20));
        assert_eq!(selected(&mut known), Some((2, 20)), "a greater life that is beside us");
        // One that lost what was sent there, or can't be followed, ends nobody's route.
        known.avoid(LinkId(2), at(30));
        assert_eq!(selected(&mut known), Some((1, 60)));
        let all = [named(1, old, 40, 5, 30), named(2, new, 0, 20, 20)];
        let mut known = destination(&all);
        let announced = |seqno, metric| Distance { seqno: Seqno(seqno), metric: Metric(metric) };
        known.sources.announce(Origin::new(new, false), announced(1, 60), at(6));
        known.sources.announce(Origin::new(old, false), announced(0, 61), at(7));
        known.told_mut().insert(LinkId(7), Told::new(Metric(61), at(7)));
        assert_eq!(selected(&mut known), Some((1, 60)));
    }

    #[test]
    fn what_is_proved_is_chosen_before_what_is_shorter() {
        let proof = Some(Signature::from_bytes([5; 64]));
        let mut known = destination(&[entry(1, 9, 0), Entry { proof, ..entry(2, 3, 300) }]);
        assert_eq!(selected(&mut known), Some((2, 320)));
        known.insert(Entry { proof, ..entry(3, 3, 200) });
        assert_eq!(selected(&mut known), Some((3, 220)));
        // One that loses packets is worse than one that nobody vouches for.
        known.avoid(LinkId(3), Time::default());
        assert_eq!(selected(&mut known), Some((2, 320)));
        known.avoid(LinkId(2), Time::default());
        assert_eq!(selected(&mut known), Some((1, 20)));
        known.forgive(Time(AVOIDED_FOR_MIN));
        known.told_mut().insert(LinkId(7), Told::new(Metric(220), Time::default()));
        let told = Distance { seqno: Seqno(3), metric: Metric(220) };
        known.sources.announce(known.entry(LinkId(3)).unwrap().origin(), told, Time::default());
        known.remove(LinkId(2));
        known.remove(LinkId(3));
        assert_eq!(selected(&mut known), None, "others depend on what was proved");
        known.told_mut().clear();
        assert_eq!(selected(&mut known), Some((1, 20)));
    }

    #[test]
    fn a_metric_that_saturates_is_no_route() {
        let mut destination = destination(&[entry(1, 0, 65_520)]);
        assert_eq!(selected(&mut destination), None);
        destination.entry_mut(LinkId(1)).unwrap().distance.metric = Metric(65_500);
        assert_eq!(selected(&mut destination), Some((1, 65_520)));
    }

    #[test]
    fn a_retraction_is_repeated_and_then_known() {
        let at = |ms| Time(Duration::from_millis(ms));
        let mut told = Told::new(Metric::INFINITE, at(0));
        assert!(!told.is_repeat_due(at(999)) && told.is_repeat_due(at(1000)));
        told.repeat_count = 2;
        assert!(!told.is_repeat_due(at(5999)) && !told.is_over(at(5999)) && told.is_over(at(6000)));
        let told = Told::new(Metric(5), at(0));
        assert!(!told.is_repeat_due(at(6000)) && !told.is_over(at(1_050_000)));
    }
}
