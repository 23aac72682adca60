//! How much of what waits a socket is given ahead of time: what leaves in two milliseconds.
//!
//! A socket takes bytes before the network can, and what it has taken can't be dropped any more, nor can
//! anything pass it. What is little on a wide path is long on a narrow one: 128 KiB take 10 ms at
//! 100 Mbit/s. So the pace at which a full socket takes bytes is measured, and it gets no more than it
//! sends in [`AHEAD`]; the rest waits with us, where CoDel sees it.

use std::time::{Duration, Instant};

/// What may wait in the socket. Less, and the path would be idle when we are late.
const AHEAD: Duration = Duration::from_millis(2);
/// How long packets must have waited without a pause before their pace is believed.
const WINDOW: Duration = Duration::from_millis(20);
/// A few full-size packets, so that slow paths don't cost a call for each.
const AHEAD_SIZE_MIN: usize = 16 << 10;
/// Before anything is measured, and at most.
pub(crate) const AHEAD_SIZE_MAX: usize = 128 << 10;

/// What is known of a socket's pace.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Since when it is full, and what it took since.
    window: Option<(Instant, usize)>,
    ahead_size: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: None, ahead_size: AHEAD_SIZE_MAX }
    }
}

impl Pace {
    /// Bytes that the socket may hold unsent.
    pub(crate) fn ahead_size(&self) -> usize {
        self.ahead_size
    }

    /// The socket took so many bytes, and more wait. Gives what it may hold, if that is news.
    pub(crate) fn took(&mut self, size: usize, now: Instant) -> Option<usize> {
        // What fills it the first time says how large it is, not how fast.
        let Some((since, taken)) = &mut self.window else {
            self.window = Some((now, 0));
            return None;
        };
        *taken += size;
        let elapsed = now.saturating_duration_since(*since);
        if elapsed < WINDOW {
            return None;
        }
        let ahead = *taken as u128 * AHEAD.as_nanos() / elapsed.as_nanos();
        let ahead = usize::try_from(ahead).unwrap_or(AHEAD_SIZE_MAX);
        let ahead = ahead.clamp(AHEAD_SIZE_MIN, AHEAD_SIZE_MAX);
        self.window = Some((now, 0));
        let is_news = ahead.abs_diff(self.ahead_size) > self.ahead_size / 4;
        if is_news {
            self.ahead_size = ahead;
        }
        is_news.then_some(ahead)
    }

    /// Nothing waits any more: how fast it takes the next bytes says nothing.
    pub(crate) fn pause(&mut self) {
        self.window = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a full socket `size` bytes each millisecond for a second; what it may hold then.
    fn settled(pace: &mut Pace, size: usize) -> usize {
        let start = Instant::now();
        let mut told = None;
        for at in 0..1000 {
            told = pace.took(size, start + Duration::from_millis(at)).or(told);
        }
        assert!(told.is_none_or(|told| told == pace.ahead_size()));
        pace.ahead_size()
    }

    #[test]
    fn a_socket_holds_two_milliseconds_within_bounds() {
        let mut pace = Pace::default();
        assert_eq!(settled(&mut pace, 12_500), 25_000, "100 Mbit/s");
        pace.pause();
        assert_eq!(settled(&mut pace, 100), AHEAD_SIZE_MIN);
        pace.pause();
        assert_eq!(settled(&mut pace, 1_250_000), AHEAD_SIZE_MAX, "10 Gbit/s");
    }

    #[test]
    fn neither_short_waits_nor_small_changes_are_news() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for at in 0..1000 {
            if at % 10 == 0 {
                pace.pause();
            }
            assert_eq!(pace.took(100, start + Duration::from_millis(at)), None);
        }
        pace.pause();
        settled(&mut pace, 12_500);
        pace.pause();
        assert_eq!(settled(&mut pace, 14_000), 25_000);
    }
}
