//! The TUN device: super packets out of the kernel and into it.
//!
//! The device has several queues, each read by a thread of its own. Packets come with a
//! `virtio_net_hdr` (`vnet`) and up to 64 KiB in one read; `segment` cuts them. In the other
//! direction `coalesce` joins packets of a flow into one write. Both save most of what a packet
//! costs: one system call and one walk through the kernel's stack carry forty packets.

pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod segment;
pub(crate) mod vnet;

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mycelium_wire::identity::OVERLAY;

use crate::sys::{self, Offload};

/// Largest packet that every node can take.
pub(crate) const MTU: u16 = 1400;

/// Largest that TUN may be set to: a jumbo frame's.
pub(crate) const MTU_MAX: u16 = 9000;

/// Largest read: a header and an IPv6 packet of the largest size.
pub(crate) const READ_SIZE_MAX: usize = vnet::SIZE + 65535 + segment::IPV6_HEADER_SIZE;

/// A TUN device with its address. The kernel removes it when the last queue is closed.
#[derive(Debug)]
pub(crate) struct Tun {
    queues: Vec<OwnedFd>,
    offload: Offload,
}

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` can't be opened, or refuses a device of this name.
    #[error("TUN device {name}: {step}")]
    Open {
        /// Name of the device.
        name: String,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device is there, but takes no address.
    #[error("TUN device {name}: can't set its address {address}")]
    Configure {
        /// Name of the device.
        name: String,
        /// The node's address.
        address: Ipv6Addr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TunError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        let (Self::Open { source, .. } | Self::Configure { source, .. }) = self;
        match (self, source.raw_os_error()?) {
            (_, libc::EPERM) => Some("a TUN device needs CAP_NET_ADMIN; or use --no-tun"),
            (Self::Open { .. }, libc::ENOENT | libc::ENODEV) => {
                Some("`modprobe tun` brings /dev/net/tun; or use --no-tun")
            }
            (Self::Open { .. }, libc::EBUSY | libc::EINVAL) => {
                Some("another program may have a device of this name; choose another --tun-name")
            }
            (Self::Configure { .. }, libc::EACCES) => {
                Some("is IPv6 disabled here? see net.ipv6.conf.all.disable_ipv6")
            }
            _ => None,
        }
    }
}

impl Tun {
    /// Makes the device `name` with `queue_count` queues, gives it the node's address and its MTU, and starts
    /// it.
    /// The address has the overlay's prefix length, so the kernel routes the overlay to it.
    pub(crate) fn open(
        name: &str,
        queue_count: usize,
        (address, mtu): (Ipv6Addr, u16),
    ) -> Result<Self, TunError> {
        let failed = |step| move |source| TunError::Open { name: name.to_owned(), step, source };
        let mut queues = Vec::with_capacity(queue_count);
        for _ in 0..queue_count {
            queues.push(sys::open_tun_queue(name).map_err(failed("can't be opened"))?);
        }
        let mut offload = Offload::TcpAndUdp;
        if sys::set_tun_offload(&queues[0], offload).is_err() {
            offload = Offload::Tcp;
            let refused = failed("the kernel refuses segmentation offload");
            sys::set_tun_offload(&queues[0], offload).map_err(refused)?;
        }
        sys::configure_interface(name, mtu, address, OVERLAY.prefix_len())
            .map_err(|source| TunError::Configure { name: name.to_owned(), address, source })?;
        Ok(Self { queues, offload })
    }

    /// Number of queues.
    pub(crate) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// A queue; any number will do.
    pub(crate) fn queue(&self, number: usize) -> Queue<'_> {
        Queue { file: self.queues[number % self.queues.len()].as_fd(), offload: self.offload }
    }
}

/// One queue of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue<'a> {
    file: BorrowedFd<'a>,
    offload: Offload,
}

impl<'a> Queue<'a> {
    /// Its descriptor, to wait for.
    pub(crate) fn file(&self) -> BorrowedFd<'a> {
        self.file
    }

    /// Reads one packet or super packet with its header.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::io::read(self.file, buffer)
    }
}

impl coalesce::Sink for Queue<'_> {
    fn takes_udp(&self) -> bool {
        self.offload == Offload::TcpAndUdp
    }

    /// A packet that the kernel does not take is lost, as on any network.
    fn write(&mut self, pieces: &[IoSlice<'_>]) {
        if let Err(error) = rustix::io::writev(self.file, pieces) {
            tracing::debug!(%error, "TUN takes no packet");
        }
    }
}
