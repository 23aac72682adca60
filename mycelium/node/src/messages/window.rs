//! How many chunks of a message are under way, and which are sent next.
//!
//! The existing daemon sends all chunks at once and again every 100 ms. Receivers acknowledge each one,
//! which is all that is needed for a window that grows until something is lost (RFC 5681, counted in
//! chunks), loss that is noticed when later transmissions arrive first (RFC 9002 6.1.1), and a timeout
//! from measured round trips (RFC 6298).
//!
//! ```text
//!  next ──send──> in flight ──ack──> acked
//!                  │    ▲
//!             loss ▼    │ send, before new ones
//!                  lost ┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Chunks under way at first.
const WINDOW_START: usize = 32;
/// Chunks under way at least.
const WINDOW_MIN: usize = 4;
/// Chunks under way at most: 1.3 MB.
const WINDOW_MAX: usize = 1024;
/// Transmissions that may overtake one before it is thought lost.
const OVERTAKEN_MAX: u64 = 3;
/// Shortest time after which a chunk is thought lost.
const TIMEOUT_MIN: Duration = Duration::from_millis(50);
/// The time before any round trip was measured.
const TIMEOUT_START: Duration = Duration::from_millis(200);
/// Longest time after which a chunk is thought lost.
const TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// Timeouts in a row that still double the time.
const BACKOFF_MAX: u32 = 6;

/// The chunks of one message.
#[derive(Debug)]
pub(super) struct Window {
    chunk_count: u64,
    /// The first chunk that was never sent.
    next: u64,
    lost: BTreeSet<u64>,
    /// By number of transmission, so in the order in which they were sent.
    in_flight: BTreeMap<u64, Flight>,
    /// The last transmission of each chunk in flight.
    transmissions: BTreeMap<u64, u64>,
    next_transmission: u64,
    size: usize,
    /// Below this size the window grows with each acknowledgement, above with each round trip.
    threshold: usize,
    /// Acknowledgements since the window last grew.
    credit: usize,
    /// A loss before this transmission belongs to one that the window has already shrunk for.
    recovery_end: u64,
    round_trip: RoundTrip,
}

/// A chunk under way.
#[derive(Debug)]
struct Flight {
    index: u64,
    sent_at: Instant,
    /// Sent before: its acknowledgement may be for an earlier time (Karn's rule).
    is_repeat: bool,
}

impl Window {
    /// All chunks still to be sent; `sample` is a round trip that was measured already.
    pub(super) fn new(chunk_count: u64, sample: Option<Duration>) -> Self {
        let mut round_trip = RoundTrip::default();
        if let Some(sample) = sample {
            round_trip.measured(sample);
        }
        Self {
            chunk_count,
            next: 0,
            lost: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            transmissions: BTreeMap::new(),
            next_transmission: 0,
            size: WINDOW_START,
            threshold: WINDOW_MAX,
            credit: 0,
            recovery_end: 0,
            round_trip,
        }
    }

    /// Whether every chunk was acknowledged.
    pub(super) fn is_complete(&self) -> bool {
        self.next == self.chunk_count && self.in_flight.is_empty() && self.lost.is_empty()
    }

    /// Chunks waiting, under way, and acknowledged.
    pub(super) fn progress(&self) -> (u64, u64, u64) {
        let waiting = self.chunk_count - self.next + self.lost.len() as u64;
        let sent = self.in_flight.len() as u64;
        (waiting, sent, self.chunk_count - waiting - sent)
    }

    /// Whether [`Self::send`] gives a chunk now.
    pub(super) fn may_send(&self) -> bool {
        let has_chunk = !self.lost.is_empty() || self.next < self.chunk_count;
        has_chunk && self.in_flight.len() < self.size
    }

    /// The chunk to be sent now, if the window has room.
    pub(super) fn send(&mut self, now: Instant) -> Option<u64> {
        if !self.may_send() {
            return None;
        }
        let (index, is_repeat) = match self.lost.pop_first() {
            Some(index) => (index, true),
            None => {
                self.next += 1;
                (self.next - 1, false)
            }
        };
        let transmission = self.next_transmission;
        self.next_transmission += 1;
        self.in_flight.insert(transmission, Flight { index, sent_at: now, is_repeat });
        self.transmissions.insert(index, transmission);
        Some(index)
    }

    /// The receiver has a chunk.
    pub(super) fn acked(&mut self, index: u64, now: Instant) {
        let Some(transmission) = self.transmissions.remove(&index) else {
            // Given up for lost, but it was only late; or acknowledged twice.
            self.lost.remove(&index);
            return;
        };
        if let Some(flight) = self.in_flight.remove(&transmission)
            && !flight.is_repeat
        {
            self.round_trip.measured(now.saturating_duration_since(flight.sent_at));
        }
        self.grow();
        let overtaken = transmission.saturating_sub(OVERTAKEN_MAX - 1);
        if self.lose_before(overtaken) {
            self.size = (self.size / 2).max(WINDOW_MIN);
        }
    }

    /// When the oldest chunk under way is thought lost.
    pub(super) fn timeout_at(&self) -> Option<Instant> {
        let (_, oldest) = self.in_flight.first_key_value()?;
        Some(oldest.sent_at + self.round_trip.timeout())
    }

    /// Gives up what is under way for too long.
    pub(super) fn check_timeout(&mut self, now: Instant) {
        if self.timeout_at().is_none_or(|at| now < at) {
            return;
        }
        // Everything sent before now is doubtful: the network may have been away.
        self.lose_before(self.next_transmission);
        self.size = WINDOW_MIN;
        self.round_trip.timed_out();
    }

    fn grow(&mut self) {
        self.credit += 1;
        if self.size < self.threshold || self.credit >= self.size {
            self.size = (self.size + 1).min(WINDOW_MAX);
            self.credit = 0;
        }
    }

    /// Gives up transmissions before this one; whether the window must shrink for it.
    fn lose_before(&mut self, transmission: u64) -> bool {
        let kept = self.in_flight.split_off(&transmission);
        let lost = std::mem::replace(&mut self.in_flight, kept);
        let Some((last, _)) = lost.last_key_value() else { return false };
        let is_new = *last >= self.recovery_end;
        if is_new {
            self.recovery_end = self.next_transmission;
            self.threshold = (self.size / 2).max(WINDOW_MIN);
        }
        for flight in lost.into_values() {
            self.transmissions.remove(&flight.index);
            self.lost.insert(flight.index);
        }
        is_new
    }
}

/// What is known of the time between a packet and its acknowledgement (RFC 6298).
#[derive(Debug, Default)]
struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    /// Timeouts since the last measurement.
    backoff: u32,
}

impl RoundTrip {
    fn measured(&mut self, sample: Duration) {
        self.backoff = 0;
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (3 * self.variation + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((7 * smoothed + sample) / 8);
            }
        }
    }

    fn timed_out(&mut self) {
        self.backoff = (self.backoff + 1).min(BACKOFF_MAX);
    }

    fn timeout(&self) -> Duration {
        let base = self.smoothed.map_or(TIMEOUT_START, |time| time + 4 * self.variation);
        (base.max(TIMEOUT_MIN) * 2_u32.pow(self.backoff)).min(TIMEOUT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    fn fill(window: &mut Window, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| window.send(now)).collect()
    }

    #[test]
    fn the_window_grows_with_acknowledgements() {
        let now = Instant::now();
        let mut window = Window::new(1000, None);
        assert_eq!(fill(&mut window, now).len(), WINDOW_START);
        assert_eq!(window.progress(), (1000 - 32, 32, 0));
        for index in 0..32 {
            window.acked(index, now + RTT);
        }
        assert_eq!(fill(&mut window, now + RTT), (32..96).collect::<Vec<_>>());
        assert_eq!(window.progress(), (1000 - 96, 64, 32));
        let timeout = window.timeout_at().unwrap() - (now + RTT);
        assert!((TIMEOUT_MIN..TIMEOUT_START).contains(&timeout), "{timeout:?}");
    }

    #[test]
    fn a_chunk_that_is_overtaken_is_sent_again_and_the_window_halves_once() {
        let now = Instant::now();
        let mut window = Window::new(32, None);
        fill(&mut window, now);
        window.acked(1, now + RTT);
        window.acked(2, now + RTT);
        assert!(window.lost.is_empty());
        let size = window.size;
        window.acked(3, now + RTT);
        assert_eq!(window.lost, BTreeSet::from([0]));
        assert_eq!(window.size, size.div_ceil(2));
        let size = window.size;
        // The second loss of the same flight.
        window.acked(8, now + RTT);
        assert_eq!(window.lost, BTreeSet::from([0, 4, 5]));
        assert!(window.size >= size);
        // What was late after all is not sent again.
        window.acked(4, now + RTT);
        for index in 6..32 {
            window.acked(index, now + RTT);
        }
        assert_eq!(fill(&mut window, now + RTT), [0, 5]);
        window.acked(0, now + RTT);
        assert!(!window.is_complete());
        window.acked(5, now + RTT);
        window.acked(5, now + RTT);
        assert!(window.is_complete());
        assert_eq!(window.progress(), (0, 0, 32));
    }

    #[test]
    fn silence_shrinks_the_window_and_doubles_the_wait() {
        let mut now = Instant::now();
        let mut window = Window::new(100, Some(RTT));
        assert_eq!(fill(&mut window, now).len(), WINDOW_START);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let at = window.timeout_at().unwrap();
            let progress = window.progress();
            window.check_timeout(at - Duration::from_micros(1));
            assert_eq!(window.progress(), progress);
            waits.push(at - now);
            now = at;
            window.check_timeout(now);
            assert_eq!(fill(&mut window, now), [0, 1, 2, 3]);
        }
        assert_eq!(waits[..3], [60, 120, 240].map(Duration::from_millis));
        assert_eq!(waits[9], TIMEOUT_MAX);
    }

    #[test]
    fn no_chunks_are_complete_at_once() {
        let window = Window::new(0, None);
        assert!(window.is_complete() && !window.may_send() && window.timeout_at().is_none());
    }
}
