//! Batches of data packets, cut into datagrams of the path's size, and joined again.
//!
//! A batch is cut without regard to where its packets end, so that all datagrams but the last are
//! full and of one size: the kernel sends and receives them as one (UDP GSO, GRO), and a path that is
//! narrower than a packet costs nothing but its headers. Each piece says where the first packet begins
//! in it. What lies across two datagrams is lost when one of them is; all others are delivered.
//!
//! The pieces of a batch have counters that follow each other. A [`Joiner`] keeps the open end of the
//! last one, and, when datagrams change places on the way, a bounded number of open ends of others.

use mycelium_wire::frame::{DATA_LENGTH_OFFSET, PACKET_SIZE_MAX};

use crate::link::outbound::packet_size;

/// Where the first packet begins in each piece of a batch.
#[derive(Debug)]
pub(crate) struct Cuts<'a> {
    batch: &'a [u8],
    piece_size: usize,
    at: usize,
    /// Where the packet begins that is the first one at or behind `at`.
    packet_at: usize,
}

impl<'a> Cuts<'a> {
    /// Of whole data packets that lie one behind the other.
    pub(crate) fn new(batch: &'a [u8], piece_size: usize) -> Self {
        Self { batch, piece_size: piece_size.max(1), at: 0, packet_at: 0 }
    }

    /// How much of the batch was cut.
    pub(crate) fn position(&self) -> usize {
        self.at
    }
}

/// How many bytes at the front of a batch are packets that end at or before `at`.
pub(crate) fn whole_before(batch: &[u8], at: usize) -> usize {
    let mut end = 0;
    while end < at {
        let next = end + packet_size(&batch[end..]);
        if next > at {
            break;
        }
        end = next;
    }
    end
}

impl<'a> Iterator for Cuts<'a> {
    type Item = (Option<usize>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.batch.len() {
            return None;
        }
        let end = self.batch.len().min(self.at + self.piece_size);
        while self.packet_at < self.at {
            self.packet_at += packet_size(&self.batch[self.packet_at..]);
        }
        // One that begins where the piece ends says that the one before it ends there.
        let first = (self.packet_at <= end).then(|| self.packet_at - self.at);
        let piece = &self.batch[self.at..end];
        self.at = end;
        Some((first, piece))
    }
}

/// Joins pieces.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    /// The end of the last piece, which waits for the next.
    open: Option<Run>,
    /// Other ends whose neighbours are missing.
    runs: Vec<Run>,
    newest: u64,
}

/// Bytes of pieces that follow each other and belong to one packet.
#[derive(Debug)]
struct Run {
    first: u64,
    next: u64,
    has_start: bool,
    has_end: bool,
    bytes: Vec<u8>,
}

/// Ends that are kept.
const RUN_COUNT_MAX: usize = 64;
/// Datagrams for which they are kept.
const LATE_MAX: u64 = 256;

impl Joiner {
    /// Takes a piece, which came once only, and appends the packets that are whole now.
    pub(crate) fn add(
        &mut self,
        counter: u64,
        first: Option<usize>,
        piece: &[u8],
        out: &mut Vec<u8>,
    ) {
        self.newest = self.newest.max(counter);
        let (head, rest) = piece.split_at(first.unwrap_or(piece.len()).min(piece.len()));
        if !head.is_empty() {
            let open = self.open.take_if(|open| open.next == counter);
            let run = match open {
                Some(mut open) => {
                    open.bytes.extend_from_slice(head);
                    (open.next, open.has_end) = (counter + 1, first.is_some());
                    open
                }
                None => Run {
                    first: counter,
                    next: counter + 1,
                    has_start: false,
                    has_end: first.is_some(),
                    bytes: head.to_vec(),
                },
            };
            self.place(run, out);
        }
        let whole = whole_size(rest);
        out.extend_from_slice(&rest[..whole]);
        if whole < rest.len() {
            let bytes = rest[whole..].to_vec();
            let run =
                Run { first: counter, next: counter + 1, has_start: true, has_end: false, bytes };
            self.place(run, out);
        }
    }

    /// Completes a packet with a run, or keeps it.
    fn place(&mut self, mut run: Run, out: &mut Vec<u8>) {
        if run.is_whole() {
            return run.deliver(out);
        }
        if run.bytes.len() > PACKET_SIZE_MAX {
            return;
        }
        self.runs.extend(self.open.take());
        let oldest = self.newest.saturating_sub(LATE_MAX);
        self.runs.retain(|kept| kept.next >= oldest);
        while let Some(at) = self.runs.iter().position(|kept| run.touches(kept)) {
            run = run.join(self.runs.swap_remove(at));
        }
        if run.is_whole() {
            run.deliver(out);
        } else if run.next == self.newest + 1 && !run.has_end {
            self.open = Some(run);
        } else {
            self.runs.push(run);
        }
        let excess = self.runs.len().saturating_sub(RUN_COUNT_MAX);
        self.runs.drain(..excess);
    }
}

impl Run {
    fn is_whole(&self) -> bool {
        self.has_start && self.has_end
    }

    fn precedes(&self, other: &Self) -> bool {
        self.next == other.first && !self.has_end && !other.has_start
    }

    fn touches(&self, other: &Self) -> bool {
        self.precedes(other) || other.precedes(self)
    }

    fn join(self, other: Self) -> Self {
        let (mut front, back) = if self.precedes(&other) { (self, other) } else { (other, self) };
        front.bytes.extend_from_slice(&back.bytes);
        Self { next: back.next, has_end: back.has_end, ..front }
    }

    /// Appends the packet if its size is what it says.
    fn deliver(self, out: &mut Vec<u8>) {
        if whole_size(&self.bytes) == self.bytes.len() {
            out.extend_from_slice(&self.bytes);
        }
    }
}

/// How many bytes at the front are whole data packets.
fn whole_size(bytes: &[u8]) -> usize {
    let mut end = 0;
    while bytes.len() - end >= DATA_LENGTH_OFFSET + 2 {
        let next = end + packet_size(&bytes[end..]);
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    end
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use mycelium_wire::frame::{self, DataHeader, Frame};
    use proptest::prelude::*;

    use super::*;

    fn packet(number: u8, size: u16) -> Vec<u8> {
        let address = Ipv6Addr::from([number; 16]);
        let header =
            DataHeader { hop_limit: number, source: address, destination: address, length: size };
        let mut packet = header.encode().to_vec();
        packet.resize(packet.len() + usize::from(size), number);
        packet
    }

    fn numbers(mut bytes: &[u8]) -> Vec<u8> {
        let mut numbers = Vec::new();
        while let Some((frame, size)) = frame::parse(bytes).unwrap() {
            let Frame::Data(data) = frame else { panic!("{frame:?}") };
            assert!(data.body.iter().all(|byte| *byte == data.header.hop_limit));
            numbers.push(data.header.hop_limit);
            bytes = &bytes[size..];
        }
        assert!(bytes.is_empty());
        numbers
    }

    #[test]
    fn a_lost_datagram_takes_only_the_packets_that_lie_in_it() {
        let batch: Vec<u8> = (0..10).flat_map(|number| packet(number, 60)).collect();
        let pieces: Vec<_> = Cuts::new(&batch, 150).collect();
        let (mut joiner, mut out) = (Joiner::default(), Vec::new());
        for (counter, (first, piece)) in (0..).zip(pieces) {
            // Bytes 300 to 449: packets 3 and 4, no other.
            if counter != 2 {
                joiner.add(counter, first, piece, &mut out);
            }
        }
        assert_eq!(numbers(&out), [0, 1, 2, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn what_never_completes_is_bounded_and_forgotten() {
        let (mut joiner, mut out) = (Joiner::default(), Vec::new());
        for counter in (0..10_000).rev() {
            joiner.add(2 * counter, Some(9), &[1; 9], &mut out);
        }
        assert!(joiner.runs.len() <= RUN_COUNT_MAX && out.is_empty());
        joiner.add(100_000, None, &[1; 9], &mut out);
        assert!(joiner.runs.is_empty());
        let large = vec![1; 9000];
        for counter in 100_001..100_100 {
            joiner.add(counter, None, &large, &mut out);
        }
        let size = joiner.open.as_ref().map_or(0, |open| open.bytes.len());
        assert!(size < 2 * PACKET_SIZE_MAX, "{size}");
    }

    proptest! {
        #[test]
        fn what_is_cut_is_joined_whatever_changes_places(
            batches in proptest::collection::vec(
                (proptest::collection::vec(0_u16..3000, 1..12), 50_usize..1500), 1..6),
            swaps in proptest::collection::vec((0_usize..200, 1_usize..8), 0..40),
        ) {
            let (mut pieces, mut expected) = (Vec::new(), Vec::new());
            for (number, (sizes, piece_size)) in (0_u8..).zip(&batches) {
                let batch: Vec<u8> = sizes.iter().flat_map(|size| packet(number, *size)).collect();
                expected.extend(std::iter::repeat_n(number, sizes.len()));
                pieces.extend(Cuts::new(&batch, *piece_size).map(|(at, piece)| (at, piece.to_vec())));
            }
            let mut order: Vec<usize> = (0..pieces.len()).collect();
            for (at, by) in swaps {
                if at + by < order.len() {
                    order.swap(at, at + by);
                }
            }
            let (mut joiner, mut out) = (Joiner::default(), Vec::new());
            for at in order {
                let (first, piece) = &pieces[at];
                joiner.add(at as u64, *first, piece, &mut out);
            }
            let mut received = numbers(&out);
            received.sort_unstable();
            prop_assert_eq!(received, expected);
        }

        #[test]
        fn nothing_that_arrives_is_too_strange(
            pieces in proptest::collection::vec(
                (0_u64..60, proptest::option::of(0_usize..40), proptest::collection::vec(any::<u8>(), 0..80)), 0..60),
        ) {
            let (mut joiner, mut out) = (Joiner::default(), Vec::new());
            for (counter, first, piece) in pieces {
                joiner.add(counter, first, &piece, &mut out);
            }
        }
    }
}
