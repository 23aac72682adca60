//! The registers of the first CPU at its first instruction.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::Entry;
use super::paging::{CODE_SELECTOR, DATA_SELECTOR, GDT_LONG, GDT_PROTECTED, TASK_SELECTOR};
use crate::memory::layout::{
    BOOT_PARAMETERS_ADDRESS, GDT_ADDRESS, PAGE_TABLES_ADDRESS, STACK_ADDRESS,
};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLED: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Interrupts are off; bit 1 is always set.
const RFLAGS: u64 = 2;

impl Entry {
    /// The descriptor table that goes with it.
    pub(super) const fn gdt(self) -> &'static [u64; 5] {
        match self {
            Self::Linux64 { .. } => &GDT_LONG,
            Self::Pvh { .. } => &GDT_PROTECTED,
        }
    }

    /// General registers: Linux `Documentation/arch/x86/boot.rst` "64-bit Boot Protocol", Xen
    /// `docs/misc/pvh.pandoc`.
    pub(crate) fn registers(self) -> kvm_regs {
        let mut registers = kvm_regs { rflags: RFLAGS, ..Default::default() };
        match self {
            Self::Linux64 { address } => {
                registers.rip = address;
                registers.rsi = BOOT_PARAMETERS_ADDRESS;
                registers.rsp = STACK_ADDRESS;
                registers.rbp = STACK_ADDRESS;
            }
            Self::Pvh { address } => {
                registers.rip = address;
                registers.rbx = BOOT_PARAMETERS_ADDRESS;
            }
        }
        registers
    }

    /// System registers, over those that a CPU has after reset.
    pub(crate) fn system_registers(self, reset: &kvm_sregs) -> kvm_sregs {
        let mut system = *reset;
        let table = self.gdt();
        system.gdt.base = GDT_ADDRESS;
        #[expect(clippy::cast_possible_truncation, reason = "40 bytes")]
        let limit = (size_of_val(table) - 1) as u16;
        system.gdt.limit = limit;
        system.cs = segment(table, CODE_SELECTOR);
        let data = segment(table, DATA_SELECTOR);
        (system.ds, system.es, system.ss) = (data, data, data);
        (system.fs, system.gs) = (data, data);
        system.tr = segment(table, TASK_SELECTOR);
        system.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
        system.cr4 = 0;
        system.efer = 0;
        if let Self::Linux64 { .. } = self {
            system.cr0 |= CR0_PAGING;
            system.cr3 = PAGE_TABLES_ADDRESS;
            system.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
            system.efer = EFER_LONG_MODE_ENABLED | EFER_LONG_MODE_ACTIVE;
        }
        system
    }
}

/// The hidden part of a segment register, from its descriptor (Intel SDM vol. 3 §3.4.5).
fn segment(table: &[u64; 5], selector: u16) -> kvm_segment {
    let descriptor = table.get(usize::from(selector / 8)).copied().unwrap_or(0);
    let bits =
        |from: u32, count: u32| u8::try_from(descriptor >> from & ((1 << count) - 1)).unwrap_or(0);
    let limit = descriptor & 0xffff | descriptor >> 32 & 0xf_0000;
    let granularity = bits(55, 1);
    let limit = if granularity == 1 { limit << 12 | 0xfff } else { limit };
    kvm_segment {
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: granularity,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_begins_in_long_mode_with_its_parameters_in_rsi() {
        let entry = Entry::Linux64 { address: 0x100_0000 };
        let registers = entry.registers();
        assert_eq!((registers.rip, registers.rsi), (0x100_0000, 0x7000));
        assert_eq!(registers.rflags & 1 << 9, 0, "interrupts are off");
        let system = entry.system_registers(&kvm_sregs::default());
        assert_eq!((system.cs.selector, system.ds.selector), (0x10, 0x18));
        assert_eq!((system.cs.l, system.cs.db, system.cs.g), (1, 0, 1));
        assert_eq!((system.cs.limit, system.cs.type_), (u32::MAX, 0xb));
        assert_eq!((system.ss.limit, system.ss.type_), (u32::MAX, 3));
        assert_eq!((system.tr.type_, system.tr.s), (0xb, 0));
        assert_eq!((system.cr3, system.efer), (PAGE_TABLES_ADDRESS, 0x500));
        assert_eq!((system.cr0 & CR0_PAGING, system.cr4), (CR0_PAGING, 0x20));
    }

    #[test]
    fn pvh_begins_in_protected_mode_with_its_parameters_in_ebx() {
        let entry = Entry::Pvh { address: 0x10_0000 };
        assert_eq!((entry.registers().rip, entry.registers().rbx), (0x10_0000, 0x7000));
        let system = entry.system_registers(&kvm_sregs::default());
        assert_eq!((system.cr0, system.cr4, system.efer), (0x11, 0, 0));
        assert_eq!((system.cs.l, system.cs.db, system.cs.limit), (0, 1, u32::MAX));
        assert_eq!(system.tr.limit, 0x67);
    }
}
