//! How many descriptors all served directories of a process may keep open together.
//!
//! Nodes are open for two reasons, because they were used lately or because they have no name any
//! more (`nodes`), and each takes two descriptors. Both kinds may have an eighth of what the process
//! is allowed, so that half of that stays for everything else, however many directories it serves:
//!
//! ```text
//!   RLIMIT_NOFILE   ├── 1/8 × 2: used lately ──┼── 1/8 × 2: without a name ──┼── queues, disks … ──┤
//! ```
//!
//! The counts are the process's, as the limit is. A directory that comes too late for a share has a
//! few all the same, without which its guest could not work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, getrlimit};

/// How many of the descriptors that the process may have there are for each open node of a kind.
const DESCRIPTOR_SHARE: usize = 8;
/// As many has each directory, whatever others have.
const COUNT_MIN: usize = 16;

/// What the directories of a process share.
#[derive(Debug)]
pub(super) struct Budget {
    /// The most nodes of either kind.
    max: usize,
    /// What each directory has at any rate.
    min: usize,
    cached: AtomicUsize,
    pinned: AtomicUsize,
}

/// What nodes are open for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// They were used lately.
    Cached,
    /// They have no name.
    Pinned,
}

/// One directory's open nodes of a kind, which the budget counts too.
#[derive(Debug)]
pub(super) struct Tally {
    budget: Arc<Budget>,
    kind: Kind,
    count: usize,
}

impl Budget {
    /// The process's own, by its limit when it was first asked for.
    pub(super) fn of_process() -> Arc<Self> {
        static BUDGET: OnceLock<Arc<Budget>> = OnceLock::new();
        let new = || Arc::new(Self::new(getrlimit(Resource::Nofile).current, COUNT_MIN));
        Arc::clone(BUDGET.get_or_init(new))
    }

    /// The budget of a process that may have so many descriptors; `None` for any number.
    pub(super) fn new(descriptor_count: Option<u64>, min: usize) -> Self {
        let count = descriptor_count
            .map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
        let max = count / DESCRIPTOR_SHARE;
        Self { max, min, cached: AtomicUsize::new(0), pinned: AtomicUsize::new(0) }
    }

    const fn total(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Cached => &self.cached,
            Kind::Pinned => &self.pinned,
        }
    }
}

impl Tally {
    pub(super) const fn new(budget: Arc<Budget>, kind: Kind) -> Self {
        Self { budget, kind, count: 0 }
    }

    /// One node more.
    pub(super) fn add(&mut self) {
        self.count += 1;
        self.budget.total(self.kind).fetch_add(1, Ordering::Relaxed);
    }

    /// One node less.
    pub(super) fn remove(&mut self) {
        self.count -= 1;
        self.budget.total(self.kind).fetch_sub(1, Ordering::Relaxed);
    }

    /// None any more.
    pub(super) fn clear(&mut self) {
        self.budget.total(self.kind).fetch_sub(self.count, Ordering::Relaxed);
        self.count = 0;
    }

    /// Whether there are more than `max` here, or more than their share.
    pub(super) fn is_over(&self, max: usize) -> bool {
        self.exceeds(self.count, max, 0)
    }

    /// Whether one more would be.
    pub(super) fn is_full(&self, max: usize) -> bool {
        self.exceeds(self.count + 1, max, 1)
    }

    fn exceeds(&self, count: usize, max: usize, more: usize) -> bool {
        let total = self.budget.total(self.kind).load(Ordering::Relaxed) + more;
        count > max || (count > self.budget.min && total > self.budget.max)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_share_an_eighth_for_each_kind() {
        let max = |count| Budget::new(count, COUNT_MIN).max;
        assert_eq!((max(Some(1024)), max(Some(1 << 20)), max(Some(8))), (128, 1 << 17, 1));
        assert_eq!(max(None), usize::MAX / DESCRIPTOR_SHARE);
        let budget = Arc::new(Budget::new(Some(10 * 8), 2));
        let mut tallies = [Kind::Pinned, Kind::Pinned, Kind::Cached].map(|kind| {
            let budget = Arc::clone(&budget);
            Tally::new(budget, kind)
        });
        while !tallies[0].is_full(100) {
            tallies[0].add();
        }
        assert_eq!((tallies[0].count, tallies[2].is_full(100)), (10, false));
        assert!(!tallies[0].is_over(100) && tallies[0].is_over(9));
        // Whoever comes late has its minimum, and then waits for the others.
        for _ in 0..2 {
            assert!(!tallies[1].is_full(100));
            tallies[1].add();
        }
        assert!(tallies[1].is_full(100) && !tallies[1].is_over(100) && tallies[0].is_over(100));
        tallies[0].remove();
        tallies[0].remove();
        assert!(tallies[1].is_full(100) && !tallies[0].is_over(100));
        tallies[0].clear();
        assert!(!tallies[1].is_full(100) && tallies[1].is_full(2));
        drop(tallies);
        assert_eq!(budget.pinned.load(Ordering::Relaxed), 0);
    }
}
