//! Joins packets of a flow that arrive one after the other into a super packet, for one write to TUN.
//!
//! The packets lie decrypted in a link's read buffer. A [`Coalescer`] remembers where, and hands the
//! kernel the first packet's headers, made to fit, and the payloads as they lie: no byte is copied.
//!
//! - Only packets whose transport checksum is right are joined, since the kernel believes a super
//!   packet's. Others go to the kernel as they are, which drops them.
//! - TCP joins when flags, acknowledgment, window and options agree and the sequence continues; UDP
//!   when sizes agree. A shorter packet, or one with PSH, ends its group.
//! - A flow keeps its order: what can't join its flow's group is written after it.

use std::io::IoSlice;
use std::ops::Range;

use crate::tun::checksum::Sum;
use crate::tun::segment::{
    FLAG_PSH, IPV6_HEADER_SIZE, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM, TCP_FLAGS,
    TCP_HEADER_SIZE_MIN, UDP_CHECKSUM, UDP_HEADER_SIZE,
};
use crate::tun::vnet::{GsoKind, PartialChecksum, VnetHeader};

/// Takes packets in pieces, the first of which is a `virtio_net_hdr`.
pub(crate) trait Sink {
    /// Whether it takes super packets of UDP.
    fn takes_udp(&self) -> bool;
    /// Takes one packet.
    fn write(&mut self, pieces: &[IoSlice<'_>]);
}

/// Groups of packets that were not written yet.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    groups: Vec<Group>,
    /// Emptied groups, kept for their memory.
    spare: Vec<Group>,
}

/// Flows that are joined at once; one more, and the oldest is written.
const GROUP_COUNT_MAX: usize = 16;
/// Packets that become one. The kernel takes 128 datagrams in one super packet of UDP.
const PACKET_COUNT_MAX: usize = 64;
/// Payload of the largest super packet, less headers.
const GROUP_SIZE_MAX: usize = 65_535 - 128;
const FLAG_ACK: u8 = 0x10;
/// Where addresses and ports are: what tells flows apart.
const FLOW: Range<usize> = 8..44;

/// Packets of one flow.
#[derive(Debug, Default)]
struct Group {
    kind: GsoKind,
    /// Where its first packet is.
    first: Range<usize>,
    /// Size of the headers of each packet.
    header_size: usize,
    /// Where the payloads after the first are.
    more: Vec<Range<usize>>,
    payload_size: usize,
    segment_size: usize,
    sequence_next: u32,
    is_pushed: bool,
    /// Nothing may follow.
    is_closed: bool,
}

/// What a packet needs to join others.
struct Candidate {
    kind: GsoKind,
    header_size: usize,
    payload_size: usize,
    sequence: u32,
    is_pushed: bool,
}

impl Coalescer {
    /// Takes the packet that lies at `at` in `buffer`. It must not move before [`Self::flush`].
    pub(crate) fn push(&mut self, buffer: &[u8], at: Range<usize>, sink: &mut impl Sink) {
        let packet = &buffer[at.clone()];
        let candidate = candidate(packet, sink.takes_udp());
        if let Some(index) = self.position(buffer, packet) {
            if let Some(candidate) = &candidate
                && self.groups[index].join(buffer, &at, candidate)
            {
                return;
            }
            self.write(index, buffer, sink);
        }
        let Some(candidate) = candidate else {
            return write_whole(packet, sink);
        };
        if self.groups.len() == GROUP_COUNT_MAX {
            self.write(0, buffer, sink);
        }
        let mut group = self.spare.pop().unwrap_or_default();
        group.begin(at, &candidate);
        self.groups.push(group);
    }

    /// Writes all that waits.
    pub(crate) fn flush(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        while !self.groups.is_empty() {
            self.write(0, buffer, sink);
        }
    }

    fn position(&self, buffer: &[u8], packet: &[u8]) -> Option<usize> {
        let flow = packet.get(FLOW)?;
        let is_same = |group: &Group| {
            let first = &buffer[group.first.clone()];
            first[6] == packet[6] && first[FLOW] == *flow
        };
        self.groups.iter().position(is_same)
    }

    fn write(&mut self, index: usize, buffer: &[u8], sink: &mut impl Sink) {
        let group = self.groups.remove(index);
        group.write(buffer, sink);
        self.spare.push(group);
    }
}

impl Group {
    fn begin(&mut self, at: Range<usize>, candidate: &Candidate) {
        self.kind = candidate.kind;
        self.first = at;
        self.header_size = candidate.header_size;
        self.more.clear();
        self.payload_size = candidate.payload_size;
        self.segment_size = candidate.payload_size;
        self.sequence_next = candidate.sequence_after();
        self.is_pushed = candidate.is_pushed;
        self.is_closed = candidate.is_pushed;
    }

    /// Whether the packet continues this group, which then has it.
    fn join(&mut self, buffer: &[u8], at: &Range<usize>, candidate: &Candidate) -> bool {
        let continues = !self.is_closed
            && candidate.kind == self.kind
            && candidate.header_size == self.header_size
            && candidate.payload_size <= self.segment_size
            && self.more.len() + 1 < PACKET_COUNT_MAX
            && self.payload_size + candidate.payload_size <= GROUP_SIZE_MAX
            && (self.kind == GsoKind::Udp || candidate.sequence == self.sequence_next);
        let headers = self.first.start..self.first.start + self.header_size;
        if !continues || !agree(self.kind, &buffer[headers], &buffer[at.clone()]) {
            return false;
        }
        self.more.push(at.start + self.header_size..at.end);
        self.payload_size += candidate.payload_size;
        self.sequence_next = candidate.sequence_after();
        self.is_pushed |= candidate.is_pushed;
        self.is_closed = candidate.is_pushed || candidate.payload_size < self.segment_size;
        true
    }

    fn write(&self, buffer: &[u8], sink: &mut impl Sink) {
        let first = &buffer[self.first.clone()];
        if self.more.is_empty() {
            return write_whole(first, sink);
        }
        let mut headers = [0; HEADER_SIZE_MAX];
        let headers = &mut headers[..self.header_size];
        headers.copy_from_slice(&first[..self.header_size]);
        let vnet = self.patch(headers).encode();
        let mut pieces = [IoSlice::new(&[]); PACKET_COUNT_MAX + 2];
        pieces[0] = IoSlice::new(&vnet);
        pieces[1] = IoSlice::new(headers);
        pieces[2] = IoSlice::new(&first[self.header_size..]);
        for (piece, payload) in pieces[3..].iter_mut().zip(&self.more) {
            *piece = IoSlice::new(&buffer[payload.clone()]);
        }
        sink.write(&pieces[..3 + self.more.len()]);
    }

    /// Makes the first packet's headers those of the super packet.
    fn patch(&self, headers: &mut [u8]) -> VnetHeader {
        // At most `GROUP_SIZE_MAX` and the headers: neither conversion can fail.
        let inside = self.header_size - IPV6_HEADER_SIZE + self.payload_size;
        let inside = u16::try_from(inside).unwrap_or(u16::MAX);
        headers[4..6].copy_from_slice(&inside.to_be_bytes());
        let transport = &mut headers[IPV6_HEADER_SIZE..];
        let (protocol, offset) = match self.kind {
            GsoKind::Udp => {
                transport[4..6].copy_from_slice(&inside.to_be_bytes());
                (PROTOCOL_UDP, UDP_CHECKSUM)
            }
            _ => {
                if self.is_pushed {
                    transport[TCP_FLAGS] |= FLAG_PSH;
                }
                (PROTOCOL_TCP, TCP_CHECKSUM)
            }
        };
        let partial = Sum::pseudo_header(headers, protocol, u32::from(inside)).folded();
        let field = IPV6_HEADER_SIZE + offset;
        headers[field..field + 2].copy_from_slice(&partial);
        let small = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        VnetHeader {
            kind: self.kind,
            header_size: small(self.header_size),
            segment_size: small(self.segment_size),
            checksum: Some(PartialChecksum {
                start: small(IPV6_HEADER_SIZE),
                offset: small(offset),
            }),
        }
    }
}

/// IPv6 and the longest header of TCP.
const HEADER_SIZE_MAX: usize = IPV6_HEADER_SIZE + 60;

impl Candidate {
    fn sequence_after(&self) -> u32 {
        self.sequence.wrapping_add(u32::try_from(self.payload_size).unwrap_or(0))
    }
}

fn write_whole(packet: &[u8], sink: &mut impl Sink) {
    let vnet = VnetHeader::default().encode();
    sink.write(&[IoSlice::new(&vnet), IoSlice::new(packet)]);
}

/// Looks whether a packet may be joined with others at all.
fn candidate(packet: &[u8], takes_udp: bool) -> Option<Candidate> {
    let inside = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    if packet.len() < IPV6_HEADER_SIZE || inside != packet.len() - IPV6_HEADER_SIZE {
        return None;
    }
    let transport = &packet[IPV6_HEADER_SIZE..];
    let (kind, size, sequence, is_pushed) = match packet[6] {
        PROTOCOL_TCP if transport.len() >= TCP_HEADER_SIZE_MIN => {
            let flags = transport[TCP_FLAGS];
            if flags & !FLAG_PSH != FLAG_ACK {
                return None;
            }
            let sequence = [transport[4], transport[5], transport[6], transport[7]];
            let size = usize::from(transport[12] >> 4) * 4;
            (GsoKind::Tcp6, size, u32::from_be_bytes(sequence), flags & FLAG_PSH != 0)
        }
        PROTOCOL_UDP if takes_udp && transport.len() >= UDP_HEADER_SIZE => {
            let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            if length != transport.len() || transport[UDP_CHECKSUM..UDP_HEADER_SIZE] == [0, 0] {
                return None;
            }
            (GsoKind::Udp, UDP_HEADER_SIZE, 0, false)
        }
        _ => return None,
    };
    let is_tcp_short = kind == GsoKind::Tcp6 && size < TCP_HEADER_SIZE_MIN;
    if is_tcp_short || transport.len() <= size {
        return None;
    }
    let mut sum = Sum::pseudo_header(packet, packet[6], u32::try_from(inside).ok()?);
    sum.add(transport);
    sum.is_whole().then_some(Candidate {
        kind,
        header_size: IPV6_HEADER_SIZE + size,
        payload_size: transport.len() - size,
        sequence,
        is_pushed,
    })
}

/// Whether headers differ in nothing but what differs from segment to segment. Addresses and ports
/// are known to be the same.
fn agree(kind: GsoKind, headers: &[u8], packet: &[u8]) -> bool {
    let is_same = |range: Range<usize>| headers[range.clone()] == packet[range];
    let network = is_same(0..4) && headers[7] == packet[7];
    // Acknowledgment; offset; window; urgent pointer and options.
    let transport = || {
        is_same(48..52)
            && headers[52] == packet[52]
            && is_same(54..56)
            && is_same(58..headers.len())
    };
    network && (kind == GsoKind::Udp || transport())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tun::segment::Segments;
    use crate::tun::segment::tests::{is_whole, tcp};
    use crate::tun::vnet;

    /// Keeps what is written, cut again as the kernel would.
    #[derive(Default)]
    struct Kernel {
        writes: usize,
        packets: Vec<Vec<u8>>,
    }

    impl Sink for Kernel {
        fn takes_udp(&self) -> bool {
            true
        }

        fn write(&mut self, pieces: &[IoSlice<'_>]) {
            let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            let (header, packet) = bytes.split_at(vnet::SIZE);
            let header = VnetHeader::decode(header.try_into().unwrap());
            let mut packet = packet.to_vec();
            let mut segments = Segments::new(header, &mut packet).unwrap();
            let mut out = vec![0; 1 << 16];
            while let Some(size) = segments.next_into(&mut out) {
                self.packets.push(out[..size].to_vec());
            }
            self.writes += 1;
        }
    }

    fn run(packets: &[Vec<u8>]) -> Kernel {
        let buffer = packets.concat();
        let (mut kernel, mut coalescer) = (Kernel::default(), Coalescer::default());
        let mut at = 0;
        for packet in packets {
            coalescer.push(&buffer, at..at + packet.len(), &mut kernel);
            at += packet.len();
        }
        coalescer.flush(&buffer, &mut kernel);
        kernel
    }

    #[test]
    fn a_run_of_segments_is_one_write_and_the_kernel_sees_the_same_packets() {
        let packets: Vec<_> =
            (0..10_u8).map(|n| tcp(5 + u32::from(n) * 1000, 0x10, &[n; 1000])).collect();
        let kernel = run(&packets);
        assert_eq!(kernel.writes, 1);
        assert_eq!(kernel.packets, packets);
    }

    #[test]
    fn push_a_short_packet_a_gap_and_a_new_window_end_a_group() {
        let mut other_window = tcp(300, 0x10, &[1; 100]);
        other_window[55] = 9;
        other_window[56..58].fill(0);
        let mut sum = Sum::pseudo_header(&other_window, PROTOCOL_TCP, 120);
        sum.add(&other_window[40..]);
        other_window[56..58].copy_from_slice(&sum.checksum());
        let packets = [
            tcp(0, 0x10, &[1; 100]),
            tcp(100, 0x18, &[2; 100]),
            tcp(200, 0x10, &[3; 100]),
            other_window,
            tcp(1000, 0x10, &[5; 100]),
            tcp(1100, 0x10, &[6; 50]),
            tcp(1150, 0x10, &[7; 100]),
            tcp(1250, 0x11, &[8; 100]),
        ];
        let kernel = run(&packets);
        assert_eq!(kernel.packets, packets);
        assert_eq!(kernel.writes, 6);
    }

    #[test]
    fn a_packet_with_a_wrong_checksum_is_not_made_right() {
        let mut bad = tcp(100, 0x10, &[2; 100]);
        bad[99] ^= 1;
        let packets = [tcp(0, 0x10, &[1; 100]), bad, tcp(200, 0x10, &[3; 100])];
        let kernel = run(&packets);
        assert_eq!(kernel.packets, packets);
        assert!(!is_whole(&kernel.packets[1]));
    }

    proptest! {
        #[test]
        fn whatever_arrives_reaches_the_kernel_unchanged_and_in_order_of_its_flow(
            plan in proptest::collection::vec((0_u8..3, 1_usize..4, any::<bool>()), 1..40),
        ) {
            let mut next = [0_u32; 3];
            let mut packets = Vec::new();
            for (flow, size, is_pushed) in plan {
                let payload = vec![flow; size * 50];
                let sequence = &mut next[usize::from(flow)];
                let flags = if is_pushed { 0x18 } else { 0x10 };
                let mut packet = tcp(*sequence, flags, &payload);
                // Another port, and a checksum that makes up for it.
                packet[43] += flow;
                packet[57] = packet[57].wrapping_sub(flow);
                *sequence += u32::try_from(payload.len()).unwrap();
                packets.push(packet);
            }
            let kernel = run(&packets);
            for flow in 0..3 {
                let of = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    packets.iter().filter(|packet| packet[43] == 80 + flow).cloned().collect()
                };
                prop_assert_eq!(of(&kernel.packets), of(&packets));
            }
        }

        #[test]
        fn no_packet_makes_it_panic(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 40..120), 1..5),
        ) {
            let buffer = packets.concat();
            let (mut kernel, mut coalescer) = (Kernel::default(), Coalescer::default());
            let mut at = 0;
            for packet in &packets {
                coalescer.push(&buffer, at..at + packet.len(), &mut kernel);
                at += packet.len();
            }
            coalescer.flush(&buffer, &mut kernel);
            prop_assert_eq!(kernel.packets.len(), packets.len());
        }
    }
}
