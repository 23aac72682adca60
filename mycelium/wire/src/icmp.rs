//! ICMPv6 errors: those a node gives its own hosts, and those that nodes on the way send back sealed.
//!
//! A node on the way can't read a packet that it must drop, so its error goes out of band, as inner
//! type 2, sealed for the packet's source (`reference: mycelium 1.6`):
//!
//! ```text
//!  original destination 16 │ IPv6 header 40 │ ICMPv6 header 8 │ original body, sealed, or nothing
//!                            source: the node's subnet, first address; destination: the source
//! ```
//!
//! The source alone can open the original body, with the key that it shares with the original
//! destination; from it and [`OutOfBand`] it makes the ICMPv6 error ([`write_error`]) that its hosts
//! understand.

use std::net::Ipv6Addr;

use crate::reader::Reader;

/// Size of an IPv6 header, in bytes.
pub const IPV6_HEADER_SIZE: usize = 40;
/// Size of the header of an ICMPv6 error, in bytes.
pub const ICMPV6_HEADER_SIZE: usize = 8;
/// Largest ICMPv6 error, in bytes: the smallest MTU that IPv6 may have (RFC 4443 2.4 c).
pub const ERROR_SIZE_MAX: usize = 1280;
/// Largest original body in an out-of-band error, in bytes; larger ones are left out.
pub const ORIGINAL_SIZE_MAX: usize = 1232;
/// Hop limit of the errors that we write.
pub const ERROR_HOP_LIMIT: u8 = 64;

const NEXT_HEADER_ICMPV6: u8 = 58;
const OUT_OF_BAND_HEADER_SIZE: usize = 16 + IPV6_HEADER_SIZE + ICMPV6_HEADER_SIZE;
const NEXT_HEADER_OFFSET: usize = 6;
/// ICMPv6 types below this one are errors (RFC 4443 2.1).
const FIRST_INFORMATIONAL_TYPE: u8 = 128;

/// Why a packet was dropped (RFC 4443 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// It can't get to its destination.
    Unreachable(Unreachable),
    /// A link on the way takes no packet of this size.
    PacketTooBig {
        /// The largest that it takes, in bytes.
        mtu: u32,
    },
    /// Its hop limit was used up.
    TimeExceeded,
    /// Another error, passed on as it came.
    Other {
        /// ICMPv6 type, below 128.
        error_type: u8,
        /// ICMPv6 code.
        code: u8,
        /// The four bytes behind the checksum.
        rest: [u8; 4],
    },
}

/// Why a destination can't be reached (RFC 4443 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Nobody knows a route.
    NoRoute = 0,
    /// Its subnet is here, but it is not.
    Address = 3,
    /// The source must not send this way.
    SourcePolicy = 5,
}

impl IcmpError {
    /// Type, code, and the four bytes behind the checksum.
    const fn fields(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::Unreachable(reason) => (1, reason as u8, [0; 4]),
            Self::PacketTooBig { mtu } => (2, 0, mtu.to_be_bytes()),
            Self::TimeExceeded => (3, 0, [0; 4]),
            Self::Other { error_type, code, rest } => (error_type, code, rest),
        }
    }

    /// The inverse of [`Self::fields`], for types below 128.
    const fn from_fields(error_type: u8, code: u8, rest: [u8; 4]) -> Self {
        match (error_type, code, rest) {
            (1, 0, [0, 0, 0, 0]) => Self::Unreachable(Unreachable::NoRoute),
            (1, 3, [0, 0, 0, 0]) => Self::Unreachable(Unreachable::Address),
            (1, 5, [0, 0, 0, 0]) => Self::Unreachable(Unreachable::SourcePolicy),
            (2, 0, mtu) => Self::PacketTooBig { mtu: u32::from_be_bytes(mtu) },
            (3, 0, [0, 0, 0, 0]) => Self::TimeExceeded,
            _ => Self::Other { error_type, code, rest },
        }
    }
}

/// Appends an IPv6 packet that tells `destination` why `original` was dropped, with as much of it as
/// fits.
pub fn write_error(
    error: IcmpError,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    original: &[u8],
    out: &mut Vec<u8>,
) {
    let room = ERROR_SIZE_MAX - IPV6_HEADER_SIZE - ICMPV6_HEADER_SIZE;
    let original = original.get(..room).unwrap_or(original);
    write_packet(error, source, destination, hop_limit, original, out);
}

/// Whether `packet` may be answered with an error (RFC 4443 2.4 e): it is no ICMPv6 error itself, and
/// came from and went to single nodes. With `is_too_big`, it may have gone to a group.
#[must_use]
pub fn may_answer(packet: &[u8], is_too_big: bool) -> bool {
    let Some(header) = packet.first_chunk::<IPV6_HEADER_SIZE>() else { return false };
    let (source, destination) = addresses(header);
    let next_header = packet.get(NEXT_HEADER_OFFSET).copied();
    let icmp_type = packet.get(IPV6_HEADER_SIZE).copied();
    let is_error = next_header == Some(NEXT_HEADER_ICMPV6)
        && icmp_type.is_none_or(|icmp_type| icmp_type < FIRST_INFORMATIONAL_TYPE);
    let one_source = !source.is_multicast() && !source.is_unspecified();
    !is_error && one_source && (is_too_big || !destination.is_multicast())
}

/// Source and destination of an IPv6 header.
#[must_use]
pub fn addresses(header: &[u8; IPV6_HEADER_SIZE]) -> (Ipv6Addr, Ipv6Addr) {
    let (_, addresses) = header.split_at(8);
    let (source, destination) = addresses.split_at(16);
    let address =
        |bytes: &[u8]| Ipv6Addr::from(*bytes.first_chunk::<16>().expect("an address has 16 bytes"));
    (address(source), address(destination))
}

/// An echo request or reply (RFC 4443 4), by which a node asks whether another is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Which of both.
    pub kind: EchoKind,
    /// Who asks.
    pub identifier: u16,
    /// Which question of theirs it is.
    pub sequence: u16,
    /// What the reply repeats.
    pub data: &'a [u8],
}

/// Request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoKind {
    /// RFC 4443 4.1.
    Request = 128,
    /// RFC 4443 4.2.
    Reply = 129,
}

impl<'a> Echo<'a> {
    /// Appends the IPv6 packet. The data must fit one.
    ///
    /// # Panics
    /// When it does not.
    pub fn encode(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        hop_limit: u8,
        out: &mut Vec<u8>,
    ) {
        let [a, b] = self.identifier.to_be_bytes();
        let [c, d] = self.sequence.to_be_bytes();
        let fields = (self.kind as u8, 0, [a, b, c, d]);
        write_icmp(fields, source, destination, hop_limit, self.data, out);
    }

    /// What a whole IPv6 packet says, if it is one; checksums are the host's business.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(packet);
        let header: [u8; IPV6_HEADER_SIZE] = reader.array()?;
        if header.get(NEXT_HEADER_OFFSET) != Some(&NEXT_HEADER_ICMPV6) {
            return None;
        }
        let [icmp_type, 0, _, _, a, b, c, d] = reader.array::<ICMPV6_HEADER_SIZE>()? else {
            return None;
        };
        let kind = match icmp_type {
            128 => EchoKind::Request,
            129 => EchoKind::Reply,
            _ => return None,
        };
        let (identifier, sequence) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Some(Self { kind, identifier, sequence, data: reader.rest() })
    }
}

/// An error from a node on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBand<'a> {
    /// To whom the dropped packet was going.
    pub original_destination: Ipv6Addr,
    /// The node that dropped it: the first address of its subnet.
    pub source: Ipv6Addr,
    /// Who sent the dropped packet.
    pub destination: Ipv6Addr,
    /// Of the error's own packet.
    pub hop_limit: u8,
    /// Why it was dropped.
    pub error: IcmpError,
    /// The body of the dropped packet, as its source had sealed it; empty when it was too large.
    pub original: &'a [u8],
}

impl<'a> OutOfBand<'a> {
    /// Appends the payload. An original of more than [`ORIGINAL_SIZE_MAX`] bytes is left out, since
    /// only a whole one can be opened.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.original_destination.octets());
        let original = if self.original.len() > ORIGINAL_SIZE_MAX { &[] } else { self.original };
        write_packet(self.error, self.source, self.destination, self.hop_limit, original, out);
    }

    /// What a payload says.
    ///
    /// # Errors
    /// When it is no such error, or damaged.
    pub fn parse(payload: &'a [u8]) -> Result<Self, OutOfBandError> {
        let size = OutOfBandError::Size(payload.len());
        if payload.len() > OUT_OF_BAND_HEADER_SIZE + ORIGINAL_SIZE_MAX {
            return Err(size);
        }
        let mut reader = Reader::new(payload);
        let original_destination = Ipv6Addr::from(reader.array::<16>().ok_or(size)?);
        let header: [u8; IPV6_HEADER_SIZE] = reader.array().ok_or(size)?;
        let icmp = reader.rest();
        let [error_type, code, _, _, rest @ ..] =
            reader.array::<ICMPV6_HEADER_SIZE>().ok_or(size)?;
        let [version, _, _, _, length_high, length_low, next_header, hop_limit, ..] = header;
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        if version >> 4 != 6 || next_header != NEXT_HEADER_ICMPV6 || length != icmp.len() {
            return Err(OutOfBandError::Header);
        }
        if error_type >= FIRST_INFORMATIONAL_TYPE {
            return Err(OutOfBandError::Type(error_type));
        }
        let (source, destination) = addresses(&header);
        // Over bytes that hold their own checksum, the sum is zero.
        if checksum(source, destination, icmp) != 0 {
            return Err(OutOfBandError::Checksum);
        }
        let error = IcmpError::from_fields(error_type, code, rest);
        let original = reader.rest();
        Ok(Self { original_destination, source, destination, hop_limit, error, original })
    }
}

/// A payload that is no out-of-band error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBandError {
    /// It is too short or too long.
    #[error("an out-of-band ICMP error has 64 to 1296 bytes, not {0}")]
    Size(usize),
    /// Its IPv6 header is none, or does not fit.
    #[error("the IPv6 header of an out-of-band ICMP error does not fit what follows it")]
    Header,
    /// It is another ICMPv6 message.
    #[error("ICMPv6 type {0} is no error")]
    Type(u8),
    /// It was damaged.
    #[error("the checksum of an out-of-band ICMP error is wrong")]
    Checksum,
}

/// IPv6 header, ICMPv6 header and `original`, which is at most [`ORIGINAL_SIZE_MAX`] bytes.
fn write_packet(
    error: IcmpError,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    original: &[u8],
    out: &mut Vec<u8>,
) {
    write_icmp(error.fields(), source, destination, hop_limit, original, out);
}

/// IPv6 header, ICMPv6 header of these fields (type, code, and four bytes) and what follows it.
fn write_icmp(
    (icmp_type, code, rest): (u8, u8, [u8; 4]),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    body: &[u8],
    out: &mut Vec<u8>,
) {
    let length = u16::try_from(ICMPV6_HEADER_SIZE + body.len()).expect("bodies are short");
    out.extend([0x60, 0, 0, 0]);
    out.extend(length.to_be_bytes());
    out.extend([NEXT_HEADER_ICMPV6, hop_limit]);
    out.extend(source.octets());
    out.extend(destination.octets());
    let icmp = out.len();
    out.extend([icmp_type, code, 0, 0]);
    out.extend(rest);
    out.extend(body);
    let written = out.get_mut(icmp..).expect("it was just written");
    let sum = checksum(source, destination, written).to_be_bytes();
    let [_, _, high, low, ..] = written else { unreachable!("a header was just written") };
    [*high, *low] = sum;
}

/// RFC 4443 2.3: over the pseudo-header of RFC 8200 8.1 and the ICMPv6 message.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, icmp: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        let (pairs, odd) = bytes.as_chunks::<2>();
        let odd = odd.first().map_or(0, |byte| u16::from_be_bytes([*byte, 0]));
        pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>() + u64::from(odd)
    };
    let mut sum = words(&source.octets())
        + words(&destination.octets())
        + icmp.len() as u64
        + u64::from(NEXT_HEADER_ICMPV6)
        + words(icmp);
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("carries were folded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn sample(original: &[u8]) -> OutOfBand<'_> {
        OutOfBand {
            original_destination: address("400::9"),
            source: address("401::"),
            destination: address("402::2"),
            hop_limit: 64,
            error: IcmpError::TimeExceeded,
            original,
        }
    }

    fn encoded(sample: &OutOfBand<'_>) -> Vec<u8> {
        let mut payload = Vec::new();
        sample.encode(&mut payload);
        payload
    }

    #[test]
    fn rfc_4443_2_3_a_checksum_by_hand() {
        // An echo request from ::1 to ::1: 1 + 1 + length 10 + next header 58 + 0x8000 + 1 + 1.
        let local = address("::1");
        let mut icmp = [128, 0, 0, 0, 0, 1, 0, 1, 0, 0];
        assert_eq!(checksum(local, local, &icmp), !0x8048);
        icmp[2..4].copy_from_slice(&(!0x8048_u16).to_be_bytes());
        assert_eq!(checksum(local, local, &icmp), 0);
    }

    #[test]
    fn rfc_4443_4_an_echo_goes_there_and_back() {
        let (source, destination) = (address("400::1"), address("402::2"));
        for kind in [EchoKind::Request, EchoKind::Reply] {
            let echo = Echo { kind, identifier: 0x1234, sequence: 7, data: b"token" };
            let mut packet = Vec::new();
            echo.encode(source, destination, 63, &mut packet);
            assert_eq!(checksum(source, destination, &packet[IPV6_HEADER_SIZE..]), 0);
            assert_eq!(addresses(packet.first_chunk().unwrap()), (source, destination));
            assert_eq!(Echo::parse(&packet), Some(echo));
            assert_eq!(Echo::parse(&packet[..47]), None);
            packet[IPV6_HEADER_SIZE] = 1;
            assert_eq!(Echo::parse(&packet), None);
        }
    }

    #[test]
    fn an_error_goes_out_of_band_and_back() {
        let errors = [
            IcmpError::Unreachable(Unreachable::NoRoute),
            IcmpError::Unreachable(Unreachable::Address),
            IcmpError::Unreachable(Unreachable::SourcePolicy),
            IcmpError::PacketTooBig { mtu: 1400 },
            IcmpError::TimeExceeded,
            IcmpError::Other { error_type: 4, code: 1, rest: [0, 0, 0, 40] },
        ];
        for error in errors {
            for original in [&b""[..], b"odd", &[7; ORIGINAL_SIZE_MAX]] {
                let sample = OutOfBand { error, ..sample(original) };
                assert_eq!(OutOfBand::parse(&encoded(&sample)), Ok(sample));
            }
        }
    }

    #[test]
    fn an_original_that_does_not_fit_is_left_out() {
        let original = [7; ORIGINAL_SIZE_MAX + 1];
        let payload = encoded(&sample(&original));
        assert_eq!(payload.len(), OUT_OF_BAND_HEADER_SIZE);
        assert_eq!(OutOfBand::parse(&payload).unwrap().original, b"");
    }

    #[test]
    fn anything_else_is_refused() {
        let payload = encoded(&sample(b"original"));
        let wrong = |place: usize, value: u8| {
            let mut payload = payload.clone();
            payload[place] = value;
            OutOfBand::parse(&payload).unwrap_err()
        };
        assert_eq!(wrong(16, 0x40), OutOfBandError::Header);
        assert_eq!(wrong(16 + 5, 99), OutOfBandError::Header);
        assert_eq!(wrong(16 + NEXT_HEADER_OFFSET, 6), OutOfBandError::Header);
        assert_eq!(wrong(56, 128), OutOfBandError::Type(128));
        assert_eq!(wrong(58, 0), OutOfBandError::Checksum);
        assert_eq!(wrong(71, 0), OutOfBandError::Checksum);
        assert_eq!(OutOfBand::parse(&payload[..63]), Err(OutOfBandError::Size(63)));
        assert_eq!(OutOfBand::parse(&[0; 1297]), Err(OutOfBandError::Size(1297)));
    }

    #[test]
    fn rfc_4443_2_4_c_an_error_fits_the_smallest_mtu() {
        for (size, expected) in [(100, 148), (1232, 1280), (9000, 1280)] {
            let mut packet = Vec::new();
            let error = IcmpError::PacketTooBig { mtu: 1400 };
            let (source, destination) = (address("400::"), address("400::1"));
            write_error(error, source, destination, ERROR_HOP_LIMIT, &vec![7; size], &mut packet);
            assert_eq!(packet.len(), expected);
            assert_eq!(checksum(source, destination, &packet[IPV6_HEADER_SIZE..]), 0);
            let header = packet.first_chunk().unwrap();
            assert_eq!(addresses(header), (source, destination));
        }
    }

    #[test]
    fn rfc_4443_2_4_e_some_packets_are_not_answered() {
        let packet = |source: &str, destination: &str, next_header: u8, icmp_type: u8| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, next_header, 64];
            packet.extend(address(source).octets());
            packet.extend(address(destination).octets());
            packet.extend([icmp_type, 0, 0, 0, 0, 0, 0, 0]);
            packet
        };
        assert!(may_answer(&packet("400::1", "400::2", 6, 1), false));
        assert!(may_answer(&packet("400::1", "400::2", NEXT_HEADER_ICMPV6, 128), false));
        assert!(!may_answer(&packet("400::1", "400::2", NEXT_HEADER_ICMPV6, 1), false));
        assert!(!may_answer(&packet("400::1", "ff02::2", 6, 0), false));
        assert!(may_answer(&packet("400::1", "ff02::2", 6, 0), true));
        assert!(!may_answer(&packet("::", "400::2", 6, 0), false));
        assert!(!may_answer(&packet("ff02::1", "400::2", 6, 0), true));
        assert!(!may_answer(&packet("400::1", "400::2", 6, 0)[..39], false));
    }
}
