//! Frames, byte by byte: Ethernet, ARP (RFC 826), IPv4 and IPv6 with ICMP, neighbour discovery (RFC 4861).

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];

pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

/// An ARP packet: 1 asks, 2 answers.
pub(crate) fn arp(
    from: Mac,
    operation: u16,
    (sender_mac, sender): (Mac, Ipv4Addr),
    (target_mac, target): (Mac, Ipv4Addr),
) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4];
    let body = [
        &head[..],
        &operation.to_be_bytes(),
        &sender_mac,
        &sender.octets(),
        &target_mac,
        &target.octets(),
    ];
    ethernet(BROADCAST, from, 0x0806, &body.concat())
}

/// An IPv4 packet with an echo request that carries `mark`.
pub(crate) fn ping4(macs: (Mac, Mac), source: Ipv4Addr, target: Ipv4Addr, mark: u32) -> Vec<u8> {
    ping4_of(32, macs, source, target, mark)
}

/// Such a packet of so many bytes, 32 at least, that no router may cut.
pub(crate) fn ping4_of(
    size: usize,
    (to, from): (Mac, Mac),
    source: Ipv4Addr,
    target: Ipv4Addr,
    mark: u32,
) -> Vec<u8> {
    let filler = vec![0x5a; size - 32];
    let mut icmp = [&[8, 0, 0, 0, 0, 1, 0, 1][..], &filler, &mark.to_be_bytes()].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ethernet(to, from, 0x0800, &ipv4(1, source, target, &icmp))
}

/// A UDP datagram (RFC 768) without a checksum, in IPv4.
pub(crate) fn udp4(
    (to, from): (Mac, Mac),
    (source, source_port): (Ipv4Addr, u16),
    (target, target_port): (Ipv4Addr, u16),
    body: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(8 + body.len()).unwrap();
    let head = [source_port, target_port, length, 0].map(u16::to_be_bytes).concat();
    ethernet(to, from, 0x0800, &ipv4(17, source, target, &[&head[..], body].concat()))
}

/// The first segment of a TCP connection (RFC 9293 section 3.1), in IPv4.
pub(crate) fn syn4(
    (to, from): (Mac, Mac),
    (source, source_port): (Ipv4Addr, u16),
    (target, target_port): (Ipv4Addr, u16),
) -> Vec<u8> {
    let ports = [source_port, target_port].map(u16::to_be_bytes).concat();
    let (number, acknowledged) = ([0, 0, 0, 1], [0; 4]);
    // Five words of header, SYN; the window; checksum and urgent pointer.
    let rest = [0x50, 0x02, 0x10, 0, 0, 0, 0, 0];
    let mut segment = [&ports[..], &number, &acknowledged, &rest].concat();
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [&source.octets()[..], &target.octets(), &[0, 6], &length, &segment];
    let sum = checksum(&pseudo.concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ethernet(to, from, 0x0800, &ipv4(6, source, target, &segment))
}

pub(crate) fn ipv4(protocol: u8, source: Ipv4Addr, target: Ipv4Addr, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
    let mut head = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    head.extend(source.octets());
    head.extend(target.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [&head[..], body].concat()
}

/// An IPv6 packet with an ICMPv6 message of this type; `body` is what follows its checksum.
pub(crate) fn icmp6(
    (to, from): (Mac, Mac),
    (source, target): (Ipv6Addr, Ipv6Addr),
    kind: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut icmp = [&[kind, 0, 0, 0][..], body].concat();
    let length = u16::try_from(icmp.len()).unwrap().to_be_bytes();
    let pseudo =
        [&source.octets()[..], &target.octets(), &[0, 0, length[0], length[1], 0, 0, 0, 58], &icmp];
    let sum = checksum(&pseudo.concat());
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let head =
        [&[0x60, 0, 0, 0, length[0], length[1], 58, 255][..], &source.octets(), &target.octets()];
    ethernet(to, from, 0x86dd, &[&head.concat()[..], &icmp].concat())
}

/// An ICMPv6 echo request that carries `mark`.
pub(crate) fn ping6(macs: (Mac, Mac), addresses: (Ipv6Addr, Ipv6Addr), mark: u32) -> Vec<u8> {
    icmp6(macs, addresses, 128, &[&[0, 1, 0, 1][..], &mark.to_be_bytes()].concat())
}

/// What a neighbour solicitation or advertisement says after its checksum, with a link-layer option.
pub(crate) fn neighbour(flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    [&[flags, 0, 0, 0][..], &target.octets(), &[option, 1], &mac].concat()
}

/// The multicast MAC that a solicitation for an address goes to (RFC 2464 section 7).
pub(crate) fn solicited(target: Ipv6Addr) -> (Mac, Ipv6Addr) {
    let [.., a, b, c] = target.octets();
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    ([0x33, 0x33, 0xff, a, b, c], group)
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
