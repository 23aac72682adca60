//! The tables, as they lie in guest memory: the root pointer first, then each on 16 bytes.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use super::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, dsdt};
use crate::memory::layout::{
    ACPI_ADDRESS, ECAM_ADDRESS, IOAPIC_ADDRESS, LAPIC_ADDRESS, Layout, RESET_VECTOR_ADDRESS,
};

pub(super) const OEM_ID: [u8; 6] = *b"ZEROOS";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"ZEROVMM ";
pub(super) const OEM_REVISION: u32 = 1;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Description<'a> {
    /// Where memory and windows are.
    pub layout: &'a Layout,
    /// Local APICs 0 to this less one.
    pub vcpu_count: u8,
    /// Whether there is a serial port.
    pub has_serial: bool,
    /// Whether there is a PCI bus.
    pub has_pci: bool,
}

/// All tables as one block, to be put at [`ACPI_ADDRESS`].
#[must_use]
pub fn build(description: &Description<'_>) -> Vec<u8> {
    let mut block = Block { bytes: vec![0; Rsdp::len()] };
    let dsdt = block.append(&bytes_of(&dsdt::build(description)));
    let mut addresses = vec![
        block.append(&bytes_of(&fadt(dsdt))),
        block.append(&bytes_of(&madt(description.vcpu_count))),
    ];
    if description.has_pci {
        addresses.push(block.append(&bytes_of(&mcfg())));
    }
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    addresses.into_iter().for_each(|address| xsdt.add_entry(address));
    let xsdt = block.append(&bytes_of(&xsdt));
    let root = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    block.bytes.splice(..root.len(), root);
    // 255 CPUs and 32 slots take a tenth of it.
    assert!(
        block.bytes.len() as u64 <= RESET_VECTOR_ADDRESS - ACPI_ADDRESS,
        "ACPI tables outgrew their place"
    );
    block.bytes
}

struct Block {
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table; its address in guest memory.
    fn append(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = ACPI_ADDRESS + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed ACPI description table (ACPI 6.5 §5.2.9): no fixed hardware, buttons are devices, reset
/// and sleep by register; and what of the PC is absent, which saves the guest looking for it.
fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    const NO_VGA: u16 = 1 << 2;
    const NO_CLOCK: u16 = 1 << 5;
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut builder = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    builder.iapc_boot_arch = (NO_VGA | NO_CLOCK).into();
    builder.reset_reg = port(RESET_PORT);
    builder.reset_value = RESET_VALUE;
    builder.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    builder.sleep_status_reg = port(SLEEP_STATUS_PORT);
    builder.finalize()
}

/// Multiple APIC description table (§5.2.12): one I/O APIC, a local APIC a CPU.
fn madt(vcpu_count: u8) -> MADT {
    let address = LocalInterruptController::Address(LAPIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, address);
    madt.add_structure(IoApic::new(0, IOAPIC_ADDRESS, 0));
    for index in 0..vcpu_count {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt
}

/// PCI's memory-mapped configuration space: one segment, one bus.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM_ADDRESS, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(description: &Description<'_>) -> Vec<(String, Vec<u8>)> {
        let block = build(description);
        let u32_at = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        let table = |address: u64| {
            let at = usize::try_from(address - ACPI_ADDRESS).unwrap();
            let table = block[at..at + u32_at(at + 4) as usize].to_vec();
            assert_eq!(address % 16, 0);
            (String::from_utf8(table[..4].to_vec()).unwrap(), table)
        };
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!(sum(&block[..20]), 0);
        assert_eq!(sum(&block[..36]), 0);
        let xsdt = table(u64_at(24));
        let entries = xsdt.1[36..].chunks_exact(8);
        let mut found: Vec<_> =
            entries.map(|entry| table(u64::from_le_bytes(entry.try_into().unwrap()))).collect();
        let fadt = &found[0].1;
        found.push(table(u64::from_le_bytes(fadt[140..148].try_into().unwrap())));
        found.push(xsdt);
        found
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_are_linked_and_sum_to_zero() {
        for (vcpu_count, has_serial, has_pci) in
            [(1, false, false), (2, true, false), (255, true, true)]
        {
            let layout = Layout::new(8192, 46).unwrap();
            let description = Description { layout: &layout, vcpu_count, has_serial, has_pci };
            let tables = tables(&description);
            let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
            let want: &[&str] = if has_pci {
                &["FACP", "APIC", "MCFG", "DSDT", "XSDT"]
            } else {
                &["FACP", "APIC", "DSDT", "XSDT"]
            };
            assert_eq!(names, want);
            for (name, table) in &tables {
                assert_eq!(sum(table), 0, "{name}");
            }
            let apics = tables[1].1[44 + 12..].chunks_exact(8).count();
            assert_eq!(apics, usize::from(vcpu_count));
        }
    }

    #[test]
    fn fixed_hardware_is_absent_and_registers_are_ports() {
        let layout = Layout::new(256, 40).unwrap();
        let description =
            Description { layout: &layout, vcpu_count: 1, has_serial: false, has_pci: false };
        let (_, fadt) = tables(&description).swap_remove(0);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags >> 20 & 1, 1, "hardware-reduced");
        assert_eq!((flags >> 4 & 1, flags >> 10 & 1), (1, 1), "button device, reset register");
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 1 << 2 | 1 << 5);
        assert_eq!((fadt[116], fadt[117], fadt[128]), (1, 8, 1), "reset: port, 8 bits, value");
        assert_eq!(u16::from_le_bytes([fadt[120], fadt[121]]), 0x602);
        assert_eq!((u16::from_le_bytes([fadt[248], fadt[249]]), fadt[244]), (0x600, 1));
        assert_eq!((u16::from_le_bytes([fadt[260], fadt[261]]), fadt[256]), (0x601, 1));
    }
}
