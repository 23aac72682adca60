//! What a node does again and again, and what it does when that fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use hostd_chain::ChainError;
use hostd_rmb::peer::Peer;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::Shared;
use super::known::NO_RELAY;
use super::retry::Retry;
use crate::engine::{blocking, lock, now};
use crate::health::Duty;
use crate::host::Traffic;
use crate::seen::Seen;
use crate::traffic::{Meter, Queue};

/// How often everything is compared.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(3600);
/// How often the host is asked which machines it has given up.
const FALLEN_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is looked whether a relay is there.
const RELAY_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is looked whether what was asked should be written down anew.
const SEEN_INTERVAL: Duration = Duration::from_secs(10);
/// After so many looks it is, if anything came.
const SEEN_COUNT: u64 = 30;
/// How often traffic is counted.
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How much time a report of traffic is about, in seconds.
const REPORT_WINDOW: i64 = 3600;

impl Shared {
    /// Compares everything every now and then, and soon after a failure that passes.
    pub(super) async fn compare(self: Arc<Self>) {
        let mut retry = Retry::new();
        loop {
            let compared = self.engine.reconcile().await;
            self.health.note(Duty::Comparison, &compared);
            let pause = match compared {
                Ok(()) => {
                    retry.reset();
                    RECONCILE_INTERVAL
                }
                Err(error) => {
                    warn!(%error, "not everything was compared");
                    retry.pause()
                }
            };
            sleep(pause).await;
        }
    }

    /// Writes down anew what was asked, without what has expired.
    pub(super) async fn rewrite_seen(self: Arc<Self>, seen: Seen, peer: Weak<Peer>) {
        let mut last = Vec::new();
        for count in 1_u64.. {
            sleep(SEEN_INTERVAL).await;
            if !count.is_multiple_of(SEEN_COUNT) && !seen.is_long() {
                continue;
            }
            let Some(peer) = peer.upgrade() else { return };
            let window = peer.seen();
            if window == last && !seen.is_long() {
                continue;
            }
            match seen.rewrite(move || peer.seen()).await {
                Ok(()) => last = window,
                Err(error) => warn!(%error, "requests can't be written down"),
            }
        }
    }

    /// Takes down machines that the host has given up.
    pub(super) async fn watch_machines(self: Arc<Self>) {
        loop {
            if let Err(error) = self.engine.take_down_fallen().await {
                warn!(%error, "which machines have fallen is not known");
            }
            sleep(FALLEN_INTERVAL).await;
        }
    }

    /// Looks whether messages can reach the node. The connections themselves come back by themselves.
    pub(super) async fn watch_relays(self: Arc<Self>) {
        loop {
            sleep(RELAY_INTERVAL).await;
            let is_there = self.known.relay_count() > 0;
            self.health.note(Duty::Relay, &is_there.then_some(()).ok_or(NO_RELAY));
        }
    }

    /// Counts what contracts have sent and received, and reports it.
    pub(super) async fn count_traffic(self: Arc<Self>, reports: Reports) {
        let mut count = interval(TRAFFIC_INTERVAL);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = Retry::new();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                _ = count.tick() => match self.host.traffic().await {
                    Ok(traffic) => {
                        let counted = reports.on_disk(move |files| files.count(&traffic, now()));
                        if let Err(error) = counted.await {
                            warn!(%error, "traffic was not counted");
                        }
                    }
                    Err(error) => warn!(%error, "traffic was not counted"),
                },
                // While a report waits, the chain is asked again soon.
                () = sleep(pause), if reports.are_waiting() => {}
            }
            let sent = self.send_reports(&reports).await;
            match &sent {
                Ok(()) => retry.reset(),
                Err(_) => pause = retry.pause(),
            }
            self.health.note(Duty::Traffic, &sent);
        }
    }

    /// Sends all reports that wait.
    async fn send_reports(&self, reports: &Reports) -> Result<(), String> {
        let text = |error: io::Error| format!("reports on disk: {error}");
        while let Some(report) = reports.on_disk(|files| files.queue.first()).await.map_err(text)? {
            match self.registrar.report_traffic(&report).await {
                Ok(()) => info!(count = report.len(), "traffic was reported"),
                // The chain's reasons don't pass.
                Err(error @ ChainError::Refused { .. }) => {
                    warn!(%error, "the chain takes no report of traffic");
                }
                Err(error) => return Err(error.to_string()),
            }
            reports.on_disk(|files| files.queue.pop()).await.map_err(text)?;
        }
        Ok(())
    }
}

/// Traffic that was not reported yet, on disk.
#[derive(Clone)]
pub(super) struct Reports(Arc<Mutex<Files>>);

/// The files, and what they say.
struct Files {
    folder: PathBuf,
    meter: Meter,
    queue: Queue,
}

impl Reports {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let queue = Queue::open(folder)?;
        let meter = Meter::read(folder, now());
        Ok(Self(Arc::new(Mutex::new(Files { folder: folder.to_owned(), meter, queue }))))
    }

    /// Does something that waits for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let files = Arc::clone(&self.0);
        blocking(move || work(&mut lock(&files))).await
    }

    fn are_waiting(&self) -> bool {
        lock(&self.0).queue.len() > 0
    }
}

impl Files {
    /// Takes note of all counters, and makes a report when it is time.
    fn count(&mut self, traffic: &[Traffic], now: i64) -> io::Result<()> {
        let before = self.meter.clone();
        self.meter.add(traffic);
        let report = match self.meter.age(now) < REPORT_WINDOW {
            true => Vec::new(),
            false => self.meter.report(now),
        };
        if self.meter.age(now) >= REPORT_WINDOW {
            self.meter.restart(now);
        }
        if self.meter != before {
            self.meter.write(&self.folder)?;
        }
        self.queue.push(&report)
    }
}

#[cfg(test)]
mod tests {
    use hostd_grid::derived::WorkloadId;
    use hostd_grid::{ContractId, TwinId};

    use super::*;

    #[tokio::test]
    async fn an_hour_of_traffic_becomes_a_report_that_survives() {
        let folder = tempfile::tempdir().unwrap();
        let reports = Reports::open(folder.path()).unwrap();
        let count = async |bytes, now: i64| {
            let (twin_id, contract_id) = (TwinId(1), ContractId(5));
            let id = WorkloadId { twin_id, contract_id, name: "ip".into() };
            let traffic = [Traffic { id, bytes }];
            reports.on_disk(move |files| files.count(&traffic, now)).await.unwrap();
        };
        let start = now();
        count(10, start).await;
        assert!(!reports.are_waiting());
        count(15, start + 3700).await;
        assert!(reports.are_waiting());
        count(16, start + 3800).await;

        let reports = Reports::open(folder.path()).unwrap();
        let report = reports.on_disk(|files| files.queue.first()).await.unwrap().unwrap();
        assert_eq!((report.len(), report[0].contract_id, report[0].nru), (1, 5, 15));
        assert!((3600..3800).contains(&report[0].window), "{}", report[0].window);
        reports.on_disk(|files| files.queue.pop()).await.unwrap();
        assert!(!reports.are_waiting());
    }
}
