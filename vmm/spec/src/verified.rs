//! What passed verification, with nothing left open.
//!
//! Fields can be read by everyone. Values are made by [`VmSpec::verify`] and its like alone, and
//! can't be changed afterwards.

use std::ops::Deref;
use std::path::PathBuf;

use crate::devices::{
    BalloonSpec, DiskSpec, FsSource, NetSpec, OutputSpec, VsockSpec, WatchdogSpec,
};
use crate::spec::{CpuSpec, MemorySpec, OnReset, VmSpec};
use crate::{MacAddress, RateSpec, Size, SpecError};

/// A `T` that passed verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T>(pub(crate) T);

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A description that passed verification. Reads as a [`Vm`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSpec {
    pub(crate) vm: Vm,
    pub(crate) spec: VmSpec,
}

impl VerifiedSpec {
    /// The description as it was given, for the API and for snapshots; with the ids that devices got,
    /// so that what is known as `disk1` stays that when `disk0` is gone.
    #[must_use]
    pub const fn spec(&self) -> &VmSpec {
        &self.spec
    }
}

impl Deref for VerifiedSpec {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

/// A VM, as the machine builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line, the default one included; without a NUL.
    pub cmdline: String,
    /// Processors.
    pub cpus: CpuSpec,
    /// Memory: whole pages of its kind.
    pub memory: MemorySpec,
    /// Disks, with ids of their own.
    pub disks: Vec<Verified<Disk>>,
    /// Network cards, with ids of their own.
    pub nets: Vec<Verified<Net>>,
    /// File systems, with tags of their own.
    pub fs: Vec<Verified<Fs>>,
    /// The socket device.
    pub vsock: Option<VsockSpec>,
    /// Whether there is an entropy source.
    pub rng: bool,
    /// The balloon.
    pub balloon: Option<BalloonSpec>,
    /// Where `hvc0` goes.
    pub console: OutputSpec,
    /// Where `ttyS0` goes.
    pub serial: OutputSpec,
    /// Whether the guest's kernel can say that it panicked.
    pub pvpanic: bool,
    /// The heartbeat.
    pub watchdog: Option<WatchdogSpec>,
    /// What a reset does.
    pub on_reset: OnReset,
    /// Where the API listens.
    pub api_socket: Option<PathBuf>,
    /// The jail; `None` when there is to be none.
    pub jail: Option<Jail>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// As it was described, with its id.
    pub spec: DiskSpec,
    /// Its name, which no other device has.
    pub id: String,
    /// The file or block device.
    pub path: PathBuf,
    /// Whether the guest can only read.
    pub readonly: bool,
    /// Its serial number: at most 20 bytes of ASCII, or empty.
    pub serial: String,
    /// How much it may do.
    pub rate: RateLimit,
    /// Whether to open it with `O_DIRECT`.
    pub direct: bool,
    /// Queues, at least one.
    pub queues: u16,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// As it was described, with its id.
    pub spec: NetSpec,
    /// Its name, which no other device has.
    pub id: String,
    /// Where packets go.
    pub backend: NetBackend,
    /// Its address; `None` for a random one.
    pub mac: Option<MacAddress>,
    /// Queue pairs, at least one.
    pub queues: u16,
    /// The largest packet.
    pub mtu: Option<u16>,
    /// How much it may move, each way.
    pub rate: RateLimit,
}

impl Disk {
    /// As a description has it.
    #[must_use]
    pub fn to_spec(&self) -> DiskSpec {
        DiskSpec {
            id: Some(self.id.clone()),
            path: self.path.clone(),
            readonly: self.readonly,
            serial: (!self.serial.is_empty()).then(|| self.serial.clone()),
            rate: self.rate.to_spec(),
            direct: self.direct,
            queues: self.queues,
        }
    }
}

impl Net {
    /// As a description has it.
    #[must_use]
    pub fn to_spec(&self) -> NetSpec {
        let (tap, fds) = match &self.backend {
            NetBackend::Tap(name) => (Some(name.clone()), Vec::new()),
            NetBackend::Descriptors(fds) => (None, fds.clone()),
        };
        NetSpec {
            id: Some(self.id.clone()),
            tap,
            fds,
            mac: self.mac,
            queues: self.queues,
            mtu: self.mtu,
            rate: self.rate.to_spec(),
        }
    }
}

impl RateLimit {
    fn to_spec(self) -> Option<RateSpec> {
        let spec = RateSpec {
            bytes_per_s: self.bytes.map(|bucket| Size::from_bytes(bucket.per_second)),
            ops_per_s: self.operations.map(|bucket| bucket.per_second),
            burst_bytes: self.bytes.map(|bucket| Size::from_bytes(bucket.burst)),
            burst_ops: self.operations.map(|bucket| bucket.burst),
        };
        (self != Self::default()).then_some(spec)
    }
}

/// Where a network card's packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// A tap interface, by name.
    Tap(String),
    /// Inherited descriptors of one, as many as queue pairs.
    Descriptors(Vec<i32>),
}

/// A shared file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fs {
    /// 1 to 36 bytes, which no other has.
    pub tag: String,
    /// What it serves.
    pub source: FsSource,
}

/// What a device may do: `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes.
    pub bytes: Option<Bucket>,
    /// Operations.
    pub operations: Option<Bucket>,
}

/// A token bucket; both are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that come in each second.
    pub per_second: u64,
    /// Tokens that it holds at most, and at the beginning.
    pub burst: u64,
}

/// What the VMM becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jail {
    /// The user; not root.
    pub uid: Option<u32>,
    /// The group; not root.
    pub gid: Option<u32>,
    /// The cgroup to join.
    pub cgroup: Option<Cgroup>,
}

/// A cgroup (v2), and what is written into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// An absolute path.
    pub path: PathBuf,
    /// `memory.max`, more than the guest's memory.
    pub memory_max: Option<Size>,
    /// `cpu.max`, at least 1.
    pub cpu_max_percent: Option<u32>,
    /// `pids.max`, enough for the VMM's threads.
    pub pids_max: Option<u32>,
    /// `io.max` of each block device in use.
    pub io_max: Option<IoMax>,
}

/// What may be read of a block device each second, and as much written; one of both is given, and
/// each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoMax {
    /// Bytes.
    pub bytes_per_s: Option<u64>,
    /// Requests.
    pub ops_per_s: Option<u64>,
}

impl TryFrom<VmSpec> for VerifiedSpec {
    type Error = SpecError;

    fn try_from(spec: VmSpec) -> Result<Self, SpecError> {
        spec.verify()
    }
}
