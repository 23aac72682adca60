//! The unread bytes of one peer, bounded.
//!
//! ```text
//!  ┌──────────┬───────────────┬───────────┐
//!  │ consumed │ unread()      │ space()   │
//!  └──────────┴───────────────┴───────────┘
//!             begin           end         storage.len()
//! ```
//!
//! Bytes are moved to the front only when room is needed, and storage grows with what arrives: a
//! peer that announces 8 MiB and sends nothing costs one small buffer.

/// Storage of a buffer that received anything, in bytes.
pub const SIZE_MIN: usize = 16 * 1024;

/// Bytes that came and were not consumed yet.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Always filled to its length; `end` tells how much of it means something.
    storage: Vec<u8>,
    begin: usize,
    end: usize,
    size_max: usize,
}

/// A peer has sent as much as may wait, and still no whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes wait to be parsed, no more are allowed")]
pub struct Full {
    /// Bytes that wait.
    pub size: usize,
}

impl Buffer {
    /// An empty buffer, for at most `size_max` unread bytes.
    #[must_use]
    pub fn new(size_max: usize) -> Self {
        Self { storage: Vec::new(), begin: 0, end: 0, size_max }
    }

    /// What came and was not consumed.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        self.storage.get(self.begin..self.end).unwrap_or_default()
    }

    /// Room to receive into: never empty. Call [`Buffer::received`] with how much was filled.
    ///
    /// # Errors
    /// [`Full`] when the limit is reached.
    pub fn space(&mut self) -> Result<&mut [u8], Full> {
        let unread = self.end - self.begin;
        if unread >= self.size_max {
            return Err(Full { size: unread });
        }
        if self.end == self.storage.len() {
            self.make_room(unread);
        }
        let limit = self.storage.len().min(self.begin + self.size_max);
        Ok(self.storage.get_mut(self.end..limit).unwrap_or_default())
    }

    /// `count` bytes of [`Buffer::space`] were filled; more than there was room for are ignored.
    pub fn received(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.storage.len());
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`Full`] when they do not fit; then none were taken beyond the limit.
    pub fn extend(&mut self, mut bytes: &[u8]) -> Result<(), Full> {
        while !bytes.is_empty() {
            let space = self.space()?;
            let count = space.len().min(bytes.len());
            let (head, tail) = bytes.split_at(count);
            if let Some(room) = space.get_mut(..count) {
                room.copy_from_slice(head);
            }
            self.received(count);
            bytes = tail;
        }
        Ok(())
    }

    /// Forgets the first `count` unread bytes.
    pub fn consume(&mut self, count: usize) {
        self.begin = self.begin.saturating_add(count).min(self.end);
        if self.begin == self.end {
            self.begin = 0;
            self.end = 0;
        }
    }

    /// Gives memory back if nothing waits and more than [`SIZE_MIN`] is held. For idle peers.
    pub fn shrink(&mut self) {
        if self.begin == self.end && self.storage.len() > SIZE_MIN {
            *self = Self::new(self.size_max);
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn storage_size(&self) -> usize {
        self.storage.len()
    }

    /// Moves unread bytes to the front if that frees at least half, else doubles the storage.
    fn make_room(&mut self, unread: usize) {
        if unread <= self.storage.len() / 2 && !self.storage.is_empty() {
            self.storage.copy_within(self.begin..self.end, 0);
            self.begin = 0;
            self.end = unread;
            return;
        }
        let size = self.storage.len().saturating_mul(2).max(SIZE_MIN);
        self.storage.resize(size, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut buffer = Buffer::new(1 << 20);
        let mut next_in = 0_u32;
        let mut next_out = 0_u32;
        for step in 1..400_usize {
            for _ in 0..step {
                buffer.extend(&next_in.to_le_bytes()).unwrap();
                next_in += 1;
            }
            while buffer.unread().len() > step * 2 {
                let word: [u8; 4] = buffer.unread()[..4].try_into().unwrap();
                assert_eq!(u32::from_le_bytes(word), next_out);
                next_out += 1;
                buffer.consume(4);
            }
        }
        assert!(buffer.storage_size() <= 2 * SIZE_MIN, "{}", buffer.storage_size());
    }

    #[test]
    fn no_more_waits_than_allowed() {
        let mut buffer = Buffer::new(SIZE_MIN + 10);
        let error = buffer.extend(&vec![1; SIZE_MIN + 11]).unwrap_err();
        assert_eq!(error, Full { size: SIZE_MIN + 10 });
        assert_eq!(buffer.unread().len(), SIZE_MIN + 10);
        buffer.consume(1);
        buffer.extend(&[2]).unwrap();
        assert_eq!(buffer.unread().len(), SIZE_MIN + 10);
    }

    #[test]
    fn idle_buffers_give_memory_back() {
        let mut buffer = Buffer::new(1 << 20);
        buffer.extend(&vec![0; 1 << 20]).unwrap();
        buffer.consume(usize::MAX);
        assert_eq!(buffer.unread(), b"");
        buffer.shrink();
        assert_eq!(buffer.storage_size(), 0);
        buffer.extend(b"again").unwrap();
        assert_eq!(buffer.unread(), b"again");
    }
}
