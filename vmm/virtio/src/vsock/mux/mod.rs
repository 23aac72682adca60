//! The connection multiplexer: many streams through one pair of queues, without any I/O.
//!
//! Packets of the guest, events of the host's ends and the time go in; packets for the guest and
//! [`Action`]s for the host's ends come out. Payload never passes through: whoever owns rings and
//! sockets moves it from one to the other in one go, asks here whether it may, and tells how much
//! it was.
//!
//! ```text
//!   receive(header) ─► Some(id): payload goes to the end `id` ─► forwarded(id, size)
//!   readable(id)    ─► next(room) ─► Read { id, size_max }    ─► read(id, outcome) ─► header
//!                                 └► Packet(header)
//!   take_action()   ─► Connect, Established, ShutRead, ShutWrite, Close
//! ```
//!
//! Flow control is virtio's (1.3 §5.10.6.3): each side tells how large its buffer is and how many
//! bytes have left it. The guest can't make the host keep more than [`Limits`] say, because what
//! exceeds a buffer that it was told of resets the connection; and it is never sent more than it
//! has room for, because what the host's ends have to say is left in their sockets until it has.
//!
//! Connections take turns: each sends one packet, then goes to the end of the list.

mod connection;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod model_tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

pub(super) use self::connection::Ports;
use self::connection::{Broken, Connection, Next, State};
use super::packet::{HOST_CID, Header, STREAM, op};
use crate::Counter;

/// How long the guest may take to answer a `REQUEST`, as Linux waits for its own.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the guest may take to reset what the host has closed, before the host does.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the host's end may take to read what a guest sent before it closed.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Ports of the host's ends of connections that the host asked for begin here, out of the way of
/// those that anybody listens on.
pub(super) const HOST_PORT_FIRST: u32 = 1 << 30;
/// The last one; the next is `VMADDR_PORT_ANY`.
pub(super) const HOST_PORT_LAST: u32 = u32::MAX - 1;

/// How much of everything there may be. The buffers together hold at most 31 MiB, and only if as
/// many ends on the host read nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections.
    pub(super) connections: usize,
    /// Of them, those with a large buffer: whichever come first.
    pub(super) roomy: usize,
    /// Bytes that the guest may send ahead of what the host's end takes, in a large buffer.
    pub(super) roomy_size: u32,
    /// The same in a small one.
    pub(super) tight_size: u32,
    /// Resets that wait for the guest to offer a buffer. Any more are dropped: a guest that offers
    /// none finds out by its own timeouts.
    pub(super) resets: usize,
}

/// The limits of every device.
pub(super) const LIMITS: Limits = Limits {
    connections: 1024,
    roomy: 64,
    roomy_size: 256 << 10,
    tight_size: 16 << 10,
    resets: 256,
};

/// A connection; never used twice in the life of a multiplexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionId(pub(super) u64);

/// What is to be done to the host's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The guest wants to be connected to what listens on this port of the host: answered by
    /// [`Mux::connected`] or [`Mux::refused`].
    Connect(ConnectionId, u32),
    /// The guest accepted; this is the port of the host's end.
    Established(ConnectionId, u32),
    /// The guest receives no more.
    ShutRead(ConnectionId),
    /// The guest sends no more, and all that it sent was forwarded.
    ShutWrite(ConnectionId),
    /// It is over.
    Close(ConnectionId),
}

/// What goes into the next buffer of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transmit {
    /// A packet without payload.
    Packet(Header),
    /// As many bytes as the host's end has, up to a size: answered by [`Mux::read`].
    Read {
        /// Whose end.
        id: ConnectionId,
        /// No more than this.
        size_max: u32,
    },
}

/// What came of reading from the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes, at least one.
    Bytes(u32),
    /// Nothing for now; [`Mux::readable`] will tell.
    Blocked,
    /// Nothing ever again.
    End,
    /// It failed, and will not do otherwise again.
    Failed,
}

/// What an operator may want to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    /// Connections that were opened, by either side.
    pub(super) connections: Counter,
    /// Connections that were asked for and refused, for whatever reason.
    pub(super) refused: Counter,
    /// Resets sent to the guest.
    pub(super) resets: Counter,
    /// Bytes for the guest.
    pub(super) rx_bytes: Counter,
    /// Bytes of the guest.
    pub(super) tx_bytes: Counter,
}

/// All connections of one device.
#[derive(Debug)]
pub(super) struct Mux {
    guest_cid: u64,
    limits: Limits,
    counters: Counters,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Those that the guest knows of: all but the draining.
    by_ports: HashMap<Ports, ConnectionId>,
    /// Those that have something to send, each once, in the order of their turns.
    listed: VecDeque<ConnectionId>,
    resets: VecDeque<Header>,
    actions: VecDeque<Action>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    roomy_count: usize,
    next_id: u64,
    next_host_port: u32,
}

impl Mux {
    /// A multiplexer without connections, for the guest with this address.
    pub(super) fn new(guest_cid: u64, limits: Limits, counters: Counters) -> Self {
        Self {
            guest_cid,
            limits,
            counters,
            connections: BTreeMap::new(),
            by_ports: HashMap::new(),
            listed: VecDeque::new(),
            resets: VecDeque::new(),
            actions: VecDeque::new(),
            deadlines: BTreeSet::new(),
            roomy_count: 0,
            next_id: 0,
            next_host_port: HOST_PORT_FIRST,
        }
    }

    /// The port that the next connection of the host gets.
    pub(super) const fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Continues to count ports where another multiplexer left off, so that a restored guest does
    /// not take new connections for those it remembers.
    pub(super) fn set_next_host_port(&mut self, port: u32) {
        self.next_host_port = port.clamp(HOST_PORT_FIRST, HOST_PORT_LAST);
    }

    /// Takes a packet of the guest, and tells whose end its payload goes to, if anybody's: then
    /// [`forwarded`](Self::forwarded) is to be called for each byte of it, now or later.
    pub(super) fn receive(&mut self, header: &Header, now: Instant) -> Option<ConnectionId> {
        let is_ours =
            header.src_cid == self.guest_cid && header.dst_cid == HOST_CID && header.kind == STREAM;
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        let id = self.by_ports.get(&ports).copied().filter(|_| is_ours);
        match (header.op, id) {
            // Never answered, or two sides could go on for ever.
            (op::RST, None) => {}
            (op::RST, Some(id)) => self.end(id),
            (op::REQUEST, None) if is_ours => self.request(header, ports),
            (_, None) => self.refuse(header),
            (_, Some(id)) => match self.receive_for(id, header, now) {
                Ok(is_payload) => return is_payload.then_some(id),
                Err(Broken) => self.reset(id),
            },
        }
        None
    }

    /// The packet makes no sense even before it is looked at: whatever it belongs to is reset.
    pub(super) fn malformed(&mut self, header: &Header) {
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        match self.by_ports.get(&ports) {
            Some(&id) => self.reset(id),
            None => self.refuse(header),
        }
    }

    /// Somebody on the host wants to be connected to what listens on this port of the guest.
    /// `None` if there are too many connections. What comes of it is an [`Action`].
    pub(super) fn connect(&mut self, guest_port: u32, now: Instant) -> Option<ConnectionId> {
        if self.connections.len() >= self.limits.connections {
            self.counters.refused.increment();
            return None;
        }
        let ports = Ports { guest: guest_port, host: self.allocate_port(guest_port) };
        let id = self.add(ports, State::Requested);
        self.set_deadline(id, Some(now + CONNECT_TIMEOUT));
        self.list(id);
        Some(id)
    }

    /// What the guest wanted to be connected to has accepted.
    pub(super) fn connected(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.state = State::Open;
            self.counters.connections.increment();
            self.list(id);
        }
    }

    /// There is nothing that the guest could be connected to, or it does not accept.
    pub(super) fn refused(&mut self, id: ConnectionId) {
        self.counters.refused.increment();
        self.reset(id);
    }

    /// Its end on the host has something to be read, be it the end.
    pub(super) fn readable(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.set_readable(true);
            self.list(id);
        }
    }

    /// Its end on the host took `size` bytes of the guest.
    ///
    /// # Panics
    /// When that is more than was received.
    pub(super) fn forwarded(&mut self, id: ConnectionId, size: u32, now: Instant) {
        let connection = self.connections.get_mut(&id);
        // Of an end that has stopped, everything counts as forwarded already.
        if let Some(connection) = connection.filter(|connection| connection.host_receives()) {
            connection.forward(size);
            self.settle(id, now);
        }
    }

    /// Its end on the host takes nothing more; what was received for it is gone.
    pub(super) fn stopped_receiving(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stop_receiving();
            self.settle(id, now);
        }
    }

    /// The host gives the connection up.
    pub(super) fn abort(&mut self, id: ConnectionId) {
        self.reset(id);
    }

    /// Whether [`next`](Self::next) may have something.
    pub(super) fn has_next(&self) -> bool {
        !self.resets.is_empty() || !self.listed.is_empty()
    }

    /// What goes into a buffer of the guest that has `room` for payload.
    pub(super) fn next(&mut self, room: u32) -> Option<Transmit> {
        if let Some(header) = self.resets.pop_front() {
            return Some(Transmit::Packet(header));
        }
        while let Some(id) = self.listed.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.is_listed = false;
            match connection.next(room, self.guest_cid) {
                None => {}
                Some(Next::Read(size_max)) => return Some(Transmit::Read { id, size_max }),
                Some(Next::Packet(header)) => {
                    self.list(id);
                    return Some(Transmit::Packet(header));
                }
            }
        }
        None
    }

    /// What came of a [`Transmit::Read`]: the header of the packet, if there is one.
    ///
    /// # Panics
    /// When it is more than was asked for.
    pub(super) fn read(&mut self, id: ConnectionId, read: Read, now: Instant) -> Option<Header> {
        let connection = self.connections.get_mut(&id)?;
        let mut header = None;
        match read {
            Read::Bytes(size) => {
                header = Some(connection.send(size, self.guest_cid));
                self.counters.rx_bytes.add(u64::from(size));
            }
            Read::Blocked => connection.set_readable(false),
            Read::End => connection.stop_sending(),
            // A peer that closed without reading everything: all that it had sent came before.
            Read::Failed => {
                connection.stop_receiving();
                connection.stop_sending();
            }
        }
        self.settle(id, now);
        header
    }

    /// The next thing to be done on the host.
    pub(super) fn take_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Gives up what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.reset(id);
        }
    }

    /// How many connections there are, in whatever state.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    fn request(&mut self, header: &Header, ports: Ports) {
        if self.connections.len() >= self.limits.connections {
            self.counters.refused.increment();
            return self.refuse(header);
        }
        let id = self.add(ports, State::Connecting);
        let connection = self.connections.get_mut(&id);
        if connection.is_some_and(|connection| connection.take_credit(header).is_err()) {
            return self.reset(id);
        }
        self.actions.push_back(Action::Connect(id, ports.host));
    }

    /// A packet for a connection that exists: whether it has payload for the host's end.
    fn receive_for(
        &mut self,
        id: ConnectionId,
        header: &Header,
        now: Instant,
    ) -> Result<bool, Broken> {
        let connection = self.connections.get_mut(&id).ok_or(Broken)?;
        if !connection.is_greeted() {
            // It answers, or sends, before it can have heard anything.
            return Err(Broken);
        }
        connection.take_credit(header)?;
        let mut is_payload = false;
        match (connection.state, header.op) {
            (State::Requested, op::RESPONSE) => {
                connection.state = State::Open;
                let port = connection.ports.host;
                self.set_deadline(id, None);
                self.counters.connections.increment();
                self.actions.push_back(Action::Established(id, port));
            }
            (State::Open, op::RW) => {
                is_payload = connection.take_payload(header.len)?;
                self.counters.tx_bytes.add(u64::from(header.len));
            }
            (State::Open, op::CREDIT_REQUEST) => connection.announce(),
            (State::Open, op::SHUTDOWN) => {
                let (sent, flags) = (connection.host_sends(), header.flags);
                connection.take_shutdown(flags);
                if sent && !connection.host_sends() {
                    self.actions.push_back(Action::ShutRead(id));
                }
            }
            (State::Closing, op::SHUTDOWN) => connection.take_shutdown(header.flags),
            (State::Open, op::CREDIT_UPDATE)
            // On its way when the host closed.
            | (State::Closing, op::RW | op::CREDIT_REQUEST | op::CREDIT_UPDATE) => {}
            _ => return Err(Broken),
        }
        self.settle(id, now);
        Ok(is_payload)
    }

    /// Moves the connection on, after one side has ended something.
    fn settle(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let is_drained = connection.buffered() == 0;
        let state = connection.state;
        match state {
            State::Closing if connection.is_guest_done() => return self.reset(id),
            State::Draining if is_drained => return self.end(id),
            State::Open if connection.is_guest_done() && is_drained => return self.reset(id),
            State::Open if connection.is_guest_done() => {
                // The guest need not wait for the host's end to read (virtio 1.3 §5.10.6.5).
                let header = connection.reset(self.guest_cid);
                connection.state = State::Draining;
                self.by_ports.remove(&connection.ports);
                self.set_deadline(id, Some(now + DRAIN_TIMEOUT));
                self.push_reset(header);
            }
            State::Open if connection.is_host_done() => {
                connection.state = State::Closing;
                self.set_deadline(id, Some(now + CLOSE_TIMEOUT));
                self.actions.push_back(Action::Close(id));
            }
            State::Open if connection.shuts() => self.actions.push_back(Action::ShutWrite(id)),
            _ => {}
        }
        self.list(id);
    }

    /// Puts the connection into the list of those that have something to send, if it has.
    fn list(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.has_next() && !connection.is_listed {
            connection.is_listed = true;
            self.listed.push_back(id);
        }
    }

    fn add(&mut self, ports: Ports, state: State) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        let is_roomy = self.roomy_count < self.limits.roomy;
        self.roomy_count += usize::from(is_roomy);
        let size = if is_roomy { self.limits.roomy_size } else { self.limits.tight_size };
        self.connections.insert(id, Connection::new(ports, state, size, is_roomy));
        self.by_ports.insert(ports, id);
        id
    }

    /// Ends a connection, and tells the guest if it knows of it.
    fn reset(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.state != State::Draining {
            let header = connection.reset(self.guest_cid);
            self.push_reset(header);
        }
        self.end(id);
    }

    /// Ends a connection that the guest knows to be over.
    fn end(&mut self, id: ConnectionId) {
        self.set_deadline(id, None);
        let Some(connection) = self.connections.remove(&id) else { return };
        if connection.state != State::Draining {
            self.by_ports.remove(&connection.ports);
        }
        if connection.state != State::Closing {
            self.actions.push_back(Action::Close(id));
        }
        if connection.state == State::Requested {
            self.counters.refused.increment();
        }
        if connection.is_listed {
            // Or a guest that opens and resets without ever offering a buffer fills the list.
            self.listed.retain(|listed| *listed != id);
        }
        self.roomy_count -= usize::from(connection.is_roomy);
    }

    fn refuse(&mut self, header: &Header) {
        self.push_reset(header.refusal(self.guest_cid));
    }

    fn push_reset(&mut self, header: Header) {
        if self.resets.len() < self.limits.resets {
            self.counters.resets.increment();
            self.resets.push_back(header);
        }
    }

    fn set_deadline(&mut self, id: ConnectionId, deadline: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
            self.deadlines.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, id));
        }
    }

    /// A port of the host that makes a new pair with `guest_port`. There are far more ports than
    /// connections, so that a free one is among the first that are looked at.
    fn allocate_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = if port == HOST_PORT_LAST { HOST_PORT_FIRST } else { port + 1 };
            if !self.by_ports.contains_key(&Ports { guest: guest_port, host: port }) {
                return port;
            }
        }
    }
}
