//! The structures of virtio 1.3 §5.1 as bytes, little-endian.
//!
//! ```text
//! struct virtio_net_hdr        (§5.1.6)     struct virtio_net_config     (§5.1.4)
//!  0  flags          u8                      0  mac                  [u8; 6]
//!  1  gso_type       u8                      6  status               u16
//!  2  hdr_len        u16                     8  max_virtqueue_pairs  u16
//!  4  gso_size       u16                    10  mtu                  u16
//!  6  csum_start     u16                    12  speed, Mbit/s        u32
//!  8  csum_offset    u16                    16  duplex               u8
//! 10  num_buffers    u16
//! ```

pub(super) use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
pub(super) use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// What precedes each packet. With `VERSION_1` it always has its `num_buffers`.
pub(super) const HEADER_SIZE: u32 = 12;
/// Where `num_buffers` is in it.
pub(super) const NUM_BUFFERS_AT: u32 = 10;
/// The largest packet with its header: an IP packet of 64 KiB less one byte, which the kernel has
/// yet to cut up, behind an Ethernet header with a VLAN tag.
pub(super) const PACKET_SIZE_MAX: u32 = HEADER_SIZE + 14 + 4 + 65_535;

/// Where `mac` is in the configuration space.
pub(super) const MAC: std::ops::Range<usize> = 0..6;
/// What a driver reads once.
pub(super) const FIXED: [(&str, std::ops::Range<usize>); 2] =
    [("max_virtqueue_pairs", 8..10), ("an MTU of", 10..12)];
/// Where `status` is in the configuration space.
const STATUS_AT: usize = 6;
const CONFIG_SIZE: usize = 17;
/// A speed that is not known (§5.1.4).
const SPEED_UNKNOWN: u32 = 0xffff_ffff;
const DUPLEX_FULL: u8 = 1;
const DUPLEX_UNKNOWN: u8 = 0xff;

/// `VIRTIO_NET_OK` and `VIRTIO_NET_ERR` (§5.1.6.5).
pub(super) const ACK_OK: u8 = 0;
pub(super) const ACK_ERROR: u8 = 1;

/// The configuration space of a card whose link is up.
pub(super) fn config(
    mac: [u8; 6],
    pairs_max: u16,
    mtu: Option<u16>,
    speed_mbps: Option<u32>,
) -> [u8; CONFIG_SIZE] {
    let mut bytes = [0; CONFIG_SIZE];
    bytes[..6].copy_from_slice(&mac);
    set_link(&mut bytes, true);
    bytes[8..10].copy_from_slice(&pairs_max.to_le_bytes());
    bytes[10..12].copy_from_slice(&mtu.unwrap_or(0).to_le_bytes());
    bytes[12..16].copy_from_slice(&speed_mbps.unwrap_or(SPEED_UNKNOWN).to_le_bytes());
    bytes[16] = if speed_mbps.is_some() { DUPLEX_FULL } else { DUPLEX_UNKNOWN };
    bytes
}

/// Sets or clears `VIRTIO_NET_S_LINK_UP` in a configuration space.
pub(super) fn set_link(config: &mut [u8], is_up: bool) {
    // Announcements are not offered, so this is the only bit of the status.
    let status = if is_up { VIRTIO_NET_S_LINK_UP } else { 0 };
    if let Some(low) = config.get_mut(STATUS_AT) {
        *low = status.to_le_bytes()[0];
    }
}

/// A command of the control queue (§5.1.6.5), its arguments still unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// One of the receive modes: promiscuous, all multicast and so on. One byte: on or off.
    ReceiveMode,
    /// The tables of unicast and multicast addresses to let in.
    MacTables,
    /// How many queue pairs to use: `u16`.
    QueuePairs,
    /// Which offloads the driver can take, of those negotiated: `u64`.
    GuestOffloads,
    /// Something that was not offered.
    Unknown,
}

impl Command {
    /// The command with this class and number.
    pub(super) fn new([class, number]: [u8; 2]) -> Self {
        match (u32::from(class), u32::from(number)) {
            (VIRTIO_NET_CTRL_RX, 0..=VIRTIO_NET_CTRL_RX_NOBCAST) => Self::ReceiveMode,
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => Self::MacTables,
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => Self::QueuePairs,
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                Self::GuestOffloads
            }
            _ => Self::Unknown,
        }
    }
}
