//! Time as sessions see it: a clock that never goes back for waiting, and the wall's for stamps.

use std::ops::Add;
use std::time::Duration;

/// Time since a start that the caller chose. It must not go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    /// How long it has been since `earlier`; nothing when that is yet to come.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// In milliseconds, and one more, so that none is 0.
    pub(super) fn mark(self) -> u64 {
        u64::try_from(self.0.as_millis()).map_or(u64::MAX, |millis| millis.saturating_add(1))
    }

    /// The time of a mark; none for 0.
    pub(super) fn of_mark(mark: u64) -> Option<Self> {
        mark.checked_sub(1).map(|millis| Self(Duration::from_millis(millis)))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// What both clocks show.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For waiting.
    pub now: Time,
    /// Since 1970. It may jump.
    pub wall: Duration,
}

/// Size of a stamp, in bytes.
pub const STAMP_SIZE: usize = 12;

/// When an initiation was made, as TAI64N: seconds from 2^62, then nanoseconds; both big endian, so that
/// later stamps are greater (<https://cr.yp.to/libtai/tai64.html>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(pub(super) [u8; STAMP_SIZE]);

impl Stamp {
    /// A stamp for now, greater than the one given before even if the clock was set back.
    pub(super) fn next(wall: Duration, before: Self) -> Self {
        let (number, before) = (number(wall), before.number());
        Self::of_number(if number > before { number } else { before + 1 })
    }

    fn number(self) -> u128 {
        let nanos = u128::from(NANOS);
        let (mut seconds, mut rest) = ([0; 8], [0; 4]);
        let (head, tail) = self.0.split_at(8);
        seconds.copy_from_slice(head);
        rest.copy_from_slice(tail);
        u128::from(u64::from_be_bytes(seconds)) * nanos + u128::from(u32::from_be_bytes(rest))
    }

    fn of_number(number: u128) -> Self {
        let nanos = u128::from(NANOS);
        let seconds = u64::try_from(number / nanos).unwrap_or(u64::MAX);
        let rest = u32::try_from(number % nanos).unwrap_or(0);
        let mut bytes = [0; STAMP_SIZE];
        let (head, tail) = bytes.split_at_mut(8);
        head.copy_from_slice(&seconds.to_be_bytes());
        tail.copy_from_slice(&rest.to_be_bytes());
        Self(bytes)
    }
}

const NANOS: u32 = 1_000_000_000;
/// TAI64's label of 1970, with the ten seconds by which TAI was ahead then.
const EPOCH: u64 = (1 << 62) + 10;

fn number(wall: Duration) -> u128 {
    u128::from(EPOCH) * u128::from(NANOS) + wall.as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_though_clocks_go_back() {
        let wall = Duration::new(1_800_000_000, 999_999_999);
        let first = Stamp::next(wall, Stamp::default());
        assert_eq!(first.0[..8], (EPOCH + 1_800_000_000).to_be_bytes());
        assert_eq!(first.0[8..], 999_999_999_u32.to_be_bytes());
        let second = Stamp::next(wall, first);
        assert_eq!(second.0[..8], (EPOCH + 1_800_000_001).to_be_bytes());
        assert!(second > first && second.0[8..] == [0; 4]);
        let third = Stamp::next(Duration::ZERO, second);
        assert!(third > second);
        assert!(Stamp::next(wall + Duration::from_secs(5), third) > third);
    }

    #[test]
    fn marks_are_times_and_never_zero() {
        assert_eq!(Time::of_mark(Time::default().mark()), Some(Time::default()));
        assert_eq!(Time::of_mark(0), None);
        let time = Time(Duration::from_millis(1234));
        assert_eq!(Time::of_mark(time.mark()), Some(time));
        assert_eq!(Time(Duration::ZERO).since(time), Duration::ZERO);
    }
}
