//! Bytes of handshakes and of packets in a session; `FORMAT.md` beside the crate has them as tables.
//!
//! ```text
//!  initiation  01 │ version │ suites 2 │ index 4 │ stamp 12 │ cookie 16 │ Noise IK 1: 96
//!  response    02 │ version │ 0 2      │ receiver index 4   │ Noise IK 2: 48 + index 4 + suite 2
//!  challenge   03 │ version │ 0 2      │ receiver index 4   │ cookie 16
//!  data        receiver index 4 │ counter 8 │ sealed: nothing, or kind 1 and payload │ tag 16
//! ```
//!
//! The first three are payloads of inner type 0x10, sealed like every inner packet. All that an
//! initiation says in front of its Noise message is part of the handshake's prologue.

use super::time::{STAMP_SIZE, Stamp};
use crate::noise::{IK_FIRST_OVERHEAD, IK_SECOND_OVERHEAD};
use crate::reader::Reader;

/// The version of sessions that this is.
pub const VERSION: u8 = 1;
/// Size of a cookie, in bytes.
pub(super) const COOKIE_SIZE: usize = 16;
/// Size of what stands in front of an initiation's Noise message, in bytes.
pub(super) const INITIATION_HEADER_SIZE: usize = 8 + STAMP_SIZE + COOKIE_SIZE;
/// Size of what a response says inside its Noise message, in bytes.
pub(super) const ACCEPT_SIZE: usize = 6;

const FORM_INITIATION: u8 = 1;
const FORM_RESPONSE: u8 = 2;
const FORM_CHALLENGE: u8 = 3;

/// A handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Initiation {
        header: Initiation,
        /// The bytes of `header`.
        header_bytes: &'a [u8],
        noise: &'a [u8],
    },
    Response {
        receiver: u32,
        noise: &'a [u8],
    },
    Challenge {
        receiver: u32,
        cookie: [u8; COOKIE_SIZE],
    },
}

/// What an initiation says in the open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initiation {
    pub(super) suites: u16,
    pub(super) index: u32,
    pub(super) stamp: Stamp,
    /// Zero, or what a challenge asked for.
    pub(super) cookie: [u8; COOKIE_SIZE],
}

impl Initiation {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([FORM_INITIATION, VERSION]);
        out.extend(self.suites.to_be_bytes());
        out.extend(self.index.to_be_bytes());
        out.extend(self.stamp.0);
        out.extend(self.cookie);
    }
}

/// Appends a response's header.
pub(super) fn write_response(receiver: u32, out: &mut Vec<u8>) {
    out.extend([FORM_RESPONSE, VERSION, 0, 0]);
    out.extend(receiver.to_be_bytes());
}

/// What a response says where nobody else reads it.
pub(super) fn accept(index: u32, suite: u16) -> [u8; ACCEPT_SIZE] {
    let ([a, b, c, d], [e, f]) = (index.to_be_bytes(), suite.to_be_bytes());
    [a, b, c, d, e, f]
}

/// Index and suite of [`accept`].
pub(super) fn parse_accept(bytes: &[u8]) -> Option<(u32, u16)> {
    let mut reader = Reader::new(bytes);
    let index = u32::from_be_bytes(reader.array()?);
    let suite = reader.u16()?;
    reader.rest().is_empty().then_some((index, suite))
}

pub(super) fn challenge(receiver: u32, cookie: [u8; COOKIE_SIZE]) -> Vec<u8> {
    let mut out = vec![FORM_CHALLENGE, VERSION, 0, 0];
    out.extend(receiver.to_be_bytes());
    out.extend(cookie);
    out
}

/// Reads a handshake message. Each has exactly its size.
pub(super) fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let mut reader = Reader::new(bytes);
    let [form, version] = reader.array()?;
    if version != VERSION {
        return None;
    }
    let field = reader.u16()?;
    let index = u32::from_be_bytes(reader.array()?);
    match form {
        FORM_INITIATION => {
            let stamp = Stamp(reader.array()?);
            let cookie = reader.array()?;
            let header = Initiation { suites: field, index, stamp, cookie };
            let (header_bytes, noise) = bytes.split_at_checked(INITIATION_HEADER_SIZE)?;
            let packet = Packet::Initiation { header, header_bytes, noise };
            (noise.len() == IK_FIRST_OVERHEAD).then_some(packet)
        }
        FORM_RESPONSE => {
            let noise = reader.rest();
            let is_whole = noise.len() == IK_SECOND_OVERHEAD + ACCEPT_SIZE;
            is_whole.then_some(Packet::Response { receiver: index, noise })
        }
        FORM_CHALLENGE => {
            let cookie = reader.array()?;
            let is_whole = reader.rest().is_empty();
            is_whole.then_some(Packet::Challenge { receiver: index, cookie })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written_and_at_their_size_alone() {
        let header = Initiation {
            suites: 0x0102,
            index: 0x0304_0506,
            stamp: Stamp([7; STAMP_SIZE]),
            cookie: [8; COOKIE_SIZE],
        };
        let mut first = Vec::new();
        header.encode(&mut first);
        assert_eq!(first[..8], [1, 1, 1, 2, 3, 4, 5, 6]);
        assert_eq!(first.len(), INITIATION_HEADER_SIZE);
        let header_bytes = first.clone();
        first.extend([9; IK_FIRST_OVERHEAD]);
        let expected = Packet::Initiation {
            header,
            header_bytes: &header_bytes,
            noise: &[9; IK_FIRST_OVERHEAD],
        };
        assert_eq!(parse(&first), Some(expected));

        let mut second = Vec::new();
        write_response(0xa0b0_c0d0, &mut second);
        second.extend([5; IK_SECOND_OVERHEAD + ACCEPT_SIZE]);
        assert_eq!(second[..8], [2, 1, 0, 0, 0xa0, 0xb0, 0xc0, 0xd0]);
        let noise = &[5; IK_SECOND_OVERHEAD + ACCEPT_SIZE];
        let expected = Packet::Response { receiver: 0xa0b0_c0d0, noise };
        assert_eq!(parse(&second), Some(expected));

        let third = challenge(7, [1; COOKIE_SIZE]);
        assert_eq!(parse(&third), Some(Packet::Challenge { receiver: 7, cookie: [1; 16] }));
        for message in [first, second, third] {
            for size in 0..message.len() {
                assert_eq!(parse(&message[..size]), None);
            }
            assert_eq!(parse(&[&message[..], &[0]].concat()), None);
            let mut other = message.clone();
            other[1] = 2;
            assert_eq!(parse(&other), None);
            other[..2].copy_from_slice(&[4, 1]);
            assert_eq!(parse(&other), None);
        }
        assert_eq!(parse_accept(&accept(1, 2)), Some((1, 2)));
        assert_eq!((parse_accept(&[0; 5]), parse_accept(&[0; 7])), (None, None));
    }
}
