//! What a function needs of KVM: its interrupts and its doorbells.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vmm_virtio::pci::{Doorbell, Host, Message};

use super::doorbells::Doorbells;
use crate::interrupts::{Interrupts, Lines};

/// The host of one function.
pub(super) struct FunctionHost {
    lines: Lines,
    doorbells: Doorbells,
}

impl FunctionHost {
    pub(super) fn new(vm: Arc<VmFd>, interrupts: &Arc<Interrupts>, vector_count: u16) -> Self {
        Self { lines: interrupts.lines(vector_count), doorbells: Doorbells::new(vm) }
    }
}

impl Host for FunctionHost {
    fn connect(&self, vectors: &[(u16, Message)]) -> io::Result<()> {
        self.lines.connect(vectors)
    }

    fn send(&self, vector: u16) {
        self.lines.send(vector);
    }

    fn send_unprepared(&self, message: Message) {
        self.lines.send_unprepared(message);
    }

    fn watch(&self, doorbells: &[Doorbell]) {
        self.doorbells.set(doorbells);
    }
}
