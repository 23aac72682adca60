//! Taps: the host's end of a guest's cable (`/dev/net/tun`).
//!
//! A tap is opened by its name, which takes `CAP_NET_ADMIN` or an owner set by whoever made it, or
//! it comes as descriptors that a more privileged process opened, as a jailed machine gets them.
//! The kernel checks what a guest writes into a `virtio_net_hdr` (offsets within the packet, known
//! types, sizes of segments) when a packet is written, and fills the header when one is read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Setter, ioctl, opcode};

use super::wire::HEADER_SIZE;
use super::{Backend, Offloads};

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    descriptor: OwnedFd,
    has_uso: bool,
}

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not the name of a network interface.
    #[error("{0:?} is no name of a network interface: 1 to 15 bytes, without '/' or white space")]
    Name(String),
    /// None, or more than a card may have.
    #[error("{0} queues: a network card has 1 to {PAIRS_MAX}", PAIRS_MAX = super::PAIRS_MAX)]
    Count(usize),
    /// A descriptor that was handed over is not a tap as we need it.
    #[error("descriptor {index} of the tap: {what} is not as it must be (flags {flags:#06x})")]
    Flags {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
        /// What the kernel says of it.
        flags: u16,
    },
    /// The host refused.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Tap {
    /// Opens `count` queues of the interface `name`. The kernel makes it if it is not there and
    /// this process may; it then lives as long as a queue of it is open.
    ///
    /// # Errors
    /// [`TapError`], with the name and what could not be done.
    pub fn open(name: &str, count: usize) -> Result<Vec<Self>, TapError> {
        if !(1..=usize::from(super::PAIRS_MAX)).contains(&count) {
            return Err(TapError::Count(count));
        }
        let flags = if count > 1 { FLAGS | IFF_MULTI_QUEUE } else { FLAGS };
        let request = InterfaceRequest::new(name, flags)?;
        let failed = |what: &str| {
            let what = format!("tap {name}: {what}");
            move |errno: Errno| TapError::Host { what, source: errno.into() }
        };
        let mut queues = Vec::new();
        for _ in 0..count {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let descriptor = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
                .map_err(failed("open /dev/net/tun"))?;
            let attached = match attach_to(descriptor.as_fd(), request) {
                // An interface that was made for several queues takes no other kind.
                Err(Errno::INVAL) if count == 1 => {
                    let request = InterfaceRequest { flags: FLAGS | IFF_MULTI_QUEUE, ..request };
                    attach_to(descriptor.as_fd(), request)
                }
                result => result,
            };
            attached.map_err(failed("attach to the interface"))?;
            queues.push(Self::new(descriptor).map_err(failed("set the header's size"))?);
        }
        Ok(queues)
    }

    /// Takes queues of one tap that were opened by someone else, with `IFF_TAP`, `IFF_NO_PI`,
    /// `IFF_VNET_HDR` and, if there are several, `IFF_MULTI_QUEUE`.
    ///
    /// # Errors
    /// [`TapError`], with which descriptor and what is wrong with it.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Result<Vec<Self>, TapError> {
        let count = descriptors.len();
        if !(1..=usize::from(super::PAIRS_MAX)).contains(&count) {
            return Err(TapError::Count(count));
        }
        let adopt = |(index, descriptor): (usize, OwnedFd)| {
            let failed = |what: &str| {
                let what = format!("descriptor {index} of the tap: {what}");
                move |errno: Errno| TapError::Host { what, source: errno.into() }
            };
            let request = interface_of(descriptor.as_fd()).map_err(failed("not a tap"))?;
            let flags = request.flags;
            if let Some(what) = wrong_flag(flags, count > 1) {
                return Err(TapError::Flags { index, what, flags });
            }
            rustix::io::ioctl_fionbio(&descriptor, true).map_err(failed("make it non-blocking"))?;
            Self::new(descriptor).map_err(failed("set the header's size"))
        };
        descriptors.into_iter().enumerate().map(adopt).collect()
    }

    fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        set_header_size(descriptor.as_fd())?;
        // Tried rather than asked: there is no other way to learn of it.
        let all = TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6;
        let has_uso = set_offload(descriptor.as_fd(), all).is_ok();
        set_offload(descriptor.as_fd(), 0)?;
        Ok(Self { descriptor, has_uso })
    }
}

impl Backend for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn has_udp_segmentation(&self) -> bool {
        self.has_uso
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads { has_checksum, has_tso4, has_tso6, has_ecn, has_uso } = offloads;
        let bits = [
            (has_checksum, TUN_F_CSUM),
            (has_tso4, TUN_F_TSO4),
            (has_tso6, TUN_F_TSO6),
            (has_ecn, TUN_F_TSO_ECN),
            (has_uso, TUN_F_USO4 | TUN_F_USO6),
        ];
        let flags = bits.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, bit)| all | bit);
        Ok(set_offload(self.descriptor.as_fd(), flags)?)
    }

    fn set_attached(&self, is_attached: bool) -> io::Result<()> {
        let flags = if is_attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        match set_queue(self.descriptor.as_fd(), flags) {
            // It is so already.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn check(&self) -> io::Result<()> {
        interface_of(self.descriptor.as_fd())?;
        Ok(())
    }
}

fn wrong_flag(flags: u16, has_several: bool) -> Option<&'static str> {
    let rules = [
        (IFF_TAP, true, "IFF_TAP"),
        (IFF_NO_PI, true, "IFF_NO_PI"),
        (IFF_VNET_HDR, true, "IFF_VNET_HDR"),
        (IFF_MULTI_QUEUE, has_several, "IFF_MULTI_QUEUE"),
    ];
    // A tap of several queues of which we get one is fine.
    let broken = rules.iter().find(|(flag, is_needed, _)| *is_needed && flags & flag == 0);
    broken.map(|(_, _, name)| *name)
}

/// `struct ifreq` of `<linux/if.h>`, as the tap's calls use it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &str, flags: u16) -> Result<Self, TapError> {
        let is_odd = |byte: u8| byte == 0 || byte == b'/' || byte.is_ascii_whitespace();
        // "%" would make the kernel choose a number.
        if name.is_empty() || name.len() > 15 || name.bytes().any(|b| is_odd(b) || b == b'%') {
            return Err(TapError::Name(name.to_owned()));
        }
        let mut request = Self { name: [0; 16], flags, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// `TUNSETIFF`.
fn attach_to(tap: BorrowedFd<'_>, request: InterfaceRequest) -> Result<(), Errno> {
    const CODE: u32 = opcode::write::<i32>(b'T', 202);
    // SAFETY: the call reads and writes a `struct ifreq`, which `InterfaceRequest` is in layout
    // and size, and which the setter keeps alive meanwhile.
    unsafe { ioctl(tap, Setter::<CODE, InterfaceRequest>::new(request)) }
}

/// `TUNGETIFF`: name and flags of the interface; fails once it is gone.
fn interface_of(tap: BorrowedFd<'_>) -> Result<InterfaceRequest, Errno> {
    const CODE: u32 = opcode::read::<u32>(b'T', 210);
    // SAFETY: the call writes a whole `struct ifreq`, which `InterfaceRequest` is in layout and
    // size, and all of whose bit patterns are valid.
    unsafe { ioctl(tap, Getter::<CODE, InterfaceRequest>::new()) }
}

/// `TUNSETQUEUE`.
fn set_queue(tap: BorrowedFd<'_>, flags: u16) -> Result<(), Errno> {
    const CODE: u32 = opcode::write::<i32>(b'T', 217);
    let request = InterfaceRequest { name: [0; 16], flags, rest: [0; 22] };
    // SAFETY: the call reads a `struct ifreq`, as in `attach_to`.
    unsafe { ioctl(tap, Setter::<CODE, InterfaceRequest>::new(request)) }
}

/// `TUNSETVNETHDRSZ`: the header of `VERSION_1`, with `num_buffers`.
fn set_header_size(tap: BorrowedFd<'_>) -> Result<(), Errno> {
    const CODE: u32 = opcode::write::<i32>(b'T', 216);
    // SAFETY: the call reads an `int`.
    unsafe { ioctl(tap, Setter::<CODE, u32>::new(HEADER_SIZE)) }
}

/// `TUNSETOFFLOAD`.
fn set_offload(tap: BorrowedFd<'_>, flags: usize) -> Result<(), Errno> {
    const CODE: u32 = opcode::write::<u32>(b'T', 208);
    // SAFETY: the call takes its argument by value.
    unsafe { ioctl(tap, IntegerSetter::<CODE>::new_usize(flags)) }
}

// Flags of `<linux/if_tun.h>`.
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const FLAGS: u16 = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "a/b", "a b", "sixteen-bytes-xx", "tap%d", "a\0"] {
            assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name:?}");
        }
        assert!(matches!(Tap::open("tap0", 0), Err(TapError::Count(0))));
        assert!(matches!(Tap::from_descriptors(Vec::new()), Err(TapError::Count(0))));
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused_by_its_number() {
        let descriptor = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
        let error = Tap::from_descriptors(vec![descriptor]).unwrap_err();
        assert!(error.to_string().starts_with("descriptor 0 of the tap"), "{error}");
    }

    #[test]
    fn each_flag_that_is_needed_is_named() {
        assert_eq!(wrong_flag(FLAGS, false), None);
        assert_eq!(wrong_flag(FLAGS | IFF_MULTI_QUEUE, false), None);
        assert_eq!(wrong_flag(FLAGS, true), Some("IFF_MULTI_QUEUE"));
        assert_eq!(wrong_flag(FLAGS & !IFF_VNET_HDR, false), Some("IFF_VNET_HDR"));
        assert_eq!(wrong_flag(FLAGS & !IFF_NO_PI, false), Some("IFF_NO_PI"));
        assert_eq!(wrong_flag(0x0001 | IFF_NO_PI, false), Some("IFF_TAP"));
    }
}
