//! Hooks: a program of the operator's that is told what happens.
//!
//! It is started for each event with the event's name, the server's name and what the event is about
//! (`reference: zdb 2.6`). The existing server waits for most hooks; this one waits for none while it
//! serves: only `namespaces-init`, `ready` and `missing-data`, before it serves, and `close`, after. So a
//! hook that hangs harms nobody, and no more than a few run at once.
//!
//! `missing-data` asks for a file. At the start, or when a namespace is loaded anew, a success has the
//! namespace loaded once more; of files that go while it serves the hook is told, and what it brings back
//! is found by the next request. `crash` is the last word of a server that found itself broken.
//!
//! ```text
//!  tell ─> waiting (bounded) ─> running (bounded) ─> done (kept 300 s, for HOOKS)
//! ```

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::core::NamespaceId;
use crate::refusal::display_chain;

/// Hooks that run at once.
const RUNNING_COUNT_MAX: usize = 8;
/// Hooks that wait for their turn; later events are dropped and counted.
const WAITING_COUNT_MAX: usize = 1024;
/// Hooks that are shown after their end.
const DONE_COUNT_MAX: usize = 4096;
/// How long they are shown, in seconds (`reference: zdb 2.3`, `HOOKS`).
const DONE_SECONDS: u32 = 300;
/// How often running hooks are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long the start and the end wait for a hook.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A file is not there; the hook ends with 0 if it brought it back.
pub(crate) const MISSING_DATA: &str = "missing-data";
/// The server ends because of a bug.
const CRASH: &str = "crash";

/// An event, and what is to follow from a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: &'static str,
    pub(crate) arguments: Vec<String>,
    /// A namespace whose dirty list, as given here, is dealt with when the hook succeeds.
    pub(crate) cleans: Option<(NamespaceId, Vec<u32>)>,
}

impl Event {
    /// One that nothing follows from.
    pub(crate) fn new(name: &'static str, arguments: Vec<String>) -> Self {
        Self { name, arguments, cleans: None }
    }
}

/// A hook, as `HOOKS` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) event: Event,
    pub(crate) pid: u32,
    pub(crate) created: u32,
    /// 0 while it runs.
    pub(crate) finished: u32,
    pub(crate) status: i32,
}

/// Why the server must not serve.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The hook can't be started.
    #[error("hook {event}: {}", path.display())]
    Start {
        /// The event.
        event: &'static str,
        /// The program.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The hook says no.
    #[error("hook {event} ended with {status}, must end with 0")]
    Refused {
        /// The event.
        event: &'static str,
        /// How it ended.
        status: String,
    },
}

/// The hooks of a server.
#[derive(Debug)]
pub(crate) struct Hooks {
    program: Option<PathBuf>,
    instance: String,
    waiting: VecDeque<Event>,
    running: Vec<(Child, Record)>,
    done: VecDeque<Record>,
    polled_at: Duration,
    /// Events that nobody was told of, because too many waited.
    pub(crate) dropped_count: u64,
}

impl Hooks {
    pub(crate) fn new(program: Option<PathBuf>, instance: String) -> Self {
        Self {
            program,
            instance,
            waiting: VecDeque::new(),
            running: Vec::new(),
            done: VecDeque::new(),
            polled_at: Duration::ZERO,
            dropped_count: 0,
        }
    }

    /// Whether anybody is told anything.
    pub(crate) fn is_enabled(&self) -> bool {
        self.program.is_some()
    }

    /// Tells of an event, soon.
    pub(crate) fn tell(&mut self, event: Event, unix: u32) {
        if !self.is_enabled() {
            return;
        }
        if self.waiting.len() >= WAITING_COUNT_MAX {
            self.dropped_count += 1;
            return;
        }
        self.waiting.push_back(event);
        self.start_waiting(unix);
    }

    /// When to look at running hooks again, if there are any.
    pub(crate) fn poll_at(&self, now: Duration) -> Option<Duration> {
        let is_busy = !self.running.is_empty() || !self.waiting.is_empty();
        is_busy.then(|| (self.polled_at + POLL_INTERVAL).max(now + POLL_INTERVAL / 10))
    }

    /// Looks which hooks have ended, and starts others. Gives the namespaces whose dirty lists were
    /// dealt with.
    pub(crate) fn poll(&mut self, now: Duration, unix: u32) -> Vec<(NamespaceId, Vec<u32>)> {
        self.polled_at = now;
        let mut cleaned = Vec::new();
        let mut index = 0;
        while let Some((child, _)) = self.running.get_mut(index) {
            let Ok(status) = child.try_wait().map(|status| status.map(code)) else {
                index += 1;
                continue;
            };
            let Some(status) = status else {
                index += 1;
                continue;
            };
            let (_, mut record) = self.running.swap_remove(index);
            record.finished = unix;
            record.status = status;
            if status == 0
                && let Some(dirty) = record.event.cleans.take()
            {
                cleaned.push(dirty);
            }
            self.done.push_back(record);
        }
        let is_old = |record: &Record| unix.saturating_sub(record.finished) > DONE_SECONDS;
        while self.done.len() > DONE_COUNT_MAX || self.done.front().is_some_and(is_old) {
            self.done.pop_front();
        }
        self.start_waiting(unix);
        cleaned
    }

    /// All that run or ended lately, oldest first.
    pub(crate) fn records(&self) -> impl ExactSizeIterator<Item = &Record> {
        let all: Vec<&Record> =
            self.done.iter().chain(self.running.iter().map(|(_, record)| record)).collect();
        all.into_iter()
    }

    /// Tells of an event and waits for the answer; a hook that fails or takes too long is an error.
    pub(crate) fn ask(&mut self, event: Event, unix: u32) -> Result<(), HookError> {
        let Some(program) = &self.program else { return Ok(()) };
        let mut child = start(program, &self.instance, &event)?;
        let pid = child.id();
        let status = wait(&mut child);
        let name = event.name;
        let code = status.map_or(-1, code);
        self.done.push_back(Record { event, pid, created: unix, finished: unix, status: code });
        judge(name, status)
    }

    /// Lets running hooks end, for a while.
    pub(crate) fn finish(&mut self) {
        for (mut child, record) in self.running.drain(..) {
            if wait(&mut child).is_none() {
                tracing::warn!(hook = record.event.name, "did not end, and was killed");
            }
        }
    }

    fn start_waiting(&mut self, unix: u32) {
        while self.running.len() < RUNNING_COUNT_MAX {
            let Some(event) = self.waiting.pop_front() else { return };
            let Some(program) = &self.program else { return };
            match start(program, &self.instance, &event) {
                Ok(child) => {
                    let pid = child.id();
                    let record = Record { event, pid, created: unix, finished: 0, status: 0 };
                    self.running.push((child, record));
                }
                Err(error) => {
                    let error = display_chain(&error);
                    tracing::warn!(hook = event.name, error, "cannot start");
                }
            }
        }
    }
}

/// Runs a hook and waits for its end: for those who have no [`Hooks`] at hand.
pub(crate) fn run(program: &Path, instance: &str, event: &Event) -> Result<(), HookError> {
    let status = wait(&mut start(program, instance, event)?);
    judge(event.name, status)
}

/// Has the hook hear of a panic, which ends the process in a release build. To be called once.
pub fn announce_crashes(program: PathBuf, instance: String) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        announce_crash(&program, &instance);
    }));
}

fn announce_crash(program: &Path, instance: &str) {
    if let Err(error) = run(program, instance, &Event::new(CRASH, Vec::new())) {
        // The log may be what is broken.
        eprintln!("zdb: {}", display_chain(&error));
    }
}

fn start(program: &Path, instance: &str, event: &Event) -> Result<Child, HookError> {
    let started = Command::new(program)
        .arg(event.name)
        .arg(instance)
        .args(&event.arguments)
        .stdin(Stdio::null())
        .spawn();
    started.map_err(|source| HookError::Start {
        event: event.name,
        path: program.to_owned(),
        source,
    })
}

/// Whether a hook said yes.
fn judge(event: &'static str, status: Option<ExitStatus>) -> Result<(), HookError> {
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(HookError::Refused { event, status: status.to_string() }),
        None => {
            let status = format!("nothing in {} s", WAIT_MAX.as_secs());
            Err(HookError::Refused { event, status })
        }
    }
}

/// Waits for a child for [`WAIT_MAX`], then kills it.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let begin = Instant::now();
    while begin.elapsed() < WAIT_MAX {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Gone already is as good.
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// The exit code, or the negative number of the signal.
fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &'static str, argument: &str) -> Event {
        Event::new(name, vec![argument.to_owned()])
    }

    fn script(text: &str) -> (tempfile::TempDir, Hooks) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let hooks = Hooks::new(Some(path), "tcp://[::]:9900".to_owned());
        (folder, hooks)
    }

    fn poll_until_quiet(hooks: &mut Hooks) {
        let begin = Instant::now();
        while hooks.poll_at(Duration::ZERO).is_some() {
            assert!(begin.elapsed() < Duration::from_secs(20), "hooks do not end");
            hooks.poll(Duration::ZERO, 100);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn hooks_know_what_where_and_about_what() {
        let (folder, mut hooks) = script(r#"echo "$1 $2 $3" >> "$0.log""#);
        hooks.ask(event("ready", "x"), 1).unwrap();
        hooks.tell(event("namespace-created", "ns"), 1);
        poll_until_quiet(&mut hooks);
        let log = std::fs::read_to_string(folder.path().join("hook.log")).unwrap();
        assert_eq!(log, "ready tcp://[::]:9900 x\nnamespace-created tcp://[::]:9900 ns\n");
        let shown: Vec<_> =
            hooks.records().map(|record| (record.event.name, record.status)).collect();
        assert_eq!(shown, [("ready", 0), ("namespace-created", 0)]);
        hooks.poll(Duration::ZERO, 500);
        assert_eq!(hooks.records().len(), 0);
    }

    #[test]
    fn a_crash_is_told_and_waited_for() {
        let (folder, hooks) = script(r#"sleep 0.1; echo "$#: $1 $2" >> "$0.log""#);
        announce_crash(&hooks.program.unwrap(), "tcp://[::]:9900");
        let log = std::fs::read_to_string(folder.path().join("hook.log")).unwrap();
        assert_eq!(log, "2: crash tcp://[::]:9900\n");
        // A hook that is not there is no second crash.
        announce_crash(&folder.path().join("nothing"), "tcp://[::]:9900");
    }

    #[test]
    fn a_hook_may_say_no_and_many_wait_their_turn() {
        let (_folder, mut hooks) = script("exit 3");
        let error = hooks.ask(event("ready", ""), 1).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        for _ in 0..WAITING_COUNT_MAX + RUNNING_COUNT_MAX + 5 {
            hooks.waiting.push_back(event("jump-data", ""));
        }
        hooks.tell(event("jump-data", ""), 1);
        assert_eq!(hooks.dropped_count, 1);
        hooks.waiting.truncate(20);
        poll_until_quiet(&mut hooks);
        assert_eq!(hooks.records().filter(|record| record.status == 3).count(), 21);
    }
}
