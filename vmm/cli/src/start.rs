//! Where the command becomes a machine.

use vmm_machine::snapshot::Snapshot;
use vmm_machine::vm;
use vmm_spec::restore::RestoreSpec;
use vmm_spec::{Exit, VerifiedSpec};

/// Runs a VM until it ends.
pub(crate) fn start(spec: &VerifiedSpec) -> anyhow::Result<Exit> {
    Ok(vm::run(spec)?)
}

/// Runs a VM from a snapshot until it ends.
pub(crate) fn restore(restore: &RestoreSpec) -> anyhow::Result<Exit> {
    let snapshot = Snapshot::open(&restore.snapshot)?;
    let spec = restore.apply(snapshot.spec().clone())?;
    if restore.verify {
        snapshot.verify()?;
    }
    Ok(vm::restore(&spec, restore, snapshot)?)
}
