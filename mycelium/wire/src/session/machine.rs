//! All handshakes of a node.
//!
//! The caller gives it what came and what time it is, then takes events with [`Machine::poll`] until there
//! is none, and comes back at [`Machine::deadline`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::cipher::{Suite, Suites};
use super::established::{Parts, Session};
use super::limits::{
    IN_USE, INITIATION_RATE, INITIATION_SPACING, KEEPALIVE_AFTER, PEER_COUNT_MAX, PEER_KEPT,
    PROVED_COUNT_MAX, REKEY_AFTER, REPLY_SPACING, TICK_ASKING, TICK_IDLE, TICK_IN_USE,
};
use super::packet::{self, COOKIE_SIZE, Initiation, Packet};
use super::peer::{Answered, Attempt, Due, NO_COOKIE, Peer, Ring};
use super::time::{Clock, Stamp, Time};
use crate::identity::{PublicKey, SecretKey};
use crate::noise::{Initiator, NoiseError, Pattern, Responder};
use crate::random::{RandomError, random_bytes};

/// What the handshake is for: the first bytes of its prologue.
const PROLOGUE: &[u8] = b"mycelium session v1";

/// What the caller must do.
#[derive(Clone, Debug)]
pub enum Event {
    /// Send this payload to the peer, as inner type 0x10.
    Send(PublicKey, Vec<u8>),
    /// These are the peer's sessions from now on.
    Changed(PublicKey, Ring),
    /// Seal nothing for the peer, and send that.
    SignOfLife(PublicKey),
    /// Nobody answered. The next attempt is made when somebody wants it and the pause is over.
    Unanswered(PublicKey),
    /// The peer has had a session with this node, for the first time.
    Proved(PublicKey),
}

/// What machines count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handshakes begun by this node.
    pub begun: u64,
    /// Handshakes that it answered.
    pub answered: u64,
    /// Sessions that came of either.
    pub established: u64,
    /// Handshakes of its own that nobody answered.
    pub unanswered: u64,
    /// Challenges sent: repetitions of what was said before, or clocks that were set back.
    pub challenged: u64,
    /// Initiations that were too many.
    pub refused: u64,
    /// Messages that are none, or not the peer's.
    pub forged: u64,
}

/// A node's handshakes. See the [module's story](super).
#[derive(Debug)]
pub struct Machine {
    peers: HashMap<PublicKey, Peer>,
    core: Core,
}

/// What does not depend on a peer.
#[derive(Debug)]
struct Core {
    secret: SecretKey,
    suites: Suites,
    /// Of the last initiation made here.
    stamp: Stamp,
    cookie_key: CookieKey,
    budget: Budget,
    proved: HashSet<PublicKey>,
    events: VecDeque<Event>,
    counters: Counters,
    deadline: Option<Time>,
}

impl Machine {
    /// The handshakes of the node with this key, which can these ciphers.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn new(secret: SecretKey, suites: Suites) -> Result<Self, RandomError> {
        let core = Core {
            secret,
            suites,
            stamp: Stamp::default(),
            cookie_key: CookieKey(random_bytes()?),
            budget: Budget { left: INITIATION_RATE, filled: Time::default() },
            proved: HashSet::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            deadline: None,
        };
        Ok(Self { peers: HashMap::new(), core })
    }

    /// Remembers from an earlier run that a peer had a session. False when there are too many.
    pub fn remember(&mut self, peer: PublicKey) -> bool {
        self.core.prove(peer)
    }

    /// Forgets that a peer had a session. False when it had none.
    pub fn forget(&mut self, peer: &PublicKey) -> bool {
        self.core.proved.remove(peer)
    }

    /// Whether a peer ever had a session.
    #[must_use]
    pub fn is_proved(&self, peer: &PublicKey) -> bool {
        self.core.proved.contains(peer)
    }

    /// All peers that ever had a session, in no order.
    pub fn proved(&self) -> impl Iterator<Item = &PublicKey> {
        self.core.proved.iter()
    }

    /// Somebody has something to send to a peer, and there is no session to send it with.
    pub fn want(&mut self, peer: PublicKey, clock: Clock) {
        let Some(state) = peer_of(&mut self.peers, peer, clock.now) else { return };
        let has_session = state.ring.current().is_some_and(|session| {
            !session.is_over(clock.now) && clock.now.since(session.established()) < REKEY_AFTER
        });
        if !has_session && state.attempt.is_none() && clock.now >= state.paused_until {
            self.core.begin(state, peer, NO_COOKIE, clock);
        }
    }

    /// Takes the payload of an inner packet of type 0x10, which was sealed by `from`.
    pub fn received(&mut self, from: PublicKey, payload: &[u8], clock: Clock) {
        let Some(state) = peer_of(&mut self.peers, from, clock.now) else { return };
        match packet::parse(payload) {
            Some(Packet::Initiation { header, header_bytes, noise }) => {
                self.core.initiation(state, from, &header, header_bytes, noise, clock.now);
            }
            Some(Packet::Response { receiver, noise }) => {
                self.core.response(state, from, receiver, noise, clock.now);
            }
            Some(Packet::Challenge { receiver, cookie }) => {
                let asked = state.attempt.as_ref();
                if asked.is_some_and(|asked| asked.index == receiver && !asked.has_cookie) {
                    self.core.begin(state, from, cookie, clock);
                }
            }
            None => self.core.counters.forged += 1,
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, clock: Clock) {
        let now = clock.now;
        let mut wait = None;
        for (key, state) in &mut self.peers {
            let next = self.core.tick(state, *key, clock);
            wait = wait.into_iter().chain(next).min();
        }
        self.peers.retain(|_, state| !is_idle(state) || now.since(state.touched) < PEER_KEPT);
        self.core.deadline = wait.map(|wait| now + wait);
    }

    /// When to call [`Self::tick`]; never while there is nothing to do.
    #[must_use]
    pub const fn deadline(&self) -> Option<Time> {
        self.core.deadline
    }

    /// The next event.
    pub fn poll(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.core.counters
    }
}

/// What is known of a peer, from now on. None when there are too many others.
fn peer_of(peers: &mut HashMap<PublicKey, Peer>, key: PublicKey, now: Time) -> Option<&mut Peer> {
    if peers.len() >= PEER_COUNT_MAX && !peers.contains_key(&key) {
        let idle = peers.iter().filter(|(_, state)| is_idle(state));
        let oldest = idle.min_by_key(|(_, state)| state.touched).map(|(key, _)| *key)?;
        peers.remove(&oldest);
    }
    let state = peers.entry(key).or_default();
    state.touched = now;
    Some(state)
}

fn is_idle(state: &Peer) -> bool {
    state.ring.is_empty() && state.attempt.is_none()
}

impl Core {
    /// Asks a peer for a session.
    fn begin(
        &mut self,
        state: &mut Peer,
        peer: PublicKey,
        cookie: [u8; COOKIE_SIZE],
        clock: Clock,
    ) {
        self.stamp = Stamp::next(clock.wall, self.stamp);
        match self.attempt(state, &peer, cookie, clock.now) {
            Ok(attempt) => {
                self.counters.begun += 1;
                self.send(peer, attempt.message.clone());
                state.attempt = Some(attempt);
                self.wake(clock.now);
            }
            // Its key is of no use, or there are no random bytes.
            Err(_) => {
                state.attempt = None;
                state.is_silent(self.proved.contains(&peer), clock.now);
                self.events.push_back(Event::Unanswered(peer));
            }
        }
    }

    fn attempt(
        &self,
        state: &Peer,
        peer: &PublicKey,
        cookie: [u8; COOKIE_SIZE],
        now: Time,
    ) -> Result<Attempt, NoiseError> {
        let index = new_index(&state.ring)?;
        let header = Initiation { suites: self.suites.0, index, stamp: self.stamp, cookie };
        let mut message = Vec::new();
        header.encode(&mut message);
        let prologue = [PROLOGUE, &message].concat();
        let mut initiator = Initiator::new(Pattern::Ik, &self.secret, Some(peer), &prologue)?;
        // IK has one more.
        let _ = initiator.write(&[], &mut message)?;
        let has_cookie = cookie != NO_COOKIE;
        Ok(Attempt { initiator, index, message, begun: now, resent_count: 0, has_cookie })
    }

    fn initiation(
        &mut self,
        state: &mut Peer,
        from: PublicKey,
        header: &Initiation,
        header_bytes: &[u8],
        noise: &[u8],
        now: Time,
    ) {
        let may_reply = state.replied.is_none_or(|at| now.since(at) >= REPLY_SPACING);
        if let Some(answered) = &state.answered
            && (answered.stamp, answered.index) == (header.stamp, header.index)
        {
            // The response was lost, or is still under way.
            if may_reply && now.since(answered.at) >= REPLY_SPACING {
                state.replied = Some(now);
                let response = answered.response.clone();
                self.send(from, response);
            }
            return;
        }
        let cookie = self.cookie(&from, state.newest);
        if header.stamp <= state.newest && header.cookie != cookie {
            if may_reply {
                state.replied = Some(now);
                self.counters.challenged += 1;
                self.send(from, packet::challenge(header.index, cookie));
            }
            return;
        }
        let spacing = state.answered.as_ref().map(|answered| now.since(answered.at));
        if spacing.is_some_and(|spacing| spacing < INITIATION_SPACING) || !self.budget.take(now) {
            self.counters.refused += 1;
            return;
        }
        match self.answer(state, from, header, header_bytes, noise, now) {
            Ok(()) => self.counters.answered += 1,
            Err(_) => self.counters.forged += 1,
        }
    }

    fn answer(
        &mut self,
        state: &mut Peer,
        from: PublicKey,
        header: &Initiation,
        header_bytes: &[u8],
        noise: &[u8],
        now: Time,
    ) -> Result<(), NoiseError> {
        let prologue = [PROLOGUE, header_bytes].concat();
        let mut responder = Responder::new(Pattern::Ik, &self.secret, &prologue)?;
        let _ = responder.read(noise, &mut Vec::new())?;
        // The seal around it was this peer's, so the handshake must be as well.
        if responder.peer() != Some(from) {
            return Err(NoiseError::Forged);
        }
        let index = new_index(&state.ring)?;
        let suite = self.suites.common(Suites(header.suites));
        let mut response = Vec::new();
        packet::write_response(header.index, &mut response);
        let _ = responder.write(&packet::accept(index, suite.bit()), &mut response)?;
        let (peer, peer_index) = (from, header.index);
        let keys = responder.finish()?;
        let activity = Arc::clone(&state.activity);
        let parts = Parts { peer, suite, keys, index, peer_index, is_initiator: false, activity };
        state.ring.answered(Arc::new(Session::new(&parts, now)));
        state.newest = header.stamp;
        state.is_there();
        let (stamp, index) = (header.stamp, header.index);
        state.answered = Some(Answered { stamp, index, response: response.clone(), at: now });
        self.send(from, response);
        self.events.push_back(Event::Changed(from, state.ring.clone()));
        self.wake(now);
        Ok(())
    }

    fn response(
        &mut self,
        state: &mut Peer,
        from: PublicKey,
        receiver: u32,
        noise: &[u8],
        now: Time,
    ) {
        // One that comes twice, or late, has no attempt any more.
        let Some(mut attempt) = state.attempt.take_if(|asked| asked.index == receiver) else {
            return;
        };
        let mut accept = Vec::new();
        if attempt.initiator.read(noise, &mut accept).is_err() {
            self.counters.forged += 1;
            state.attempt = Some(attempt);
            return;
        }
        let accepted = packet::parse_accept(&accept).and_then(|(index, suite)| {
            let suite = Suite::from_bit(suite).filter(|suite| self.suites.has(*suite))?;
            Some((index, suite))
        });
        let (Some((peer_index, suite)), Ok(keys)) = (accepted, attempt.initiator.finish()) else {
            // The peer itself said something that makes no sense. Its silence ends the same way.
            self.counters.forged += 1;
            return self.gave_up(state, from, now);
        };
        let (peer, index) = (from, attempt.index);
        let activity = Arc::clone(&state.activity);
        let parts = Parts { peer, suite, keys, index, peer_index, is_initiator: true, activity };
        state.ring.began(Arc::new(Session::new(&parts, now)));
        state.is_there();
        self.established(state, from, now);
        self.events.push_back(Event::SignOfLife(from));
    }

    fn established(&mut self, state: &Peer, peer: PublicKey, now: Time) {
        self.counters.established += 1;
        let is_new = !self.proved.contains(&peer);
        if is_new && self.prove(peer) {
            self.events.push_back(Event::Proved(peer));
        }
        self.events.push_back(Event::Changed(peer, state.ring.clone()));
        self.wake(now);
    }

    fn gave_up(&mut self, state: &mut Peer, peer: PublicKey, now: Time) {
        state.attempt = None;
        state.is_silent(self.proved.contains(&peer), now);
        self.counters.unanswered += 1;
        self.events.push_back(Event::Unanswered(peer));
    }

    /// Does what is due for a peer, and says when to come back.
    fn tick(&mut self, state: &mut Peer, key: PublicKey, clock: Clock) -> Option<Duration> {
        let now = clock.now;
        if state.ring.confirm() {
            // What this end asked for meanwhile is not needed any more.
            state.attempt = None;
            self.established(state, key, now);
        }
        if state.ring.expire(now) {
            self.events.push_back(Event::Changed(key, state.ring.clone()));
        }
        match state.attempt.as_mut().map_or(Due::Nothing, |attempt| attempt.due(now)) {
            Due::Resend => {
                let message = state.attempt.as_ref().map(|attempt| attempt.message.clone());
                self.events.extend(message.map(|message| Event::Send(key, message)));
            }
            Due::GiveUp => self.gave_up(state, key, now),
            Due::Nothing => {}
        }
        if state.attempt.is_none() && now >= state.paused_until && state.needs_session(now) {
            self.begin(state, key, NO_COOKIE, clock);
        }
        let current = state.ring.current();
        let unacknowledged = state.activity.unacknowledged_for(now);
        if current.is_some() && unacknowledged.is_some_and(|time| time >= KEEPALIVE_AFTER) {
            self.events.push_back(Event::SignOfLife(key));
        }
        let unused = current.and_then(|_| state.activity.unused_for(now));
        match (state.attempt.is_some(), unused) {
            (true, _) => Some(TICK_ASKING),
            (false, Some(unused)) if unused < IN_USE => Some(TICK_IN_USE),
            _ => Some(TICK_IDLE),
        }
    }

    fn send(&mut self, to: PublicKey, payload: Vec<u8>) {
        self.events.push_back(Event::Send(to, payload));
    }

    fn prove(&mut self, peer: PublicKey) -> bool {
        self.proved.len() < PROVED_COUNT_MAX && self.proved.insert(peer)
    }

    /// Comes back soon.
    fn wake(&mut self, now: Time) {
        let soon = now + TICK_ASKING;
        self.deadline = Some(self.deadline.map_or(soon, |deadline| deadline.min(soon)));
    }

    /// What shows that an initiation was made after the last one was taken.
    fn cookie(&self, peer: &PublicKey, newest: Stamp) -> [u8; COOKIE_SIZE] {
        let mut hasher = blake3::Hasher::new_keyed(&self.cookie_key.0);
        hasher.update(peer.as_bytes()).update(&newest.0);
        let mut cookie = [0; COOKIE_SIZE];
        hasher.finalize_xof().fill(&mut cookie);
        cookie
    }
}

/// An index that no living session of the peer has.
fn new_index(ring: &Ring) -> Result<u32, RandomError> {
    loop {
        let index = u32::from_be_bytes(random_bytes()?);
        if ring.by_index(index).is_none() {
            return Ok(index);
        }
    }
}

/// New at each start, and shown by nobody.
struct CookieKey([u8; 32]);

impl fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieKey(..)")
    }
}

/// How many initiations may cost curve operations.
#[derive(Debug)]
struct Budget {
    left: u32,
    filled: Time,
}

impl Budget {
    fn take(&mut self, now: Time) -> bool {
        let millis = now.since(self.filled).as_millis();
        let earned = u32::try_from(millis * u128::from(INITIATION_RATE) / 1000);
        let earned = earned.unwrap_or(INITIATION_RATE);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(INITIATION_RATE);
            self.filled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}
