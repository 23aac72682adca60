//! Where packets, sockets and services meet: asks the multiplexer what may be done, does it, and
//! tells what came of it.
//!
//! It outlives a pause: the queues go back, the connections stay.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::Shutdown;

use super::host::{Host, HostEvent, Written};
use super::mux::{Action, ConnectionId, Mux, Read, Transmit};
use super::packet::{HEADER_SIZE, Header};
use super::services::Services;
use super::{State, reseed};
use crate::{Buffers, QueueError, UnitError};

/// All connections of a device, with their ends on the host.
#[derive(Debug)]
pub(super) struct Switch {
    mux: Mux,
    host: Host,
    services: Services,
    events: Vec<HostEvent>,
}

impl Switch {
    pub(super) const fn new(mux: Mux, host: Host, services: Services) -> Self {
        Self { mux, host, services, events: Vec::new() }
    }

    /// Readable when [`poll`](Self::poll) has something to do.
    pub(super) const fn descriptor(&self) -> &OwnedFd {
        self.host.descriptor()
    }

    /// What a snapshot keeps of it.
    pub(super) fn state(&self) -> State {
        State {
            next_host_port: self.mux.next_host_port(),
            expects_beats: self.services.expects_beats(),
        }
    }

    /// The guest has not run until now.
    pub(super) fn resume(&mut self, now: Instant) {
        self.services.resume(now);
    }

    /// Looks at sockets and at the time. True if there may be more to look at.
    pub(super) fn poll(&mut self, now: Instant) -> Result<bool, UnitError> {
        self.expire(now);
        let mut events = std::mem::take(&mut self.events);
        let is_full = self.host.poll(&mut events, now).map_err(|error| UnitError::Host {
            what: "wait for the host's sockets".to_owned(),
            source: error.into(),
        })?;
        for event in events.drain(..) {
            self.happened(event, now);
            self.act(now);
        }
        self.events = events;
        Ok(is_full || self.host.has_clients())
    }

    /// When [`poll`](Self::poll) has something to do though nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.mux.deadline(), self.host.deadline(), self.services.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Takes a packet of the guest.
    ///
    /// # Errors
    /// When there is no header: the guest breaks the rules of the queue. Whatever else is wrong
    /// with a packet ends a connection.
    pub(super) fn take_packet(
        &mut self,
        packet: &Buffers<'_>,
        now: Instant,
    ) -> Result<(), QueueError> {
        let mut bytes = [0; HEADER_SIZE as usize];
        packet.read(0, &mut bytes, "a packet header")?;
        let header = Header::decode(&bytes);
        if header.len > packet.size() - HEADER_SIZE {
            self.mux.malformed(&header);
        } else if let Some(id) = self.mux.receive(&header, now) {
            self.deliver(id, packet, header.len, now);
        }
        self.act(now);
        Ok(())
    }

    /// Whether [`put_packet`](Self::put_packet) may have something.
    pub(super) fn has_packet(&self) -> bool {
        self.mux.has_next()
    }

    /// Puts a packet into a buffer of the guest, and returns its size. `None` if there is none
    /// after all.
    ///
    /// # Errors
    /// When the buffer has no room for a packet: the guest breaks the rules of the queue.
    pub(super) fn put_packet(
        &mut self,
        buffer: &Buffers<'_>,
        now: Instant,
    ) -> Result<Option<u32>, QueueError> {
        let mut payload = [0];
        loop {
            let room = buffer.size().saturating_sub(HEADER_SIZE);
            match self.mux.next(room) {
                None => return Ok(None),
                Some(Transmit::Packet(header)) => {
                    buffer.write(0, &header.encode(), "a packet header")?;
                    return Ok(Some(HEADER_SIZE));
                }
                Some(Transmit::Read { id, size_max }) => {
                    // Room for one byte at least, or no data could ever come.
                    buffer.read(HEADER_SIZE, &mut payload, "a packet with payload")?;
                    let read = self.read(id, buffer, size_max, now);
                    let header = self.mux.read(id, read, now);
                    self.act(now);
                    if let Some(header) = header {
                        buffer.write(0, &header.encode(), "a packet header")?;
                        return Ok(Some(HEADER_SIZE + header.len));
                    }
                }
            }
        }
    }

    fn read(&mut self, id: ConnectionId, buffer: &Buffers<'_>, size: u32, now: Instant) -> Read {
        let pieces = buffer.slices(HEADER_SIZE, size);
        if self.services.owns(id) {
            self.services.read(id, pieces, now)
        } else {
            self.host.read(id, pieces)
        }
    }

    fn deliver(&mut self, id: ConnectionId, packet: &Buffers<'_>, size: u32, now: Instant) {
        if !self.services.owns(id) {
            let (pieces, count) = (packet.slices(HEADER_SIZE, size), packet.segments().len());
            let written = self.host.write(id, pieces, count);
            return self.written(id, written, now);
        }
        let mut first = [0];
        let has_first = packet.read(HEADER_SIZE, &mut first, "a packet with payload").is_ok();
        let is_done = has_first && self.services.received(id, first[0], now);
        self.mux.forwarded(id, size, now);
        if is_done {
            self.mux.stopped_receiving(id, now);
            self.mux.readable(id);
        }
    }

    fn written(&mut self, id: ConnectionId, written: Written, now: Instant) {
        if written.is_broken {
            self.mux.stopped_receiving(id, now);
        } else if written.size > 0 {
            self.mux.forwarded(id, written.size, now);
        }
    }

    fn happened(&mut self, event: HostEvent, now: Instant) {
        match event {
            HostEvent::Connection { id, is_readable, is_writable, is_hung_up } => {
                if is_hung_up {
                    self.mux.stopped_receiving(id, now);
                } else if is_writable {
                    let written = self.host.flush(id);
                    self.written(id, written, now);
                }
                if is_readable {
                    self.mux.readable(id);
                }
            }
            HostEvent::Client { client, port } => match self.mux.connect(port, now) {
                None => self.host.dismiss(client),
                Some(id) if self.host.adopt(client, id) => {}
                Some(id) => self.mux.abort(id),
            },
        }
    }

    fn expire(&mut self, now: Instant) {
        self.mux.expire(now);
        self.host.expire(now);
        if let Some(id) = self.services.expire(now) {
            self.mux.abort(id);
        }
        self.act(now);
        if self.services.reseeds(now) {
            match self.mux.connect(reseed::PORT, now) {
                Some(id) => self.services.reseed_begun(id),
                None => self.services.reseed_lost(now),
            }
        }
    }

    /// Does to the host's ends what the multiplexer wants done.
    fn act(&mut self, now: Instant) {
        while let Some(action) = self.mux.take_action() {
            match action {
                Action::Connect(id, port) => self.connect(id, port),
                Action::Established(id, port) => {
                    if self.services.owns(id) {
                        if self.services.established() {
                            self.mux.readable(id);
                        } else {
                            self.mux.abort(id);
                        }
                    } else if !self.host.greet(id, port) {
                        self.mux.abort(id);
                    }
                }
                Action::ShutRead(id) => self.host.shut(id, Shutdown::Read),
                Action::ShutWrite(id) => self.host.shut(id, Shutdown::Write),
                Action::Close(id) => {
                    self.host.close(id);
                    self.services.closed(id, now);
                }
            }
        }
    }

    fn connect(&mut self, id: ConnectionId, port: u32) {
        if self.services.has_port(port) {
            self.services.connected(id);
            return self.mux.connected(id);
        }
        match self.host.connect(id, port) {
            Ok(()) => self.mux.connected(id),
            Err(error) => {
                tracing::debug!(port, %error, "vsock: the guest's connection is refused");
                self.mux.refused(id);
            }
        }
    }
}
