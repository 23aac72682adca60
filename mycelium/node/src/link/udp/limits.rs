//! What keeps a node from being flooded, and from being made to flood others.
//!
//! - [`Bucket`]: so many of something a second.
//! - [`Restraint`]: how much is sent to addresses that others named and that have not answered.
//! - [`Observations`]: what neighbours say about where this node is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mycelium_wire::identity::PublicKey;

/// So many a second, and as many at once.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: u32,
    left: u32,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, left: per_second, filled: now }
    }

    /// Whether one more may be.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let millis = now.saturating_duration_since(self.filled).as_millis();
        let earned = u32::try_from(millis * u128::from(self.per_second) / 1000);
        let earned = earned.unwrap_or(self.per_second);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.per_second);
            self.filled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// Datagrams to addresses that others named, in all, a second.
const UNASKED_PER_SECOND: u32 = 100;
/// Datagrams to one of them in [`FORGET_AFTER`].
const UNASKED_PER_ADDRESS: u8 = 12;
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Addresses that are remembered; while there are as many, no new one is sent to.
const ADDRESS_COUNT_MAX: usize = 512;

/// How much is sent to addresses that others named: small datagrams, few to each, however many name it.
#[derive(Debug)]
pub(crate) struct Restraint {
    all: Bucket,
    by_address: HashMap<SocketAddr, (Instant, u8)>,
}

impl Restraint {
    pub(crate) fn new(now: Instant) -> Self {
        Self { all: Bucket::new(UNASKED_PER_SECOND, now), by_address: HashMap::new() }
    }

    /// Whether one more datagram may go to `address`.
    pub(crate) fn may_send(&mut self, address: SocketAddr, now: Instant) -> bool {
        let is_old = |since: Instant| now.saturating_duration_since(since) >= FORGET_AFTER;
        if self.by_address.len() >= ADDRESS_COUNT_MAX {
            self.by_address.retain(|_, (since, _)| !is_old(*since));
            if self.by_address.len() >= ADDRESS_COUNT_MAX {
                return false;
            }
        }
        let (since, count) = self.by_address.entry(address).or_insert((now, 0));
        if is_old(*since) {
            (*since, *count) = (now, 0);
        }
        let may = *count < UNASKED_PER_ADDRESS && self.all.take(now);
        *count += u8::from(may);
        may
    }
}

/// Neighbours whose word is kept.
const OBSERVER_COUNT_MAX: usize = 32;
/// For how long.
const OBSERVATION_KEPT: Duration = Duration::from_secs(120);

/// Where neighbours see this node.
#[derive(Debug, Default)]
pub(crate) struct Observations(Vec<Observation>);

#[derive(Debug)]
struct Observation {
    by: PublicKey,
    address: SocketAddr,
    at: Instant,
}

impl Observations {
    /// A neighbour says where it sees this node.
    pub(crate) fn note(&mut self, by: PublicKey, address: SocketAddr, now: Instant) {
        let is_other =
            |known: &Observation| known.by != by || known.address.is_ipv6() != address.is_ipv6();
        self.0.retain(|known| {
            is_other(known) && now.saturating_duration_since(known.at) < OBSERVATION_KEPT
        });
        if self.0.len() >= OBSERVER_COUNT_MAX {
            self.0.remove(0);
        }
        self.0.push(Observation { by, address, at: now });
    }

    /// All of them, the newest first, each once.
    pub(crate) fn addresses(&self, now: Instant) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for known in self.0.iter().rev() {
            let is_fresh = now.saturating_duration_since(known.at) < OBSERVATION_KEPT;
            if is_fresh && !addresses.contains(&known.address) {
                addresses.push(known.address);
            }
        }
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_does_not_answer_gets_a_few_datagrams_whoever_names_it() {
        let (mut restraint, start) = (Restraint::new(Instant::now()), Instant::now());
        let victim = "192.0.2.1:53000".parse().unwrap();
        let may = |restraint: &mut Restraint, now| {
            (0..1000).filter(|_| restraint.may_send(victim, now)).count()
        };
        assert_eq!(may(&mut restraint, start), usize::from(UNASKED_PER_ADDRESS));
        assert_eq!(may(&mut restraint, start + Duration::from_secs(59)), 0);
        assert_eq!(may(&mut restraint, start + FORGET_AFTER), usize::from(UNASKED_PER_ADDRESS));
    }

    #[test]
    fn no_number_of_addresses_gets_more_than_the_rate() {
        let (mut restraint, start) = (Restraint::new(Instant::now()), Instant::now());
        let mut sent = 0;
        for millis in 0..10_000 {
            let now = start + Duration::from_millis(millis);
            for port in 0..4 {
                let host = [198, 51, 100, u8::try_from(millis % 256).unwrap()];
                let address = SocketAddr::from((host, 2000 + port));
                sent += u32::from(restraint.may_send(address, now));
            }
        }
        assert!(sent <= 11 * UNASKED_PER_SECOND, "{sent}");
        assert!(restraint.by_address.len() <= ADDRESS_COUNT_MAX);
    }

    #[test]
    fn each_neighbour_has_one_word_and_old_ones_are_forgotten() {
        let (mut seen, now) = (Observations::default(), Instant::now());
        let key = |number| PublicKey::from_bytes([number; 32]);
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        seen.note(key(1), address(1), now);
        seen.note(key(2), address(2), now);
        seen.note(key(3), address(2), now);
        seen.note(key(1), address(3), now);
        assert_eq!(seen.addresses(now), [address(3), address(2)]);
        assert_eq!(seen.addresses(now + OBSERVATION_KEPT), []);
        for number in 0..200 {
            seen.note(key(number), address(u16::from(number)), now);
        }
        assert_eq!(seen.0.len(), OBSERVER_COUNT_MAX);
    }
}
