//! A mark for whoever watches a machine's processor from outside.
//!
//! `CPUID` always leaves a virtual machine, whatever the VMM and whoever asks, and KVM's tracepoint
//! `kvm_cpuid` shows what was asked for and when: so a leaf that nobody else asks for tells a test above
//! when user space ran. (Ports would do as well, but QEMU's emulation refuses them to user space in a
//! machine that was restored: it does not know a task register that is marked as busy.)

use std::arch::x86_64::__cpuid;
use std::time::{Duration, SystemTime};

use lab_agent::MARK_LEAF;

/// A jump of the wall clock by more than this is one that a host has made: nothing holds a guest up that
/// long.
const JUMP: Duration = Duration::from_secs(4);

/// Makes the mark.
pub(crate) fn mark() {
    std::hint::black_box(__cpuid(MARK_LEAF));
}

/// Spins until the wall clock jumps, as it does when a guest goes on from a snapshot, and marks then.
pub(crate) fn mark_after_away() {
    println!("mark-after-away: spinning");
    let mut last = SystemTime::now();
    loop {
        let now = SystemTime::now();
        if now.duration_since(last).is_ok_and(|passed| passed > JUMP) {
            return mark();
        }
        last = now;
    }
}
