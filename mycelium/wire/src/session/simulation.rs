//! Two nodes' sessions over a network that loses, repeats, delays and records, by a clock of its own.
//!
//! Whatever the network does, nothing is opened twice, and soon after it does better both nodes hear each
//! other. A run is determined by its seed but for keys, which nothing here depends on.

use std::collections::HashSet;
use std::time::Duration;

use super::cipher::{SealError, Suites};
use super::limits::*;
use super::machine::{Event, Machine};
use super::peer::Ring;
use super::time::{Clock, Time};
use super::{DATA_HEADER_SIZE, DATA_OVERHEAD, Kind, index};
use crate::identity::{PublicKey, SecretKey};

const STEP: Duration = Duration::from_millis(10);
const AAD: &[u8] = b"both addresses";

/// What the network does to each packet.
#[derive(Clone, Copy)]
struct Weather {
    lost_percent: u64,
    twice_percent: u64,
    delay_ms: (u64, u64),
}

const FAIR: Weather = Weather { lost_percent: 0, twice_percent: 0, delay_ms: (10, 10) };
const FOUL: Weather = Weather { lost_percent: 30, twice_percent: 20, delay_ms: (5, 300) };

#[derive(Clone)]
enum Packet {
    Handshake(Vec<u8>),
    Data(Vec<u8>),
}

struct Node {
    machine: Machine,
    ring: Ring,
    peer: PublicKey,
    wall: Duration,
    /// Numbers of what came.
    heard: HashSet<u64>,
    indices: HashSet<u32>,
    proved: usize,
    unanswered: usize,
    signs_of_life: usize,
}

impl Node {
    fn new(own: u8, other: u8, suites: Suites) -> Self {
        let secret = SecretKey::from_bytes([own; 32]);
        Self {
            machine: Machine::new(secret, suites).unwrap(),
            ring: Ring::default(),
            peer: SecretKey::from_bytes([other; 32]).public(),
            wall: Duration::from_secs(1_800_000_000),
            heard: HashSet::new(),
            indices: HashSet::new(),
            proved: 0,
            unanswered: 0,
            signs_of_life: 0,
        }
    }

    fn seal(&mut self, plaintext: &[u8], now: Time) -> Option<Vec<u8>> {
        let mut body = vec![0; DATA_OVERHEAD + plaintext.len()];
        body[DATA_HEADER_SIZE..][..plaintext.len()].copy_from_slice(plaintext);
        self.ring.current()?.seal(AAD, &mut body, now).ok()?;
        Some(body)
    }
}

struct World {
    nodes: [Node; 2],
    now: Time,
    weather: Weather,
    air: Vec<(Time, usize, Packet)>,
    /// All that was ever sent, and to whom.
    recorded: Vec<(usize, Packet)>,
    number: u64,
    chance: u64,
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        Self {
            nodes: [Node::new(1, 2, Suites(3)), Node::new(2, 1, Suites(3))],
            now: Time::default(),
            weather,
            air: Vec::new(),
            recorded: Vec::new(),
            number: 0,
            chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % end
    }

    fn clock(&self, at: usize) -> Clock {
        Clock { now: self.now, wall: self.nodes[at].wall }
    }

    fn transmit(&mut self, to: usize, packet: Packet) {
        self.recorded.push((to, packet.clone()));
        let copies = if self.below(100) < self.weather.twice_percent { 2 } else { 1 };
        for _ in 0..copies {
            let (least, most) = self.weather.delay_ms;
            let delay = least + self.below(most - least + 1);
            if self.below(100) >= self.weather.lost_percent {
                let at = self.now + Duration::from_millis(delay);
                self.air.push((at, to, packet.clone()));
            }
        }
    }

    /// A node has something to say.
    fn say(&mut self, from: usize) -> u64 {
        self.number += 1;
        let plaintext = [&[Kind::PACKET.0][..], &self.number.to_be_bytes()].concat();
        match self.nodes[from].seal(&plaintext, self.now) {
            Some(body) => self.transmit(1 - from, Packet::Data(body)),
            None => {
                let (clock, peer) = (self.clock(from), self.nodes[from].peer);
                self.nodes[from].machine.want(peer, clock);
                self.act(from);
            }
        }
        self.number
    }

    fn receive(&mut self, to: usize, packet: &Packet) {
        let (clock, now) = (self.clock(to), self.now);
        let node = &mut self.nodes[to];
        match packet {
            Packet::Handshake(payload) => node.machine.received(node.peer, payload, clock),
            Packet::Data(body) => {
                let mut body = body.clone();
                let session = index(&body).and_then(|index| node.ring.by_index(index));
                let Some(session) = session else { return };
                match session.open(AAD, &mut body, now) {
                    Ok((plaintext, is_first)) => {
                        if let Some((_, number)) = plaintext.split_first() {
                            let number = u64::from_be_bytes(number.try_into().unwrap());
                            assert!(node.heard.insert(number), "{number} was opened twice");
                        }
                        if is_first {
                            node.machine.tick(clock);
                        }
                    }
                    Err(error) => assert_ne!(error, SealError::Forged),
                }
            }
        }
        self.act(to);
    }

    fn act(&mut self, at: usize) {
        while let Some(event) = self.nodes[at].machine.poll() {
            match event {
                Event::Send(_, payload) => self.transmit(1 - at, Packet::Handshake(payload)),
                Event::Changed(_, ring) => {
                    let node = &mut self.nodes[at];
                    node.indices.extend(ring.current().map(|session| session.index()));
                    node.ring = ring;
                }
                Event::SignOfLife(_) => {
                    self.nodes[at].signs_of_life += 1;
                    if let Some(body) = self.nodes[at].seal(&[], self.now) {
                        self.transmit(1 - at, Packet::Data(body));
                    }
                }
                Event::Unanswered(_) => self.nodes[at].unanswered += 1,
                Event::Proved(_) => self.nodes[at].proved += 1,
            }
        }
    }

    fn step(&mut self) {
        self.now = self.now + STEP;
        for at in 0..2 {
            self.nodes[at].wall += STEP;
        }
        let now = self.now;
        let due: Vec<_> = self.air.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, to, packet) in due {
            self.receive(to, &packet);
        }
        for at in 0..2 {
            if self.nodes[at].machine.deadline().is_some_and(|deadline| deadline <= self.now) {
                let clock = self.clock(at);
                self.nodes[at].machine.tick(clock);
                self.act(at);
            }
        }
    }

    /// Lets time pass, in which nodes of `talkers` say something each `interval`.
    fn run(&mut self, time: Duration, talkers: &[usize], interval: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
            let is_due = self.now.0.as_millis().is_multiple_of(interval.as_millis());
            if is_due {
                for from in talkers {
                    self.say(*from);
                }
            }
        }
    }

    /// How long it takes until each of two nodes hears what the other says.
    fn until_both_hear(&mut self, patience: Duration) -> Option<Duration> {
        let begin = self.now;
        let mut said = [HashSet::new(), HashSet::new()];
        while self.now.since(begin) < patience {
            for (from, said) in said.iter_mut().enumerate() {
                said.insert(self.say(from));
            }
            for _ in 0..5 {
                self.step();
            }
            let hears = |at: usize| !self.nodes[at].heard.is_disjoint(&said[1 - at]);
            if hears(0) && hears(1) {
                return Some(self.now.since(begin));
            }
        }
        None
    }

    fn restart(&mut self, at: usize) {
        let wall = self.nodes[at].wall;
        let (own, other) = if at == 0 { (1, 2) } else { (2, 1) };
        self.nodes[at] = Node::new(own, other, Suites(3));
        self.nodes[at].wall = wall;
    }
}

const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(100);

#[test]
fn the_first_packet_waits_for_one_round_trip() {
    let mut world = World::new(1, FAIR);
    world.say(0);
    world.run(Duration::from_millis(40), &[], SECOND);
    assert!(world.nodes[0].ring.current().is_some() && world.nodes[1].ring.current().is_some());
    let heard = world.until_both_hear(SECOND);
    assert!(heard.is_some_and(|time| time <= Duration::from_millis(50)), "{heard:?}");
    assert_eq!([world.nodes[0].proved, world.nodes[1].proved], [1, 1]);
    assert_eq!(world.nodes[1].machine.counters().begun, 0);
}

#[test]
fn foul_weather_is_got_over_and_keys_change() {
    for seed in 0..8 {
        let mut world = World::new(seed, FOUL);
        world.run(SECOND * 400, &[0, 1], INTERVAL);
        for node in &world.nodes {
            let counters = node.machine.counters();
            assert!(node.indices.len() >= 4, "seed {seed}: keys do not change: {counters:?}");
            assert!(node.heard.len() > 2000, "seed {seed}: {} heard", node.heard.len());
            assert!(counters.begun < 40, "seed {seed}: {counters:?}");
            assert_eq!((node.proved, counters.forged), (1, 0), "seed {seed}");
        }
        world.weather = FAIR;
        let heard = world.until_both_hear(SECOND * 5);
        assert!(heard.is_some(), "seed {seed}: silence in fair weather");
    }
}

#[test]
fn fair_weather_loses_nothing_when_keys_change() {
    let mut world = World::new(1, FAIR);
    world.until_both_hear(SECOND).unwrap();
    let (before, heard) = (world.number, world.nodes.each_ref().map(|node| node.heard.len()));
    world.run(SECOND * 600, &[0, 1], INTERVAL);
    let said = usize::try_from(world.number - before).unwrap() / 2;
    for (at, node) in world.nodes.iter().enumerate() {
        // What was said last is still under way.
        assert!(node.heard.len() - heard[at] >= said - 1, "{} of {said}", node.heard.len());
        assert!(node.indices.len() >= 5, "{:?}", node.indices);
    }
}

#[test]
fn both_may_begin_at_once() {
    for seed in 0..20 {
        let weather = Weather { delay_ms: (5, 50), ..FAIR };
        let mut world = World::new(seed, weather);
        world.say(0);
        world.say(1);
        world.run(SECOND, &[], SECOND);
        let heard = world.until_both_hear(SECOND);
        assert!(heard.is_some_and(|time| time < Duration::from_millis(150)), "seed {seed}");
        world.run(SECOND * 300, &[0, 1], INTERVAL);
        for node in &world.nodes {
            let counters = node.machine.counters();
            assert!(counters.begun <= 4, "seed {seed}: {counters:?}");
        }
    }
}

#[test]
fn a_restart_is_got_over_in_seconds() {
    for seed in 0..10 {
        for clock_goes_back in [false, true] {
            let mut world = World::new(seed, Weather { lost_percent: 5, ..FAIR });
            world.until_both_hear(SECOND * 5).unwrap();
            world.run(SECOND * 10, &[0, 1], INTERVAL);
            let at = usize::from(seed % 2 == 0);
            world.restart(at);
            if clock_goes_back {
                world.nodes[at].wall -= SECOND * 86400 * 365;
            }
            // One of the two has something to say at first: the one whose stamps are old, or the one
            // that does not know of the restart.
            let talker = if clock_goes_back { at } else { 1 - at };
            world.run(SECOND * 4, &[talker], INTERVAL);
            let heard = world.until_both_hear(SECOND * 3);
            assert!(heard.is_some(), "seed {seed}, clock goes back: {clock_goes_back}");
            assert_eq!(world.nodes[at].proved, 1);
        }
    }
}

#[test]
fn clocks_may_jump() {
    let mut world = World::new(3, FAIR);
    world.until_both_hear(SECOND).unwrap();
    for (jump, at) in [(-1_000_000_i64, 0), (500_000, 1), (-3_000_000, 1), (9_000_000, 0)] {
        let wall = &mut world.nodes[at].wall;
        *wall = if jump < 0 {
            wall.saturating_sub(SECOND * u32::try_from(-jump).unwrap())
        } else {
            *wall + SECOND * u32::try_from(jump).unwrap()
        };
        let before = world.nodes[0].indices.len();
        world.run(SECOND * 200, &[0, 1], INTERVAL);
        assert!(world.nodes[0].indices.len() > before);
        assert!(world.until_both_hear(SECOND).is_some());
    }
}

#[test]
fn recordings_change_nothing() {
    let mut world = World::new(4, FAIR);
    world.until_both_hear(SECOND).unwrap();
    world.run(SECOND * 130, &[0, 1], INTERVAL);
    let current = world.nodes.each_ref().map(|node| node.ring.current().unwrap().index());
    let answered = world.nodes.each_ref().map(|node| node.machine.counters().answered);
    let recorded = world.recorded.clone();
    let sent = world.recorded.len();
    for (to, packet) in &recorded {
        world.receive(*to, packet);
    }
    let challenges: u64 = world.nodes.iter().map(|node| node.machine.counters().challenged).sum();
    assert!(challenges <= 2, "{challenges} challenges at one instant");
    assert!(world.recorded.len() - sent <= 4, "recordings are answered");
    world.run(SECOND, &[], SECOND);
    for (at, node) in world.nodes.iter().enumerate() {
        assert_eq!(node.ring.current().unwrap().index(), current[at]);
        assert_eq!(node.machine.counters().answered, answered[at]);
    }
    // A node that has just started knows no stamps: it answers, and is not taken in.
    world.restart(1);
    for (to, packet) in &recorded {
        world.receive(*to, packet);
    }
    world.run(SECOND, &[], SECOND);
    assert!(world.nodes[1].ring.current().is_none(), "a recording was taken for the peer");
    assert_eq!(world.nodes[1].proved, 0);
    assert!(world.until_both_hear(SECOND * 5).is_some());
}

#[test]
fn who_only_listens_is_known_to_be_there_and_who_is_idle_is_silent() {
    let mut world = World::new(5, FAIR);
    world.run(SECOND * 100, &[0], INTERVAL);
    assert_eq!(world.nodes[0].machine.counters().begun, 1);
    assert_eq!(world.nodes[1].machine.counters().begun, 0);
    let signs = world.nodes[1].signs_of_life;
    assert!((70..=100).contains(&signs), "{signs} signs of life");
    world.run(SECOND * 3, &[], SECOND);
    let sent = world.recorded.len();
    world.run(SECOND * 300, &[], SECOND);
    assert_eq!(world.recorded.len(), sent, "idle nodes talk");
    assert!(world.nodes[0].ring.current().is_none(), "keys outlive their time");
    world.run(SECOND * 600, &[], SECOND);
    assert_eq!(world.nodes[0].machine.deadline(), None);
    assert!(world.until_both_hear(SECOND).is_some());
}

#[test]
fn a_long_way_is_long_and_no_more() {
    let mut world = World::new(6, Weather { delay_ms: (1400, 1600), ..FAIR });
    let heard = world.until_both_hear(SECOND * 12);
    assert!(heard.is_some_and(|time| time < SECOND * 8), "{heard:?}");
}

#[test]
fn who_never_answers_is_asked_less_and_less() {
    let mut world = World::new(7, Weather { lost_percent: 100, ..FAIR });
    world.run(SECOND * 1200, &[0], INTERVAL);
    let begun = world.nodes[0].machine.counters().begun;
    assert!((8..=14).contains(&begun), "{begun} handshakes");
    assert_eq!(u64::try_from(world.nodes[0].unanswered).unwrap(), begun);
    // It may know that the peer can.
    let mut world = World::new(7, Weather { lost_percent: 100, ..FAIR });
    let peer = world.nodes[0].peer;
    assert!(world.nodes[0].machine.remember(peer) && world.nodes[0].machine.is_proved(&peer));
    world.run(SECOND * 1200, &[0], INTERVAL);
    let begun = world.nodes[0].machine.counters().begun;
    assert!((90..=110).contains(&begun), "{begun} handshakes");
    // Once it is back, it is found within the pause; and at once when it speaks itself.
    world.weather = FAIR;
    assert!(world.until_both_hear(SECOND).is_some());
    assert!(world.nodes[0].machine.forget(&peer) && !world.nodes[0].machine.forget(&peer));
}

#[test]
fn ciphers_are_agreed_upon() {
    for (a, b, expected) in [(3, 3, 2), (3, 1, 1), (1, 3, 1), (1, 1, 1), (0x8003, 7, 2)] {
        let mut world = World::new(8, FAIR);
        world.nodes = [Node::new(1, 2, Suites(a)), Node::new(2, 1, Suites(b))];
        world.until_both_hear(SECOND).unwrap();
        for node in &world.nodes {
            assert_eq!(node.ring.current().unwrap().suite().bit(), expected, "{a} and {b}");
        }
    }
}

#[test]
fn floods_are_bounded() {
    let clock = |millis| Clock {
        now: Time(Duration::from_millis(millis)),
        wall: Duration::from_secs(1_800_000_000),
    };
    let own = SecretKey::from_bytes([9; 32]);
    let mut victim = Machine::new(own.clone(), Suites(3)).unwrap();
    // One peer, as fast as it can.
    let secret = SecretKey::from_bytes([1; 32]);
    let peer = secret.public();
    for _ in 0..50 {
        let mut machine = Machine::new(secret.clone(), Suites(3)).unwrap();
        machine.want(own.public(), clock(0));
        let Some(Event::Send(_, payload)) = machine.poll() else { panic!("no initiation") };
        victim.received(peer, &payload, clock(0));
    }
    assert_eq!(victim.counters().answered, 1);
    assert_eq!(victim.counters().challenged + victim.counters().refused, 1);
    // A message of another node's, and noise.
    let mut machine = Machine::new(secret, Suites(3)).unwrap();
    machine.want(own.public(), clock(0));
    let Some(Event::Send(_, payload)) = machine.poll() else { panic!("no initiation") };
    victim.received(SecretKey::from_bytes([2; 32]).public(), &payload, clock(0));
    victim.received(peer, b"", clock(0));
    victim.received(peer, &[2; 62], clock(0));
    assert_eq!(victim.counters().forged, 3);
    // Many peers: what is not answered is forgotten, and what is has room.
    for number in 0..PEER_COUNT_MAX + 500 {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        victim.received(PublicKey::from_bytes(key), b"", clock(1));
    }
    victim.tick(clock(2));
    let known = format!("{victim:?}").matches("Peer {").count();
    assert!(known <= PEER_COUNT_MAX, "{known} peers");
}

#[test]
fn many_peers_share_a_budget() {
    let clock = Clock { now: Time::default(), wall: Duration::from_secs(1_800_000_000) };
    let own = SecretKey::from_bytes([9; 32]);
    let mut victim = Machine::new(own.clone(), Suites(1)).unwrap();
    for number in 0..INITIATION_RATE + 20 {
        let mut bytes = [3; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let secret = SecretKey::from_bytes(bytes);
        let peer = secret.public();
        let mut machine = Machine::new(secret, Suites(1)).unwrap();
        machine.want(own.public(), clock);
        let Some(Event::Send(_, payload)) = machine.poll() else { panic!("no initiation") };
        victim.received(peer, &payload, clock);
    }
    let counters = victim.counters();
    assert_eq!(counters.answered, u64::from(INITIATION_RATE));
    assert_eq!(counters.refused, 20);
}
