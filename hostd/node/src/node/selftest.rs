//! What the node tests of itself, and when. Results are for everybody: `zos.perf.get`.
//!
//! | test | when | what |
//! |---|---|---|
//! | `healthcheck` | every 15 minutes | what is wrong with its own disk, and with its ways to the grid |
//! | `cpu-benchmark` | every 6 hours | how fast one processor is, and all of them |
//! | `vm-test` | every day | whether a machine that nobody reserved runs |
//!
//! Existing nodes fetch an image for the last; here the machine is the node's own kernel alone, so that a
//! hub that is away makes no node look broken. They also measure their line against servers of the
//! internet, and try the farm's free public
//! addresses with a service that says from where it is asked; this node asks nobody outside its grid.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tracing::warn;

use super::Shared;
use crate::engine::{blocking, now};
use crate::health::Duty;
use crate::host::Module;
use crate::perf::{TestResult, speed};

/// The tests' names, as clients ask for it.
const HEALTH: &str = "healthcheck";
const BENCHMARK: &str = "cpu-benchmark";
const REHEARSAL: &str = "vm-test";

/// How long after its start a node first looks how it is: relays take a moment.
const HEALTH_DELAY: Duration = Duration::from_secs(60);
const HEALTH_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// How long after its start a node does what keeps its processors busy, since it has enough to do then.
const BUSY_DELAY: Duration = Duration::from_secs(10 * 60);
const BENCHMARK_INTERVAL: Duration = Duration::from_secs(6 * 3600);
const REHEARSAL_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How soon one that failed is made again: not so soon that it is in anybody's way.
const REHEARSAL_RETRY: Duration = Duration::from_secs(3600);
/// Shortest time between two measurements of a kind.
const PAUSE_MIN: Duration = Duration::from_secs(3600);
/// For how long processors are kept busy, twice.
const BENCHMARK_TIME: Duration = Duration::from_millis(250);

impl Shared {
    /// Looks how the node is, again and again.
    pub(super) async fn check_health(self: Arc<Self>) {
        sleep(HEALTH_DELAY).await;
        loop {
            let cache = self.ills().await;
            let wrong =
                { self.known.modules().into_iter() }.filter(|(name, Module { error, .. })| {
                    !error.is_empty() && name != Duty::Health.name()
                });
            let network: Vec<_> =
                wrong.map(|(name, Module { error, .. })| format!("{name}: {error}")).collect();
            let problems: Vec<_> = cache.iter().chain(&network).cloned().collect();
            if !problems.is_empty() {
                warn!(?problems, "the node is not well");
            }
            self.known.results.put(TestResult {
                name: HEALTH.to_owned(),
                description:
                    "Whether the node can write, reaches its chain and relays, and does its \
                              duties"
                        .to_owned(),
                timestamp: now(),
                result: json!({ "cache": cache, "network": network }),
            });
            let checked = if cache.is_empty() { Ok(()) } else { Err(cache.join("; ")) };
            self.health.note(Duty::Health, &checked);
            sleep(HEALTH_INTERVAL).await;
        }
    }

    /// Measures how fast the processors are, unless that was done lately.
    pub(super) async fn measure(self: Arc<Self>) {
        sleep(BUSY_DELAY).await;
        loop {
            sleep(self.until_due(BENCHMARK, BENCHMARK_INTERVAL)).await;
            let speed = blocking(|| speed(BENCHMARK_TIME)).await;
            let workloads = self.engine.statistics().users.workloads;
            self.known.results.put(TestResult {
                name: BENCHMARK.to_owned(),
                description:
                    "MiB per second that one processor, and all of them together, hash with \
                              BLAKE2b, beside so many workloads"
                        .to_owned(),
                timestamp: now(),
                result: json!({
                    "single": speed.single,
                    "multi": speed.multi,
                    "threads": speed.threads,
                    "workloads": workloads,
                }),
            });
            // Whatever the clock says, processors are for others.
            sleep(PAUSE_MIN).await;
        }
    }

    /// Runs a machine that nobody reserved, every day, if machines are run here at all.
    pub(super) async fn rehearse(self: Arc<Self>) {
        if !self.host.supported().iter().any(|kind| kind.is_machine()) {
            return;
        }
        sleep(BUSY_DELAY).await;
        loop {
            let last = self.known.results.get(REHEARSAL);
            let has_failed = last.is_some_and(|last| !last.result["error"].is_null());
            let interval = if has_failed { REHEARSAL_RETRY } else { REHEARSAL_INTERVAL };
            sleep(self.until_due(REHEARSAL, interval)).await;
            let rehearsed = self.host.rehearse().await;
            self.health.note(Duty::Rehearsal, &rehearsed.as_ref().map(|_| ()));
            let error = rehearsed.as_ref().err().map(|error| error.0.clone());
            if let Some(reason) = &error {
                warn!(reason, "a machine that nobody reserved does not run");
            }
            let time_ms = rehearsed.ok().map(|time| u64::try_from(time.as_millis()).ok());
            self.known.results.put(TestResult {
                name: REHEARSAL.to_owned(),
                description: "Whether a machine with the node's own kernel and nothing else runs, \
                              and how long it takes from its start to its end"
                    .to_owned(),
                timestamp: now(),
                result: json!({ "time_ms": time_ms, "error": error }),
            });
            sleep(PAUSE_MIN).await;
        }
    }

    /// How long until a test is due that is made so often, by its last result.
    fn until_due(&self, name: &str, interval: Duration) -> Duration {
        let last = self.known.results.get(name).map(|result| result.timestamp);
        let age = last.and_then(|last| u64::try_from(now().saturating_sub(last)).ok());
        interval.saturating_sub(age.map_or(interval, Duration::from_secs))
    }
}
