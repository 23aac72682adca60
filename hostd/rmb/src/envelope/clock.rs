//! When an envelope was made, and until when it counts.
//!
//! A timestamp says when an envelope was sealed, an expiration for how long it is good from then on.
//! Whatever a sender claims, an envelope is good for half an hour at most, and none is taken from a
//! future that is further away than clocks of honest machines are apart. The replay window leans on
//! both: what it has to remember ends.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Envelope;

/// What is granted if nothing is said, in seconds.
pub const EXPIRATION_DEFAULT: u64 = 300;
/// What is granted at most, in seconds.
pub const EXPIRATION_MAX: u64 = 1800;
/// How far into the future a timestamp may be, in seconds.
pub const TIMESTAMP_AHEAD_MAX: u64 = 600;

/// Seconds since 1970, as the system's clock says.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Envelope {
    /// Writes the time on it, right before it is sealed and signed: what has no timestamp, or one of
    /// the future, gets `now`; what has waited since its timestamp is good for so much less.
    pub fn stamp(&mut self, now: u64) {
        if self.timestamp != 0 && self.timestamp <= now {
            self.expiration = self.expiration.saturating_sub(now - self.timestamp);
        }
        self.timestamp = now;
    }

    /// The first second in which it does not count any more.
    pub fn expires_at(&self) -> u64 {
        self.timestamp.saturating_add(self.expiration.min(EXPIRATION_MAX))
    }

    /// Whether it does not count now: any more, or yet.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires_at() <= now || self.timestamp > now.saturating_add(TIMESTAMP_AHEAD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(timestamp: u64, expiration: u64) -> Envelope {
        Envelope { timestamp, expiration, ..Envelope::default() }
    }

    #[test]
    fn waiting_takes_from_the_expiration() {
        for (before, now, after) in [
            ((0, 300), 1000, (1000, 300)),
            ((2000, 300), 1000, (1000, 300)),
            ((900, 300), 1000, (1000, 200)),
            ((100, 300), 1000, (1000, 0)),
            ((1000, 300), 1000, (1000, 300)),
        ] {
            let mut stamped = envelope(before.0, before.1);
            stamped.stamp(now);
            assert_eq!((stamped.timestamp, stamped.expiration), after);
        }
    }

    #[test]
    fn an_envelope_ends_with_its_last_second() {
        let one = envelope(1000, 10);
        assert!(!one.is_expired(1000) && !one.is_expired(1009));
        assert!(one.is_expired(1010));
        // Half an hour at most, and no overflow.
        assert_eq!(envelope(1000, u64::MAX).expires_at(), 2800);
        assert_eq!(envelope(u64::MAX, 5).expires_at(), u64::MAX);
        // From the future.
        assert!(!envelope(1600, 10).is_expired(1000));
        assert!(envelope(1601, 10).is_expired(1000));
    }
}
