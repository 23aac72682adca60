//! Where replies go.

use std::io;
use std::os::fd::BorrowedFd;

use crate::filesystem::ReadSink;

use super::REPLY_HEADER_SIZE;

/// Takes one reply: first its body, piece by piece through [`ReadSink`], then its header.
///
/// A transport that has room for header and body in one place (a buffer, a chain of descriptors in
/// guest memory) leaves [`REPLY_HEADER_SIZE`] bytes free in front and reads contents straight behind
/// them, so that they are copied once.
pub trait Reply: ReadSink {
    /// Body bytes that still fit.
    fn room(&self) -> usize;

    /// Body bytes taken so far.
    fn size(&self) -> usize;

    /// Forgets the body taken so far: the reply will be an error.
    fn clear(&mut self);

    /// The reply is complete: puts `header` in front of the body and sends both.
    ///
    /// # Errors
    /// What the transport says; the server passes it on.
    fn send(&mut self, header: [u8; REPLY_HEADER_SIZE]) -> io::Result<()>;
}

/// A reply in a buffer, for transports that write it with one call, and for tests.
#[derive(Debug)]
pub struct BufferReply {
    /// Header and room for a body; never grows.
    bytes: Box<[u8]>,
    /// Bytes of body taken.
    size: usize,
    is_sent: bool,
}

impl BufferReply {
    /// With room for a body of `capacity` bytes. The pages are touched only when a body needs them.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let size = capacity.saturating_add(REPLY_HEADER_SIZE);
        Self { bytes: vec![0; size].into_boxed_slice(), size: 0, is_sent: false }
    }

    /// The reply, if one was sent since the last [`BufferReply::reset`].
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        let end = REPLY_HEADER_SIZE.saturating_add(self.size);
        self.bytes.get(..end).filter(|_| self.is_sent)
    }

    /// Makes ready for the next request.
    pub fn reset(&mut self) {
        self.size = 0;
        self.is_sent = false;
    }

    /// The next `size` bytes of the body.
    fn tail(&mut self, size: usize) -> io::Result<&mut [u8]> {
        let start = REPLY_HEADER_SIZE.saturating_add(self.size);
        let end = start.saturating_add(size);
        self.bytes.get_mut(start..end).ok_or_else(|| io::ErrorKind::WriteZero.into())
    }
}

impl ReadSink for BufferReply {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tail(bytes.len())?.copy_from_slice(bytes);
        self.size = self.size.saturating_add(bytes.len());
        Ok(())
    }

    fn file(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<()> {
        if self.file_up_to(file, offset, size)? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn file_up_to(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let tail = self.tail(size)?;
        let mut done = 0;
        while let Some(rest) = tail.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(file, rest, offset.saturating_add(done as u64))? {
                0 => break,
                count => done = done.saturating_add(count),
            }
        }
        self.size = self.size.saturating_add(done);
        Ok(done)
    }
}

impl Reply for BufferReply {
    fn room(&self) -> usize {
        self.bytes.len().saturating_sub(REPLY_HEADER_SIZE).saturating_sub(self.size)
    }

    fn size(&self) -> usize {
        self.size
    }

    fn clear(&mut self) {
        self.size = 0;
    }

    fn send(&mut self, header: [u8; REPLY_HEADER_SIZE]) -> io::Result<()> {
        if let Some(front) = self.bytes.first_chunk_mut() {
            *front = header;
        }
        self.is_sent = true;
        Ok(())
    }
}
