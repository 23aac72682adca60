//! How long to wait before the next attempt.
//!
//! From half a second, twice as long each time, up to half a minute, and of that a random half: when a
//! relay comes back, its thousands of twins do not come at once. What lasted for a while was no failed
//! attempt; a connection that another one of the same twin and session pushed out soon, was, so two
//! that fight over one session do it slowly.

use std::time::Duration;

use crate::random;

const FIRST_MS: u64 = 500;
const LAST_MS: u64 = 30_000;
/// A connection that lasted so long was one.
const STEADY_TIME: Duration = Duration::from_secs(60);

/// The wait before the next attempt.
pub(super) struct Backoff {
    next_ms: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next_ms: FIRST_MS }
    }

    /// The wait after an attempt that lasted for `lasted`.
    pub(super) fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= STEADY_TIME {
            self.next_ms = FIRST_MS;
        }
        let wait_ms = self.next_ms / 2 + random::up_to(self.next_ms / 2);
        self.next_ms = (self.next_ms * 2).min(LAST_MS);
        Duration::from_millis(wait_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_half_a_minute_and_begin_anew() {
        let mut backoff = Backoff::new();
        for full_ms in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let wait = backoff.after(Duration::ZERO).as_millis();
            assert!((full_ms / 2..=full_ms).contains(&wait), "{wait} of {full_ms}");
        }
        assert!(backoff.after(STEADY_TIME) <= Duration::from_millis(500));
    }
}
