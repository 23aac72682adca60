//! The CPU's time stamp counter.
//!
//! Under QEMU's `-icount shift=0` it counts executed instructions (plus the time the CPU was
//! idle), repeatable from run to run: the lab's measure of cost.

/// Reads the counter.
pub(crate) fn now() -> u64 {
    // SAFETY: RDTSC has no memory effects; it faults only if CR4.TSD is set, which Linux does
    // for a thread that asked for it by prctl(PR_SET_TSC), and none here does.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_goes_up() {
        let first = super::now();
        assert!((0..1_000_000).any(|_| super::now() > first));
    }
}
