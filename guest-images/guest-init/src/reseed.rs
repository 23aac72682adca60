//! The message by which the host gives a restored guest entropy and the time: the guest's side of
//! `vmm/virtio/src/vsock/FORMAT.md`.

use std::time::Duration;

use crate::bytes::{array, le16, le32, le64};

/// Bytes of a message.
pub const MESSAGE_SIZE: usize = 96;
/// Bytes of entropy in it.
pub const ENTROPY_SIZE: usize = 64;
const MAGIC: [u8; 8] = *b"ZOSRSEED";
const VERSION: u16 = 1;

/// What the host says.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The time, since 1970.
    pub wall_clock: Duration,
    /// Random bytes that nobody else was told.
    pub entropy: [u8; ENTROPY_SIZE],
}

impl Message {
    /// The message that `bytes` hold; `None` if they hold none, or one of another version.
    #[must_use]
    pub fn decode(bytes: &[u8; MESSAGE_SIZE]) -> Option<Self> {
        let is_known = array(bytes, 0)? == MAGIC
            && le16(bytes, 8)? == VERSION
            && usize::from(le16(bytes, 10)?) == MESSAGE_SIZE;
        let nanoseconds = le32(bytes, 24).filter(|&nanoseconds| nanoseconds < 1_000_000_000)?;
        let wall_clock = Duration::new(le64(bytes, 16)?, nanoseconds);
        is_known.then_some(Self { wall_clock, entropy: array(bytes, 32)? })
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("wall_clock", &self.wall_clock).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that the host's own test has.
    fn bytes() -> [u8; MESSAGE_SIZE] {
        let mut bytes = b"ZOSRSEED\x01\x00\x60\x00\0\0\0\0".to_vec();
        bytes.extend([6, 5, 4, 3, 2, 1, 0, 0, 10, 9, 8, 7, 0, 0, 0, 0]);
        bytes.extend(0x80..0xc0);
        bytes.try_into().unwrap()
    }

    #[test]
    fn a_message_is_understood() {
        let message = Message::decode(&bytes()).unwrap();
        assert_eq!(message.wall_clock, Duration::new(0x0102_0304_0506, 0x0708_090a));
        assert_eq!((message.entropy[0], message.entropy[63]), (0x80, 0xbf));
        assert!(!format!("{message:?}").contains("128"), "entropy is nobody's business");
    }

    #[test]
    fn other_bytes_are_none() {
        for (at, byte) in [(0, b'z'), (8, 2), (9, 1), (10, 95), (27, 0x77)] {
            let mut bytes = bytes();
            bytes[at] = byte;
            assert_eq!(Message::decode(&bytes), None, "{at}");
        }
        // Reserved bytes may have any value.
        for at in [12, 15, 28, 31] {
            let mut bytes = bytes();
            bytes[at] = 0xff;
            assert!(Message::decode(&bytes).is_some(), "{at}");
        }
    }
}
