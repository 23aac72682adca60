//! What a network card is plugged into, one object a queue pair: a tap in life, a socket in tests.

use std::io;
use std::os::fd::BorrowedFd;

use super::wire;

/// One queue of what carries the packets.
///
/// Reading its descriptor takes one packet, writing gives it one, each behind a 12-byte
/// `virtio_net_hdr`. What does not fit a read is lost. It never blocks.
pub trait Backend: Send + Sync {
    /// Where packets come and go; the same as long as it lives.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Whether UDP segmentation is known here, in both directions.
    fn has_udp_segmentation(&self) -> bool;

    /// Says what the reader of packets can take. The first queue speaks for all of them.
    ///
    /// # Errors
    /// When the back end refuses, or is gone.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Puts the queue in use or out of it. One that is out of use gets no packets.
    ///
    /// # Errors
    /// When the back end refuses, or is gone.
    fn set_attached(&self, is_attached: bool) -> io::Result<()>;

    /// Whether it is still there.
    ///
    /// # Errors
    /// What became of it.
    fn check(&self) -> io::Result<()>;
}

/// What the reader of packets can do itself, so that the back end need not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets may come without their checksum. All others need it.
    pub has_checksum: bool,
    /// Packets may be longer than the MTU: TCP over IPv4.
    pub has_tso4: bool,
    /// TCP over IPv6.
    pub has_tso6: bool,
    /// TCP with ECN, for those of the two that are set.
    pub has_ecn: bool,
    /// UDP, over IPv4 and IPv6.
    pub has_uso: bool,
}

impl Offloads {
    /// Feature bits, and bits of `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`: they are the same.
    pub(super) const BITS: u64 = 1 << wire::VIRTIO_NET_F_GUEST_CSUM
        | 1 << wire::VIRTIO_NET_F_GUEST_TSO4
        | 1 << wire::VIRTIO_NET_F_GUEST_TSO6
        | 1 << wire::VIRTIO_NET_F_GUEST_ECN
        | 1 << wire::VIRTIO_NET_F_GUEST_USO4
        | 1 << wire::VIRTIO_NET_F_GUEST_USO6;

    /// What a driver that set these bits can take. What needs another bit (virtio 1.3 §5.1.3.1)
    /// counts only with it.
    pub(super) const fn from_bits(bits: u64) -> Self {
        let has_checksum = bits & 1 << wire::VIRTIO_NET_F_GUEST_CSUM != 0;
        let has_tso4 = has_checksum && bits & 1 << wire::VIRTIO_NET_F_GUEST_TSO4 != 0;
        let has_tso6 = has_checksum && bits & 1 << wire::VIRTIO_NET_F_GUEST_TSO6 != 0;
        let has_tso = has_tso4 || has_tso6;
        // The kernel knows the two only together.
        let both = 1 << wire::VIRTIO_NET_F_GUEST_USO4 | 1 << wire::VIRTIO_NET_F_GUEST_USO6;
        Self {
            has_checksum,
            has_tso4,
            has_tso6,
            has_ecn: has_tso && bits & 1 << wire::VIRTIO_NET_F_GUEST_ECN != 0,
            has_uso: has_checksum && bits & both == both,
        }
    }
}
