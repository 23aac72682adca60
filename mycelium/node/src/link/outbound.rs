//! What waits to leave on a stream: at most a piece of what was begun, then control packets, then data.
//!
//! Data is written straight to the socket by whoever has it, as long as the socket takes it. The rest
//! waits here, bounded, takes turns, and is dropped when it waits too long ([`super::fair`]). What is on a
//! stream must be whole packets, so the rest of a packet whose front was sent is never dropped.
//!
//! ```text
//!  send_data ──> nothing waits? ──yes──> socket ──rest of a packet──> staged ─┐
//!                     └─no──> data ──┐                                         ├─> socket, when writable
//!  send_control ──────────> control ─┴──────────────────────────────> staged ─┘
//! ```

use std::io;
use std::time::Instant;

use mycelium_wire::frame::{DATA_HEADER_SIZE, DATA_LENGTH_OFFSET};

use crate::link::fair::FairQueue;
use crate::link::pace::Pace;

/// Control packets that wait on one link, in bytes. A neighbour that leaves more than this unread is
/// no neighbour.
const CONTROL_SIZE_MAX: usize = 1 << 20;
/// How much is made ready for one write; less on a narrow path.
const STAGED_SIZE: usize = 64 << 10;

/// Writes bytes without waiting, as many as it can; `WouldBlock` when none.
pub(crate) trait Transmit {
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes what it took but holds back. Whether nothing is held back any more.
    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Asks it to hold no more than so many bytes that it did not send yet.
    fn limit(&self, _size: usize) {}

    /// Whether it holds less than that; if not, its owner is woken when it does.
    fn has_room(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// The packets of one link that wait.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    staged: Vec<u8>,
    staged_sent: usize,
    control: Vec<u8>,
    data: FairQueue,
    pace: Pace,
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
        if !self.is_empty() || (self.is_narrow() && !socket.has_room()?) {
            self.data.push(packets, now);
            return Ok(Sent::Waiting);
        }
        let (first, later) = packets.split_at(self.front_size(packets));
        let sent = transmit(socket, first)?;
        if sent == packets.len() {
            return flushed(socket);
        }
        // The rest of the packet that was cut must follow; those after it may wait or go.
        let mut end = 0;
        while end < sent {
            end += packet_size(&first[end..]);
        }
        self.stage(&first[sent..end]);
        self.data.push(&first[end..], now);
        self.data.push(later, now);
        Ok(Sent::Waiting)
    }

    /// Whether the socket must not be given all that it takes: it fills the last of its buffers before it
    /// says that it has enough, which on a narrow path is too much.
    fn is_narrow(&self) -> bool {
        self.pace.ahead_size() < STAGED_SIZE
    }

    /// Bytes of the packets at the front that the socket may be given at once.
    fn front_size(&self, packets: &[u8]) -> usize {
        let mut size = if self.is_narrow() { 0 } else { packets.len() };
        while size < packets.len().min(self.pace.ahead_size()) {
            size += packet_size(&packets[size..]);
        }
        size
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
                if self.is_narrow() && !self.is_empty() && !socket.has_room()? {
                    return Ok(Sent::Waiting);
                }
                self.fill(now);
                if self.staged.is_empty() {
                    self.pace.pause();
                    return flushed(socket);
                }
            }
            let sent = transmit(socket, &self.staged[self.staged_sent..])?;
            self.staged_sent += sent;
            if let Some(size) = self.pace.took(sent, now) {
                socket.limit(size);
            }
            if self.staged_sent < self.staged.len() {
                return Ok(Sent::Waiting);
            }
        }
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(crate) fn waiting_size(&self) -> usize {
        self.staged.len() - self.staged_sent + self.control.len() + self.data.size()
    }

    /// Bytes that the socket may hold ahead of what it sends.
    pub(crate) fn ahead_size(&self) -> usize {
        self.pace.ahead_size()
    }

    /// Data packets dropped because they waited too long or were too many.
    pub(crate) fn dropped(&self) -> u64 {
        self.data.dropped()
    }

    fn is_empty(&self) -> bool {
        self.staged_sent == self.staged.len() && self.control.is_empty() && self.data.is_empty()
    }

    fn stage(&mut self, bytes: &[u8]) {
        self.staged.clear();
        self.staged_sent = 0;
        self.staged.extend_from_slice(bytes);
    }

    /// Makes the next write ready.
    fn fill(&mut self, now: Instant) {
        self.staged.clear();
        self.staged_sent = 0;
        self.staged.append(&mut self.control);
        let size_max = self.pace.ahead_size().min(STAGED_SIZE);
        self.data.take(&mut self.staged, size_max, now);
        if self.data.is_empty() {
            self.staged.shrink_to(STAGED_SIZE);
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
    use crate::link::fair::SIZE_MAX;

    /// Takes `room` bytes, at most `step` at once.
    struct Pipe {
        room: Cell<usize>,
        step: usize,
        limit: Cell<usize>,
        taken: RefCell<Vec<u8>>,
    }

    impl Pipe {
        fn new(room: usize, step: usize) -> Self {
            let limit = Cell::new(usize::MAX);
            Self { room: Cell::new(room), step, limit, taken: RefCell::default() }
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

        fn limit(&self, size: usize) {
            self.limit.set(size);
        }

        fn has_room(&self) -> io::Result<bool> {
            Ok(self.room.get() > 0)
        }
    }

    fn packet(number: u8, size: u16) -> Vec<u8> {
        // All of one pair, which keeps their order.
        let address = Ipv6Addr::from([7; 16]);
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
        assert!(outbound.dropped() >= 50 - (SIZE_MAX / 60_040) as u64);
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

    #[test]
    fn a_narrow_path_is_given_little_at_once() {
        let (pipe, mut outbound) = (Pipe::new(0, usize::MAX), Outbound::default());
        let start = Instant::now();
        let packets = packet(1, 1460).repeat(40);
        let mut taken = 0;
        for at in 0..500 {
            let now = start + Duration::from_millis(at);
            outbound.send_data(&pipe, &packets[..3000], now).unwrap();
            // 12 Mbit/s.
            pipe.room.set(1500);
            outbound.drain(&pipe, now).unwrap();
            taken += 1500;
        }
        let limit = pipe.limit.get();
        assert!(limit < 20 << 10, "{limit}");
        pipe.room.set(usize::MAX);
        outbound.drain(&pipe, start + Duration::from_millis(500)).unwrap();
        let before = pipe.taken.borrow().len();
        assert!(before > taken);
        // All has left. Of what comes now, the rest waits for its turn.
        outbound.send_data(&pipe, &packets, start + Duration::from_secs(1)).unwrap();
        let at_once = pipe.taken.borrow().len() - before;
        assert!((limit..limit + 1500).contains(&at_once), "{at_once}");
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
