//! From registers to rings that lie in guest memory.

use virtio_queue::{Queue as Ring, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::common::QueueRegisters;
use crate::memory::Memory;

/// Why a queue cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RingError {
    /// A size or an address breaks a rule of §2.7.
    #[error("{0}")]
    Rule(String),
    /// A part of it does not lie in guest memory.
    #[error("the {part}, {size} bytes at {address:#x}, is outside guest memory")]
    Outside {
        /// Which part.
        part: &'static str,
        /// Where it begins.
        address: u64,
        /// Its size.
        size: usize,
    },
}

impl QueueRegisters {
    /// The ring they describe, in `memory`.
    pub(super) fn to_ring(&self, memory: &Memory, has_event_idx: bool) -> Result<Ring, RingError> {
        let ring = Ring::try_from(QueueState {
            max_size: self.size_max,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: has_event_idx,
            size: self.size,
            ready: true,
            desc_table: self.descriptor_table,
            avail_ring: self.available_ring,
            used_ring: self.used_ring,
        })
        .map_err(|error| RingError::Rule(error.to_string()))?;
        // §2.7: 16 bytes a descriptor; 6 and 2 for each entry; 6 and 8 for each entry.
        let size = usize::from(self.size);
        let parts = [
            ("descriptor table", self.descriptor_table, 16 * size),
            ("available ring", self.available_ring, 6 + 2 * size),
            ("used ring", self.used_ring, 6 + 8 * size),
        ];
        for (part, address, size) in parts {
            if memory.get_slice(GuestAddress(address), size).is_err() {
                return Err(RingError::Outside { part, address, size });
            }
        }
        Ok(ring)
    }

    /// Keeps where the device got to.
    pub(super) fn keep(&mut self, ring: &Ring) {
        self.next_available = ring.next_avail();
        self.next_used = ring.next_used();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn registers() -> QueueRegisters {
        QueueRegisters {
            size_max: 16,
            size: 8,
            is_enabled: true,
            descriptor_table: 0x1000,
            available_ring: 0x2000,
            used_ring: 0x3000,
            next_available: 0xfffe,
            next_used: 0xfffd,
        }
    }

    #[test]
    fn a_ring_goes_on_where_it_was() {
        let memory = testing::memory(1 << 16);
        let mut registers = registers();
        let mut ring = registers.to_ring(&memory, true).unwrap();
        assert_eq!((ring.size(), ring.next_avail(), ring.next_used()), (8, 0xfffe, 0xfffd));
        assert!(ring.event_idx_enabled() && ring.ready());
        ring.set_next_avail(1);
        registers.keep(&ring);
        assert_eq!((registers.next_available, registers.next_used), (1, 0xfffd));
    }

    /// §2.7: alignment 16, 2 and 4.
    #[test]
    fn rings_are_aligned_and_in_memory() {
        let memory = testing::memory(1 << 16);
        let refused = |change: &dyn Fn(&mut QueueRegisters)| {
            let mut registers = registers();
            change(&mut registers);
            registers.to_ring(&memory, false).unwrap_err()
        };
        assert!(matches!(refused(&|r| r.descriptor_table = 8), RingError::Rule(_)));
        assert!(matches!(refused(&|r| r.available_ring = 1), RingError::Rule(_)));
        assert!(matches!(refused(&|r| r.used_ring = 2), RingError::Rule(_)));
        assert!(matches!(refused(&|r| r.size = 3), RingError::Rule(_)));
        let outside = |part, address, size| RingError::Outside { part, address, size };
        let end = 1 << 16;
        assert_eq!(
            refused(&|r| r.descriptor_table = end - 112),
            outside("descriptor table", end - 112, 128)
        );
        assert_eq!(refused(&|r| r.available_ring = end), outside("available ring", end, 22));
        assert_eq!(
            refused(&|r| r.used_ring = u64::MAX - 3),
            outside("used ring", u64::MAX - 3, 70)
        );
    }
}
