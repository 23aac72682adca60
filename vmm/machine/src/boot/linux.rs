//! Linux' zero page (`struct boot_params`): what the 64-bit boot protocol hands over.
//!
//! Its layout is `linux-loader`'s, after Linux `Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`. A 64-bit value that came later than its first half is in two places:
//! `cmd_line_ptr` and `ext_cmd_line_ptr`, `ramdisk_image` and `ext_ramdisk_image`, and so on.

use linux_loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, LOADED_HIGH, SETUP_RNG_SEED, boot_e820_entry, boot_params,
    setup_header,
};
use vm_memory::ByteValued;

use super::bzimage::SETUP_HEADER_OFFSET;
use crate::memory::Range;

/// Size of the seed handed over for random numbers.
pub(super) const SEED_SIZE: u8 = 32;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// 2.15.
const PROTOCOL: u16 = 0x020f;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// What the zero page says.
#[derive(Debug)]
pub(super) struct Parameters<'a> {
    /// The setup header of a `bzImage`; a `vmlinux` has none.
    pub(super) setup_header: Option<&'a [u8]>,
    pub(super) rsdp: u64,
    pub(super) cmdline: u64,
    pub(super) initramfs: Option<Range>,
    /// Address of the list of `setup_data`.
    pub(super) setup_data: u64,
    pub(super) map: &'a [boot_e820_entry],
}

/// The zero page.
pub(super) fn zero_page(parameters: &Parameters<'_>) -> boot_params {
    let mut page = boot_params { acpi_rsdp_addr: parameters.rsdp, ..boot_params::default() };
    match parameters.setup_header {
        None => page.hdr = vmlinux_header(),
        // As many bytes as it says it has: newer ones have more than the structure knows.
        Some(header) => {
            let place = page.as_mut_slice().get_mut(SETUP_HEADER_OFFSET..);
            place.into_iter().flatten().zip(header).for_each(|(to, from)| *to = *from);
        }
    }
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.setup_data = parameters.setup_data;
    (page.hdr.cmd_line_ptr, page.ext_cmd_line_ptr) = halves(parameters.cmdline);
    let initramfs = parameters.initramfs.unwrap_or(Range { start: 0, size: 0 });
    (page.hdr.ramdisk_image, page.ext_ramdisk_image) = halves(initramfs.start);
    (page.hdr.ramdisk_size, page.ext_ramdisk_size) = halves(initramfs.size);
    let count = parameters.map.len().min(E820_MAX_ENTRIES_ZEROPAGE);
    page.e820_entries = u8::try_from(count).unwrap_or(0);
    let mut table = [boot_e820_entry::default(); E820_MAX_ENTRIES_ZEROPAGE];
    table[..count].copy_from_slice(&parameters.map[..count]);
    page.e820_table = table;
    page
}

/// A `setup_data` node of type `SETUP_RNG_SEED`: next, type, length, contents. With it the guest's
/// random numbers are good before any device is up; kernels that don't know the type skip it.
pub(super) fn seed_node(seed: &[u8; SEED_SIZE as usize]) -> Vec<u8> {
    let mut node = 0_u64.to_le_bytes().to_vec();
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend(u32::from(SEED_SIZE).to_le_bytes());
    node.extend(seed);
    node
}

/// The setup header for a kernel that comes without.
fn vmlinux_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..setup_header::default()
    }
}

/// The lower and the upper half of a value that goes to different places.
const fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::e820;
    use crate::memory::Layout;

    fn u32_of(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn fields_are_where_linux_looks() {
        let map = e820::map(&Layout::new(4096, 46).unwrap());
        let parameters = Parameters {
            setup_header: None,
            rsdp: 0xe_0000,
            cmdline: 0x2_0000,
            initramfs: Some(Range { start: 0x1_2345_6000, size: 0x777 }),
            setup_data: 0x6000,
            map: &map,
        };
        let page = zero_page(&parameters);
        let page = page.as_slice();
        assert_eq!(page.len(), 4096);
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!((page[0x210], page[0x211]), (0xff, 1));
        assert_eq!((u32_of(page, 0x218), u32_of(page, 0xc0)), (0x2345_6000, 1));
        assert_eq!((u32_of(page, 0x21c), u32_of(page, 0xc4)), (0x777, 0));
        assert_eq!(u32_of(page, 0x228), 0x2_0000);
        assert_eq!((u32_of(page, 0x70), u32_of(page, 0x250)), (0xe_0000, 0x6000));
        assert_eq!(usize::from(page[0x1e8]), map.len());
        assert_eq!((u32_of(page, 0x2d0), u32_of(page, 0x2d0 + 16)), (0, 1));
        assert_eq!(page[0x1ef], 0, "the sentinel says that unknown fields are clean");
    }

    #[test]
    fn a_bzimage_keeps_its_header() {
        let mut header = vec![0xee; 0x26c - 0x1f1];
        header[0] = 0x1b;
        let parameters = Parameters {
            setup_header: Some(&header),
            rsdp: 0,
            cmdline: 0,
            initramfs: None,
            setup_data: 0,
            map: &[],
        };
        let page = zero_page(&parameters);
        let page = page.as_slice();
        assert_eq!((page[0x1f1], page[0x1f2], page[0x210]), (0x1b, 0xee, 0xff));
        assert_eq!((page[0x26b], page[0x26c]), (0xee, 0));
    }
}
