//! What is known of one deployment, and what is to be done about it next. Pure: no clock, no disk.
//!
//! A record is the sum of its [entries](Entry): applied in order they lead to the same record again,
//! which is how a restart finds its way back. [`Record::next_step`] then says what comes next, one step
//! at a time, from the record alone; so a restart, an update in the middle of another, and ordinary work
//! are the same thing.
//!
//! ```text
//!             ┌─ the chain has no such contract ─> Rejected ─ sent again, or time ─> forgotten
//!  accepted ──┤
//!             └─ it has ─> Confirmed ─ contract over ─> Cancelled ─ all removed ─> forgotten
//!                            │  ▲
//!                     update └──┘ (refused by the chain: the version before goes on)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hostd_grid::capacity::Capacity;
use hostd_grid::workload::{State, WorkloadResult};
use hostd_grid::{Deployment, Name, VerifiedDeployment, Workload};

use super::order::{Rank, rank};
use crate::host::Task;
use crate::store::{Entry, Key};

/// Entries that are kept of a deployment. Beyond, those go that say nothing any more.
pub(super) const HISTORY_COUNT_MAX: usize = 4096;

/// Whether a deployment is paid for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Standing {
    /// The chain was not asked yet.
    #[default]
    Unconfirmed,
    /// Its contract has the hash of that version.
    Confirmed(u32),
    /// It has no contract.
    Rejected,
    /// Its contract is over.
    Cancelled,
}

/// One workload's place in a deployment.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The version that is on the host.
    pub(super) running: Option<u32>,
    pub(super) is_paused: bool,
    /// It should be on the host, and is not.
    pub(super) is_missing: bool,
    /// The version that is to be there.
    pub(super) pending: Option<u32>,
    /// What is to be there was begun before the node's program ended, so its room is taken already.
    pub(super) is_begun: bool,
    /// Something of it is on the host, and nothing should be.
    pub(super) is_left: bool,
    /// How often it could not be made again, or what is left of it be taken down.
    failure_count: u32,
    /// Where it stood last, and in which version.
    settled: Option<(u32, WorkloadResult)>,
    waiting: Option<(u32, WorkloadResult)>,
}

impl Place {
    /// Where it stands, and in which version.
    pub(super) fn shown(&self) -> Option<&(u32, WorkloadResult)> {
        self.waiting.as_ref().or(self.settled.as_ref())
    }

    fn apply(&mut self, version: u32, result: &WorkloadResult) {
        if matches!(result.state, State::None) {
            return;
        }
        self.pending = None;
        self.waiting = None;
        self.is_begun = false;
        self.failure_count = 0;
        let seen = (version, result.clone());
        match result.state {
            State::Init => {
                self.pending = Some(version);
                self.waiting = Some(seen);
                return;
            }
            State::None | State::Unchanged => return,
            State::Ok | State::Paused => {
                self.running = Some(version);
                self.is_paused = result.state == State::Paused;
            }
            State::Error | State::Deleted => self.running = None,
        }
        self.is_missing = false;
        self.settled = Some(seen);
    }

    /// Whether nothing of it should be on the host, and nothing is to be.
    fn is_idle(&self) -> bool {
        self.running.is_none() && self.pending.is_none()
    }

    /// The version of which something may be on the host. What failed may have left something, too.
    fn there(&self) -> Option<u32> {
        let failed = { self.settled.as_ref() }.filter(|(_, result)| result.state == State::Error);
        let failed = || failed.map(|(version, _)| *version);
        let left =
            || self.is_left.then(|| self.settled.as_ref().map_or(0, |(version, _)| *version));
        self.running.or(self.pending).or_else(failed).or_else(left)
    }
}

/// How much of a workload is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// All of it.
    Whole,
    /// Something that a step left which did not come to its end.
    Part,
    /// Nothing.
    Absent,
}

/// The next thing to do.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Ask the chain whether that version is paid for.
    Confirm(u32),
    /// Make again what should be there.
    Restore(Task),
    /// Take down a workload.
    Remove(Name, u32),
    /// Take down what is left of a workload that is not there any more, or never was.
    Clear(Name),
    /// Make a workload.
    Add(Task),
    /// Make a workload into what it is to be.
    Update { old: Task, new: Task },
    /// Stop a workload for a while.
    Pause(Task),
    /// Let it go on.
    Resume(Task),
    /// Tell the chain what all of it takes.
    Report,
    /// Forget the deployment.
    Forget,
}

/// One deployment.
pub(super) struct Record {
    pub(super) key: Key,
    pub(super) bodies: BTreeMap<u32, Arc<VerifiedDeployment>>,
    pub(super) history: Vec<Entry>,
    pub(super) standing: Standing,
    pub(super) is_in_grace: bool,
    /// The chain does not know yet what it takes.
    pub(super) is_unreported: bool,
    places: BTreeMap<Name, Place>,
}

impl Record {
    pub(super) fn new(
        key: Key,
        bodies: BTreeMap<u32, Arc<VerifiedDeployment>>,
        entries: Vec<Entry>,
    ) -> Self {
        let mut record = Self {
            key,
            bodies,
            history: Vec::new(),
            standing: Standing::default(),
            is_in_grace: false,
            is_unreported: true,
            places: BTreeMap::new(),
        };
        entries.into_iter().for_each(|entry| record.apply(entry));
        record
    }

    /// Takes note of something that became true, and is on disk.
    pub(super) fn apply(&mut self, entry: Entry) {
        match &entry {
            Entry::Accepted { .. } => {}
            Entry::Workload { name, version, result } => {
                let place = self.places.entry(name.clone()).or_default();
                let was = place.running;
                place.apply(*version, result);
                self.is_unreported |= place.running != was;
            }
            Entry::Confirmed { version } => self.standing = Standing::Confirmed(*version),
            Entry::Rejected { version, .. } => match self.standing {
                Standing::Unconfirmed => self.standing = Standing::Rejected,
                _ => drop(self.bodies.remove(version)),
            },
            Entry::Cancelled { .. } => self.standing = Standing::Cancelled,
            Entry::Grace { is_on } => self.is_in_grace = *is_on,
        }
        self.history.push(entry);
    }

    /// The newest version that was accepted.
    pub(super) fn newest(&self) -> &Arc<VerifiedDeployment> {
        // A record is made with a body, and the last one is never dropped.
        let (_, body) = self.bodies.last_key_value().expect("a deployment has a version");
        body
    }

    /// The newest version's number.
    pub(super) fn version(&self) -> u32 {
        self.newest().deployment().version
    }

    /// Whether its newest version still waits for the chain's word.
    pub(super) fn is_unconfirmed(&self) -> bool {
        match self.standing {
            Standing::Unconfirmed => true,
            Standing::Confirmed(version) => version < self.version(),
            Standing::Rejected | Standing::Cancelled => false,
        }
    }

    /// Whether its contract is over.
    pub(super) fn is_over(&self) -> bool {
        self.standing == Standing::Cancelled
    }

    pub(super) fn place(&self, name: &Name) -> Option<&Place> {
        self.places.get(name)
    }

    /// Workloads on the host, or that should be, with the version in which they are.
    pub(super) fn running(&self) -> impl Iterator<Item = (&Name, &Workload, &Place)> {
        self.places.iter().filter_map(|(name, place)| {
            let workload = self.workload(place.running?, name)?;
            Some((name, workload, place))
        })
    }

    /// What all of it takes.
    pub(super) fn used(&self) -> Capacity {
        let mut sum = Capacity::default();
        self.running().for_each(|(_, workload, _)| sum += workload.data.capacity());
        sum
    }

    /// Names of workloads by what should be on the host: those that run, and those of which nothing should
    /// be there. Those that are on their way are neither.
    pub(super) fn expected(&self) -> (BTreeSet<Name>, BTreeSet<Name>) {
        let names = |is_it: fn(&Place) -> bool| {
            let those = self.places.iter().filter(move |(_, place)| is_it(place));
            those.map(|(name, _)| name.clone()).collect()
        };
        (names(|place| place.running.is_some()), names(Place::is_idle))
    }

    /// Takes note of what is on the host, and what is not. `before` is what was
    /// [expected](Self::expected) before anybody looked: what has become so since then may or may not have
    /// been seen.
    pub(super) fn compare(
        &mut self,
        (running, idle): &(BTreeSet<Name>, BTreeSet<Name>),
        found: impl Fn(&Name) -> Presence,
    ) {
        for (name, place) in &mut self.places {
            let found = found(name);
            let has_run = place.running.is_some() && running.contains(name);
            place.is_missing = has_run && found != Presence::Whole;
            if found != Presence::Absent {
                place.is_begun |= place.running.is_none() && place.pending.is_some();
                place.is_left |= place.is_idle() && idle.contains(name);
            }
        }
    }

    /// Takes note of whether something is left of a workload that failed or is gone.
    pub(super) fn set_left(&mut self, name: &Name, is_left: bool) {
        if let Some(place) = self.places.get_mut(name) {
            place.is_left = is_left;
            if !is_left {
                place.failure_count = 0;
            }
        }
    }

    /// Takes note that something of it is on the host. What runs, or is being made, is to be there; of all
    /// others it was left: a machine that was given up, a making that failed and could not be undone.
    pub(super) fn find(&mut self, name: Name) {
        let place = self.places.entry(name).or_default();
        place.is_left |= place.is_idle();
    }

    /// Takes note that something of it could not be made again, or be taken down: others come first now.
    pub(super) fn set_failed(&mut self, name: &Name) {
        if let Some(place) = self.places.get_mut(name) {
            place.failure_count = place.failure_count.saturating_add(1);
        }
    }

    /// A workload as it was in some version.
    pub(super) fn workload(&self, version: u32, name: &Name) -> Option<&Workload> {
        let deployment = self.bodies.get(&version)?.deployment();
        deployment.workloads.iter().find(|workload| workload.name == *name)
    }

    pub(super) fn task(&self, version: u32, name: &Name) -> Option<Task> {
        let body = self.bodies.get(&version)?;
        let mut workloads = body.deployment().workloads.iter();
        Task::new(Arc::clone(body), workloads.position(|workload| workload.name == *name)?)
    }

    /// What comes next; nothing if all is as it should be.
    pub(super) fn next_step(&self) -> Option<Step> {
        match self.standing {
            Standing::Rejected => self.repair(),
            Standing::Unconfirmed => Some(Step::Confirm(self.version())),
            Standing::Cancelled => Some(self.removal(|_| true).unwrap_or(Step::Forget)),
            Standing::Confirmed(version) => {
                let confirm = || {
                    let newest = self.version();
                    (newest > version).then_some(Step::Confirm(newest))
                };
                // What can't be made again now holds up nothing else.
                let is_untried = |task: &Task| {
                    let place = self.place(&task.workload().name);
                    place.is_some_and(|place| place.failure_count == 0)
                };
                let mut restorations = self.restorations().into_iter().map(|(_, task)| task);
                let restore = restorations.find(is_untried).map(Step::Restore);
                restore.or_else(confirm).or_else(|| self.next_of(version)).or_else(|| self.repair())
            }
        }
    }

    /// What comes next, if the newest version is that one.
    fn next_of(&self, version: u32) -> Option<Step> {
        let deployment = self.bodies.get(&version)?.deployment();
        let names: BTreeSet<_> =
            deployment.workloads.iter().map(|workload| &workload.name).collect();
        let report = || self.is_unreported.then_some(Step::Report);
        self.removal(|name| !names.contains(name))
            .or_else(|| self.addition())
            .or_else(|| self.grace())
            .or_else(report)
    }

    /// What is to be made again, in order. What is to be taken down is not, though it may be lost, too: that
    /// is what a removal looks like that was done and not written down.
    pub(super) fn restorations(&self) -> Vec<(Rank, Task)> {
        let Standing::Confirmed(version) = self.standing else { return Vec::new() };
        let is_wanted = |name: &Name| self.workload(version, name).is_some();
        let missing = self.running().filter(|(name, _, place)| place.is_missing && is_wanted(name));
        let mut tasks: Vec<_> = missing
            .filter_map(|(name, workload, place)| {
                Some((rank(workload), self.task(place.running?, name)?))
            })
            .collect();
        tasks.sort_by_key(|(rank, _)| *rank);
        tasks
    }

    /// The next workload to take down, of those that are to go: the last that was made.
    fn removal(&self, is_going: impl Fn(&Name) -> bool) -> Option<Step> {
        let going = self.places.iter().filter(|(name, _)| is_going(name));
        let there = going.filter_map(|(name, place)| {
            let version = place.there()?;
            // A body that is gone can't tell what it was; it goes first.
            let rank = self.workload(version, name).map(rank);
            Some((rank.is_none(), rank, name, version))
        });
        let (_, _, name, version) = there.max_by_key(|(unknown, rank, _, _)| (*unknown, *rank))?;
        Some(Step::Remove(name.clone(), version))
    }

    /// What is to be made again, or is left of something, and failed the fewest times. Nothing waits for
    /// it but what takes its place.
    fn repair(&self) -> Option<Step> {
        let missing = self.restorations().into_iter();
        let missing = missing.map(|(_, task)| (task.workload().name.clone(), Step::Restore(task)));
        let left = self.places.iter().filter(|(_, place)| place.is_left);
        let left = left.map(|(name, _)| (name.clone(), Step::Clear(name.clone())));
        let failures = |name: &Name| self.place(name).map_or(0, |place| place.failure_count);
        let next = missing.chain(left).min_by_key(|(name, _)| failures(name))?;
        Some(next.1)
    }

    /// The next workload to make or to change.
    fn addition(&self) -> Option<Step> {
        let pending = self.places.iter().filter_map(|(name, place)| {
            let version = place.pending?;
            Some((rank(self.workload(version, name)?), name, version, place.running))
        });
        let (_, name, version, running) = pending.min_by_key(|(rank, ..)| *rank)?;
        if self.place(name).is_some_and(|place| place.is_left) {
            return Some(Step::Clear(name.clone()));
        }
        let new = self.task(version, name)?;
        Some(match running.and_then(|version| self.task(version, name)) {
            Some(old) => Step::Update { old, new },
            None => Step::Add(new),
        })
    }

    /// The next workload to pause or to resume.
    fn grace(&self) -> Option<Step> {
        let wrong = self.running().filter(|(_, _, place)| {
            // What is not there is paused when it is made again.
            place.is_paused != self.is_in_grace && !place.is_missing
        });
        let ranked = wrong.map(|(name, workload, place)| (rank(workload), name, place.running));
        // Machines stop before what they stand on, and start after it.
        let (_, name, version) = match self.is_in_grace {
            true => ranked.max_by_key(|(rank, ..)| *rank)?,
            false => ranked.min_by_key(|(rank, ..)| *rank)?,
        };
        let task = self.task(version?, name)?;
        Some(if self.is_in_grace { Step::Pause(task) } else { Step::Resume(task) })
    }

    /// Entries for the workloads that a new version adds or changes.
    pub(super) fn init_entries(
        body: &Deployment,
        result: impl Fn() -> WorkloadResult,
    ) -> impl Iterator<Item = Entry> {
        let version = body.version;
        let changed = body.workloads.iter().filter(move |workload| workload.version == version);
        changed.map(move |workload| Entry::Workload {
            name: workload.name.clone(),
            version,
            result: result(),
        })
    }

    /// Versions of which nothing is needed any more.
    pub(super) fn unneeded(&self) -> Vec<u32> {
        let mut needed = BTreeSet::from([self.version()]);
        if let Standing::Confirmed(version) = self.standing {
            needed.insert(version);
        }
        for place in self.places.values() {
            needed.extend(place.running);
            needed.extend(place.pending);
            needed.extend(place.settled.as_ref().map(|(version, _)| *version));
        }
        self.bodies.keys().copied().filter(|version| !needed.contains(version)).collect()
    }

    /// The entries that still say something, when there are too many.
    pub(super) fn compacted(&self) -> Option<Vec<Entry>> {
        if self.history.len() <= HISTORY_COUNT_MAX {
            return None;
        }
        let late = self.history.len() - HISTORY_COUNT_MAX / 4;
        let mut newer: BTreeSet<(Option<&Name>, bool)> = BTreeSet::new();
        let mut kept: Vec<_> = Vec::new();
        for (index, entry) in self.history.iter().enumerate().rev() {
            let is_kept = match entry {
                Entry::Accepted { version } => self.bodies.contains_key(version),
                Entry::Workload { name, result, .. } => {
                    // The last of all, and the last that settled something.
                    let settles = !matches!(result.state, State::Init | State::Unchanged);
                    let is_last = newer.insert((Some(name), false));
                    (settles && newer.insert((Some(name), true))) || is_last
                }
                Entry::Confirmed { .. } => newer.insert((None, false)),
                Entry::Grace { .. } => newer.insert((None, true)),
                Entry::Rejected { .. } => self.standing == Standing::Rejected,
                Entry::Cancelled { .. } => true,
            };
            if is_kept || index >= late {
                kept.push(entry.clone());
            }
        }
        kept.reverse();
        Some(kept)
    }
}

#[cfg(test)]
mod tests;
