//! Where the command becomes a machine.

use anyhow::bail;
use vmm_machine::vm;
use vmm_spec::restore::RestoreSpec;
use vmm_spec::{Exit, VerifiedSpec};

/// Runs a VM until it ends.
pub(crate) fn start(spec: &VerifiedSpec) -> anyhow::Result<Exit> {
    Ok(vm::run(spec)?)
}

/// Runs a VM from a snapshot until it ends.
pub(crate) fn restore(spec: &RestoreSpec) -> anyhow::Result<Exit> {
    bail!("{}: snapshots cannot be restored yet", spec.snapshot.display())
}
