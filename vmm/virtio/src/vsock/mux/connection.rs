//! One connection, as far as its packets go: what state it is in, what each side may still send,
//! and what the guest has to be told.
//!
//! ```text
//!   guest asks ──► Connecting ──host accepts──► Open ──host is done──► Closing ──► gone
//!   host asks  ──► Requested  ──RESPONSE──────►  │                     (until the guest's RST)
//!                                                └──guest is done────► Draining ──► gone
//!                                                                      (until the host has read)
//! ```
//!
//! Counts wrap at 2^32, as on the wire (virtio 1.3 §5.10.6.3).

use std::time::Instant;

use super::super::packet::{
    HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op,
};

/// Most payload in one packet to the guest, as Linux limits its own.
pub(super) const PAYLOAD_SIZE_MAX: u32 = 64 << 10;
/// A guest may claim a larger buffer, but then counts could no longer be compared.
const GUEST_BUFFER_SIZE_MAX: u32 = 1 << 30;

/// Which connection: the ports on both sides. The addresses are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct Ports {
    pub(in super::super) guest: u32,
    pub(in super::super) host: u32,
}

/// Where in its life a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest asked for it; the host's end is not there yet.
    Connecting,
    /// The host asked for it; the guest has not answered.
    Requested,
    /// Both ends are there.
    Open,
    /// The host's end is gone; the guest was told, and will reset it.
    Closing,
    /// The guest's end is gone; the host's still reads what was sent before.
    Draining,
}

/// What the connection wants to put into a buffer of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This packet, without payload.
    Packet(Header),
    /// As much of what the host sends as there is, up to this size.
    Read(u32),
}

/// The guest broke a rule of the connection, which is then reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) state: State,
    /// When it is given up, if nothing happens.
    pub(super) deadline: Option<Instant>,
    /// In the multiplexer's list of those that have something to send.
    pub(super) is_listed: bool,
    /// `REQUEST` or `RESPONSE` is still to be sent.
    must_greet: bool,

    /// Whether it holds one of the large buffers.
    pub(super) is_roomy: bool,
    buffer_size: u32,
    received: u32,
    forwarded: u32,
    /// The value of `forwarded` that the guest was told last.
    announced: u32,
    must_announce: bool,
    guest_sends: bool,
    host_receives: bool,
    /// The host's end was told that nothing more will come.
    is_shut: bool,

    guest_buffer_size: u32,
    sent: u32,
    acknowledged: u32,
    asked_for_credit: bool,
    can_read: bool,
    guest_receives: bool,
    host_sends: bool,
    /// Flags of the last `SHUTDOWN` sent.
    told: u32,
}

impl Connection {
    /// A connection that begins in `state`, with a receive buffer of this size.
    pub(super) const fn new(ports: Ports, state: State, buffer_size: u32, is_roomy: bool) -> Self {
        Self {
            ports,
            state,
            deadline: None,
            is_listed: false,
            must_greet: true,
            is_roomy,
            buffer_size,
            received: 0,
            forwarded: 0,
            announced: 0,
            must_announce: false,
            guest_sends: true,
            host_receives: true,
            is_shut: false,
            guest_buffer_size: 0,
            sent: 0,
            acknowledged: 0,
            asked_for_credit: false,
            can_read: false,
            guest_receives: true,
            host_sends: true,
            told: 0,
        }
    }

    /// Whether packets go both ways: the greeting is over.
    pub(super) fn is_greeted(&self) -> bool {
        !self.must_greet
    }

    /// Bytes of the guest that the host's end has not taken yet.
    pub(super) const fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// The guest has closed its end.
    pub(super) const fn is_guest_done(&self) -> bool {
        !self.guest_sends && !self.guest_receives
    }

    /// The host sends no more, and nothing more can or will reach it.
    pub(super) const fn is_host_done(&self) -> bool {
        !self.host_sends && (!self.host_receives || self.is_guest_drained())
    }

    /// The guest sends no more, and the host has taken all that it sent.
    pub(super) const fn is_guest_drained(&self) -> bool {
        !self.guest_sends && self.buffered() == 0
    }

    /// Whether the host's end is to be told that nothing more will come; true once.
    pub(super) const fn shuts(&mut self) -> bool {
        let shuts = self.is_guest_drained() && self.host_receives && !self.is_shut;
        self.is_shut |= shuts;
        shuts
    }

    /// Takes what a packet says of the guest's buffer. Counts that lag behind are those of a
    /// packet that was overtaken by another; counts ahead of what was sent are lies.
    pub(super) fn take_credit(&mut self, header: &Header) -> Result<(), Broken> {
        let in_flight = self.sent.wrapping_sub(self.acknowledged);
        let advance = header.fwd_cnt.wrapping_sub(self.acknowledged);
        if advance <= in_flight {
            self.acknowledged = header.fwd_cnt;
            self.guest_buffer_size = header.buf_alloc.min(GUEST_BUFFER_SIZE_MAX);
            if self.credit() > 0 {
                self.asked_for_credit = false;
            }
            return Ok(());
        }
        if advance < 1 << 31 { Err(Broken) } else { Ok(()) }
    }

    /// The guest sends `size` bytes. True if the host's end is to take them, false if it is not
    /// there to do so.
    pub(super) fn take_payload(&mut self, size: u32) -> Result<bool, Broken> {
        let is_legal = self.guest_sends && size <= self.buffer_size - self.buffered();
        if !is_legal {
            return Err(Broken);
        }
        self.received = self.received.wrapping_add(size);
        if !self.host_receives {
            self.forward(size);
        }
        Ok(self.host_receives && size > 0)
    }

    /// `size` bytes of the guest have left the buffer.
    pub(super) fn forward(&mut self, size: u32) {
        assert!(size <= self.buffered(), "{size} bytes left a buffer of {}", self.buffered());
        self.forwarded = self.forwarded.wrapping_add(size);
        // The guest's view of the buffer: it stops sending only when it believes it is full.
        if self.forwarded.wrapping_sub(self.announced) >= self.buffer_size / 2 {
            self.must_announce = true;
        }
    }

    /// The guest wants to know what there is room for.
    pub(super) const fn announce(&mut self) {
        self.must_announce = true;
    }

    /// The guest will not do again what `flags` say.
    pub(super) const fn take_shutdown(&mut self, flags: u32) {
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
        }
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.guest_receives = false;
            // Nobody is there to receive it.
            self.host_sends = false;
        }
    }

    /// The host's end takes nothing more.
    pub(super) fn stop_receiving(&mut self) {
        self.host_receives = false;
        let buffered = self.buffered();
        self.forward(buffered);
    }

    /// Whether the host's end takes more.
    pub(super) const fn host_receives(&self) -> bool {
        self.host_receives
    }

    /// Whether the guest may be sent something.
    pub(super) const fn host_sends(&self) -> bool {
        self.host_sends
    }

    /// The host's end sends nothing more.
    pub(super) const fn stop_sending(&mut self) {
        self.host_sends = false;
    }

    /// Whether the host's end has something to be read.
    pub(super) const fn set_readable(&mut self, can_read: bool) {
        self.can_read = can_read;
    }

    /// `size` bytes were read from the host's end: their packet's header.
    pub(super) fn send(&mut self, size: u32, guest_cid: u64) -> Header {
        assert!(size <= self.credit(), "{size} bytes sent, the guest has room for less");
        self.sent = self.sent.wrapping_add(size);
        Header { len: size, ..self.header(op::RW, 0, guest_cid) }
    }

    /// What is to be sent next into a buffer with `room` for payload.
    pub(super) fn next(&mut self, room: u32, guest_cid: u64) -> Option<Next> {
        if !self.has_next() {
            return None;
        }
        if self.must_greet {
            self.must_greet = false;
            let op = if self.state == State::Requested { op::REQUEST } else { op::RESPONSE };
            return Some(Next::Packet(self.header(op, 0, guest_cid)));
        }
        let ends = self.ends();
        if ends != self.told {
            self.told = ends;
            return Some(Next::Packet(self.header(op::SHUTDOWN, ends, guest_cid)));
        }
        if self.must_announce {
            return Some(Next::Packet(self.header(op::CREDIT_UPDATE, 0, guest_cid)));
        }
        if self.credit() == 0 {
            self.asked_for_credit = true;
            return Some(Next::Packet(self.header(op::CREDIT_REQUEST, 0, guest_cid)));
        }
        Some(Next::Read(self.credit().min(room).min(PAYLOAD_SIZE_MAX)))
    }

    /// Whether there is something to be sent.
    pub(super) const fn has_next(&self) -> bool {
        match self.state {
            State::Connecting | State::Draining => false,
            State::Requested => self.must_greet,
            State::Open => {
                self.must_greet
                    || self.ends() != self.told
                    || self.must_announce
                    || self.can_read
                        && self.host_sends
                        && (self.credit() > 0 || !self.asked_for_credit)
            }
            State::Closing => self.must_greet || self.ends() != self.told,
        }
    }

    /// A reset of it.
    pub(super) fn reset(&mut self, guest_cid: u64) -> Header {
        self.header(op::RST, 0, guest_cid)
    }

    /// Bytes that the guest has room for.
    const fn credit(&self) -> u32 {
        self.guest_buffer_size.saturating_sub(self.sent.wrapping_sub(self.acknowledged))
    }

    /// What the guest must know to have ended, as flags of `SHUTDOWN`.
    const fn ends(&self) -> u32 {
        if matches!(self.state, State::Closing) {
            return SHUTDOWN_BOTH;
        }
        let receive = if self.host_receives { 0 } else { SHUTDOWN_RECEIVE };
        let send = if self.host_sends || !self.guest_receives { 0 } else { SHUTDOWN_SEND };
        receive | send
    }

    /// A packet of it. Whichever it is, it tells the guest what there is room for.
    const fn header(&mut self, op: u16, flags: u32, guest_cid: u64) -> Header {
        self.announced = self.forwarded;
        self.must_announce = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: 0,
            kind: STREAM,
            op,
            flags,
            buf_alloc: self.buffer_size,
            fwd_cnt: self.forwarded,
        }
    }
}
