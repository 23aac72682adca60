//! What a datagram of the UDP transport holds, byte for byte (`FORMAT.md` has the tables).
//!
//! The first byte says what it is. Five kinds make a link, and one carries everything once it is there:
//!
//! ```text
//!  init      01 │ pattern 1 │ sender 4 │ cookie 16 │ length 2 │ Noise message │ zeros up to 256
//!  response  02 │ receiver 4 │ sender 4 │ Noise message
//!  finish    03 │ receiver 4 │ Noise message
//!  cookie    04 │ receiver 4 │ cookie 16
//!  sealed    05 │ receiver 4 │ counter 8 │ payload, sealed │ tag 16
//!  punch     06 │ zeros 8
//! ```
//!
//! An index is chosen by the end that finds its link by it. A datagram that is anything else is dropped
//! without an answer: whoever sends from an address that is not theirs gets no more out of a node than
//! they put in.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Size of every init: no answer is larger.
pub(crate) const INIT_SIZE: usize = 256;
/// Size of a cookie.
pub(crate) const COOKIE_SIZE: usize = 16;
/// What is in front of a sealed payload.
pub(crate) const SEALED_HEADER_SIZE: usize = 13;
/// What is behind a sealed payload.
pub(crate) const TAG_SIZE: usize = 16;
/// What a sealed datagram adds to its payload.
pub(crate) const SEALED_OVERHEAD: usize = SEALED_HEADER_SIZE + TAG_SIZE;
/// Size of a datagram that only opens a NAT.
pub(crate) const PUNCH_SIZE: usize = 9;
/// A datagram of this kind only opens a NAT.
pub(crate) const PUNCH: [u8; PUNCH_SIZE] = [TYPE_PUNCH, 0, 0, 0, 0, 0, 0, 0, 0];

const TYPE_INIT: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_FINISH: u8 = 3;
const TYPE_COOKIE: u8 = 4;
const TYPE_SEALED: u8 = 5;
const TYPE_PUNCH: u8 = 6;

/// Which handshake an init begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Noise XX: the dialer does not know whom it reaches.
    Unknown = 1,
    /// Noise IK: it does.
    Known = 2,
}

/// A datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Datagram<'a> {
    Init { kind: Kind, sender: u32, cookie: [u8; COOKIE_SIZE], noise: &'a [u8] },
    Response { receiver: u32, sender: u32, noise: &'a [u8] },
    Finish { receiver: u32, noise: &'a [u8] },
    Cookie { receiver: u32, cookie: [u8; COOKIE_SIZE] },
    Sealed { receiver: u32 },
}

impl<'a> Datagram<'a> {
    /// What `bytes` are; none when nothing is to be done about them.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first()?;
        match *first {
            TYPE_INIT => Self::parse_init(bytes),
            TYPE_RESPONSE => {
                let (receiver, rest) = index(rest)?;
                let (sender, noise) = index(rest)?;
                Some(Self::Response { receiver, sender, noise })
            }
            TYPE_FINISH => {
                let (receiver, noise) = index(rest)?;
                Some(Self::Finish { receiver, noise })
            }
            TYPE_COOKIE => {
                let (receiver, cookie) = index(rest)?;
                Some(Self::Cookie { receiver, cookie: cookie.try_into().ok()? })
            }
            TYPE_SEALED if bytes.len() > SEALED_OVERHEAD => {
                Some(Self::Sealed { receiver: index(rest)?.0 })
            }
            _ => None,
        }
    }

    fn parse_init(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() != INIT_SIZE {
            return None;
        }
        let kind = match bytes[1] {
            1 => Kind::Unknown,
            2 => Kind::Known,
            _ => return None,
        };
        let (sender, rest) = index(&bytes[2..])?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let noise = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
        Some(Self::Init { kind, sender, cookie: *cookie, noise })
    }

    /// The bytes, but for a sealed datagram, which [`sealed_header`] begins.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(INIT_SIZE);
        match *self {
            Self::Init { kind, sender, cookie, noise } => {
                bytes.extend([TYPE_INIT, kind as u8]);
                bytes.extend(sender.to_be_bytes());
                bytes.extend(cookie);
                // No first message of ours is larger than its room.
                bytes.extend(u16::try_from(noise.len()).unwrap_or(0).to_be_bytes());
                bytes.extend(noise);
                bytes.resize(INIT_SIZE, 0);
            }
            Self::Response { receiver, sender, noise } => {
                bytes.push(TYPE_RESPONSE);
                bytes.extend(receiver.to_be_bytes());
                bytes.extend(sender.to_be_bytes());
                bytes.extend(noise);
            }
            Self::Finish { receiver, noise } => {
                bytes.push(TYPE_FINISH);
                bytes.extend(receiver.to_be_bytes());
                bytes.extend(noise);
            }
            Self::Cookie { receiver, cookie } => {
                bytes.push(TYPE_COOKIE);
                bytes.extend(receiver.to_be_bytes());
                bytes.extend(cookie);
            }
            Self::Sealed { receiver } => bytes.extend(sealed_header(receiver, 0)),
        }
        bytes
    }
}

/// What a sealed datagram begins with.
pub(crate) fn sealed_header(receiver: u32, counter: u64) -> [u8; SEALED_HEADER_SIZE] {
    let mut header = [TYPE_SEALED; SEALED_HEADER_SIZE];
    header[1..5].copy_from_slice(&receiver.to_be_bytes());
    header[5..].copy_from_slice(&counter.to_be_bytes());
    header
}

/// The receiver of a sealed datagram; none if it is something else.
pub(crate) fn sealed_receiver(bytes: &[u8]) -> Option<u32> {
    match Datagram::parse(bytes)? {
        Datagram::Sealed { receiver } => Some(receiver),
        _ => None,
    }
}

/// The counter of a sealed datagram, and its sealed payload with the tag.
pub(crate) fn split_sealed(bytes: &mut [u8]) -> Option<(u64, &mut [u8])> {
    let (header, sealed) = bytes.split_first_chunk_mut::<SEALED_HEADER_SIZE>()?;
    let [_, _, _, _, _, counter @ ..] = *header;
    Some((u64::from_be_bytes(counter), sealed))
}

fn index(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (index, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*index), rest))
}

/// What a sealed payload says: its first byte tells which.
///
/// ```text
///  00 data       first frame 2 │ bytes of frames, a piece of a batch
///  01 control    acknowledged 4 │ number of the first 4 │ (length 2 │ control packet) ...
///  02 probe      id 4 │ zeros up to the size that is tried
///  03 probed     id 4
///  04 observed   port 2 │ address 16, an IPv4 one mapped │ takes 2
///  05 close
///  06 challenge  token 8
///  07 echo       token 8
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Payload<'a> {
    /// A piece of a batch of data packets, and where in it the first packet begins; none when it is
    /// the middle of one.
    Data { first: Option<usize>, piece: &'a [u8] },
    /// Control packets in order, and how many of the other end's came.
    Control { acknowledged: u32, first: u32, packets: &'a [u8] },
    /// Does a datagram of this size get through?
    Probe { id: u32 },
    /// It did.
    Probed { id: u32 },
    /// Where the other end is, as seen from here, and the largest IPv6 packet for this end itself; said
    /// now and then, so that NATs and firewalls on the way remember the link as well.
    Observed { address: SocketAddr, takes: u16 },
    /// The link ends.
    Close,
    /// Is this address really yours?
    Challenge { token: [u8; 8] },
    /// It is.
    Echo { token: [u8; 8] },
}

/// Size of what is in front of a piece of data.
pub(crate) const DATA_PREFIX_SIZE: usize = 3;
/// Size of what is in front of control packets.
pub(crate) const CONTROL_PREFIX_SIZE: usize = 9;
/// Size of what is in front of a probe's zeros.
pub(crate) const PROBE_PREFIX_SIZE: usize = 5;
/// No frame begins in this piece.
const NO_FRAME: u16 = u16::MAX;

const PAYLOAD_DATA: u8 = 0;
const PAYLOAD_CONTROL: u8 = 1;
const PAYLOAD_PROBE: u8 = 2;
const PAYLOAD_PROBED: u8 = 3;
const PAYLOAD_OBSERVED: u8 = 4;
const PAYLOAD_CLOSE: u8 = 5;
const PAYLOAD_CHALLENGE: u8 = 6;
const PAYLOAD_ECHO: u8 = 7;

impl<'a> Payload<'a> {
    /// What an opened payload says; none when this version does not understand it.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match *kind {
            PAYLOAD_DATA => {
                let (first, piece) = rest.split_first_chunk()?;
                let first = match u16::from_be_bytes(*first) {
                    NO_FRAME => None,
                    first if usize::from(first) <= piece.len() => Some(usize::from(first)),
                    _ => return None,
                };
                Self::Data { first, piece }
            }
            PAYLOAD_CONTROL => {
                let (acknowledged, rest) = index(rest)?;
                let (first, packets) = index(rest)?;
                Self::Control { acknowledged, first, packets }
            }
            PAYLOAD_PROBE => Self::Probe { id: index(rest)?.0 },
            PAYLOAD_PROBED => Self::Probed { id: index(rest)?.0 },
            PAYLOAD_OBSERVED => {
                let (port, rest) = rest.split_first_chunk()?;
                let (ip, rest) = rest.split_first_chunk::<16>()?;
                let ip = Ipv6Addr::from(*ip).to_canonical();
                let takes = u16::from_be_bytes(*rest.first_chunk()?);
                Self::Observed { address: SocketAddr::new(ip, u16::from_be_bytes(*port)), takes }
            }
            PAYLOAD_CLOSE => Self::Close,
            PAYLOAD_CHALLENGE => Self::Challenge { token: *rest.first_chunk()? },
            PAYLOAD_ECHO => Self::Echo { token: *rest.first_chunk()? },
            _ => return None,
        })
    }

    /// Appends the payload; of a probe, without its zeros.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Data { first, piece } => {
                out.extend(data_prefix(first));
                out.extend(piece);
            }
            Self::Control { acknowledged, first, packets } => {
                out.push(PAYLOAD_CONTROL);
                out.extend(acknowledged.to_be_bytes());
                out.extend(first.to_be_bytes());
                out.extend(packets);
            }
            Self::Probe { id } => {
                out.push(PAYLOAD_PROBE);
                out.extend(id.to_be_bytes());
            }
            Self::Probed { id } => {
                out.push(PAYLOAD_PROBED);
                out.extend(id.to_be_bytes());
            }
            Self::Observed { address, takes } => {
                out.push(PAYLOAD_OBSERVED);
                out.extend(address.port().to_be_bytes());
                out.extend(mapped(address.ip()).octets());
                out.extend(takes.to_be_bytes());
            }
            Self::Close => out.push(PAYLOAD_CLOSE),
            Self::Challenge { token } => {
                out.push(PAYLOAD_CHALLENGE);
                out.extend(token);
            }
            Self::Echo { token } => {
                out.push(PAYLOAD_ECHO);
                out.extend(token);
            }
        }
    }
}

/// What is in front of a piece of data.
pub(crate) fn data_prefix(first: Option<usize>) -> [u8; DATA_PREFIX_SIZE] {
    // A piece is smaller than a datagram, so that no offset in it is as large.
    let first = first.and_then(|first| u16::try_from(first).ok()).unwrap_or(NO_FRAME);
    let [high, low] = first.to_be_bytes();
    [PAYLOAD_DATA, high, low]
}

/// An address as an IPv6 one.
pub(crate) fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let noise = [7; 96];
        for datagram in [
            Datagram::Init { kind: Kind::Known, sender: 1, cookie: [2; 16], noise: &noise },
            Datagram::Init { kind: Kind::Unknown, sender: u32::MAX, cookie: [0; 16], noise: &[] },
            Datagram::Response { receiver: 3, sender: 4, noise: &noise },
            Datagram::Finish { receiver: 5, noise: &noise },
            Datagram::Cookie { receiver: 6, cookie: [8; 16] },
        ] {
            assert_eq!(Datagram::parse(&datagram.encode()), Some(datagram));
        }
        for address in ["192.0.2.1:9652", "[2001:db8::1]:1"] {
            let payload = Payload::Observed { address: address.parse().unwrap(), takes: 1400 };
            let mut bytes = Vec::new();
            payload.encode(&mut bytes);
            assert_eq!(Payload::parse(&bytes), Some(payload));
        }
    }

    #[test]
    fn an_init_is_as_large_as_the_answers_that_it_may_bring() {
        // XX: key 32, sealed key 48, sealed flags 17.
        let response = Datagram::Response { receiver: 1, sender: 2, noise: &[0; 97] };
        assert!(response.encode().len() <= INIT_SIZE);
        let small = Datagram::Init { kind: Kind::Known, sender: 1, cookie: [0; 16], noise: &[] };
        assert_eq!(Datagram::parse(&small.encode()[..INIT_SIZE - 1]), None);
    }

    #[test]
    fn a_sealed_datagram_has_its_fields_where_they_are_looked_for() {
        let mut bytes = sealed_header(0x0102_0304, 0x0506_0708_090a_0b0c).to_vec();
        assert_eq!(sealed_receiver(&bytes), None);
        bytes.extend([0; 17]);
        assert_eq!(sealed_receiver(&bytes), Some(0x0102_0304));
        let (counter, sealed) = split_sealed(&mut bytes).unwrap();
        assert_eq!((counter, sealed.len()), (0x0506_0708_090a_0b0c, 17));
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(datagram) = Datagram::parse(&bytes) {
                let _ = datagram.encode();
            }
            if let Some(payload) = Payload::parse(&bytes) {
                let mut again = Vec::new();
                payload.encode(&mut again);
                prop_assert_eq!(Payload::parse(&again), Some(payload));
            }
        }
    }
}
