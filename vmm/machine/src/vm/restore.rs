//! A VM that goes on from a snapshot.
//!
//! It is built like any other from its description, with three differences: memory begins with the
//! snapshot's, each device comes into the slot in which its guest found it, and before the first
//! instruction CPUs, KVM's devices and ours are given the state they had. The guest learns of it when
//! it runs: its generation id is another, its socket device says that all connections are gone, and
//! each device that its configuration may have changed.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};

use kvm_ioctls::Kvm;
use vmm_spec::VerifiedSpec;
use vmm_spec::restore::{RestoreClock, RestoreMemory, RestoreSpec};

use super::{Shared, VmError};
use crate::machine::Clocks;
use crate::memory::{Beginning, Filling};
use crate::snapshot::{SavedVm, Snapshot};
use crate::{Machine, MachineConfig};

/// Runs the VM of `spec`, which is the clone of the one in `snapshot` that `restore` asks for, until
/// it ends.
///
/// # Errors
/// [`VmError`] when it cannot be started; once it runs, everything is an [`Exit`](vmm_spec::Exit).
pub fn restore(
    spec: &VerifiedSpec,
    restore: &RestoreSpec,
    snapshot: Snapshot,
) -> Result<vmm_spec::Exit, VmError> {
    super::run_from(spec, Some(Origin::new(restore, snapshot)))
}

/// What a VM begins with.
pub(super) struct Origin {
    saved: SavedVm,
    memory: Beginning,
    clocks: Clocks,
    /// It waits for somebody to resume it.
    pub(super) waits: bool,
}

/// Slots of devices, by kind and id; each is taken once.
pub(super) type Places = BTreeMap<(String, String), usize>;

impl Origin {
    pub(super) fn new(restore: &RestoreSpec, snapshot: Snapshot) -> Self {
        let how = match restore.memory {
            RestoreMemory::Lazy => Filling::Map,
            RestoreMemory::Copy => Filling::Copy,
        };
        let clocks = match restore.clock {
            RestoreClock::Advance => Clocks::Advance,
            RestoreClock::Continue => Clocks::Continue,
        };
        let Snapshot { saved, memory: image, .. } = snapshot;
        Self { saved, memory: Beginning { image, how }, clocks, waits: restore.paused }
    }

    /// The file that memory comes from, which is open already.
    pub(super) fn descriptor(&self) -> RawFd {
        self.memory.image.as_raw_fd()
    }

    /// Where its devices were.
    pub(super) fn places(&self) -> Places {
        let places = self.saved.places.iter();
        places.map(|place| ((place.kind.clone(), place.id.clone()), place.slot)).collect()
    }

    /// The machine, with its memory.
    pub(super) fn machine(&self, kvm: &Kvm, config: MachineConfig) -> Result<Machine, VmError> {
        Ok(Machine::from_memory(kvm, config, &self.memory)?)
    }

    /// Gives CPUs and devices the state that they had, before the first instruction.
    pub(super) fn give_to(self, shared: &Shared) -> Result<(), VmError> {
        shared.bus.restore(self.saved.functions)?;
        shared.machine_mut().restore(&self.saved.machine, self.clocks)?;
        Ok(())
    }
}
