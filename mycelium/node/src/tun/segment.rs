//! Cuts a super packet that the kernel hands over into packets that fit the MTU, each with its own
//! headers and checksum.
//!
//! [`Segments`] copies each packet straight to where it will be encrypted, so a byte is copied once on
//! its way from TUN to a link.

use crate::tun::checksum::Sum;
use crate::tun::vnet::{GsoKind, VnetHeader};

/// Size of IPv6's header.
pub(crate) const IPV6_HEADER_SIZE: usize = 40;
/// TCP and UDP as IPv6 numbers them.
pub(crate) const PROTOCOL_TCP: u8 = 6;
/// UDP.
pub(crate) const PROTOCOL_UDP: u8 = 17;

pub(crate) const TCP_HEADER_SIZE_MIN: usize = 20;
pub(crate) const UDP_HEADER_SIZE: usize = 8;
pub(crate) const TCP_FLAGS: usize = 13;
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;
const FLAG_FIN: u8 = 0x01;
pub(crate) const FLAG_PSH: u8 = 0x08;
const FLAG_CWR: u8 = 0x80;

/// The packets of one super packet, in order.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    kind: GsoKind,
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    segment_size: usize,
    /// How much of the payload was handed out.
    done: usize,
    is_first: bool,
}

impl<'a> Segments<'a> {
    /// Takes an IPv6 packet as TUN gave it. `None` when header and packet disagree.
    pub(crate) fn new(header: VnetHeader, packet: &'a mut [u8]) -> Option<Self> {
        if packet.len() < IPV6_HEADER_SIZE {
            return None;
        }
        if header.kind == GsoKind::None {
            if let Some(at) = header.checksum {
                complete(packet, usize::from(at.start), usize::from(at.offset))?;
            }
            return Some(Self::whole(packet));
        }
        let transport = usize::from(header.checksum?.start);
        let header_size = match header.kind {
            GsoKind::Tcp6 => usize::from(packet.get(transport + 12)? >> 4) * 4,
            GsoKind::Udp => UDP_HEADER_SIZE,
            GsoKind::None | GsoKind::Other => return None,
        };
        if header.kind == GsoKind::Tcp6 && header_size < TCP_HEADER_SIZE_MIN {
            return None;
        }
        let payload = transport + header_size;
        let fits = transport >= IPV6_HEADER_SIZE && payload <= packet.len();
        let segment_size = usize::from(header.segment_size);
        (fits && segment_size > 0).then_some(Self {
            packet,
            kind: header.kind,
            transport,
            payload,
            segment_size,
            done: 0,
            is_first: true,
        })
    }

    /// A packet that needs nothing.
    pub(crate) fn whole(packet: &'a [u8]) -> Self {
        let (transport, payload) = (packet.len(), packet.len());
        let (segment_size, done, is_first) = (0, 0, true);
        Self { packet, kind: GsoKind::None, transport, payload, segment_size, done, is_first }
    }

    /// What TUN gave.
    pub(crate) fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Size of the largest packet that is still to come.
    pub(crate) fn size_max(&self) -> usize {
        self.payload + self.segment_size.min(self.packet.len() - self.payload)
    }

    /// Writes the next packet to the front of `out`, which must have room for [`Self::size_max`], and
    /// gives its size.
    pub(crate) fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let left = self.packet.len() - self.payload - self.done;
        if !self.is_first && left == 0 {
            return None;
        }
        if self.kind == GsoKind::None {
            self.is_first = false;
            out[..self.packet.len()].copy_from_slice(self.packet);
            return Some(self.packet.len());
        }
        let size = left.min(self.segment_size);
        let from = self.payload + self.done;
        let out = &mut out[..self.payload + size];
        out[..self.payload].copy_from_slice(&self.packet[..self.payload]);
        out[self.payload..].copy_from_slice(&self.packet[from..from + size]);
        self.patch(out, size == left);
        self.done += size;
        self.is_first = false;
        Some(out.len())
    }

    /// Makes a copy of the headers fit their segment.
    fn patch(&self, out: &mut [u8], is_last: bool) {
        let inside = u16::try_from(out.len() - IPV6_HEADER_SIZE).unwrap_or(u16::MAX);
        out[4..6].copy_from_slice(&inside.to_be_bytes());
        let at = self.transport;
        let size = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
        let (protocol, field) = match self.kind {
            GsoKind::Udp => (PROTOCOL_UDP, at + UDP_CHECKSUM),
            _ => (PROTOCOL_TCP, at + TCP_CHECKSUM),
        };
        if protocol == PROTOCOL_UDP {
            let length = u16::try_from(size).unwrap_or(u16::MAX);
            out[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
        } else {
            let sequence = u32::from_be_bytes([out[at + 4], out[at + 5], out[at + 6], out[at + 7]]);
            // At most 64 KiB, so the cast keeps all of it.
            let sequence = sequence.wrapping_add(u32::try_from(self.done).unwrap_or(0));
            out[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                out[at + TCP_FLAGS] &= !(FLAG_FIN | FLAG_PSH);
            }
            if !self.is_first {
                out[at + TCP_FLAGS] &= !FLAG_CWR;
            }
        }
        out[field..field + 2].fill(0);
        let mut sum = Sum::pseudo_header(out, protocol, size);
        sum.add(&out[at..]);
        store(&mut out[field..field + 2], sum, protocol == PROTOCOL_UDP);
    }
}

/// Sums from `start` to the end, where the field at `offset` holds the pseudo header's part, and puts
/// the checksum there.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let mut sum = Sum::default();
    sum.add(packet.get(start..)?);
    // UDP's field is the only one at this place; TCP's is at 16 and ICMPv6's at 2.
    let is_udp = offset == UDP_CHECKSUM;
    store(packet.get_mut(start + offset..start + offset + 2)?, sum, is_udp);
    Some(())
}

/// Zero means "no checksum" in UDP, so it is sent as its other form (RFC 768).
fn store(field: &mut [u8], sum: Sum, is_udp: bool) {
    let checksum = match sum.checksum() {
        [0, 0] if is_udp => [0xff, 0xff],
        checksum => checksum,
    };
    field.copy_from_slice(&checksum);
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tun::vnet::PartialChecksum;

    /// A TCP packet with a right checksum.
    pub(crate) fn tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[6..8].copy_from_slice(&[PROTOCOL_TCP, 64]);
        packet[8..24].copy_from_slice(&"400::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet[24..40].copy_from_slice(&"500::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet[40..44].copy_from_slice(&[0x12, 0x34, 0, 80]);
        packet[44..48].copy_from_slice(&sequence.to_be_bytes());
        packet[52..54].copy_from_slice(&[0x50, flags]);
        packet.extend_from_slice(payload);
        let size = u16::try_from(packet.len() - 40).unwrap();
        packet[4..6].copy_from_slice(&size.to_be_bytes());
        let mut sum = Sum::pseudo_header(&packet, PROTOCOL_TCP, u32::from(size));
        sum.add(&packet[40..]);
        packet[56..58].copy_from_slice(&sum.checksum());
        packet
    }

    /// Whether a packet's TCP checksum is right.
    pub(crate) fn is_whole(packet: &[u8]) -> bool {
        let size = u32::try_from(packet.len() - 40).unwrap();
        let mut sum = Sum::pseudo_header(packet, packet[6], size);
        sum.add(&packet[40..]);
        sum.is_whole()
    }

    fn all(mut segments: Segments<'_>) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut out = vec![0; 1 << 16];
        while let Some(size) = segments.next_into(&mut out) {
            packets.push(out[..size].to_vec());
        }
        packets
    }

    fn header(kind: GsoKind, segment_size: u16, offset: u16) -> VnetHeader {
        let checksum = Some(PartialChecksum { start: 40, offset });
        VnetHeader { kind, header_size: 60, segment_size, checksum }
    }

    #[test]
    fn a_tcp_super_packet_becomes_packets_with_their_own_headers() {
        let payload: Vec<u8> = (0..2500_u32).map(|at| (at % 251) as u8).collect();
        let mut packet = tcp(0xffff_ff00, 0x10 | FLAG_PSH | FLAG_FIN | FLAG_CWR, &payload);
        let packets = all(Segments::new(header(GsoKind::Tcp6, 1000, 16), &mut packet).unwrap());
        let sizes: Vec<usize> = packets.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1060, 1060, 560]);
        let flags: Vec<u8> = packets.iter().map(|packet| packet[53]).collect();
        assert_eq!(flags, [0x10 | FLAG_CWR, 0x10, 0x10 | FLAG_PSH | FLAG_FIN]);
        assert_eq!(packets[1][44..48], 0xffff_ff00_u32.wrapping_add(1000).to_be_bytes());
        assert!(packets.iter().all(|packet| is_whole(packet)));
        let whole: Vec<u8> = packets.iter().flat_map(|packet| packet[60..].to_vec()).collect();
        assert_eq!(whole, payload);
    }

    #[test]
    fn a_udp_super_packet_becomes_datagrams() {
        let mut packet = tcp(0, 0, &[7; 100]);
        packet.truncate(48 + 100);
        packet[6] = PROTOCOL_UDP;
        let packets = all(Segments::new(header(GsoKind::Udp, 64, 6), &mut packet).unwrap());
        assert_eq!(packets.iter().map(Vec::len).collect::<Vec<_>>(), [48 + 64, 48 + 36]);
        assert_eq!(packets[1][44..46], [0, 44]);
        assert!(packets.iter().all(|packet| is_whole(packet)));
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        let expected = tcp(1, 0x10, b"odd");
        let mut packet = expected.clone();
        let partial = Sum::pseudo_header(&packet, PROTOCOL_TCP, 23).folded();
        packet[56..58].copy_from_slice(&partial);
        let segments = Segments::new(header(GsoKind::None, 0, 16), &mut packet).unwrap();
        assert_eq!(all(segments), [expected]);
    }

    #[test]
    fn headers_that_do_not_fit_their_packet_are_refused() {
        let packet = tcp(1, 0x10, b"payload");
        for (kind, size, start, offset) in [
            (GsoKind::Tcp6, 0, 40, 16),
            (GsoKind::Tcp6, 100, 20, 16),
            (GsoKind::Tcp6, 100, 66, 16),
            (GsoKind::None, 0, 200, 16),
            (GsoKind::None, 0, 40, 60000),
            (GsoKind::Other, 100, 40, 16),
        ] {
            let mut header = header(kind, size, offset);
            header.checksum = Some(PartialChecksum { start, offset });
            assert!(Segments::new(header, &mut packet.clone()).is_none(), "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_from_the_kernel_makes_it_panic(
            bytes in any::<[u8; 10]>(), mut packet in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Some(segments) = Segments::new(VnetHeader::decode(&bytes), &mut packet) {
                let _ = all(segments);
            }
        }
    }
}
