//! Packets that wait for a route, bounded in every way.
//!
//! Whoever sends to a subnet that nobody asked for yet has its packets kept while neighbours are asked,
//! at most [`WAIT_MAX`]. Three kinds wait, and none can take another's room: what this node sends, what
//! others send through it, and what came from nodes whose key is unknown.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::data::table::Prefix;

/// Which way a packet was going.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A data packet of this node, whose body was not sealed yet.
    Own,
    /// A data packet for another node.
    Transit,
    /// A data packet for this node from one whose key is unknown.
    Arrived,
}

/// A packet that waits.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Held {
    pub(crate) kind: Kind,
    pub(crate) bytes: Box<[u8]>,
}

/// All that waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    by_prefix: HashMap<Prefix, Queue>,
    /// Bytes of each kind.
    sizes: [usize; KIND_COUNT],
}

#[derive(Debug)]
struct Queue {
    since: Instant,
    asked: Instant,
    packets: Vec<Held>,
    sizes: [usize; KIND_COUNT],
}

/// What to do after a packet was offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ask {
    /// The router should ask for the subnet.
    Yes,
    /// It was told.
    No,
}

const KIND_COUNT: usize = 3;
/// Longest wait: as long as neighbours are asked (`ROUTE_QUERY_TIMEOUT`, 15 s), and a little.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(16);
/// Packets that wait for one subnet.
const PACKET_COUNT_MAX: usize = 1000;
/// Bytes of one kind that wait for one subnet.
const SUBNET_SIZE_MAX: usize = 512 << 10;
/// Bytes of one kind that wait in all.
const SIZE_MAX: usize = 8 << 20;
/// Subnets that are waited for.
const SUBNET_COUNT_MAX: usize = 4096;
/// What a packet costs besides its bytes.
const PACKET_COST: usize = 64;
/// The router is reminded this often while packets come.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

impl Kind {
    fn index(self) -> usize {
        match self {
            Self::Own => 0,
            Self::Transit => 1,
            Self::Arrived => 2,
        }
    }
}

impl Waiting {
    /// Keeps a copy of a packet if there is room.
    pub(crate) fn push(&mut self, prefix: Prefix, kind: Kind, bytes: &[u8], now: Instant) -> Ask {
        let cost = bytes.len() + PACKET_COST;
        let is_full = self.by_prefix.len() >= SUBNET_COUNT_MAX;
        if is_full && !self.by_prefix.contains_key(&prefix) {
            return Ask::No;
        }
        let mut ask = Ask::No;
        let queue = self.by_prefix.entry(prefix).or_insert_with(|| {
            ask = Ask::Yes;
            Queue { since: now, asked: now, packets: Vec::new(), sizes: [0; KIND_COUNT] }
        });
        if now.saturating_duration_since(queue.asked) >= ASK_INTERVAL {
            queue.asked = now;
            ask = Ask::Yes;
        }
        let (of_subnet, of_all) = (&mut queue.sizes[kind.index()], &mut self.sizes[kind.index()]);
        let has_room = queue.packets.len() < PACKET_COUNT_MAX
            && *of_subnet + cost <= SUBNET_SIZE_MAX
            && *of_all + cost <= SIZE_MAX;
        if has_room {
            *of_subnet += cost;
            *of_all += cost;
            queue.packets.push(Held { kind, bytes: bytes.into() });
        }
        ask
    }

    /// Takes out what waits for a subnet, in order.
    pub(crate) fn take(&mut self, prefix: Prefix) -> Vec<Held> {
        let Some(queue) = self.by_prefix.remove(&prefix) else { return Vec::new() };
        for (all, size) in self.sizes.iter_mut().zip(queue.sizes) {
            *all -= size;
        }
        queue.packets
    }

    /// Subnets that were waited for too long.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<Prefix> {
        let is_overdue = |queue: &Queue| now.saturating_duration_since(queue.since) >= WAIT_MAX;
        self.by_prefix.iter().filter(|(_, queue)| is_overdue(queue)).map(|(at, _)| *at).collect()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_in_order_and_the_router_is_asked_once_a_second() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.push(Prefix(1), Kind::Own, b"a", now), Ask::Yes);
        assert_eq!(waiting.push(Prefix(1), Kind::Transit, b"b", now), Ask::No);
        assert_eq!(waiting.push(Prefix(1), Kind::Own, b"c", now + ASK_INTERVAL), Ask::Yes);
        let bytes: Vec<_> = waiting.take(Prefix(1)).into_iter().map(|held| held.bytes).collect();
        assert_eq!(bytes, [b"a".as_slice().into(), b"b".as_slice().into(), b"c".as_slice().into()]);
        assert!(waiting.is_empty() && waiting.sizes == [0; KIND_COUNT]);
    }

    #[test]
    fn no_flood_takes_more_than_its_share() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for number in 0..10_000 {
            for _ in 0..3 {
                waiting.push(Prefix(number), Kind::Transit, &[0; 1400], now);
            }
        }
        assert!(waiting.by_prefix.len() <= SUBNET_COUNT_MAX);
        assert!(waiting.sizes[Kind::Transit.index()] <= SIZE_MAX);
        waiting.push(Prefix(1), Kind::Own, &[0; 1400], now);
        assert!(waiting.take(Prefix(1)).iter().any(|held| held.kind == Kind::Own));
        for _ in 0..10_000 {
            waiting.push(Prefix(2), Kind::Own, &[0; 60], now);
        }
        assert!(waiting.take(Prefix(2)).len() <= PACKET_COUNT_MAX);
        assert_eq!(waiting.overdue(now + WAIT_MAX).len(), waiting.by_prefix.len());
    }
}
