//! Two nodes' messages back to back, over a channel that loses, delays and doubles packets.
//!
//! Time is simulated, so that minutes take milliseconds; a seed decides what happens to each packet.
//! `MYCELIUM_SEEDS=N` runs more of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::limits::{PENDING_PER_SOURCE_MAX, RECORD_TIME, TRY_TIME};
use super::*;
use mycelium_wire::message::MESSAGE_PACKET_SIZE_MAX;

/// What happens to packets, in per mille.
#[derive(Clone, Copy)]
struct Channel {
    loss: u64,
    duplication: u64,
    delay: Duration,
    /// Added to `delay`, at most, for each packet by itself: it reorders.
    jitter: Duration,
    /// Acknowledgements carry the whole packet, as those of 0.7.3 do.
    has_full_acks: bool,
}

const PERFECT: Channel = Channel {
    loss: 0,
    duplication: 0,
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    has_full_acks: false,
};
const BAD: Channel = Channel {
    loss: 150,
    duplication: 50,
    delay: Duration::from_millis(10),
    jitter: Duration::from_millis(30),
    has_full_acks: false,
};

/// A packet under way: when it arrives, a number that breaks ties, to whom, and its bytes.
type Flight = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Pair {
    nodes: [(Peer, Messages); 2],
    channel: Channel,
    flights: BinaryHeap<Flight>,
    /// The last INIT and CHUNKs, by what is left of them in an acknowledgement.
    originals: BTreeMap<Vec<u8>, Vec<u8>>,
    now: Instant,
    start: Instant,
    random: u64,
    packet_count: u64,
    events: [Vec<Event>; 2],
}

impl Pair {
    fn new(channel: Channel, seed: u64) -> Self {
        let node = |number: u8| {
            let key = PublicKey::from_bytes([number; 32]);
            (Peer { address: key.address(), key }, Messages::new(Topics::default()))
        };
        let now = Instant::now();
        Self {
            nodes: [node(1), node(2)],
            channel,
            flights: BinaryHeap::new(),
            originals: BTreeMap::new(),
            now,
            start: now,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            packet_count: 0,
            events: [Vec::new(), Vec::new()],
        }
    }

    fn address(&self, node: usize) -> Ipv6Addr {
        self.nodes[node].0.address
    }

    fn push(&mut self, from: usize, topic: &[u8], payload: &[u8], awaits_reply: bool) -> MessageId {
        let (topic, payload) = (topic.to_vec(), payload.to_vec());
        let message = Outbound { destination: self.address(1 - from), topic, payload };
        self.nodes[from].1.push(message, awaits_reply, self.now).unwrap()
    }

    fn state(&self, node: usize, id: MessageId) -> State {
        self.nodes[node].1.status(id).unwrap().state
    }

    /// A number below `bound` (xorshift64).
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }

    /// Lets nodes talk until this much time has passed.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for node in 0..2 {
                self.drain(node);
            }
            let arrival = self.flights.peek().map(|Reverse((at, ..))| *at);
            let deadlines = self.nodes.iter().map(|(_, messages)| messages.deadline());
            let next = deadlines.chain([arrival]).flatten().min();
            match next {
                Some(next) if next <= end => self.now = self.now.max(next),
                _ => break,
            }
            while self.flights.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
                let Reverse((_, _, to, bytes)) = self.flights.pop().unwrap();
                let source = self.nodes[1 - to].0;
                let address = self.address(to);
                self.nodes[to].1.received(source, address, &bytes, self.now);
            }
        }
        self.now = end;
    }

    /// Puts all that a node has to send into the channel.
    fn drain(&mut self, node: usize) {
        let mut bytes = Vec::new();
        while let Some(destination) = self.nodes[node].1.poll_packet(self.now, &mut bytes) {
            assert_eq!(destination, self.address(1 - node));
            assert!(bytes.len() <= MESSAGE_PACKET_SIZE_MAX);
            let bytes = self.in_old_style(std::mem::take(&mut bytes));
            let copies = 1 + u64::from(self.below(1000) < self.channel.duplication);
            for _ in 0..copies {
                self.packet_count += 1;
                if self.below(1000) >= self.channel.loss {
                    let jitter = u64::try_from(self.channel.jitter.as_micros()).unwrap();
                    let jitter = Duration::from_micros(self.below(jitter));
                    let at = self.now + self.channel.delay + jitter;
                    let flight = (at, self.packet_count, 1 - node, bytes.clone());
                    self.flights.push(Reverse(flight));
                }
            }
        }
        while let Some(event) = self.nodes[node].1.poll_event() {
            self.events[node].push(event);
        }
    }

    /// The packet as 0.7.3 would send it.
    fn in_old_style(&mut self, packet: Vec<u8>) -> Vec<u8> {
        if !self.channel.has_full_acks {
            return packet;
        }
        let short_size = match packet[8] & 0xf8 {
            0x80 => 21,
            0x10 => 36,
            _ => return packet,
        };
        if packet[9] == 0 && packet[8] & 1 == 0 {
            let mut short = packet[..short_size].to_vec();
            short[8] |= 1;
            self.originals.insert(short, packet.clone());
            return packet;
        }
        let mut full = self.originals[&packet].clone();
        full[8] |= 1;
        full
    }
}

fn seeds() -> u64 {
    std::env::var("MYCELIUM_SEEDS").ok().map_or(20, |text| text.parse().unwrap())
}

fn sample(size: usize, salt: u64) -> Vec<u8> {
    let byte = |at: usize| (at as u64).wrapping_mul(31).wrapping_add(salt * 7).to_le_bytes()[0];
    (0..size).map(byte).collect()
}

#[test]
fn every_message_arrives_once_and_whole_over_a_bad_channel() {
    for seed in 0..seeds() {
        let mut pair = Pair::new(BAD, seed);
        let sizes = [0, 1, 250, 1299, 1300, 1301, 2600, 100_000];
        let mut sent = Vec::new();
        for (salt, size) in sizes.into_iter().enumerate() {
            let payload = sample(size, salt as u64);
            for from in [0, 1] {
                let id = pair.push(from, b"topic", &payload, false);
                sent.push((from, id, payload.clone()));
            }
        }
        pair.run(Duration::from_secs(60));
        let received = [0, 1].map(|node| {
            let inbox = &mut pair.nodes[node].1;
            std::iter::from_fn(|| inbox.pop(None)).collect::<Vec<_>>()
        });
        assert_eq!(received.each_ref().map(Vec::len), [sizes.len(); 2], "seed {seed}");
        for (from, id, payload) in sent {
            assert_eq!(pair.state(from, id), State::Received, "seed {seed}: {} B", payload.len());
            let message = received[1 - from].iter().find(|message| message.id == id).unwrap();
            assert!(*message.payload == payload, "seed {seed}: {} B", payload.len());
        }
    }
}

#[test]
fn a_large_message_fills_the_channel() {
    let mut pair = Pair::new(PERFECT, 1);
    let payload = sample(1_000_000, 3);
    let id = pair.push(0, b"", &payload, false);
    let mut rounds = 0;
    while pair.state(0, id) != State::Received {
        pair.run(Duration::from_millis(10));
        rounds += 1;
        assert!(rounds < 20, "{:?} after {:?}", pair.state(0, id), pair.now - pair.start);
    }
    let message = pair.nodes[1].1.pop(None).unwrap();
    assert_eq!(*message.payload, payload);
    // INIT, 770 chunks, DONE, and an answer to each.
    assert_eq!(pair.packet_count, 2 * 772);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.state(0, id), State::Read);
}

#[test]
fn acknowledgements_of_0_7_3_are_understood() {
    let mut pair = Pair::new(Channel { has_full_acks: true, ..BAD }, 5);
    let payload = sample(50_000, 1);
    let id = pair.push(0, b"a topic", &payload, false);
    pair.run(Duration::from_secs(30));
    assert_eq!(pair.state(0, id), State::Received);
    assert_eq!(*pair.nodes[1].1.pop(Some(b"a topic")).unwrap().payload, payload);
}

#[test]
fn a_reply_goes_to_whoever_waits_for_it() {
    let mut pair = Pair::new(BAD, 7);
    let question = pair.push(0, b"question", b"who?", true);
    pair.run(Duration::from_secs(20));
    assert_eq!(pair.events[1], [Event::Arrived]);
    let message = pair.nodes[1].1.pop(Some(b"question")).unwrap();
    let destination = message.source.address;
    let answer = Outbound { destination, topic: Vec::new(), payload: b"me".to_vec() };
    pair.nodes[1].1.reply(message.id, answer.clone(), pair.now).unwrap();
    let again = pair.nodes[1].1.reply(message.id, answer, pair.now);
    assert_eq!(again, Err(PushError::Busy(message.id)));
    pair.run(Duration::from_secs(20));
    let [Event::Reply(reply)] = &pair.events[0][..] else { panic!("{:?}", pair.events[0]) };
    assert_eq!((reply.id, &*reply.payload), (question, &b"me"[..]));
    assert!(reply.is_reply && reply.source == pair.nodes[1].0);
    assert_eq!(pair.nodes[0].1.pop(None), None);
    let reply = reply.clone();
    pair.nodes[0].1.handed_over(&reply, true);
    assert_eq!(pair.nodes[0].1.handed_over_count, 0);
}

#[test]
fn a_reply_that_nobody_waits_for_goes_to_the_inbox() {
    let mut pair = Pair::new(PERFECT, 7);
    // Topics are not asked about replies to what was sent.
    pair.nodes[0].1.topics_mut().set_default(false);
    let question = pair.push(0, b"", b"who?", true);
    pair.run(Duration::from_secs(1));
    pair.nodes[0].1.stop_waiting(question);
    let answer = Outbound {
        destination: pair.address(0),
        topic: b"ignored".to_vec(),
        payload: b"me".to_vec(),
    };
    pair.nodes[1].1.reply(question, answer.clone(), pair.now).unwrap();
    pair.run(Duration::from_secs(1));
    let reply = pair.nodes[0].1.pop(None).unwrap();
    assert_eq!((reply.id, &*reply.topic, &*reply.payload), (question, &b""[..], &b"me"[..]));
    // A reply to nothing is a message like others, and here nobody may send one.
    let nothing = MessageId([9; 8]);
    pair.nodes[1].1.reply(nothing, answer, pair.now).unwrap();
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.nodes[1].1.status(nothing).unwrap().state, State::Pending);
}

#[test]
fn a_topic_with_a_socket_goes_there() {
    let mut pair = Pair::new(PERFECT, 1);
    let subnet = mycelium_wire::identity::Subnet::of(pair.address(0));
    let path = PathBuf::from("/run/handler.sock");
    let topics = pair.nodes[1].1.topics_mut();
    topics.add(b"work".to_vec()).unwrap();
    topics.add_source(b"work", subnet).unwrap();
    topics.set_forward(b"work", Some(path.clone())).unwrap();
    let mut ids = Vec::new();
    for number in 0..=HANDED_OVER_COUNT_MAX {
        ids.push(pair.push(0, b"work", &number.to_be_bytes(), false));
    }
    pair.run(Duration::from_secs(1));
    let events = std::mem::take(&mut pair.events[1]);
    assert_eq!(events.len(), HANDED_OVER_COUNT_MAX, "the handler is busy");
    let waiting = ids.iter().filter(|id| pair.state(0, **id) != State::Received).count();
    assert_eq!(waiting, 1, "it is not lost");
    for event in events {
        let Event::Forward(to, message) = event else { panic!("{event:?}") };
        assert_eq!(to, path);
        pair.nodes[1].1.handed_over(&message, true);
    }
    pair.run(Duration::from_secs(10));
    assert_eq!(pair.events[1].len(), 1);
    let read = ids.iter().filter(|id| pair.state(0, **id) == State::Read).count();
    assert_eq!(read, HANDED_OVER_COUNT_MAX);
}

#[test]
fn nobody_may_send_what_a_topic_forbids() {
    let mut pair = Pair::new(PERFECT, 1);
    pair.nodes[1].1.topics_mut().add(b"secret".to_vec()).unwrap();
    let id = pair.push(0, b"secret", b"x", false);
    pair.run(TRY_TIME + Duration::from_secs(1));
    assert_eq!(pair.state(0, id), State::Aborted);
    assert_eq!(pair.nodes[1].1.pop(None), None);
    pair.run(RECORD_TIME);
    assert_eq!(pair.nodes[0].1.status(id), None);
    assert_eq!((pair.nodes[0].1.deadline(), pair.nodes[1].1.deadline()), (None, None));
}

#[test]
fn a_flood_waits_at_its_source() {
    let mut pair = Pair::new(PERFECT, 1);
    let size = 1_000_000;
    let payload = sample(size, 0);
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(pair.push(0, b"", &payload, false));
    }
    pair.run(Duration::from_secs(20));
    let received = ids.iter().filter(|id| pair.state(0, **id) == State::Received).count();
    // As much as one source may have in the inbox, and as much on its way; acknowledged is the first.
    assert_eq!(received, 33);
    let mut popped = 0;
    for _ in 0..5 {
        while pair.nodes[1].1.pop(None).is_some() {
            popped += 1;
        }
        pair.run(Duration::from_secs(20));
    }
    assert_eq!(popped, 60, "none is lost");
}

#[test]
fn offers_beyond_the_bound_wait() {
    let mut pair = Pair::new(PERFECT, 1);
    let count = PENDING_PER_SOURCE_MAX + 10;
    let ids: Vec<_> = (0..count).map(|_| pair.push(0, b"", &sample(2000, 1), false)).collect();
    pair.run(Duration::from_secs(10));
    assert!(ids.iter().all(|id| pair.state(0, *id) == State::Received));
}

#[test]
fn what_can_not_be_sent_is_said_at_once() {
    let mut messages = Messages::new(Topics::default());
    let now = Instant::now();
    let outbound = |destination: &str, topic_size| Outbound {
        destination: destination.parse().unwrap(),
        topic: vec![0; topic_size],
        payload: Vec::new(),
    };
    let outside = outbound("2001:db8::1", 0);
    let expected = Err(PushError::Destination(outside.destination));
    assert_eq!(messages.push(outside, false, now), expected);
    let expected = Err(PushError::TopicTooLong(256));
    assert_eq!(messages.push(outbound("400::1", 256), false, now), expected);
    assert!(messages.push(outbound("400::1", 255), false, now).is_ok());
}
