//! Data that waits on a link, in queues that take turns: FQ-CoDel (RFC 8290).
//!
//! Who speaks with whom is all that a link sees of what it carries, so each pair of addresses has a queue.
//! Queues take turns of [`QUANTUM`] bytes; one that was empty has its first turn before all others, so
//! that little traffic does not wait behind much. Each is watched by CoDel on its own ([`super::codel`]):
//! a pair that slows down is not punished for one that doesn't. When all of it is too much, the longest
//! queue loses the half that waited longest.
//!
//! Pairs share [`QUEUE_COUNT`] queues, by a hash that differs from link to link, so that nobody can choose
//! with whom.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use mycelium_wire::frame::{DATA_DESTINATION_OFFSET, DATA_HEADER_SIZE, DATA_SOURCE_OFFSET};

use crate::link::codel::Codel;
use crate::link::outbound::packet_size;

/// Data that waits on one link, in bytes.
pub(crate) const SIZE_MAX: usize = 2 << 20;
/// Queues of one link.
const QUEUE_COUNT: usize = 256;
/// What a queue may send in its turn: two full-size packets.
const QUANTUM: i64 = 3000;
/// A backlog so small is not worth a drop: a packet's size (RFC 8289 §4.4).
const BACKLOG_SIZE_MIN: usize = 1500;
/// Memory that is kept for the next packets when none wait.
const SIZE_KEPT: usize = 64 << 10;

/// All data that waits on one link.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    hasher: RandomState,
    /// By hash; made when it is first needed.
    queues: Vec<Option<Box<Queue>>>,
    /// Queues that were empty, and are in their first turn.
    fresh: VecDeque<usize>,
    /// The other queues that are not empty, in the order of their turns.
    rest: VecDeque<usize>,
    size: usize,
    dropped: u64,
    /// Of a queue that became empty, for one that won't be.
    spare: Option<Backlog>,
}

/// What pairs of one hash have sent.
#[derive(Debug, Default)]
struct Queue {
    backlog: Backlog,
    codel: Codel,
    /// What is left of its turn; below nothing if its last packet was larger.
    credit: i64,
    /// Whether it has a place in one of the lists, which an empty one may keep until its turn.
    is_listed: bool,
}

/// Packets, the oldest first.
#[derive(Debug, Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    packets: VecDeque<Packet>,
}

/// A packet that waits.
#[derive(Clone, Copy, Debug)]
struct Packet {
    size: usize,
    since: Instant,
}

impl FairQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Packets that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds whole data packets, which lie one behind the other.
    pub(crate) fn push(&mut self, mut packets: &[u8], now: Instant) {
        while !packets.is_empty() {
            let (run, behind) = packets.split_at(run_size(packets));
            self.push_run(run, now);
            packets = behind;
            while self.size > SIZE_MAX && self.thin_longest() {}
        }
    }

    /// Adds packets of one pair.
    fn push_run(&mut self, run: &[u8], now: Instant) {
        let number = self.number_of(run);
        if self.queues.is_empty() {
            self.queues.resize_with(QUEUE_COUNT, || None);
        }
        let queue = self.queues[number].get_or_insert_default();
        if !queue.is_listed {
            queue.backlog = self.spare.take().unwrap_or_default();
            (queue.credit, queue.is_listed) = (QUANTUM, true);
            self.fresh.push_back(number);
        }
        self.size += run.len();
        queue.backlog.bytes.extend(run);
        let mut rest = run;
        while !rest.is_empty() {
            let size = packet_size(rest);
            queue.backlog.packets.push_back(Packet { size, since: now });
            rest = &rest[size..];
        }
    }

    /// Moves packets to the end of `out` as long as it is not larger than `size_max` then; at least one if
    /// `out` is empty.
    pub(crate) fn take(&mut self, out: &mut Vec<u8>, size_max: usize, now: Instant) {
        while let Some(number) = self.fresh.front().or_else(|| self.rest.front()).copied() {
            let is_fresh = !self.fresh.is_empty();
            let Some(queue) = &mut self.queues[number] else { return };
            let Some(packet) = queue.backlog.packets.front().copied() else {
                self.end_turn(is_fresh);
                self.settle(number, is_fresh, now);
                continue;
            };
            if queue.credit <= 0 {
                queue.credit += QUANTUM;
                self.end_turn(is_fresh);
                self.rest.push_back(number);
                continue;
            }
            if out.len() + packet.size > size_max && !out.is_empty() {
                return;
            }
            let is_last = queue.backlog.bytes.len() <= BACKLOG_SIZE_MIN;
            if queue.codel.drops(packet.since, is_last, now) {
                queue.backlog.drop_first();
                self.dropped += 1;
            } else {
                queue.backlog.take_first(out);
                queue.credit -= i64::try_from(packet.size).unwrap_or(QUANTUM);
            }
            self.size -= packet.size;
        }
    }

    /// Takes the queue whose turn it is out of its list.
    fn end_turn(&mut self, is_fresh: bool) {
        let list = if is_fresh { &mut self.fresh } else { &mut self.rest };
        list.pop_front();
    }

    /// A queue is empty. One that was fresh goes through the list of the others once, lest it be fresh
    /// again with the next packet (RFC 8290 §4.2); after that it is forgotten, unless it was losing packets
    /// until lately.
    fn settle(&mut self, number: usize, is_fresh: bool, now: Instant) {
        if is_fresh && !self.rest.is_empty() {
            self.rest.push_back(number);
            return;
        }
        let Some(queue) = &mut self.queues[number] else { return };
        let mut backlog = std::mem::take(&mut queue.backlog);
        queue.is_listed = false;
        if queue.codel.is_calm(now) {
            self.queues[number] = None;
        }
        if self.spare.is_none() {
            backlog.bytes.shrink_to(SIZE_KEPT);
            backlog.packets.shrink_to(SIZE_KEPT / DATA_HEADER_SIZE);
            self.spare = Some(backlog);
        }
    }

    /// Drops the older half of the longest queue. Whether there was anything.
    fn thin_longest(&mut self) -> bool {
        let all = self.queues.iter_mut().flatten();
        let Some(longest) = all.max_by_key(|queue| queue.backlog.bytes.len()) else { return false };
        let before = longest.backlog.bytes.len();
        while longest.backlog.bytes.len() > before / 2 {
            longest.backlog.drop_first();
            self.dropped += 1;
        }
        self.size -= before - longest.backlog.bytes.len();
        before > 0
    }

    fn number_of(&self, packet: &[u8]) -> usize {
        let hash = self.hasher.hash_one(pair(packet));
        usize::try_from(hash % QUEUE_COUNT as u64).unwrap_or(0)
    }
}

impl Backlog {
    fn drop_first(&mut self) {
        if let Some(packet) = self.packets.pop_front() {
            self.bytes.drain(..packet.size);
        }
    }

    fn take_first(&mut self, out: &mut Vec<u8>) {
        let Some(packet) = self.packets.pop_front() else { return };
        let (front, back) = self.bytes.as_slices();
        let cut = front.len().min(packet.size);
        out.extend_from_slice(&front[..cut]);
        out.extend_from_slice(&back[..packet.size - cut]);
        self.bytes.drain(..packet.size);
    }
}

/// Source and destination of a data packet.
fn pair(packet: &[u8]) -> &[u8] {
    &packet[DATA_SOURCE_OFFSET..DATA_HEADER_SIZE]
}

/// Both addresses, and nothing else, are at the end of the header.
const _: () = assert!(DATA_DESTINATION_OFFSET == DATA_SOURCE_OFFSET + 16);
const _: () = assert!(DATA_HEADER_SIZE == DATA_DESTINATION_OFFSET + 16);

/// Bytes of the packets at the front that have the same addresses.
fn run_size(packets: &[u8]) -> usize {
    let mut size = packet_size(packets);
    while size < packets.len() && pair(&packets[size..]) == pair(packets) {
        size += packet_size(&packets[size..]);
    }
    size
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use mycelium_wire::frame::DataHeader;

    use super::*;

    /// From host `from`, to the same one always; `size` bytes in all.
    fn packet(from: u8, size: u16) -> Vec<u8> {
        let source = Ipv6Addr::from([from; 16]);
        let header_size = u16::try_from(DATA_HEADER_SIZE).unwrap();
        let (destination, length) = (Ipv6Addr::from([9; 16]), size - header_size);
        let mut packet =
            DataHeader { hop_limit: 64, source, destination, length }.encode().to_vec();
        packet.resize(usize::from(size), from);
        packet
    }

    /// Two hosts whose packets are in different queues.
    fn strangers(queue: &FairQueue) -> (u8, u8) {
        let number = |from| queue.number_of(&packet(from, 100));
        let other = (2..=255).find(|from| number(*from) != number(1));
        (1, other.unwrap())
    }

    /// Sizes of what is taken, by source.
    fn taken(queue: &mut FairQueue, size_max: usize, now: Instant) -> Vec<(u8, usize)> {
        let mut out = Vec::new();
        queue.take(&mut out, size_max, now);
        let (mut rest, mut found) = (&out[..], Vec::new());
        while !rest.is_empty() {
            let size = packet_size(rest);
            found.push((rest[DATA_SOURCE_OFFSET], size));
            rest = &rest[size..];
        }
        found
    }

    #[test]
    fn little_traffic_passes_much() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        let (bulk, ping) = strangers(&queue);
        queue.push(&packet(bulk, 1472).repeat(200), now);
        assert_eq!(taken(&mut queue, 6000, now).len(), 4);
        queue.push(&packet(ping, 100), now);
        assert_eq!(taken(&mut queue, 1500, now), [(ping, 100)]);
    }

    #[test]
    fn who_sends_more_gets_no_more() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        let (greedy, modest) = strangers(&queue);
        queue.push(&packet(greedy, 1472).repeat(300), now);
        queue.push(&packet(modest, 1472).repeat(40), now);
        queue.push(&packet(greedy, 1472).repeat(300), now);
        let all = taken(&mut queue, 80 * 1472, now);
        let of_modest = all.iter().filter(|(from, _)| *from == modest).count();
        assert!((36..=40).contains(&of_modest), "{of_modest} of {}", all.len());
    }

    #[test]
    fn a_sparse_queue_cannot_stay_fresh() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        let (bulk, clever) = strangers(&queue);
        queue.push(&packet(bulk, 1472).repeat(200), now);
        let mut sizes = [0; 2];
        for _ in 0..100 {
            // Always one at a time, so that its queue is always found empty.
            queue.push(&packet(clever, 1472), now);
            for (from, size) in taken(&mut queue, 2944, now) {
                sizes[usize::from(from == clever)] += size;
            }
        }
        assert!(sizes[0] * 10 >= sizes[1] * 9, "{sizes:?}");
    }

    #[test]
    fn the_longest_queue_makes_room() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        let (flood, modest) = strangers(&queue);
        queue.push(&packet(modest, 1000).repeat(100), now);
        for _ in 0..100 {
            queue.push(&packet(flood, 1000).repeat(100), now);
            assert!(queue.size <= SIZE_MAX);
        }
        assert!(queue.dropped() > 5000);
        let all = taken(&mut queue, usize::MAX, now);
        assert_eq!(all.iter().filter(|(from, _)| *from == modest).count(), 100);
        let kept = all.iter().map(|(_, size)| size).sum::<usize>();
        assert!((SIZE_MAX / 3..=SIZE_MAX).contains(&kept));
        assert_eq!(kept + usize::try_from(queue.dropped()).unwrap() * 1000, 10_100_000);
        assert!(queue.is_empty());
    }

    #[test]
    fn only_who_waits_too_long_loses_packets() {
        let (mut queue, start) = (FairQueue::default(), Instant::now());
        let (bulk, other) = strangers(&queue);
        let mut others = 0;
        for at in 0..3000 {
            let now = start + Duration::from_millis(at);
            queue.push(&packet(bulk, 1472).repeat(2), now);
            queue.push(&packet(other, 200), now);
            let all = taken(&mut queue, 1700, now);
            others += all.iter().filter(|(from, _)| *from == other).count();
        }
        assert!(others >= 2990, "{others}");
        assert!(queue.dropped() > 100, "{}", queue.dropped());
    }

    #[test]
    fn what_is_empty_keeps_little() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for round in 0..20 {
            for from in 0..=255 {
                queue.push(&packet(from, 1472).repeat(5), now);
            }
            taken(&mut queue, usize::MAX, now + Duration::from_millis(round));
        }
        assert!(queue.is_empty() && queue.queues.iter().all(Option::is_none));
        assert!(queue.spare.is_some_and(|spare| spare.bytes.capacity() <= 2 * SIZE_KEPT));
        assert!(queue.fresh.is_empty() && queue.rest.is_empty());
    }
}
