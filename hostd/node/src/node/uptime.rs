//! The chain knows that the node is there, and whether it should be.
//!
//! ```text
//!  well? ─ no ──> nothing is said; asked again soon
//!    └─ yes ─> uptime ─> what does the farmer want? ─┬─ up: state up
//!                                                    └─ down: can it be woken? ─┬─ no: stays up
//!                                    state down, last uptime, power off <─ yes ─┘
//! ```
//!
//! Farmers earn by uptime, so a machine that can't be used reports none (`reference: zero-os 4.3`): one
//! without virtualisation, or whose own disk takes nothing. That nobody reaches it is no reason: existing
//! nodes once fell silent by a false alarm.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hostd_chain::ChainError;
use hostd_chain::types::{Power, PowerState};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Shared;
use super::retry::Retry;
use crate::health::Duty;

/// How often a node says that it is there.
pub(super) const UPTIME_INTERVAL: Duration = Duration::from_secs(40 * 60);
/// How long a machine may take to say how it is.
const CHECK_TIME_MAX: Duration = Duration::from_secs(30);

impl Shared {
    /// Says every now and then that the node is there, and then whether it runs.
    pub(super) async fn report_uptime(self: Arc<Self>) {
        let mut is_power_settled = false;
        let mut retry = Retry::new();
        loop {
            let reported = self.say_uptime().await;
            self.health.note(Duty::Uptime, &reported);
            if let Err(reason) = reported {
                warn!(reason, "uptime was not reported");
                sleep(retry.pause()).await;
                continue;
            }
            let mut pause = UPTIME_INTERVAL;
            if !is_power_settled {
                let settled = self.settle_power().await;
                self.health.note(Duty::Power, &settled);
                match settled {
                    Ok(()) => is_power_settled = true,
                    Err(error) => {
                        warn!(%error, "the chain does not know that the node runs");
                        pause = retry.pause();
                    }
                }
            }
            if is_power_settled {
                retry.reset();
            }
            sleep(pause).await;
        }
    }

    /// Says that the node is there, if it can be used.
    async fn say_uptime(&self) -> Result<(), String> {
        let mut ills: Vec<_> = self.host.unfit().into_iter().collect();
        ills.extend(self.ills().await);
        if let Some(ill) = ills.first() {
            return Err(format!("withheld: {ill}"));
        }
        let reported = self.registrar.report_uptime(uptime(), unix_time()).await;
        reported.map_err(|error| error.to_string())
    }

    /// What is wrong with the disks that the node itself works from.
    pub(super) async fn ills(&self) -> Vec<String> {
        match timeout(CHECK_TIME_MAX, self.host.check()).await {
            Ok(ills) => ills,
            Err(_) => vec!["the node's own disk does not answer".to_owned()],
        }
    }

    /// Does what the farmer wants of the node's power, as far as it can be undone, and tells the chain.
    pub(super) async fn settle_power(&self) -> Result<(), ChainError> {
        let _one_at_a_time = self.power.lock().await;
        let node_id = self.numbers.node_id;
        let power = self.registrar.power(node_id).await?;
        if power.target == Power::Down && self.may_sleep().await {
            return self.fall_asleep().await;
        }
        if matches!(power.state, PowerState::Down(_)) {
            self.registrar.set_power(Power::Up).await?;
        }
        Ok(())
    }

    /// Whether the node may be switched off.
    async fn may_sleep(&self) -> bool {
        let count = self.engine.statistics().users.workloads;
        if count > 0 {
            warn!(count, "the farmer wants this node off: it has workloads, and stays on");
            return false;
        }
        match self.host.enable_wake().await {
            Ok(()) => true,
            Err(error) => {
                let reason = error.0;
                info!(
                    reason,
                    "the farmer wants this node off: it could not be woken, and stays on"
                );
                false
            }
        }
    }

    async fn fall_asleep(&self) -> Result<(), ChainError> {
        info!("the farmer wants this node off");
        self.registrar.set_power(Power::Down).await?;
        // So that all the time until now counts.
        let reported = self.registrar.report_uptime(uptime(), unix_time()).await;
        self.health.note(Duty::Uptime, &reported);
        if let Err(error) = self.host.power_off().await {
            warn!(%error, "it can't be switched off, and stays on");
            self.registrar.set_power(Power::Up).await?;
        }
        Ok(())
    }
}

/// Seconds since the machine started, sleep included.
fn uptime() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_runs_for_longer_than_this_test() {
        assert!(uptime() > 0);
        assert!(unix_time() > 1_600_000_000);
    }
}
