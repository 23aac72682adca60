//! The receiving half of a link: datagrams opened where they lie, packets joined and handed on.
//!
//! Threads that read sockets do all of it ([`UdpLink::receiving`]), one at a time for each link. What can't
//! be done without waiting is left to the link's task: control packets are kept for it, and it is woken to
//! send what the engine has to answer.

use std::net::SocketAddr;
use std::sync::MutexGuard;
use std::time::Instant;

use mycelium_wire::frame::FrameError;

use crate::link::stream::Taker;
use crate::link::udp::crypt::Opener;
use crate::link::udp::engine::Outcome;
use crate::link::udp::packet::{Payload, split_sealed};
use crate::link::udp::pieces::Joiner;
use crate::link::udp::{UdpLink, lock};

/// Control packets that may wait for the link's task, in bytes. Those on top are lost, and sent again.
const CONTROL_SIZE_MAX: usize = 256 << 10;
/// Data that is kept until the link is carried.
const EARLY_SIZE_MAX: usize = 256 << 10;
/// Memory that a link keeps for the front of a packet.
const SIZE_KEPT: usize = 4 << 10;

/// What the receiving half knows.
pub(super) struct Receiver {
    opener: Opener,
    joiner: Joiner,
    /// Where the peer was last.
    address: SocketAddr,
    is_confirmed: bool,
    /// The front of a data packet whose rest is still to come; before the link is carried, those before it
    /// as well.
    front: Vec<u8>,
    /// Control packets for the link's task.
    control: Vec<u8>,
    /// Takes data packets; none before the link is carried, and after.
    taker: Option<Box<dyn Taker>>,
    failure: Option<FrameError>,
}

impl Receiver {
    pub(super) fn new(opener: Opener, address: SocketAddr) -> Self {
        Self {
            opener,
            joiner: Joiner::default(),
            address,
            is_confirmed: false,
            front: Vec::new(),
            control: Vec::new(),
            taker: None,
            failure: None,
        }
    }
}

/// A link whose datagrams are being opened.
pub(super) struct Receiving<'a> {
    link: &'a UdpLink,
    receiver: MutexGuard<'a, Receiver>,
    /// Data packets, one behind the other, and the front of one more.
    stream: &'a mut Vec<u8>,
    /// How many bytes were genuine.
    size: usize,
    is_answered: bool,
}

impl UdpLink {
    /// Begins to take datagrams. Others that have some for this link wait until it is finished. What is in
    /// `stream` is of no use before, nor after.
    pub(super) fn receiving<'a>(&'a self, stream: &'a mut Vec<u8>) -> Receiving<'a> {
        let receiver = lock(&self.receiver);
        stream.clear();
        stream.extend_from_slice(&receiver.front);
        Receiving { link: self, receiver, stream, size: 0, is_answered: false }
    }

    /// Has `taker` take data packets from now on, and those that came before; nobody, when there is none.
    pub(super) fn give_data_to(&self, taker: Option<Box<dyn Taker>>) {
        let mut stream = Vec::new();
        let mut receiving = self.receiving(&mut stream);
        let before = std::mem::replace(&mut receiving.receiver.taker, taker);
        receiving.finish();
        // It may be the last that knows of this link: not while that is locked.
        drop(before);
    }

    /// Control packets that came, unless packets made no sense.
    pub(super) fn control_packets(&self) -> Result<Vec<u8>, FrameError> {
        let mut receiver = lock(&self.receiver);
        match receiver.failure.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut receiver.control)),
        }
    }
}

impl Receiving<'_> {
    /// Opens datagrams of `stride` bytes each, but for the last, which came from `from`.
    pub(super) fn open(&mut self, bytes: &mut [u8], stride: usize, from: SocketAddr) {
        let now = Instant::now();
        for datagram in bytes.chunks_mut(stride) {
            self.open_one(datagram, from, now);
        }
    }

    fn open_one(&mut self, datagram: &mut [u8], from: SocketAddr, now: Instant) {
        let (link, receiver, datagram_size) = (self.link, &mut *self.receiver, datagram.len());
        let Some((counter, sealed)) = split_sealed(datagram) else { return };
        let Ok(payload) = receiver.opener.open(counter, sealed) else { return };
        self.size += datagram_size;
        if !receiver.is_confirmed {
            receiver.is_confirmed = true;
            link.engine().confirmed();
        }
        if from != receiver.address && receiver.opener.is_newest(counter) {
            link.engine().heard_elsewhere(from, now);
            self.is_answered = true;
        }
        match Payload::parse(payload) {
            Some(Payload::Data { first, piece }) => {
                receiver.joiner.add(counter, first, piece, self.stream);
            }
            Some(payload) => self.take(payload, from, now),
            None => {}
        }
    }

    fn take(&mut self, payload: Payload<'_>, from: SocketAddr, now: Instant) {
        let (link, receiver) = (self.link, &mut *self.receiver);
        self.is_answered = true;
        let is_full = receiver.control.len() >= CONTROL_SIZE_MAX;
        if is_full && matches!(payload, Payload::Control { .. }) {
            return;
        }
        let outcome = link.engine().received(payload, from, now, &mut receiver.control);
        match outcome {
            Outcome::Nothing => {}
            Outcome::Observed { address, takes } => link.observed(address, takes, now),
            Outcome::Moved(address) => {
                tracing::info!(peer = %link.peer(), %address, "a peer has moved");
                receiver.address = address;
            }
            Outcome::Closed => link.closed(),
        }
    }

    /// Hands on all packets that are whole, if the link is carried.
    pub(super) fn finish(self) {
        let Self { link, mut receiver, stream, size, is_answered } = self;
        let whole = receiver.joiner.whole_size(stream);
        if let Some(taker) = &mut receiver.taker {
            if size > 0 {
                taker.arrived(size);
            }
            let failure = taker.packets(&mut stream[..whole]).err();
            if failure.is_some() {
                receiver.failure = failure;
                link.wake.notify_one();
            }
        }
        if receiver.taker.is_some() || stream.len() > EARLY_SIZE_MAX {
            receiver.joiner.taken(stream);
        }
        receiver.front.clear();
        receiver.front.shrink_to(SIZE_KEPT);
        receiver.front.extend_from_slice(stream);
        drop(receiver);
        if is_answered {
            link.wake.notify_one();
        }
    }
}
