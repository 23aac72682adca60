//! From links to TUN and to other links.
//!
//! An [`Ingress`] belongs to the task that reads one link, or to what a thread that reads for many links
//! has of one. It goes through all packets of a read, where they lie:
//!
//! - what is for this node is opened in place, checked, and joined with others for TUN;
//! - what is for others has its hop limit lowered in place; packets that lie side by side and leave by
//!   the same link are sent as one range of bytes;
//! - control packets are collected for the router.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Instant;

use mycelium_wire::control::{Metric, Tlv};
use mycelium_wire::frame::FrameError;
use mycelium_wire::frame::{
    self, DATA_HEADER_SIZE, DATA_HOP_LIMIT_OFFSET, DATA_SOURCE_OFFSET, DataHeader, Frame,
};
use mycelium_wire::icmp::{self, IcmpError, OutOfBand};
use mycelium_wire::identity::{PublicKey, Subnet};
use mycelium_wire::inner::{self, INNER_HEADER_SIZE, InnerType};
use mycelium_wire::session::{self, Kind as SessionKind};
use tokio::sync::mpsc;

use crate::data::session::channel::Channel;
use crate::data::session::packets::SESSION_PAYLOAD_OFFSET;
use crate::data::statistics::Tally;
use crate::data::table::{Destination, Prefix};
use crate::data::waiting::Kind;
use crate::data::{DataPlane, MessagePacket, PAYLOAD_SIZE_MAX, Signal, count, lock, too_big_for};
use crate::link::Link;
use crate::link::stream::{Inbound, LinkError, Taker};
use crate::routing::Input;
use crate::tun::coalesce::Coalescer;
use crate::tun::segment::IPV6_HEADER_SIZE;
use crate::tun::{MTU, MTU_MAX};

/// Packets that are not passed on have a hop limit below this.
const HOP_LIMIT_MIN: u8 = 2;
const HOP_LIMIT_OFFSET: usize = 7;

/// Who sent a packet, as its outside says.
struct Source {
    node: Arc<Destination>,
    /// None for those that can have no session.
    channel: Option<Arc<Channel>>,
}

impl Source {
    fn new(plane: &DataPlane, node: Arc<Destination>) -> Self {
        let channel = plane.sessions.channel(&node).cloned();
        Self { node, channel }
    }
}

/// What a packet of a session was.
enum Opened {
    /// Not the peer's.
    Forged,
    /// A sign of life.
    Nothing,
    /// Of this kind, with a payload of this size.
    Payload(SessionKind, usize),
}

/// What the reader of one link carries. `P` is a way to the data plane.
pub(crate) struct Ingress<P> {
    plane: P,
    link: Option<Arc<Link>>,
    /// Where control packets go; none when they are passed over.
    inputs: Option<mpsc::Sender<Input>>,
    /// Number of the queue of TUN that it writes to.
    queue: usize,
    coalescer: Coalescer,
    /// Routes looked up last: most packets of a read are of few flows.
    source: Option<Source>,
    target: Option<(Arc<Destination>, Arc<Link>)>,
    /// Bytes that leave by the same link.
    run: Option<(Arc<Link>, Range<usize>)>,
    tlvs: Vec<Tlv>,
    tally: Tally,
}

impl Ingress<Arc<DataPlane>> {
    /// For the packets of `link`, whose control packets go to `inputs`.
    pub(crate) fn new(
        plane: &Arc<DataPlane>,
        link: &Arc<Link>,
        inputs: &mpsc::Sender<Input>,
    ) -> Self {
        Self { inputs: Some(inputs.clone()), ..Self::for_data(plane, link) }
    }

    /// For the data packets of `link`.
    fn for_data(plane: &Arc<DataPlane>, link: &Arc<Link>) -> Self {
        Self {
            queue: usize::try_from(link.id().0).unwrap_or(0),
            link: Some(Arc::clone(link)),
            ..Self::without_link(Arc::clone(plane))
        }
    }
}

impl<P: Deref<Target = DataPlane>> Ingress<P> {
    /// For packets that waited.
    pub(crate) fn without_link(plane: P) -> Self {
        Self {
            plane,
            link: None,
            inputs: None,
            queue: 0,
            coalescer: Coalescer::default(),
            source: None,
            target: None,
            run: None,
            tlvs: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Delivers a packet that waited for its sender's key.
    pub(crate) fn deliver_one(&mut self, packet: &mut [u8], from: &Arc<Destination>) {
        if let Ok(Some((Frame::Data(data), size))) = frame::parse(packet) {
            let header = data.header;
            self.source = Some(Source::new(&self.plane, Arc::clone(from)));
            self.deliver(packet, 0..size, header, Instant::now());
            self.flush_tun(packet);
        }
    }

    fn data(&mut self, bytes: &mut [u8], at: Range<usize>, header: DataHeader, now: Instant) {
        let (source, destination) = (header.source, header.destination);
        self.tally.add(source, destination, at.len(), &self.plane.statistics);
        if Prefix::of(header.destination) == self.plane.own {
            self.deliver(bytes, at, header, now);
        } else {
            self.forward(bytes, at, header, now);
        }
    }

    /// Opens a packet for this node.
    fn deliver(&mut self, bytes: &mut [u8], at: Range<usize>, header: DataHeader, now: Instant) {
        let prefix = Prefix::of(header.source);
        if self.source.as_ref().is_none_or(|source| source.node.prefix != prefix) {
            let node = self.plane.table.get(prefix);
            self.source = node.map(|node| Source::new(&self.plane, node));
        }
        let Some(Source { node, channel }) = &self.source else {
            if prefix != self.plane.own {
                self.plane.hold(prefix, Kind::Arrived, &bytes[at], now);
            }
            return;
        };
        if let Some(channel) = channel
            && let Some(opened) = self.open_session(channel, &mut bytes[at.clone()], now)
        {
            let (begin, key) = (at.start + SESSION_PAYLOAD_OFFSET, node.public_key());
            return match opened {
                Opened::Nothing => {}
                Opened::Forged => count(&self.plane.counters.forged, 1),
                Opened::Payload(SessionKind::PACKET, size) => {
                    self.packet(bytes, begin..begin + size, header);
                }
                Opened::Payload(SessionKind::MESSAGE, size) => {
                    self.message(key, header, &bytes[begin..begin + size]);
                }
                Opened::Payload(kind, size) => {
                    self.plane.sessions.deliver(kind, key, &bytes[begin..begin + size]);
                }
            };
        }
        let begin = at.start + DATA_HEADER_SIZE;
        let opened = node.key(&self.plane.secret).open_in_place(&mut bytes[begin..at.end]);
        let Ok(body) = opened else {
            // Perhaps it is sealed with a session that this node had before it was started anew.
            if let Some(channel) = channel.as_ref().filter(|c| c.ring().current().is_none()) {
                self.plane.sessions.want(channel, now);
            }
            return count(&self.plane.counters.forged, 1);
        };
        let size = body.len();
        let is_refused = channel.as_ref().is_some_and(|channel| channel.is_proved());
        match inner::parse(body) {
            // Who ever had a session says nothing of its own in this form.
            Ok((InnerType::Packet | InnerType::Message, _)) if is_refused => {
                count(&self.plane.sessions.counters().refused, 1);
            }
            Ok((InnerType::Packet, _)) => {
                self.packet(bytes, begin + INNER_HEADER_SIZE..begin + size, header);
            }
            Ok((InnerType::Message, payload)) => {
                self.message(node.public_key(), header, payload);
            }
            Ok((InnerType::Icmp, payload)) => self.plane.out_of_band(header, payload),
            Ok((InnerType::Session, payload)) => {
                self.plane.sessions.handshake(node.public_key(), payload);
            }
            // Something that a later version sends.
            Err(_) => {}
        }
    }

    /// Opens a packet that begins as those of a living session do; none of other packets.
    fn open_session(&self, channel: &Channel, packet: &mut [u8], now: Instant) -> Option<Opened> {
        let (head, body) = packet.split_at_mut(DATA_HEADER_SIZE);
        let ring = channel.ring();
        let session = ring.by_index(session::index(body)?)?;
        let aad = &head[DATA_SOURCE_OFFSET..];
        let Ok((plaintext, is_first)) = session.open(aad, body, self.plane.sessions.time(now))
        else {
            return Some(Opened::Forged);
        };
        if is_first {
            self.plane.sessions.confirmed();
        }
        Some(match plaintext.split_first() {
            None => Opened::Nothing,
            Some((kind, payload)) => Opened::Payload(SessionKind(*kind), payload.len()),
        })
    }

    /// Gives the messages' machine a packet.
    fn message(&self, public_key: PublicKey, header: DataHeader, payload: &[u8]) {
        let packet = MessagePacket {
            source: header.source,
            destination: header.destination,
            public_key,
            payload: payload.to_vec(),
        };
        // As on any network, what there is no room for is lost; its sender sends it again.
        let _ = self.plane.messages.try_send(packet);
        count(&self.plane.counters.received, 1);
    }

    /// Gives the kernel a packet whose inside says what its outside says.
    fn packet(&mut self, bytes: &mut [u8], at: Range<usize>, header: DataHeader) {
        let Some(inside) = bytes[at.clone()].first_chunk::<IPV6_HEADER_SIZE>() else { return };
        let (source, destination) = icmp::addresses(inside);
        let is_honest = inside[0] >> 4 == 6
            && Prefix::of(source) == Prefix::of(header.source)
            && destination == header.destination;
        if !is_honest {
            return count(&self.plane.counters.forged, 1);
        }
        if destination == self.plane.address
            && self.plane.probes.answered(&bytes[at.clone()], header.hop_limit)
        {
            return;
        }
        let Some(tun) = self.plane.tun() else { return };
        bytes[at.start + HOP_LIMIT_OFFSET] = header.hop_limit;
        self.coalescer.push(bytes, at, &mut tun.queue(self.queue));
        count(&self.plane.counters.received, 1);
    }

    /// Passes a packet on.
    fn forward(&mut self, bytes: &mut [u8], at: Range<usize>, header: DataHeader, now: Instant) {
        if header.hop_limit < HOP_LIMIT_MIN {
            count(&self.plane.counters.expired, 1);
            let body = &bytes[at.start + DATA_HEADER_SIZE..at.end];
            return self.plane.refuse(header, body, IcmpError::TimeExceeded);
        }
        let prefix = Prefix::of(header.destination);
        if self.target.as_ref().is_none_or(|(target, _)| target.prefix != prefix) {
            self.target = self.plane.route(prefix);
        }
        bytes[at.start + DATA_HOP_LIMIT_OFFSET] = header.hop_limit - 1;
        let Some((to, link)) = &self.target else {
            return self.plane.hold(prefix, Kind::Transit, &bytes[at], now);
        };
        if let Some(mtu) = too_big_for(to, link, at.len()) {
            count(&self.plane.counters.too_big, 1);
            let body = &bytes[at.start + DATA_HEADER_SIZE..at.end];
            let error = IcmpError::PacketTooBig { mtu: mtu.into() };
            return self.plane.refuse(header, body, error);
        }
        count(&self.plane.counters.forwarded, 1);
        match &mut self.run {
            Some((to, run)) if Arc::ptr_eq(to, link) && run.end == at.start => run.end = at.end,
            _ => {
                let begun = Some((Arc::clone(link), at));
                self.flush_run(bytes, now);
                self.run = begun;
            }
        }
    }

    fn flush_run(&mut self, bytes: &[u8], now: Instant) {
        if let Some((link, run)) = self.run.take() {
            link.send_data(&bytes[run], now);
        }
    }

    fn flush_tun(&mut self, bytes: &[u8]) {
        if let Some(tun) = self.plane.tun() {
            self.coalescer.flush(bytes, &mut tun.queue(self.queue));
        }
    }

    /// Keeps a control packet for the router.
    fn control(&mut self, tlv: Tlv) {
        if self.inputs.is_none() {
            return;
        }
        // Only the owner of a subnet is no way at all from it.
        if let (Some(update), Some(link)) = (tlv.update(), &self.link)
            && update.metric == Metric::ZERO
        {
            link.introduced(&update.router_id);
        }
        self.tlvs.push(tlv);
    }

    /// Goes through whole packets and gives where they end.
    fn walk(&mut self, bytes: &mut [u8], now: Instant) -> (usize, Result<(), FrameError>) {
        let mut at = 0;
        loop {
            match frame::parse(&bytes[at..]) {
                Ok(None) => return (at, Ok(())),
                Err(error) => return (at, Err(error)),
                Ok(Some((Frame::Control(tlv), size))) => {
                    match tlv {
                        Ok(tlv) => self.control(tlv),
                        Err(error) => tracing::debug!(%error, "a control packet is skipped"),
                    }
                    at += size;
                }
                Ok(Some((Frame::Data(data), size))) => {
                    let header = data.header;
                    self.data(bytes, at..at + size, header, now);
                    at += size;
                }
            }
        }
    }
}

impl<P: Deref<Target = DataPlane> + Send> Taker for Ingress<P> {
    fn packets(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError> {
        let now = Instant::now();
        // Routes change between reads.
        (self.source, self.target) = (None, None);
        let (end, result) = self.walk(bytes, now);
        self.flush_run(bytes, now);
        self.flush_tun(bytes);
        self.tally.flush(&self.plane.statistics);
        result.map(|()| end)
    }

    fn arrived(&mut self, size: usize) {
        let Some(link) = &self.link else { return };
        if link.heard(size) && self.plane.signals.try_send(Signal::Heard(Arc::clone(link))).is_err()
        {
            link.listen();
        }
    }
}

impl Inbound for Ingress<Arc<DataPlane>> {
    async fn settle(&mut self) -> Result<(), LinkError> {
        let (Some(link), Some(inputs)) = (&self.link, &self.inputs) else { return Ok(()) };
        for tlv in self.tlvs.drain(..) {
            // Waits while the router is busy, and with it the peer.
            let input = Input::Received(link.id(), tlv);
            inputs.send(input).await.map_err(|_| LinkError::Stopping)?;
        }
        Ok(())
    }

    fn data_taker(&self) -> Box<dyn Taker> {
        Box::new(match &self.link {
            Some(link) => Self::for_data(&self.plane, link),
            None => Self::without_link(Arc::clone(&self.plane)),
        })
    }
}

impl DataPlane {
    /// Tells the source of a packet on its way through this node why it was dropped.
    fn refuse(&self, header: DataHeader, body: &[u8], error: IcmpError) {
        let answers_itself = Prefix::of(header.source) == self.own;
        if answers_itself
            || header.source.is_multicast()
            || !lock(&self.errors).take(Instant::now())
        {
            return;
        }
        let source = Subnet::of(self.address).network();
        let mut payload = Vec::with_capacity(PAYLOAD_SIZE_MAX);
        OutOfBand {
            original_destination: header.destination,
            source,
            destination: header.source,
            hop_limit: icmp::ERROR_HOP_LIMIT,
            error,
            original: body,
        }
        .encode(&mut payload);
        self.send(InnerType::Icmp, source, header.source, &payload);
    }

    /// Takes what a node on the way says of a packet of ours: opens the packet that it sends back, and
    /// tells our host in the language of ICMPv6.
    fn out_of_band(&self, header: DataHeader, payload: &[u8]) {
        let Ok(message) = OutOfBand::parse(payload) else {
            return count(&self.counters.forged, 1);
        };
        let is_honest = Prefix::of(message.source) == Prefix::of(header.source)
            && Prefix::of(message.destination) == self.own;
        let Some(destination) = self.table.get(Prefix::of(message.original_destination)) else {
            return;
        };
        if let IcmpError::PacketTooBig { mtu } = message.error
            && message.original.is_empty()
        {
            // It was too large to be sent back, so nothing shows that it was ours. Whoever says so without
            // being on the way has us send what all nodes take, and no less.
            if is_honest {
                let mtu = u16::try_from(mtu).unwrap_or(MTU_MAX).clamp(MTU, MTU_MAX);
                destination.limit(mtu, Instant::now());
            }
            return;
        }
        let mut original = message.original.to_vec();
        let (from, to) = (message.destination, message.original_destination);
        let packet = self.reopen(&destination, from, to, &mut original);
        let Some(packet) = packet else { return };
        let Some(first) = packet.first_chunk() else { return };
        let (source, target) = icmp::addresses(first);
        // Nobody else may claim that we sent a packet.
        let is_ours = source == message.destination && target == message.original_destination;
        let error = message.error;
        if is_honest && is_ours && self.probes.refused(packet, error, message.source) {
            return;
        }
        if is_honest && is_ours && lock(&self.errors).take(Instant::now()) {
            self.write_error(error, message.source, source, header.hop_limit, packet);
        }
    }
}
