//! The ext4 superblock: enough of it to recognise a volume, to give a copy of the template its own
//! identity, and to see that a disk has grown.
//!
//! Layout: Linux `fs/ext4/ext4.h`, `struct ext4_super_block`, 1,024 bytes, little-endian. The
//! template has `metadata_csum_seed`, so a new UUID changes no checksum but the superblock's own.

use crate::bytes::{array, le16, le32, put};

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Size of a block in bytes.
    pub block_size: u64,
    /// Size of the file system in blocks.
    pub block_count: u64,
    /// Blocks in a block group.
    pub blocks_per_group: u32,
    /// Volume label, without its padding.
    pub label: String,
    /// UUID of the volume.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Reads the superblock in the first [`SIZE`] bytes of `bytes`. `None` if there is none: no
    /// magic, impossible sizes, or a checksum that doesn't fit.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SIZE)?;
        if le16(bytes, MAGIC_AT)? != MAGIC {
            return None;
        }
        let block_shift = le32(bytes, 0x18)?;
        if block_shift > 6 {
            return None;
        }
        let summed = le32(bytes, 0x64)? & RO_COMPAT_METADATA_CSUM != 0;
        if summed && le32(bytes, CHECKSUM_AT)? != checksum(bytes) {
            return None;
        }
        let wide = le32(bytes, 0x60)? & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(le32(bytes, 0x150)?) } else { 0 };
        let label: [u8; LABEL_BYTES_MAX] = array(bytes, LABEL_AT)?;
        let end = label.iter().position(|b| *b == 0).unwrap_or(label.len());
        let block_count = high << 32 | u64::from(le32(bytes, 0x04)?);
        if block_count == 0 {
            return None;
        }
        Some(Self {
            block_size: 1024 << block_shift,
            block_count,
            blocks_per_group: le32(bytes, 0x20)?,
            label: String::from_utf8_lossy(label.get(..end)?).into_owned(),
            uuid: array(bytes, UUID_AT)?,
        })
    }

    /// Size of the file system in bytes; saturates on nonsense.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.block_count.saturating_mul(self.block_size)
    }

    /// The block numbers at which copies of the superblock stand (`sparse_super`: groups 1 and the
    /// powers of 3, 5 and 7), the primary one not included.
    #[must_use]
    pub fn backups(&self) -> Vec<u64> {
        let per_group = u64::from(self.blocks_per_group.max(1));
        let groups = self.block_count.div_ceil(per_group);
        let power = |n: u64, base: u64| {
            let mut p = base;
            while p < n {
                p = p.saturating_mul(base);
            }
            p == n
        };
        let sparse = |group: &u64| *group == 1 || [3, 5, 7].iter().any(|base| power(*group, *base));
        (1..groups.min(BACKUP_GROUPS_MAX)).filter(sparse).map(|group| group * per_group).collect()
    }
}

/// What makes a volume itself rather than a copy of the template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// UUID of the volume: random.
    pub uuid: [u8; 16],
    /// Seed of the directory hashes: random, else names that collide could be prepared.
    pub hash_seed: [u8; 16],
    /// Label; at most [`LABEL_BYTES_MAX`] bytes are kept.
    pub label: String,
    /// Seconds since 1970, the volume's birthday.
    pub now: u32,
}

impl Identity {
    /// Gives the superblock in `bytes` this identity and a fresh checksum. `None` if `bytes` is
    /// shorter than a superblock.
    #[must_use]
    pub fn stamp(&self, bytes: &mut [u8]) -> Option<()> {
        let bytes = bytes.get_mut(..SIZE)?;
        let mut label = [0; LABEL_BYTES_MAX];
        label.iter_mut().zip(self.label.bytes()).for_each(|(slot, byte)| *slot = byte);
        put(bytes, UUID_AT, &self.uuid)?;
        put(bytes, 0xec, &self.hash_seed)?;
        put(bytes, LABEL_AT, &label)?;
        for time_at in [0x30, 0x40, 0x108] {
            put(bytes, time_at, &self.now.to_le_bytes())?;
        }
        let sum = checksum(bytes);
        put(bytes, CHECKSUM_AT, &sum.to_le_bytes())
    }
}

/// CRC-32C of the bytes before the checksum field, from all ones, without the final inversion.
fn checksum(superblock: &[u8]) -> u32 {
    !crc32c::crc32c(superblock.get(..CHECKSUM_AT).unwrap_or_default())
}

/// Byte offset of the primary superblock on a disk.
pub const OFFSET: usize = 1024;
/// Size of a superblock in bytes.
pub const SIZE: usize = 1024;
/// Longest label in bytes.
pub const LABEL_BYTES_MAX: usize = 16;

const MAGIC_AT: usize = 0x38;
const MAGIC: u16 = 0xef53;
const UUID_AT: usize = 0x68;
const LABEL_AT: usize = 0x78;
const CHECKSUM_AT: usize = 0x3fc;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// Templates are small; more groups than this have no backups that concern us.
const BACKUP_GROUPS_MAX: u64 = 1 << 10;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A superblock as `mke2fs` would leave it, as far as this module reads it.
    pub(crate) fn superblock(blocks: u64, label: &str) -> Vec<u8> {
        let mut sb = vec![0u8; SIZE];
        put(&mut sb, 0x04, &blocks.to_le_bytes()[..4]).unwrap();
        put(&mut sb, 0x150, &blocks.to_le_bytes()[4..]).unwrap();
        put(&mut sb, 0x18, &2u32.to_le_bytes()).unwrap();
        put(&mut sb, 0x20, &32768u32.to_le_bytes()).unwrap();
        put(&mut sb, MAGIC_AT, &MAGIC.to_le_bytes()).unwrap();
        put(&mut sb, 0x60, &INCOMPAT_64BIT.to_le_bytes()).unwrap();
        put(&mut sb, 0x64, &RO_COMPAT_METADATA_CSUM.to_le_bytes()).unwrap();
        let id = Identity { uuid: [7; 16], hash_seed: [8; 16], label: label.into(), now: 9 };
        id.stamp(&mut sb).unwrap();
        sb
    }

    #[test]
    fn a_superblock_tells_size_and_label() {
        let sb = Superblock::parse(&superblock((1 << 32) + 5, "dezoev3vcf3zk")).unwrap();
        assert_eq!((sb.block_size, sb.block_count), (4096, (1 << 32) + 5));
        assert_eq!(sb.label, "dezoev3vcf3zk");
        assert_eq!(sb.uuid, [7; 16]);
        assert_eq!(sb.size(), ((1 << 32) + 5) * 4096);
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let good = superblock(8192, "x");
        for at in [0x04, 0x38, 0x68, 0x78, 0x200, 0x3fc, 0x3ff] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(Superblock::parse(&bad), None, "byte {at:#x}");
        }
        assert_eq!(Superblock::parse(&good[..SIZE - 1]), None);
        assert_eq!(Superblock::parse(&[]), None);
    }

    #[test]
    fn labels_are_cut_not_spilled() {
        let sb = superblock(1, "a label that is far too long");
        assert_eq!(Superblock::parse(&sb).unwrap().label, "a label that is ");
    }

    #[test]
    fn backups_stand_in_sparse_groups() {
        let mut sb = Superblock::parse(&superblock(32768 * 30, "")).unwrap();
        let groups: Vec<u64> = sb.backups().iter().map(|b| b / 32768).collect();
        assert_eq!(groups, [1, 3, 5, 7, 9, 25, 27]);
        sb.blocks_per_group = 0;
        sb.block_count = u64::MAX;
        assert!(sb.backups().len() < 100);
    }
}
