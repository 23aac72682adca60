//! The node's clock, compared with the chain's.
//!
//! Signatures, certificates and messages count for minutes only, so a node whose clock is wrong talks to
//! nobody. Blocks have times. But a chain that stands still has an old one, and a liar any: so the chain is
//! believed only if its time went on as ours did since it was last asked, and only when it said the same
//! several times; and the clock is set only when it is wrong by more than [`SKEW_MAX`].
//!
//! As nobody else asks the chain so often, this is also what tells since when it does not answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::Shared;
use crate::engine::now;
use crate::health::Duty;

/// How often they are compared.
const INTERVAL: Duration = Duration::from_secs(60);
/// How wrong a clock may be, in seconds.
const SKEW_MAX: i64 = 600;
/// By how much the chain's time may go on more or less than ours between two questions, in seconds: a few
/// blocks.
const DRIFT_MAX: i64 = 30;
/// How often in a row the chain must say that a clock is wrong.
const AGREE_COUNT: u32 = 3;

impl Shared {
    /// Compares the clocks every now and then, and sets ours when it is wrong.
    pub(super) async fn compare_clock(self: Arc<Self>) {
        let (mut watch, start) = (Watch::default(), Instant::now());
        loop {
            sleep(INTERVAL).await;
            let answer = self.registrar.time_ms().await;
            self.health.note(Duty::Chain, &answer.as_ref().map(|_| ()));
            match answer {
                Ok(chain_ms) => {
                    let chain = i64::try_from(chain_ms / 1000).unwrap_or(i64::MAX);
                    let elapsed = i64::try_from(start.elapsed().as_secs()).unwrap_or(i64::MAX);
                    let verdict = watch.see(chain, elapsed, now());
                    let compared = self.judge_clock(verdict, chain).await;
                    self.health.note(Duty::Clock, &compared);
                }
                // Who says nothing says nothing of the clock.
                Err(_) => watch = Watch::default(),
            }
        }
    }

    async fn judge_clock(&self, verdict: Verdict, chain: i64) -> Result<(), String> {
        let (skew, is_sure) = match verdict {
            Verdict::Right => return Ok(()),
            Verdict::Unknown => {
                // A chain that makes blocks only when it has to, or none just now, is no clock.
                debug!(chain, "the chain's time does not go on as ours does");
                return Ok(());
            }
            Verdict::Wrong { skew, is_sure } => (skew, is_sure),
        };
        let wrong = format!("the clock is {skew} s ahead of the chain's");
        if !is_sure {
            return Err(wrong);
        }
        match self.host.set_clock(chain).await {
            Ok(()) => {
                info!(skew, "the clock was wrong, and is set by the chain's");
                Ok(())
            }
            Err(error) => {
                warn!(skew, %error, "the clock is wrong, and can't be set");
                Err(format!("{wrong}, and can't be set: {error}"))
            }
        }
    }
}

/// What the chain said before.
#[derive(Debug, Default)]
struct Watch {
    /// Its time, and ours since the start, when it was last asked.
    last: Option<(i64, i64)>,
    wrong_count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right,
    /// The chain's time is worth nothing.
    Unknown,
    Wrong {
        /// By how many seconds ours is ahead.
        skew: i64,
        /// Whether it was said often enough.
        is_sure: bool,
    },
}

impl Watch {
    /// Takes note of the chain's time, of how long we run, and of our clock's time, all in seconds.
    fn see(&mut self, chain: i64, elapsed: i64, own: i64) -> Verdict {
        let last = self.last.replace((chain, elapsed));
        let skew = own.saturating_sub(chain);
        if skew.abs() <= SKEW_MAX {
            self.wrong_count = 0;
            return Verdict::Right;
        }
        let Some((chain_before, elapsed_before)) = last else {
            return Verdict::Wrong { skew, is_sure: false };
        };
        let drift = chain.saturating_sub(chain_before).saturating_sub(elapsed - elapsed_before);
        if drift.abs() > DRIFT_MAX {
            self.wrong_count = 0;
            return Verdict::Unknown;
        }
        self.wrong_count += 1;
        Verdict::Wrong { skew, is_sure: self.wrong_count >= AGREE_COUNT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said at the end, if our clock is ahead by `skew`, and the chain's goes on by so much each
    /// minute.
    fn after(minutes: i64, skew: i64, chain_minute: i64) -> Verdict {
        let mut watch = Watch::default();
        let mut verdict = Verdict::Unknown;
        for minute in 0..minutes {
            let chain = 1_000_000 + minute * chain_minute;
            verdict = watch.see(chain, minute * 60, 1_000_000 + minute * 60 + skew);
        }
        verdict
    }

    #[test]
    fn a_clock_is_wrong_when_a_chain_that_goes_on_says_so_often_enough() {
        let ahead = |is_sure| Verdict::Wrong { skew: 660, is_sure };
        assert_eq!(after(1, 660, 60), ahead(false));
        assert_eq!(after(3, 660, 60), ahead(false));
        assert_eq!(after(4, 660, 60), ahead(true));
        assert_eq!(after(4, -660, 60), Verdict::Wrong { skew: -660, is_sure: true });
        assert_eq!(after(9, 600, 60), Verdict::Right);
    }

    #[test]
    fn a_chain_that_stands_still_says_nothing_about_a_clock() {
        assert_eq!(after(60, 0, 0), Verdict::Unknown);
        assert_eq!(after(60, 9000, 600), Verdict::Unknown);
        // A few blocks more or less are nothing.
        assert_eq!(after(9, 9000, 66), Verdict::Wrong { skew: 9000 - 8 * 6, is_sure: true });
    }
}
