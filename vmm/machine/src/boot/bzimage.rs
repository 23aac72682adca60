//! `bzImage`: Linux as its build makes it, compressed, with a setup header in front.
//!
//! The protected-mode part is entered at its 64-bit entry point, 0x200 behind its start, which is
//! there since 3.8 (Linux `Documentation/arch/x86/boot.rst`, protocol 2.12). It decompresses itself
//! in place and beyond, in `init_size` bytes from where it was loaded. A `vmlinux` is the better
//! choice where there is one: nothing is decompressed, and 40 MiB less memory touched.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::bootparam::{XLF_KERNEL_64, boot_params, setup_header};
use vm_memory::ByteValued;

use super::BootError;

/// Where the setup header is, in the file as in the zero page.
pub(super) const SETUP_HEADER_OFFSET: usize = std::mem::offset_of!(boot_params, hdr);
/// The setup header ends here at the latest: what follows in the zero page is other things.
const SETUP_HEADER_END_MAX: usize = std::mem::offset_of!(boot_params, edd_mbr_sig_buffer);

const SECTOR_SIZE: u64 = 512;
const ENTRY_64_OFFSET: u64 = 0x200;
const PROTOCOL_WITH_64_BIT_ENTRY: u16 = 0x020c;

/// What a loader needs to know of a `bzImage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BzImage {
    /// The setup header, for the zero page.
    pub(super) setup_header: Vec<u8>,
    /// The protected-mode part's place in the file.
    pub(super) offset: u64,
    /// Its size in the file.
    pub(super) size: u64,
    /// Where it wants to be loaded.
    pub(super) address: u64,
    /// Bytes from there that it uses before it knows where memory is.
    pub(super) memory_size: u64,
    /// Initramfs must end at or below this address.
    pub(super) initramfs_address_max: u64,
    /// The longest command line it takes.
    pub(super) cmdline_size_max: usize,
}

impl BzImage {
    /// Whether the file begins as a `bzImage` does.
    pub(super) fn is_bzimage(start: &[u8]) -> bool {
        start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && start.get(0x202..0x206) == Some(b"HdrS")
    }

    /// Reads what `file`, called `name`, says of itself. [`Self::is_bzimage`] has seen it.
    pub(super) fn read(file: &File, name: &str) -> Result<Self, BootError> {
        let refuse = |rule| BootError::Image { name: name.to_owned(), rule };
        let file_size = super::file_size(file, name)?;
        let mut start = [0; SETUP_HEADER_END_MAX - SETUP_HEADER_OFFSET];
        file.read_exact_at(&mut start, SETUP_HEADER_OFFSET as u64)
            .map_err(|source| BootError::Read { name: name.to_owned(), source })?;
        let mut header = setup_header::default();
        let known = header.as_mut_slice();
        known.copy_from_slice(&start[..known.len()]);
        if header.version < PROTOCOL_WITH_64_BIT_ENTRY || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(refuse(
                "a bzImage without 64-bit entry point (older than Linux 3.8, or 32-bit)",
            ));
        }
        let sectors = match header.setup_sects {
            0 => 4,
            count => u64::from(count),
        };
        let offset = (sectors + 1) * SECTOR_SIZE;
        let size = file_size.saturating_sub(offset);
        if size <= ENTRY_64_OFFSET {
            return Err(refuse("a bzImage without its protected-mode part"));
        }
        let address = header.pref_address;
        let memory_size = u64::from(header.init_size).max(size);
        if address.checked_add(memory_size).is_none() {
            return Err(refuse("a bzImage whose preferred address is out of range"));
        }
        // The header ends where its jump leads: 0x202 plus the jump's distance, its second byte.
        let [_, distance] = header.jump.to_le_bytes();
        let header_size = 0x202 - SETUP_HEADER_OFFSET + usize::from(distance);
        let setup_header = start.get(..header_size).unwrap_or(&start).to_vec();
        Ok(Self {
            setup_header,
            offset,
            size,
            address,
            memory_size,
            initramfs_address_max: u64::from(header.initrd_addr_max),
            cmdline_size_max: header.cmdline_size as usize,
        })
    }

    /// The first instruction.
    pub(super) const fn entry(&self) -> u64 {
        self.address + ENTRY_64_OFFSET
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// A `bzImage` with `code` as its protected-mode part.
    pub(crate) fn bzimage(address: u64, init_size: u32, code: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &0x020f_u16.to_le_bytes());
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(0x236, &1_u16.to_le_bytes());
        put(0x238, &2047_u32.to_le_bytes());
        put(0x258, &address.to_le_bytes());
        put(0x260, &init_size.to_le_bytes());
        file.extend(code);
        file
    }

    fn read(bytes: &[u8]) -> Result<BzImage, BootError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        assert!(BzImage::is_bzimage(bytes));
        BzImage::read(&file, "bz")
    }

    #[test]
    fn the_header_says_where_things_go() {
        let image = read(&bzimage(0x100_0000, 0x30_0000, &[0x90; 0x400])).unwrap();
        assert_eq!((image.offset, image.size), (1024, 0x400));
        assert_eq!((image.address, image.entry()), (0x100_0000, 0x100_0200));
        assert_eq!(image.memory_size, 0x30_0000);
        assert_eq!(image.setup_header.len(), 0x26c - 0x1f1);
        assert_eq!(image.initramfs_address_max, 0x7fff_ffff);
        assert_eq!(image.cmdline_size_max, 2047);
    }

    #[test]
    fn what_cannot_be_entered_is_refused() {
        let good = bzimage(0x100_0000, 0, &[0x90; 0x400]);
        let mut old = good.clone();
        old[0x206..0x208].copy_from_slice(&0x020b_u16.to_le_bytes());
        assert!(read(&old).unwrap_err().to_string().contains("64-bit entry"));
        let mut narrow = good.clone();
        narrow[0x236] = 0;
        assert!(read(&narrow).unwrap_err().to_string().contains("64-bit entry"));
        assert!(read(&good[..1024 + 0x200]).unwrap_err().to_string().contains("protected-mode"));
        let mut long = good;
        long[0x1f1] = 0xff;
        assert!(read(&long).unwrap_err().to_string().contains("protected-mode"));
        let far = bzimage(u64::MAX - 0x3ff, 0, &[0x90; 0x400]);
        assert!(read(&far).unwrap_err().to_string().contains("out of range"));
        assert!(!BzImage::is_bzimage(b"MZ"));
    }
}
