//! What requests and answers hold.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Size, VmSpec};

/// What a VM is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// The version of the VMM.
    pub vmm_version: String,
    /// Its process.
    pub pid: u32,
    /// What it does.
    pub state: State,
    /// How long ago the VM started, in milliseconds.
    pub uptime_ms: u64,
    /// Times that it was reset since.
    pub reboots: u64,
    /// Times that a vCPU came back from the guest since.
    pub exits: u64,
    /// The pseudo-terminal of the console, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_pty: Option<PathBuf>,
    /// The pseudo-terminal of the serial port, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_pty: Option<PathBuf>,
    /// The walls of its jail, those that this host could not give too; none without a jail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub walls: Vec<Wall>,
    /// Its description as it is now: what was plugged in is there, what was removed is gone.
    pub spec: VmSpec,
}

/// One of the walls between a VMM and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall {
    /// Its name, such as `seccomp` or `user namespace`.
    pub name: String,
    /// Whether it stands.
    pub stands: bool,
    /// What it consists of, or why it does not stand.
    pub detail: String,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being built.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand, and its devices too.
    Paused,
    /// It ends.
    Stopping,
}

impl State {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        }
    }
}

/// What the balloon is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// Memory that the guest is to give back, in MiB.
    pub target_mib: u64,
}

/// What the balloon holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonInfo {
    /// Memory that the guest is asked to give back, in MiB.
    pub target_mib: u64,
    /// Memory that it has given back, in MiB.
    pub actual_mib: u64,
}

/// The device that was plugged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// How to name it from now on.
    pub id: String,
}

/// A disk's new size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// A file grows to this size, if it is smaller. If not given, the size that the file or block
    /// device has by now is taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// Where a snapshot goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// A directory that does not exist yet.
    pub path: PathBuf,
    /// What becomes of the VM once the snapshot is complete.
    #[serde(default)]
    pub then: SnapshotThen,
}

/// What becomes of a VM of which a snapshot was taken. One that failed changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotThen {
    /// It goes on, unless it was paused before.
    #[default]
    Continue,
    /// It stays paused: its disks are as the guest in the snapshot knows them, until it is resumed.
    Pause,
    /// It ends, as if it had been stopped.
    Stop,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, in words that name the value and the rule.
    pub error: String,
    /// What to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
