//! `readv` and `writev` straight into and out of guest memory: no copy of ours in between.
//!
//! Fenced off because the kernel is given addresses that other threads, the guest's vCPUs, read and
//! write at the same time. References to such memory must never exist, so none are made.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// The most pieces that one call takes: `UIO_MAXIOV` of the kernel.
pub(super) const PIECES_MAX: usize = 1024;

/// Room for the pieces of a call, kept so that a packet allocates nothing. Empty between calls.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<Piece>);

/// `struct iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Piece {
    base: *mut u8,
    size: usize,
}

// SAFETY: between calls a room holds no piece, hence no pointer that a thread could misuse.
unsafe impl Send for Room {}

impl Room {
    /// Reads one packet into `slices`, of which the first [`PIECES_MAX`] count.
    pub(super) fn read<'m>(
        &mut self,
        descriptor: BorrowedFd<'_>,
        slices: impl Iterator<Item = VolatileSlice<'m>>,
    ) -> Result<usize, Errno> {
        self.transfer(slices, |pieces| {
            // SAFETY: a `Piece` has the layout of `struct iovec`, and so has an `IoSliceMut`, which
            // std guarantees. Each describes memory that is mapped and writable as long as `'m`,
            // which outlives this call. It is the kernel that writes there; nothing on this side
            // makes a reference of it. The pieces themselves are borrowed, and no one else's.
            let buffers = unsafe {
                let first = pieces.as_mut_ptr().cast::<IoSliceMut<'_>>();
                std::slice::from_raw_parts_mut(first, pieces.len())
            };
            rustix::io::readv(descriptor, buffers)
        })
    }

    /// Writes one packet out of `slices`, of which the first [`PIECES_MAX`] count.
    pub(super) fn write<'m>(
        &mut self,
        descriptor: BorrowedFd<'_>,
        slices: impl Iterator<Item = VolatileSlice<'m>>,
    ) -> Result<usize, Errno> {
        self.transfer(slices, |pieces| {
            // SAFETY: as in `read`; here the kernel only reads, and copies each byte once.
            let buffers = unsafe {
                let first = pieces.as_ptr().cast::<IoSlice<'_>>();
                std::slice::from_raw_parts(first, pieces.len())
            };
            rustix::io::writev(descriptor, buffers)
        })
    }

    /// Calls `call` with the pieces of `slices`, and once more after a signal.
    fn transfer<'m>(
        &mut self,
        slices: impl Iterator<Item = VolatileSlice<'m>>,
        mut call: impl FnMut(&mut [Piece]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        self.fill(slices);
        let result = loop {
            match call(&mut self.0) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        self.0.clear();
        result
    }

    fn fill<'m>(&mut self, slices: impl Iterator<Item = VolatileSlice<'m>>) {
        self.0.clear();
        let pieces = slices.take(PIECES_MAX);
        // For mappings that need no preparation, which ours are, the guard only holds the pointer.
        self.0.extend(
            pieces.map(|slice| Piece { base: slice.ptr_guard_mut().as_ptr(), size: slice.len() }),
        );
    }
}
