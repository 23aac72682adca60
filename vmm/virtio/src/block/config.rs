//! The configuration space and the feature bits of a block device (virtio 1.3 §5.2.3, §5.2.4).
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | `capacity` u64 | in sectors of 512 bytes; changes when the disk is resized |
//! | 8 | `size_max` u32 | not offered: a segment may be of any size |
//! | 12 | `seg_max` u32 | the queue's size less header and status |
//! | 16 | `geometry` | not offered |
//! | 20 | `blk_size` u32 | what requests must be multiples of |
//! | 24 | `topology` | `physical_block_exp` u8, `alignment_offset` u8, `min_io_size` u16, `opt_io_size` u32 |
//! | 32 | `writeback` u8 | the only byte that a driver may write |
//! | 34 | `num_queues` u16 | |
//! | 36 | discard | `max_discard_sectors`, `max_discard_seg`, `discard_sector_alignment`: u32 |
//! | 48 | write zeroes | `max_write_zeroes_sectors`, `max_write_zeroes_seg`: u32, `may_unmap` u8 |
//! | 57 | | zeroes |

use virtio_bindings::virtio_blk as abi;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::request::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_SIZE};
use super::storage::Traits;
use crate::ConfigSpace;

/// Where `writeback` is.
pub(super) const WRITEBACK: u64 = 32;

/// What a driver reads once. A disk of another size, or on another kind of medium, is no surprise.
pub(super) const FIXED: [(&str, std::ops::Range<usize>); 9] = [
    ("seg_max", 12..16),
    ("a block size of", 20..24),
    ("num_queues", 34..36),
    ("max_discard_sectors", 36..40),
    ("max_discard_seg", 40..44),
    ("discard_sector_alignment", 44..48),
    ("max_write_zeroes_sectors", 48..52),
    ("max_write_zeroes_seg", 52..56),
    ("write_zeroes_may_unmap", 56..57),
];

/// Header and status take a descriptor each.
const SEGMENTS_AROUND: u16 = 2;

/// What a device with `traits` offers.
pub(super) fn features(traits: &Traits, queues: u16) -> u64 {
    let always = [
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        abi::VIRTIO_BLK_F_SEG_MAX,
        abi::VIRTIO_BLK_F_BLK_SIZE,
        abi::VIRTIO_BLK_F_TOPOLOGY,
        abi::VIRTIO_BLK_F_FLUSH,
        abi::VIRTIO_BLK_F_CONFIG_WCE,
    ];
    let can_write = !traits.is_read_only;
    let some = [
        (abi::VIRTIO_BLK_F_RO, traits.is_read_only),
        (abi::VIRTIO_BLK_F_MQ, queues > 1),
        (abi::VIRTIO_BLK_F_DISCARD, can_write && traits.has_discard),
        (abi::VIRTIO_BLK_F_WRITE_ZEROES, can_write),
    ];
    let some = some.into_iter().filter_map(|(bit, is_offered)| is_offered.then_some(bit));
    always.into_iter().chain(some).fold(0, |bits, bit| bits | 1 << bit)
}

/// The space of a disk with `traits`.
pub(super) fn space(traits: &Traits, capacity: u64, queues: u16, queue_size: u16) -> ConfigSpace {
    let block_sectors = traits.block_size / 512;
    let exponent = (traits.physical_block_size / traits.block_size).trailing_zeros();
    let mut bytes = Vec::with_capacity(60);
    let mut add = |field: &[u8]| bytes.extend_from_slice(field);
    add(&(capacity / SECTOR_SIZE).to_le_bytes());
    add(&0_u32.to_le_bytes());
    add(&u32::from(queue_size.saturating_sub(SEGMENTS_AROUND).max(1)).to_le_bytes());
    add(&[0; 4]);
    add(&traits.block_size.to_le_bytes());
    let min_io_size = u16::try_from(traits.physical_block_size / traits.block_size).unwrap_or(1);
    add(&[u8::try_from(exponent).unwrap_or(0), 0]);
    add(&min_io_size.to_le_bytes());
    add(&0_u32.to_le_bytes());
    add(&[1, 0]);
    add(&queues.to_le_bytes());
    let has_discard = !traits.is_read_only && traits.has_discard;
    let limits = |is_there: bool| if is_there { [RANGE_SECTORS_MAX, RANGES_MAX] } else { [0; 2] };
    limits(has_discard).iter().for_each(|limit| add(&limit.to_le_bytes()));
    add(&if has_discard { block_sectors } else { 0 }.to_le_bytes());
    limits(!traits.is_read_only).iter().for_each(|limit| add(&limit.to_le_bytes()));
    add(&[u8::from(!traits.is_read_only), 0, 0, 0]);
    ConfigSpace::new(&bytes)
}

/// Tells the driver of another size.
pub(super) fn set_capacity(space: &ConfigSpace, capacity: u64) {
    space.update(|bytes| bytes[..8].copy_from_slice(&(capacity / SECTOR_SIZE).to_le_bytes()));
}

/// Whether `writeback` is set.
pub(super) fn is_writeback(space: &ConfigSpace) -> bool {
    let mut byte = [0];
    space.read(WRITEBACK, &mut byte);
    byte[0] != 0
}

/// Sets `writeback`, of which a driver need not be told.
pub(super) fn set_writeback(space: &ConfigSpace, is_set: bool) {
    space.write_from_driver(WRITEBACK, &[u8::from(is_set)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAITS: Traits = Traits {
        is_read_only: false,
        block_size: 512,
        physical_block_size: 4096,
        has_discard: true,
    };

    fn read<const N: usize>(space: &ConfigSpace, offset: u64) -> [u8; N] {
        let mut bytes = [0xee; N];
        space.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let space = space(&TRAITS, 1 << 30, 4, 256);
        let word = |offset| u32::from_le_bytes(read(&space, offset));
        assert_eq!(u64::from_le_bytes(read(&space, 0)), 1 << 21);
        assert_eq!((word(8), word(12), word(16), word(20)), (0, 254, 0, 512));
        assert_eq!(read(&space, 24), [3, 0, 8, 0, 0, 0, 0, 0]);
        assert_eq!(read(&space, 32), [1, 0, 4, 0]);
        assert_eq!([word(36), word(40), word(44)], [1 << 21, 32, 1]);
        assert_eq!([word(48), word(52), word(56)], [1 << 21, 32, 1]);
        assert_eq!(read(&space, 60), [0; 8]);
        set_capacity(&space, 1 << 20);
        assert_eq!((word(0), space.generation()), (2048, 1));
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let traits = Traits { is_read_only: true, ..TRAITS };
        let bits = features(&traits, 1);
        let has = |bit: u32| bits & 1 << bit != 0;
        assert!(has(abi::VIRTIO_BLK_F_RO) && has(abi::VIRTIO_BLK_F_FLUSH));
        for bit in [abi::VIRTIO_BLK_F_DISCARD, abi::VIRTIO_BLK_F_WRITE_ZEROES, abi::VIRTIO_BLK_F_MQ]
        {
            assert!(!has(bit), "{bit}");
        }
        assert_eq!(read(&space(&traits, 0, 1, 256), 36), [0; 24]);
        assert_eq!(features(&TRAITS, 2) & 1 << abi::VIRTIO_BLK_F_MQ, 1 << 12);
    }
}
