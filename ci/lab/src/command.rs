//! A command in a machine: described, running, and what it did.

use std::sync::Arc;
use std::time::Duration;

use lab_agent::wire::{DATA_SIZE_MAX, Exec, Outcome, Reply, Request};

use crate::error::LabError;
use crate::link::LinkError;
use crate::process::Process;

/// A command's time limit, unless it is given one.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// What a machine may take longer than a limit that its agent watches.
const GRACE: Duration = Duration::from_secs(30);
/// What is kept of each of a command's outputs, in bytes, unless told otherwise.
const OUTPUT_SIZE_MAX: usize = 16 << 20;

/// A command to be run in a machine.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before run or spawn"]
pub struct Command<'a> {
    machine: &'a Arc<Process>,
    exec: Exec,
    timeout: Duration,
    output_size_max: usize,
}

impl<'a> Command<'a> {
    pub(crate) fn new(machine: &'a Arc<Process>, argv: &[&str]) -> Self {
        let argv = argv.iter().map(|&arg| arg.to_owned()).collect();
        let exec = Exec { argv, ..Exec::default() };
        Self { machine, exec, timeout: COMMAND_TIMEOUT, output_size_max: OUTPUT_SIZE_MAX }
    }

    /// The agent kills it after this; 60 s unless told otherwise.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.exec.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The folder to run it in; `/` unless told otherwise.
    pub fn current_dir(mut self, path: &str) -> Self {
        self.exec.cwd = path.to_owned();
        self
    }

    /// Its standard input. With arguments and environment it may have 512 KiB; push a file
    /// for more.
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.exec.stdin = bytes.to_vec();
        self
    }

    /// How much of each of its outputs is kept, in bytes; 16 MiB unless told otherwise.
    pub fn output_size_max(self, output_size_max: usize) -> Self {
        Self { output_size_max, ..self }
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// [`LabError::Description`] when the input is too large, and when the machine fails.
    pub fn spawn(mut self) -> Result<Running, LabError> {
        let machine = self.machine;
        let size = self.size();
        if size > DATA_SIZE_MAX {
            let reason = format!("a command of {size} bytes is larger than {DATA_SIZE_MAX}");
            return Err(LabError::Description { machine: machine.name.clone(), reason });
        }
        self.exec.timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let argv = self.exec.argv.clone();
        let begun = machine.link()?.begin(&Request::Exec(self.exec), self.output_size_max);
        let id = begun.map_err(|error| machine.link_error(error, "command"))?;
        let timeout = machine.patience(self.timeout).saturating_add(GRACE);
        Ok(Running { machine: Arc::clone(machine), id, argv, timeout })
    }

    /// What it takes in a request, in bytes.
    fn size(&self) -> usize {
        let argv = self.exec.argv.iter().map(|arg| arg.len() + 4);
        let env = self.exec.env.iter().map(|(name, value)| name.len() + value.len() + 8);
        argv.chain(env).sum::<usize>() + self.exec.cwd.len() + self.exec.stdin.len()
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    ///
    /// As [`Running::wait`].
    pub fn run(self) -> Result<Output, LabError> {
        self.spawn()?.wait()
    }
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its arguments.
    pub argv: Vec<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Whether it wrote more than is here.
    pub is_truncated: bool,
    /// The machine's time stamp counter before it started.
    pub tsc_start: u64,
    /// The counter after it ended.
    pub tsc_end: u64,
}

impl Output {
    /// The output itself, if the command exited with status 0.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] with what it wrote.
    pub fn success(self) -> Result<Self, LabError> {
        if self.outcome == Outcome::Exited(0) {
            return Ok(self);
        }
        Err(LabError::Command {
            command: self.argv.join(" "),
            outcome: self.outcome,
            stdout: tail(&self.stdout),
            stderr: tail(&self.stderr),
        })
    }

    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What the time stamp counter went up by: executed instructions, in a machine that counts
    /// them; cycles otherwise.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.tsc_end.saturating_sub(self.tsc_start)
    }
}

/// The end of an output, for an error message.
fn tail(bytes: &[u8]) -> String {
    const SIZE_MAX: usize = 2000;
    let text = bytes.get(bytes.len().saturating_sub(SIZE_MAX)..).unwrap_or_default();
    String::from_utf8_lossy(text).trim_end().to_owned()
}

/// A command that runs in a machine while the test does something else.
#[derive(Debug)]
pub struct Running {
    machine: Arc<Process>,
    id: u32,
    argv: Vec<String>,
    timeout: Duration,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`], [`LabError::Reset`], [`LabError::Timeout`] when the machine fails,
    /// [`LabError::Refused`] when the command couldn't be started.
    pub fn wait(self) -> Result<Output, LabError> {
        let link = self.machine.link()?;
        let what = format!("end of {}", self.argv.join(" "));
        let pending = link.wait_end(self.id, self.timeout);
        let pending = pending.map_err(|error| self.machine.link_error(error, &what))?;
        match pending.end {
            Some(Reply::Exit(exit)) => Ok(Output {
                argv: self.argv.clone(),
                outcome: exit.outcome,
                stdout: pending.stdout,
                stderr: pending.stderr,
                is_truncated: pending.is_truncated,
                tsc_start: exit.tsc_start,
                tsc_end: exit.tsc_end,
            }),
            end => Err(self.machine.refused(&what, end)),
        }
    }

    /// Waits for its end for so long at most, in our time; whether it came.
    ///
    /// # Errors
    ///
    /// When the machine fails.
    pub fn has_ended(&self, timeout: Duration) -> Result<bool, LabError> {
        let ended = self.machine.link()?.has_ended(self.id, timeout);
        ended.map_err(|error| self.machine.link_error(error, "end of a command"))
    }

    /// Takes what it has written by now, on standard output and standard error. Nothing else sees that
    /// any more, [`wait`](Self::wait) neither.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`] when the machine is gone.
    pub fn take_output(&self) -> Result<(Vec<u8>, Vec<u8>), LabError> {
        Ok(self.machine.link()?.take_output(self.id))
    }

    /// Waits until its standard output contains `needle`.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] when it doesn't in time, [`LabError::Command`] when the command ends
    /// without; and when the machine fails.
    pub fn wait_for(&self, needle: &str, timeout: Duration) -> Result<(), LabError> {
        if self.has_said(needle, timeout)? {
            return Ok(());
        }
        let what = format!("{needle:?} from {}", self.argv.join(" "));
        Err(self.machine.link_error(LinkError::Timeout(timeout), &what))
    }

    /// Waits until its standard output contains `needle`, for so long at most, in our time; whether it
    /// does.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] when the command ends without; and when the machine fails.
    pub fn has_said(&self, needle: &str, timeout: Duration) -> Result<bool, LabError> {
        let link = self.machine.link()?;
        let what = format!("{needle:?} from {}", self.argv.join(" "));
        match link.wait_output(self.id, needle.as_bytes(), timeout) {
            // It ended without, and said why.
            Err(LinkError::Timeout(Duration::ZERO)) if timeout > Duration::ZERO => {
                let pending = link.wait_end(self.id, timeout);
                let pending = pending.map_err(|error| self.machine.link_error(error, &what))?;
                let Some(Reply::Exit(exit)) = pending.end else {
                    return Err(self.machine.refused(&what, pending.end));
                };
                Err(LabError::Command {
                    command: what,
                    outcome: exit.outcome,
                    stdout: tail(&pending.stdout),
                    stderr: tail(&pending.stderr),
                })
            }
            Err(LinkError::Timeout(_)) => Ok(false),
            found => found.map(|()| true).map_err(|error| self.machine.link_error(error, &what)),
        }
    }

    /// Signals its process group.
    ///
    /// # Errors
    ///
    /// [`LabError::Off`] when the machine is gone.
    pub fn signal(&self, signal: u32) -> Result<(), LabError> {
        let sent = self.machine.link()?.send(self.id, &Request::Signal { signal });
        sent.map_err(|error| self.machine.link_error(error, "signal"))
    }
}
