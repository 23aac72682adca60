//! Direct transfers for buffers that the device cannot reach.
//!
//! With `O_DIRECT`, memory must be aligned as the device wants it. A guest's blocks usually are; if
//! some are not, they go through a buffer of ours, piece by piece, while the queue waits. That is
//! slow, and so rare that it may be: what matters is that one buffer per queue is all the memory
//! that it takes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use crate::Segment;
use crate::memory::{GuestMemoryBackend, SharedMemory};

/// The size of a piece.
const PIECE_SIZE: usize = 128 << 10;

/// The most that a file is used with.
const ALIGNMENT: usize = super::BLOCK_SIZE_MAX as usize;

/// Reads or writes `segments` at `offset` of `file`, one piece after the other.
///
/// # Errors
/// Whatever the kernel says, or that the file ends early.
pub(super) fn transfer(
    file: &File,
    memory: &SharedMemory,
    is_read: bool,
    offset: u64,
    segments: &[Segment],
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_SIZE + ALIGNMENT];
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    let piece = buffer.get_mut(start..start + PIECE_SIZE).ok_or(Errno::INVAL)?;
    let slices = slices(memory, segments)?;
    let total: usize = slices.iter().map(VolatileSlice::len).sum();
    let mut done = 0;
    while done < total {
        let piece = &mut piece[..PIECE_SIZE.min(total - done)];
        let at = offset + done as u64;
        if is_read {
            file.read_exact_at(piece, at)?;
            copy(&slices, done, piece.len(), |slice, from| slice.copy_from(&piece[from]));
        } else {
            copy(&slices, done, piece.len(), |slice, from| {
                slice.copy_to(&mut piece[from]);
            });
            file.write_all_at(piece, at)?;
        }
        done += piece.len();
    }
    Ok(())
}

fn slices<'a>(
    memory: &'a SharedMemory,
    segments: &[Segment],
) -> io::Result<Vec<VolatileSlice<'a>>> {
    let slice = |segment: &Segment| {
        let size = usize::try_from(segment.size).map_err(|_| Errno::INVAL)?;
        memory.get_slice(segment.address, size).map_err(|_| Errno::FAULT)
    };
    Ok(segments.iter().map(slice).collect::<Result<_, _>>()?)
}

/// Calls `move_it` for each part of `slices` that has a share in the `size` bytes from `skip` on,
/// with that share's place among them.
fn copy<'a>(
    slices: &[VolatileSlice<'a>],
    skip: usize,
    size: usize,
    mut move_it: impl FnMut(VolatileSlice<'a>, std::ops::Range<usize>),
) {
    let (mut skip, mut done) = (skip, 0);
    for slice in slices {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        let taken = (slice.len() - skipped).min(size - done);
        if let Ok(part) = slice.subslice(skipped, taken)
            && taken > 0
        {
            move_it(part, done..done + taken);
            done += taken;
        }
    }
}
