//! What the host has allocated to a file, written or not.
//!
//! `SEEK_HOLE` takes what was only allocated for a hole; `FS_IOC_FIEMAP` (Linux
//! `Documentation/filesystems/fiemap.rst`) tells them apart.

#![expect(unsafe_code, reason = "an ioctl that rustix does not have")]

use std::os::fd::BorrowedFd;

use flist_view::filesystem::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Extents asked for at once.
const EXTENT_COUNT: usize = 32;
/// How often is asked: a range in more pieces than that is taken to have holes.
const CALL_COUNT_MAX: u32 = 64;
/// The space also belongs to another file, so that writing takes new space.
const SHARED: u32 = 0x2000;

/// `struct fiemap`, with room for extents.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    size: u64,
    flags: u32,
    mapped_count: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENT_COUNT],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    size: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_flags: [u32; 3],
}

/// `FS_IOC_FIEMAP`: its size is that of the structure without extents.
const FIEMAP: Opcode = opcode::read_write::<[u64; 4]>(b'f', 11);

/// Whether the file has space of its own for everything from `start` to `end`.
///
/// # Errors
/// When its file system does not tell.
pub(super) fn are_allocated(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<bool, Errno> {
    let mut next = start;
    for _ in 0..CALL_COUNT_MAX {
        if next >= end {
            return Ok(true);
        }
        let asked = u32::try_from(EXTENT_COUNT).unwrap_or(0);
        let mut map =
            Fiemap { start: next, size: end - next, extent_count: asked, ..Fiemap::default() };
        // SAFETY: the kernel reads the header and writes it, and as many extents as it says there is
        // room for; `Updater` takes the structure that this operation is for.
        unsafe { ioctl(file, Updater::<FIEMAP, Fiemap>::new(&mut map)) }?;
        let count = usize::try_from(map.mapped_count).unwrap_or(0);
        let found = map.extents.get(..count).unwrap_or_default();
        if found.is_empty() {
            return Ok(false);
        }
        for extent in found {
            if extent.logical > next || extent.flags & SHARED != 0 {
                return Ok(false);
            }
            next = next.max(extent.logical.saturating_add(extent.size));
        }
    }
    Ok(next >= end)
}
