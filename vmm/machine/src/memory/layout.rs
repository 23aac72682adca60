//! Where everything lies in a guest's physical address space.
//!
//! ```text
//!   0                                  low memory: tables and structures for boot, see below
//!   0x000a_0000 ..  0x0010_0000        no memory for the guest to use; the generation id, and ACPI
//!                                      tables in its upper part
//!   0x0010_0000 ..  0xc000_0000        memory, up to 3 GiB
//!   0xc000_0000 ..  0xe000_0000        window for 32-bit BARs
//!   0xe000_0000 ..  0xe010_0000        ECAM of PCI bus 0
//!   0xfec0_0000, 0xfee0_0000           IOAPIC, local APICs
//!   0xfffb_c000 ..  0xffff_c000        pages that KVM needs for itself on Intel
//!   0x1_0000_0000 ..                   memory beyond the first 3 GiB
//!   behind it, 4 GiB aligned           window for 64-bit BARs
//! ```
//!
//! Low memory, all of it usable by the guest once it has read what is there:
//!
//! | address | what |
//! |---|---|
//! | 0x500 | global descriptor table |
//! | 0x6000 | seed for the guest's random numbers (`setup_data`) |
//! | 0x7000 | zero page (Linux), or start of day structure (PVH) |
//! | 0x8ff0 | initial stack pointer, growing down |
//! | 0x9000 | page tables: the first 4 GiB mapped to themselves, 6 pages |
//! | 0x20000 | command line |

use super::MemoryError;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// The least memory that a machine may have: room for low memory and a small kernel.
pub const MEMORY_MIB_MIN: u64 = 2;
/// The most memory that a machine may have, 16 TiB. Hosts usually support less.
pub const MEMORY_MIB_MAX: u64 = 16 << 20;

/// Global descriptor table.
pub const GDT_ADDRESS: u64 = 0x500;
/// Seed of the guest's random number generator.
pub const SEED_ADDRESS: u64 = 0x6000;
/// Linux' zero page, or PVH's start of day structure.
pub const BOOT_PARAMETERS_ADDRESS: u64 = 0x7000;
/// The stack pointer of the first instruction.
pub const STACK_ADDRESS: u64 = 0x8ff0;
/// Root of the page tables of the first instruction.
pub const PAGE_TABLES_ADDRESS: u64 = 0x9000;
/// Command line.
pub const CMDLINE_ADDRESS: u64 = 0x2_0000;
/// The longest command line, in bytes, without its final zero: Linux' `COMMAND_LINE_SIZE` on x86.
pub const CMDLINE_SIZE_MAX: usize = 2047;

/// Where the guest's usable low memory ends; what follows up to 1 MiB is firmware's by tradition.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// A page with the machine's generation id, which is neither memory nor ACPI's to the guest.
pub const GENERATION_ADDRESS: u64 = 0xd_f000;
/// ACPI tables, where firmware would put them; the root pointer comes first.
pub const ACPI_ADDRESS: u64 = 0xe_0000;
/// Room for ACPI tables, and behind them what firmware has for a CPU after reset, in bytes.
pub const ACPI_SIZE: u64 = 0x2_0000;
/// Where a CPU in real mode begins after reset, and where a kernel jumps to that wants one.
pub const RESET_VECTOR_ADDRESS: u64 = 0xf_fff0;
/// Memory from here on is for kernels.
pub const HIGH_MEMORY_START: u64 = MIB;

/// Memory below 4 GiB ends here at the latest.
pub const LOW_RAM_END_MAX: u64 = 3 * GIB;
/// Window for 32-bit BARs.
pub const MMIO32_ADDRESS: u64 = LOW_RAM_END_MAX;
/// Size of the window for 32-bit BARs.
pub const MMIO32_SIZE: u64 = 512 * MIB;
/// Configuration space of PCI bus 0.
pub const ECAM_ADDRESS: u64 = 0xe000_0000;
/// Slots of PCI bus 0, each for a device.
pub const PCI_SLOT_COUNT: u8 = 32;
/// One bus: in each slot 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = PCI_SLOT_COUNT as u64 * 8 * 4096;
/// The I/O interrupt controller.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Local interrupt controllers, each CPU's own.
pub const LAPIC_ADDRESS: u32 = 0xfee0_0000;
/// A page that KVM needs on Intel (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS_ADDRESS: usize = 0xfffb_d000;
/// Memory beyond the first 3 GiB.
pub const HIGH_RAM_START: u64 = 4 * GIB;

/// The most that the window for 64-bit BARs gets.
const MMIO64_SIZE_MAX: u64 = 256 * GIB;
/// The least that it may have.
const MMIO64_SIZE_MIN: u64 = 4 * GIB;

/// Numbers of KVM's memory slots.
pub mod slot {
    /// Memory below the gap.
    pub const LOW_RAM: u32 = 0;
    /// Memory above the gap.
    pub const HIGH_RAM: u32 = 1;
    /// The first that is free for others, like ECAM.
    pub const FIRST_FREE: u32 = 2;
}

/// Global system interrupts: the pins of the I/O APIC.
pub mod gsi {
    /// The first serial port, where it has always been.
    pub const SERIAL: u32 = 4;
    /// ACPI's generic event device.
    pub const EVENTS: u32 = 9;
    /// How many pins the I/O APIC has; message signalled interrupts are numbered from here.
    pub const PIN_COUNT: u32 = 24;
}

/// A half-open range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Range {
    /// The address behind its last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// Where memory and the 64-bit window lie, which depends on the size of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Memory below the gap.
    pub low_ram: Range,
    /// Memory above 4 GiB.
    pub high_ram: Option<Range>,
    /// The window for 64-bit BARs; empty where addresses are too narrow for one.
    pub mmio64: Range,
}

impl Layout {
    /// Places `memory_mib` of memory in a space of `address_bits`.
    ///
    /// # Errors
    /// [`MemoryError::Size`] or [`MemoryError::AddressBits`].
    pub fn new(memory_mib: u64, address_bits: u8) -> Result<Self, MemoryError> {
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&memory_mib) {
            return Err(MemoryError::Size { memory_mib });
        }
        let size = memory_mib * MIB;
        let low_ram = Range { start: 0, size: size.min(LOW_RAM_END_MAX) };
        let high_size = size - low_ram.size;
        let high_ram = (high_size > 0).then_some(Range { start: HIGH_RAM_START, size: high_size });
        let ram_end = high_ram.map_or(HIGH_RAM_START, |range| range.end());
        let space_end = 1_u64 << address_bits.clamp(32, 52);
        if high_ram.is_some() && ram_end > space_end {
            return Err(MemoryError::AddressBits { memory_mib, address_bits });
        }
        let start = ram_end.next_multiple_of(MMIO64_SIZE_MIN);
        let size = space_end.saturating_sub(start).min(MMIO64_SIZE_MAX);
        let size = if size < MMIO64_SIZE_MIN { 0 } else { size };
        Ok(Self { low_ram, high_ram, mmio64: Range { start, size } })
    }

    /// Memory, lowest first.
    pub fn ram(&self) -> impl Iterator<Item = Range> {
        [Some(self.low_ram), self.high_ram].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_fills_three_gib_below_the_gap_and_goes_on_above_it() {
        let small = Layout::new(256, 40).unwrap();
        assert_eq!(small.low_ram, Range { start: 0, size: 256 * MIB });
        assert_eq!(small.high_ram, None);
        assert_eq!(small.mmio64, Range { start: 4 * GIB, size: 256 * GIB });

        let full = Layout::new(3072, 40).unwrap();
        assert_eq!((full.low_ram.end(), full.high_ram), (MMIO32_ADDRESS, None));

        let large = Layout::new(3073, 46).unwrap();
        assert_eq!(large.low_ram.size, 3 * GIB);
        assert_eq!(large.high_ram, Some(Range { start: 4 * GIB, size: MIB }));
        assert_eq!(large.mmio64.start, 8 * GIB);

        let huge = Layout::new(4 << 20, 46).unwrap();
        assert_eq!(huge.ram().map(|range| range.size).sum::<u64>(), 4096 * GIB);
        assert!(huge.mmio64.start >= huge.high_ram.unwrap().end());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_rule() {
        for memory_mib in [0, 1, MEMORY_MIB_MAX + 1, u64::MAX] {
            assert!(matches!(Layout::new(memory_mib, 52), Err(MemoryError::Size { .. })));
        }
        let error = Layout::new(2 << 20, 40).unwrap_err().to_string();
        assert!(error.contains("2097152 MiB") && error.contains("40 bits"), "{error}");
        // Without room behind memory there is no window, but a machine.
        assert!(matches!(Layout::new(8 * 1024, 33), Err(MemoryError::AddressBits { .. })));
        assert_eq!(Layout::new(256, 32).unwrap().mmio64.size, 0);
    }

    #[test]
    fn fixed_regions_do_not_overlap() {
        let regions = [
            (GDT_ADDRESS, 64),
            (SEED_ADDRESS, 0x1000),
            (BOOT_PARAMETERS_ADDRESS, 0x1000),
            (STACK_ADDRESS - 0xff0, 0x1000),
            (PAGE_TABLES_ADDRESS, 6 * 0x1000),
            (CMDLINE_ADDRESS, CMDLINE_SIZE_MAX as u64 + 1),
            (LOW_MEMORY_END, GENERATION_ADDRESS - LOW_MEMORY_END),
            (GENERATION_ADDRESS, 0x1000),
            (ACPI_ADDRESS, ACPI_SIZE),
            (HIGH_MEMORY_START, LOW_RAM_END_MAX - HIGH_MEMORY_START),
            (MMIO32_ADDRESS, MMIO32_SIZE),
            (ECAM_ADDRESS, ECAM_SIZE),
            (u64::from(IOAPIC_ADDRESS), 0x1000),
            (u64::from(LAPIC_ADDRESS), 0x1000),
            (KVM_IDENTITY_MAP_ADDRESS, 0x1000),
            (KVM_TSS_ADDRESS as u64, 0x3000),
            (HIGH_RAM_START, 1),
        ];
        for pair in regions.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
