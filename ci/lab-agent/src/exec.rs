//! Runs one command: feeds its standard input, streams its output, watches the clock.
//!
//! One loop over `poll`: no thread per pipe. The command is a process group of its own, so that
//! a time-out takes its children with it. Its end is its process's end: what a grandchild that
//! holds the pipes open writes later is lost, but what was written before is all delivered.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab_agent::wire::{DATA_SIZE_MAX, Exec, Exit, Outcome, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::tsc;

/// A command that has been started.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    stdin: Option<File>,
    stdin_left: Vec<u8>,
    stdout: Option<File>,
    stderr: Option<File>,
    deadline: Instant,
    tsc_start: u64,
}

impl Running {
    /// Starts a command.
    pub(crate) fn start(exec: Exec) -> Result<Self> {
        let (program, args) = exec.argv.split_first().context("no program given")?;
        let cwd = if exec.cwd.is_empty() { "/" } else { &exec.cwd };
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs([("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("HOME", "/"), ("LC_ALL", "C")])
            .envs(exec.env)
            .current_dir(cwd)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let tsc_start = tsc::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let pid = Pid::from_child(&child);
        Ok(Self {
            pidfd: pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?,
            stdin: child.stdin.take().map(nonblocking).transpose()?,
            stdout: child.stdout.take().map(nonblocking).transpose()?,
            stderr: child.stderr.take().map(nonblocking).transpose()?,
            stdin_left: exec.stdin,
            // More than a machine's life is as good as for ever.
            deadline: Instant::now() + Duration::from_millis(exec.timeout_ms.min(DAY_MS)),
            child,
            pid,
            tsc_start,
        })
    }

    /// The process group to signal.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sees the command through to its end; hands each piece of output to `put`.
    pub(crate) fn finish(mut self, put: &dyn Fn(Reply)) -> Result<Exit> {
        let (ended, is_in_time) = loop {
            if let Some(status) = self.child.try_wait().context("wait")? {
                break (status, true);
            }
            if Instant::now() >= self.deadline {
                // It may end by itself at this moment, and then there is nothing to kill.
                let _ = kill_process_group(self.pid, Signal::KILL);
                break (self.child.wait().context("wait")?, false);
            }
            self.wait_for_event()?;
            self.feed();
            self.drain(put);
        };
        let tsc_end = tsc::now();
        self.drain(put);
        let outcome = if is_in_time { outcome(ended) } else { Outcome::TimedOut };
        Ok(Exit { outcome, tsc_start: self.tsc_start, tsc_end })
    }

    fn wait_for_event(&self) -> Result<()> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        let outputs = [&self.stdout, &self.stderr];
        fds.extend(outputs.into_iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(self.stdin.iter().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("time-out")?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }

    /// Writes what the pipe takes; closes it after the last byte, or when nobody reads it.
    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let is_over = match stdin.write(&self.stdin_left) {
            Ok(size) => {
                self.stdin_left.drain(..size);
                self.stdin_left.is_empty()
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if is_over {
            self.stdin = None;
        }
    }

    /// Reads what the pipes have at this moment.
    fn drain(&mut self, put: &dyn Fn(Reply)) {
        drain_pipe(&mut self.stdout, &|bytes| put(Reply::Stdout(bytes)));
        drain_pipe(&mut self.stderr, &|bytes| put(Reply::Stderr(bytes)));
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn nonblocking(pipe: impl Into<OwnedFd>) -> Result<File> {
    let pipe = pipe.into();
    rustix::io::ioctl_fionbio(pipe.as_fd(), true).context("FIONBIO")?;
    Ok(File::from(pipe))
}

/// Reads until there is no more now; the pipe is dropped at its end.
///
/// Bounded, so that one loud pipe can't keep us from the other and from the clock: a pipe
/// holds 64 KiB by default.
fn drain_pipe(pipe: &mut Option<File>, put: &dyn Fn(Vec<u8>)) {
    let mut buffer = vec![0; DATA_SIZE_MAX.min(64 << 10)];
    for _ in 0..4 {
        let Some(file) = pipe else { return };
        match file.read(&mut buffer) {
            Ok(size @ 1..) => put(buffer.get(..size).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(0) | Err(_) => *pipe = None,
        }
    }
}

fn outcome(status: ExitStatus) -> Outcome {
    let number = |value: i32| value.unsigned_abs();
    match (status.code(), status.signal()) {
        (Some(code), _) => Outcome::Exited(number(code)),
        (None, signal) => Outcome::Killed(number(signal.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn run(argv: &[&str], stdin: &[u8], timeout_ms: u64) -> (Outcome, Vec<u8>, Vec<u8>) {
        let exec = Exec {
            timeout_ms,
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            stdin: stdin.to_vec(),
            ..Exec::default()
        };
        let output = Mutex::new((Vec::new(), Vec::new()));
        let exit = Running::start(exec)
            .unwrap()
            .finish(&|reply| match reply {
                Reply::Stdout(bytes) => output.lock().unwrap().0.extend(bytes),
                Reply::Stderr(bytes) => output.lock().unwrap().1.extend(bytes),
                other => panic!("{other:?}"),
            })
            .unwrap();
        assert!(exit.tsc_end > exit.tsc_start);
        let (stdout, stderr) = output.into_inner().unwrap();
        (exit.outcome, stdout, stderr)
    }

    #[test]
    fn status_and_both_outputs_arrive() {
        let (outcome, stdout, stderr) = run(&["sh", "-c", "echo a; echo b >&2; exit 3"], b"", 9000);
        assert_eq!(
            (outcome, &stdout[..], &stderr[..]),
            (Outcome::Exited(3), &b"a\n"[..], &b"b\n"[..])
        );
        let (outcome, ..) = run(&["sh", "-c", "kill -TERM $$"], b"", 9000);
        assert_eq!(outcome, Outcome::Killed(15));
    }

    #[test]
    fn more_input_and_output_than_a_pipe_holds() {
        let input: Vec<u8> = (0..500_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let (outcome, stdout, _) = run(&["cat"], &input, 60_000);
        assert_eq!(outcome, Outcome::Exited(0));
        assert_eq!(stdout, input);
        let (outcome, ..) = run(&["true"], &input, 60_000);
        assert_eq!(outcome, Outcome::Exited(0));
    }

    #[test]
    fn a_timeout_takes_the_children_with_it() {
        let (outcome, stdout, _) = run(&["sh", "-c", "echo on; sleep 60 & sleep 60"], b"", 100);
        assert_eq!((outcome, &stdout[..]), (Outcome::TimedOut, &b"on\n"[..]));
    }

    #[test]
    fn a_grandchild_does_not_hold_us_up() {
        let start = Instant::now();
        let (outcome, stdout, _) = run(&["sh", "-c", "setsid sleep 3 & echo ok"], b"", 60_000);
        assert_eq!((outcome, &stdout[..]), (Outcome::Exited(0), &b"ok\n"[..]));
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let exec = Exec { argv: vec!["/no/such".into()], ..Exec::default() };
        let error = format!("{:#}", Running::start(exec).unwrap_err());
        assert!(error.contains("/no/such"), "{error}");
        assert!(Running::start(Exec::default()).is_err());
    }
}
