//! Getting a virtual CPU out of the guest, from another thread.
//!
//! A signal makes `KVM_RUN` return, but only if it comes while the thread is in there. So the
//! kicker first sets `immediate_exit` in the page that KVM shares with us, which makes the next
//! `KVM_RUN` return at once, and then sends the signal: whichever the thread meets first, it comes
//! out, and it clears the flag itself.

use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::{KvmRunWrapper, VcpuFd, VmFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// The flag of one virtual CPU that keeps it out of the guest.
#[derive(Debug)]
pub(crate) struct ExitFlag {
    /// A second mapping of the page, so that no reference of the first one's owner is aliased.
    _mapping: KvmRunWrapper,
    flag: *mut u8,
}

// SAFETY: The pointer leads into the mapping that the value owns, and is only used atomically.
unsafe impl Send for ExitFlag {}
// SAFETY: As above.
unsafe impl Sync for ExitFlag {}

impl ExitFlag {
    pub(crate) fn new(vm: &VmFd, vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        let mut mapping = KvmRunWrapper::mmap_from_fd(vcpu, vm.run_size())?;
        let flag = &raw mut mapping.as_mut_ref().immediate_exit;
        Ok(Self { _mapping: mapping, flag })
    }

    fn set(&self) {
        // SAFETY: The pointer is valid as long as the mapping, which lives as long as `self`; the
        // kernel reads the byte, and all accesses through this mapping are atomic.
        unsafe { AtomicU8::from_ptr(self.flag) }.store(1, Ordering::SeqCst);
    }
}

/// What it takes to kick one virtual CPU.
#[derive(Debug)]
pub(crate) struct Kicker {
    pub(crate) flag: ExitFlag,
    pub(crate) thread: JoinHandle<()>,
}

impl Kicker {
    /// Makes the thread leave the guest, or not enter it.
    pub(crate) fn kick(&self) {
        self.flag.set();
        // The thread may have ended, and then there is nobody to kick.
        let _ = self.thread.kill(SIGRTMIN());
    }
}

/// Installs the handler, once a process: it does nothing, it only has to exist.
pub(crate) fn prepare() -> Result<(), kvm_ioctls::Error> {
    static ONCE: Once = Once::new();
    extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), handle));
    result
}
