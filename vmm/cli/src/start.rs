//! Where the command becomes a machine.

use anyhow::bail;
use vmm_machine::vm;
use vmm_spec::restore::RestoreSpec;
use vmm_spec::{Exit, VerifiedSpec};

/// Runs a VM until it ends.
///
/// A description asks for a jail unless it says otherwise. There is none yet, and a guest must not be
/// run with less protection than was asked for.
pub(crate) fn start(spec: &VerifiedSpec) -> anyhow::Result<Exit> {
    if spec.jail.is_some() {
        bail!("there is no jail yet: start trusted guests with --no-jail");
    }
    tracing::warn!("no jail: a guest that breaks out of its VM has this process's rights");
    Ok(vm::run(spec)?)
}

/// Runs a VM from a snapshot until it ends.
pub(crate) fn restore(spec: &RestoreSpec) -> anyhow::Result<Exit> {
    bail!("{}: snapshots cannot be restored yet", spec.snapshot.display())
}
