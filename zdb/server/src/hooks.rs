//! Hooks: a program of the operator's that is told what happens.
//!
//! It is started for each event with the event's name, the server's name and what the event is about
//! (`reference: zdb 2.6`). The existing server waits for most hooks; this one waits for none while it
//! serves: only `namespaces-init` and `ready`, before it serves, and `close`, after. So a hook that
//! hangs harms nobody, and no more than a few run at once.
//!
//! ```text
//!  tell ─> waiting (bounded) ─> running (bounded) ─> done (kept 300 s, for HOOKS)
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::core::NamespaceId;

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

/// An event, and what is to follow from a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: &'static str,
    pub(crate) arguments: Vec<String>,
    /// A namespace whose dirty list, as given here, is dealt with when the hook succeeds.
    pub(crate) cleans: Option<(NamespaceId, Vec<u32>)>,
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
        let Some(program) = self.program.clone() else { return Ok(()) };
        let name = event.name;
        let start = self.start(event, unix);
        let (mut child, mut record) =
            start.map_err(|source| HookError::Start { event: name, path: program, source })?;
        let status = wait(&mut child);
        record.status = status.map_or(-1, code);
        record.finished = unix;
        self.done.push_back(record);
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookError::Refused { event: name, status: status.to_string() }),
            None => {
                let status = format!("nothing in {} s", WAIT_MAX.as_secs());
                Err(HookError::Refused { event: name, status })
            }
        }
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
            let name = event.name;
            match self.start(event, unix) {
                Ok(started) => self.running.push(started),
                Err(error) => tracing::warn!(hook = name, %error, "cannot start"),
            }
        }
    }

    fn start(&self, event: Event, unix: u32) -> std::io::Result<(Child, Record)> {
        let program = self.program.clone().unwrap_or_default();
        let child = Command::new(program)
            .arg(event.name)
            .arg(&self.instance)
            .args(&event.arguments)
            .stdin(Stdio::null())
            .spawn()?;
        let pid = child.id();
        Ok((child, Record { event, pid, created: unix, finished: 0, status: 0 }))
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
        Event { name, arguments: vec![argument.to_owned()], cleans: None }
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
