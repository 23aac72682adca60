//! An interrupt line: a pin of the I/O APIC.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;

/// A pin that interrupts on its rising edge.
///
/// By KVM's call rather than by a descriptor: what hangs on these pins speaks rarely, and a
/// descriptor would cost each machine its making.
#[derive(Clone, Debug)]
pub(crate) struct Line(Target);

#[derive(Clone, Debug)]
enum Target {
    Kvm {
        vm: Arc<VmFd>,
        gsi: u32,
    },
    #[cfg(test)]
    Count(vmm_virtio::Counter),
}

impl Line {
    pub(crate) const fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self(Target::Kvm { vm, gsi })
    }

    /// A line that leads to a counter.
    #[cfg(test)]
    pub(crate) const fn counting(counter: vmm_virtio::Counter) -> Self {
        Self(Target::Count(counter))
    }

    /// Raises it and lets it fall.
    pub(crate) fn pulse(&self) -> io::Result<()> {
        match &self.0 {
            Target::Kvm { vm, gsi } => {
                vm.set_irq_line(*gsi, true)?;
                vm.set_irq_line(*gsi, false)?;
            }
            #[cfg(test)]
            Target::Count(counter) => counter.increment(),
        }
        Ok(())
    }
}
