//! The farm lab: real kernels and nested KVM in QEMU, driven from tests.
//!
//! What a farm node does, boots, runs guests on KVM, talks to other nodes, loses its power,
//! can't be shown by unit tests, and must not need a farm. The lab boots machines on any Linux
//! host, as any user, and gives a test hands in them:
//!
//! ```text
//!   test ── Lab ──┬── Machine ── QEMU (a child process)
//!                 │     │          ├── console ──► log with time stamps      (console.rs)
//!                 │     │          ├── QMP: links, disks, power              (qmp.rs)
//!                 │     │          └── virtio-serial: commands, files        (link.rs)
//!                 │     │                  └── lab-agent, PID 1 in the machine
//!                 │     ├── Holdings: what is there, to see what leaks       (holdings.rs)
//!                 │     └── Disk: files, kept over power cuts                (disk.rs)
//!                 │           └── WriteLog: what a disk was told, in order     (write_log.rs)
//!                 └── Network: an Ethernet switch in this process            (network.rs)
//! ```
//!
//! A machine is Debian's kernel and an initramfs built for the occasion: the agent, the modules
//! and the programs that the test names, nothing else. With hardware virtualization
//! ([`Accelerator::probe`]) QEMU uses it; without, its translator (TCG) with an emulated AMD
//! CPU that has nested SVM: `/dev/kvm` exists inside, on a laptop, in a container, in a VM.
//!
//! ```no_run
//! use lab::{Flavour, Lab};
//!
//! # fn main() -> Result<(), lab::LabError> {
//! let lab = Lab::new("example")?;
//! let machine = lab.machine("n1").kernel(Flavour::Cloud).nested_kvm().memory_mib(1024).boot()?;
//! machine.run(&["/init", "kvm-smoke", "hello"])?.success()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Bounds
//!
//! Everything ends. A boot, a command and a machine's whole life have time limits; all of them
//! can be set, none can be switched off. A machine ends with its [`Machine`]; when the test
//! runner is killed, the kernel kills QEMU (`PR_SET_PDEATHSIG`, set by `setpriv`), and should
//! that fail, the agent sees its port close and switches off. The lab creates no namespace,
//! mount or loop device. Its folder under the temporary directory is removed at the end, or by
//! the next lab if the runner was killed.
//!
//! # Logs
//!
//! Console, QEMU's own messages and the command line go to a folder in
//! `<cache>/lab-logs/`. It is removed when the [`Lab`] is dropped in peace, and kept, with its
//! path on stderr, when a machine failed or the test panicked. Every error names it.
//!
//! # Counting instructions
//!
//! Wall-clock time says little on a shared machine. [`MachineBuilder::count_instructions`] runs
//! QEMU with `-icount shift=0,sleep=off` on one CPU: the guest's time stamp counter then counts
//! executed instructions (and skips idle time), repeatable within 0.02 %. The machine's date is
//! fixed, and its random numbers are the same each time. [`Machine::tsc`] reads the counter,
//! [`Output::instructions`] is what a command took, all of the machine's work included.

#![forbid(unsafe_code)]

mod agent;
mod builder;
mod cidata;
mod command;
mod console;
mod disk;
mod error;
mod folder;
mod holdings;
mod host;
mod link;
mod machine;
mod network;
mod process;
mod programs;
mod qemu;
mod qmp;
mod spawn;
mod write_log;

pub use boot_image::Flavour;
pub use builder::MachineBuilder;
pub use cidata::write_cidata;
pub use command::{Command, Output, Running};
pub use disk::Disk;
pub use error::LabError;
pub use holdings::{HOLDINGS_PROGRAMS, Holdings};
pub use host::Accelerator;
pub use lab_agent::MARK_LEAF;
pub use lab_agent::wire::Outcome;
pub use machine::Machine;
pub use network::Network;
pub use write_log::{WriteEntry, WriteLog};

use std::sync::Arc;

use folder::Folder;

/// What this host offers: names and findings, for `lab check`.
#[must_use]
pub fn host_report() -> Vec<(&'static str, String)> {
    host::report()
}

/// A test's machines, disks and networks, and their common end.
#[derive(Debug, Clone)]
pub struct Lab {
    folder: Arc<Folder>,
}

impl Lab {
    /// A lab whose logs are called `name`.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when its folders can't be created.
    pub fn new(name: &str) -> Result<Self, LabError> {
        Ok(Self { folder: Arc::new(Folder::create(name)?) })
    }

    /// A machine to be described, then booted.
    #[must_use]
    pub fn machine(&self, name: &str) -> MachineBuilder {
        MachineBuilder::new(Arc::clone(&self.folder), name)
    }

    /// A new, blank disk of the lab: its contents outlive the machines that use it.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when its file can't be created.
    pub fn disk(&self, name: &str, size_mib: u64) -> Result<Disk, LabError> {
        Disk::create(Arc::clone(&self.folder), name, size_mib)
    }

    /// A new network: an Ethernet switch that lives in this process.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when its socket can't be created.
    pub fn network(&self, name: &str) -> Result<Network, LabError> {
        Network::create(&self.folder, name)
    }

    /// Keeps the logs, whatever happens.
    pub fn keep_logs(&self) {
        self.folder.keep_logs(true);
    }

    /// The failures so far were what the test wanted: they are no reason to keep the logs.
    pub fn forget_failures(&self) {
        self.folder.keep_logs(false);
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> &std::path::Path {
        self.folder.logs()
    }
}
