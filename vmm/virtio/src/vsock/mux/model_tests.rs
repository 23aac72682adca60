//! Random histories of an honest guest and of ends on the host, against what streams promise:
//! every byte arrives once and in order, no buffer overflows, and everything closes.
//!
//! The model is two sides that keep their own books and check the multiplexer's against them. The
//! guest is as strict as Linux: it never sends beyond its credit, and fails if it is sent more than
//! it has room for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

const GUEST_CID: u64 = 3;
const LIMITS: Limits =
    Limits { connections: 6, roomy: 2, roomy_size: 50, tight_size: 7, resets: 64 };
const GUEST_BUFFER_SIZE: u32 = 30;
/// Rounds in which everything must come to rest.
const ROUNDS_MAX: usize = 2000;

/// The guest's socket.
#[derive(Debug, Default)]
struct GuestEnd {
    is_open: bool,
    is_closing: bool,
    /// It was reset, or it closed: nothing more is to be expected of it.
    is_gone: bool,
    ended: u32,
    peer_ended: u32,
    sent: u32,
    peer_buffer_size: u32,
    peer_forwarded: u32,
    received: u32,
    read: u32,
}

/// What the host has at its end.
#[derive(Debug, Default)]
struct HostEnd {
    /// Bytes that its writer wrote, and how many were read of them.
    written: u32,
    sent: u32,
    has_ended: bool,
    /// Bytes that came for its reader, and how many it took.
    received: u32,
    taken: u32,
    is_shut: bool,
    /// Whoever was there has closed.
    is_closed: bool,
}

struct World {
    mux: Mux,
    now: Instant,
    guest: BTreeMap<(u32, u32), GuestEnd>,
    host: BTreeMap<ConnectionId, ((u32, u32), HostEnd)>,
    next_guest_port: u32,
}

impl World {
    fn new() -> Self {
        Self {
            mux: Mux::new(GUEST_CID, LIMITS, Counters::default()),
            now: Instant::now(),
            guest: BTreeMap::new(),
            host: BTreeMap::new(),
            next_guest_port: 1000,
        }
    }

    /// The guest sends a packet of the connection with these ports.
    fn guest_sends(&mut self, ports: (u32, u32), op: u16, flags: u32, len: u32) {
        let end = self.guest.entry(ports).or_default();
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: GUEST_BUFFER_SIZE,
            fwd_cnt: end.read,
        };
        let from = end.sent;
        end.sent += len;
        if let Some(id) = self.mux.receive(&header, self.now) {
            let (of, host) = self.host.get_mut(&id).expect("an end");
            assert_eq!((*of, host.received), (ports, from), "in order, and nothing is missing");
            host.received += len;
            assert!(host.received - host.taken <= LIMITS.roomy_size, "the host keeps too much");
        }
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.mux.take_action() {
            match action {
                Action::Connect(id, port) if port.is_multiple_of(2) => {
                    let guest_port = self.next_guest_port - 1;
                    self.host.insert(id, ((guest_port, port), HostEnd::default()));
                    self.mux.connected(id);
                }
                Action::Connect(id, _) => {
                    self.host.insert(id, ((0, 0), HostEnd::default()));
                    self.mux.refused(id);
                }
                Action::Established(id, port) => assert_eq!(self.host[&id].0.1, port),
                Action::ShutRead(id) => self.host_end(id).has_ended = true,
                Action::ShutWrite(id) => {
                    let end = self.host_end(id);
                    assert_eq!(end.taken, end.received, "shut before all was taken");
                    end.is_shut = true;
                }
                Action::Close(id) => {
                    let (ports, end) = self.host.remove(&id).expect("an end");
                    let is_orderly = self.guest.get(&ports).is_some_and(|guest| guest.is_closing);
                    if is_orderly && !end.is_closed {
                        assert_eq!(end.taken, end.received, "closed before all was taken");
                    }
                }
            }
        }
    }

    fn host_end(&mut self, id: ConnectionId) -> &mut HostEnd {
        &mut self.host.get_mut(&id).expect("an end").1
    }

    /// The guest offers a buffer. False if there is nothing to put into it.
    fn offer(&mut self, room: u32) -> bool {
        let (header, from) = match self.mux.next(room) {
            None => return false,
            Some(Transmit::Packet(header)) => (header, 0),
            Some(Transmit::Read { id, size_max }) => {
                assert!(size_max > 0 && size_max <= room);
                let end = self.host_end(id);
                let from = end.sent;
                let size = size_max.min(end.written - end.sent);
                end.sent += size;
                let read = match (size, end.has_ended || end.is_closed) {
                    (0, true) => Read::End,
                    (0, false) => Read::Blocked,
                    _ => Read::Bytes(size),
                };
                let header = self.mux.read(id, read, self.now);
                self.act();
                let Some(header) = header else { return true };
                (header, from)
            }
        };
        self.guest_receives(&header, from);
        true
    }

    fn guest_receives(&mut self, header: &Header, from: u32) {
        let ports = (header.dst_port, header.src_port);
        if header.op == op::REQUEST {
            let accepts = ports.0.is_multiple_of(2);
            if accepts {
                self.guest.entry(ports).or_default().is_open = true;
            }
            self.take_credit(ports, header);
            let answer = if accepts { op::RESPONSE } else { op::RST };
            return self.guest_sends(ports, answer, 0, 0);
        }
        let Some(end) = self.guest.get_mut(&ports).filter(|end| !end.is_gone) else {
            assert_eq!(header.op, op::RST, "a packet for nobody");
            return;
        };
        match header.op {
            op::RST => end.is_gone = true,
            op::RESPONSE => end.is_open = true,
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => {
                self.take_credit(ports, header);
                return self.guest_sends(ports, op::CREDIT_UPDATE, 0, 0);
            }
            op::SHUTDOWN => end.peer_ended |= header.flags,
            op::RW => {
                let is_wanted = end.ended & SHUTDOWN_RECEIVE == 0;
                assert_eq!(end.received, from, "in order, and nothing is missing");
                assert_eq!(end.peer_ended & SHUTDOWN_SEND, 0, "data after its end");
                end.received += header.len;
                assert!(end.received - end.read <= GUEST_BUFFER_SIZE, "credit is overrun");
                if !is_wanted {
                    end.read = end.received;
                }
            }
            other => panic!("operation {other}"),
        }
        self.take_credit(ports, header);
        self.finish(ports);
    }

    fn take_credit(&mut self, ports: (u32, u32), header: &Header) {
        let Some(end) = self.guest.get_mut(&ports) else { return };
        end.peer_buffer_size = header.buf_alloc;
        end.peer_forwarded = header.fwd_cnt;
        assert!(end.peer_forwarded <= end.sent, "more forwarded than was sent");
    }

    /// As Linux does: once the peer ended both and all is read, a reset.
    fn finish(&mut self, ports: (u32, u32)) {
        let end = &self.guest[&ports];
        let is_over = end.peer_ended == SHUTDOWN_BOTH && end.received == end.read;
        if is_over && !end.is_gone && !end.is_closing {
            self.guest_sends(ports, op::RST, 0, 0);
            self.guest.get_mut(&ports).expect("it is there").is_gone = true;
        }
    }

    fn guest_write(&mut self, ports: (u32, u32), amount: u32) {
        let end = &self.guest[&ports];
        let credit = end.peer_buffer_size - (end.sent - end.peer_forwarded);
        let may = end.ended & SHUTDOWN_SEND == 0 && end.peer_ended & SHUTDOWN_RECEIVE == 0;
        if may && credit > 0 {
            self.guest_sends(ports, op::RW, 0, amount.min(credit));
        }
    }

    fn guest_read(&mut self, ports: (u32, u32), amount: u32) {
        let end = self.guest.get_mut(&ports).expect("it is there");
        let size = amount.min(end.received - end.read);
        end.read += size;
        // Linux tells nothing once it has said that it receives no more.
        if size > 0 && end.ended & SHUTDOWN_RECEIVE == 0 {
            self.guest_sends(ports, op::CREDIT_UPDATE, 0, 0);
        }
        self.finish(ports);
    }

    fn guest_shut(&mut self, ports: (u32, u32), flags: u32) {
        let end = self.guest.get_mut(&ports).expect("it is there");
        end.ended |= flags;
        end.is_closing = end.ended == SHUTDOWN_BOTH;
        let flags = end.ended;
        self.guest_sends(ports, op::SHUTDOWN, flags, 0);
    }

    fn host_take(&mut self, id: ConnectionId, amount: u32) {
        let end = self.host_end(id);
        let size = amount.min(end.received - end.taken);
        end.taken += size;
        if size > 0 && !end.is_closed {
            self.mux.forwarded(id, size, self.now);
        }
        self.act();
    }

    fn host_close(&mut self, id: ConnectionId) {
        self.host_end(id).is_closed = true;
        self.mux.stopped_receiving(id, self.now);
        self.mux.readable(id);
        self.act();
    }

    /// One step of a history.
    fn step(&mut self, kind: u8, which: usize, amount: u32) {
        let open = self.guest.iter().filter(|(_, end)| end.is_open && !end.is_gone);
        let usable: Vec<_> = open.filter(|(_, end)| !end.is_closing).map(|(p, _)| *p).collect();
        let guest = (!usable.is_empty()).then(|| usable[which % usable.len()]);
        let ends: Vec<_> = self.host.keys().copied().collect();
        let host = (!ends.is_empty()).then(|| ends[which % ends.len()]);
        match (kind, guest, host) {
            (0, ..) => {
                let ports = (self.next_guest_port, amount);
                self.next_guest_port += 1;
                self.guest_sends(ports, op::REQUEST, 0, 0);
            }
            (1, ..) => {
                let port = self.next_guest_port;
                self.next_guest_port += 1;
                if let Some(id) = self.mux.connect(port, self.now) {
                    let ports = (port, self.mux.next_host_port() - 1);
                    self.host.insert(id, (ports, HostEnd::default()));
                }
            }
            (2, Some(ports), _) => self.guest_write(ports, amount),
            (3, Some(ports), _) => self.guest_read(ports, amount),
            (4, Some(ports), _) => self.guest_shut(ports, 1 + amount % 3),
            (5, _, Some(id)) => {
                let end = self.host_end(id);
                if !end.has_ended && !end.is_closed {
                    end.written += amount;
                    self.mux.readable(id);
                }
            }
            (6, _, Some(id)) => self.host_take(id, amount),
            (7, _, Some(id)) => {
                self.host_end(id).has_ended = true;
                self.mux.readable(id);
            }
            (8, _, Some(id)) => self.host_close(id),
            _ => {
                for _ in 0..which % 8 {
                    self.offer(amount);
                }
            }
        }
    }

    /// Everybody reads, nobody writes, until nothing moves.
    fn flow(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut is_moving = false;
            while self.offer(11) {
                is_moving = true;
            }
            for ports in self.guest.keys().copied().collect::<Vec<_>>() {
                let end = &self.guest[&ports];
                if end.received > end.read && !end.is_gone && !end.is_closing {
                    is_moving = true;
                    self.guest_read(ports, 13);
                }
            }
            for id in self.host.keys().copied().collect::<Vec<_>>() {
                let end = self.host.get(&id).map(|(_, end)| end);
                if end.is_some_and(|end| end.received > end.taken) {
                    is_moving = true;
                    self.host_take(id, 17);
                }
            }
            if !is_moving {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// What is true when nothing moves: all that was written has arrived, where it was wanted.
    fn check_at_rest(&self) {
        for (ports, host) in self.host.values() {
            let Some(guest) = self.guest.get(ports).filter(|end| end.is_open) else { continue };
            if !host.is_closed {
                assert_eq!(host.taken, guest.sent, "{ports:?}: the guest's bytes");
                assert_eq!(host.is_shut, guest.ended & SHUTDOWN_SEND != 0, "{ports:?}");
            }
            if guest.ended & SHUTDOWN_RECEIVE == 0 {
                assert_eq!(guest.read, host.written, "{ports:?}: the host's bytes");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_arrive_whole_and_everything_closes(
        steps in prop::collection::vec((0u8..14, 0usize..40, 1u32..40), 0..150),
    ) {
        let mut world = World::new();
        for (kind, which, amount) in steps {
            world.step(kind, which, amount);
            prop_assert!(world.mux.len() <= LIMITS.connections);
            prop_assert!(world.mux.listed.len() <= LIMITS.connections);
        }
        world.flow();
        world.check_at_rest();
        for id in world.host.keys().copied().collect::<Vec<_>>() {
            world.host_close(id);
        }
        world.flow();
        // Whoever was refused, or lost an answer to a full list of resets, is not waited for.
        for (ports, end) in &world.guest {
            prop_assert!(!end.is_open || end.is_gone, "{ports:?} is still open: {end:?}");
        }
        prop_assert_eq!(world.mux.len(), 0);
        prop_assert_eq!((world.mux.deadlines.len(), world.mux.by_ports.len()), (0, 0));
        prop_assert_eq!((world.mux.roomy_count, world.mux.deadline()), (0, None));
    }

    /// Whatever a guest sends, nothing panics and nothing grows.
    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec(
            (0u16..9, 0u32..4, 0u32..4, prop_oneof![0u32..60, any::<u32>()], 0u32..5,
             prop_oneof![0u32..60, any::<u32>()], prop_oneof![0u32..60, any::<u32>()], 0u8..8),
            0..200,
        ),
    ) {
        let (mut mux, mut now) = (Mux::new(GUEST_CID, LIMITS, Counters::default()), Instant::now());
        let mut kept: BTreeMap<ConnectionId, u32> = BTreeMap::new();
        for (op, guest_port, port, len, flags, buf_alloc, fwd_cnt, what) in packets {
            // Ports of both kinds, so that connections of the host are hit too.
            let dst_port = if what % 2 == 0 { port } else { HOST_PORT_FIRST + port };
            let header = Header {
                src_cid: GUEST_CID, dst_cid: HOST_CID, src_port: guest_port, dst_port, len,
                kind: STREAM, op, flags, buf_alloc, fwd_cnt,
            };
            if let Some(id) = mux.receive(&header, now) {
                *kept.entry(id).or_default() += len;
                prop_assert!(kept[&id] <= LIMITS.roomy_size);
            }
            match what {
                1 => drop(mux.connect(guest_port, now)),
                2 => now += Duration::from_secs(1),
                3 => mux.expire(now),
                _ => {}
            }
            while let Some(action) = mux.take_action() {
                match action {
                    Action::Connect(id, port) if port < 3 => { mux.connected(id); mux.readable(id); }
                    Action::Connect(id, _) => mux.refused(id),
                    Action::Established(id, _) => mux.readable(id),
                    Action::Close(id) => drop(kept.remove(&id)),
                    Action::ShutRead(_) | Action::ShutWrite(_) => {}
                }
            }
            if what > 3 {
                for (id, size) in std::mem::take(&mut kept) {
                    mux.forwarded(id, size, now);
                }
                match mux.next(9) {
                    Some(Transmit::Read { id, size_max }) if what % 2 == 0 => {
                        prop_assert!(mux.read(id, Read::Bytes(size_max), now).is_some());
                    }
                    Some(Transmit::Read { id, .. }) => drop(mux.read(id, Read::End, now)),
                    _ => {}
                }
            }
            prop_assert!(mux.len() <= LIMITS.connections && mux.listed.len() <= mux.len());
            prop_assert!(mux.resets.len() <= LIMITS.resets);
        }
    }
}
