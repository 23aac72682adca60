//! The tables that a CPU needs before its first instruction: segments and pages.

use vmm_virtio::memory::{Bytes, GuestAddress, Memory};

use super::BootError;
use crate::memory::layout::{GDT_ADDRESS, PAGE_TABLES_ADDRESS};

/// Selector of the code segment: `__BOOT_CS` of Linux' 64-bit boot protocol.
pub(crate) const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments: `__BOOT_DS`.
pub(crate) const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment.
pub(crate) const TASK_SELECTOR: u16 = 0x20;

/// Flat segments (Intel SDM vol. 3 §3.4.5): 64-bit code, data, a busy task state.
pub(crate) const GDT_LONG: [u64; 5] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];
/// The same with 32-bit code, for PVH.
pub(crate) const GDT_PROTECTED: [u64; 5] =
    [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
const GIGABYTES: u64 = 4;

/// Writes the descriptor table.
pub(super) fn write_gdt(memory: &Memory, table: &[u64; 5]) -> Result<(), BootError> {
    put(memory, GDT_ADDRESS, table)
}

/// Writes page tables that map the first 4 GiB to themselves in pages of 2 MiB: whatever the
/// kernel, its parameters and tables are at, they are mapped, as the 64-bit boot protocol wants.
pub(super) fn write_page_tables(memory: &Memory) -> Result<(), BootError> {
    let pointers = PAGE_TABLES_ADDRESS + PAGE;
    let directories = pointers + PAGE;
    put(memory, PAGE_TABLES_ADDRESS, &[pointers | PRESENT_WRITABLE])?;
    let entries: Vec<u64> =
        (0..GIGABYTES).map(|index| (directories + index * PAGE) | PRESENT_WRITABLE).collect();
    put(memory, pointers, &entries)?;
    let entries: Vec<u64> =
        (0..GIGABYTES * 512).map(|index| index << 21 | PRESENT_WRITABLE | LARGE).collect();
    put(memory, directories, &entries)
}

fn put(memory: &Memory, address: u64, words: &[u64]) -> Result<(), BootError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(address)).map_err(|_| BootError::NoRoom {
        what: "boot tables",
        address,
        size: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_four_gib_are_mapped_to_themselves() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| {
            memory.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap()
        };
        for address in [0_u64, 0x12_3456, 0x3fff_ffff, 0x4000_0000, 0xbfff_ffff, 0xffff_ffff] {
            let pointers = entry(PAGE_TABLES_ADDRESS, address >> 39 & 511) & !0xfff;
            let directory = entry(pointers, address >> 30 & 511) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0xfff, 0x83);
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
        }
        assert_eq!(entry(PAGE_TABLES_ADDRESS, 1), 0);
        assert_eq!(entry(PAGE_TABLES_ADDRESS + PAGE, 4), 0);
    }

    #[test]
    fn segments_are_flat() {
        for (table, code_is_64_bit) in [(GDT_LONG, true), (GDT_PROTECTED, false)] {
            let code = table[usize::from(CODE_SELECTOR / 8)];
            let data = table[usize::from(DATA_SELECTOR / 8)];
            assert_eq!(
                (code >> 53 & 1 == 1, code >> 54 & 1 == 1),
                (code_is_64_bit, !code_is_64_bit)
            );
            for segment in [code, data] {
                let limit = segment & 0xffff | segment >> 32 & 0xf_0000;
                let base = segment >> 16 & 0xff_ffff | segment >> 32 & 0xff00_0000;
                assert_eq!((limit, base, segment >> 55 & 1), (0xf_ffff, 0, 1));
            }
        }
    }
}
