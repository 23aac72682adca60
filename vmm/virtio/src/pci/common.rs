//! The common configuration registers (virtio 1.3 §4.1.4.3), and what a driver may do when (§3.1).
//!
//! ```text
//!   0 ──► ACKNOWLEDGE, DRIVER ──features──► FEATURES_OK ──queues──► DRIVER_OK ──► serving
//!   ▲                                                                                │
//!   └───────────────────────────── reset: 0 written ◄────────────────────────────────┘
//! ```
//!
//! Registers only: what must happen for a write is told as an [`Effect`], and done by the
//! transport. Reads may have any width. A write must have its field's width, or be one half of a
//! 64-bit field (§4.1.3.1); others are dropped, as are writes that the state does not allow:
//!
//! | field | may be written |
//! |---|---|
//! | driver features | until `FEATURES_OK` |
//! | a queue's size and addresses | until that queue is enabled |
//! | a queue's enable | until `DRIVER_OK`, and only to 1 |
//! | vectors, selectors | always |
//! | status | to add bits, or to 0 |
//!
//! `VIRTIO_F_RING_RESET`, `VIRTIO_F_NOTIFICATION_DATA` and the administration queue are not on
//! offer: queues that stop together are one mechanism, and no driver needs more to run.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::interrupts::Interrupts;

/// The size of the registers, up to and with `queue_device`.
pub(super) const COMMON_SIZE: u8 = 0x38;

/// `ACKNOWLEDGE`: the guest has seen the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// `DRIVER`: it has a driver for it.
pub(super) const DRIVER: u8 = 2;
/// `DRIVER_OK`: the driver is ready.
pub(super) const DRIVER_OK: u8 = 4;
/// `FEATURES_OK`: features are negotiated.
pub(super) const FEATURES_OK: u8 = 8;
/// `DEVICE_NEEDS_RESET`: the device cannot go on. Never in [`Common::status`]; a unit sets it.
pub(super) const NEEDS_RESET: u8 = 64;
/// `FAILED`: the driver has given up.
pub(super) const FAILED: u8 = 128;
const DRIVER_BITS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// `VIRTIO_F_VERSION_1`, which every driver must accept: there is no legacy interface.
pub(super) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Bits 24 to 49 are the transport's and the ring's (§6): of those, a device may offer
/// these only.
const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
const DEVICE_FEATURES: u64 = 0x00ff_ffff | 0xfffc_0000_0000_0000;

/// What the transport has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The driver is ready.
    Activate,
    /// The driver wants a fresh device.
    Reset,
}

/// The registers.
pub(super) struct Common {
    offered: u64,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) status: u8,
    pub(super) queues: Vec<QueueRegisters>,
}

/// One queue's registers; its vector is with the interrupts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueRegisters {
    pub(super) size_max: u16,
    pub(super) size: u16,
    pub(super) is_enabled: bool,
    pub(super) descriptor_table: u64,
    pub(super) available_ring: u64,
    pub(super) used_ring: u64,
    /// Where the device goes on in the available ring; kept while its units are stopped.
    pub(super) next_available: u16,
    /// Where it goes on in the used ring.
    pub(super) next_used: u16,
}

impl Common {
    /// The registers of a device that offers `features` and queues of these sizes.
    pub(super) fn new(features: u64, queue_sizes: &[u16]) -> Self {
        Self {
            offered: features & (DEVICE_FEATURES | RING_FEATURES) | VERSION_1,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            queues: queue_sizes.iter().map(|&size| QueueRegisters::new(size)).collect(),
        }
    }

    /// What a device reset leaves.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.size_max).collect();
        *self = Self::new(self.offered, &sizes);
    }

    /// The feature bits on offer.
    pub(super) const fn offered(&self) -> u64 {
        self.offered
    }

    /// Whether a driver may choose these features.
    pub(super) const fn are_acceptable(&self, features: u64) -> bool {
        features & !self.offered == 0 && features & VERSION_1 != 0
    }

    /// All registers as they read now.
    pub(super) fn image(
        &self,
        status: u8,
        generation: u8,
        interrupts: &Interrupts,
    ) -> [u8; COMMON_SIZE as usize] {
        let mut image = [0; COMMON_SIZE as usize];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(0x10, &interrupts.config_vector().to_le_bytes());
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(0x14, &[status, generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        // §4.1.4.3.1: a queue that does not exist has size 0.
        let Some(queue) = self.queues.get(usize::from(self.queue_select)) else { return image };
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &interrupts.queue_vector(self.queue_select).to_le_bytes());
        put(0x1c, &u16::from(queue.is_enabled).to_le_bytes());
        put(0x1e, &self.queue_select.to_le_bytes());
        put(0x20, &queue.descriptor_table.to_le_bytes());
        put(0x28, &queue.available_ring.to_le_bytes());
        put(0x30, &queue.used_ring.to_le_bytes());
        image
    }

    /// The driver wrote `data` at `offset`.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], interrupts: &Interrupts) -> Effect {
        match *data {
            [value] if offset == 0x14 => return self.write_status(value),
            [a, b] => self.write_16(offset, u16::from_le_bytes([a, b]), interrupts),
            [a, b, c, d] => self.write_32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, 0x20 | 0x28 | 0x30) => {
                self.write_32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Effect::None
    }

    fn write_16(&mut self, offset: u64, value: u16, interrupts: &Interrupts) {
        match offset {
            0x10 => interrupts.set_config_vector(value),
            0x16 => self.queue_select = value,
            0x18 => {
                if let Some(queue) = self.unfixed_queue()
                    && value.is_power_of_two()
                    && value <= queue.size_max
                {
                    queue.size = value;
                }
            }
            0x1a => interrupts.set_queue_vector(self.queue_select, value),
            0x1c => {
                // §4.1.4.3.2: a driver must not write 0, nor after `DRIVER_OK`.
                if value == 1
                    && self.status & DRIVER_OK == 0
                    && let Some(queue) = self.unfixed_queue()
                {
                    queue.is_enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_32(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_feature_select, value);
            }
            0x20..0x38 if offset.is_multiple_of(4) => {
                let Some(queue) = self.unfixed_queue() else { return };
                let field = match offset {
                    0x20 | 0x24 => &mut queue.descriptor_table,
                    0x28 | 0x2c => &mut queue.available_ring,
                    _ => &mut queue.used_ring,
                };
                set_half(field, u32::from(offset & 4 != 0), value);
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // §2.1.1: a driver must not clear bits. `NEEDS_RESET` is the device's.
        let mut added = value & DRIVER_BITS & !self.status;
        if self.status & !value != 0 {
            return Effect::None;
        }
        let is_known = value & (ACKNOWLEDGE | DRIVER) == ACKNOWLEDGE | DRIVER;
        if added & FEATURES_OK != 0 && !(is_known && self.are_acceptable(self.driver_features)) {
            // §3.1.1, step 6: the driver reads back whether the bit stayed.
            added &= !FEATURES_OK;
        }
        if (self.status | added) & (FEATURES_OK | FAILED) != FEATURES_OK {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    /// The selected queue, if the driver may still change where it lies.
    fn unfixed_queue(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.is_enabled)
    }
}

impl QueueRegisters {
    const fn new(size_max: u16) -> Self {
        Self {
            size_max,
            size: size_max,
            is_enabled: false,
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
            next_available: 0,
            next_used: 0,
        }
    }
}

/// The half of a 64-bit value that a selector means; there are two.
const fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pci::msix::Msix;
    use crate::pci::testing::FakeHost;

    fn rig() -> (Common, Interrupts) {
        let msix = Msix::new(3, Arc::new(FakeHost::default()));
        (Common::new(1 << 5 | 1 << 40, &[64, 8]), Interrupts::new(2, Arc::clone(msix.vectors())))
    }

    fn read<const N: usize>(rig: &(Common, Interrupts), at: usize) -> [u8; N] {
        let image = rig.0.image(rig.0.status, 7, &rig.1);
        image[at..at + N].try_into().unwrap()
    }

    fn write(rig: &mut (Common, Interrupts), at: u64, data: &[u8]) -> Effect {
        rig.0.write(at, data, &rig.1)
    }

    fn negotiate(rig: &mut (Common, Interrupts)) {
        write(rig, 0x14, &[1]);
        write(rig, 0x14, &[3]);
        write(rig, 0x08, &[1, 0, 0, 0]);
        write(rig, 0x0c, &[1, 0, 0, 0]);
        write(rig, 0x14, &[11]);
        assert_eq!(rig.0.status, 11);
    }

    /// §6: a device cannot offer what its transport does not know.
    #[test]
    fn features_read_in_halves_and_reserved_ones_are_not_offered() {
        let mut rig = rig();
        assert_eq!(read(&rig, 4), [1 << 5, 0, 0, 0]);
        write(&mut rig, 0, &[1, 0, 0, 0]);
        assert_eq!(read(&rig, 4), [1, 0, 0, 0]);
        write(&mut rig, 0, &[2, 0, 0, 0]);
        assert_eq!(read(&rig, 4), [0; 4]);
    }

    /// §3.1.1 and §6.1: no version 1, or a feature that is not on offer: no `FEATURES_OK`.
    #[test]
    fn features_must_be_acceptable() {
        let mut rig = rig();
        write(&mut rig, 0x14, &[3]);
        write(&mut rig, 0x14, &[11]);
        assert_eq!(rig.0.status, 3, "without version 1");
        write(&mut rig, 0x08, &[1, 0, 0, 0]);
        write(&mut rig, 0x0c, &[1, 1, 0, 0]);
        write(&mut rig, 0x14, &[11]);
        assert_eq!(rig.0.status, 3, "with a feature not on offer");
        write(&mut rig, 0x0c, &[1, 0, 0, 0]);
        assert_eq!(write(&mut rig, 0x14, &[15]), Effect::Activate, "both steps at once");
        write(&mut rig, 0x0c, &[0, 0, 0, 0]);
        assert_eq!(rig.0.driver_features, VERSION_1, "fixed after FEATURES_OK");
    }

    #[test]
    fn status_takes_its_steps_in_order() {
        let mut rig = rig();
        assert_eq!(write(&mut rig, 0x14, &[4]), Effect::None);
        assert_eq!(rig.0.status, 0, "DRIVER_OK alone");
        negotiate(&mut rig);
        write(&mut rig, 0x14, &[1]);
        assert_eq!(rig.0.status, 11, "bits are not cleared");
        write(&mut rig, 0x14, &[11 | NEEDS_RESET]);
        assert_eq!(rig.0.status, 11, "the device's bit");
        assert_eq!(write(&mut rig, 0x14, &[0]), Effect::Reset);
        write(&mut rig, 0x14, &[11 | FAILED]);
        assert_eq!(write(&mut rig, 0x14, &[15 | FAILED]), Effect::None, "it gave up");
        rig.0.reset();
        assert_eq!((rig.0.status, rig.0.driver_features), (0, 0));
    }

    #[test]
    fn a_queue_is_set_up_once() {
        let mut rig = rig();
        negotiate(&mut rig);
        assert_eq!(read(&rig, 0x12), [2, 0]);
        write(&mut rig, 0x16, &[1, 0]);
        for bad in [0_u16, 3, 16, 0x8000] {
            write(&mut rig, 0x18, &bad.to_le_bytes());
            assert_eq!(read(&rig, 0x18), [8, 0]);
        }
        write(&mut rig, 0x18, &[4, 0]);
        write(&mut rig, 0x1a, &[2, 0]);
        write(&mut rig, 0x20, &[0x11; 8]);
        write(&mut rig, 0x28, &[0x22; 4]);
        write(&mut rig, 0x2c, &[0x33; 4]);
        write(&mut rig, 0x30, &[0x44; 4]);
        write(&mut rig, 0x1c, &[1, 0]);
        for (at, data) in [(0x18, &[8, 0][..]), (0x20, &[0; 8]), (0x34, &[0; 4]), (0x1c, &[0, 0])] {
            write(&mut rig, at, data);
        }
        assert_eq!(read(&rig, 0x18), [4, 0, 2, 0, 1, 0, 1, 0]);
        let queue = &rig.0.queues[1];
        assert_eq!(queue.descriptor_table, 0x1111_1111_1111_1111);
        assert_eq!(queue.available_ring, 0x3333_3333_2222_2222);
        assert_eq!(queue.used_ring, 0x4444_4444);
        write(&mut rig, 0x1a, &[3, 0]);
        assert_eq!(read(&rig, 0x1a), [0xff; 2], "there are three vectors");
    }

    #[test]
    fn no_queue_is_enabled_once_the_driver_is_ready() {
        let mut rig = rig();
        negotiate(&mut rig);
        assert_eq!(write(&mut rig, 0x14, &[15]), Effect::Activate);
        write(&mut rig, 0x1c, &[1, 0]);
        assert!(!rig.0.queues[0].is_enabled);
    }

    #[test]
    fn a_queue_that_does_not_exist_is_empty() {
        let mut rig = rig();
        write(&mut rig, 0x16, &[2, 0]);
        write(&mut rig, 0x1c, &[1, 0]);
        write(&mut rig, 0x1a, &[0, 0]);
        write(&mut rig, 0x20, &[0xff; 8]);
        assert_eq!(read(&rig, 0x18), [0; 32]);
    }

    /// §4.1.3.1: each field by its own width.
    #[test]
    fn other_widths_and_offsets_are_dropped() {
        let mut rig = rig();
        let before = read::<0x38>(&rig, 0);
        for offset in 0..0x40_u64 {
            for size in [1, 2, 3, 4, 8, 16] {
                let is_natural = match size {
                    1 => offset == 0x14,
                    2 => matches!(offset, 0x10 | 0x16 | 0x18 | 0x1a | 0x1c),
                    4 => offset.is_multiple_of(4) && !matches!(offset, 0x04 | 0x10..0x20),
                    8 => matches!(offset, 0x20 | 0x28 | 0x30),
                    _ => false,
                };
                if !is_natural {
                    write(&mut rig, offset, &[0x02; 16][..size]);
                    assert_eq!(read::<0x38>(&rig, 0), before, "{size} bytes at {offset:#x}");
                }
            }
        }
    }
}
