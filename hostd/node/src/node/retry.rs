//! How long to wait before what failed is tried again.
//!
//! Twice as long each time, up to two minutes, and of that a random half: when the chain comes back, the
//! thousands of nodes that were waiting for it do not all come at once, and yet soon.

use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};

/// The usual first pause.
const FIRST: Duration = Duration::from_secs(30);
/// Longest pause.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(120);

/// The pauses after failures in a row.
pub(super) struct Retry {
    first: Duration,
    next: Duration,
}

impl Retry {
    /// With the usual first pause.
    pub(super) fn new() -> Self {
        Self::after(FIRST)
    }

    /// With that first pause.
    pub(super) fn after(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// It failed, once more: so long it waits.
    pub(super) fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(RETRY_MAX);
        full / 2 + (full / 2).mul_f64(share())
    }

    /// It was done.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random number from 0 to 1.
fn share() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everybody waits equally long, which is no harm to us.
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_minutes_differ_and_begin_anew() {
        let mut retry = Retry::new();
        for full in [30, 60, 120, 120] {
            let pause = retry.pause().as_secs_f64();
            assert!(
                (f64::from(full) / 2.0..=f64::from(full)).contains(&pause),
                "{pause} of {full}"
            );
        }
        let pauses: std::collections::BTreeSet<_> = (0..20).map(|_| retry.pause()).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
        retry.reset();
        assert!(retry.pause() <= FIRST);
    }
}
