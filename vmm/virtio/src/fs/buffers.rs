//! The two directions of a request chain, as the FUSE server wants them: contents of a `WRITE` that
//! stay in guest memory, and a reply that is put there.

use std::io;
use std::os::fd::BorrowedFd;

use flist_view::filesystem::{ReadSink, WriteSource};
use flist_view::fuse::{REPLY_HEADER_SIZE, Reply};

use super::vectored;
use crate::Buffers;

/// [`REPLY_HEADER_SIZE`] as the ring counts.
const HEADER_SIZE: u32 = 16;
const _: () = assert!(HEADER_SIZE as usize == REPLY_HEADER_SIZE);

/// A reply under construction in the writable buffers of a chain: the body first, the header last.
pub(super) struct GuestReply<'a> {
    buffers: Buffers<'a>,
    capacity: u32,
    size: u32,
    is_sent: bool,
}

impl<'a> GuestReply<'a> {
    /// A reply into `buffers`, which have `capacity` bytes: at least a header's.
    pub(super) const fn new(buffers: Buffers<'a>, capacity: u32) -> Self {
        Self { buffers, capacity, size: 0, is_sent: false }
    }

    /// How many bytes of the chain were written: none if there was no reply.
    pub(super) const fn written(&self) -> u32 {
        if self.is_sent { HEADER_SIZE + self.size } else { 0 }
    }

    const fn room_left(&self) -> u32 {
        self.capacity.saturating_sub(HEADER_SIZE).saturating_sub(self.size)
    }

    /// `size` as the ring counts, if there is room for it.
    fn fitting(&self, size: usize) -> io::Result<u32> {
        let size = u32::try_from(size).ok().filter(|size| *size <= self.room_left());
        size.ok_or_else(|| io::ErrorKind::WriteZero.into())
    }
}

impl ReadSink for GuestReply<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let size = self.fitting(bytes.len())?;
        let written = self.buffers.write(HEADER_SIZE + self.size, bytes, "a reply");
        written.map_err(io::Error::other)?;
        self.size += size;
        Ok(())
    }

    fn file(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<()> {
        if self.file_up_to(file, offset, size)? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn file_up_to(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let size = self.fitting(size)?;
        let slices = self.buffers.slices(HEADER_SIZE + self.size, size);
        let count = vectored::read(file, offset, slices)?;
        self.size += u32::try_from(count).unwrap_or(size).min(size);
        Ok(count)
    }
}

impl Reply for GuestReply<'_> {
    fn room(&self) -> usize {
        usize::try_from(self.room_left()).unwrap_or(usize::MAX)
    }

    fn size(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    fn clear(&mut self) {
        self.size = 0;
    }

    fn send(&mut self, header: [u8; REPLY_HEADER_SIZE]) -> io::Result<()> {
        self.buffers.write(0, &header, "a reply's header").map_err(io::Error::other)?;
        self.is_sent = true;
        Ok(())
    }
}

/// What a `WRITE` carries, in the readable buffers of its chain.
pub(super) struct GuestContents<'a> {
    buffers: Buffers<'a>,
    skip: u32,
    size: u32,
}

impl<'a> GuestContents<'a> {
    /// The `size` bytes of `buffers` from byte `skip` on.
    pub(super) const fn new(buffers: Buffers<'a>, skip: u32, size: u32) -> Self {
        Self { buffers, skip, size }
    }
}

impl WriteSource for GuestContents<'_> {
    fn size(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    fn write(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(self.size);
        vectored::write(file, offset, self.buffers.slices(self.skip, size))
    }
}
