//! rtnetlink messages: the bytes for a [`Request`], and the verdict in the kernel's answer.
//!
//! Four kinds of message are all that a guest's init needs, so they are written out here rather
//! than borrowed from a netlink crate. Layout: rtnetlink(7), `linux/netlink.h`, `linux/rtnetlink.h`,
//! `linux/if_addr.h`. Fields are in the machine's byte order, addresses in the network's.

#![expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's own byte order")]

use std::net::IpAddr;

use crate::bytes::array;
use crate::network::Request;

/// The message for `request`, to be acknowledged under `sequence`; `None` for a request that is
/// no netlink matter.
#[must_use]
pub fn encode(request: &Request, sequence: u32) -> Option<Vec<u8>> {
    match request {
        Request::Sysctl { .. } => None,
        Request::Up { index, mtu } => Some(link(*index, IFF_UP, *mtu, sequence)),
        Request::Down { index } => Some(link(*index, 0, None, sequence)),
        Request::Address { index, prefix } => {
            let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sequence);
            // struct ifaddrmsg: family, prefix length, flags, scope, index. No duplicate address
            // detection: the address is assigned, and a service may bind to it at once.
            message.bytes.extend([family(prefix.address), prefix.length, IFA_F_NODAD, 0]);
            message.bytes.extend(index.to_ne_bytes());
            message.address(IFA_LOCAL, prefix.address);
            message.address(IFA_ADDRESS, prefix.address);
            Some(message.finish())
        }
        Request::Route { index, route, onlink } => {
            let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sequence);
            let scope = if route.via.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
            // struct rtmsg: family, destination and source lengths, TOS, table, protocol, scope,
            // type, flags.
            message.bytes.extend([family(route.to.address), route.to.length, 0, 0]);
            message.bytes.extend([RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST]);
            let flags = if *onlink { RTNH_F_ONLINK } else { 0 };
            message.bytes.extend(flags.to_ne_bytes());
            if route.to.length > 0 {
                message.address(RTA_DST, route.to.address);
            }
            if let Some(via) = route.via {
                message.address(RTA_GATEWAY, via);
            }
            message.attribute(RTA_OIF, &index.to_ne_bytes());
            if route.metric > 0 {
                message.attribute(RTA_PRIORITY, &route.metric.to_ne_bytes());
            }
            Some(message.finish())
        }
    }
}

/// Switches a link on (`IFF_UP`) or off (0).
fn link(index: u32, flags: u32, mtu: Option<u32>, sequence: u32) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWLINK, 0, sequence);
    // struct ifinfomsg: family, padding, type, index, flags, mask of changed flags.
    message.bytes.extend([0; 4]);
    message.bytes.extend(index.to_ne_bytes());
    message.bytes.extend(flags.to_ne_bytes());
    message.bytes.extend(IFF_UP.to_ne_bytes());
    if let Some(mtu) = mtu {
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
    message.finish()
}

/// The kernel's verdict on the request `sequence` in what was received: 0 or a positive errno.
/// `None` if there is no verdict on it.
#[must_use]
pub fn verdict(mut received: &[u8], sequence: u32) -> Option<i32> {
    loop {
        let length = u32::from_ne_bytes(array(received, 0)?) as usize;
        let kind = u16::from_ne_bytes(array(received, 4)?);
        let number = u32::from_ne_bytes(array(received, 8)?);
        if length < HEADER_SIZE {
            return None;
        }
        if kind == NLMSG_ERROR && number == sequence {
            let errno = i32::from_ne_bytes(array(received, HEADER_SIZE)?);
            return errno.checked_neg();
        }
        received = received.get(length.checked_next_multiple_of(4)?..)?;
    }
}

struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// struct nlmsghdr, with the length still to come.
    fn new(kind: u16, flags: u16, sequence: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        Self { bytes }
    }

    /// struct rtattr: length, kind, value, padding to 4.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Values are at most 16 bytes long.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.attribute(kind, &a.octets()),
            IpAddr::V6(a) => self.attribute(kind, &a.octets()),
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.splice(..4, length.to_ne_bytes());
        self.bytes
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

const HEADER_SIZE: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cidata::{Prefix, Route};

    fn prefix(address: &str, length: u8) -> Prefix {
        Prefix { address: address.parse().unwrap(), length }
    }

    fn hex(request: &Request) -> String {
        encode(request, 7).unwrap().iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn up_sets_the_flag_and_the_mtu() {
        assert_eq!(
            hex(&Request::Up { index: 3, mtu: Some(1500) }),
            "28000000100005000700000000000000\
             00000000030000000100000001000000\
             08000400dc050000"
        );
    }

    #[test]
    fn down_clears_the_flag() {
        assert_eq!(
            hex(&Request::Down { index: 3 }),
            "20000000100005000700000000000000\
             00000000030000000000000001000000"
        );
    }

    #[test]
    fn an_address_is_local_and_peer() {
        assert_eq!(
            hex(&Request::Address { index: 3, prefix: prefix("10.1.2.3", 24) }),
            "28000000140005050700000000000000\
             0218020003000000\
             080002000a010203080001000a010203"
        );
    }

    #[test]
    fn a_default_route_has_no_destination() {
        let route =
            Route { to: prefix("0.0.0.0", 0), via: Some("10.9.9.1".parse().unwrap()), metric: 0 };
        assert_eq!(
            hex(&Request::Route { index: 3, route, onlink: true }),
            "2c000000180005050700000000000000\
             02000000fe04000104000000\
             080005000a0909010800040003000000"
        );
    }

    #[test]
    fn a_route_through_a_link_local_gateway() {
        let route =
            Route { to: prefix("400::", 7), via: Some("fe80::1".parse().unwrap()), metric: 5 };
        assert_eq!(
            hex(&Request::Route { index: 2, route, onlink: false }),
            "54000000180005050700000000000000\
             0a070000fe04000100000000\
             1400010004000000000000000000000000000000\
             14000500fe800000000000000000000000000001\
             08000400020000000800060005000000"
        );
    }

    #[test]
    fn the_verdict_is_found_among_other_messages() {
        let message = |kind: u16, sequence: u32, errno: i32| {
            let mut m = Message { bytes: vec![0; 4] };
            m.bytes.extend(kind.to_ne_bytes());
            m.bytes.extend([0; 2]);
            m.bytes.extend(sequence.to_ne_bytes());
            m.bytes.extend([0; 4]);
            m.bytes.extend(errno.to_ne_bytes());
            m.finish()
        };
        let both = [message(3, 7, 0), message(NLMSG_ERROR, 6, 0), message(NLMSG_ERROR, 7, -17)];
        assert_eq!(verdict(&both.concat(), 7), Some(17));
        assert_eq!(verdict(&both.concat(), 6), Some(0));
        assert_eq!(verdict(&both.concat(), 5), None);
        for cut in 0..both.concat().len() {
            let _ = verdict(&both.concat()[..cut], 7);
        }
        assert_eq!(verdict(&[0; 64], 0), None);
        assert_eq!(verdict(&[0xff; 64], u32::MAX), None);
        assert_eq!(verdict(&message(NLMSG_ERROR, 7, i32::MIN), 7), None);
    }
}
