//! What contracts have sent and received, and the reports of it that the chain has not taken yet.
//!
//! ```text
//!  host's counters ─ every 5 min ─> Meter ─ every hour ─> Queue, on disk ─> the chain
//! ```
//!
//! The [`Meter`] turns counters that begin anew with the machine into bytes per contract, and is on disk
//! too. A report in the [`Queue`] is removed when the chain has taken it, or says that it never will; so
//! an outage or a restart delays reports, and loses none. If the machine dies while a report moves from
//! the meter to the queue, that report is lost rather than made twice. If it dies between the chain's
//! answer and the removal, a report is sent once more; the chain passes over one that is not newer than
//! the last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hostd_chain::types::NruConsumption;
use serde::{Deserialize, Serialize};

use crate::files::write_durably;
use crate::host::Traffic;

/// Reports that wait at most: a month of hours. The oldest make room.
const REPORT_COUNT_MAX: usize = 31 * 24;
/// Contracts of one report.
const CONTRACT_COUNT_MAX: usize = 200;
/// The meter's file in the folder of the queue.
const METER: &str = "meter";
/// What the name of a report ends with.
const SUFFIX: &str = ".json";

/// Bytes of contracts since the last report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Meter {
    /// The host's counters as they were last seen, by workload.
    counters: BTreeMap<String, u64>,
    /// Bytes by contract.
    sums: BTreeMap<u64, u64>,
    /// When the first of them were counted, in seconds since 1970.
    since: i64,
}

impl Meter {
    /// As it was when it was last written. One that can't be read begins anew.
    pub(crate) fn read(folder: &Path, now: i64) -> Self {
        let read = fs::read(folder.join(METER)).ok();
        let meter = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        meter.unwrap_or_else(|| Self { since: now, ..Self::default() })
    }

    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        write_durably(&folder.join(METER), &serde_json::to_vec(self)?)
    }

    /// Takes note of all counters.
    pub(crate) fn add(&mut self, traffic: &[Traffic]) {
        let mut counters = BTreeMap::new();
        for Traffic { id, bytes } in traffic {
            let name = id.to_string();
            // A counter that went back began anew.
            let before = self.counters.get(&name).copied().filter(|before| before <= bytes);
            let sum = self.sums.entry(id.contract_id.0).or_default();
            *sum = sum.saturating_add(bytes - before.unwrap_or(0));
            counters.insert(name, *bytes);
        }
        self.counters = counters;
    }

    /// Seconds since the last report.
    pub(crate) fn age(&self, now: i64) -> i64 {
        now.saturating_sub(self.since)
    }

    /// What is to be reported, if anything. The meter goes on as it is until [`Meter::restart`].
    pub(crate) fn report(&self, now: i64) -> Vec<NruConsumption> {
        let unsigned = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
        let sums = self.sums.iter().filter(|(_, bytes)| **bytes > 0);
        let report = sums.map(|(contract_id, bytes)| NruConsumption {
            contract_id: *contract_id,
            timestamp: unsigned(now),
            window: unsigned(self.age(now)),
            nru: *bytes,
        });
        report.collect()
    }

    /// All of it was reported.
    pub(crate) fn restart(&mut self, now: i64) {
        self.sums.clear();
        self.since = now;
    }
}

/// One contract's part of a report.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    contract_id: u64,
    timestamp: u64,
    window: u64,
    nru: u64,
}

/// Reports on disk, the oldest first.
#[derive(Debug)]
pub(crate) struct Queue {
    folder: PathBuf,
    /// Numbers of reports, in order.
    waiting: Vec<u64>,
}

impl Queue {
    /// Opens a folder, or makes it.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut waiting = Vec::new();
        for found in fs::read_dir(folder)? {
            let name = found?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            waiting.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        waiting.sort_unstable();
        Ok(Self { folder: folder.to_owned(), waiting })
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Writes a report down.
    pub(crate) fn push(&mut self, report: &[NruConsumption]) -> io::Result<()> {
        for part in report.chunks(CONTRACT_COUNT_MAX) {
            while self.waiting.len() >= REPORT_COUNT_MAX {
                tracing::warn!("too many reports of traffic wait: the oldest is given up");
                self.pop()?;
            }
            let lines: Vec<_> = { part.iter() }
                .map(|line| Line {
                    contract_id: line.contract_id,
                    timestamp: line.timestamp,
                    window: line.window,
                    nru: line.nru,
                })
                .collect();
            let number = self.waiting.last().map_or(0, |last| last + 1);
            write_durably(&self.path(number), &serde_json::to_vec(&lines)?)?;
            self.waiting.push(number);
        }
        Ok(())
    }

    /// The oldest report; none if none waits. One that can't be read is dropped.
    pub(crate) fn first(&mut self) -> io::Result<Option<Vec<NruConsumption>>> {
        while let Some(number) = self.waiting.first().copied() {
            let bytes = fs::read(self.path(number))?;
            match serde_json::from_slice::<Vec<Line>>(&bytes) {
                Ok(lines) => {
                    let report = lines.into_iter().map(|line| NruConsumption {
                        contract_id: line.contract_id,
                        timestamp: line.timestamp,
                        window: line.window,
                        nru: line.nru,
                    });
                    return Ok(Some(report.collect()));
                }
                Err(error) => {
                    tracing::error!(number, %error, "a report of traffic is damaged: dropped");
                    self.pop()?;
                }
            }
        }
        Ok(None)
    }

    /// The oldest report is done with.
    pub(crate) fn pop(&mut self) -> io::Result<()> {
        let Some(number) = self.waiting.first().copied() else { return Ok(()) };
        match fs::remove_file(self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.waiting.remove(0);
                Ok(())
            }
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number}{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use hostd_grid::derived::WorkloadId;
    use hostd_grid::{ContractId, TwinId};

    use super::*;

    fn traffic(contract: u64, name: &str, bytes: u64) -> Traffic {
        let (twin_id, contract_id) = (TwinId(1), ContractId(contract));
        Traffic { id: WorkloadId { twin_id, contract_id, name: name.into() }, bytes }
    }

    fn line(contract_id: u64, nru: u64) -> NruConsumption {
        NruConsumption { contract_id, timestamp: 160, window: 60, nru }
    }

    #[test]
    fn counters_become_bytes_of_contracts() {
        let mut meter = Meter { since: 100, ..Meter::default() };
        meter.add(&[traffic(5, "a", 10), traffic(5, "b", 1), traffic(6, "a", 7)]);
        meter.add(&[traffic(5, "a", 15), traffic(5, "b", 1)]);
        // The machine started again.
        meter.add(&[traffic(5, "a", 4)]);
        assert_eq!(meter.report(160), [line(5, 20), line(6, 7)]);
        let folder = tempfile::tempdir().unwrap();
        meter.write(folder.path()).unwrap();
        let mut meter = Meter::read(folder.path(), 999);
        assert_eq!(meter.report(160), [line(5, 20), line(6, 7)]);
        meter.restart(160);
        meter.add(&[traffic(5, "a", 4)]);
        assert_eq!((meter.report(200), meter.age(200)), (vec![], 40));
    }

    #[test]
    fn reports_wait_in_order_through_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports");
        let mut queue = Queue::open(&path).unwrap();
        assert_eq!(queue.first().unwrap(), None);
        queue.push(&[line(5, 1)]).unwrap();
        queue.push(&[line(6, 2)]).unwrap();
        fs::write(path.join("2.part"), b"[").unwrap();
        let mut queue = Queue::open(&path).unwrap();
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.first().unwrap(), Some(vec![line(5, 1)]));
        assert_eq!(queue.first().unwrap(), Some(vec![line(5, 1)]));
        queue.pop().unwrap();
        assert_eq!(queue.first().unwrap(), Some(vec![line(6, 2)]));
        fs::write(path.join("1.json"), b"[{}]").unwrap();
        assert_eq!(queue.first().unwrap(), None);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn no_outage_fills_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path()).unwrap();
        queue.waiting = (0..u64::try_from(REPORT_COUNT_MAX).unwrap()).collect();
        queue.push(&[line(5, 1)]).unwrap();
        assert_eq!(queue.len(), REPORT_COUNT_MAX);
        assert_eq!(queue.waiting.first(), Some(&1));
        let many: Vec<_> = (0..450).map(|contract| line(contract, 1)).collect();
        queue.push(&many).unwrap();
        assert_eq!(queue.waiting.first(), Some(&4));
    }
}
