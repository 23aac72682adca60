//! Moves bytes between files and guest memory with one system call for many buffers.
//!
//! This is the one place of the device that needs `unsafe`: guest memory changes under us whenever
//! the guest likes, so that no Rust reference may point into it, and `preadv` and `pwritev` must be
//! given raw addresses.

#![expect(unsafe_code, reason = "raw addresses of guest memory go to the kernel")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use flist_view::filesystem::Errno;
use vm_memory::VolatileSlice;

/// Most buffers in one system call: a request of 1 MiB in pages of 4 KiB needs 256. Linux takes
/// 1024.
const BUFFER_COUNT_MAX: usize = 288;

/// Fills `buffers` from `file`, from `offset` on, until they are full or the file ends; returns how
/// much was read.
///
/// # Errors
/// What the first failing call says, if none before it read anything.
pub(super) fn read<'a>(
    file: BorrowedFd<'_>,
    offset: u64,
    buffers: impl Iterator<Item = VolatileSlice<'a>>,
) -> io::Result<usize> {
    transfer(offset, buffers, |vectors, count, offset| {
        // SAFETY: `vectors` points to `count` buffers in guest memory, which the slices that
        // `transfer` holds keep mapped; the kernel may write there, as the guest may.
        unsafe { libc::preadv(file.as_raw_fd(), vectors, count, offset) }
    })
}

/// Writes `buffers` to `file`, from `offset` on; returns how much was written.
///
/// # Errors
/// What the first failing call says, if none before it wrote anything.
pub(super) fn write<'a>(
    file: BorrowedFd<'_>,
    offset: u64,
    buffers: impl Iterator<Item = VolatileSlice<'a>>,
) -> io::Result<usize> {
    transfer(offset, buffers, |vectors, count, offset| {
        // SAFETY: as above; the kernel only reads.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) }
    })
}

/// Calls `call` until all of `buffers` are through, it moves nothing more, or it fails.
fn transfer<'a>(
    offset: u64,
    mut buffers: impl Iterator<Item = VolatileSlice<'a>>,
    mut call: impl FnMut(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<usize> {
    let mut total = 0;
    loop {
        let mut batch = Batch::take(&mut buffers);
        while batch.size > 0 {
            let place = offset.saturating_add(total as u64);
            let place = libc::off_t::try_from(place).map_err(|_| Errno::INVAL)?;
            let (vectors, count) = batch.vectors();
            let moved = usize::try_from(call(vectors, count, place));
            match moved {
                Ok(0) => return Ok(total),
                Ok(moved) => {
                    total += moved;
                    batch.advance(moved);
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if total == 0 => return Err(error),
                    _ => return Ok(total),
                },
            }
        }
        if !batch.is_full {
            return Ok(total);
        }
    }
}

/// Buffers of one system call.
struct Batch {
    vectors: [libc::iovec; BUFFER_COUNT_MAX],
    start: usize,
    end: usize,
    size: usize,
    /// There may be more buffers after these.
    is_full: bool,
}

impl Batch {
    fn take<'a>(buffers: &mut impl Iterator<Item = VolatileSlice<'a>>) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut batch =
            Self { vectors: [empty; BUFFER_COUNT_MAX], start: 0, end: 0, size: 0, is_full: false };
        for (vector, buffer) in batch.vectors.iter_mut().zip(buffers) {
            vector.iov_base = buffer.ptr_guard_mut().as_ptr().cast();
            vector.iov_len = buffer.len();
            batch.end += 1;
            batch.size += buffer.len();
        }
        batch.is_full = batch.end == BUFFER_COUNT_MAX;
        batch
    }

    fn vectors(&self) -> (*const libc::iovec, libc::c_int) {
        let left = &self.vectors[self.start..self.end];
        (left.as_ptr(), libc::c_int::try_from(left.len()).unwrap_or(libc::c_int::MAX))
    }

    /// Takes `size` bytes off the front.
    fn advance(&mut self, size: usize) {
        self.size = self.size.saturating_sub(size);
        let mut left = size;
        while left > 0 && self.start < self.end {
            let vector = &mut self.vectors[self.start];
            let part = left.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            left -= part;
            if vector.iov_len == 0 {
                self.start += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::*;

    /// More buffers than one call takes, of odd sizes, with an end of file in the middle.
    #[test]
    fn many_small_buffers_are_filled_and_written_in_order() {
        let memory = crate::testing::memory(1 << 20);
        let slices = |base: u64| {
            let memory = &memory;
            (0..700u64).map(move |i| memory.get_slice(GuestAddress(base + i * 16), 7).unwrap())
        };
        let contents: Vec<u8> = (0..4900u32).map(|i| (i % 251) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        rustix::io::pwrite(&file, &contents, 3).unwrap();
        assert_eq!(read(file.as_fd(), 3, slices(0)).unwrap(), 4900);
        let copy = tempfile::tempfile().unwrap();
        assert_eq!(write(copy.as_fd(), 0, slices(0)).unwrap(), 4900);
        let mut copied = vec![0; 4901];
        assert_eq!(rustix::io::pread(&copy, &mut copied, 0).unwrap(), 4900);
        assert!(copied[..4900] == contents);
        assert_eq!(read(file.as_fd(), 4000, slices(0)).unwrap(), 903);
        assert_eq!(read(file.as_fd(), 9000, slices(0)).unwrap(), 0);
        assert!(read(file.as_fd(), u64::MAX, slices(0)).is_err());
    }
}
