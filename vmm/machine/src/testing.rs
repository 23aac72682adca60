//! What tests of several modules need.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};

/// A VM with its interrupt controller in the kernel; `None`, with a word about it, where KVM cannot
/// be used.
pub(crate) fn vm() -> Option<Arc<VmFd>> {
    let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => vm,
        Err(error) => {
            eprintln!("skipped: /dev/kvm can't be used here: {error}");
            return None;
        }
    };
    vm.create_irq_chip().expect("an interrupt controller in the kernel");
    Some(Arc::new(vm))
}
