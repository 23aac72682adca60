//! Where the command becomes a machine.

use anyhow::bail;
use vmm_machine::snapshot::Snapshot;
use vmm_machine::vm;
use vmm_spec::restore::RestoreSpec;
use vmm_spec::{Exit, VerifiedSpec};

/// Runs a VM until it ends.
pub(crate) fn start(spec: &VerifiedSpec) -> anyhow::Result<Exit> {
    check_jail(spec)?;
    Ok(vm::run(spec)?)
}

/// Runs a VM from a snapshot until it ends.
pub(crate) fn restore(restore: &RestoreSpec) -> anyhow::Result<Exit> {
    let snapshot = Snapshot::open(&restore.snapshot)?;
    let spec = restore.apply(snapshot.spec().clone())?;
    check_jail(&spec)?;
    if restore.verify {
        snapshot.verify()?;
    }
    Ok(vm::restore(&spec, restore, snapshot)?)
}

/// A description asks for a jail unless it says otherwise. There is none yet, and a guest must not be
/// run with less protection than was asked for.
fn check_jail(spec: &VerifiedSpec) -> anyhow::Result<()> {
    if spec.jail.is_some() {
        bail!("there is no jail yet: start trusted guests with --no-jail");
    }
    tracing::warn!("no jail: a guest that breaks out of its VM has this process's rights");
    Ok(())
}
