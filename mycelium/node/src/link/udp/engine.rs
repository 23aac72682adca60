//! One end of a link, without I/O: what it seals and sends, and what it does about what arrives.
//!
//! Its carrier calls [`Engine::poll`] until there is nothing left, and [`Engine::tick`] when
//! [`Engine::deadline`] has come. Data has a way of its own ([`Engine::seal_batch`]), since it neither
//! waits here nor comes again.
//!
//! A peer whose address changes, since its NAT or its network did, is followed when it has answered a
//! challenge at the new one: a copy of a datagram, sent from elsewhere, leads nobody astray.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::link::udp::arq::{Arq, ArqError};
use crate::link::udp::crypt::Sealer;
use crate::link::udp::mtu::Search;
use crate::link::udp::packet::{
    DATA_PREFIX_SIZE, PROBE_PREFIX_SIZE, Payload, SEALED_OVERHEAD, TAG_SIZE, data_prefix,
    sealed_header,
};
use crate::link::udp::pieces::Cuts;

/// How often the peer is told where it is seen: NATs forget a mapping after 30 s (RFC 4787 REQ-5 asks
/// for minutes, and is not heard).
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Answers that wait to be sent; what comes on top is lost, and asked for again.
const ANSWER_COUNT_MAX: usize = 16;
/// How often an address is challenged.
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(250);
/// How often, and how many times, a handshake's last message is sent until the peer is heard.
const FINISH_INTERVAL: Duration = Duration::from_millis(250);
const FINISH_COUNT_MAX: u8 = 20;
/// Size of a datagram that every path takes.
const SMALL_SIZE: usize = 1200;

/// What a link begins with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) sealer: Sealer,
    pub(crate) peer_index: u32,
    pub(crate) address: SocketAddr,
    /// A handshake's last message, which may get lost.
    pub(crate) finish: Option<Vec<u8>>,
    /// The largest IPv6 packet for this node itself.
    pub(crate) takes: u16,
}

/// The sending half of a link, and all that both halves share.
#[derive(Debug)]
pub(crate) struct Engine {
    sealer: Sealer,
    peer_index: u32,
    address: SocketAddr,
    challenged: Option<Challenged>,
    control: Arq,
    path: Search,
    finish: Option<Finish>,
    answers: VecDeque<(SocketAddr, Vec<u8>)>,
    keep_alive_at: Instant,
    takes: u16,
    /// The deadline is an earlier one since the carrier was told.
    is_hurried: bool,
}

/// An address that must show that it is the peer's.
#[derive(Clone, Copy, Debug)]
struct Challenged {
    address: SocketAddr,
    token: [u8; 8],
    at: Instant,
}

#[derive(Debug)]
struct Finish {
    datagram: Vec<u8>,
    at: Instant,
    count: u8,
}

/// What became of a payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Nothing that others need to know.
    Nothing,
    /// The peer sees this node there, and takes packets of this size.
    Observed { address: SocketAddr, takes: u16 },
    /// The peer is somewhere else.
    Moved(SocketAddr),
    /// The peer ends the link.
    Closed,
}

impl Engine {
    pub(crate) fn new(start: Start, now: Instant) -> Self {
        let Start { sealer, peer_index, address, finish, takes } = start;
        Self {
            sealer,
            peer_index,
            address,
            challenged: None,
            control: Arq::default(),
            path: Search::new(address.is_ipv6(), now),
            finish: finish.map(|datagram| Finish { datagram, at: now, count: 0 }),
            answers: VecDeque::new(),
            // At once: the peer may wait for it to know that the handshake is over.
            keep_alive_at: now,
            takes,
            is_hurried: false,
        }
    }

    /// Where the peer is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes a control packet to send.
    pub(crate) fn send_control(&mut self, packet: &[u8]) -> Result<(), ArqError> {
        self.control.push(packet)
    }

    /// How many bytes of a batch one datagram takes.
    pub(crate) fn piece_size(&self) -> usize {
        self.path.size() - SEALED_OVERHEAD - DATA_PREFIX_SIZE
    }

    /// Size of a full datagram.
    pub(crate) fn datagram_size(&self) -> usize {
        self.path.size()
    }

    /// This machine can't send datagrams of this size.
    pub(crate) fn refused(&mut self, size: usize) {
        self.path.refused(size);
    }

    /// Appends the next datagrams of a batch, at most `count_max` of them, all of one size but the last
    /// of the batch. How many there are.
    pub(crate) fn seal_batch(
        &mut self,
        cuts: &mut Cuts<'_>,
        count_max: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let mut count = 0;
        for (first, piece) in cuts.by_ref().take(count_max) {
            self.seal(out, |out| {
                out.extend_from_slice(&data_prefix(first));
                out.extend_from_slice(piece);
            });
            count += 1;
        }
        if count > 0 {
            self.is_hurried |= self.path.used();
        }
        count
    }

    /// Whether data that was sent made the deadline an earlier one.
    pub(crate) fn hurried(&mut self) -> bool {
        std::mem::take(&mut self.is_hurried)
    }

    /// Appends the next datagram to send, and says where to. None when there is nothing now.
    pub(crate) fn poll(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        if let Some(finish) = self.finish.as_mut().filter(|finish| now >= finish.at) {
            out.extend_from_slice(&finish.datagram);
            (finish.at, finish.count) = (now + FINISH_INTERVAL, finish.count + 1);
            if finish.count >= FINISH_COUNT_MAX {
                self.finish = None;
            }
            return Some(self.address);
        }
        let (to, payload) = match self.answers.pop_front() {
            Some(answer) => answer,
            None => (self.address, self.next_payload(now)?),
        };
        self.seal(out, |out| out.extend_from_slice(&payload));
        Some(to)
    }

    /// What is due for the peer where it is.
    fn next_payload(&mut self, now: Instant) -> Option<Vec<u8>> {
        let mut payload = Vec::new();
        if self.control.next(SMALL_SIZE - SEALED_OVERHEAD, now, &mut payload) {
            return Some(payload);
        }
        if now >= self.keep_alive_at {
            self.keep_alive_at = now + KEEP_ALIVE;
            let observed = Payload::Observed { address: self.address, takes: self.takes };
            observed.encode(&mut payload);
            return Some(payload);
        }
        let (id, size) = self.path.poll(now)?;
        Payload::Probe { id }.encode(&mut payload);
        payload.resize(size.saturating_sub(SEALED_OVERHEAD).max(PROBE_PREFIX_SIZE), 0);
        Some(payload)
    }

    /// When there is something to do.
    pub(crate) fn deadline(&self) -> Instant {
        let finish = self.finish.as_ref().map(|finish| finish.at);
        let others = [self.control.deadline(), self.path.deadline(), finish];
        others.into_iter().flatten().fold(self.keep_alive_at, Instant::min)
    }

    /// Does what is due. An error ends the link.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), ArqError> {
        self.control.tick(now)
    }

    /// Appends the datagram that ends the link.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) -> SocketAddr {
        self.seal(out, |out| Payload::Close.encode(out));
        self.address
    }

    /// The peer was heard: it has the handshake's last message.
    pub(crate) fn confirmed(&mut self) {
        self.finish = None;
    }

    /// Takes a payload from `from`, but for data. Control packets are appended to `out`.
    pub(crate) fn received(
        &mut self,
        payload: Payload<'_>,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Outcome {
        match payload {
            Payload::Control { acknowledged, first, packets } => {
                let deliver = |packet: &[u8]| out.extend_from_slice(packet);
                self.control.received(acknowledged, first, packets, now, deliver);
            }
            Payload::Probe { id } => self.answer(self.address, Payload::Probed { id }),
            Payload::Probed { id } => self.path.probed(id, now),
            Payload::Observed { address, takes } => return Outcome::Observed { address, takes },
            Payload::Close => return Outcome::Closed,
            Payload::Challenge { token } => self.answer(self.address, Payload::Echo { token }),
            Payload::Echo { token } => return self.echoed(token, from, now),
            Payload::Data { .. } => {}
        }
        Outcome::Nothing
    }

    /// A datagram of the peer, the newest so far, came from another address than before.
    pub(crate) fn heard_elsewhere(&mut self, from: SocketAddr, now: Instant) {
        let is_soon =
            |known: &Challenged| now.saturating_duration_since(known.at) < CHALLENGE_INTERVAL;
        if from == self.address || self.challenged.as_ref().is_some_and(is_soon) {
            return;
        }
        let Ok(token) = mycelium_wire::random_bytes() else { return };
        self.challenged = Some(Challenged { address: from, token, at: now });
        self.answer(from, Payload::Challenge { token });
    }

    fn echoed(&mut self, token: [u8; 8], from: SocketAddr, now: Instant) -> Outcome {
        let is_answer = |known: &mut Challenged| known.token == token && known.address == from;
        if self.challenged.take_if(is_answer).is_none() {
            return Outcome::Nothing;
        }
        self.address = from;
        self.path = Search::new(from.is_ipv6(), now);
        self.keep_alive_at = now;
        Outcome::Moved(from)
    }

    fn answer(&mut self, to: SocketAddr, payload: Payload<'_>) {
        if self.answers.len() < ANSWER_COUNT_MAX {
            let mut bytes = Vec::new();
            payload.encode(&mut bytes);
            self.answers.push_back((to, bytes));
        }
    }

    /// Appends a sealed datagram.
    fn seal(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        out.extend_from_slice(&sealed_header(self.peer_index, self.sealer.next_counter()));
        let begin = out.len();
        write(out);
        out.resize(out.len() + TAG_SIZE, 0);
        self.sealer.seal(&mut out[begin..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::udp::crypt::{Algorithm, Opener};
    use crate::link::udp::packet::split_sealed;

    /// An engine and what opens what the other one sends.
    struct End {
        engine: Engine,
        opener: Opener,
        address: SocketAddr,
        control: Vec<u8>,
        outcomes: Vec<Outcome>,
    }

    fn ends(now: Instant) -> [End; 2] {
        let addresses: [SocketAddr; 2] =
            ["192.0.2.1:1", "192.0.2.2:2"].map(|address| address.parse().unwrap());
        [0, 1].map(|at| {
            let (send, receive) = ([at; 32], [1 - at; 32]);
            let start = Start {
                sealer: Sealer::new(Algorithm::Aes256Gcm, &send),
                peer_index: 7,
                address: addresses[usize::from(1 - at)],
                finish: None,
                takes: 1400 + u16::from(at),
            };
            End {
                engine: Engine::new(start, now),
                opener: Opener::new(Algorithm::Aes256Gcm, &receive),
                address: addresses[usize::from(at)],
                control: Vec::new(),
                outcomes: Vec::new(),
            }
        })
    }

    impl End {
        fn take(&mut self, mut datagram: Vec<u8>, from: SocketAddr, now: Instant) {
            let (counter, sealed) = split_sealed(&mut datagram).unwrap();
            let Ok(payload) = self.opener.open(counter, sealed) else { return };
            if self.opener.is_newest(counter) {
                self.engine.heard_elsewhere(from, now);
            }
            let payload = Payload::parse(payload).unwrap();
            let outcome = self.engine.received(payload, from, now, &mut self.control);
            self.outcomes.push(outcome);
        }

        fn next(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
            let mut datagram = Vec::new();
            self.engine.poll(now, &mut datagram).map(|to| (to, datagram))
        }
    }

    /// Passes datagrams of at most `limit` bytes to and fro until there are none.
    fn settle(a: &mut End, b: &mut End, limit: usize, now: Instant) {
        for _ in 0..100 {
            let mut is_idle = true;
            for _ in 0..2 {
                while let Some((to, datagram)) = a.next(now) {
                    is_idle = false;
                    if datagram.len() <= limit && to == b.address {
                        b.take(datagram, a.address, now);
                    }
                }
                std::mem::swap(a, b);
            }
            if is_idle {
                return;
            }
        }
        panic!("two ends talk without end");
    }

    #[test]
    fn ends_say_what_they_see_and_find_their_path() {
        let mut now = Instant::now();
        let [mut a, mut b] = ends(now);
        for _ in 0..20 {
            settle(&mut a, &mut b, 1400, now);
            now += Duration::from_millis(500);
        }
        let of_a = Outcome::Observed { address: a.address, takes: 1401 };
        let of_b = Outcome::Observed { address: b.address, takes: 1400 };
        assert!(a.outcomes.contains(&of_a) && b.outcomes.contains(&of_b));
        assert_eq!((a.engine.datagram_size(), b.engine.datagram_size()), (1392, 1392));
    }

    #[test]
    fn an_idle_link_says_little() {
        let mut now = Instant::now();
        let [mut a, mut b] = ends(now);
        let end = now + Duration::from_secs(120);
        let mut count = 0;
        while now < end {
            for end in [&mut a, &mut b] {
                while let Some((_, datagram)) = end.next(now) {
                    // Probes that get lost count as well.
                    count += usize::from(datagram.len() < 100);
                }
            }
            now = a.engine.deadline().min(b.engine.deadline());
        }
        assert!((14..=20).contains(&count), "{count}");
    }

    #[test]
    fn a_peer_is_followed_when_it_answers_at_its_new_address_and_not_before() {
        let now = Instant::now();
        let [mut a, mut b] = ends(now);
        settle(&mut a, &mut b, 1500, now);
        let (old, new) = (b.address, "198.51.100.9:9".parse().unwrap());
        b.engine.send_control(b"moved").unwrap();
        let (_, datagram) = b.next(now).unwrap();
        // Somebody in between sends it from his own address.
        a.take(datagram, new, now);
        let (to, challenge) = a.next(now).unwrap();
        assert_eq!((to, a.engine.address()), (new, old));
        // The peer is where it was, and its answer comes from there.
        b.take(challenge, a.address, now);
        let (_, echo) = b.next(now).unwrap();
        a.take(echo, old, now);
        assert_eq!(a.engine.address(), old);
        // Now it has moved.
        let now = now + CHALLENGE_INTERVAL;
        b.address = new;
        b.engine.send_control(b"moved").unwrap();
        settle(&mut b, &mut a, 1500, now);
        settle(&mut a, &mut b, 1500, now);
        assert_eq!(a.engine.address(), new);
        assert!(a.outcomes.contains(&Outcome::Moved(new)));
    }

    #[test]
    fn a_last_message_is_sent_until_the_peer_is_heard() {
        let now = Instant::now();
        let [a, _] = ends(now);
        let mut engine = a.engine;
        engine.finish = Some(Finish { datagram: vec![3; 40], at: now, count: 0 });
        let mut out = Vec::new();
        engine.poll(now, &mut out);
        assert_eq!(out, [3; 40]);
        assert!(engine.deadline() <= now + FINISH_INTERVAL);
        engine.confirmed();
        out.clear();
        engine.poll(now + FINISH_INTERVAL, &mut out);
        assert_ne!(out, [3; 40]);
    }

    proptest! {
        #[test]
        fn control_packets_arrive_over_a_path_that_loses(
            losses in proptest::collection::vec(proptest::bool::weighted(0.3), 100),
        ) {
            let mut now = Instant::now();
            let [mut a, mut b] = ends(now);
            let mut expected = Vec::new();
            for (number, is_lost) in (0_u8..).zip(losses) {
                a.engine.send_control(&[number; 20]).unwrap();
                expected.extend([number; 20]);
                while let Some((_, datagram)) = a.next(now) {
                    if !is_lost {
                        b.take(datagram, a.address, now);
                    }
                }
                settle(&mut b, &mut a, 1500, now);
                now += Duration::from_millis(150);
                if a.engine.tick(now).is_err() {
                    // So many losses in a row are the end of a link.
                    return Ok(());
                }
            }
            for _ in 0..20 {
                settle(&mut a, &mut b, 1500, now);
                now += Duration::from_secs(1);
                prop_assert!(a.engine.tick(now).is_ok());
            }
            prop_assert_eq!(b.control, expected);
        }
    }
}
