//! A supervisor as a process of its own, and what tests ask of it.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use supervise::{Client, Log, Policy, Program, Status};
use tempfile::TempDir;

/// Longest time for anything that a test waits for.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A supervisor and its folder.
pub(crate) struct Running {
    pub(crate) process: Child,
    pub(crate) client: Client,
    pub(crate) folder: TempDir,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = spawn(&folder, arguments);
        let client = connect(&folder.path().join("socket"));
        Self { process, client, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A shell script as a program that logs to `NAME.log`.
    pub(crate) fn script(&self, name: &str, script: &str) -> Program {
        let path = self.path(&format!("{name}.log"));
        let mut program = Program::new(name, ["/bin/sh", "-c", script]);
        program.directory = Some(self.folder.path().to_owned());
        program.env.insert("PATH".into(), "/usr/bin:/bin".into());
        program.log = Some(Log { path, size_max: 1 << 20, kept: 1 });
        program
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    pub(crate) fn status(&self, name: &str) -> Status {
        self.client.find(name).unwrap().unwrap_or_else(|| panic!("no program {name}"))
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        assert_eq!(self.process.wait().unwrap().signal(), Some(9));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended in its test.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn spawn(folder: &TempDir, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_supervise"))
        .arg("--socket")
        .arg(folder.path().join("socket"))
        .args(arguments)
        .spawn()
        .unwrap()
}

pub(crate) fn connect(socket: &std::path::Path) -> Client {
    let mut client = None;
    until("the supervisor serves", || {
        client = Client::connect(socket).ok();
        client.is_some()
    });
    client.unwrap()
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Processes whose parent is `parent`, and their states.
pub(crate) fn children(parent: u32) -> Vec<(u32, char)> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        (fields.next()?.parse() == Ok(parent)).then_some((pid, state))
    })
    .collect()
}

/// A policy that starts again fast.
pub(crate) fn fast(policy: Policy) -> Policy {
    Policy { backoff_ms: 5, backoff_max_ms: 20, ..policy }
}
