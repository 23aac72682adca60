//! Entropy into the kernel's pool.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

use crate::reseed::ENTROPY_SIZE;

/// `struct rand_pool_info` (linux/random.h), with its bytes behind it.
#[repr(C)]
#[derive(Debug)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; ENTROPY_SIZE],
}

/// `RNDADDENTROPY`: its number has the size of the two fields alone.
const ADD_ENTROPY: rustix::ioctl::Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `RNDRESEEDCRNG`.
const RESEED: rustix::ioctl::Opcode = opcode::none(b'R', 0x07);

/// Stirs bytes into the pool that `device` leads to, and lets all random numbers from now on depend
/// on them.
#[expect(unsafe_code, reason = "rustix has no safe form of these ioctls")]
pub(crate) fn stir(device: BorrowedFd<'_>, bytes: &[u8; ENTROPY_SIZE]) -> rustix::io::Result<()> {
    let size = i32::try_from(ENTROPY_SIZE).unwrap_or(0);
    let info = PoolInfo { entropy_bits: size * 8, size, bytes: *bytes };
    // SAFETY: the kernel reads the two fields, then as many bytes as the second says, which follow.
    unsafe { ioctl(device, Setter::<ADD_ENTROPY, PoolInfo>::new(info)) }?;
    // SAFETY: it has no argument.
    match unsafe { ioctl(device, NoArg::<RESEED>::new()) } {
        // Not yet ready: then what was just added makes it so.
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_s_headers() {
        assert_eq!((ADD_ENTROPY, RESEED), (0x4008_5203, 0x5207));
        assert_eq!(size_of::<PoolInfo>(), 8 + ENTROPY_SIZE);
    }
}
