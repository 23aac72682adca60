//! The ELF kernel inside a `bzImage`.
//!
//! A `bzImage` is a boot sector, the real-mode setup, and protected-mode code that carries the
//! compressed `vmlinux`. The setup header says where the payload lies (Linux
//! `Documentation/arch/x86/boot.rst`, protocol 2.08):
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0x1f1 | 1 | `setup_sects`: sectors of setup after the first; 0 means 4 |
//! | 0x1fe | 2 | `boot_flag`, 0xaa55 |
//! | 0x202 | 4 | magic, `HdrS` |
//! | 0x206 | 2 | protocol version |
//! | 0x248 | 4 | `payload_offset`, from the start of the protected-mode code |
//! | 0x24c | 4 | `payload_length` |
//!
//! The payload's last four bytes are the size of the decompressed kernel. Debian's full flavour
//! is compressed by xz, its cloud flavour by lz4.

use thiserror::Error;

use crate::decompress::{DecompressError, decompress};

/// The largest kernel we extract, in bytes. Debian's full one has 66 MB.
pub const VMLINUX_SIZE_MAX: usize = 512 << 20;

/// Returns the uncompressed ELF kernel of a `bzImage`.
///
/// # Errors
///
/// [`VmlinuxError`] when the header, the payload or what comes out of it isn't right.
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    let payload = payload(bzimage)?;
    let (body, size) = payload.split_last_chunk::<4>().ok_or(VmlinuxError::PayloadRange)?;
    let size_declared = u64::from(u32::from_le_bytes(*size));
    // A gzip stream ends in that very size; the other formats have it appended.
    let stream = if payload.starts_with(&[0x1f, 0x8b]) { payload } else { body };
    let vmlinux = decompress(stream, VMLINUX_SIZE_MAX)?;
    let size_found = vmlinux.len() as u64;
    if size_found != size_declared {
        return Err(VmlinuxError::Size { size_declared, size_found });
    }
    check_elf(&vmlinux)?;
    Ok(vmlinux)
}

/// Whether `image` is an x86-64 ELF file.
fn check_elf(image: &[u8]) -> Result<(), VmlinuxError> {
    const MACHINE_X86_64: [u8; 2] = [62, 0];
    let is_elf64_little_endian = image.starts_with(b"\x7fELF\x02\x01");
    if is_elf64_little_endian && image.get(18..20) == Some(&MACHINE_X86_64) {
        Ok(())
    } else {
        Err(VmlinuxError::NotElf)
    }
}

fn payload(bzimage: &[u8]) -> Result<&[u8], VmlinuxError> {
    const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;
    if bytes::<2>(bzimage, 0x1fe)? != [0x55, 0xaa] || bytes::<4>(bzimage, 0x202)? != *b"HdrS" {
        return Err(VmlinuxError::NotBzImage);
    }
    let version = u16::from_le_bytes(bytes(bzimage, 0x206)?);
    if version < PROTOCOL_WITH_PAYLOAD {
        return Err(VmlinuxError::Protocol { version });
    }
    let [sectors] = bytes(bzimage, 0x1f1)?;
    let sectors = if sectors == 0 { 4 } else { u64::from(sectors) };
    let offset = u64::from(u32::from_le_bytes(bytes(bzimage, 0x248)?));
    let length = u64::from(u32::from_le_bytes(bytes(bzimage, 0x24c)?));
    let start = (sectors + 1) * 512 + offset;
    let range = usize::try_from(start).ok().zip(usize::try_from(start + length).ok());
    range.and_then(|(start, end)| bzimage.get(start..end)).ok_or(VmlinuxError::PayloadRange)
}

fn bytes<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], VmlinuxError> {
    let tail = image.get(at..).ok_or(VmlinuxError::NotBzImage)?;
    tail.first_chunk().copied().ok_or(VmlinuxError::NotBzImage)
}

/// A file isn't a `bzImage` with a kernel that we can take out.
#[derive(Debug, Error)]
pub enum VmlinuxError {
    /// No boot flag or no `HdrS` where a `bzImage` has them.
    #[error("not a bzImage: no setup header")]
    NotBzImage,
    /// A kernel from before 2008.
    #[error("boot protocol {version:#06x} does not say where the payload lies")]
    Protocol {
        /// The header's version.
        version: u16,
    },
    /// The payload lies outside the file.
    #[error("payload reaches past the end of the file, or is empty")]
    PayloadRange,
    /// The payload can't be decompressed.
    #[error("payload")]
    Decompress(#[from] DecompressError),
    /// The decompressed size isn't what the image says.
    #[error("kernel of {size_found} bytes, but the image declares {size_declared}")]
    Size {
        /// From the payload's last four bytes.
        size_declared: u64,
        /// What came out.
        size_found: u64,
    },
    /// The payload isn't a kernel.
    #[error("payload is not an x86-64 ELF file")]
    NotElf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::{gzip, lz4, xz, zstd};

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(18, 0);
        elf.extend([62, 0]);
        elf.extend((0..50_000u32).flat_map(|n| (n / 3).to_le_bytes()));
        elf
    }

    fn bzimage(stream: &[u8], size: Option<usize>) -> Vec<u8> {
        let mut image = vec![0; 1024 + 100];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        image.extend(stream);
        if let Some(size) = size {
            image.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
        let length = u32::try_from(image.len() - 1024 - 100).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend(b"code after the payload");
        image
    }

    #[test]
    fn extracts_every_compression_that_linux_offers() {
        let elf = elf();
        assert_eq!(extract(&bzimage(&gzip(&elf), None)).unwrap(), elf);
        for stream in [xz(&elf), zstd(&elf), lz4(&elf)] {
            assert_eq!(extract(&bzimage(&stream, Some(elf.len()))).unwrap(), elf);
        }
    }

    #[test]
    fn refuses_a_payload_that_is_not_what_it_says() {
        let elf = elf();
        let wrong_size = extract(&bzimage(&zstd(&elf), Some(elf.len() + 1)));
        assert!(matches!(wrong_size, Err(VmlinuxError::Size { .. })), "{wrong_size:?}");
        let no_elf = extract(&bzimage(&zstd(b"#!/bin/sh"), Some(9)));
        assert!(matches!(no_elf, Err(VmlinuxError::NotElf)), "{no_elf:?}");
        let mut far = bzimage(&zstd(&elf), Some(elf.len()));
        far[0x248..0x250].fill(0xff);
        assert!(matches!(extract(&far), Err(VmlinuxError::PayloadRange)));
        let mut old = bzimage(&zstd(&elf), Some(elf.len()));
        old[0x206..0x208].copy_from_slice(&0x0207u16.to_le_bytes());
        assert!(matches!(extract(&old), Err(VmlinuxError::Protocol { version: 0x207 })));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let elf = elf();
        let image = bzimage(&lz4(&elf), Some(elf.len()));
        let tail = b"code after the payload".len();
        for len in (0..image.len() - tail).step_by(211) {
            assert!(extract(&image[..len]).is_err(), "{len}");
        }
    }
}
