//! What is on a disk, and what may be done with it.
//!
//! A disk of a workload arrives blank on its first boot and is formatted by us; on every later
//! boot it holds somebody's data. The difference must never be guessed: a disk is blank only if
//! its first and last MiB are all zeros, which rules out every file system, partition table, RAID
//! member and encrypted volume (each keeps its signature there), known to us or not.
//!
//! ```text
//!           marker written      template written      superblock written      marker cleared
//!   Blank ───────────────> Unfinished ─────────> Unfinished ───────────────> Ext4 ──────> Ext4
//! ```
//!
//! A crash anywhere leaves one of these, so formatting is simply repeated or found complete.
//!
//! Volumes of nodes that ran the original Zero-OS hold btrfs: those are mounted as they are.

use crate::bytes::{array, le64};
use crate::ext4::{self, Superblock};

/// A block device of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name: `vda`.
    pub name: String,
    /// What the host calls it: the workload's 13-character id, `rootfs`, or nothing.
    pub serial: String,
    /// Size in bytes.
    pub size: u64,
    /// The host allows no writes.
    pub read_only: bool,
}

impl Disk {
    /// How messages call the disk: `/dev/vda (serial "rootfs")`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("/dev/{} (serial {:?})", self.name, self.serial)
    }
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: first and last MiB are zeros.
    Blank,
    /// Formatting by us was cut short.
    Unfinished,
    /// A sound ext4 superblock; `marked` if our marker of an unfinished format is still before it.
    Ext4 {
        /// The superblock.
        superblock: Superblock,
        /// The marker is still there.
        marked: bool,
    },
    /// A btrfs of one device.
    Btrfs {
        /// Its size in bytes.
        size: u64,
    },
    /// Something else: the name of what it looks like.
    Foreign(&'static str),
}

impl Content {
    /// Judges a disk by its first [`EDGE_SIZE`] bytes and its last (shorter if the disk is).
    #[must_use]
    pub fn identify(head: &[u8], tail: &[u8]) -> Self {
        let marked = head.starts_with(MARKER);
        let superblock = head.get(ext4::OFFSET..).and_then(Superblock::parse);
        if let Some(superblock) = superblock {
            return Self::Ext4 { superblock, marked };
        }
        if marked {
            return Self::Unfinished;
        }
        if head.iter().chain(tail).all(|byte| *byte == 0) {
            return Self::Blank;
        }
        btrfs_size(head)
            .map_or_else(|| Self::Foreign(signature(head, tail)), |size| Self::Btrfs { size })
    }
}

/// What to do with a disk that is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the file system, then mount and grow.
    Format,
    /// Mount; `grow` if it is ours and smaller than its disk; `unmark` if the marker must go first.
    Mount {
        /// The file system is smaller than the disk.
        grow: bool,
        /// Clear the marker first.
        unmark: bool,
    },
}

/// Why a disk is not touched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// It holds data that we can't mount, and will not destroy.
    #[error("{disk} holds {found}: left untouched, and it can't be mounted")]
    Foreign {
        /// The disk.
        disk: String,
        /// What it holds.
        found: &'static str,
    },
    /// It is blank and can't be written.
    #[error("{0} is blank and read-only: nothing to mount")]
    BlankReadOnly(String),
}

/// Decides what to do with `disk`, given what is on it.
///
/// A file system grows only if it carries the label that we gave it, the disk's serial: a user's
/// own file system is the user's to resize.
///
/// # Errors
///
/// [`Refusal`] for a disk that can't be mounted.
pub fn decide(disk: &Disk, content: &Content) -> Result<Action, Refusal> {
    match content {
        Content::Blank | Content::Unfinished if disk.read_only => {
            Err(Refusal::BlankReadOnly(disk.describe()))
        }
        Content::Blank | Content::Unfinished => Ok(Action::Format),
        Content::Ext4 { superblock, marked } => {
            let ours = superblock.label == label(disk);
            let whole = disk.size - disk.size % superblock.block_size.max(1);
            let grow = ours && !disk.read_only && superblock.size() < whole;
            Ok(Action::Mount { grow, unmark: *marked && !disk.read_only })
        }
        Content::Btrfs { size } => {
            // Its smallest unit of allocation is 64 KiB.
            let grow = !disk.read_only && disk.size.saturating_sub(*size) >= 64 << 10;
            Ok(Action::Mount { grow, unmark: false })
        }
        Content::Foreign(found) => Err(Refusal::Foreign { disk: disk.describe(), found }),
    }
}

/// The label of a file system that we make on `disk`: its serial, as far as it fits.
#[must_use]
pub fn label(disk: &Disk) -> String {
    disk.serial.chars().filter(char::is_ascii_graphic).take(ext4::LABEL_BYTES_MAX).collect()
}

/// The marker's block: what the first 512 bytes of a disk hold while it is being formatted.
#[must_use]
pub fn marker_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector.iter_mut().zip(MARKER).for_each(|(slot, byte)| *slot = *byte);
    sector
}

/// The size in the superblock of a btrfs of one device (Linux `fs/btrfs/ctree.h`, `struct
/// btrfs_super_block`).
fn btrfs_size(head: &[u8]) -> Option<u64> {
    let superblock = head.get(0x1_0000..)?;
    let one_device = le64(superblock, 0x88)? == 1;
    let magic = array::<8>(superblock, 0x40)? == *b"_BHRfS_M";
    (magic && one_device).then(|| le64(superblock, 0x70)).flatten()
}

/// Names what somebody else's disk looks like, for the message.
fn signature(head: &[u8], tail: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..).is_some_and(|bytes| bytes.starts_with(magic))
    };
    let known = [
        (at(0, b"LUKS\xba\xbe"), "an encrypted volume (LUKS)"),
        (at(0, b"XFSB"), "an XFS file system"),
        (at(0x1_0040, b"_BHRfS_M"), "a btrfs of several devices"),
        (at(512, b"EFI PART") || at(4096, b"EFI PART"), "a GPT partition table"),
        (at(512, b"LABELONE") || at(0, b"LABELONE"), "an LVM physical volume"),
        (at(4086, b"SWAPSPACE2"), "swap space"),
        (at(0x8001, b"CD001"), "an ISO 9660 image"),
        (at(0, b"hsqs"), "a squashfs image"),
        (at(1024, b"\xe2\xe1\xf5\xe0"), "an EROFS image"),
        (at(1024, b"\x10\x20\xf5\xf2"), "an F2FS file system"),
        (at(3, b"NTFS    "), "an NTFS file system"),
        (at(3, b"EXFAT   "), "an exFAT file system"),
        (at(1024 + 0x38, b"\x53\xef"), "a damaged ext file system"),
        (zfs(head) || zfs(tail), "a ZFS pool member"),
        (raid(head) || raid(tail), "a Linux RAID member"),
        (at(510, b"\x55\xaa"), "a boot sector or partition table"),
    ];
    known.iter().find(|(found, _)| *found).map_or("unknown data", |(_, name)| name)
}

/// An uberblock's magic in one of the 128 slots of a label.
fn zfs(edge: &[u8]) -> bool {
    edge.chunks(1024).any(|slot| array(slot, 0).map(u64::from_le_bytes) == Some(0x00ba_b10c))
}

/// A superblock of md, which stands on a 4 KiB boundary in every version.
fn raid(edge: &[u8]) -> bool {
    edge.chunks(4096).any(|block| array(block, 0).map(u32::from_le_bytes) == Some(0xa92b_4efc))
}

/// How much of either end of a disk is looked at, in bytes.
pub const EDGE_SIZE: usize = 1 << 20;
/// Begins a disk that is being formatted.
const MARKER: &[u8] = b"guest-init: being formatted\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::tests::superblock;

    fn disk(size: u64) -> Disk {
        Disk { name: "vdb".into(), serial: "dezoev3vcf3zk".into(), size, read_only: false }
    }

    fn head(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; EDGE_SIZE];
        head[at..at + bytes.len()].copy_from_slice(bytes);
        head
    }

    const ZEROS: &[u8] = &[0; EDGE_SIZE];

    #[test]
    fn a_blank_disk_is_formatted() {
        assert_eq!(Content::identify(ZEROS, ZEROS), Content::Blank);
        assert_eq!(decide(&disk(1 << 30), &Content::Blank), Ok(Action::Format));
    }

    #[test]
    fn one_byte_anywhere_at_the_edges_saves_a_disk() {
        for at in [0, 511, 1024, EDGE_SIZE - 1] {
            assert_eq!(Content::identify(&head(at, &[1]), ZEROS), Content::Foreign("unknown data"));
            assert_eq!(Content::identify(ZEROS, &head(at, &[1])), Content::Foreign("unknown data"));
        }
        let found = Content::identify(&head(0, b"XFSB"), ZEROS);
        let message = decide(&disk(1 << 30), &found).unwrap_err().to_string();
        assert_eq!(
            message,
            "/dev/vdb (serial \"dezoev3vcf3zk\") holds an XFS file system: \
             left untouched, and it can't be mounted"
        );
    }

    #[test]
    fn signatures_are_named() {
        for (at, magic, name) in [
            (0, b"LUKS\xba\xbe".as_slice(), "LUKS"),
            (0x1_0040, b"_BHRfS_M", "btrfs"),
            (512, b"EFI PART", "GPT"),
            (4086, b"SWAPSPACE2", "swap"),
            (1024 + 0x38, b"\x53\xef", "damaged ext"),
            (0x20000, b"\x0c\xb1\xba\0\0\0\0\0", "ZFS"),
            (4096, b"\xfc\x4e\x2b\xa9", "RAID"),
            (510, b"\x55\xaa", "partition table"),
        ] {
            let Content::Foreign(found) = Content::identify(&head(at, magic), ZEROS) else {
                panic!("{name} taken for something else");
            };
            assert!(found.contains(name), "{name}: {found}");
        }
    }

    #[test]
    fn a_btrfs_of_an_older_node_is_mounted_and_grown() {
        let mut start = head(0x1_0040, b"_BHRfS_M");
        start[0x1_0070..0x1_0078].copy_from_slice(&(1u64 << 30).to_le_bytes());
        start[0x1_0088] = 1;
        let found = Content::identify(&start, ZEROS);
        assert_eq!(found, Content::Btrfs { size: 1 << 30 });
        let mount = |grow| Ok(Action::Mount { grow, unmark: false });
        assert_eq!(decide(&disk(1 << 30), &found), mount(false));
        assert_eq!(decide(&disk((1 << 30) + 65535), &found), mount(false));
        assert_eq!(decide(&disk(1 << 31), &found), mount(true));
    }

    #[test]
    fn an_interrupted_format_is_repeated_or_found_complete() {
        let mut marked = head(0, &marker_sector());
        assert_eq!(Content::identify(&marked, ZEROS), Content::Unfinished);
        marked[4096] = 1;
        assert_eq!(Content::identify(&marked, ZEROS), Content::Unfinished);
        assert_eq!(decide(&disk(1 << 30), &Content::Unfinished), Ok(Action::Format));
        marked[1024..2048].copy_from_slice(&superblock(8192, "dezoev3vcf3zk"));
        let found = Content::identify(&marked, ZEROS);
        let want = Action::Mount { grow: true, unmark: true };
        assert_eq!(decide(&disk(1 << 30), &found), Ok(want));
        marked[1024 + 0x70] ^= 1;
        assert_eq!(Content::identify(&marked, ZEROS), Content::Unfinished, "torn superblock");
    }

    #[test]
    fn only_our_own_file_systems_grow_and_only_when_there_is_room() {
        let found = |label: &str| Content::identify(&head(1024, &superblock(8192, label)), ZEROS);
        let mount = |grow| Ok(Action::Mount { grow, unmark: false });
        let size = 8192 * 4096;
        assert_eq!(decide(&disk(size), &found("dezoev3vcf3zk")), mount(false));
        assert_eq!(decide(&disk(size + 4095), &found("dezoev3vcf3zk")), mount(false));
        assert_eq!(decide(&disk(size + 4096), &found("dezoev3vcf3zk")), mount(true));
        assert_eq!(decide(&disk(size * 2), &found("mine")), mount(false));
        let read_only = Disk { read_only: true, ..disk(size * 2) };
        assert_eq!(decide(&read_only, &found("dezoev3vcf3zk")), mount(false));
        assert!(decide(&read_only, &Content::Blank).is_err());
    }
}
