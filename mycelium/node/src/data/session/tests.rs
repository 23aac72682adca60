//! Two nodes' data planes and keepers, joined by sockets; time passes when a test says so.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use mycelium_wire::cipher::PairKey;
use mycelium_wire::frame::{self, Frame};
use mycelium_wire::inner::{self, InnerType};
use mycelium_wire::session::{PROVED_COUNT_MAX, ZONE};

use super::keeper::Keeper;
use super::*;
use crate::data::Signal;
use crate::data::table::Prefix;
use crate::data::tests::{Station, data, received};

const OLD: [u8; 2] = [0, 0];

struct Node {
    station: Station,
    keeper: Keeper,
    orders: mpsc::Receiver<Order>,
    /// The far end of its link.
    link: UnixStream,
}

impl Node {
    /// Node `number` with a route to node `other`, which says `zone` of itself.
    fn new(number: u8, other: u8, zone: [u8; 2], proved: &[PublicKey]) -> Self {
        let (sender, orders) = mpsc::channel(ORDER_COUNT_MAX);
        let mut station = Station::with(number, Sessions::new(Some(sender), proved));
        let plane = Arc::clone(&station.plane);
        let keeper = Keeper::new(station.secret.clone(), plane, proved, None).unwrap();
        let link = station.route_to(key(other), zone);
        Self { station, keeper, orders, link }
    }

    fn sessions(&self) -> &Sessions {
        self.station.plane.sessions()
    }

    /// Does what is to be done by `now`, and gives what it sends.
    fn work(&mut self, now: Instant) -> Vec<u8> {
        while let Ok(order) = self.orders.try_recv() {
            self.keeper.order(order, now);
        }
        self.keeper.act(now);
        received(&mut self.link)
    }

    fn say(&self, to: u8, payload: &[u8]) {
        let (source, destination) = (self.station.address(), key(to).address());
        self.station.plane.send(InnerType::Message, source, destination, payload);
    }

    fn hears(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.station.messages.try_recv().ok())
            .map(|message| message.payload)
            .collect()
    }

    fn state(&self, of: u8) -> Option<State> {
        let destination = self.destination(of);
        self.sessions().state(&destination, Instant::now())
    }

    fn destination(&self, of: u8) -> Arc<Destination> {
        self.station.plane.table.get(Prefix::of(key(of).address())).unwrap()
    }

    fn is_forward_secret(&self, of: u8) -> bool {
        matches!(self.state(of), Some(State::ForwardSecret { .. }))
    }
}

fn key(number: u8) -> PublicKey {
    mycelium_wire::identity::SecretKey::from_bytes([number; 32]).public()
}

/// Lets two nodes talk until neither has anything to say, and gives what passed.
fn settle(a: &mut Node, b: &mut Node) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let now = Instant::now();
        let (mut from_a, mut from_b) = (a.work(now), b.work(now));
        if from_a.is_empty() && from_b.is_empty() {
            return all;
        }
        all.extend(from_a.iter().chain(&from_b));
        b.station.take(&mut from_a);
        a.station.take(&mut from_b);
    }
}

/// The inner types of packets that keys which last for ever open; none for others.
fn old_types(bytes: &[u8]) -> Vec<Option<InnerType>> {
    let secret = mycelium_wire::identity::SecretKey::from_bytes([1; 32]);
    let pair = PairKey::new(&secret.shared(&key(2)));
    let (mut rest, mut types) = (bytes, Vec::new());
    while let Some((Frame::Data(data), size)) = frame::parse(rest).unwrap() {
        let mut body = data.body.to_vec();
        let opened = pair.open_in_place(&mut body).ok();
        types.push(opened.map(|body| inner::parse(body).unwrap().0));
        rest = &rest[size..];
    }
    types
}

#[tokio::test]
async fn what_is_said_between_two_that_can_is_sealed_with_a_session() {
    let (mut a, mut b) = (Node::new(1, 2, ZONE, &[]), Node::new(2, 1, ZONE, &[]));
    a.say(2, b"hello");
    let passed = settle(&mut a, &mut b);
    assert_eq!(b.hears(), [b"hello"]);
    let types = old_types(&passed);
    // Initiation, response; the message, and a sign of life.
    assert_eq!(types, [Some(InnerType::Session), Some(InnerType::Session), None, None]);
    assert!(a.is_forward_secret(2) && b.is_forward_secret(1));
    b.say(1, b"hello to you");
    assert_eq!(old_types(&settle(&mut a, &mut b)), [None]);
    assert_eq!(a.hears(), [b"hello to you"]);
    assert!(a.sessions().is_proved(&key(2)) && b.sessions().is_proved(&key(1)));
    assert_eq!(a.sessions().parked_size(), 0);
}

#[tokio::test]
async fn other_kinds_reach_their_subscribers() {
    let (mut a, mut b) = (Node::new(1, 2, ZONE, &[]), Node::new(2, 1, ZONE, &[]));
    let mut rendezvous = b.sessions().subscribe(Kind::RENDEZVOUS);
    assert!(a.station.plane.send_session(key(2), Kind::RENDEZVOUS, b"first"));
    settle(&mut a, &mut b);
    assert!(a.station.plane.send_session(key(2), Kind::RENDEZVOUS, b"second"));
    assert!(a.station.plane.send_session(key(2), Kind::PROBE, b"nobody listens"));
    settle(&mut a, &mut b);
    for expected in [b"first".to_vec(), b"second".to_vec()] {
        assert_eq!(rendezvous.try_recv().unwrap(), (key(1), expected));
    }
    assert!(rendezvous.try_recv().is_err());
    for _ in 0..SUBSCRIPTION_COUNT_MAX + 3 {
        b.sessions().deliver(Kind::RENDEZVOUS, key(1), b"flood");
    }
    assert_eq!(b.sessions().counters().missed.load(Ordering::Relaxed), 3);
    // A node that speaks none.
    let station = Station::with(3, Sessions::new(None, &[]));
    assert!(!station.plane.send_session(key(2), Kind::PROBE, b""));
}

#[tokio::test]
async fn existing_nodes_are_talked_to_as_ever() {
    let (mut a, mut b) = (Node::new(1, 2, OLD, &[]), Node::new(2, 1, OLD, &[]));
    a.say(2, b"hello");
    let passed = settle(&mut a, &mut b);
    assert_eq!(old_types(&passed), [Some(InnerType::Message)]);
    assert_eq!(b.hears(), [b"hello"]);
    assert_eq!(a.state(2), Some(State::Old));
    assert_eq!(b.state(1), Some(State::Old));
}

#[tokio::test]
async fn who_only_says_that_it_can_is_talked_to_after_a_while() {
    let mut a = Node::new(1, 2, ZONE, &[]);
    a.say(2, b"hello");
    let now = Instant::now();
    assert_eq!(old_types(&a.work(now)), [Some(InnerType::Session)]);
    assert_eq!(a.state(2), Some(State::Asking));
    // Once more, and again, and then it is given up.
    let types = [500, 1000, 2200, 5000].map(|millis| {
        let sent = a.work(now + Duration::from_millis(millis));
        old_types(&sent)
    });
    let again = || vec![Some(InnerType::Session)];
    assert_eq!(types, [again(), again(), again(), vec![Some(InnerType::Message)]]);
    assert_eq!(a.state(2), Some(State::Unanswered));
    a.say(2, b"more");
    let sent = old_types(&received(&mut a.link));
    assert_eq!(sent, [Some(InnerType::Message)]);
    // When it is able to after all, that is taken.
    let mut b = Node::new(2, 1, ZONE, &[]);
    b.say(1, b"here I am");
    settle(&mut a, &mut b);
    assert!(a.is_forward_secret(2));
    assert_eq!(a.hears(), [b"here I am"]);
}

#[tokio::test]
async fn who_had_a_session_gets_nothing_less() {
    let mut a = Node::new(1, 2, OLD, &[key(2)]);
    a.say(2, b"hello");
    let now = Instant::now();
    assert_eq!(old_types(&a.work(now)), [Some(InnerType::Session)]);
    for millis in [500, 1000, 2200, 5000] {
        let sent = old_types(&a.work(now + Duration::from_millis(millis)));
        assert!(!sent.contains(&Some(InnerType::Message)));
    }
    assert_eq!(a.state(2), Some(State::Refused));
    // Perhaps somebody on the way loses what it is sent.
    let astray = std::iter::from_fn(|| a.station.signals.try_recv().ok())
        .filter(|signal| matches!(signal, Signal::Astray(subnet, _) if *subnet == key(2).subnet()));
    assert_eq!(astray.count(), 1);
    a.say(2, b"more");
    assert!(received(&mut a.link).is_empty());
    assert_eq!(a.sessions().counters().unsent.load(Ordering::Relaxed), 2);

    // And what comes in the old form is not its own.
    let mut b = Node::new(2, 1, OLD, &[]);
    b.say(1, b"I am the same as ever");
    let mut bytes = b.work(now);
    a.station.take(&mut bytes.clone());
    assert!(a.hears().is_empty());
    assert_eq!(a.sessions().counters().refused.load(Ordering::Relaxed), 1);

    // Until an operator says so.
    assert!(a.sessions().forget(key(2)) && !a.sessions().forget(key(3)));
    a.work(Instant::now());
    assert!(!a.sessions().is_proved(&key(2)));
    a.station.take(&mut bytes);
    assert_eq!(a.hears(), [b"I am the same as ever"]);
    a.say(2, b"welcome");
    let sent = old_types(&received(&mut a.link));
    assert_eq!(sent, [Some(InnerType::Message)]);
}

#[tokio::test]
async fn a_node_that_started_anew_asks_for_a_session_when_it_gets_what_it_can_not_open() {
    let (mut a, mut b) = (Node::new(1, 2, ZONE, &[]), Node::new(2, 1, ZONE, &[]));
    a.say(2, b"hello");
    settle(&mut a, &mut b);
    let mut b = Node::new(2, 1, ZONE, &[]);
    a.say(2, b"lost");
    settle(&mut a, &mut b);
    assert!(b.is_forward_secret(1));
    a.say(2, b"are you there?");
    settle(&mut a, &mut b);
    assert_eq!(b.hears(), [b"are you there?"]);
}

#[tokio::test]
async fn what_is_changed_or_repeated_on_the_way_is_dropped() {
    let (mut a, mut b) = (Node::new(1, 2, ZONE, &[]), Node::new(2, 1, ZONE, &[]));
    a.say(2, b"hello");
    settle(&mut a, &mut b);
    b.hears();
    a.say(2, b"again");
    let bytes = received(&mut a.link);
    let forged = b.station.count(|counters| &counters.forged);
    // The host part of the source, and each byte behind the headers.
    let places = [frame::DATA_SOURCE_OFFSET + 15].into_iter().chain(44..bytes.len());
    let count = places.clone().count() as u64;
    for place in places {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        b.station.take(&mut changed);
    }
    assert!(b.hears().is_empty());
    assert_eq!(b.station.count(|counters| &counters.forged), forged + count);
    b.station.take(&mut bytes.clone());
    b.station.take(&mut bytes.clone());
    assert_eq!(b.hears(), [b"again"]);
}

#[tokio::test]
async fn a_packet_that_a_node_on_the_way_sends_back_is_opened() {
    let (mut a, mut b) = (Node::new(1, 2, ZONE, &[]), Node::new(2, 1, ZONE, &[]));
    a.say(2, b"hello");
    settle(&mut a, &mut b);
    let mut packet = [0; 60];
    packet[0] = 0x60;
    let (from, to) = (a.station.address(), b.station.address());
    a.station.plane.send(InnerType::Packet, from, to, &packet);
    let bytes = received(&mut a.link);
    let (plane, destination) = (&a.station.plane, a.destination(2));
    let mut body = data(&bytes).body.to_vec();
    assert_eq!(plane.reopen(&destination, from, to, &mut body), Some(&packet[..]));
    let mut body = data(&bytes).body.to_vec();
    assert_eq!(plane.reopen(&destination, to, from, &mut body), None);
    *body.last_mut().unwrap() ^= 1;
    assert_eq!(plane.reopen(&destination, from, to, &mut body), None);
}

#[tokio::test]
async fn a_packet_in_a_session_that_claims_another_source_is_dropped() {
    let (mut a, mut b) = (Node::new(1, 2, ZONE, &[]), Node::new(2, 1, ZONE, &[]));
    a.say(2, b"hello");
    settle(&mut a, &mut b);
    let (from, to) = (a.station.address(), b.station.address());
    for (source, destination, is_honest) in
        [(from, to, true), (key(3).address(), to, false), (from, key(3).address(), false)]
    {
        let mut packet = [0; 60];
        packet[0] = 0x60;
        packet[5] = 20;
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..40].copy_from_slice(&destination.octets());
        a.station.plane.send(InnerType::Packet, from, to, &packet);
        let forged = b.station.count(|counters| &counters.forged);
        b.station.take(&mut received(&mut a.link));
        let is_taken = b.station.count(|counters| &counters.forged) == forged;
        assert_eq!(is_taken, is_honest);
    }
}

#[test]
fn channels_are_bounded() {
    let (sender, _orders) = mpsc::channel(1);
    let sessions = Sessions::new(Some(sender), &[]);
    let key = |number: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    };
    let held: Vec<_> = (0..PEER_COUNT_MAX).map(|number| sessions.channel_of(key(number))).collect();
    assert!(held.iter().all(Option::is_some));
    assert!(sessions.channel_of(key(PROVED_COUNT_MAX)).is_none());
    drop(held);
    assert!(sessions.channel_of(key(PROVED_COUNT_MAX)).is_some());
}
