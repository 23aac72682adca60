//! What a program's end means: the rules of its [`Policy`], without a clock or a process.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::program::{CRASH_COUNT_MAX, Policy};
use crate::status::Outcome;

/// A run of this length shows that a program works: the next wait is the first again.
pub const STEADY: Duration = Duration::from_secs(10);

/// What is to happen after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start it again after this time.
    Restart(Duration),
    /// Leave it.
    End,
    /// Leave it: it crashed too often.
    GiveUp,
}

/// The ends of a program that still count.
#[derive(Debug, Default)]
pub(super) struct History {
    /// When it crashed, within the window. At most as many as the policy counts.
    crashes: VecDeque<Instant>,
    /// Short runs, one after the other.
    short_runs: u32,
}

impl History {
    /// Notes an end, and says what follows.
    pub(super) fn decide(
        &mut self,
        policy: &Policy,
        outcome: &Outcome,
        ran: Duration,
        now: Instant,
    ) -> Decision {
        let is_among =
            |list: &[u8]| matches!(outcome, Outcome::Status(status) if list.contains(status));
        if is_among(&policy.finals) || !policy.restarts {
            return Decision::End;
        }
        if !is_among(&policy.clean) && self.is_too_much(policy, outcome, now) {
            return Decision::GiveUp;
        }
        self.short_runs = if ran >= STEADY { 0 } else { self.short_runs.saturating_add(1) };
        Decision::Restart(wait(policy, self.short_runs))
    }

    /// Crashes within the window.
    pub(super) fn crash_count(&self) -> u32 {
        u32::try_from(self.crashes.len()).unwrap_or(u32::MAX)
    }

    fn is_too_much(&mut self, policy: &Policy, outcome: &Outcome, now: Instant) -> bool {
        let window = Duration::from_millis(policy.window_ms);
        self.crashes.retain(|at| now.saturating_duration_since(*at) <= window);
        self.crashes.push_back(now);
        let Some(count_max) = policy.crashes_max else {
            // Kept to be shown only.
            self.crashes.drain(..self.crashes.len().saturating_sub(CRASH_COUNT_MAX as usize));
            return false;
        };
        self.crash_count() >= count_max || matches!(outcome, Outcome::NotStarted(_))
    }
}

/// Doubled with every short run after the first.
fn wait(policy: &Policy, short_runs: u32) -> Duration {
    let doublings = short_runs.saturating_sub(1).min(32);
    let wait_ms = policy.backoff_ms.saturating_mul(1 << doublings);
    Duration::from_millis(wait_ms.min(policy.backoff_max_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);
    const CRASH: Outcome = Outcome::Status(11);

    fn ends(policy: &Policy, seconds: &[u64]) -> Vec<Decision> {
        let (mut history, start) = (History::default(), Instant::now());
        let decide = |second: &u64| {
            history.decide(policy, &CRASH, SHORT, start + Duration::from_secs(*second))
        };
        seconds.iter().map(decide).collect()
    }

    #[test]
    fn the_fourth_crash_within_two_minutes_of_the_first_is_the_last() {
        let policy = Policy::machine(&[0], &[2]);
        let decisions = ends(&policy, &[0, 40, 80, 120]);
        assert_eq!(decisions[3], Decision::GiveUp);
        assert!(decisions[..3].iter().all(|one| matches!(one, Decision::Restart(_))));
        // The first no longer counts.
        assert!(!ends(&policy, &[0, 40, 80, 121]).contains(&Decision::GiveUp));
    }

    #[test]
    fn a_clean_end_is_not_counted_and_a_final_one_is_the_last() {
        let policy = Policy::machine(&[0], &[2]);
        let (mut history, now) = (History::default(), Instant::now());
        for _ in 0..20 {
            let decision = history.decide(&policy, &Outcome::Status(0), SHORT, now);
            assert!(matches!(decision, Decision::Restart(_)));
        }
        assert_eq!(history.crash_count(), 0);
        assert_eq!(history.decide(&policy, &Outcome::Status(2), SHORT, now), Decision::End);
        let signal = history.decide(&policy, &Outcome::Signal(9), SHORT, now);
        assert!(matches!(signal, Decision::Restart(_)));
        assert_eq!(history.crash_count(), 1);
    }

    #[test]
    fn waits_double_until_a_run_is_steady() {
        let policy = Policy::service();
        let (mut history, now) = (History::default(), Instant::now());
        let mut waits = |ran| match history.decide(&policy, &CRASH, ran, now) {
            Decision::Restart(wait) => wait.as_millis(),
            other => panic!("{other:?}"),
        };
        let short: Vec<u128> = (0..8).map(|_| waits(SHORT)).collect();
        assert_eq!(short, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(waits(STEADY), 250);
        assert_eq!(waits(SHORT), 250);
        for _ in 0..200 {
            waits(SHORT);
        }
        assert_eq!(history.crash_count(), CRASH_COUNT_MAX);
    }

    #[test]
    fn what_cannot_even_be_started_again_is_given_up() {
        let gone = Outcome::NotStarted("no such file".into());
        let mut history = History::default();
        let machine = Policy::machine(&[0], &[]);
        let now = Instant::now();
        assert_eq!(history.decide(&machine, &gone, Duration::ZERO, now), Decision::GiveUp);
        let service = history.decide(&Policy::service(), &gone, Duration::ZERO, now);
        assert!(matches!(service, Decision::Restart(_)));
        let never = history.decide(&Policy::default(), &CRASH, SHORT, now);
        assert_eq!(never, Decision::End);
    }
}
