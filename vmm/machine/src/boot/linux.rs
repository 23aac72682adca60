//! Linux' zero page (`struct boot_params`): what the 64-bit boot protocol hands over.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0x070 | 8 | `acpi_rsdp_addr` |
//! | 0x0c0 | 4 | `ext_ramdisk_image`: upper half of the address |
//! | 0x0c4 | 4 | `ext_ramdisk_size` |
//! | 0x0c8 | 4 | `ext_cmd_line_ptr` |
//! | 0x1e8 | 1 | `e820_entries` |
//! | 0x1f1 | | `hdr`, the setup header; a `bzImage` brings its own |
//! | 0x210 | 1 | `hdr.type_of_loader` |
//! | 0x218 | 4 | `hdr.ramdisk_image` |
//! | 0x21c | 4 | `hdr.ramdisk_size` |
//! | 0x228 | 4 | `hdr.cmd_line_ptr` |
//! | 0x250 | 8 | `hdr.setup_data` |
//! | 0x2d0 | 20 each | `e820_table`: address, size, type |
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use super::bzimage::SETUP_HEADER_OFFSET;
use super::e820::Entry;
use crate::memory::Range;

/// Size of the zero page.
pub(super) const ZERO_PAGE_SIZE: usize = 4096;
/// Size of the seed handed over for random numbers.
pub(super) const SEED_SIZE: u8 = 32;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_COUNT_MAX: usize = 128;

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
    pub(super) map: &'a [Entry],
}

/// The zero page's bytes.
pub(super) fn zero_page(parameters: &Parameters<'_>) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE_SIZE];
    let header = parameters.setup_header.map_or_else(vmlinux_header, <[u8]>::to_vec);
    put(&mut page, SETUP_HEADER_OFFSET, &header);
    put(&mut page, 0x210, &[LOADER_UNDEFINED]);
    put(&mut page, 0x070, &parameters.rsdp.to_le_bytes());
    put_split(&mut page, 0x228, 0x0c8, parameters.cmdline);
    let initramfs = parameters.initramfs.unwrap_or(Range { start: 0, size: 0 });
    put_split(&mut page, 0x218, 0x0c0, initramfs.start);
    put_split(&mut page, 0x21c, 0x0c4, initramfs.size);
    put(&mut page, 0x250, &parameters.setup_data.to_le_bytes());
    let map = parameters.map.iter().take(E820_COUNT_MAX);
    let mut count = 0_u8;
    for (entry, at) in map.zip((0x2d0..).step_by(20)) {
        put(&mut page, at, &entry.address.to_le_bytes());
        put(&mut page, at + 8, &entry.size.to_le_bytes());
        put(&mut page, at + 16, &(entry.kind as u32).to_le_bytes());
        count += 1;
    }
    put(&mut page, 0x1e8, &[count]);
    page
}

/// A `setup_data` node of type `SETUP_RNG_SEED`: next, type, length, contents. With it the guest's
/// random numbers are good before any device is up; kernels that don't know the type skip it.
pub(super) fn seed_node(seed: &[u8; SEED_SIZE as usize]) -> Vec<u8> {
    const SETUP_RNG_SEED: u32 = 9;
    let mut node = 0_u64.to_le_bytes().to_vec();
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend(u32::from(SEED_SIZE).to_le_bytes());
    node.extend(seed);
    node
}

/// The setup header for a kernel that comes without: boot flag, magic, protocol 2.15, loaded high.
fn vmlinux_header() -> Vec<u8> {
    let mut header = vec![0; 0x26c - SETUP_HEADER_OFFSET];
    let mut put = |at: usize, bytes: &[u8]| put(&mut header, at - SETUP_HEADER_OFFSET, bytes);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x230, &0x100_0000_u32.to_le_bytes());
    header
}

/// Writes a 64-bit value as two halves in different places.
fn put_split(page: &mut [u8], low: usize, high: usize, value: u64) {
    let bytes = value.to_le_bytes();
    let (low_half, high_half) = bytes.split_at(4);
    put(page, low, low_half);
    put(page, high, high_half);
}

/// Callers pass offsets of the table above, and headers that end before 0x290.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
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
        assert_eq!(page.len(), 4096);
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!((page[0x210], page[0x211]), (0xff, 1));
        assert_eq!((u32_of(&page, 0x218), u32_of(&page, 0xc0)), (0x2345_6000, 1));
        assert_eq!((u32_of(&page, 0x21c), u32_of(&page, 0xc4)), (0x777, 0));
        assert_eq!(u32_of(&page, 0x228), 0x2_0000);
        assert_eq!((u32_of(&page, 0x70), u32_of(&page, 0x250)), (0xe_0000, 0x6000));
        assert_eq!(usize::from(page[0x1e8]), map.len());
        assert_eq!((u32_of(&page, 0x2d0), u32_of(&page, 0x2d0 + 16)), (0, 1));
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
        assert_eq!((page[0x1f1], page[0x1f2], page[0x210]), (0x1b, 0xee, 0xff));
        assert_eq!((page[0x26b], page[0x26c]), (0xee, 0));
    }
}
