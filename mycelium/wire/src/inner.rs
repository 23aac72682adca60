//! What a sealed body holds: `version 01 │ type │ 0 │ 0`, then a payload.
//!
//! Receivers drop versions and types that they don't know without a word, so this is where nodes may
//! tell others more: type 0x10 is ours (`reference: mycelium 1.6, 5.4`).

use crate::reader::Reader;

/// Size of the inner header, in bytes.
pub const INNER_HEADER_SIZE: usize = 4;

const VERSION: u8 = 1;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerType {
    /// An IPv6 packet.
    Packet = 0,
    /// A packet of the message subsystem ([`crate::message`]).
    Message = 1,
    /// An ICMP error from a node on the way ([`crate::icmp`]).
    Icmp = 2,
    /// A handshake of a session ([`crate::session`]); existing nodes don't know it.
    Session = 0x10,
}

impl InnerType {
    /// The header of a payload of this type.
    #[must_use]
    pub const fn header(self) -> [u8; INNER_HEADER_SIZE] {
        [VERSION, self as u8, 0, 0]
    }
}

/// The type of an opened body, and its payload.
///
/// # Errors
/// When this is not for a node of this version.
pub fn parse(body: &[u8]) -> Result<(InnerType, &[u8]), InnerError> {
    let mut reader = Reader::new(body);
    let short = InnerError::Short(body.len());
    let [version, type_number, _, _] = reader.array::<INNER_HEADER_SIZE>().ok_or(short)?;
    if version != VERSION {
        return Err(InnerError::Version(version));
    }
    let inner_type = match type_number {
        0 => InnerType::Packet,
        1 => InnerType::Message,
        2 => InnerType::Icmp,
        0x10 => InnerType::Session,
        other => return Err(InnerError::Type(other)),
    };
    Ok((inner_type, reader.rest()))
}

/// A body that is not for a node of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InnerError {
    /// It has no header.
    #[error("an inner packet has at least 4 bytes, not {0}")]
    Short(usize),
    /// It is of another version.
    #[error("inner packet of version {0}, expected 1")]
    Version(u8),
    /// It is of an unknown type.
    #[error("inner packet of unknown type {0}")]
    Type(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_is_written() {
        for inner_type in
            [InnerType::Packet, InnerType::Message, InnerType::Icmp, InnerType::Session]
        {
            let body = [&inner_type.header()[..], b"x"].concat();
            assert_eq!(parse(&body), Ok((inner_type, &b"x"[..])));
        }
        assert_eq!(parse(&[1, 0, 0]), Err(InnerError::Short(3)));
        assert_eq!(parse(&[2, 0, 0, 0]), Err(InnerError::Version(2)));
        assert_eq!(parse(&[1, 0x11, 0, 0]), Err(InnerError::Type(0x11)));
        // Reserved bytes may say anything.
        assert_eq!(parse(&[1, 0, 9, 9]), Ok((InnerType::Packet, &b""[..])));
    }
}
