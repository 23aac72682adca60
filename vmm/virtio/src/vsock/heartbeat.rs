//! Whether the guest is alive, as its agent says.
//!
//! An agent in the guest connects to [`PORT`] of the host and sends a beat every few seconds for
//! as long as it runs. **A beat is any byte**, and only that it came matters; ours sends a newline.
//! Nothing is sent back. The agent may close and connect again whenever it likes.
//!
//! ```text
//!   Unknown ──beat──► Alive ──no beat for `silence_max`──► Silent
//!      ▲                ▲                                     │
//!      └── reset        └────────────── beat ─────────────────┘
//! ```
//!
//! A guest without an agent never beats, and is never missed. This is a verdict and nothing more:
//! what is done about a silent guest is decided elsewhere.

use std::time::{Duration, Instant};

use crate::Counter;

/// The port of the host that beats go to; below 1024, where only a guest's root may listen, lest
/// somebody confuses the two directions.
pub const PORT: u32 = 990;
/// How often an agent should send a beat.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// The silence after which the guest is missed, unless another is asked for: three beats.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What was learned of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first beat came.
    Alive,
    /// No beat came for so long.
    Silent(Duration),
    /// A beat came after all.
    AliveAgain,
}

/// Listens for beats.
#[derive(Debug)]
pub(super) struct Heartbeat {
    silence_max: Duration,
    last_beat: Option<Instant>,
    is_silent: bool,
    beats: Counter,
}

impl Heartbeat {
    /// Nothing is known of the guest. Packets with beats are counted in `beats`.
    pub(super) const fn new(silence_max: Duration, beats: Counter) -> Self {
        Self { silence_max, last_beat: None, is_silent: false, beats }
    }

    /// A beat has come.
    pub(super) fn beat(&mut self, now: Instant) -> Option<Event> {
        self.beats.increment();
        let is_first = self.last_beat.replace(now).is_none();
        let was_silent = std::mem::take(&mut self.is_silent);
        match (is_first, was_silent) {
            (true, _) => Some(Event::Alive),
            (false, true) => Some(Event::AliveAgain),
            (false, false) => None,
        }
    }

    /// When to look whether beats are missing.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.last_beat.filter(|_| !self.is_silent)?.checked_add(self.silence_max)
    }

    /// Looks whether beats are missing.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Event> {
        if self.deadline()? > now {
            return None;
        }
        self.is_silent = true;
        Some(Event::Silent(now.saturating_duration_since(self.last_beat?)))
    }

    /// Whether beats are expected, which a snapshot keeps.
    pub(super) const fn is_expected(&self) -> bool {
        self.last_beat.is_some()
    }

    /// The guest did not run until now, so that nothing could be expected of it: if beats are,
    /// silence begins anew.
    pub(super) fn resume(&mut self, is_expected: bool, now: Instant) {
        self.last_beat = is_expected.then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_guest_that_never_beat_is_never_missed() {
        let mut heartbeat = Heartbeat::new(SILENCE_MAX, Counter::default());
        assert_eq!(heartbeat.deadline(), None);
        assert_eq!(heartbeat.expire(Instant::now() + 1000 * SECOND), None);
    }

    #[test]
    fn silence_is_told_once_and_so_is_its_end() {
        let (mut heartbeat, start) =
            (Heartbeat::new(15 * SECOND, Counter::default()), Instant::now());
        assert_eq!(heartbeat.beat(start), Some(Event::Alive));
        assert_eq!(heartbeat.beat(start + 5 * SECOND), None);
        assert_eq!(heartbeat.deadline(), Some(start + 20 * SECOND));
        assert_eq!(heartbeat.expire(start + 19 * SECOND), None);
        let silent = Event::Silent(16 * SECOND);
        assert_eq!(heartbeat.expire(start + 21 * SECOND), Some(silent));
        assert_eq!(heartbeat.deadline(), None);
        assert_eq!(heartbeat.expire(start + 60 * SECOND), None);
        assert_eq!(heartbeat.beat(start + 61 * SECOND), Some(Event::AliveAgain));
        assert_eq!(heartbeat.beats.value(), 3);
        assert_eq!(heartbeat.deadline(), Some(start + 76 * SECOND));
    }

    #[test]
    fn a_pause_is_not_silence() {
        let (mut heartbeat, start) =
            (Heartbeat::new(15 * SECOND, Counter::default()), Instant::now());
        heartbeat.beat(start);
        heartbeat.resume(heartbeat.is_expected(), start + 100 * SECOND);
        assert_eq!(heartbeat.expire(start + 114 * SECOND), None);
        assert_eq!(heartbeat.expire(start + 115 * SECOND), Some(Event::Silent(15 * SECOND)));
        let mut unknown = Heartbeat::new(15 * SECOND, Counter::default());
        unknown.resume(unknown.is_expected(), start);
        assert_eq!(unknown.deadline(), None);
    }
}
