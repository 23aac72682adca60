//! Which of several relays to try first: the one that failed least in the last hour.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a result is remembered.
const WINDOW: Duration = Duration::from_secs(3600);
/// Results of one relay that are remembered.
const RESULT_COUNT_MAX: usize = 64;
/// Relays that are remembered; strangers can name new ones, so all are forgotten when there are more.
const RELAY_COUNT_MAX: usize = 1024;

/// How other relays did lately.
#[derive(Default)]
pub(crate) struct Ranks(Mutex<HashMap<String, VecDeque<(Instant, bool)>>>);

impl Ranks {
    /// Notes whether a relay worked.
    pub(crate) fn note(&self, relay: &str, worked: bool, now: Instant) {
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if relays.len() >= RELAY_COUNT_MAX && !relays.contains_key(relay) {
            relays.clear();
        }
        let results = relays.entry(relay.to_owned()).or_default();
        results.push_back((now, worked));
        if results.len() > RESULT_COUNT_MAX {
            results.pop_front();
        }
    }

    /// Puts the most reliable first, and leaves equal ones as they are.
    pub(crate) fn sort(&self, relays: &mut [String], now: Instant) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        relays.sort_by_cached_key(|relay| {
            let results = known.get(relay).into_iter().flatten();
            let recent = results.filter(|(at, _)| now.duration_since(*at) < WINDOW);
            let (mut failed, mut all) = (0_usize, 0_usize);
            for (_, worked) in recent {
                failed += usize::from(!worked);
                all += 1;
            }
            // Failures in a thousand.
            (failed * 1000).checked_div(all).unwrap_or(0)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_last_hour_count() {
        let ranks = Ranks::default();
        let now = Instant::now();
        let sorted = |now| {
            let mut relays = ["a", "b", "c"].map(String::from);
            ranks.sort(&mut relays, now);
            relays.join("")
        };
        assert_eq!(sorted(now), "abc");
        ranks.note("a", false, now);
        assert_eq!(sorted(now), "bca");
        ranks.note("b", false, now);
        ranks.note("b", true, now);
        assert_eq!(sorted(now), "cba");
        assert_eq!(sorted(now + WINDOW), "abc");
        (0..RESULT_COUNT_MAX).for_each(|_| ranks.note("a", true, now));
        assert_eq!(sorted(now), "acb");
    }
}
