//! PVH's start of day structure (`struct hvm_start_info`, Xen `public/arch-x86/hvm/start_info.h`), in
//! `linux-loader`'s words, and the lists that it points to:
//!
//! | offset | what |
//! |---|---|
//! | 0 | the structure |
//! | 0x40 | the list of modules, of which the initramfs is the only one |
//! | 0x80 | the memory map |

use linux_loader::bootparam::boot_e820_entry;
use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use crate::memory::Range;

const MODULES_OFFSET: u8 = 0x40;
const MAP_OFFSET: u8 = 0x80;
const _: () = assert!(size_of::<hvm_start_info>() <= MODULES_OFFSET as usize);
const _: () =
    assert!(MODULES_OFFSET as usize + size_of::<hvm_modlist_entry>() <= MAP_OFFSET as usize);

/// The structure's bytes and its lists, to be put at `address`.
pub(super) fn start_info(
    address: u64,
    cmdline: u64,
    rsdp: u64,
    initramfs: Option<Range>,
    map: &[boot_e820_entry],
) -> Vec<u8> {
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: initramfs.map_or(0, |_| address + u64::from(MODULES_OFFSET)),
        cmdline_paddr: cmdline,
        rsdp_paddr: rsdp,
        memmap_paddr: address + u64::from(MAP_OFFSET),
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut bytes = info.as_slice().to_vec();
    bytes.resize(usize::from(MODULES_OFFSET), 0);
    if let Some(Range { start: paddr, size }) = initramfs {
        let module = hvm_modlist_entry { paddr, size, ..hvm_modlist_entry::default() };
        bytes.extend(module.as_slice());
    }
    bytes.resize(usize::from(MAP_OFFSET), 0);
    for &boot_e820_entry { addr, size, r#type: type_ } in map {
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        bytes.extend(entry.as_slice());
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
