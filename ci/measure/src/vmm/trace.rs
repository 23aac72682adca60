//! What the machine's kernel sees of a guest: KVM's tracepoints.
//!
//! `kvm_cpuid` tells of a leaf by which a guest marks its first instructions, with the time stamp counter.
//! `kvm_exit` is counted by the kernel in a histogram, which costs each exit something: so the
//! two are not taken from one run.

use anyhow::{Context, Result};
use lab::{MARK_LEAF, Machine, Output};

/// Where tracing is.
const FOLDER: &str = "/sys/kernel/debug/tracing";

/// Tracing, switched on.
pub(super) struct Tracer(());

impl Tracer {
    pub(super) fn start(machine: &Machine) -> Result<Self> {
        shell(
            machine,
            &format!(
                "echo x86-tsc > trace_clock && \
                 echo 'function == {MARK_LEAF:#x}' > events/kvm/kvm_cpuid/filter && \
                 echo 1 > events/kvm/kvm_cpuid/enable"
            ),
        )?;
        Ok(Self(()))
    }

    /// Forgets what was seen so far.
    pub(super) fn clear(&self, machine: &Machine) -> Result<()> {
        shell(machine, "echo > trace").map(drop)
    }

    /// When the first mark after `start` was made.
    pub(super) fn mark_after(&self, machine: &Machine, start: u64) -> Result<Option<u64>> {
        let text = shell(machine, "cat trace")?.text();
        Ok(text.lines().filter_map(time_of_mark).find(|time| *time >= start))
    }

    /// Counts exits from now on.
    pub(super) fn count_exits(&self, machine: &Machine) -> Result<()> {
        let trigger = "echo 'hist:keys=exit_reason' > events/kvm/kvm_exit/trigger";
        shell(machine, trigger).map(drop)
    }

    /// How many there were; no more are counted.
    pub(super) fn exits(&self, machine: &Machine) -> Result<u64> {
        let script = "cat events/kvm/kvm_exit/hist && \
                      echo '!hist:keys=exit_reason' > events/kvm/kvm_exit/trigger";
        let text = shell(machine, script)?.text();
        hits(&text).with_context(|| format!("no count of exits in: {text}"))
    }
}

fn shell(machine: &Machine, script: &str) -> Result<Output> {
    Ok(machine.command(&["/bin/sh", "-c", script]).current_dir(FOLDER).run()?.success()?)
}

/// The time of a line like `vcpu-71 [000] d..1. 12345: kvm_cpuid: func 4fff5a05 …`.
fn time_of_mark(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(&format!(": kvm_cpuid: func {MARK_LEAF:x} "))?;
    before.rsplit(' ').next()?.parse().ok()
}

/// The total of a histogram.
fn hits(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Hits: "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "           vcpu0-93      [000] d..1.  7352811: kvm_cpuid: func 4fff5a05 idx 0 rax 0 rbx 0 rcx 0 rdx 0, cpuid entry not found";
        assert_eq!(time_of_mark(line), Some(7_352_811));
        assert_eq!(time_of_mark("# tracer: nop"), None);
        assert_eq!(
            hits("{ exit_reason: 1 }\n\nTotals:\n    Hits: 2117\n    Entries: 9\n"),
            Some(2117)
        );
        assert_eq!(hits(""), None);
    }
}
