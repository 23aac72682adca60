//! Packets of a stream or a datagram: where one begins and ends, and of which kind it is.
//!
//! ```text
//!  version 01 │ type │ reserved 2 │ control: Babel header 4, body          ([`crate::control`])
//!                                 │ data: reserved 1, length 2, hop limit 1, source 16,
//!                                 │       destination 16, body[length]
//! ```
//!
//! [`parse`] goes by length fields alone, so that a body which makes no sense is stepped over. Only a
//! wrong version or type is an error: then nobody knows where the next packet begins, and the link
//! must be closed (`reference: mycelium 1.3`).

use std::net::Ipv6Addr;

use crate::cipher::SEAL_OVERHEAD;
use crate::control::{BABEL_HEADER_SIZE, Skipped, Tlv};
use crate::inner::INNER_HEADER_SIZE;
use crate::reader::Reader;

/// Size of the header that all packets begin with, in bytes.
pub const PACKET_HEADER_SIZE: usize = 4;
/// Size of a data packet's headers, in bytes, the packet header included.
pub const DATA_HEADER_SIZE: usize = 40;
/// What a data packet adds to the IPv6 packet that it carries: headers, tag and nonce.
pub const DATA_OVERHEAD: usize = DATA_HEADER_SIZE + INNER_HEADER_SIZE + SEAL_OVERHEAD;
/// Where a data packet's body length is, in a packet.
pub const DATA_LENGTH_OFFSET: usize = 5;
/// Where a data packet's hop limit is, in a packet.
pub const DATA_HOP_LIMIT_OFFSET: usize = 7;
/// Where a data packet's source is, in a packet.
pub const DATA_SOURCE_OFFSET: usize = 8;
/// Where a data packet's destination is, in a packet.
pub const DATA_DESTINATION_OFFSET: usize = 24;
/// Largest packet that a peer can send, in bytes.
pub const PACKET_SIZE_MAX: usize = DATA_HEADER_SIZE + u16::MAX as usize;

const VERSION: u8 = 1;

/// What a packet's second byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketType {
    Data = 0,
    Control = 1,
}

impl PacketType {
    /// The first bytes of a packet of this type.
    pub(crate) const fn header(self) -> [u8; PACKET_HEADER_SIZE] {
        [VERSION, self as u8, 0, 0]
    }
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// For the router; or why it is not.
    Control(Result<Tlv, Skipped>),
    /// For some node.
    Data(DataFrame<'a>),
}

/// A packet for some node, perhaps this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFrame<'a> {
    /// From whom to whom. Nothing proves that it is true.
    pub header: DataHeader,
    /// Sealed for the destination (see [`crate::cipher`]).
    pub body: &'a [u8],
}

/// A data packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// Nodes that may still pass it on.
    pub hop_limit: u8,
    /// The node or guest that sent it.
    pub source: Ipv6Addr,
    /// The node or guest that it is for.
    pub destination: Ipv6Addr,
    /// Size of the body, in bytes.
    pub length: u16,
}

impl DataHeader {
    /// The first bytes of a data packet, the packet header included.
    #[must_use]
    pub fn encode(&self) -> [u8; DATA_HEADER_SIZE] {
        let [length_high, length_low] = self.length.to_be_bytes();
        let [version, packet_type, ..] = PacketType::Data.header();
        let mut bytes = [0; DATA_HEADER_SIZE];
        // Each packet has one, so all of it is copied in pieces of known sizes, and not byte by byte.
        let (head, addresses) = bytes.split_at_mut(DATA_SOURCE_OFFSET);
        let (source, destination) = addresses.split_at_mut(16);
        head.copy_from_slice(&[
            version,
            packet_type,
            0,
            0,
            0,
            length_high,
            length_low,
            self.hop_limit,
        ]);
        source.copy_from_slice(&self.source.octets());
        destination.copy_from_slice(&self.destination.octets());
        bytes
    }
}

/// The packet at the front of `bytes` and its size; none when more bytes are needed.
///
/// Nothing is copied but what a TLV says, and no more than [`PACKET_SIZE_MAX`] bytes are ever needed.
///
/// # Errors
/// When this can't be a packet. The stream has no next one, then.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let mut reader = Reader::new(bytes);
    let Some(packet_type) = packet_type(&mut reader)? else { return Ok(None) };
    let frame = match packet_type {
        PacketType::Data => data(&mut reader).map(Frame::Data),
        PacketType::Control => control(&mut reader).map(|babel| Frame::Control(Tlv::decode(babel))),
    };
    Ok(frame.map(|frame| (frame, bytes.len() - reader.rest().len())))
}

/// The packet that `bytes` are, neither more nor less.
///
/// # Errors
/// When they are anything else.
pub fn parse_datagram(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    match parse(bytes)? {
        Some((frame, size)) if size == bytes.len() => Ok(frame),
        found => Err(FrameError::Datagram {
            size: bytes.len(),
            packet_size: found.map(|(_, size)| size),
        }),
    }
}

/// Bytes that are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer speaks something else.
    #[error("packet version {0}, expected 1")]
    Version(u8),
    /// The peer speaks a dialect.
    #[error("packet type {0}, expected 0 (data) or 1 (control)")]
    Type(u8),
    /// A datagram must be one packet.
    #[error("datagram of {size} bytes with a packet of {packet_size:?}")]
    Datagram {
        /// Bytes of the datagram.
        size: usize,
        /// Bytes of the packet in it; none when it is cut off.
        packet_size: Option<usize>,
    },
}

/// Reads the packet header; version and type are judged as soon as they are there.
fn packet_type(reader: &mut Reader<'_>) -> Result<Option<PacketType>, FrameError> {
    match reader.u8() {
        None => return Ok(None),
        Some(VERSION) => {}
        Some(other) => return Err(FrameError::Version(other)),
    }
    let packet_type = match reader.u8() {
        None => return Ok(None),
        Some(0) => PacketType::Data,
        Some(1) => PacketType::Control,
        Some(other) => return Err(FrameError::Type(other)),
    };
    // Two reserved bytes, which may say anything.
    Ok(reader.u16().map(|_| packet_type))
}

/// The Babel header and as many bytes as it announces.
fn control<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let mut ahead = *reader;
    let [_magic, _version, length @ ..] = ahead.array::<BABEL_HEADER_SIZE>()?;
    reader.bytes(BABEL_HEADER_SIZE + usize::from(u16::from_be_bytes(length)))
}

fn data<'a>(reader: &mut Reader<'a>) -> Option<DataFrame<'a>> {
    let [_reserved] = reader.array()?;
    let header = DataHeader {
        length: reader.u16()?,
        hop_limit: reader.u8()?,
        source: Ipv6Addr::from(reader.array::<16>()?),
        destination: Ipv6Addr::from(reader.array::<16>()?),
    };
    Some(DataFrame { header, body: reader.bytes(usize::from(header.length))? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Hello, Seqno};

    fn hello(seqno: u16) -> Tlv {
        Tlv::Hello(Hello { flags: 0x8000, seqno: Seqno(seqno), interval: 2000 })
    }

    #[test]
    fn a_truncated_tlv_is_stepped_over() {
        // An Update whose value ends after two bytes, then something unknown, then a Hello.
        let mut stream = vec![1, 1, 0, 0, 42, 3, 0, 4, 8, 2, 0, 0];
        stream.extend([1, 1, 0, 0, 42, 3, 0, 5, 200, 3, 1, 2, 3]);
        hello(7).encode(&mut stream);
        let (frame, size) = parse(&stream).unwrap().unwrap();
        assert_eq!(frame, Frame::Control(Err(Skipped::Truncated(Some(8)))));
        let stream = &stream[size..];
        let (frame, size) = parse(stream).unwrap().unwrap();
        assert_eq!(frame, Frame::Control(Err(Skipped::UnknownType(200))));
        let stream = &stream[size..];
        let (frame, size) = parse(stream).unwrap().unwrap();
        assert_eq!(frame, Frame::Control(Ok(hello(7))));
        assert_eq!(size, stream.len());
    }

    #[test]
    fn a_packet_is_given_when_it_is_whole() {
        let mut control = Vec::new();
        hello(1).encode(&mut control);
        let source: Ipv6Addr = "400::1".parse().unwrap();
        let header = DataHeader { hop_limit: 9, source, destination: source, length: 5 };
        let mut data = header.encode().to_vec();
        data.extend(*b"hello");
        for packet in [control, data] {
            for size in 0..packet.len() {
                assert_eq!(parse(&packet[..size]), Ok(None), "{size} bytes");
                let cut = parse_datagram(&packet[..size]);
                assert_eq!(cut, Err(FrameError::Datagram { size, packet_size: None }));
            }
            assert_eq!(parse(&packet).unwrap().unwrap().1, packet.len());
            let longer = [packet.as_slice(), &[1]].concat();
            assert_eq!(parse(&longer).unwrap().unwrap().1, packet.len());
            assert!(parse_datagram(&packet).is_ok() && parse_datagram(&longer).is_err());
        }
    }

    #[test]
    fn a_wrong_version_or_type_is_known_at_once() {
        assert_eq!(parse(&[2]), Err(FrameError::Version(2)));
        assert_eq!(parse(&[1, 2]), Err(FrameError::Type(2)));
        // Reserved bits may mean something one day.
        assert_eq!(parse(&[1, 1, 0xff, 0xff]), Ok(None));
    }

    #[test]
    fn offsets_are_where_the_header_has_its_fields() {
        let header = DataHeader {
            hop_limit: 0xaa,
            source: Ipv6Addr::from([0xbb; 16]),
            destination: Ipv6Addr::from([0xcc; 16]),
            length: 0xddee,
        };
        let bytes = header.encode();
        assert_eq!(bytes[DATA_LENGTH_OFFSET..][..2], [0xdd, 0xee]);
        assert_eq!(bytes[DATA_HOP_LIMIT_OFFSET], 0xaa);
        assert_eq!(bytes[DATA_SOURCE_OFFSET..][..16], [0xbb; 16]);
        assert_eq!(bytes[DATA_DESTINATION_OFFSET..], [0xcc; 16]);
        assert_eq!(DATA_OVERHEAD, 72);
    }
}
