//! PVH's start of day structure (`struct hvm_start_info`, Xen `public/arch-x86/hvm/start_info.h`).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, 0x336ec578 |
//! | 4 | 4 | version, 1 |
//! | 8 | 4 | flags |
//! | 12 | 4 | number of modules |
//! | 16 | 8 | address of the module list |
//! | 24 | 8 | address of the command line |
//! | 32 | 8 | address of ACPI's root pointer |
//! | 40 | 8 | address of the memory map |
//! | 48 | 4 | its number of entries |
//!
//! A module is address, size, address of its command line, zero, 8 bytes each; an entry of the
//! map is address, size, 8 bytes each, type, zero, 4 bytes each. Both lists follow the structure.

use super::e820::Entry;
use crate::memory::Range;

const MAGIC: u32 = 0x336e_c578;
const MODULES_OFFSET: u8 = 0x40;
const MAP_OFFSET: u8 = 0x80;

/// The structure's bytes and its lists, to be put at `address`.
pub(super) fn start_info(
    address: u64,
    cmdline: u64,
    rsdp: u64,
    initramfs: Option<Range>,
    map: &[Entry],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let module_count = u32::from(initramfs.is_some());
    for word in [MAGIC, 1, 0, module_count] {
        bytes.extend(word.to_le_bytes());
    }
    let modules = if initramfs.is_some() { address + u64::from(MODULES_OFFSET) } else { 0 };
    for address in [modules, cmdline, rsdp, address + u64::from(MAP_OFFSET)] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend(u32::try_from(map.len()).unwrap_or(0).to_le_bytes());
    bytes.resize(usize::from(MODULES_OFFSET), 0);
    if let Some(initramfs) = initramfs {
        bytes.extend(initramfs.start.to_le_bytes());
        bytes.extend(initramfs.size.to_le_bytes());
    }
    bytes.resize(usize::from(MAP_OFFSET), 0);
    for entry in map {
        bytes.extend(entry.address.to_le_bytes());
        bytes.extend(entry.size.to_le_bytes());
        bytes.extend((entry.kind as u32).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::e820;
    use crate::memory::Layout;

    #[test]
    fn lists_are_where_the_structure_says() {
        let map = e820::map(&Layout::new(256, 46).unwrap());
        let initramfs = Some(Range { start: 0x800_0000, size: 0x1234 });
        let bytes = start_info(0x7000, 0x2_0000, 0xe_0000, initramfs, &map);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 0x1_336e_c578);
        assert_eq!(word(8), 1 << 32);
        assert_eq!((word(16), word(24), word(32), word(40)), (0x7040, 0x2_0000, 0xe_0000, 0x7080));
        assert_eq!((word(0x40), word(0x48), word(0x50)), (0x800_0000, 0x1234, 0));
        assert_eq!(bytes[48], 4);
        assert_eq!((word(0x80), word(0x88), word(0x90)), (0, 0xa_0000, 1));
        assert_eq!(bytes.len(), 0x80 + 4 * 24);
        let without = start_info(0x7000, 0, 0, None, &map);
        assert_eq!(without[12..24], [0; 12]);
    }
}
