//! A VM as two files, from which it goes on: any number of times, on this host or another.
//!
//! ```text
//!   paused VM ──► SavedVm ──► state     a header with a checksum, then JSON     (state_file.rs)
//!            └──► Ram ──────► memory    the image of memory, holes for zeros,
//!                                       and a page that binds it to its state   (memory_file.rs)
//!
//!   Target: where they go ──► whole and on disk, or not at all                  (target.rs)
//!   Snapshot: opened again, bytes checked ──► vm::restore
//! ```
//!
//! The bytes are in `FORMAT.md`, beside this file. Whether a snapshot fits the host it is restored on
//! is not looked at here: CPUs, devices and KVM say so themselves when they are given their state.
//!
//! Files may be damaged, and may come from anybody. All that is read is bounded before it is read,
//! and a reader believes nothing but what it has checked; what a guest's registers hold is for KVM to
//! refuse.

mod error;
mod memory_file;
mod state_file;
mod target;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmm_spec::restore::{MEMORY_FILE, STATE_FILE};
use vmm_spec::{SPEC_VERSION, VmSpec};

use crate::MachineState;
use crate::memory::Ram;

use error::Problem;
pub use error::SnapshotError;
pub use memory_file::MemoryManifest;
pub(crate) use target::{Target, TargetError};

/// Largest state file that is read or written. 255 CPUs take 10 MiB, a file system of which the guest
/// knows 100,000 files 20.
const STATE_SIZE_MAX: u64 = 64 << 20;

/// What a state file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVm {
    /// The version of the VMM that wrote it, for people.
    pub(crate) vmm_version: String,
    /// The VM's description, with what was plugged in, and ids.
    pub(crate) spec: VmSpec,
    /// CPUs, interrupt controllers, clock, ports.
    pub(crate) machine: MachineState,
    /// Which device is in which slot of the bus.
    pub(crate) places: Vec<Place>,
    /// What the functions on the bus say of themselves, by slot.
    pub(crate) functions: BTreeMap<usize, serde_json::Value>,
    /// The other file.
    pub(crate) memory: MemoryManifest,
}

/// A device and its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) slot: usize,
}

impl SavedVm {
    /// Reads the bytes of a state file.
    ///
    /// # Errors
    /// [`SnapshotError`], for whatever these bytes are.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        Self::parse(bytes).map_err(|problem| problem.of(STATE_FILE))
    }

    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let saved: Self = vmm_spec::read_json(state_file::body(bytes)?)
            .map_err(|error| Problem::Contents { what: error.to_string() })?;
        if saved.spec.version != SPEC_VERSION {
            let what = format!("a description of version {}", saved.spec.version);
            return Err(Problem::Contents { what });
        }
        saved.memory.check(saved.spec.memory.size.bytes())?;
        Ok(saved)
    }

    /// The bytes of a state file.
    fn to_bytes(&self) -> Result<Vec<u8>, Problem> {
        let body = serde_json::to_vec(self)
            .map_err(|error| Problem::Contents { what: error.to_string() })?;
        let bytes = state_file::with_header(&body);
        let size = bytes.len() as u64;
        if size > STATE_SIZE_MAX {
            return Err(Problem::TooLarge { size, size_max: STATE_SIZE_MAX });
        }
        Ok(bytes)
    }

    /// The description of the VM that was saved.
    #[must_use]
    pub const fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// What the functions on the bus say of themselves, by slot.
    #[must_use]
    pub const fn functions(&self) -> &BTreeMap<usize, serde_json::Value> {
        &self.functions
    }
}

/// A snapshot that was opened, and that is what it says it is.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) saved: SavedVm,
    pub(crate) memory: File,
    /// Where both files are, for errors that name them; empty if nobody said.
    directory: PathBuf,
}

impl Snapshot {
    /// Opens the snapshot in a directory.
    ///
    /// # Errors
    /// [`SnapshotError`], which names the file.
    pub fn open(directory: &Path) -> Result<Self, SnapshotError> {
        let open = |name: &str| {
            let path = directory.join(name);
            // A FIFO would keep us waiting.
            let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let opened = File::options().read(true).custom_flags(flags).open(&path);
            opened.map_err(|source| Problem::Host { what: "open", source }.of(path.display()))
        };
        let opened = Self::from_files(open(STATE_FILE)?, open(MEMORY_FILE)?);
        let snapshot = opened.map_err(|error| error.within(directory))?;
        Ok(Self { directory: directory.to_owned(), ..snapshot })
    }

    /// Takes the two files of a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`], which names the file.
    pub fn from_files(state: File, memory: File) -> Result<Self, SnapshotError> {
        let saved = read_whole(state)
            .and_then(|bytes| SavedVm::parse(&bytes))
            .map_err(|problem| problem.of(STATE_FILE))?;
        let checked = saved.memory.check_file(&memory);
        checked.map_err(|problem| problem.of(MEMORY_FILE))?;
        Ok(Self { saved, memory, directory: PathBuf::new() })
    }

    /// The description of the VM that was saved.
    #[must_use]
    pub const fn spec(&self) -> &VmSpec {
        &self.saved.spec
    }

    /// Reads all of the memory's image, and compares it with the checksums in the state.
    ///
    /// # Errors
    /// [`SnapshotError`] that says which part is not what was saved.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        let verified = self.saved.memory.verify(&self.memory);
        verified.map_err(|problem| problem.of(MEMORY_FILE).within(&self.directory))
    }
}

/// Writes a snapshot to its two files: memory, and what `save` makes of its manifest.
pub(crate) fn write(
    target: &Target,
    ram: &Ram,
    pagemap: Option<&File>,
    save: impl FnOnce(MemoryManifest) -> SavedVm,
) -> Result<(), SnapshotError> {
    let memory = MemoryManifest::write(target.memory(), ram, pagemap);
    let memory = memory.map_err(|problem| problem.of(MEMORY_FILE))?;
    // The state last: without it there is no snapshot.
    let bytes = save(memory).to_bytes().map_err(|problem| problem.of(STATE_FILE))?;
    let written = state_file::write(target.state(), &bytes);
    written.map_err(|source| Problem::Host { what: "write", source }.of(STATE_FILE))
}

fn read_whole(file: File) -> Result<Vec<u8>, Problem> {
    let host = |source| Problem::Host { what: "read", source };
    let metadata = file.metadata().map_err(host)?;
    if !metadata.is_file() {
        return Err(Problem::NotAFile);
    }
    let (size, size_max) = (metadata.len(), STATE_SIZE_MAX);
    if size > size_max {
        return Err(Problem::TooLarge { size, size_max });
    }
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(size).read_to_end(&mut bytes).map_err(host)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
