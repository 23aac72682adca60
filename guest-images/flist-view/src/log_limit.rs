//! A bound on what a guest can write into the host's log.
//!
//! Whoever reads a broken file in a loop would otherwise fill the log with one line for each read.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that pass in one [`WINDOW`].
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Lets [`LINES_MAX`] lines pass in each [`WINDOW`].
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    began: Instant,
    lines: u32,
    dropped: u64,
}

impl LogLimit {
    /// Whether a line may be written now. If so, how many were dropped since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let current = state.get_or_insert(State { began: now, lines: 0, dropped: 0 });
        if now.saturating_duration_since(current.began) >= WINDOW {
            current.began = now;
            current.lines = 0;
        }
        if current.lines >= LINES_MAX {
            current.dropped = current.dropped.saturating_add(1);
            return None;
        }
        current.lines = current.lines.saturating_add(1);
        Some(std::mem::take(&mut current.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_admits_so_many_lines_and_the_next_tells_what_was_dropped() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        for _ in 0..LINES_MAX {
            assert_eq!(limit.admit(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limit.admit(start + WINDOW / 2), None);
        }
        assert_eq!(limit.admit(start + WINDOW), Some(7));
        assert_eq!(limit.admit(start + WINDOW), Some(0));
    }
}
