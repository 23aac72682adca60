//! Batches of data packets, cut into datagrams of the path's size, and joined again.
//!
//! A batch is cut without regard to where its packets end, so that all datagrams but the last are
//! full and of one size: the kernel sends and receives them as one (UDP GSO, GRO), and a path that is
//! narrower than a packet costs nothing but its headers. Each piece says where the first packet begins
//! in it. What lies across two datagrams is lost when one of them is; all others are delivered.
//!
//! The pieces of a batch have counters that follow each other. A [`Joiner`] appends them to each other as
//! they come, and keeps, when datagrams change places on the way, a bounded number of open ends.

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
///
/// What it appends to is a stream: whole packets, and at its end the front of one whose rest is still to
/// come. As long as counters follow each other, a piece is appended as it is, in one copy.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    /// The packet at the end of the stream that is not whole yet.
    open: Option<Open>,
    /// Pieces of packets whose neighbours are missing.
    runs: Vec<Run>,
    newest: u64,
}

/// The end of a stream.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Where its packet begins in the stream.
    at: usize,
    /// The counter of the piece that continues it.
    next: u64,
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
    /// Takes a piece, which came once only, and appends the packets that are whole now to `stream`.
    pub(crate) fn add(
        &mut self,
        counter: u64,
        first: Option<usize>,
        piece: &[u8],
        stream: &mut Vec<u8>,
    ) {
        self.newest = self.newest.max(counter);
        let first = first.map(|first| first.min(piece.len()));
        if let Some(open) = self.open.take() {
            if open.next == counter {
                return self.follow(open, first, piece, stream);
            }
            // Something is missing, or comes late. What was begun may still be completed.
            let bytes = stream.split_off(open.at);
            let (first, next) = (open.next - 1, open.next);
            self.place(Run { first, next, has_start: true, has_end: false, bytes }, stream);
        }
        let (head, rest) = piece.split_at(first.unwrap_or(piece.len()));
        if !head.is_empty() {
            let (has_end, bytes) = (first.is_some(), head.to_vec());
            let run = Run { first: counter, next: counter + 1, has_start: false, has_end, bytes };
            self.place(run, stream);
        }
        if counter == self.newest {
            return self.begin(counter, rest, stream);
        }
        let whole = whole_size(rest);
        stream.extend_from_slice(&rest[..whole]);
        if whole < rest.len() {
            let bytes = rest[whole..].to_vec();
            let run =
                Run { first: counter, next: counter + 1, has_start: true, has_end: false, bytes };
            self.place(run, stream);
        }
    }

    /// How much of a stream is whole packets.
    pub(crate) fn whole_size(&self, stream: &[u8]) -> usize {
        self.open.map_or(stream.len(), |open| open.at)
    }

    /// Removes the whole packets from a stream.
    pub(crate) fn taken(&mut self, stream: &mut Vec<u8>) {
        stream.drain(..self.whole_size(stream));
        if let Some(open) = &mut self.open {
            open.at = 0;
        }
    }

    /// Takes the piece that continues the open packet.
    fn follow(&mut self, open: Open, first: Option<usize>, piece: &[u8], stream: &mut Vec<u8>) {
        let begun = stream.len();
        stream.extend_from_slice(piece);
        let whole = whole_size(&stream[open.at..]);
        let end = match first {
            Some(first) => begun + first,
            None => stream.len(),
        };
        // What the piece says of where packets begin must be what the packet says of its size.
        let is_right = match first {
            Some(_) => whole > 0 && open.at + packet_size(&stream[open.at..]) == end,
            None => whole == 0,
        };
        if !is_right {
            stream.truncate(open.at);
            if let Some(first) = first {
                self.begin(open.next, &piece[first..], stream);
            }
            return;
        }
        let at = open.at + whole;
        self.open = (at < stream.len()).then_some(Open { at, next: open.next + 1 });
    }

    /// Takes the newest piece from where its first packet begins.
    fn begin(&mut self, counter: u64, rest: &[u8], stream: &mut Vec<u8>) {
        let at = stream.len() + whole_size(rest);
        stream.extend_from_slice(rest);
        self.open = (at < stream.len()).then_some(Open { at, next: counter + 1 });
    }

    /// Completes a packet with a run, or keeps it. Nothing is open.
    fn place(&mut self, mut run: Run, stream: &mut Vec<u8>) {
        let oldest = self.newest.saturating_sub(LATE_MAX);
        self.runs.retain(|kept| kept.next >= oldest);
        while let Some(at) = self.runs.iter().position(|kept| run.touches(kept)) {
            run = run.join(self.runs.swap_remove(at));
        }
        if run.is_whole() {
            return run.deliver(stream);
        }
        if run.bytes.len() > PACKET_SIZE_MAX {
            return;
        }
        let excess = (self.runs.len() + 1).saturating_sub(RUN_COUNT_MAX);
        self.runs.drain(..excess);
        self.runs.push(run);
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
            // Without bytes 300 to 449: packets 3 and 4, no other.
            if counter != 2 {
                joiner.add(counter, first, piece, &mut out);
            }
        }
        assert_eq!(joiner.whole_size(&out), out.len());
        assert_eq!(numbers(&out), [0, 1, 2, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_stream_keeps_the_front_of_a_packet_until_its_rest_comes() {
        let batch: Vec<u8> = (0..4).flat_map(|number| packet(number, 60)).collect();
        let pieces: Vec<_> = Cuts::new(&batch, 150).collect();
        let (mut joiner, mut stream, mut taken) = (Joiner::default(), Vec::new(), Vec::new());
        for (counter, (first, piece)) in (0..).zip(pieces) {
            joiner.add(counter, first, piece, &mut stream);
            taken.extend(numbers(&stream[..joiner.whole_size(&stream)]));
            joiner.taken(&mut stream);
            assert!(stream.len() < 100 && joiner.whole_size(&stream) == 0, "{}", stream.len());
        }
        assert_eq!((taken, stream.len()), (vec![0, 1, 2, 3], 0));
    }

    #[test]
    fn a_piece_that_contradicts_the_packet_before_it_costs_that_packet_only() {
        let (front, whole) = (packet(1, 100), packet(2, 10));
        for wrong in [Some(5), Some(0), None] {
            let (mut joiner, mut out) = (Joiner::default(), Vec::new());
            joiner.add(0, Some(0), &front[..90], &mut out);
            let piece = match wrong {
                Some(head) => [&front[..head], &whole].concat(),
                None => front[90..].to_vec(),
            };
            joiner.add(1, wrong, &piece, &mut out);
            let expected: &[u8] = if wrong.is_some() { &[2] } else { &[] };
            assert_eq!(numbers(&out), expected, "{wrong:?}");
        }
    }

    #[test]
    fn what_never_completes_is_bounded_and_forgotten() {
        let (mut joiner, mut out) = (Joiner::default(), Vec::new());
        for counter in (0..10_000).rev() {
            joiner.add(2 * counter, Some(9), &[1; 9], &mut out);
        }
        assert!(joiner.runs.len() <= RUN_COUNT_MAX && out.is_empty());
        joiner.add(100_000, None, &[1; 9], &mut out);
        assert_eq!(joiner.runs.len(), 1);
        let large = vec![1; 9000];
        for counter in 100_001..100_100 {
            joiner.add(counter, None, &large, &mut out);
            let size: usize = joiner.runs.iter().map(|run| run.bytes.len()).sum();
            assert!(size <= PACKET_SIZE_MAX + large.len() && out.is_empty(), "{size}");
        }
        // One that says that it is as large as packets get, and never ends.
        let mut endless = packet(7, u16::MAX)[..9000].to_vec();
        joiner.add(200_000, Some(0), &endless, &mut out);
        for counter in 200_001..200_100 {
            endless.fill(0);
            joiner.add(counter, None, &endless, &mut out);
            assert!(out.len() <= PACKET_SIZE_MAX, "{}", out.len());
        }
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
            let (mut joiner, mut out, mut received) = (Joiner::default(), Vec::new(), Vec::new());
            for at in order {
                let (first, piece) = &pieces[at];
                joiner.add(at as u64, *first, piece, &mut out);
                let whole = joiner.whole_size(&out);
                received.extend(numbers(&out[..whole]));
                joiner.taken(&mut out);
            }
            prop_assert!(out.is_empty());
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
                prop_assert!(joiner.whole_size(&out) <= out.len());
            }
        }
    }
}
