//! How much a twin may send: so many envelopes and so many bytes in each minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hostd_rmb::twins::TwinId;

/// How long a window is.
const WINDOW: Duration = Duration::from_secs(60);
/// Twins that are remembered; when there are more, windows begin anew.
const TWIN_COUNT_MAX: usize = 64 * 1024;

/// What a twin may send in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Envelopes.
    pub count: u64,
    /// Bytes of them.
    pub size: u64,
}

/// What each twin has sent in its current window.
pub(crate) struct Rates {
    limit: RateLimit,
    twins: Mutex<HashMap<TwinId, Window>>,
}

struct Window {
    begin: Instant,
    count: u64,
    size: u64,
}

impl Rates {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, twins: Mutex::default() }
    }

    /// Counts an envelope; says whether it is within the limit.
    pub(crate) fn measure(&self, twin: TwinId, size: usize, now: Instant) -> bool {
        let mut twins = self.twins.lock().unwrap_or_else(PoisonError::into_inner);
        if twins.len() >= TWIN_COUNT_MAX && !twins.contains_key(&twin) {
            twins.clear();
        }
        let new = || Window { begin: now, count: 0, size: 0 };
        let window = twins.entry(twin).or_insert_with(new);
        if now.duration_since(window.begin) >= WINDOW {
            *window = new();
        }
        window.count = window.count.saturating_add(1);
        window.size = window.size.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        window.count <= self.limit.count && window.size <= self.limit.size
    }

    /// Forgets windows that are over.
    pub(crate) fn clean(&self, now: Instant) {
        let mut twins = self.twins.lock().unwrap_or_else(PoisonError::into_inner);
        twins.retain(|_, window| now.duration_since(window.begin) < WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_size_are_limited_in_each_window() {
        let [one, two] = [1, 2].map(|number| TwinId::new(number).unwrap());
        let now = Instant::now();
        let rates = Rates::new(RateLimit { count: 2, size: 100 });
        assert!(rates.measure(one, 10, now) && rates.measure(one, 10, now));
        assert!(!rates.measure(one, 10, now));
        assert!(!rates.measure(two, 101, now));
        let later = now + WINDOW;
        assert!(!rates.measure(one, 10, later - Duration::from_millis(1)));
        assert!(rates.measure(one, 100, later) && rates.measure(two, 10, later));
        assert!(!rates.measure(one, 1, later));
        rates.clean(later + WINDOW);
        assert!(rates.twins.lock().unwrap().is_empty());
    }
}
