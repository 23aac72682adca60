//! The table: destinations by subnet, with the indexes that keep work and memory bounded.
//!
//! # What gives way when it is full
//!
//! A neighbour's routes are counted apart from others', and there is a bound for one neighbour and one
//! for all. A route is *kept* if its destination is in use or somebody asked for it; the others are
//! *spare*. New routes that nobody asked for never displace anything. One that was asked for
//! displaces the oldest spare route of the same neighbour or, when the whole table is full, of the
//! neighbour with the most spare routes. So a flood of made-up subnets, for which keys are cheap,
//! fills its sender's share and no more, and never displaces a route in use. What was refused is
//! found again when it is asked for.
//!
//! Feasibility distances outlive routes. When there are too many of them, those of the destination
//! that has been without a route for the longest time are forgotten first.

mod destination;

use std::collections::{BTreeMap, BTreeSet};

use mycelium_wire::identity::{RouterId, Subnet};
use mycelium_wire::xeddsa::Signature;

pub(crate) use destination::{Destination, Entry, Told, is_news};

use crate::event::LinkId;
use crate::limits::{ROUTES_MAX, ROUTES_PER_LINK_MAX, SOURCES_MAX, TOLD_MAX};
use crate::source::{Distance, Origin};
use crate::time::Time;

/// Bounds of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) routes: usize,
    pub(crate) routes_per_link: usize,
    pub(crate) sources: usize,
    pub(crate) told: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            routes: ROUTES_MAX,
            routes_per_link: ROUTES_PER_LINK_MAX,
            sources: SOURCES_MAX,
            told: TOLD_MAX,
        }
    }
}

/// Destinations, and which link has what of them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    bounds: Bounds,
    destinations: BTreeMap<Subnet, Destination>,
    shares: BTreeMap<LinkId, Share>,
    /// Links with spare routes, by their number.
    spare_counts: BTreeSet<(usize, LinkId)>,
    /// Destinations without routes, the oldest first.
    idle: BTreeSet<(Time, Subnet)>,
    route_count: usize,
    source_count: usize,
    told_count: usize,
}

/// The routes of one link.
#[derive(Debug, Default)]
struct Share {
    all: BTreeSet<Subnet>,
    spare: BTreeSet<(Time, Subnet)>,
}

/// What a neighbour announces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) link: LinkId,
    pub(crate) subnet: Subnet,
    pub(crate) router_id: RouterId,
    /// The owner's, and checked.
    pub(crate) proof: Option<Signature>,
    pub(crate) distance: Distance,
    pub(crate) expires: Time,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is in the table.
    Taken,
    /// It is in the table in place of another destination's.
    TakenFor(Subnet),
    /// There is no room.
    Refused,
}

impl Table {
    pub(crate) fn get(&self, subnet: &Subnet) -> Option<&Destination> {
        self.destinations.get(subnet)
    }

    pub(crate) fn get_mut(&mut self, subnet: &Subnet) -> Option<&mut Destination> {
        self.destinations.get_mut(subnet)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Subnet, &Destination)> {
        self.destinations.iter()
    }

    /// Subnets to which a link has routes.
    pub(crate) fn subnets_of(&self, link: LinkId) -> Vec<Subnet> {
        self.shares.get(&link).map_or_else(Vec::new, |share| share.all.iter().copied().collect())
    }

    pub(crate) fn route_count_of(&self, link: LinkId) -> usize {
        self.shares.get(&link).map_or(0, |share| share.all.len())
    }

    /// Takes an offer, if there is room; `is_wanted` if somebody asked for it.
    pub(crate) fn offer(&mut self, offer: Offer, is_wanted: bool, now: Time) -> Admission {
        let Offer { link, subnet, router_id, proof, distance, expires } = offer;
        if let Some(entry) = self.get_mut(&subnet).and_then(|d| d.entry_mut(link)) {
            if entry.router_id != router_id {
                (entry.router_id, entry.named) = (router_id, now);
            }
            (entry.distance, entry.expires, entry.heard) = (distance, expires, now);
            entry.proof = proof;
            return Admission::Taken;
        }
        let is_kept = is_wanted || self.get(&subnet).is_some_and(|d| d.is_kept);
        let Ok(victim) = self.make_room(link, is_kept, now) else { return Admission::Refused };
        let destination = self.destinations.entry(subnet).or_default();
        if let Some(since) = destination.idle_since.take() {
            self.idle.remove(&(since, subnet));
        }
        let spare_since = (!is_kept).then_some(now);
        let (named, heard) = (now, now);
        let entry = Entry { link, router_id, proof, distance, expires, named, heard, spare_since };
        destination.insert(entry);
        self.route_count += 1;
        self.with_share(link, |share| {
            share.all.insert(subnet);
            share.spare.extend(spare_since.map(|since| (since, subnet)));
        });
        if is_kept {
            self.keep(subnet);
        }
        victim.map_or(Admission::Taken, Admission::TakenFor)
    }

    /// Finds room for one more route of a link, by evicting another if that is fair.
    fn make_room(&mut self, link: LinkId, is_kept: bool, now: Time) -> Result<Option<Subnet>, ()> {
        let of_link = self.route_count_of(link);
        let giver = if of_link >= self.bounds.routes_per_link {
            link
        } else if self.route_count >= self.bounds.routes {
            self.spare_counts.last().ok_or(())?.1
        } else {
            return Ok(None);
        };
        let is_fair = is_kept || self.route_count_of(giver) > of_link + 1;
        let spare = self.shares.get(&giver).and_then(|share| share.spare.first());
        let (true, Some(&(_, subnet))) = (is_fair, spare) else { return Err(()) };
        self.remove(subnet, giver, now);
        Ok(Some(subnet))
    }

    /// Takes a link's route out.
    pub(crate) fn remove(&mut self, subnet: Subnet, link: LinkId, now: Time) -> Option<Entry> {
        let destination = self.destinations.get_mut(&subnet)?;
        let entry = destination.remove(link)?;
        if destination.entries().is_empty() {
            destination.idle_since = Some(now);
            self.idle.insert((now, subnet));
        }
        self.route_count -= 1;
        self.with_share(link, |share| {
            share.all.remove(&subnet);
            if let Some(since) = entry.spare_since {
                share.spare.remove(&(since, subnet));
            }
        });
        Some(entry)
    }

    /// Keeps the routes to a destination from being evicted.
    pub(crate) fn keep(&mut self, subnet: Subnet) {
        let Some(destination) = self.destinations.get_mut(&subnet) else { return };
        destination.is_kept = true;
        let spare = destination.entries_mut().filter_map(|e| Some((e.link, e.spare_since.take()?)));
        for (link, since) in spare.collect::<Vec<_>>() {
            self.with_share(link, |share| {
                share.spare.remove(&(since, subnet));
            });
        }
    }

    /// Lets the routes to a destination be evicted again.
    pub(crate) fn release(&mut self, subnet: Subnet, now: Time) {
        let Some(destination) = self.destinations.get_mut(&subnet) else { return };
        if !std::mem::take(&mut destination.is_kept) {
            return;
        }
        let links: Vec<_> = destination
            .entries_mut()
            .map(|entry| {
                entry.spare_since = Some(now);
                entry.link
            })
            .collect();
        for link in links {
            self.with_share(link, |share| {
                share.spare.insert((now, subnet));
            });
        }
    }

    /// Changes a link's share, and its place among the others.
    fn with_share(&mut self, link: LinkId, change: impl FnOnce(&mut Share)) {
        let share = self.shares.entry(link).or_default();
        let before = share.spare.len();
        change(share);
        let after = share.spare.len();
        if share.all.is_empty() {
            self.shares.remove(&link);
        }
        if before != after {
            self.spare_counts.remove(&(before, link));
            if after > 0 {
                self.spare_counts.insert((after, link));
            }
        }
    }

    /// Remembers that a neighbour is being told of a route. Whether there is room to remember it:
    /// what can't be remembered must not be said.
    pub(crate) fn announce(
        &mut self,
        subnet: Subnet,
        origin: Origin,
        distance: Distance,
        now: Time,
    ) -> bool {
        if self.source_count >= self.bounds.sources && !self.forget_oldest_sources() {
            return false;
        }
        let Some(destination) = self.destinations.get_mut(&subnet) else { return false };
        let before = destination.sources.len();
        destination.sources.announce(origin, distance, now);
        self.source_count = self.source_count + destination.sources.len() - before;
        true
    }

    fn forget_oldest_sources(&mut self) -> bool {
        let oldest = self.idle.iter().map(|(_, subnet)| *subnet).find(|subnet| {
            let destination = self.destinations.get(subnet);
            destination.is_some_and(|d| d.sources.len() > 0 && d.told().is_empty())
        });
        let Some(subnet) = oldest else { return false };
        if let Some(destination) = self.destinations.get_mut(&subnet) {
            self.source_count -= destination.sources.clear();
        }
        true
    }

    /// Forgets a destination's old distances: how many.
    pub(crate) fn expire_sources(&mut self, subnet: Subnet, now: Time) -> usize {
        let expired = self.destinations.get_mut(&subnet).map_or(0, |d| d.sources.expire(now));
        self.source_count -= expired;
        expired
    }

    /// Whether a neighbour may be told of one more subnet: links share the room evenly.
    pub(crate) fn may_tell(&self, told_count: usize, link_count: usize) -> bool {
        let share = self.bounds.told / link_count.max(1);
        told_count < share.min(self.bounds.routes_per_link) && self.told_count < self.bounds.told
    }

    pub(crate) fn set_told(&mut self, subnet: Subnet, link: LinkId, told: Told) {
        if let Some(destination) = self.destinations.get_mut(&subnet)
            && destination.told_mut().insert(link, told).is_none()
        {
            self.told_count += 1;
        }
    }

    pub(crate) fn remove_told(&mut self, subnet: Subnet, link: LinkId) {
        if let Some(destination) = self.destinations.get_mut(&subnet)
            && destination.told_mut().remove(&link).is_some()
        {
            self.told_count -= 1;
        }
    }

    /// Forgets a destination of which nothing is left. Whether it did.
    pub(crate) fn remove_if_empty(&mut self, subnet: Subnet) -> bool {
        let is_empty = self.destinations.get(&subnet).is_some_and(Destination::is_empty);
        if is_empty
            && let Some(destination) = self.destinations.remove(&subnet)
            && let Some(since) = destination.idle_since
        {
            self.idle.remove(&(since, subnet));
        }
        is_empty
    }

    /// Counts are within bounds, and right; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let all = self.destinations.values();
        let routes: usize = all.clone().map(|d| d.entries().len()).sum();
        let sources: usize = all.clone().map(|d| d.sources.len()).sum();
        let told: usize = all.map(|d| d.told().len()).sum();
        assert_eq!((routes, sources), (self.route_count, self.source_count));
        assert_eq!(told, self.told_count);
        assert!(routes <= self.bounds.routes && sources <= self.bounds.sources);
        assert!(told <= self.bounds.told);
        let shared: usize = self.shares.values().map(|share| share.all.len()).sum();
        assert_eq!(shared, routes);
        assert!(self.shares.values().all(|s| s.all.len() <= self.bounds.routes_per_link));
        let idle = self.destinations.values().filter(|d| d.entries().is_empty()).count();
        assert_eq!(idle, self.idle.len());
    }
}

#[cfg(test)]
mod tests;
