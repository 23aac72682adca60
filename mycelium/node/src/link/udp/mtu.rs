//! How large a datagram may be on a path: found by trying (RFC 8899, DPLPMTUD).
//!
//! ```text
//!  base 1200 ──usual size tried──> search: halve what is between ──> done ──each 10 min──> search
//!      ^                                                              │
//!      └───────── three probes of the size in use lost ───────────────┘ (asked under traffic, each 10 s)
//! ```
//!
//! Datagrams are never fragmented on the way. Data uses a size only after a probe of that size got
//! through; a probe that is lost costs nothing else. Sizes are those of UDP's payload, from a table of
//! what real paths take.

use std::time::{Duration, Instant};

/// Sizes that are tried: Ethernet, PPPoE and the usual tunnels, over IPv4 and IPv6, then jumbo frames.
const SIZES: [u16; 14] =
    [1200, 1232, 1280, 1332, 1372, 1392, 1412, 1432, 1444, 1452, 1464, 1472, 4052, 8952];
/// Ethernet's over IPv6 and IPv4, which are tried first.
const USUAL_V6: usize = 9;
const USUAL_V4: usize = 11;
/// Probes of a size before it is too large.
const TRY_COUNT_MAX: u8 = 3;
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a larger size is tried again (RFC 8899 §5.1.1, PMTU_RAISE_TIMER).
const RAISE_INTERVAL: Duration = Duration::from_secs(600);
/// How often the size in use is proved anew while there is traffic.
const PROVE_INTERVAL: Duration = Duration::from_secs(10);

/// What is known of a path.
#[derive(Debug)]
pub(crate) struct Search {
    usual: usize,
    /// Index of the size in use, which got through.
    good: usize,
    /// Index of the smallest size that did not, or one behind the last.
    bad: usize,
    probe: Option<Probe>,
    next_id: u32,
    raise_at: Instant,
    prove_at: Instant,
    /// Data of the size in use was sent since it was proved.
    is_used: bool,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    id: u32,
    at: usize,
    tries: u8,
    /// When to try again; none while it has not been sent.
    deadline: Option<Instant>,
}

impl Search {
    pub(crate) fn new(is_ipv6: bool, now: Instant) -> Self {
        let usual = if is_ipv6 { USUAL_V6 } else { USUAL_V4 };
        let mut search = Self {
            usual,
            good: 0,
            bad: SIZES.len(),
            probe: None,
            next_id: 0,
            raise_at: now + RAISE_INTERVAL,
            prove_at: now + PROVE_INTERVAL,
            is_used: false,
        };
        search.choose();
        search
    }

    /// The size that data may use.
    pub(crate) fn size(&self) -> usize {
        usize::from(SIZES[self.good])
    }

    /// Data was sent. True when that made the deadline an earlier one.
    pub(crate) fn used(&mut self) -> bool {
        !std::mem::replace(&mut self.is_used, true)
    }

    /// The next probe to send, as its id and size.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<(u32, usize)> {
        if self.probe.is_none() && now >= self.raise_at {
            self.raise_at = now + RAISE_INTERVAL;
            self.bad = SIZES.len();
            self.choose();
        }
        if self.probe.is_none() && self.is_used && now >= self.prove_at {
            self.try_size(self.good);
        }
        if self.probe?.deadline.is_some_and(|deadline| now >= deadline) {
            self.lost();
        }
        let probe = self.probe.as_mut().filter(|probe| probe.deadline.is_none())?;
        probe.deadline = Some(now + PROBE_TIMEOUT);
        Some((probe.id, usize::from(SIZES[probe.at])))
    }

    /// When to poll again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.probe {
            Some(probe) => probe.deadline,
            None if self.is_used => Some(self.raise_at.min(self.prove_at)),
            None => Some(self.raise_at),
        }
    }

    /// A probe got through.
    pub(crate) fn probed(&mut self, id: u32, now: Instant) {
        if let Some(probe) = self.probe.filter(|probe| probe.id == id) {
            self.good = self.good.max(probe.at);
            (self.prove_at, self.is_used) = (now + PROVE_INTERVAL, false);
            self.choose();
        }
    }

    /// This machine itself can't send datagrams of this size.
    pub(crate) fn refused(&mut self, size: usize) {
        let at = SIZES.partition_point(|known| usize::from(*known) < size);
        self.too_large(at);
    }

    fn lost(&mut self) {
        let Some(probe) = &mut self.probe else { return };
        (probe.tries, probe.deadline) = (probe.tries + 1, None);
        if probe.tries >= TRY_COUNT_MAX {
            let at = probe.at;
            self.too_large(at);
        }
    }

    /// Nothing as large as the size at `at` gets through.
    fn too_large(&mut self, at: usize) {
        self.bad = self.bad.min(at.max(1));
        if self.good >= self.bad {
            // The path is another one.
            self.good = 0;
        }
        self.choose();
    }

    /// What to try next: the usual size first, then the largest, then the middle of what is left.
    fn choose(&mut self) {
        self.probe = None;
        if self.good + 1 < self.bad {
            let is_open = |at| self.good < at && at < self.bad;
            let at = if is_open(self.usual) {
                self.usual
            } else if is_open(SIZES.len() - 1) {
                SIZES.len() - 1
            } else {
                self.good.midpoint(self.bad)
            };
            self.try_size(at);
        }
    }

    fn try_size(&mut self, at: usize) {
        self.probe = Some(Probe { id: self.next_id, at, tries: 0, deadline: None });
        self.next_id = self.next_id.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets probes pass a path until none is due, and gives how many were sent.
    fn run(search: &mut Search, limit: usize, now: &mut Instant) -> usize {
        let mut count = 0;
        for _ in 0..100 {
            match search.poll(*now) {
                Some((id, size)) => {
                    count += 1;
                    if size <= limit {
                        search.probed(id, *now);
                    }
                }
                None if search.probe.is_some() => *now = search.deadline().unwrap(),
                None => return count,
            }
        }
        panic!("the search does not end: {search:?}");
    }

    #[test]
    fn every_path_is_found_with_few_probes() {
        for limit in 1200..=9000 {
            let mut now = Instant::now();
            for is_ipv6 in [false, true] {
                let mut search = Search::new(is_ipv6, now);
                let count = run(&mut search, limit, &mut now);
                let fits = |size: &&u16| usize::from(**size) <= limit;
                let best = SIZES.iter().filter(fits).max().unwrap();
                assert_eq!(search.size(), usize::from(*best), "limit {limit}");
                assert!(count <= 4 * usize::from(TRY_COUNT_MAX) + 2, "{count} for {limit}");
            }
        }
    }

    #[test]
    fn a_path_that_became_narrow_is_noticed_under_traffic() {
        let mut now = Instant::now();
        let mut search = Search::new(false, now);
        run(&mut search, 1500, &mut now);
        assert_eq!(search.size(), 1472);
        now += PROVE_INTERVAL;
        assert_eq!(run(&mut search, 1400, &mut now), 0);
        search.used();
        now += PROVE_INTERVAL;
        run(&mut search, 1400, &mut now);
        assert_eq!(search.size(), 1392);
    }

    #[test]
    fn a_path_that_became_wide_is_noticed_in_time_and_a_refusal_at_once() {
        let mut now = Instant::now();
        let mut search = Search::new(true, now);
        run(&mut search, 1300, &mut now);
        now += RAISE_INTERVAL;
        run(&mut search, 9000, &mut now);
        assert_eq!(search.size(), 8952);
        search.refused(8952);
        assert_eq!(search.size(), 1200);
        run(&mut search, 1500, &mut now);
        assert_eq!(search.size(), 1472);
    }

    #[test]
    fn an_old_answer_proves_nothing() {
        let now = Instant::now();
        let mut search = Search::new(false, now);
        let (id, _) = search.poll(now).unwrap();
        search.probed(id.wrapping_add(1), now);
        search.probed(id.wrapping_sub(1), now);
        assert_eq!(search.size(), 1200);
    }
}
