//! Which vector a queue or a configuration change raises (virtio 1.3 §4.1.4.5, §4.1.5.1.2).
//!
//! This is what a device's units hold as their [`Interrupt`], on threads of their own: no lock of
//! the function is taken here, only that of the vector that fires.
//!
//! There is no interrupt pin: a driver uses MSI-X, or polls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use super::msix::Vectors;
use crate::Interrupt;

/// `VIRTIO_MSI_NO_VECTOR`: nothing is to be raised.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// `ISR` bit: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// `ISR` bit: the configuration has changed.
const ISR_CONFIG: u8 = 2;

/// The interrupts of one transport.
pub(super) struct Interrupts {
    vectors: Arc<Vectors>,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    isr: AtomicU8,
    uses_msix: AtomicBool,
}

impl Interrupts {
    /// None assigned yet.
    pub(super) fn new(queue_count: usize, vectors: Arc<Vectors>) -> Self {
        Self {
            vectors,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queue_count).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            uses_msix: AtomicBool::new(false),
        }
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Relaxed)
    }

    /// §4.1.5.1.2.1: what cannot be mapped reads back as [`NO_VECTOR`].
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.checked(vector), Ordering::Relaxed);
    }

    /// The vector of queue `index`.
    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        self.queues.get(usize::from(index)).map_or(NO_VECTOR, |slot| slot.load(Ordering::Relaxed))
    }

    /// As for [`set_config_vector`](Self::set_config_vector).
    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queues.get(usize::from(index)) {
            slot.store(self.checked(vector), Ordering::Relaxed);
        }
    }

    /// Whether the guest has MSI-X enabled.
    pub(super) fn use_msix(&self, is_enabled: bool) {
        self.uses_msix.store(is_enabled, Ordering::Relaxed);
    }

    /// The `ISR` register, which is empty once it was read.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The `ISR` register, for a snapshot.
    pub(super) fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// The `ISR` register, from a snapshot.
    pub(super) fn set_isr(&self, isr: u8) {
        self.isr.store(isr & (ISR_QUEUE | ISR_CONFIG), Ordering::Release);
    }

    /// What a device reset leaves.
    pub(super) fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Relaxed);
        for slot in &self.queues {
            slot.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::Release);
    }

    fn checked(&self, vector: u16) -> u16 {
        if self.vectors.has(vector) { vector } else { NO_VECTOR }
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, index: u16) {
        if self.uses_msix.load(Ordering::Relaxed) {
            self.vectors.fire(self.queue_vector(index));
        } else {
            self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }
    }

    fn config(&self) {
        // §4.1.4.5.1: with MSI-X or without.
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.vectors.fire(self.config_vector());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::msix::Msix;
    use crate::pci::testing::{Event, FakeHost};
    use crate::pci::{Host, Message};

    #[test]
    fn each_cause_has_its_vector_and_its_isr_bit() {
        let host = Arc::new(FakeHost::default());
        let mut msix = Msix::new(2, Arc::clone(&host) as Arc<dyn Host>);
        let interrupts = Interrupts::new(1, Arc::clone(msix.vectors()));
        interrupts.queue(0);
        interrupts.config();
        assert_eq!((interrupts.take_isr(), interrupts.take_isr()), (3, 0));
        for vector in 0..2_u8 {
            msix.write_table(u64::from(vector) * 16 + 8, &[vector + 40, 0, 0, 0, 0, 0, 0, 0]);
        }
        msix.set_control(0x8000);
        interrupts.use_msix(true);
        interrupts.set_config_vector(0);
        interrupts.set_queue_vector(0, 1);
        interrupts.queue(0);
        interrupts.queue(7);
        interrupts.config();
        let sent = [41, 40].map(|data| Event::Unprepared(Message { address: 0, data }));
        assert_eq!(host.take(), sent);
        assert_eq!(interrupts.take_isr(), 2);
        interrupts.set_config_vector(2);
        assert_eq!(interrupts.config_vector(), NO_VECTOR);
        interrupts.reset();
        assert_eq!(interrupts.queue_vector(0), NO_VECTOR);
    }
}
