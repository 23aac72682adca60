//! `virtio_net_hdr`, the ten bytes in front of each packet of a TUN device opened with `IFF_VNET_HDR`
//! (virtio 1.3 §5.1.6, little endian as `TUNSETVNETLE` asks).
//!
//! ```text
//! flags 1 | gso_type 1 | hdr_len 2 | gso_size 2 | csum_start 2 | csum_offset 2
//! ```

/// Size of the header.
pub(crate) const SIZE: usize = 10;

/// What is to be done with a packet before it may leave: segmentation and a checksum.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct VnetHeader {
    /// How to cut it.
    pub(crate) kind: GsoKind,
    /// Size of all headers, a hint.
    pub(crate) header_size: u16,
    /// Payload of each segment but the last.
    pub(crate) segment_size: u16,
    /// Where the checksum is missing, if it is.
    pub(crate) checksum: Option<PartialChecksum>,
}

/// A checksum of which only the pseudo header's part stands in its field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PartialChecksum {
    /// Where the sum begins: the transport header.
    pub(crate) start: u16,
    /// Where the field is, counted from `start`.
    pub(crate) offset: u16,
}

/// What a super packet consists of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum GsoKind {
    /// It is an ordinary packet.
    #[default]
    None,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one size.
    Udp,
    /// One that this program does not take: IPv4, or UDP fragments.
    Other,
}

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The congestion bits of TCP's header are in use; they are handled in any case.
const GSO_ECN: u8 = 0x80;

impl VnetHeader {
    pub(crate) fn decode(bytes: &[u8; SIZE]) -> Self {
        let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let kind = match kind & !GSO_ECN {
            GSO_NONE => GsoKind::None,
            GSO_TCPV6 => GsoKind::Tcp6,
            GSO_UDP_L4 => GsoKind::Udp,
            _ => GsoKind::Other,
        };
        let checksum = (flags & FLAG_NEEDS_CHECKSUM != 0).then(|| PartialChecksum {
            start: u16::from_le_bytes([s0, s1]),
            offset: u16::from_le_bytes([o0, o1]),
        });
        Self {
            kind,
            header_size: u16::from_le_bytes([h0, h1]),
            segment_size: u16::from_le_bytes([g0, g1]),
            checksum,
        }
    }

    pub(crate) fn encode(self) -> [u8; SIZE] {
        let kind = match self.kind {
            GsoKind::None | GsoKind::Other => GSO_NONE,
            GsoKind::Tcp6 => GSO_TCPV6,
            GsoKind::Udp => GSO_UDP_L4,
        };
        let flags = if self.checksum.is_some() { FLAG_NEEDS_CHECKSUM } else { 0 };
        let [h0, h1] = self.header_size.to_le_bytes();
        let [g0, g1] = self.segment_size.to_le_bytes();
        let (start, offset) = self.checksum.map_or((0, 0), |at| (at.start, at.offset));
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_encoding() {
        let header = VnetHeader {
            kind: GsoKind::Tcp6,
            header_size: 72,
            segment_size: 1328,
            checksum: Some(PartialChecksum { start: 40, offset: 16 }),
        };
        assert_eq!(header.encode(), [1, 4, 72, 0, 0x30, 5, 40, 0, 16, 0]);
        assert_eq!(VnetHeader::decode(&header.encode()), header);
        assert_eq!(VnetHeader::decode(&[0; SIZE]), VnetHeader::default());
    }

    #[test]
    fn unknown_kinds_are_told_apart() {
        assert_eq!(VnetHeader::decode(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).kind, GsoKind::Other);
        assert_eq!(VnetHeader::decode(&[0, 0x84, 0, 0, 0, 0, 0, 0, 0, 0]).kind, GsoKind::Tcp6);
    }
}
