//! The memory map that a kernel is given.

use crate::memory::layout::{
    ACPI_ADDRESS, ACPI_SIZE, ECAM_ADDRESS, ECAM_SIZE, HIGH_MEMORY_START, LOW_MEMORY_END, Layout,
};

/// What a range of addresses is, in the numbers of BIOS call E820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// Memory to be used.
    Ram = 1,
    /// Not to be touched, but by whoever knows what is there.
    Reserved = 2,
    /// Tables, which may be forgotten after they were read.
    Acpi = 3,
}

/// A range of addresses and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) kind: Kind,
}

/// The map of a machine, in ascending order.
///
/// ECAM is in it because Linux believes ACPI's word on configuration space only where the memory
/// map has it reserved.
pub(super) fn map(layout: &Layout) -> Vec<Entry> {
    let entry = |address, size, kind| Entry { address, size, kind };
    let low_end = layout.low_ram.end();
    let mut map = vec![
        entry(0, LOW_MEMORY_END, Kind::Ram),
        entry(ACPI_ADDRESS, ACPI_SIZE, Kind::Acpi),
        entry(HIGH_MEMORY_START, low_end - HIGH_MEMORY_START, Kind::Ram),
        entry(ECAM_ADDRESS, ECAM_SIZE, Kind::Reserved),
    ];
    map.extend(layout.high_ram.map(|range| entry(range.start, range.size, Kind::Ram)));
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
                assert!(pair[0].address + pair[0].size <= pair[1].address, "{pair:x?}");
            }
            let ram = map.iter().filter(|entry| entry.kind == Kind::Ram);
            assert_eq!(ram.map(|entry| entry.size).sum::<u64>(), memory_mib * MIB - 0x6_0000);
        }
        let large = map(&Layout::new(4096, 46).unwrap());
        let last = Entry { address: 4 * GIB, size: GIB, kind: Kind::Ram };
        assert_eq!(large.last(), Some(&last));
    }
}
