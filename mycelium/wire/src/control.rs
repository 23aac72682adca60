//! Control packets: what routers tell one another, one TLV a packet.
//!
//! Babel (RFC 8966) with deviations: a packet holds exactly one TLV, an Update ends with a router id
//! of 40 bytes, a route request has a generation, and existing nodes know no
//! TLV but five (`reference: mycelium 1.3`). The sixth is ours, of a type that is free for experiments: an
//! existing node would lose its place in the stream over it.
//!
//! ```text
//!  01 01 00 00 │ 2a 03 │ body length 2 │ type 1 │ length 1 │ value
//!  packet      │ Babel header          │ TLV; body length = length + 2
//! ```
//!
//! | type | TLV | value |
//! |---|---|---|
//! | 4 | Hello | flags 2, seqno 2, interval 2 |
//! | 5 | IHU | AE 1, reserved 1, rxcost 2, interval 2, address |
//! | 8 | Update | AE 1, flags 1, plen 1, omitted 1, interval 2, seqno 2, metric 2, prefix, router id 40 |
//! | 9 | Route request | generation 1, AE 1, plen 1, prefix |
//! | 10 | Seqno request | AE 1, plen 1, seqno 2, hop count 1, reserved 1, router id 40, prefix |
//! | 224 | Proved update | as Update, then the owner's signature 64; between nodes of this kind alone |
//!
//! A prefix has as many bytes as its length in bits needs. Intervals are in centiseconds. Bytes of a
//! value beyond the fields that are known are ignored, as RFC 8966 4.4 has it for sub-TLVs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Add;

use crate::frame::{PACKET_HEADER_SIZE, PacketType};
use crate::identity::{RouterId, Subnet};
use crate::reader::Reader;
use crate::xeddsa::{SIGNATURE_SIZE, Signature};

/// Size of the Babel header, in bytes.
pub const BABEL_HEADER_SIZE: usize = 4;
/// Hello's only flag in use: it is meant for this neighbour alone.
pub const HELLO_UNICAST: u16 = 0x8000;
/// Largest control packet that we write: a proved update for a /128.
pub const CONTROL_SIZE_MAX: usize =
    PACKET_HEADER_SIZE + BABEL_HEADER_SIZE + TLV_HEADER_SIZE + 66 + SIGNATURE_SIZE;

const BABEL_MAGIC: u8 = 42;
const BABEL_VERSION: u8 = 3;
const TLV_HEADER_SIZE: usize = 2;

const TYPE_HELLO: u8 = 4;
const TYPE_IHU: u8 = 5;
const TYPE_UPDATE: u8 = 8;
const TYPE_ROUTE_REQUEST: u8 = 9;
const TYPE_SEQNO_REQUEST: u8 = 10;
const TYPE_PROVED_UPDATE: u8 = 224;

const AE_WILDCARD: u8 = 0;
const AE_IPV4: u8 = 1;
const AE_IPV6: u8 = 2;
const AE_LINK_LOCAL: u8 = 3;

/// What one control packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tlv {
    /// I am here.
    Hello(Hello),
    /// I heard you.
    Ihu(Ihu),
    /// This subnet is reached over me, or no longer is.
    Update(Update),
    /// The same, with its owner's word for it. Never to be sent to existing nodes.
    ProvedUpdate(ProvedUpdate),
    /// How is this subnet reached?
    RouteRequest(RouteRequest),
    /// I need a newer sequence number from this subnet's owner.
    SeqnoRequest(SeqnoRequest),
}

/// Sent at an interval to each neighbour, who answers with an [`Ihu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`HELLO_UNICAST`]; others are ignored by receivers.
    pub flags: u16,
    /// Counts Hellos on this link.
    pub seqno: Seqno,
    /// Centiseconds until the next one.
    pub interval: u16,
}

/// The answer to a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ihu {
    /// What a packet from the neighbour to the sender costs.
    pub rxcost: u16,
    /// Centiseconds until the next one.
    pub interval: u16,
    /// For whom; none on a link with two ends.
    pub address: Option<IpAddr>,
}

/// A route, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// RFC 8966's flags; nobody uses them here.
    pub flags: u8,
    /// Centiseconds until the next one; 0 when there is none.
    pub interval: u16,
    /// How new the owner's announcement is.
    pub seqno: Seqno,
    /// How far the owner is; [`Metric::INFINITE`] retracts the route.
    pub metric: Metric,
    /// Where the route leads.
    pub subnet: Subnet,
    /// Who owns the subnet.
    pub router_id: RouterId,
}

/// A route, and what shows that its owner announced it: nobody else raised its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvedUpdate {
    /// The route.
    pub update: Update,
    /// The owner's, of the update's router id and sequence number ([`crate::claim`]); not checked yet.
    pub signature: Signature,
}

/// Asks for an [`Update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRequest {
    /// How many routers passed it on.
    pub generation: u8,
    /// For which subnet; none asks for all that the neighbour selected.
    pub subnet: Option<Subnet>,
}

/// Asks for an [`Update`] with at least this sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqnoRequest {
    /// The least sequence number that helps.
    pub seqno: Seqno,
    /// How many routers may still pass it on.
    pub hop_count: u8,
    /// The subnet in need.
    pub subnet: Subnet,
    /// Who owns the subnet.
    pub router_id: RouterId,
}

/// The distance to a subnet's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Metric(pub u16);

impl Metric {
    /// The owner itself.
    pub const ZERO: Self = Self(0);
    /// The longest distance that still is one.
    pub const FINITE_MAX: Self = Self(u16::MAX - 1);
    /// No distance: the subnet can't be reached.
    pub const INFINITE: Self = Self(u16::MAX);

    /// Whether it retracts.
    #[must_use]
    pub const fn is_infinite(self) -> bool {
        self.0 == Self::INFINITE.0
    }
}

/// Far is not out of reach: a sum of finite metrics is finite.
impl Add for Metric {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        if self.is_infinite() || other.is_infinite() {
            return Self::INFINITE;
        }
        Self(self.0.saturating_add(other.0)).min(Self::FINITE_MAX)
    }
}

/// A sequence number; it wraps around, so it has no order but [`Seqno::is_newer_than`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seqno(pub u16);

impl Seqno {
    /// Whether it comes after `other` (RFC 8966 3.2.1).
    #[must_use]
    pub const fn is_newer_than(self, other: Self) -> bool {
        let ahead = self.0.wrapping_sub(other.0);
        ahead != 0 && ahead < 0x8000
    }

    /// The one that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// Why a control packet was skipped. The stream goes on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    /// The body is no Babel.
    #[error("Babel magic {magic} and version {version}, expected 42 and 3")]
    Babel {
        /// First byte.
        magic: u8,
        /// Second byte.
        version: u8,
    },
    /// A length field ends before the fields do.
    #[error("TLV of type {0:?} is shorter than its fields")]
    Truncated(Option<u8>),
    /// A TLV that this version does not know.
    #[error("TLV of unknown type {0}")]
    UnknownType(u8),
    /// A TLV with a kind of address that it can't have.
    #[error("TLV of type {tlv} with address encoding {encoding} and {prefix_len} bits of prefix")]
    Address {
        /// The TLV's type.
        tlv: u8,
        /// RFC 8966 4.1.4.
        encoding: u8,
        /// Length of the prefix; 0 where there is none.
        prefix_len: u8,
    },
}

impl Tlv {
    /// Appends the whole packet, with its header and Babel's.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend(PacketType::Control.header());
        out.extend([BABEL_MAGIC, BABEL_VERSION, 0, 0, self.type_number(), 0]);
        let value = out.len();
        match self {
            Self::Hello(hello) => hello.encode(out),
            Self::Ihu(ihu) => ihu.encode(out),
            Self::Update(update) => update.encode(out),
            Self::ProvedUpdate(proved) => proved.encode(out),
            Self::RouteRequest(request) => request.encode(out),
            Self::SeqnoRequest(request) => request.encode(out),
        }
        let length = u8::try_from(out.len() - value).expect("no TLV is longer than 130 bytes");
        let [.., body_length_high, body_length_low, _, value_length] =
            out.get_mut(begin..value).expect("headers were just written")
        else {
            unreachable!("headers have ten bytes")
        };
        *value_length = length;
        [*body_length_high, *body_length_low] = (u16::from(length) + 2).to_be_bytes();
    }

    /// The route that it is about, proved or not.
    #[must_use]
    pub const fn update(&self) -> Option<&Update> {
        match self {
            Self::Update(update) | Self::ProvedUpdate(ProvedUpdate { update, .. }) => Some(update),
            _ => None,
        }
    }

    /// Reads what follows the packet header: the Babel header and its body, whose length field was
    /// obeyed by whoever cut the bytes out.
    pub(crate) fn decode(babel: &[u8]) -> Result<Self, Skipped> {
        let mut reader = Reader::new(babel);
        let short = Skipped::Truncated(None);
        let [magic, version, ..] = reader.array::<BABEL_HEADER_SIZE>().ok_or(short)?;
        if (magic, version) != (BABEL_MAGIC, BABEL_VERSION) {
            return Err(Skipped::Babel { magic, version });
        }
        let type_number = reader.u8().ok_or(short)?;
        let short = Skipped::Truncated(Some(type_number));
        let length = reader.u8().ok_or(short)?;
        let value = Reader::new(reader.bytes(usize::from(length)).ok_or(short)?);
        match type_number {
            TYPE_HELLO => Hello::decode(value).map(Self::Hello),
            TYPE_IHU => Ihu::decode(value).map(Self::Ihu),
            TYPE_UPDATE => Update::decode(&mut { value }).map(Self::Update),
            TYPE_PROVED_UPDATE => ProvedUpdate::decode(value).map(Self::ProvedUpdate),
            TYPE_ROUTE_REQUEST => RouteRequest::decode(value).map(Self::RouteRequest),
            TYPE_SEQNO_REQUEST => SeqnoRequest::decode(value).map(Self::SeqnoRequest),
            other => Err(Wrong::UnknownType(other)),
        }
        .map_err(|wrong| wrong.of(type_number))
    }

    const fn type_number(&self) -> u8 {
        match self {
            Self::Hello(_) => TYPE_HELLO,
            Self::Ihu(_) => TYPE_IHU,
            Self::Update(_) => TYPE_UPDATE,
            Self::ProvedUpdate(_) => TYPE_PROVED_UPDATE,
            Self::RouteRequest(_) => TYPE_ROUTE_REQUEST,
            Self::SeqnoRequest(_) => TYPE_SEQNO_REQUEST,
        }
    }
}

/// What is wrong with a value, before the TLV's type is added to it.
enum Wrong {
    Short,
    Address { encoding: u8, prefix_len: u8 },
    UnknownType(u8),
}

impl Wrong {
    const fn of(self, tlv: u8) -> Skipped {
        match self {
            Self::Short => Skipped::Truncated(Some(tlv)),
            Self::Address { encoding, prefix_len } => {
                Skipped::Address { tlv, encoding, prefix_len }
            }
            Self::UnknownType(other) => Skipped::UnknownType(other),
        }
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.flags.to_be_bytes());
        out.extend(self.seqno.0.to_be_bytes());
        out.extend(self.interval.to_be_bytes());
    }

    fn decode(mut value: Reader<'_>) -> Result<Self, Wrong> {
        Ok(Self {
            flags: value.u16().ok_or(Wrong::Short)?,
            seqno: Seqno(value.u16().ok_or(Wrong::Short)?),
            interval: value.u16().ok_or(Wrong::Short)?,
        })
    }
}

impl Ihu {
    fn encode(&self, out: &mut Vec<u8>) {
        let encoding = match self.address {
            None => AE_WILDCARD,
            Some(IpAddr::V4(_)) => AE_IPV4,
            Some(IpAddr::V6(_)) => AE_IPV6,
        };
        out.extend([encoding, 0]);
        out.extend(self.rxcost.to_be_bytes());
        out.extend(self.interval.to_be_bytes());
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => out.extend(address.octets()),
            Some(IpAddr::V6(address)) => out.extend(address.octets()),
        }
    }

    fn decode(mut value: Reader<'_>) -> Result<Self, Wrong> {
        let [encoding, _reserved] = value.array().ok_or(Wrong::Short)?;
        let rxcost = value.u16().ok_or(Wrong::Short)?;
        let interval = value.u16().ok_or(Wrong::Short)?;
        let address = match encoding {
            AE_WILDCARD => None,
            AE_IPV4 => Some(Ipv4Addr::from(value.array::<4>().ok_or(Wrong::Short)?).into()),
            AE_IPV6 => Some(Ipv6Addr::from(value.array::<16>().ok_or(Wrong::Short)?).into()),
            AE_LINK_LOCAL => {
                let host = value.u64().ok_or(Wrong::Short)?;
                Some(Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(host)).into())
            }
            _ => return Err(Wrong::Address { encoding, prefix_len: 0 }),
        };
        Ok(Self { rxcost, interval, address })
    }
}

impl Update {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend([AE_IPV6, self.flags, self.subnet.prefix_len(), 0]);
        out.extend(self.interval.to_be_bytes());
        out.extend(self.seqno.0.to_be_bytes());
        out.extend(self.metric.0.to_be_bytes());
        encode_prefix(self.subnet, out);
        out.extend(self.router_id.as_bytes());
    }

    fn decode(value: &mut Reader<'_>) -> Result<Self, Wrong> {
        let [encoding, flags, prefix_len, _omitted] = value.array().ok_or(Wrong::Short)?;
        Ok(Self {
            flags,
            interval: value.u16().ok_or(Wrong::Short)?,
            seqno: Seqno(value.u16().ok_or(Wrong::Short)?),
            metric: Metric(value.u16().ok_or(Wrong::Short)?),
            subnet: decode_prefix(encoding, prefix_len, value)?,
            router_id: RouterId::from_bytes(value.array().ok_or(Wrong::Short)?),
        })
    }
}

impl ProvedUpdate {
    fn encode(&self, out: &mut Vec<u8>) {
        self.update.encode(out);
        out.extend(self.signature.as_bytes());
    }

    fn decode(mut value: Reader<'_>) -> Result<Self, Wrong> {
        let update = Update::decode(&mut value)?;
        let signature = Signature::from_bytes(value.array().ok_or(Wrong::Short)?);
        Ok(Self { update, signature })
    }
}

impl RouteRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        match self.subnet {
            None => out.extend([self.generation, AE_WILDCARD, 0]),
            Some(subnet) => {
                out.extend([self.generation, AE_IPV6, subnet.prefix_len()]);
                encode_prefix(subnet, out);
            }
        }
    }

    fn decode(mut value: Reader<'_>) -> Result<Self, Wrong> {
        let [generation, encoding, prefix_len] = value.array().ok_or(Wrong::Short)?;
        let subnet = match (encoding, prefix_len) {
            (AE_WILDCARD, 0) => None,
            _ => Some(decode_prefix(encoding, prefix_len, &mut value)?),
        };
        Ok(Self { generation, subnet })
    }
}

impl SeqnoRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend([AE_IPV6, self.subnet.prefix_len()]);
        out.extend(self.seqno.0.to_be_bytes());
        out.extend([self.hop_count, 0]);
        out.extend(self.router_id.as_bytes());
        encode_prefix(self.subnet, out);
    }

    fn decode(mut value: Reader<'_>) -> Result<Self, Wrong> {
        let [encoding, prefix_len] = value.array().ok_or(Wrong::Short)?;
        let seqno = Seqno(value.u16().ok_or(Wrong::Short)?);
        let [hop_count, _reserved] = value.array().ok_or(Wrong::Short)?;
        let router_id = RouterId::from_bytes(value.array().ok_or(Wrong::Short)?);
        let subnet = decode_prefix(encoding, prefix_len, &mut value)?;
        Ok(Self { seqno, hop_count, subnet, router_id })
    }
}

fn encode_prefix(subnet: Subnet, out: &mut Vec<u8>) {
    let size = usize::from(subnet.prefix_len().div_ceil(8));
    out.extend(subnet.network().octets().into_iter().take(size));
}

/// Reads an IPv6 prefix: no other kind has a place in the overlay.
fn decode_prefix(encoding: u8, prefix_len: u8, value: &mut Reader<'_>) -> Result<Subnet, Wrong> {
    let wrong = Wrong::Address { encoding, prefix_len };
    if encoding != AE_IPV6 || prefix_len > 128 {
        return Err(wrong);
    }
    let bytes = value.bytes(usize::from(prefix_len.div_ceil(8))).ok_or(Wrong::Short)?;
    let mut octets = [0; 16];
    for (octet, byte) in octets.iter_mut().zip(bytes) {
        *octet = *byte;
    }
    Subnet::new(Ipv6Addr::from(octets), prefix_len).map_err(|_| wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_8966_3_2_1_a_seqno_is_newer_within_half_a_turn() {
        let newer = |a, b| Seqno(a).is_newer_than(Seqno(b));
        assert!(newer(1, 0) && newer(0, 0xffff) && newer(0x7fff, 0) && newer(5, 0xfff0));
        assert!(!newer(0, 0) && !newer(0, 1) && !newer(0x8000, 0) && !newer(0xffff, 0));
        assert_eq!(Seqno(0xffff).next(), Seqno(0));
    }

    #[test]
    fn a_sum_of_metrics_saturates_below_infinity() {
        assert_eq!(Metric(1) + Metric(2), Metric(3));
        assert_eq!(Metric(65_000) + Metric(65_000), Metric(65_534));
        assert_eq!(Metric(65_534) + Metric(1), Metric(65_534));
        assert_eq!(Metric::INFINITE + Metric(0), Metric::INFINITE);
        assert_eq!(Metric(7) + Metric::INFINITE, Metric::INFINITE);
    }

    fn skipped(babel: &[u8]) -> Skipped {
        Tlv::decode(babel).unwrap_err()
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(skipped(&[1, 1, 0, 2, 4, 0]), Skipped::Babel { magic: 1, version: 1 });
        assert_eq!(skipped(&[42, 3, 0, 0]), Skipped::Truncated(None));
        assert_eq!(skipped(&[42, 3, 0, 1, 4]), Skipped::Truncated(Some(4)));
        // The TLV says more than its packet has.
        assert_eq!(skipped(&[42, 3, 0, 4, 4, 6, 0, 0]), Skipped::Truncated(Some(4)));
        // The TLV has less than its fields need.
        assert_eq!(skipped(&[42, 3, 0, 4, 4, 2, 0, 0]), Skipped::Truncated(Some(4)));
        assert_eq!(skipped(&[42, 3, 0, 3, 11, 1, 0]), Skipped::UnknownType(11));
        let address = |tlv, encoding, prefix_len| Skipped::Address { tlv, encoding, prefix_len };
        assert_eq!(skipped(&[42, 3, 0, 5, 9, 3, 0, 0, 1]), address(9, 0, 1));
        assert_eq!(skipped(&[42, 3, 0, 6, 9, 4, 0, 1, 8, 10]), address(9, 1, 8));
        assert_eq!(skipped(&[42, 3, 0, 5, 9, 3, 0, 2, 129]), address(9, 2, 129));
        assert_eq!(skipped(&[42, 3, 0, 8, 5, 6, 4, 0, 0, 0, 0, 0]), address(5, 4, 0));
    }

    #[test]
    fn a_link_local_address_is_eight_bytes() {
        let ihu = [42, 3, 0, 16, 5, 14, 3, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
        let address = Some("fe80::9".parse().unwrap());
        assert_eq!(Tlv::decode(&ihu), Ok(Tlv::Ihu(Ihu { rxcost: 1, interval: 2, address })));
    }

    #[test]
    fn rfc_8966_4_4_what_follows_known_fields_is_ignored() {
        let hello = [42, 3, 0, 11, 4, 8, 0x80, 0, 0, 1, 7, 0xd0, 99, 99, 1];
        let expected = Hello { flags: HELLO_UNICAST, seqno: Seqno(1), interval: 2000 };
        assert_eq!(Tlv::decode(&hello), Ok(Tlv::Hello(expected)));
    }
}
