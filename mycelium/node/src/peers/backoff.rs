//! When to dial again: at once and often at first, then less and less often.
//!
//! A peer that can't be reached is most often one that starts a moment later, or one that is restarted.
//! So the first [`EAGER_COUNT`] dials follow each other quickly; only then waits grow.

use std::time::Duration;

/// The first waits, and the longest.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Dials before waits grow: about two seconds.
const EAGER_COUNT: u32 = 20;

/// Dials that failed in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Dials that failed in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The next wait, less up to a quarter by chance, so that nodes that lost the same peer do not come
    /// back at the same time.
    pub(super) fn wait(&mut self) -> Duration {
        let doublings = self.failures.saturating_sub(EAGER_COUNT - 1).min(16);
        let wait = WAIT_MIN.saturating_mul(1 << doublings).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        let [chance] = mycelium_wire::random_bytes().unwrap_or([0]);
        wait - wait.mul_f64(f64::from(chance) / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_for_two_seconds_and_grow_to_five() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.wait()).collect();
        assert!(waits[..20].iter().all(|wait| *wait <= WAIT_MIN), "{waits:?}");
        let eager = waits[..20].iter().sum::<Duration>();
        assert!((1500..=2000).contains(&eager.as_millis()), "{eager:?}");
        assert!(waits.windows(2).skip(21).all(|pair| pair[1] >= pair[0].mul_f64(0.7)), "{waits:?}");
        assert!(waits[39] <= WAIT_MAX && waits[39] >= WAIT_MAX * 3 / 4, "{waits:?}");
        assert_eq!(backoff.failures(), 40);
    }
}
