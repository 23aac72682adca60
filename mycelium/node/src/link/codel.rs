//! When a queue must drop: CoDel (RFC 8289), which looks at how long packets wait, not how many.
//!
//! A queue that empties now and then is left alone. One whose packets all waited longer than
//! [`TARGET`] for a whole [`INTERVAL`] loses a packet, then another after a shorter while, and so on
//! until its senders slow down.

use std::time::{Duration, Instant};

/// A wait that nobody minds.
pub(crate) const TARGET: Duration = Duration::from_millis(5);
/// How long all packets must have waited longer than that: a round trip.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// State between packets (RFC 8289 §5.3).
#[derive(Debug, Default)]
pub(crate) struct Codel {
    /// When waits will have been long for an interval.
    first_above: Option<Instant>,
    drop_next: Option<Instant>,
    is_dropping: bool,
    count: u32,
    last_count: u32,
}

impl Codel {
    /// Whether the packet at the head is dropped, which has waited since `since`. `is_last` says that
    /// (almost) nothing is behind it. To be asked again for the packet after a dropped one.
    pub(crate) fn drops(&mut self, since: Instant, is_last: bool, now: Instant) -> bool {
        let is_above = self.is_above(since, is_last, now);
        match self.drop_next.filter(|_| self.is_dropping) {
            None if is_above => self.begin(now),
            None => return false,
            Some(_) if !is_above => {
                self.is_dropping = false;
                return false;
            }
            Some(at) if now < at => return false,
            Some(at) => {
                self.count = self.count.saturating_add(1);
                self.drop_next = Some(control_law(at, self.count));
            }
        }
        true
    }

    /// Whether it has dropped nothing lately, and forgetting its state makes no difference.
    pub(crate) fn is_calm(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < 16 * INTERVAL;
        !self.is_dropping && !self.drop_next.is_some_and(is_recent)
    }

    /// Whether waits have been long for an interval.
    fn is_above(&mut self, since: Instant, is_last: bool, now: Instant) -> bool {
        if is_last || now.saturating_duration_since(since) < TARGET {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now + INTERVAL);
                false
            }
            Some(at) => now >= at,
        }
    }

    /// Begins to drop; soon after the last time, at about the pace that it had then.
    fn begin(&mut self, now: Instant) {
        let recent = self.count.saturating_sub(self.last_count);
        let is_soon =
            self.drop_next.is_some_and(|at| now.saturating_duration_since(at) < 16 * INTERVAL);
        self.count = if is_soon && recent > 1 { recent } else { 1 };
        self.last_count = self.count;
        self.is_dropping = true;
        self.drop_next = Some(control_law(now, self.count));
    }
}

/// `INTERVAL / sqrt(count)` later.
fn control_law(from: Instant, count: u32) -> Instant {
    from + INTERVAL.div_f64(f64::from(count.max(1)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_and_short_bursts_lose_nothing() {
        let (start, mut codel) = (Instant::now(), Codel::default());
        for at in 0..1000 {
            let now = start + Duration::from_millis(at);
            assert!(!codel.drops(now - Duration::from_millis(4), false, now));
        }
        for at in 1000..1090 {
            let now = start + Duration::from_millis(at);
            assert!(!codel.drops(now - Duration::from_millis(50), false, now));
        }
    }

    #[test]
    fn a_standing_queue_loses_more_and_more_until_it_shrinks() {
        let (start, mut codel) = (Instant::now(), Codel::default());
        let mut dropped = [0; 3];
        for (second, dropped) in dropped.iter_mut().enumerate() {
            for at in 0..1000 {
                let now = start + Duration::from_millis(second as u64 * 1000 + at);
                *dropped += u32::from(codel.drops(now - Duration::from_millis(50), false, now));
            }
        }
        assert!(
            dropped[0] > 5 && dropped[1] > dropped[0] && dropped[2] > dropped[1],
            "{dropped:?}"
        );
        let now = start + Duration::from_secs(3);
        assert!(!codel.drops(now - Duration::from_millis(1), false, now));
    }

    #[test]
    fn the_last_packet_is_never_dropped() {
        let (start, mut codel) = (Instant::now(), Codel::default());
        for at in 0..2000 {
            let now = start + Duration::from_millis(at);
            assert!(!codel.drops(start - Duration::from_secs(1), true, now));
        }
    }
}
