//! Packets of the message subsystem: the payload of inner type 1.
//!
//! ```text
//!  id 8 │ flags 2 │ reserved 2 │ INIT   length 8, topic length 1, topic
//!                              │ CHUNK  index 8, offset 8, size 8, data
//!                              │ DONE   chunk count 8, BLAKE3 of the message 32
//!                              │ READ, ABORTED  nothing
//! ```
//!
//! An acknowledgement is the packet with one more flag, without topic and data. Release 0.7.3 leaves
//! them in, and readers step over them (`reference: mycelium 1.10, 1.15`). The flag REPLY marks the
//! INIT of an answer, which has the id of what it answers.

use std::fmt;

use crate::random::{RandomError, random_bytes};
use crate::reader::Reader;

/// Size of the header that all packets begin with, in bytes.
pub const MESSAGE_HEADER_SIZE: usize = 12;
/// Bytes of a message in each CHUNK but the last one.
pub const CHUNK_SIZE: usize = 1300;
/// Longest topic, in bytes.
pub const TOPIC_SIZE_MAX: usize = 255;
/// Largest packet that we write, in bytes: a full CHUNK.
pub const MESSAGE_PACKET_SIZE_MAX: usize = MESSAGE_HEADER_SIZE + 24 + CHUNK_SIZE;

const FLAG_INIT: u16 = 0x8000;
const FLAG_DONE: u16 = 0x4000;
const FLAG_ABORTED: u16 = 0x2000;
const FLAG_CHUNK: u16 = 0x1000;
const FLAG_READ: u16 = 0x0800;
const FLAG_REPLY: u16 = 0x0400;
const FLAG_ACK: u16 = 0x0100;
const FLAGS_KIND: u16 = FLAG_INIT | FLAG_DONE | FLAG_ABORTED | FLAG_CHUNK | FLAG_READ;

/// Names a message and its reply; shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub [u8; 8]);

impl MessageId {
    /// One that nobody used.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        random_bytes().map(Self)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

impl std::str::FromStr for MessageId {
    type Err = MessageIdError;

    fn from_str(text: &str) -> Result<Self, MessageIdError> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(id) if is_id => Ok(Self(id.to_be_bytes())),
            _ => Err(MessageIdError(text.to_owned())),
        }
    }
}

/// A text is no message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message id has 16 hexadecimal digits, unlike {0:?}")]
pub struct MessageIdError(pub String);

/// One packet of a message's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessagePacket<'a> {
    /// Of which message.
    pub id: MessageId,
    /// Whether the message answers one with the same id. Said by INIT and its acknowledgement alone.
    pub is_reply: bool,
    /// What it says.
    pub kind: MessageKind<'a>,
}

/// What a packet says about its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind<'a> {
    /// Here comes a message.
    Init {
        /// Its size, in bytes.
        length: u64,
        /// What it is about; at most [`TOPIC_SIZE_MAX`] bytes.
        topic: &'a [u8],
    },
    /// It may come.
    InitAck {
        /// As announced.
        length: u64,
        /// As announced.
        topic_length: u8,
    },
    /// A part of it.
    Chunk {
        /// Which, from 0.
        index: u64,
        /// Where its bytes belong.
        offset: u64,
        /// Its bytes.
        data: &'a [u8],
    },
    /// That part is here.
    ChunkAck {
        /// Which.
        index: u64,
        /// Where its bytes belong.
        offset: u64,
        /// How many there are.
        size: u64,
    },
    /// That was all.
    Done {
        /// How many parts.
        chunk_count: u64,
        /// BLAKE3 of the whole message.
        checksum: [u8; 32],
    },
    /// It is whole.
    DoneAck {
        /// As announced.
        chunk_count: u64,
        /// As announced.
        checksum: [u8; 32],
    },
    /// The receiver's user has it.
    Read,
    /// The sender gave up.
    Aborted,
}

impl<'a> MessagePacket<'a> {
    /// Appends the packet.
    ///
    /// # Panics
    /// When the topic is too long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let reply = if self.is_reply { FLAG_REPLY } else { 0 };
        out.extend(self.id.0);
        out.extend((self.kind.flags() | reply).to_be_bytes());
        out.extend([0, 0]);
        match self.kind {
            MessageKind::Init { length, topic } => {
                out.extend(length.to_be_bytes());
                out.push(u8::try_from(topic.len()).expect("a topic has at most 255 bytes"));
                out.extend(topic);
            }
            MessageKind::InitAck { length, topic_length } => {
                out.extend(length.to_be_bytes());
                out.push(topic_length);
            }
            MessageKind::Chunk { index, offset, data } => {
                out.extend([index, offset, data.len() as u64].map(u64::to_be_bytes).as_flattened());
                out.extend(data);
            }
            MessageKind::ChunkAck { index, offset, size } => {
                out.extend([index, offset, size].map(u64::to_be_bytes).as_flattened());
            }
            MessageKind::Done { chunk_count, checksum }
            | MessageKind::DoneAck { chunk_count, checksum } => {
                out.extend(chunk_count.to_be_bytes());
                out.extend(checksum);
            }
            MessageKind::Read | MessageKind::Aborted => {}
        }
    }

    /// What a payload says.
    ///
    /// # Errors
    /// When it is none of these packets, or shorter than its fields.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let short = MessageError::Short(payload.len());
        let mut reader = Reader::new(payload);
        let id = MessageId(reader.array().ok_or(short)?);
        let flags = reader.u16().ok_or(short)?;
        let _reserved = reader.u16().ok_or(short)?;
        let is_ack = flags & FLAG_ACK != 0;
        let kind = match (flags & FLAGS_KIND, is_ack) {
            (FLAG_INIT, _) => init(reader, is_ack),
            (FLAG_CHUNK, _) => chunk(reader, is_ack),
            (FLAG_DONE, _) => done(reader, is_ack),
            (FLAG_READ, false) => Some(MessageKind::Read),
            (FLAG_ABORTED, false) => Some(MessageKind::Aborted),
            _ => return Err(MessageError::Flags(flags)),
        };
        Ok(Self { id, is_reply: flags & FLAG_REPLY != 0, kind: kind.ok_or(short)? })
    }
}

impl MessageKind<'_> {
    const fn flags(&self) -> u16 {
        match self {
            Self::Init { .. } => FLAG_INIT,
            Self::InitAck { .. } => FLAG_INIT | FLAG_ACK,
            Self::Chunk { .. } => FLAG_CHUNK,
            Self::ChunkAck { .. } => FLAG_CHUNK | FLAG_ACK,
            Self::Done { .. } => FLAG_DONE,
            Self::DoneAck { .. } => FLAG_DONE | FLAG_ACK,
            Self::Read => FLAG_READ,
            Self::Aborted => FLAG_ABORTED,
        }
    }
}

/// A payload that is no packet of the message subsystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It ends before its fields do.
    #[error("message packet of {0} bytes is shorter than its fields")]
    Short(usize),
    /// Its flags name no kind of packet, or more than one.
    #[error("message packet with flags {0:#06x}")]
    Flags(u16),
}

fn init(mut reader: Reader<'_>, is_ack: bool) -> Option<MessageKind<'_>> {
    let length = reader.u64()?;
    let topic_length = reader.u8()?;
    if is_ack {
        return Some(MessageKind::InitAck { length, topic_length });
    }
    Some(MessageKind::Init { length, topic: reader.bytes(usize::from(topic_length))? })
}

fn chunk(mut reader: Reader<'_>, is_ack: bool) -> Option<MessageKind<'_>> {
    let (index, offset, size) = (reader.u64()?, reader.u64()?, reader.u64()?);
    if is_ack {
        return Some(MessageKind::ChunkAck { index, offset, size });
    }
    let data = reader.bytes(usize::try_from(size).ok()?)?;
    Some(MessageKind::Chunk { index, offset, data })
}

fn done(mut reader: Reader<'_>, is_ack: bool) -> Option<MessageKind<'_>> {
    let (chunk_count, checksum) = (reader.u64()?, reader.array()?);
    Some(if is_ack {
        MessageKind::DoneAck { chunk_count, checksum }
    } else {
        MessageKind::Done { chunk_count, checksum }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 8] = [0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4];

    fn packet(flags: u16, body: &[u8]) -> Vec<u8> {
        [&ID[..], &flags.to_be_bytes(), &[0, 0], body].concat()
    }

    #[test]
    fn an_acknowledgement_may_carry_the_whole_packet() {
        let chunk_fields = [3_u64, 3900, 2].map(u64::to_be_bytes).concat();
        for data in [&b""[..], b"xy"] {
            let bytes = packet(FLAG_CHUNK | FLAG_ACK, &[&chunk_fields, data].concat());
            let kind = MessageKind::ChunkAck { index: 3, offset: 3900, size: 2 };
            assert_eq!(MessagePacket::parse(&bytes).unwrap().kind, kind);
        }
        for topic in [&b""[..], b"topic"] {
            let body = [&7_u64.to_be_bytes()[..], &[5], topic].concat();
            let bytes = packet(FLAG_INIT | FLAG_ACK, &body);
            let kind = MessageKind::InitAck { length: 7, topic_length: 5 };
            assert_eq!(MessagePacket::parse(&bytes).unwrap().kind, kind);
        }
    }

    #[test]
    fn a_packet_that_ends_too_early_is_refused() {
        for (flags, size) in [(FLAG_INIT, 9), (FLAG_CHUNK, 24), (FLAG_DONE, 40), (FLAG_READ, 0)] {
            let whole = packet(flags, &vec![0; size]);
            assert!(MessagePacket::parse(&whole).is_ok(), "{flags:x}");
            let short = &whole[..whole.len() - 1];
            assert_eq!(MessagePacket::parse(short), Err(MessageError::Short(short.len())));
        }
        let chunk = packet(FLAG_CHUNK, &[0, 0, u64::MAX].map(u64::to_be_bytes).concat());
        assert_eq!(MessagePacket::parse(&chunk), Err(MessageError::Short(36)));
    }

    #[test]
    fn a_packet_is_of_one_kind() {
        for flags in [0, FLAG_ACK, FLAG_READ | FLAG_ACK, FLAG_ABORTED | FLAG_ACK, 0xf800] {
            let bytes = packet(flags, &[0; 64]);
            assert_eq!(MessagePacket::parse(&bytes), Err(MessageError::Flags(flags)));
        }
    }

    #[test]
    fn an_id_is_16_digits() {
        let id: MessageId = "deadbeef01020304".parse().unwrap();
        assert_eq!((id, id.to_string().as_str()), (MessageId(ID), "deadbeef01020304"));
        for text in ["", "+eadbeef01020304", "deadbeef0102030", "deadbeef010203040", "x"] {
            assert!(text.parse::<MessageId>().is_err(), "{text}");
        }
    }
}
