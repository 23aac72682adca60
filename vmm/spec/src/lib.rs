//! What a virtual machine is made of, and why it ended.
//!
//! The description is the seam between whoever wants a VM (hostd, a person at a terminal, a test)
//! and the one process that runs it. It is plain data: no KVM, no files opened, no threads.
//!
//! ```text
//!   JSON ──from_json──► VmSpec ──verify──► VerifiedSpec ──► the machine ──► Exit
//!   flags ──Flags::apply──►┘                  (private: only `verify` makes one)
//! ```
//!
//! A [`VmSpec`] says what somebody wants and may be nonsense; a [`VerifiedSpec`] has kept every
//! rule that can be checked without looking at the host. Errors name the flag, the value and the
//! rule. `FORMAT.md` beside this crate lists fields, flags, limits and defaults.
//!
//! [`api`] holds the types of the HTTP interface of a running VM, and its routes; [`restore`] what
//! a snapshot's clone has of its own.

#![forbid(unsafe_code)]

pub mod api;
mod cmdline;
mod devices;
mod error;
mod exit;
mod flags;
mod mac;
mod options;
mod rate;
pub mod restore;
mod size;
mod spec;
#[cfg(test)]
mod strategies;
mod suggest;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod verified;
mod verify;
mod verify_jail;

pub use devices::{
    BalloonSpec, DiskSpec, FsSource, FsSpec, NetSpec, OutputSpec, VsockSpec, WatchdogSpec,
};
pub use error::SpecError;
pub use exit::Exit;
pub use flags::Flags;
pub use mac::MacAddress;
pub use rate::RateSpec;
pub use size::{BadValue, Size};
pub use spec::{
    CpuSpec, CpuTemplate, HugePages, JailSpec, MemorySpec, OnReset, SPEC_VERSION, VmSpec, read_json,
};
pub use verified::{
    Bucket, Cgroup, Disk, Fs, IoMax, Jail, Net, NetBackend, RateLimit, Verified, VerifiedSpec, Vm,
};
pub use verify::{
    CMDLINE_SIZE_MAX, CPU_COUNT_MAX, DEVICE_COUNT_MAX, DISK_SERIAL_SIZE_MAX, FS_TAG_SIZE_MAX,
    ID_SIZE_MAX, MEMORY_SIZE_MAX, MEMORY_SIZE_MIN, MTU_MIN, QUEUE_COUNT_MAX, RATE_MAX,
    SOCKET_PATH_SIZE_MAX, TAP_NAME_SIZE_MAX, VSOCK_CID_MIN, WATCHDOG_TIMEOUT_MAX_S,
};
