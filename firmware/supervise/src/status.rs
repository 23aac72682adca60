//! What became of a program.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A program, now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// Its process; none while it does not run.
    pub pid: Option<u32>,
    /// When it came into this state, in milliseconds since 1970.
    pub since_ms: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// Crashes in the window of its policy.
    pub crashes: u32,
    /// How its last run ended.
    pub last_exit: Option<Exit>,
    /// The cgroup that it and all it starts are in, if the supervisor has cgroups.
    pub cgroup: Option<PathBuf>,
    /// Bytes that its log had to leave out.
    pub log_lost_bytes: u64,
}

/// Where a program is in its life.
///
/// ```text
///   start ──> running ──> waiting ──> running      stop ──> stopping ──> gone
///                └──────> ended, given up
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has a process.
    Running,
    /// It ended, and will be started again.
    Waiting,
    /// It was told to end.
    Stopping,
    /// It ended, and its policy leaves it at that.
    Ended,
    /// It crashed too often.
    GivenUp,
}

impl State {
    /// Whether nothing more happens unless somebody asks.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::GivenUp)
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Status or signal.
    pub outcome: Outcome,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
}

/// How a process ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// By itself, with this status.
    Status(u8),
    /// By this signal.
    Signal(i32),
    /// It could not be started again, and this is why.
    NotStarted(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::NotStarted(reason) => write!(f, "could not be started: {reason}"),
        }
    }
}
