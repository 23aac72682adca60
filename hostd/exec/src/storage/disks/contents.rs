//! What a disk or a partition holds, as far as anybody can tell: nothing, something known, or something.
//!
//! Only what has zeros at both its ends holds nothing. Signatures tell a farmer why a disk is left alone;
//! what no signature explains is somebody's all the same.

use std::io;

use super::Block;

/// Bytes that are looked at, at each end: all that partition tables, RAID, ZFS and file systems begin or
/// end with.
pub(super) const END_SIZE: usize = 1 << 20;

/// What is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// Nothing but zeros.
    Blank,
    /// Something with a name.
    Known(&'static str),
    /// Something.
    Unknown,
}

/// Both ends of a disk or partition.
pub(super) struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Where the tail begins.
    tail_at: u64,
    /// Where it ends.
    size: u64,
}

impl Ends {
    /// Reads `size` bytes' ends, beginning at `start` of the disk.
    pub(super) fn read(disk: &impl Block, start: u64, size: u64) -> io::Result<Self> {
        let end_size = usize::try_from(size).unwrap_or(END_SIZE).min(END_SIZE);
        let (mut head, mut tail) = (vec![0; end_size], vec![0; end_size]);
        let tail_at = size - end_size as u64;
        disk.read_at(&mut head, start)?;
        disk.read_at(&mut tail, start + tail_at)?;
        Ok(Self { head, tail, tail_at, size })
    }

    /// Both, each with its place.
    pub(super) fn parts(&self) -> [(&[u8], u64); 2] {
        [(&self.head, 0), (&self.tail, self.tail_at)]
    }

    /// What they are the ends of.
    pub(super) fn contents(&self) -> Contents {
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if let Some(name) = self.member().or_else(|| self.signature()) {
            Contents::Known(name)
        } else if is_zero(&self.head) && is_zero(&self.tail) {
            Contents::Blank
        } else {
            Contents::Unknown
        }
    }

    /// What this is a part of, beside whatever else it looks like: arrays whose marks are at the end let
    /// each disk of them look like the whole.
    pub(super) fn member(&self) -> Option<&'static str> {
        let at = |place: Option<u64>, magic: &[u8]| {
            let place = place.and_then(|place| place.checked_sub(self.tail_at));
            let place = place.and_then(|place| usize::try_from(place).ok());
            place.is_some_and(|place| {
                self.tail.get(place..).is_some_and(|rest| rest.starts_with(magic))
            })
        };
        let last = |sectors: u64| (self.size / 512).checked_sub(sectors).map(|sector| sector * 512);
        // Versions 1.0 and 0.90 of Linux' software RAID (`md(4)`).
        let version_1_0 = (self.size / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
        let version_0 = (self.size & !0xffff).checked_sub(0x1_0000);
        let is_raid = at(version_1_0, &MD_MAGIC) || at(version_0, &MD_MAGIC);
        if is_raid || self.starts_at(0, &MD_MAGIC) || self.starts_at(4096, &MD_MAGIC) {
            return Some("a part of a RAID array");
        }
        // Of the firmware of RAID controllers and boards.
        let is_firmwares = at(last(1), &[0xde, 0x11, 0xde, 0x11])
            || at(last(1), &[0x11, 0xde, 0x11, 0xde])
            || at(last(2), b"Intel Raid ISM Cfg Sig.");
        is_firmwares.then_some("a part of a RAID array")
    }

    fn signature(&self) -> Option<&'static str> {
        let known = SIGNATURES.iter().find(|(_, place, magic)| self.starts_at(*place, magic));
        if let Some((name, ..)) = known {
            return Some(name);
        }
        // A ring of uberblocks, in either order of bytes (OpenZFS, "ZFS On-Disk Specification" §1.3).
        let is_zfs = (128 << 10..256 << 10).step_by(1024).any(|place| {
            self.starts_at(place, &[0x0c, 0xb1, 0xba, 0x00])
                || self.starts_at(place, &[0, 0, 0, 0, 0x00, 0xba, 0xb1, 0x0c])
        });
        if is_zfs {
            return Some("ZFS");
        }
        (self.tail.len() == END_SIZE && self.tail[END_SIZE - 512..].starts_with(b"EFI PART"))
            .then_some("the rest of a partition table")
            .or_else(|| self.starts_at(510, &[0x55, 0xaa]).then_some(TABLE))
    }

    fn starts_at(&self, place: usize, magic: &[u8]) -> bool {
        self.head.get(place..).is_some_and(|rest| rest.starts_with(magic))
    }
}

/// What a disk with partitions holds.
pub(super) const TABLE: &str = "a partition table";
const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

/// Names, places and bytes. File systems before the first sectors of disks, which they may look like.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("ext4", 1080, &[0x53, 0xef]),
    ("btrfs", 65_600, b"_BHRfS_M"),
    ("XFS", 0, b"XFSB"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LUKS", 16_384, b"SKUL\xba\xbe"),
    ("LVM", 536, b"LVM2 001"),
    ("LVM", 24, b"LVM2 001"),
    ("LVM", 1048, b"LVM2 001"),
    ("LVM", 1560, b"LVM2 001"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 4086, b"SWAP-SPACE"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("FAT", 54, b"FAT12   "),
    ("FAT", 54, b"FAT16   "),
    ("FAT", 82, b"FAT32   "),
    ("squashfs", 0, b"hsqs"),
    ("EROFS", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("F2FS", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("bcachefs", 4120, &[0xc6, 0x85, 0x73, 0xf6]),
    ("bcache", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("ISO 9660", 32_769, b"CD001"),
    ("Ceph", 0, b"bluestore block device"),
    ("DRBD", 0, b"DRBD"),
    ("JFS", 32_768, b"JFS1"),
    ("ReiserFS", 65_588, b"ReIsEr"),
    ("NILFS2", 1030, &[0x34, 0x34]),
    ("HFS+", 1024, b"H+"),
    ("APFS", 32, b"NXSB"),
    ("UFS", 8192 + 1372, &[0x54, 0x19, 0x01, 0x00]),
    (TABLE, 512, b"EFI PART"),
    (TABLE, 4096, b"EFI PART"),
];

#[cfg(test)]
mod tests {
    use super::super::testing::Memory;
    use super::*;

    const SIZE: u64 = 8 << 20;

    fn contents(writes: &[(u64, &[u8])]) -> Contents {
        let disk = Memory::new(SIZE);
        for (place, bytes) in writes {
            disk.write_at(bytes, *place).unwrap();
        }
        Ends::read(&disk, 0, SIZE).unwrap().contents()
    }

    #[test]
    fn only_zeros_are_nothing() {
        assert_eq!(contents(&[]), Contents::Blank);
        for place in [0, 700_000, SIZE - 1, SIZE - END_SIZE as u64] {
            assert_eq!(contents(&[(place, &[1])]), Contents::Unknown, "{place}");
        }
        // A disk is not read as a whole.
        assert_eq!(contents(&[(SIZE / 2, &[1])]), Contents::Blank);
    }

    #[test]
    fn what_disks_hold_has_a_name() {
        for (name, place, magic) in SIGNATURES {
            if *place < END_SIZE {
                let found = contents(&[(*place as u64, magic)]);
                assert!(matches!(found, Contents::Known(_)), "{name} at {place}: {found:?}");
            }
        }
        let known = |writes: &[(u64, &[u8])]| match contents(writes) {
            Contents::Known(name) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(known(&[(1080, &[0x53, 0xef])]), "ext4");
        assert_eq!(known(&[(65_600, b"_BHRfS_M")]), "btrfs");
        assert_eq!(known(&[(510, &[0x55, 0xaa])]), TABLE);
        assert_eq!(known(&[(SIZE - 512, b"EFI PART")]), "the rest of a partition table");
        assert_eq!(known(&[((128 << 10) + 4096, &[0x0c, 0xb1, 0xba, 0])]), "ZFS");
        let raid = "a part of a RAID array";
        for place in [4096, SIZE - 16 * 512, SIZE - 0x1_0000] {
            assert_eq!(known(&[(place, &MD_MAGIC)]), raid);
        }
        // Whatever each of its disks looks like.
        assert_eq!(known(&[(SIZE - 16 * 512, &MD_MAGIC), (512, b"EFI PART")]), raid);
        assert_eq!(known(&[(SIZE - 1024, b"Intel Raid ISM Cfg Sig.")]), raid);
    }

    #[test]
    fn a_partition_smaller_than_what_is_looked_at_is_looked_at() {
        let disk = Memory::new(SIZE);
        disk.write_at(b"XFSB", 4096).unwrap();
        assert_eq!(Ends::read(&disk, 4096, 8192).unwrap().contents(), Contents::Known("XFS"));
        assert_eq!(Ends::read(&disk, 16_384, 8192).unwrap().contents(), Contents::Blank);
    }
}
