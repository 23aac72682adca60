//! Bytes of one client that came and are no whole request yet.
//!
//! Most requests come whole: the event loop receives into one buffer that all clients share, and only
//! what is left over is kept here. An idle client has no buffer at all. Memory grows with the bytes
//! that came, never with the bytes that were promised.

/// Memory that is kept when the buffer becomes empty, in bytes. More is given back when a client
/// pauses.
const SIZE_MIN: usize = 16 * 1024;

/// The unfinished request of a client.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    begin: usize,
}

impl Input {
    /// What came and was not consumed.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.begin == self.bytes.len()
    }

    /// Appends what was received elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.make_room(bytes.len());
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// A buffer whose spare capacity, at least `room` bytes, is for receiving into.
    pub fn space(&mut self, room: usize) -> &mut Vec<u8> {
        self.make_room(room);
        &mut self.bytes
    }

    /// Forgets the first `count` unread bytes.
    pub fn consume(&mut self, count: usize) {
        self.begin = self.begin.saturating_add(count).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.begin = 0;
        }
    }

    /// Gives memory back if nothing waits. For idle clients.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory_size(&self) -> usize {
        self.bytes.capacity()
    }

    /// Moves what waits to the front if that is little, else doubles the buffer.
    fn make_room(&mut self, room: usize) {
        if self.bytes.capacity() - self.bytes.len() >= room {
            return;
        }
        let unread = self.bytes.len() - self.begin;
        if self.begin > 0 {
            self.bytes.copy_within(self.begin.., 0);
            self.bytes.truncate(unread);
            self.begin = 0;
        }
        if self.bytes.capacity() - unread < room {
            let size = (2 * self.bytes.capacity()).max(unread + room).max(SIZE_MIN);
            self.bytes.reserve_exact(size - unread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut input = Input::default();
        let (mut next_in, mut next_out) = (0_u32, 0_u32);
        for step in 1..400_usize {
            for _ in 0..step {
                input.extend(&next_in.to_le_bytes());
                next_in += 1;
            }
            while input.unread().len() > step * 2 {
                let word: [u8; 4] = input.unread()[..4].try_into().unwrap();
                assert_eq!(u32::from_le_bytes(word), next_out);
                next_out += 1;
                input.consume(4);
            }
        }
        assert!(input.memory_size() <= 4 * SIZE_MIN, "{}", input.memory_size());
        input.consume(usize::MAX);
        input.shrink();
        assert!(input.is_empty() && input.memory_size() == 0);
    }
}
