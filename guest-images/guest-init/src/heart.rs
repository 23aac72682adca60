//! When the guest's agent beats, and when it looks again for whoever listens.
//!
//! ```text
//!   Searching ──connected──► Beating ──lost──► Searching, soon
//!       ▲  │ refused                           (the VM may just have been restored)
//!       └──┘ after a minute
//! ```

use std::time::{Duration, Instant};

/// How often a beat is due.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// How long until the host is tried again that hung up.
const LOST_PAUSE: Duration = Duration::from_millis(250);
/// How long until the host is tried again that does not listen: most never will.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// The rhythm.
#[derive(Debug)]
pub(crate) struct Heart {
    next: Instant,
}

impl Heart {
    /// To be tried at once.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// When there is something to do.
    pub(crate) const fn next(&self) -> Instant {
        self.next
    }

    /// Whether there is something to do.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// A beat was sent. Beats that a guest missed while it stood still are not made up for.
    pub(crate) fn has_beaten(&mut self, now: Instant) {
        self.next = now + INTERVAL;
    }

    /// The host hung up.
    pub(crate) fn lost(&mut self, now: Instant) {
        self.next = now + LOST_PAUSE;
    }

    /// The host does not listen.
    pub(crate) fn refused(&mut self, now: Instant) {
        self.next = now + REFUSED_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_regular_and_the_host_is_not_pestered() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        assert!(heart.is_due(start));
        heart.has_beaten(start);
        assert!(!heart.is_due(start + INTERVAL - Duration::from_millis(1)));
        let late = start + 100 * INTERVAL;
        assert!(heart.is_due(late));
        heart.has_beaten(late);
        assert_eq!(heart.next(), late + INTERVAL, "one beat, not a hundred");
        heart.lost(late);
        assert!(heart.is_due(late + LOST_PAUSE) && !heart.is_due(late));
        heart.refused(late);
        assert!(!heart.is_due(late + INTERVAL) && heart.is_due(late + REFUSED_PAUSE));
    }
}
