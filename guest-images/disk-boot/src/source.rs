//! The bytes of a disk, of which only so many are read.
//!
//! Readers of file systems are driven by what is on the disk, and the disk is hostile. Whatever they are
//! led to do, they read through a [`Window`], and all windows of a disk count together: after
//! [`READ_COUNT_MAX`] reads or [`READ_SIZE_MAX`] bytes there are no more. A chain that is a circle or a
//! table that never ends becomes an error here, if it is not noticed before.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Most reads of a disk. A kernel and an initramfs of the largest size take a twentieth of it.
pub const READ_COUNT_MAX: u64 = 4 << 20;
/// Most bytes that are read of a disk: the largest kernel and initramfs, and as much again.
pub const READ_SIZE_MAX: u64 = 2 << 30;

/// A disk that is open.
#[derive(Debug)]
pub struct Source {
    file: File,
    size: u64,
    reads_left: Cell<u64>,
    bytes_left: Cell<u64>,
}

/// Why bytes can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They are beyond the end of the disk or partition.
    #[error("{size} bytes at {at} are beyond the end, which is at {end}")]
    Outside {
        /// The first one.
        at: u64,
        /// How many.
        size: usize,
        /// How many there are.
        end: u64,
    },
    /// Too much was read already.
    #[error(
        "more than {READ_COUNT_MAX} reads or {READ_SIZE_MAX} bytes: what is on the disk leads nowhere"
    )]
    TooMuch,
    /// The system says no.
    #[error("reading at byte {at}: {source}")]
    Io {
        /// Where.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl Source {
    /// A disk: a regular file or a block device, open for reading.
    ///
    /// # Errors
    /// It has no size.
    pub fn new(mut file: File) -> io::Result<Self> {
        // Of a block device, metadata tells no size.
        let size = file.seek(SeekFrom::End(0))?;
        let (reads_left, bytes_left) = (Cell::new(READ_COUNT_MAX), Cell::new(READ_SIZE_MAX));
        Ok(Self { file, size, reads_left, bytes_left })
    }

    /// All of it.
    #[must_use]
    pub fn window(self) -> Window {
        let size = self.size;
        Window { source: Rc::new(self), start: 0, size }
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        let reads_left = self.reads_left.get().checked_sub(1).ok_or(ReadError::TooMuch)?;
        let size = bytes.len() as u64;
        let bytes_left = self.bytes_left.get().checked_sub(size).ok_or(ReadError::TooMuch)?;
        self.reads_left.set(reads_left);
        self.bytes_left.set(bytes_left);
        self.file.read_exact_at(bytes, at).map_err(|source| ReadError::Io { at, source })
    }
}

/// A part of a disk: a partition, or all of it.
#[derive(Clone, Debug)]
pub struct Window {
    source: Rc<Source>,
    start: u64,
    size: u64,
}

impl Window {
    /// How many bytes there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A part of this one; none if it is not inside.
    #[must_use]
    pub fn part(&self, start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        let source = Rc::clone(&self.source);
        (end <= self.size).then(|| Self { source, start: self.start + start, size })
    }

    /// Fills `bytes` with what is at `at`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        let size = bytes.len();
        let is_inside = at.checked_add(size as u64).is_some_and(|end| end <= self.size);
        if !is_inside {
            return Err(ReadError::Outside { at, size, end: self.size });
        }
        self.source.read(self.start + at, bytes)
    }

    /// `size` bytes at `at`. Callers name a limit of their own for it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn bytes(&self, at: u64, size: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; size];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    pub(crate) fn window(bytes: &[u8]) -> Window {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Source::new(file).unwrap().window()
    }

    #[test]
    fn nothing_outside_of_a_part_is_read() {
        let all = window(b"0123456789");
        let part = all.part(2, 5).unwrap();
        assert_eq!((part.size(), part.bytes(1, 3).unwrap()), (5, b"345".to_vec()));
        assert_eq!(part.part(1, 4).unwrap().bytes(0, 4).unwrap(), b"3456");
        for (at, size) in [(0, 6), (5, 1), (u64::MAX, 1)] {
            assert!(matches!(part.bytes(at, size), Err(ReadError::Outside { .. })), "{at} {size}");
        }
        for (start, size) in [(0, 11), (11, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(all.part(start, size).is_none(), "{start} {size}");
        }
    }

    #[test]
    fn all_parts_together_are_read_only_so_often() {
        let all = window(b"0123456789");
        all.source.reads_left.set(3);
        let part = all.part(0, 5).unwrap();
        for _ in 0..3 {
            part.bytes(0, 1).unwrap();
        }
        assert!(matches!(all.bytes(0, 1), Err(ReadError::TooMuch)));
        let much = window(b"0123456789");
        much.source.bytes_left.set(9);
        assert!(matches!(much.bytes(0, 10), Err(ReadError::TooMuch)));
        much.bytes(0, 9).unwrap();
    }
}
