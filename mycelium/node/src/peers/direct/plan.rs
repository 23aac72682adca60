//! With whom a direct way is looked for, and when: without I/O.
//!
//! ```text
//!            traffic, and time to try        answer comes
//!   idle ──────────────────────────> offered ───────────> trying ──link──> direct
//!    ^  <── no answer, no link: later, and later still ──────┘               │
//!    └────────────── the link ends, or nothing was sent for 5 min ───────────┘
//! ```
//!
//! Only destinations that this node itself sends to are looked for, and offers are answered only to
//! those: nobody else learns where this node is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mycelium_wire::identity::PublicKey;

use crate::peers::direct::message::Attempt;

/// Reports of traffic before an attempt: the router hears of a route's use a few times a second, so
/// that is about a second of traffic.
const USE_COUNT_MIN: u32 = 4;
/// Without a report for so long, traffic has ended, and counts anew.
const USE_GAP_MAX: Duration = Duration::from_secs(10);
/// Attempts in progress.
const ATTEMPT_COUNT_MAX: usize = 8;
/// Direct links at a time.
const DIRECT_COUNT_MAX: usize = 64;
/// Destinations that are remembered.
const KNOWN_COUNT_MAX: usize = 1024;
/// How long an offer waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);
/// How long the other side of an attempt waits for a link.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);
/// The first wait after a failure; it doubles.
const RETRY_MIN: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(1800);
/// The wait after a link that ended, and while an observer is asked.
const REVIVE_AFTER: Duration = Duration::from_secs(2);
/// A direct link that nothing was sent on for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A destination without traffic for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(1800);

/// All destinations with traffic.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    known: HashMap<PublicKey, Known>,
}

#[derive(Debug)]
struct Known {
    used_at: Instant,
    use_count: u32,
    state: State,
    failures: u32,
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Idle,
    Offered {
        attempt: Attempt,
        until: Instant,
    },
    /// A link is dialed, here or there.
    Trying {
        until: Instant,
    },
    Direct,
}

impl Plan {
    /// Packets went to `peer`. True when it is time for an offer: then [`Self::offered`], or
    /// [`Self::put_off`].
    pub(crate) fn used(&mut self, peer: PublicKey, now: Instant) -> bool {
        let is_full = self.known.len() >= KNOWN_COUNT_MAX && !self.known.contains_key(&peer);
        if is_full {
            return false;
        }
        let attempts =
            self.count(|state| matches!(state, State::Offered { .. } | State::Trying { .. }));
        let directs = self.count(|state| state == State::Direct);
        let known = self.known.entry(peer).or_insert(Known {
            used_at: now,
            use_count: 0,
            state: State::Idle,
            failures: 0,
            not_before: now,
        });
        if now.saturating_duration_since(known.used_at) > USE_GAP_MAX {
            known.use_count = 0;
        }
        known.used_at = now;
        known.use_count = known.use_count.saturating_add(1);
        known.state == State::Idle
            && known.use_count >= USE_COUNT_MIN
            && now >= known.not_before
            && attempts < ATTEMPT_COUNT_MAX
            && directs < DIRECT_COUNT_MAX
    }

    /// There is a direct way already, or none can be looked for.
    pub(crate) fn put_off(&mut self, peer: &PublicKey, now: Instant) {
        if let Some(known) = self.known.get_mut(peer) {
            (known.state, known.not_before) = (State::Idle, now + RETRY_MIN);
        }
    }

    /// Not now, but soon.
    pub(crate) fn wait(&mut self, peer: &PublicKey, now: Instant) {
        if let Some(known) = self.known.get_mut(peer) {
            known.not_before = now + REVIVE_AFTER;
        }
    }

    /// An offer was sent.
    pub(crate) fn offered(&mut self, peer: &PublicKey, attempt: Attempt, now: Instant) {
        if let Some(known) = self.known.get_mut(peer) {
            known.state = State::Offered { attempt, until: now + ANSWER_TIMEOUT };
        }
    }

    /// An answer came. Whether it is to the offer that waits for one.
    pub(crate) fn answered(&mut self, peer: &PublicKey, answer: Attempt, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(peer) else { return false };
        let is_ours = matches!(known.state, State::Offered { attempt, .. } if attempt == answer);
        if is_ours {
            known.state = State::Trying { until: now + LINK_TIMEOUT };
        }
        is_ours
    }

    /// An offer came. Whether to answer it: there is traffic, and of two offers that cross, the one of the
    /// smaller key counts.
    pub(crate) fn is_welcome(&mut self, peer: &PublicKey, own: &PublicKey, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(peer) else { return false };
        let has_traffic = now.saturating_duration_since(known.used_at) <= USE_GAP_MAX;
        let is_welcome = has_traffic
            && match known.state {
                State::Idle => true,
                State::Offered { .. } => peer < own,
                State::Trying { .. } | State::Direct => false,
            };
        if is_welcome {
            known.state = State::Trying { until: now + LINK_TIMEOUT };
        }
        is_welcome
    }

    /// A link is there.
    pub(crate) fn succeeded(&mut self, peer: &PublicKey) {
        if let Some(known) = self.known.get_mut(peer) {
            (known.state, known.failures) = (State::Direct, 0);
        }
    }

    /// There is no link.
    pub(crate) fn failed(&mut self, peer: &PublicKey, now: Instant) {
        if let Some(known) = self.known.get_mut(peer) {
            known.fail(now);
        }
    }

    /// The link is gone.
    pub(crate) fn ended(&mut self, peer: &PublicKey, now: Instant) {
        if let Some(known) = self.known.get_mut(peer) {
            (known.state, known.not_before) = (State::Idle, now + REVIVE_AFTER);
        }
    }

    /// Ends what took too long, forgets what is of no use, and gives peers whose direct link is idle.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<PublicKey> {
        for known in self.known.values_mut() {
            match known.state {
                State::Offered { until, .. } | State::Trying { until } if now >= until => {
                    known.fail(now);
                }
                _ => {}
            }
        }
        let age = |known: &Known| now.saturating_duration_since(known.used_at);
        self.known.retain(|_, known| known.state == State::Direct || age(known) < FORGET_AFTER);
        let is_idle = |known: &Known| known.state == State::Direct && age(known) >= IDLE_MAX;
        self.known.iter().filter(|(_, known)| is_idle(known)).map(|(peer, _)| *peer).collect()
    }

    fn count(&self, is: impl Fn(State) -> bool) -> usize {
        self.known.values().filter(|known| is(known.state)).count()
    }
}

impl Known {
    fn fail(&mut self, now: Instant) {
        let wait = RETRY_MIN.saturating_mul(1 << self.failures.min(8)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        (self.state, self.not_before) = (State::Idle, now + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u16) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    /// Traffic for a second; whether an offer is due.
    fn traffic(plan: &mut Plan, peer: PublicKey, now: Instant) -> bool {
        (0..USE_COUNT_MIN).fold(false, |_, _| plan.used(peer, now))
    }

    #[test]
    fn a_single_packet_is_no_reason_and_a_failure_one_to_wait_longer_each_time() {
        let (mut plan, mut now) = (Plan::default(), Instant::now());
        assert!(!plan.used(key(1), now));
        let mut waits = Vec::new();
        for _ in 0..8 {
            let begin = now;
            while !traffic(&mut plan, key(1), now) {
                now += Duration::from_secs(1);
            }
            waits.push((now - begin).as_secs());
            plan.offered(&key(1), [1; 8], now);
            assert!(!traffic(&mut plan, key(1), now));
            now += ANSWER_TIMEOUT;
            assert_eq!(plan.tick(now), []);
        }
        assert_eq!(waits, [0, 30, 60, 120, 240, 480, 960, 1800]);
    }

    #[test]
    fn of_two_offers_that_cross_one_is_answered() {
        let now = Instant::now();
        let mut plans = [Plan::default(), Plan::default()];
        let keys = [key(1), key(2)];
        for (plan, peer) in plans.iter_mut().zip([keys[1], keys[0]]) {
            assert!(traffic(plan, peer, now));
            plan.offered(&peer, [7; 8], now);
        }
        assert!(!plans[0].is_welcome(&keys[1], &keys[0], now));
        assert!(plans[1].is_welcome(&keys[0], &keys[1], now));
        assert!(!plans[0].answered(&keys[1], [8; 8], now));
        assert!(plans[0].answered(&keys[1], [7; 8], now));
        assert!(!plans[0].answered(&keys[1], [7; 8], now));
    }

    #[test]
    fn who_has_no_traffic_with_this_node_learns_nothing() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        assert!(!plan.is_welcome(&key(1), &key(2), now));
        plan.used(key(1), now);
        assert!(plan.is_welcome(&key(1), &key(2), now));
        let later = now + LINK_TIMEOUT;
        plan.tick(later);
        assert!(!plan.is_welcome(&key(1), &key(2), later + USE_GAP_MAX));
    }

    #[test]
    fn attempts_links_and_memory_are_bounded() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        let mut offers = 0;
        for number in 0..5000 {
            if traffic(&mut plan, key(number), now) {
                plan.offered(&key(number), [0; 8], now);
                offers += 1;
            }
        }
        assert_eq!((offers, plan.known.len()), (ATTEMPT_COUNT_MAX, KNOWN_COUNT_MAX));
        for number in 0..200 {
            plan.succeeded(&key(number));
        }
        assert!(!traffic(&mut plan, key(500), now));
    }

    #[test]
    fn an_idle_link_is_closed_and_one_that_broke_comes_back_soon() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        assert!(traffic(&mut plan, key(1), now));
        plan.succeeded(&key(1));
        assert_eq!(plan.tick(now + Duration::from_secs(299)), []);
        assert_eq!(plan.tick(now + IDLE_MAX), [key(1)]);
        plan.ended(&key(1), now + IDLE_MAX);
        assert!(!traffic(&mut plan, key(1), now + IDLE_MAX));
        assert!(traffic(&mut plan, key(1), now + IDLE_MAX + REVIVE_AFTER));
        plan.tick(now + IDLE_MAX + FORGET_AFTER + REVIVE_AFTER);
        assert!(plan.known.is_empty());
    }
}
