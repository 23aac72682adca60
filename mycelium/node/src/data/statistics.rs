//! Who sent and received how much over this node, as the API shows it.
//!
//! Those who carry packets count a run of one flow at a time ([`Tally`]), so that the shared maps are
//! locked once for many packets. The maps are bounded: when one is full, new addresses are not counted.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Mutex;

use crate::api::types::{PacketCount, PacketStatistics};
use crate::data::lock;

/// Addresses that are counted.
const ADDRESS_COUNT_MAX: usize = 4096;

/// Counts of all addresses.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_source: HashMap<Ipv6Addr, Count>,
    by_destination: HashMap<Ipv6Addr, Count>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Count {
    packets: u64,
    bytes: u64,
}

/// A run of packets between the same addresses.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    flow: Option<(Ipv6Addr, Ipv6Addr)>,
    count: Count,
}

impl Tally {
    /// Counts a packet.
    pub(crate) fn add(
        &mut self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        size: usize,
        to: &Statistics,
    ) {
        if self.flow != Some((source, destination)) {
            self.flush(to);
            self.flow = Some((source, destination));
        }
        self.count.packets += 1;
        self.count.bytes += size as u64;
    }

    /// Adds what was counted to all.
    pub(crate) fn flush(&mut self, to: &Statistics) {
        let count = std::mem::take(&mut self.count);
        if let Some((source, destination)) = self.flow
            && count.packets > 0
        {
            let mut counts = lock(&to.counts);
            add(&mut counts.by_source, source, count);
            add(&mut counts.by_destination, destination, count);
        }
    }
}

impl Statistics {
    /// All counts, by address.
    pub(crate) fn shown(&self) -> PacketStatistics {
        let counts = lock(&self.counts);
        PacketStatistics {
            by_source: shown(&counts.by_source),
            by_destination: shown(&counts.by_destination),
        }
    }
}

fn add(counts: &mut HashMap<Ipv6Addr, Count>, address: Ipv6Addr, by: Count) {
    if counts.len() >= ADDRESS_COUNT_MAX && !counts.contains_key(&address) {
        return;
    }
    let count = counts.entry(address).or_default();
    count.packets += by.packets;
    count.bytes += by.bytes;
}

fn shown(counts: &HashMap<Ipv6Addr, Count>) -> Vec<PacketCount> {
    let mut shown: Vec<_> = counts
        .iter()
        .map(|(ip, count)| PacketCount {
            ip: *ip,
            packet_count: count.packets,
            byte_count: count.bytes,
        })
        .collect();
    shown.sort_by_key(|count| count.ip);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_by_both_ends_and_addresses_are_bounded() {
        let (all, mut tally) = (Statistics::default(), Tally::default());
        let [a, b, c] = [1_u128, 2, 3].map(Ipv6Addr::from);
        for (source, destination) in [(a, b), (a, b), (a, c)] {
            tally.add(source, destination, 100, &all);
        }
        tally.flush(&all);
        let shown = all.shown();
        let of = |counts: &[PacketCount]| -> Vec<_> {
            counts.iter().map(|count| (count.ip, count.packet_count, count.byte_count)).collect()
        };
        assert_eq!(of(&shown.by_source), [(a, 3, 300)]);
        assert_eq!(of(&shown.by_destination), [(b, 2, 200), (c, 1, 100)]);
        for number in 0..10_000_u128 {
            tally.add(Ipv6Addr::from(number), b, 1, &all);
        }
        tally.flush(&all);
        assert_eq!(all.shown().by_source.len(), ADDRESS_COUNT_MAX);
    }
}
