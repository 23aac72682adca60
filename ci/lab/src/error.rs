//! What can go wrong in a lab, each with where to look.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab_agent::wire::{Outcome, WireError};
use thiserror::Error;

/// A lab's failure.
#[derive(Debug, Error)]
pub enum LabError {
    /// A file, socket or process operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel or the initramfs can't be made.
    #[error("boot image: {0}")]
    BootImage(String),
    /// The agent can't be built.
    #[error("cannot build the agent: {0}")]
    Agent(String),
    /// A program for the machine can't be packed.
    #[error("program {}: {reason}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What was described can't be booted.
    #[error("machine {machine}: {reason}")]
    Description {
        /// The machine.
        machine: String,
        /// The rule that is broken.
        reason: String,
    },
    /// QEMU ended.
    #[error("machine {machine} is off: {reason}\nlogs: {}", logs.display())]
    Off {
        /// The machine.
        machine: String,
        /// QEMU's status and last words, and the console's.
        reason: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// Something took too long.
    #[error("machine {machine}: no {what} within {} ms{tail}\nlogs: {}", limit.as_millis(), logs.display())]
    Timeout {
        /// The machine.
        machine: String,
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
        /// The console's last lines.
        tail: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// The machine was reset while something was under way.
    #[error("machine {machine} was reset meanwhile")]
    Reset {
        /// The machine.
        machine: String,
    },
    /// The agent refused.
    #[error("machine {machine}: {what}: {reason}")]
    Refused {
        /// The machine.
        machine: String,
        /// What was asked.
        what: String,
        /// The agent's reason.
        reason: String,
    },
    /// A command that had to succeed did not.
    #[error("command {command} ended: {outcome:?}\nstdout: {stdout}\nstderr: {stderr}")]
    Command {
        /// Its command line.
        command: String,
        /// How it ended.
        outcome: Outcome,
        /// The end of its standard output.
        stdout: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// QEMU refused a QMP command.
    #[error("machine {machine}: QMP {command}: {reason}")]
    Qmp {
        /// The machine.
        machine: String,
        /// The command.
        command: String,
        /// QEMU's reason.
        reason: String,
    },
    /// The agent speaks otherwise than the protocol says.
    #[error("machine {machine}: {source}")]
    Wire {
        /// The machine.
        machine: String,
        /// What is wrong.
        source: WireError,
    },
}

impl LabError {
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io { action: "start", source, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Some("install qemu-system-x86 and util-linux")
            }
            Self::BootImage(text) if text.contains("apt") => {
                Some("run `apt-get update` as root, and check the network")
            }
            _ => None,
        }
    }
}
