//! Little-endian fields off the front of a slice that nobody vouches for.
//!
//! The index and the FUSE wire are read with this and nothing else, so that no length or offset
//! found in a file or sent by a guest can become an index out of bounds.

/// What is left to read. Every method takes from the front, or returns `None` and takes nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(crate) fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(size)?;
        self.0 = tail;
        Some(head)
    }

    /// All that was not taken yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

/// Record `position` of a table of `N`-byte records.
pub(crate) fn record<const N: usize>(table: &[u8], position: u32) -> Option<&[u8; N]> {
    let start = usize::try_from(position).ok()?.checked_mul(N)?;
    table.get(start..)?.first_chunk()
}

/// `size` bytes at `offset`.
pub(crate) fn range(bytes: &[u8], offset: u32, size: usize) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(size)?)
}
