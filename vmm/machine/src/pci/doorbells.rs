//! Places where a guest kicks queues: KVM signals an eventfd, and the vCPU goes on.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_virtio::pci::Doorbell;

/// The doorbells of one function.
pub(super) struct Doorbells {
    vm: Arc<VmFd>,
    registered: Mutex<Vec<Doorbell>>,
}

impl Doorbells {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, registered: Mutex::default() }
    }

    /// These, and no others. Each change is a system call that waits for all processors, so what
    /// stays is left alone. No length and no value is asked for: that is what KVM recognizes
    /// without decoding the guest's instruction.
    pub(super) fn set(&self, wanted: &[Doorbell]) {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(|old| {
            let stays = wanted.iter().any(|new| is_same(old, new));
            if !stays
                && let Err(error) = self.vm.unregister_ioevent(&old.kick, &at(old), NoDatamatch)
            {
                let address = old.address;
                tracing::warn!(address, %error, "a doorbell cannot be removed");
            }
            stays
        });
        for new in wanted {
            if registered.iter().any(|old| is_same(old, new)) {
                continue;
            }
            match self.vm.register_ioevent(&new.kick, &at(new), NoDatamatch) {
                Ok(()) => registered.push(new.clone()),
                Err(error) => {
                    let address = new.address;
                    tracing::debug!(address, %error, "kicks exit: no doorbell");
                }
            }
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.set(&[]);
    }
}

fn is_same(a: &Doorbell, b: &Doorbell) -> bool {
    a.address == b.address && Arc::ptr_eq(&a.kick, &b.kick)
}

const fn at(doorbell: &Doorbell) -> IoEventAddress {
    IoEventAddress::Mmio(doorbell.address)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::testing;

    #[test]
    fn only_what_changes_is_told_to_kvm() {
        let Some(vm) = testing::vm() else { return };
        let bell = |address| {
            let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            Doorbell { address, kick }
        };
        let (a, b) = (bell(0xe000_0000), bell(0xe000_0004));
        let doorbells = Doorbells::new(Arc::clone(&vm));
        doorbells.set(&[a.clone(), b.clone()]);
        // KVM refuses what it has already, so a second registration would be left out.
        doorbells.set(&[b.clone(), a.clone()]);
        assert_eq!(doorbells.registered.lock().unwrap().len(), 2);
        vm.register_ioevent(&a.kick, &at(&a), NoDatamatch).unwrap_err();
        doorbells.set(std::slice::from_ref(&b));
        vm.register_ioevent(&a.kick, &at(&a), NoDatamatch).unwrap();
        let taken = bell(0xe000_0000);
        doorbells.set(&[b.clone(), taken]);
        assert_eq!(doorbells.registered.lock().unwrap().len(), 1);
        drop(doorbells);
        vm.register_ioevent(&b.kick, &at(&b), NoDatamatch).unwrap();
    }
}
