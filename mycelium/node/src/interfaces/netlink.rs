//! Bytes of the kernel's routing socket (`rtnetlink(7)`): requests for all interfaces and addresses, and
//! messages that say that one came, changed or went.
//!
//! ```text
//!  message  length 4 │ type 2 │ flags 2 │ sequence 4 │ port 4 │ body, then padding to 4
//!  link     family 1 │ 0 │ hardware 2 │ index 4 │ flags 4 │ changed 4 │ attributes
//!  address  family 1 │ prefix length 1 │ flags 1 │ scope 1 │ index 4 │ attributes
//!  attribute  length 2 │ type 2 │ value, then padding to 4
//! ```
//!
//! Numbers are in this machine's byte order, addresses in the network's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a message says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    /// An interface is there, like this.
    Link {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
        /// `IFF_…`.
        flags: u32,
    },
    /// An interface is gone.
    LinkGone(u32),
    /// An interface has an address.
    Address {
        /// The interface.
        index: u32,
        /// The address.
        address: IpAddr,
        /// Not yet, or never, to be used: it is not known to be the only one.
        is_tentative: bool,
    },
    /// An interface has an address no more.
    AddressGone {
        /// The interface.
        index: u32,
        /// The address.
        address: IpAddr,
    },
    /// All that was asked for was said.
    Done,
}

/// Groups to hear of: links, IPv4 addresses, IPv6 addresses (`RTMGRP_…`).
pub(crate) const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// The interface is to be used (`IFF_UP`).
pub(crate) const UP: u32 = 0x1;
/// It leads back to this machine (`IFF_LOOPBACK`).
pub(crate) const LOOPBACK: u32 = 0x8;
/// It leads to one other (`IFF_POINTOPOINT`), such as a tunnel.
pub(crate) const POINT_TO_POINT: u32 = 0x10;
/// It can be used: the cable is in (`IFF_RUNNING`).
pub(crate) const RUNNING: u32 = 0x40;
/// It reaches many at once (`IFF_MULTICAST`).
pub(crate) const MULTICAST: u32 = 0x1000;

const HEADER_SIZE: usize = 16;
const LINK_SIZE: usize = 16;
const ADDRESS_SIZE: usize = 8;
const ATTRIBUTE_SIZE: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// `IFA_F_TENTATIVE` and `IFA_F_DADFAILED`.
const UNUSABLE: u32 = 0x48;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const REQUEST_ALL: u16 = 0x301;

/// Asks for all interfaces.
pub(crate) fn all_links() -> Vec<u8> {
    request(RTM_GETLINK, LINK_SIZE)
}

/// Asks for all addresses.
pub(crate) fn all_addresses() -> Vec<u8> {
    request(RTM_GETADDR, ADDRESS_SIZE)
}

/// A request whose body is all zeros: of any family, of any interface.
fn request(kind: u16, body_size: usize) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER_SIZE + body_size);
    let length = u32::try_from(HEADER_SIZE + body_size).unwrap_or(u32::MAX);
    request.extend(native_u32(length));
    request.extend(native_u16(kind));
    request.extend(native_u16(REQUEST_ALL));
    request.resize(HEADER_SIZE + body_size, 0);
    request
}

/// What the messages of a datagram say, as far as it concerns us.
pub(crate) fn parse(mut datagram: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((message, rest)) = split(datagram, HEADER_SIZE, u32_at(datagram, 0)) {
        let kind = u16_at(message, 4).unwrap_or(0);
        messages.extend(parse_one(kind, &message[HEADER_SIZE..]));
        datagram = rest;
    }
    messages
}

fn parse_one(kind: u16, body: &[u8]) -> Option<Message> {
    match kind {
        // A request that is refused is done as well.
        NLMSG_DONE | NLMSG_ERROR => Some(Message::Done),
        RTM_NEWLINK => {
            let name = attribute(body.get(LINK_SIZE..)?, IFLA_IFNAME)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            Some(Message::Link { index: u32_at(body, 4)?, name, flags: u32_at(body, 8)? })
        }
        RTM_DELLINK => u32_at(body, 4).map(Message::LinkGone),
        RTM_NEWADDR => {
            let (index, address, flags) = address(body)?;
            Some(Message::Address { index, address, is_tentative: flags & UNUSABLE != 0 })
        }
        RTM_DELADDR => {
            let (index, address, _flags) = address(body)?;
            Some(Message::AddressGone { index, address })
        }
        _ => None,
    }
}

/// Interface, address and flags.
fn address(body: &[u8]) -> Option<(u32, IpAddr, u32)> {
    let attributes = body.get(ADDRESS_SIZE..)?;
    // On a link from point to point `IFA_ADDRESS` is the other side's.
    let own = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    let address = match own.len() {
        4 => IpAddr::V4(Ipv4Addr::from(*own.first_chunk::<4>()?)),
        16 => IpAddr::V6(Ipv6Addr::from(*own.first_chunk::<16>()?)),
        _ => return None,
    };
    let flags = attribute(attributes, IFA_FLAGS).and_then(|flags| u32_at(flags, 0));
    let flags = flags.or_else(|| body.get(2).map(|flags| u32::from(*flags)))?;
    Some((u32_at(body, 4)?, address, flags))
}

/// The value of an attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16_at(attributes, 0).map(u32::from);
        let (attribute, rest) = split(attributes, ATTRIBUTE_SIZE, length)?;
        if u16_at(attribute, 2) == Some(wanted) {
            return attribute.get(ATTRIBUTE_SIZE..);
        }
        attributes = rest;
    }
}

/// Cuts off what has this length, at least `size_min`, and the padding behind it.
fn split(bytes: &[u8], size_min: usize, length: Option<u32>) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length?).ok()?;
    let first = bytes.get(..length).filter(|_| length >= size_min)?;
    Some((first, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[expect(clippy::host_endian_bytes, reason = "the kernel speaks in this machine's byte order")]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[expect(clippy::host_endian_bytes, reason = "the kernel speaks in this machine's byte order")]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[expect(clippy::host_endian_bytes, reason = "the kernel speaks in this machine's byte order")]
fn native_u16(value: u16) -> [u8; 2] {
    value.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "the kernel speaks in this machine's byte order")]
fn native_u32(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = vec![0; HEADER_SIZE];
        message.extend_from_slice(body);
        for (kind, value) in attributes {
            let length = u16::try_from(ATTRIBUTE_SIZE + value.len()).unwrap();
            message.extend(native_u16(length));
            message.extend(native_u16(*kind));
            message.extend_from_slice(value);
            message.resize(message.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&native_u32(length));
        message[4..6].copy_from_slice(&native_u16(kind));
        message
    }

    #[test]
    fn links_and_addresses_are_read() {
        let link = [&[0; 4][..], &native_u32(7), &native_u32(UP | RUNNING), &[0; 4]].concat();
        let link = message(RTM_NEWLINK, &link, &[(9, b"x"), (IFLA_IFNAME, b"eth0\0")]);
        let v4 = [&[2, 24, 0x80, 0][..], &native_u32(7)].concat();
        let (peer, own) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let v4 = message(RTM_NEWADDR, &v4, &[(IFA_ADDRESS, &peer), (IFA_LOCAL, &own)]);
        let v6 = [&[10, 64, 0x80, 0][..], &native_u32(7)].concat();
        let loopback = Ipv6Addr::LOCALHOST.octets();
        let flags = native_u32(0x40);
        let tentative = message(RTM_NEWADDR, &v6, &[(IFA_ADDRESS, &loopback), (IFA_FLAGS, &flags)]);
        let gone = message(RTM_DELADDR, &v6, &[(IFA_ADDRESS, &loopback)]);
        let done = message(NLMSG_DONE, &[0; 4], &[]);
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(
            parse(&[link, v4, tentative, gone, done].concat()),
            [
                Message::Link { index: 7, name: "eth0".to_owned(), flags: UP | RUNNING },
                Message::Address { index: 7, address: own.into(), is_tentative: false },
                Message::Address { index: 7, address: v6, is_tentative: true },
                Message::AddressGone { index: 7, address: v6 },
                Message::Done,
            ]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0_u16..30,
        ) {
            parse(&bytes);
            parse(&message(kind, &bytes, &[]));
        }
    }
}
