//! A range of a file that is read by position: a blob, a spooled layer, a member of a tar.
//!
//! Everything that parses takes [`ReadAt`], so tests and fuzzers can hand over plain bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes that are read by position.
pub trait ReadAt {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Reads up to `buffer.len()` bytes at `offset`; 0 only at the end or for an empty buffer.
    ///
    /// # Errors
    /// If the system can't read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// A range of an open file.
#[derive(Clone, Debug)]
pub struct Region {
    file: Arc<File>,
    base: u64,
    size: u64,
}

/// Reads a [`ReadAt`] from a position on.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    offset: u64,
    end: u64,
}

impl Region {
    /// The whole of `file`, at its present size.
    ///
    /// # Errors
    /// If the system can't tell the size.
    pub fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), base: 0, size })
    }

    /// The part of `size` bytes at `offset`; none if that reaches beyond the end.
    #[must_use]
    pub fn part(&self, offset: u64, size: u64) -> Option<Self> {
        let end = offset.checked_add(size)?;
        let base = self.base.checked_add(offset)?;
        (end <= self.size).then(|| Self { file: Arc::clone(&self.file), base, size })
    }

    /// Reads from the beginning to the end.
    #[must_use]
    pub fn reader(&self) -> Reader<Self> {
        Reader::new(self.clone(), 0, self.size)
    }
}

impl ReadAt for Region {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let size = rest.min(buffer.len());
        let (head, _) = buffer.split_at_mut(size);
        self.file.read_at(head, self.base.saturating_add(offset))
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let (_, mut rest) = self.split_at(start);
        rest.read(buffer)
    }
}

impl<S: ReadAt + ?Sized> ReadAt for &S {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }
}

impl<S: ReadAt> Reader<S> {
    /// Reads bytes `offset..end` of `source`.
    #[must_use]
    pub const fn new(source: S, offset: u64, end: u64) -> Self {
        Self { source, offset, end }
    }
}

impl<S: ReadAt> Read for Reader<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let (head, _) = buffer.split_at_mut(rest.min(buffer.len()));
        let size = self.source.read_at(head, self.offset)?;
        self.offset = self.offset.saturating_add(size as u64);
        Ok(size)
    }
}

/// Fills `buffer` from `offset` on; false if the source ends before.
///
/// # Errors
/// If the system can't read.
pub fn read_exact_at(
    source: &(impl ReadAt + ?Sized),
    mut buffer: &mut [u8],
    mut offset: u64,
) -> io::Result<bool> {
    while !buffer.is_empty() {
        let size = source.read_at(buffer, offset)?;
        if size == 0 {
            return Ok(false);
        }
        buffer = buffer.split_at_mut(size).1;
        offset = offset.saturating_add(size as u64);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn region(bytes: &[u8]) -> Region {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Region::whole(file).unwrap()
    }

    #[test]
    fn parts_of_parts_stay_inside() {
        let part = region(b"0123456789").part(2, 6).unwrap();
        let mut text = String::new();
        part.reader().read_to_string(&mut text).unwrap();
        assert_eq!(text, "234567");
        let mut buffer = [0; 9];
        assert_eq!(part.part(4, 2).unwrap().read_at(&mut buffer, 1).unwrap(), 1);
        assert_eq!(buffer[0], b'7');
        assert!(part.part(4, 3).is_none() && part.part(u64::MAX, 2).is_none());
    }

    #[test]
    fn filling_a_buffer_beyond_the_end_says_so() {
        let mut buffer = [0; 4];
        assert!(read_exact_at(&b"abcdef"[..], &mut buffer, 2).unwrap());
        assert_eq!(&buffer, b"cdef");
        assert!(!read_exact_at(&b"abcdef"[..], &mut buffer, 3).unwrap());
        assert!(!read_exact_at(&b"abcdef"[..], &mut buffer, u64::MAX).unwrap());
    }
}
