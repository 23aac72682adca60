//! What waits to leave on a stream: at most a piece of what was begun, then control packets, then data.
//!
//! Data is written straight to the socket by whoever has it, as long as the socket takes it. The rest
//! waits here, bounded, and is dropped when it waits too long ([`super::codel`]). What is on a stream
//! must be whole packets, so the rest of a packet whose front was sent is never dropped.
//!
//! ```text
//!  send_data ──> nothing waits? ──yes──> socket ──rest of a packet──> staged ─┐
//!                     └─no──> data ──┐                                         ├─> socket, when writable
//!  send_control ──────────> control ─┴──────────────────────────────> staged ─┘
//! ```

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use mycelium_wire::frame::{DATA_HEADER_SIZE, DATA_LENGTH_OFFSET};

use crate::link::codel::Codel;

/// Data that waits on one link, in bytes; what comes on top is dropped.
const DATA_SIZE_MAX: usize = 2 << 20;
/// Control packets that wait on one link, in bytes. A neighbour that leaves more than this unread is
/// no neighbour.
const CONTROL_SIZE_MAX: usize = 1 << 20;
/// How much is made ready for one write.
const STAGED_SIZE: usize = 64 << 10;
/// Memory that an empty queue keeps.
const SIZE_KEPT: usize = 64 << 10;
/// A backlog so small is not worth a drop: a packet's size (RFC 8289 §4.4).
const BACKLOG_SIZE_MIN: usize = 1500;

/// Writes bytes without waiting, as many as it can; `WouldBlock` when none.
pub(crate) trait Transmit {
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes what it took but holds back. Whether nothing is held back any more.
    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// The packets of one link that wait.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    staged: Vec<u8>,
    staged_sent: usize,
    control: Vec<u8>,
    data: VecDeque<u8>,
    waiting: VecDeque<Packet>,
    codel: Codel,
    dropped: u64,
}

/// A data packet that waits.
#[derive(Clone, Copy, Debug)]
struct Packet {
    size: usize,
    since: Instant,
}

/// What became of packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sent {
    /// All are with the kernel, or dropped.
    Done,
    /// Some wait until the socket is writable.
    Waiting,
}

impl Outbound {
    /// Sends whole data packets, which lie one behind the other.
    pub(crate) fn send_data(
        &mut self,
        socket: &impl Transmit,
        packets: &[u8],
        now: Instant,
    ) -> io::Result<Sent> {
        if !self.is_empty() {
            self.push(packets, now);
            return Ok(Sent::Waiting);
        }
        let sent = transmit(socket, packets)?;
        if sent == packets.len() {
            return flushed(socket);
        }
        // The rest of the packet that was cut must follow; those after it may wait or go.
        let mut end = 0;
        while end < sent {
            end += packet_size(&packets[end..]);
        }
        self.stage(&packets[sent..end]);
        self.push(&packets[end..], now);
        Ok(Sent::Waiting)
    }

    /// Sends a control packet, before all data that waits.
    pub(crate) fn send_control(
        &mut self,
        socket: &impl Transmit,
        packet: &[u8],
    ) -> io::Result<Sent> {
        if self.is_empty() {
            let sent = transmit(socket, packet)?;
            if sent == packet.len() {
                return flushed(socket);
            }
            self.stage(&packet[sent..]);
            return Ok(Sent::Waiting);
        }
        if self.control.len() + packet.len() > CONTROL_SIZE_MAX {
            return Err(io::Error::other("the peer reads no control packets"));
        }
        self.control.extend_from_slice(packet);
        Ok(Sent::Waiting)
    }

    /// Sends what waits, until the socket takes no more.
    pub(crate) fn drain(&mut self, socket: &impl Transmit, now: Instant) -> io::Result<Sent> {
        loop {
            if self.staged_sent == self.staged.len() {
                self.fill(now);
                if self.staged.is_empty() {
                    return flushed(socket);
                }
            }
            let sent = transmit(socket, &self.staged[self.staged_sent..])?;
            self.staged_sent += sent;
            if self.staged_sent < self.staged.len() {
                return Ok(Sent::Waiting);
            }
        }
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(crate) fn waiting_size(&self) -> usize {
        self.staged.len() - self.staged_sent + self.control.len() + self.data.len()
    }

    /// Data packets dropped because they waited too long or were too many.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_empty(&self) -> bool {
        self.staged_sent == self.staged.len() && self.control.is_empty() && self.waiting.is_empty()
    }

    fn stage(&mut self, bytes: &[u8]) {
        self.staged.clear();
        self.staged_sent = 0;
        self.staged.extend_from_slice(bytes);
    }

    /// Adds packets to the data that waits, as many as there is room for.
    fn push(&mut self, packets: &[u8], now: Instant) {
        let mut end = 0;
        while end < packets.len() {
            let size = packet_size(&packets[end..]);
            if self.data.len() + end + size > DATA_SIZE_MAX {
                break;
            }
            self.waiting.push_back(Packet { size, since: now });
            end += size;
        }
        self.data.extend(&packets[..end]);
        let mut rest = &packets[end..];
        while !rest.is_empty() {
            rest = &rest[packet_size(rest)..];
            self.dropped += 1;
        }
    }

    /// Makes the next write ready.
    fn fill(&mut self, now: Instant) {
        self.staged.clear();
        self.staged_sent = 0;
        self.staged.append(&mut self.control);
        while let Some(packet) = self.waiting.front().copied() {
            if self.staged.len() + packet.size > STAGED_SIZE && !self.staged.is_empty() {
                break;
            }
            self.waiting.pop_front();
            let is_last = self.data.len() <= BACKLOG_SIZE_MIN;
            if self.codel.drops(packet.since, is_last, now) {
                self.dropped += 1;
            } else {
                let (front, back) = self.data.as_slices();
                let cut = front.len().min(packet.size);
                self.staged.extend_from_slice(&front[..cut]);
                self.staged.extend_from_slice(&back[..packet.size - cut]);
            }
            self.data.drain(..packet.size);
        }
        if self.waiting.is_empty() {
            self.data.shrink_to(SIZE_KEPT);
            self.staged.shrink_to(SIZE_KEPT);
        }
    }
}

fn flushed(socket: &impl Transmit) -> io::Result<Sent> {
    Ok(if socket.flush()? { Sent::Done } else { Sent::Waiting })
}

/// Writes until all is written or nothing more is taken, and gives how much was.
fn transmit(socket: &impl Transmit, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.transmit(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(size) => sent += size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Size of the data packet at the front of `packets`, all of which we wrote or parsed.
pub(crate) fn packet_size(packets: &[u8]) -> usize {
    let length = [packets[DATA_LENGTH_OFFSET], packets[DATA_LENGTH_OFFSET + 1]];
    DATA_HEADER_SIZE + usize::from(u16::from_be_bytes(length))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use mycelium_wire::frame::{self, DataHeader, Frame};
    use proptest::prelude::*;

    use super::*;

    /// Takes `room` bytes, at most `step` at once.
    struct Pipe {
        room: Cell<usize>,
        step: usize,
        taken: RefCell<Vec<u8>>,
    }

    impl Pipe {
        fn new(room: usize, step: usize) -> Self {
            Self { room: Cell::new(room), step, taken: RefCell::default() }
        }
    }

    impl Transmit for Pipe {
        fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
            let size = bytes.len().min(self.room.get()).min(self.step);
            if size == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room.set(self.room.get() - size);
            self.taken.borrow_mut().extend_from_slice(&bytes[..size]);
            Ok(size)
        }
    }

    fn packet(number: u8, size: u16) -> Vec<u8> {
        let address = Ipv6Addr::from([number; 16]);
        let header =
            DataHeader { hop_limit: number, source: address, destination: address, length: size };
        let mut packet = header.encode().to_vec();
        packet.resize(packet.len() + usize::from(size), number);
        packet
    }

    fn numbers(mut stream: &[u8]) -> Vec<u8> {
        let mut numbers = Vec::new();
        while let Some((frame, size)) = frame::parse(stream).unwrap() {
            let Frame::Data(data) = frame else { panic!("{frame:?}") };
            assert!(data.body.iter().all(|byte| *byte == data.header.hop_limit));
            numbers.push(data.header.hop_limit);
            stream = &stream[size..];
        }
        assert!(stream.is_empty());
        numbers
    }

    #[test]
    fn a_socket_that_takes_all_gets_all_at_once() {
        let (pipe, mut outbound) = (Pipe::new(usize::MAX, usize::MAX), Outbound::default());
        let packets = [packet(1, 100), packet(2, 0)].concat();
        assert_eq!(outbound.send_data(&pipe, &packets, Instant::now()).unwrap(), Sent::Done);
        assert_eq!(*pipe.taken.borrow(), packets);
    }

    #[test]
    fn control_passes_data_that_waits_but_not_a_packet_that_was_begun() {
        let (pipe, mut outbound) = (Pipe::new(50, 7), Outbound::default());
        let (first, rest) = (packet(1, 100), [packet(2, 10), packet(3, 10)].concat());
        let now = Instant::now();
        let all = [first.clone(), rest.clone()].concat();
        assert_eq!(outbound.send_data(&pipe, &all, now).unwrap(), Sent::Waiting);
        assert_eq!(outbound.send_control(&pipe, b"control").unwrap(), Sent::Waiting);
        pipe.room.set(usize::MAX);
        assert_eq!(outbound.drain(&pipe, now).unwrap(), Sent::Done);
        assert_eq!(*pipe.taken.borrow(), [first, b"control".to_vec(), rest].concat());
    }

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_counted() {
        let (pipe, mut outbound) = (Pipe::new(0, 1), Outbound::default());
        let packets = packet(9, 60_000).repeat(50);
        outbound.send_data(&pipe, &packets, Instant::now()).unwrap();
        let kept = DATA_SIZE_MAX / 60_040;
        assert_eq!(outbound.dropped(), 50 - kept as u64);
        for _ in 0..CONTROL_SIZE_MAX / 1000 {
            outbound.send_control(&pipe, &[0; 1000]).unwrap();
        }
        assert!(outbound.send_control(&pipe, &[0; 1000]).is_err());
    }

    #[test]
    fn packets_that_waited_for_long_are_thinned() {
        let (pipe, mut outbound) = (Pipe::new(0, usize::MAX), Outbound::default());
        let start = Instant::now();
        let mut sent = 0;
        for at in 0..2000 {
            let now = start + Duration::from_millis(at);
            // Two come while the socket takes one.
            outbound.send_data(&pipe, &packet(1, 1460).repeat(2), now).unwrap();
            pipe.room.set(1500);
            outbound.drain(&pipe, now).unwrap();
            sent += 1;
        }
        assert!(outbound.dropped() > 50, "{} of {sent}", outbound.dropped());
    }

    proptest! {
        #[test]
        fn a_stream_is_whole_packets_in_order(
            steps in proptest::collection::vec((0_u16..2000, 0_usize..3000, 1_usize..500), 1..60),
        ) {
            let (mut outbound, now) = (Outbound::default(), Instant::now());
            let pipe = Pipe::new(0, 100);
            for (number, (size, room, _)) in (0_u8..).zip(&steps) {
                pipe.room.set(pipe.room.get() + room);
                outbound.send_data(&pipe, &packet(number, *size), now).unwrap();
                outbound.drain(&pipe, now).unwrap();
            }
            pipe.room.set(usize::MAX);
            prop_assert_eq!(outbound.drain(&pipe, now).unwrap(), Sent::Done);
            let expected: Vec<u8> = (0_u8..).take(steps.len()).collect();
            prop_assert_eq!(numbers(&pipe.taken.borrow()), expected);
        }
    }
}
