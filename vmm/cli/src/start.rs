//! Where the command becomes a machine.

use anyhow::bail;
use vmm_spec::restore::RestoreSpec;
use vmm_spec::{Exit, VerifiedSpec};

/// Runs a VM until it ends.
pub(crate) fn start(spec: &VerifiedSpec) -> anyhow::Result<Exit> {
    bail!("{}: this build has no machine to boot it in", spec.kernel.display())
}

/// Runs a VM from a snapshot until it ends.
pub(crate) fn restore(spec: &RestoreSpec) -> anyhow::Result<Exit> {
    bail!("{}: this build has no machine to restore it in", spec.snapshot.display())
}
