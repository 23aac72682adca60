//! What a partition holds that is not read here, by its magic bytes: for an error that helps.

use crate::source::Window;

/// A magic number and where it is.
struct Signature {
    at: u64,
    magic: &'static [u8],
    name: &'static str,
}

const SIGNATURES: [Signature; 14] = [
    Signature { at: 0, magic: b"XFSB", name: "XFS" },
    Signature { at: 0x1_0040, magic: b"_BHRfS_M", name: "btrfs" },
    Signature { at: 0, magic: b"LUKS\xba\xbe", name: "LUKS (encrypted)" },
    Signature { at: 512, magic: b"LABELONE", name: "LVM" },
    Signature { at: 4096, magic: b"\xfc\x4e\x2b\xa9", name: "Linux RAID" },
    Signature { at: 4086, magic: b"SWAPSPACE2", name: "swap" },
    Signature { at: 0, magic: b"hsqs", name: "squashfs" },
    Signature { at: 1024, magic: b"\xe2\xe1\xf5\xe0", name: "EROFS" },
    Signature { at: 1024, magic: b"\x10\x20\xf5\xf2", name: "F2FS" },
    Signature { at: 3, magic: b"NTFS    ", name: "NTFS" },
    Signature { at: 3, magic: b"EXFAT   ", name: "exFAT" },
    Signature { at: 0x8001, magic: b"CD001", name: "ISO 9660" },
    Signature { at: 0x1018, magic: b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", name: "bcachefs" },
    Signature { at: 0x438, magic: b"\x53\xef", name: "ext4" },
];
/// Where the first of ZFS' four labels has its uberblocks, one a KiB: any of them may be in use.
const ZFS_UBERBLOCKS: u64 = 128 << 10;
const ZFS_UBERBLOCK_SIZE: usize = 1024;
const ZFS_UBERBLOCKS_SIZE: usize = 128 << 10;
const ZFS_MAGIC: &[u8] = &[0x0c, 0xb1, 0xba, 0x00];

/// The name of what is there; none if it is nothing that is known.
#[must_use]
pub fn name_of(partition: &Window) -> Option<&'static str> {
    for Signature { at, magic, name } in &SIGNATURES {
        // What can't be read has no name.
        if partition.bytes(*at, magic.len()).is_ok_and(|found| found == *magic) {
            return Some(name);
        }
    }
    let uberblocks = partition.bytes(ZFS_UBERBLOCKS, ZFS_UBERBLOCKS_SIZE).ok()?;
    let mut uberblocks = uberblocks.chunks_exact(ZFS_UBERBLOCK_SIZE);
    uberblocks.any(|block| block.starts_with(ZFS_MAGIC)).then_some("ZFS")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::source::Source;

    #[test]
    fn what_is_not_read_has_a_name() {
        let name = |at: u64, magic: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(magic, at).unwrap();
            name_of(&Source::new(file).unwrap().window())
        };
        for Signature { at, magic, name: expected } in &SIGNATURES {
            assert_eq!(name(*at, magic), Some(*expected));
        }
        assert_eq!(name(ZFS_UBERBLOCKS + 5 * 1024, ZFS_MAGIC), Some("ZFS"));
        assert_eq!(name(0, b""), None);
    }
}
