//! All programs: how they begin, end and begin again.
//!
//! ```text
//!            ┌──────────────── start again, when its wait is over ────────────┐
//!            ▼                                                                │
//!   start ─> running ── exit: kill what it left ──> sweeping ── all gone ──> waiting
//!              │ stop: SIGTERM, then SIGKILL            │
//!              └────────────────────────────────────────┴──> removed, ended, given up
//! ```
//!
//! A program's processes are its session's first process group, and its cgroup if there is one. When the
//! program ends, the rest of them is killed before anything else happens: two runs never overlap.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group,
    test_kill_process_group, wait as wait_any, waitid, waitpid,
};

use super::cgroup::{Group, Groups};
use super::descriptors::Slots;
use super::history::{Decision, History};
use super::journal::{Journal, LogId};
use super::spawn::{Surroundings, spawn};
use crate::program::Program;
use crate::status::{Exit, Outcome, State, Status};
use crate::wire::{Refusal, RefusalKind, Reply};

/// Most programs, those that are over included.
pub const PROGRAM_COUNT_MAX: usize = 4096;
/// Longest wait for what a program left behind, after it was killed. A process that the kernel does not
/// let die must not keep all others waiting.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look whether all of it is gone, when no child says so.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes of output read at once.
const OUTPUT_SIZE: usize = 64 << 10;
/// Reads of what is left in a pipe when its program has ended: as much as a pipe can hold.
const LAST_READS: usize = 16;

/// Who is to be told what.
#[derive(Debug)]
pub(super) enum News {
    /// For all watchers.
    Told(Reply),
    /// For whoever waits for the end of this program.
    Over(String, Reply),
    /// For whoever stopped this program.
    Stopped(String, Reply),
}

/// Which pipe: its program's log, and which run.
pub(super) type OutputId = (LogId, u64);

/// All programs.
#[derive(Debug)]
pub(super) struct Programs {
    programs: BTreeMap<String, Entry>,
    slots: Slots,
    groups: Option<Groups>,
    journal: Journal,
    next_log: LogId,
    news: Vec<News>,
    /// Pipes came or went.
    has_other_outputs: bool,
}

#[derive(Debug)]
struct Entry {
    program: Program,
    descriptors: Vec<OwnedFd>,
    life: Life,
    since_ms: u64,
    restarts: u64,
    history: History,
    last_exit: Option<Exit>,
    group: Option<Group>,
    log: Option<LogId>,
    /// The end of the pipe that the program writes to.
    output: Option<OwnedFd>,
    /// It is to be removed when it ends.
    stopping: Option<Stopping>,
}

#[derive(Debug)]
enum Life {
    Running { pid: Pid, started: Instant },
    Sweeping { pid: Pid, exit: Exit, until: Instant },
    Waiting { until: Instant },
    Ended,
    GivenUp,
}

#[derive(Debug, Clone, Copy)]
struct Stopping {
    /// When it is killed; none once it was.
    kill_at: Option<Instant>,
}

impl Programs {
    pub(super) fn new(groups: Option<Groups>) -> io::Result<Self> {
        Ok(Self {
            programs: BTreeMap::new(),
            slots: Slots::reserve()?,
            groups,
            journal: Journal::start()?,
            next_log: 1,
            news: Vec::new(),
            has_other_outputs: false,
        })
    }

    /// Starts a program, or finds it.
    pub(super) fn start(
        &mut self,
        program: Program,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Status, Refusal> {
        program.check().map_err(|error| refusal(RefusalKind::Invalid, error.to_string()))?;
        if let Some(entry) = self.programs.get(&program.name) {
            if entry.stopping.is_some() {
                let text = format!("program '{}' is being stopped", program.name);
                return Err(refusal(RefusalKind::Conflict, text));
            }
            if !entry.is_over() {
                if entry.program == program {
                    return Ok(self.status(entry));
                }
                let text = format!("another program runs as '{}'", program.name);
                return Err(refusal(RefusalKind::Conflict, text));
            }
            let name = program.name.clone();
            self.remove(&name);
        } else if self.programs.len() >= PROGRAM_COUNT_MAX {
            let text = format!("there are {PROGRAM_COUNT_MAX} programs already");
            return Err(refusal(RefusalKind::Full, text));
        }
        self.begin(program, descriptors)
    }

    fn begin(&mut self, program: Program, descriptors: Vec<OwnedFd>) -> Result<Status, Refusal> {
        let name = program.name.clone();
        let system = |error: io::Error| {
            refusal(RefusalKind::System, format!("program '{name}' can't be started: {error}"))
        };
        let group = match &self.groups {
            Some(groups) => Some(groups.make(&name, &program.limits).map_err(system)?),
            None => None,
        };
        let log = program.log.as_ref().map(|log| {
            let id = self.next_log;
            self.next_log += 1;
            self.journal.open(id, log);
            id
        });
        let mut entry = Entry {
            program,
            descriptors,
            life: Life::Ended,
            since_ms: now_ms(),
            restarts: 0,
            history: History::default(),
            last_exit: None,
            group,
            log,
            output: None,
            stopping: None,
        };
        if let Err(error) = entry.run(&mut self.slots) {
            entry.discard(&self.journal);
            return Err(system(error));
        }
        self.has_other_outputs = true;
        let status = self.status(&entry);
        tracing::info!(name, pid = status.pid, "started");
        self.news.push(News::Told(Reply::Changed(Box::new(status.clone()))));
        self.programs.insert(name, entry);
        Ok(status)
    }

    /// Begins to end a program. False if there is none of that name: nothing will be told then.
    pub(super) fn stop(&mut self, name: &str, grace: Duration) -> bool {
        let Some(entry) = self.programs.get_mut(name) else { return false };
        let now = Instant::now();
        // A time that no clock can hold is as good as a day.
        let kill_at = now.checked_add(grace).unwrap_or(now + Duration::from_secs(86_400));
        let is_new = entry.stopping.is_none();
        // Who is in more of a hurry wins.
        let kill_at = match entry.stopping {
            Some(Stopping { kill_at: None }) => None,
            Some(Stopping { kill_at: Some(earlier) }) => Some(earlier.min(kill_at)),
            None => Some(kill_at),
        };
        entry.stopping = Some(Stopping { kill_at });
        if is_new {
            if let Life::Running { pid, .. } = entry.life
                && !grace.is_zero()
            {
                // It may just have ended, which is as good.
                let _ = kill_process(pid, Signal::TERM);
            }
            entry.since_ms = now_ms();
            self.tell(name);
        }
        self.turn(now);
        true
    }

    /// All programs, by name.
    pub(super) fn statuses(&self) -> Vec<Status> {
        self.programs.values().map(|entry| self.status(entry)).collect()
    }

    /// One program.
    pub(super) fn find(&self, name: &str) -> Option<Status> {
        self.programs.get(name).map(|entry| self.status(entry))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.programs.keys().cloned().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// What happened since this was last called.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Pipes to read from, with the names of their programs and a number that no other pipe ever has.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (&str, OutputId, BorrowedFd<'_>)> {
        self.programs.iter().filter_map(|(name, entry)| {
            let id = (entry.log?, entry.restarts);
            Some((name.as_str(), id, entry.output.as_ref()?.as_fd()))
        })
    }

    /// Whether [`Programs::outputs`] are others than when this was last called.
    pub(super) fn take_output_changes(&mut self) -> bool {
        std::mem::take(&mut self.has_other_outputs)
    }

    /// Reads what a program said.
    pub(super) fn read_output(&mut self, name: &str) {
        let Some(entry) = self.programs.get_mut(name) else { return };
        if !entry.read_once(&self.journal) {
            entry.output = None;
            self.has_other_outputs = true;
        }
    }

    /// Looks for children that ended, and reaps them; also those of programs that ended before.
    pub(super) fn reap(&mut self) {
        let now = Instant::now();
        for (name, entry) in &mut self.programs {
            let Life::Running { pid, .. } = entry.life else { continue };
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            // As long as it is not reaped, its number is nobody else's.
            if matches!(waitid(WaitId::Pid(pid), options), Ok(Some(_))) {
                entry.kill();
                let outcome = match waitpid(Some(pid), WaitOptions::NOHANG) {
                    Ok(Some((_, status))) => outcome(status),
                    _ => Outcome::Signal(Signal::KILL.as_raw()),
                };
                entry.ended(name, outcome, now);
            }
        }
        self.reap_orphans();
        self.turn(now);
    }

    /// Those whose parents ended before them became ours.
    fn reap_orphans(&mut self) {
        // Of any process group: `waitpid` without a process would take those of our own alone.
        while let Ok(Some((pid, status))) = wait_any(WaitOptions::NOHANG) {
            // A program may have ended since the question above.
            let program = self.programs.iter_mut().find(
                |(_, entry)| matches!(entry.life, Life::Running { pid: own, .. } if own == pid),
            );
            if let Some((name, entry)) = program {
                entry.kill();
                entry.ended(name, outcome(status), Instant::now());
            }
        }
    }

    /// Does all that is due.
    pub(super) fn turn(&mut self, now: Instant) {
        for name in self.due(now) {
            self.step(&name, now);
        }
    }

    /// Programs for which the time has come, or may have.
    fn due(&self, now: Instant) -> Vec<String> {
        // What is due at once is due at a time that was asked for later than `now`.
        let is_due = |entry: &Entry| entry.next().is_some_and(|at| at <= now.max(Instant::now()));
        let due = self
            .programs
            .iter()
            .filter(|(_, entry)| matches!(entry.life, Life::Sweeping { .. }) || is_due(entry));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.programs.values().filter_map(Entry::next).min()
    }

    fn step(&mut self, name: &str, now: Instant) {
        let Some(entry) = self.programs.get_mut(name) else { return };
        match entry.life {
            Life::Running { .. } => {
                if let Some(Stopping { kill_at: Some(at) }) = entry.stopping
                    && at <= now
                {
                    entry.stopping = Some(Stopping { kill_at: None });
                    entry.kill();
                }
            }
            Life::Sweeping { pid, until, .. } => {
                if until > now && !entry.is_gone(pid) {
                    return;
                }
                if until <= now {
                    tracing::warn!(name, "some of its processes do not die");
                }
                self.swept(name, now);
            }
            Life::Waiting { .. } | Life::Ended | Life::GivenUp if entry.stopping.is_some() => {
                self.stopped(name);
            }
            Life::Waiting { .. } => self.restart(name, now),
            Life::Ended | Life::GivenUp => {}
        }
    }

    /// Nothing of a run is left: what now?
    fn swept(&mut self, name: &str, now: Instant) {
        let Some(entry) = self.programs.get_mut(name) else { return };
        entry.read_rest(&self.journal);
        self.has_other_outputs = true;
        let Life::Sweeping { exit, .. } = std::mem::replace(&mut entry.life, Life::Ended) else {
            return;
        };
        entry.last_exit = Some(exit.clone());
        if entry.stopping.is_some() {
            self.stopped(name);
            return;
        }
        let ran = Duration::from_millis(exit.ran_ms);
        self.decide(name, &exit.outcome, ran, now);
    }

    fn decide(&mut self, name: &str, outcome: &Outcome, ran: Duration, now: Instant) {
        let Some(entry) = self.programs.get_mut(name) else { return };
        let decision = entry.history.decide(&entry.program.policy, outcome, ran, now);
        entry.life = match decision {
            Decision::Restart(wait) => Life::Waiting { until: now + wait },
            Decision::End => Life::Ended,
            Decision::GiveUp => Life::GivenUp,
        };
        entry.since_ms = now_ms();
        let is_over = entry.is_over();
        tracing::info!(name, %outcome, ?decision, "ended");
        self.tell(name);
        if is_over && let Some(status) = self.find(name) {
            self.news.push(News::Over(name.to_owned(), Reply::Status(Box::new(status))));
        }
    }

    fn restart(&mut self, name: &str, now: Instant) {
        let Some(entry) = self.programs.get_mut(name) else { return };
        entry.restarts += 1;
        match entry.run(&mut self.slots) {
            Ok(()) => {
                entry.since_ms = now_ms();
                self.has_other_outputs = true;
                self.tell(name);
            }
            Err(error) => {
                let outcome = Outcome::NotStarted(error.to_string());
                let exit = Exit { outcome: outcome.clone(), at_ms: now_ms(), ran_ms: 0 };
                entry.last_exit = Some(exit);
                self.decide(name, &outcome, Duration::ZERO, now);
            }
        }
    }

    fn stopped(&mut self, name: &str) {
        let status = self.find(name);
        self.remove(name);
        tracing::info!(name, "stopped");
        let absent = Reply::Error(absent(name));
        self.news.push(News::Over(name.to_owned(), absent));
        let reply = Reply::Stopped(status.map(Box::new));
        self.news.push(News::Stopped(name.to_owned(), reply));
    }

    fn remove(&mut self, name: &str) {
        if let Some(entry) = self.programs.remove(name) {
            entry.discard(&self.journal);
            self.has_other_outputs = true;
            self.news.push(News::Told(Reply::Removed(name.to_owned())));
        }
    }

    fn tell(&mut self, name: &str) {
        if let Some(status) = self.find(name) {
            self.news.push(News::Told(Reply::Changed(Box::new(status))));
        }
    }

    fn status(&self, entry: &Entry) -> Status {
        let (state, pid) = match &entry.life {
            Life::Running { pid, .. } => (State::Running, Some(*pid)),
            Life::Sweeping { .. } => (State::Running, None),
            Life::Waiting { .. } => (State::Waiting, None),
            Life::Ended => (State::Ended, None),
            Life::GivenUp => (State::GivenUp, None),
        };
        Status {
            name: entry.program.name.clone(),
            state: if entry.stopping.is_some() { State::Stopping } else { state },
            pid: pid.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()),
            since_ms: entry.since_ms,
            restarts: entry.restarts,
            crashes: entry.history.crash_count(),
            last_exit: entry.last_exit.clone(),
            cgroup: entry.group.as_ref().map(|group| group.path().to_owned()),
            log_lost_bytes: entry.log.map_or(0, |log| self.journal.lost(log)),
        }
    }
}

impl Entry {
    fn is_over(&self) -> bool {
        matches!(self.life, Life::Ended | Life::GivenUp)
    }

    /// When something is to be done about it.
    fn next(&self) -> Option<Instant> {
        match (&self.life, self.stopping) {
            (Life::Running { .. }, Some(stopping)) => stopping.kill_at,
            (Life::Running { .. }, None) => None,
            (Life::Sweeping { until, .. }, _) => {
                Some((*until).min(Instant::now() + SWEEP_INTERVAL))
            }
            (Life::Waiting { .. } | Life::Ended | Life::GivenUp, Some(_)) => Some(Instant::now()),
            (Life::Waiting { until }, None) => Some(*until),
            (Life::Ended | Life::GivenUp, None) => None,
        }
    }

    /// Starts a run.
    fn run(&mut self, slots: &mut Slots) -> io::Result<()> {
        let network = self.program.network_namespace.as_deref().map(open_namespace).transpose()?;
        let cgroup = self.group.as_ref().map(Group::processes).transpose()?;
        let (ours, theirs) = if self.log.is_some() {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            (Some(ours), Some(theirs))
        } else {
            (None, None)
        };
        let surroundings = Surroundings { output: theirs, network, cgroup };
        let program = &self.program;
        let pid = slots.with(&self.descriptors, || spawn(program, surroundings))?;
        self.output = ours;
        self.life = Life::Running { pid, started: Instant::now() };
        Ok(())
    }

    /// Kills all that runs of it.
    fn kill(&self) {
        if let Life::Running { pid, .. } = self.life {
            // The group may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        if let Some(group) = &self.group {
            group.kill();
        }
    }

    fn ended(&mut self, name: &str, outcome: Outcome, now: Instant) {
        let Life::Running { pid, started } = self.life else { return };
        tracing::debug!(name, %outcome, "exit");
        let ran = now.saturating_duration_since(started).as_millis();
        let exit =
            Exit { outcome, at_ms: now_ms(), ran_ms: u64::try_from(ran).unwrap_or(u64::MAX) };
        self.life = Life::Sweeping { pid, exit, until: now + SWEEP_TIMEOUT };
    }

    /// Whether nothing of its last run is left.
    fn is_gone(&self, pid: Pid) -> bool {
        let is_group_gone = matches!(test_kill_process_group(pid), Err(Errno::SRCH));
        is_group_gone && self.group.as_ref().is_none_or(Group::is_empty)
    }

    /// Reads from its pipe once; false at the pipe's end.
    fn read_once(&self, journal: &Journal) -> bool {
        let (Some(pipe), Some(log)) = (&self.output, self.log) else { return false };
        let mut buffer = [0; OUTPUT_SIZE];
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                journal.append(log, buffer.get(..count).unwrap_or_default());
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// Reads what is left in its pipe, and closes it.
    fn read_rest(&mut self, journal: &Journal) {
        for _ in 0..LAST_READS {
            if !self.read_once(journal) {
                break;
            }
        }
        self.output = None;
    }

    fn discard(mut self, journal: &Journal) {
        self.read_rest(journal);
        if let Some(log) = self.log {
            journal.close(log);
        }
        if let Some(group) = &self.group {
            group.remove();
        }
    }
}

/// The refusal for a name that nobody has.
pub(super) fn absent(name: &str) -> Refusal {
    let name: String = name.chars().take(crate::program::NAME_SIZE_MAX).collect();
    refusal(RefusalKind::Absent, format!("there is no program '{name}'"))
}

pub(super) fn refusal(kind: RefusalKind, text: String) -> Refusal {
    Refusal { kind, text }
}

fn open_namespace(path: &Path) -> io::Result<File> {
    File::open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn outcome(status: rustix::process::WaitStatus) -> Outcome {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Outcome::Status(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => Outcome::Signal(signal),
        // Stopped or continued children are not asked for.
        (None, None) => Outcome::Signal(Signal::KILL.as_raw()),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
