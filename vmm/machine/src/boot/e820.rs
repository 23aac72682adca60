//! The memory map that a kernel is given, in the numbers of BIOS call E820, which are PVH's too.

use linux_loader::bootparam::boot_e820_entry;
use linux_loader::start_info::{
    XEN_HVM_MEMMAP_TYPE_ACPI, XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED,
};

use crate::memory::layout::{
    ACPI_ADDRESS, ACPI_SIZE, ECAM_ADDRESS, ECAM_SIZE, HIGH_MEMORY_START, LOW_MEMORY_END, Layout,
};

/// Memory to be used.
const RAM: u32 = XEN_HVM_MEMMAP_TYPE_RAM;
/// Not to be touched, but by whoever knows what is there.
const RESERVED: u32 = XEN_HVM_MEMMAP_TYPE_RESERVED;
/// Tables, which may be forgotten after they were read.
const ACPI: u32 = XEN_HVM_MEMMAP_TYPE_ACPI;

/// The map of a machine, in ascending order.
///
/// ECAM is in it because Linux believes ACPI's word on configuration space only where the memory
/// map has it reserved.
pub(super) fn map(layout: &Layout) -> Vec<boot_e820_entry> {
    let entry = |addr, size, r#type| boot_e820_entry { addr, size, r#type };
    let low_end = layout.low_ram.end();
    let mut map = vec![
        entry(0, LOW_MEMORY_END, RAM),
        entry(ACPI_ADDRESS, ACPI_SIZE, ACPI),
        entry(HIGH_MEMORY_START, low_end - HIGH_MEMORY_START, RAM),
        entry(ECAM_ADDRESS, ECAM_SIZE, RESERVED),
    ];
    map.extend(layout.high_ram.map(|range| entry(range.start, range.size, RAM)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::{GIB, MIB};

    #[test]
    fn the_map_is_sorted_disjoint_and_holds_all_memory_but_the_hole_below_one_mib() {
        for memory_mib in [2, 256, 3072, 3073, 1 << 20] {
            let map = map(&Layout::new(memory_mib, 46).unwrap());
            for pair in map.windows(2) {
                assert!({ pair[0].addr } + { pair[0].size } <= pair[1].addr, "{pair:x?}");
            }
            let ram = map.iter().filter(|entry| { entry.r#type } == RAM);
            assert_eq!(ram.map(|entry| entry.size).sum::<u64>(), memory_mib * MIB - 0x6_0000);
        }
        let large = map(&Layout::new(4096, 46).unwrap());
        let last = boot_e820_entry { addr: 4 * GIB, size: GIB, r#type: RAM };
        assert_eq!(large.last(), Some(&last));
    }
}
