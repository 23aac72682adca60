//! Nodes' data planes joined by sockets, without a device and without a router: tests set the routes.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use mycelium_wire::frame::{self, DataFrame, Frame};
use mycelium_wire::icmp::OutOfBand;
use mycelium_wire::identity::RouterId;
use mycelium_wire::inner;

use super::table::TableWriter;
use super::*;
use crate::link::Carrier;
use crate::link::stream::{StreamCarrier, Taker};

/// A node without a device.
pub(super) struct Station {
    pub(super) plane: Arc<DataPlane>,
    routes: TableWriter,
    pub(super) signals: mpsc::Receiver<Signal>,
    pub(super) messages: mpsc::Receiver<MessagePacket>,
    pub(super) key: PublicKey,
    pub(super) secret: SecretKey,
}

impl Station {
    fn new(number: u8) -> Self {
        Self::with(number, Sessions::new(None, &[]))
    }

    pub(super) fn with(number: u8, sessions: Sessions) -> Self {
        let sessions = Arc::new(sessions);
        let secret = || SecretKey::from_bytes([number; 32]);
        let table = Arc::new(Table::default());
        let (signals, signals_taken) = mpsc::channel(16);
        let (messages, messages_taken) = mpsc::channel(16);
        let plane = DataPlane::new(secret(), Arc::clone(&table), None, signals, messages, sessions)
            .unwrap();
        Self {
            plane: Arc::new(plane),
            routes: TableWriter::new(table),
            signals: signals_taken,
            messages: messages_taken,
            key: secret().public(),
            secret: secret(),
        }
    }

    /// Lets packets for `to` leave by a new link, and gives its other end.
    fn route(&mut self, to: &Self) -> UnixStream {
        self.route_to(to.key, [0, 0])
    }

    /// The same, to a node that says this of itself.
    pub(super) fn route_to(&mut self, key: PublicKey, zone: [u8; 2]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let carrier = Carrier::Stream(StreamCarrier::new(OwnedFd::from(ours)).unwrap());
        let link = Arc::new(Link::new(LinkId(1), "test".to_owned(), carrier));
        let router_id = RouterId::new(key, zone, [0; 6]);
        self.routes.set(key.subnet(), &router_id, link).unwrap();
        theirs
    }

    /// Takes what came over a link.
    pub(super) fn take(&self, bytes: &mut [u8]) {
        let mut ingress = ingress::Ingress::without_link(&*self.plane);
        assert_eq!(ingress.packets(bytes), Ok(bytes.len()));
    }

    pub(super) fn address(&self) -> Ipv6Addr {
        self.key.address()
    }

    pub(super) fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        counter(self.plane.counters()).load(Ordering::Relaxed)
    }
}

/// What has arrived at the other end of a link.
pub(super) fn received(link: &mut UnixStream) -> Vec<u8> {
    link.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; 1 << 16];
    let size = link.read(&mut bytes).unwrap_or(0);
    bytes.truncate(size);
    bytes
}

pub(super) fn data(bytes: &[u8]) -> DataFrame<'_> {
    let Frame::Data(data) = frame::parse_datagram(bytes).unwrap() else { panic!("control") };
    data
}

#[tokio::test]
async fn a_message_reaches_a_node_by_way_of_another() {
    let [mut a, mut middle, mut b] = [1, 2, 3].map(Station::new);
    let (mut to_middle, mut to_b) = (a.route(&b), middle.route(&b));
    b.route(&a);
    a.plane.send(InnerType::Message, a.address(), b.address(), b"hello");
    let mut bytes = received(&mut to_middle);
    middle.take(&mut bytes);
    let mut bytes = received(&mut to_b);
    assert_eq!(data(&bytes).header.hop_limit, ERROR_HOP_LIMIT - 1);
    assert!(middle.messages.try_recv().is_err());
    b.take(&mut bytes);
    let message = b.messages.try_recv().unwrap();
    assert_eq!((message.source, message.public_key), (a.address(), a.key));
    assert_eq!(message.payload, b"hello");
    assert_eq!((middle.count(|c| &c.forwarded), b.count(|c| &c.received)), (1, 1));
}

#[tokio::test]
async fn a_run_of_packets_leaves_as_it_came_but_for_its_hop_limits() {
    let [mut a, mut middle, b] = [1, 2, 3].map(Station::new);
    let (mut to_middle, mut to_b) = (a.route(&b), middle.route(&b));
    for number in 0..20 {
        a.plane.send(InnerType::Message, a.address(), b.address(), &[number; 100]);
    }
    let mut bytes = received(&mut to_middle);
    let mut expected = bytes.clone();
    for packet in expected.chunks_mut(100 + DATA_OVERHEAD) {
        packet[frame::DATA_HOP_LIMIT_OFFSET] -= 1;
    }
    middle.take(&mut bytes);
    assert_eq!(received(&mut to_b), expected);
}

#[tokio::test]
async fn a_packet_whose_hops_are_used_up_is_answered_out_of_band() {
    let [mut a, mut middle, mut b] = [1, 2, 3].map(Station::new);
    let mut to_middle = a.route(&b);
    let (mut to_a, mut to_b) = (middle.route(&a), middle.route(&b));
    a.route(&middle);
    b.route(&a);
    a.plane.send(InnerType::Message, a.address(), b.address(), b"far");
    let mut bytes = received(&mut to_middle);
    bytes[frame::DATA_HOP_LIMIT_OFFSET] = 1;
    let body = data(&bytes).body.to_vec();
    middle.take(&mut bytes);
    assert!(received(&mut to_b).is_empty());
    let answer = received(&mut to_a);
    let mut sealed = data(&answer).body.to_vec();
    let key = mycelium_wire::cipher::PairKey::new(&a.secret.shared(&middle.key));
    let (inner_type, payload) = inner::parse(key.open_in_place(&mut sealed).unwrap()).unwrap();
    assert_eq!(inner_type, InnerType::Icmp);
    let error = OutOfBand::parse(payload).unwrap();
    assert_eq!((error.error, error.destination), (IcmpError::TimeExceeded, a.address()));
    assert_eq!((error.original_destination, error.original), (b.address(), &body[..]));
}

#[tokio::test]
async fn packets_wait_for_a_route_and_for_a_key() {
    let [mut a, mut b] = [1, 2].map(Station::new);
    for payload in [b"1", b"2"] {
        a.plane.send(InnerType::Message, a.address(), b.address(), payload);
    }
    let Ok(Signal::Wanted(subnet)) = a.signals.try_recv() else { panic!("nothing is wanted") };
    assert_eq!(subnet, b.key.subnet());
    assert!(a.signals.try_recv().is_err() && !a.plane.is_idle());
    let mut to_b = a.route(&b);
    a.plane.release(Prefix::of(b.address()), Instant::now());
    let mut bytes = received(&mut to_b);
    assert!(a.plane.is_idle());

    b.take(&mut bytes);
    assert!(b.messages.try_recv().is_err());
    let Ok(Signal::Wanted(subnet)) = b.signals.try_recv() else { panic!("nothing is wanted") };
    assert_eq!(subnet, a.key.subnet());
    b.route(&a);
    b.plane.release(Prefix::of(a.address()), Instant::now());
    for payload in [b"1", b"2"] {
        assert_eq!(b.messages.try_recv().unwrap().payload, payload);
    }
}

#[tokio::test]
async fn a_packet_that_claims_another_source_inside_is_dropped() {
    let [mut a, mut b, victim] = [1, 2, 3].map(Station::new);
    let mut to_b = a.route(&b);
    b.route(&a);
    for (source, destination, is_honest) in [
        (a.address(), b.address(), true),
        (victim.address(), b.address(), false),
        (a.address(), victim.address(), false),
    ] {
        let mut packet = [0; 60];
        packet[0] = 0x60;
        packet[5] = 20;
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..40].copy_from_slice(&destination.octets());
        a.plane.send(InnerType::Packet, a.address(), b.address(), &packet);
        let forged = b.count(|counters| &counters.forged);
        b.take(&mut received(&mut to_b));
        assert_eq!(b.count(|counters| &counters.forged) == forged, is_honest);
    }
}

#[tokio::test]
async fn what_nobody_sealed_for_this_node_is_dropped() {
    let [mut a, mut b] = [1, 2].map(Station::new);
    let mut to_b = a.route(&b);
    b.route(&a);
    a.plane.send(InnerType::Message, a.address(), b.address(), b"true");
    let mut bytes = received(&mut to_b);
    *bytes.last_mut().unwrap() ^= 1;
    b.take(&mut bytes);
    assert!(b.messages.try_recv().is_err());
    assert_eq!(b.count(|counters| &counters.forged), 1);
}

#[test]
fn errors_are_few_a_second() {
    let now = Instant::now();
    let mut budget = Budget::new(now);
    let taken = (0..1000).filter(|_| budget.take(now)).count();
    assert_eq!(taken, 100);
    let later = now + std::time::Duration::from_millis(500);
    assert_eq!((0..1000).filter(|_| budget.take(later)).count(), 50);
}
