//! The state file's header: that it is one, of which version, how long, and undamaged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::Problem;

const MAGIC: [u8; 8] = *b"ZOSVMSNP";
/// The version that is written and read.
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 24;

/// Magic, version, checksum, size of the body; all little-endian.
pub(super) fn with_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    let checksum = checksum(&bytes);
    if let Some(field) = bytes.get_mut(12..16) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

/// The body of a state file, if all is well with it.
pub(super) fn body(bytes: &[u8]) -> Result<&[u8], Problem> {
    let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
        return Err(Problem::Magic);
    }
    // Before all else: another version may have another header.
    let known = VERSION;
    match word(8) {
        Some(VERSION) => {}
        Some(found) => return Err(Problem::Version { found, known }),
        None => return Err(Problem::Magic),
    }
    let found = bytes.len() as u64;
    let size = bytes.get(16..).and_then(<[u8]>::first_chunk).copied().map(u64::from_le_bytes);
    let wanted = size.map_or(HEADER_SIZE as u64, |size| size.saturating_add(HEADER_SIZE as u64));
    if found != wanted {
        return Err(Problem::Size { found, wanted });
    }
    let (found, wanted) = (word(12).unwrap_or(0), checksum(bytes));
    if found != wanted {
        return Err(Problem::Checksum { found, wanted });
    }
    Ok(bytes.get(HEADER_SIZE..).unwrap_or_default())
}

/// CRC-32C of everything, with the checksum itself left out.
fn checksum(bytes: &[u8]) -> u32 {
    let before = crc32c::crc32c(bytes.get(..12).unwrap_or_default());
    crc32c::crc32c_append(before, bytes.get(16..).unwrap_or_default())
}

/// Replaces what is in the file.
pub(super) fn write(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_laid_out_as_the_format_says() {
        let bytes = with_header(b"{}");
        assert_eq!(bytes[..12], *b"ZOSVMSNP\x01\0\0\0");
        assert_eq!(bytes[16..], *b"\x02\0\0\0\0\0\0\0{}");
        assert_eq!(body(&bytes).unwrap(), b"{}");
        let sum = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        assert_eq!(sum, crc32c::crc32c(b"ZOSVMSNP\x01\0\0\0\x02\0\0\0\0\0\0\0{}"));
    }

    #[test]
    fn every_bit_and_every_byte_counts() {
        let good = with_header(b"{\"a\": 1}");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(body(&bad).is_err(), "bit {bit}");
        }
        for size in 0..good.len() {
            assert!(body(&good[..size]).is_err(), "{size} bytes");
        }
        assert!(body(&[&good[..], b" "].concat()).is_err());
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        let error = |bytes: &[u8]| body(bytes).unwrap_err().to_string();
        let mut bytes = with_header(b"{}");
        assert_eq!(error(b"{}"), "a file of a snapshot begins with other bytes");
        assert_eq!(error(&bytes[..25]), "25 bytes, where the snapshot has 26");
        bytes[16..24].fill(0xff);
        assert_eq!(error(&bytes), format!("26 bytes, where the snapshot has {}", u64::MAX));
        bytes[8] = 2;
        assert_eq!(error(&bytes), "version 2: this program reads version 1");
    }
}
