//! What the kernel offers and no safe crate wraps: TUN's ioctls, an interface's address, three socket
//! options, addresses of vsock, and descriptors that tokio watches.
//!
//! This is the one module of the crate with `unsafe`. Each function takes and gives plain values and
//! owned descriptors; none keeps a pointer after it returns. Numbers and layouts are those of
//! `linux/if_tun.h`, `linux/if.h`, `linux/ipv6.h` and `linux/vm_sockets.h`.

use std::ffi::c_int;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longest name of an interface (`IFNAMSIZ` less its NUL).
pub(crate) const INTERFACE_NAME_SIZE_MAX: usize = 15;

/// What a TUN device may hand over and take without a checksum or in one piece (`TUN_F_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Offload {
    /// Checksums and TCP super packets.
    Tcp,
    /// The same, and UDP super packets (Linux 6.2 and later).
    TcpAndUdp,
}

/// Opens one more queue of the TUN device `name`, which the first open creates. The descriptor does
/// not block; each packet has a little-endian `virtio_net_hdr` of 10 bytes in front.
pub(crate) fn open_tun_queue(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = InterfaceFlags {
        name: interface_name(name)?,
        flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE,
        padding: [0; 22],
    };
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq` of 40 bytes, which `InterfaceFlags` is.
    unsafe { ioctl(&tun, Updater::<TUNSETIFF, InterfaceFlags>::new(&mut request)) }?;
    // SAFETY: `TUNSETVNETLE` reads an `int` behind the pointer, which `Setter` hands over.
    unsafe { ioctl(&tun, Setter::<TUNSETVNETLE, c_int>::new(1)) }?;
    Ok(tun)
}

/// Says which offloads this program understands. An older kernel refuses what it does not know.
pub(crate) fn set_tun_offload(tun: impl AsFd, offload: Offload) -> io::Result<()> {
    let bits = match offload {
        Offload::Tcp => TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
        Offload::TcpAndUdp => TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6,
    };
    // SAFETY: `TUNSETOFFLOAD` takes its bits as the argument itself and follows no pointer.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits)) }?;
    Ok(())
}

/// Sets the MTU of an interface, starts it, and gives it an address; a prefix shorter than 128 bits
/// becomes a route to the interface as well.
pub(crate) fn configure_interface(
    name: &str,
    mtu: u16,
    address: Ipv6Addr,
    prefix_len: u8,
) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET6,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let name = interface_name(name)?;
    let mut request = InterfaceNumber { name, number: c_int::from(mtu), padding: [0; 20] };
    // SAFETY: `SIOCSIFMTU` reads a `struct ifreq` of 40 bytes, which `InterfaceNumber` is.
    unsafe { ioctl(&socket, Updater::<SIOCSIFMTU, InterfaceNumber>::new(&mut request)) }?;
    let mut request = InterfaceFlags { name, flags: 0, padding: [0; 22] };
    // SAFETY: `SIOCGIFFLAGS` reads and writes a `struct ifreq` of 40 bytes.
    unsafe { ioctl(&socket, Updater::<SIOCGIFFLAGS, InterfaceFlags>::new(&mut request)) }?;
    request.flags |= IFF_UP | IFF_RUNNING;
    // SAFETY: `SIOCSIFFLAGS` reads a `struct ifreq` of 40 bytes.
    unsafe { ioctl(&socket, Updater::<SIOCSIFFLAGS, InterfaceFlags>::new(&mut request)) }?;
    let mut request = InterfaceNumber { name, number: 0, padding: [0; 20] };
    // SAFETY: `SIOCGIFINDEX` reads and writes a `struct ifreq` of 40 bytes.
    unsafe { ioctl(&socket, Updater::<SIOCGIFINDEX, InterfaceNumber>::new(&mut request)) }?;
    let mut request = InterfaceAddress {
        address: address.octets(),
        prefix_len: u32::from(prefix_len),
        index: request.number,
    };
    // SAFETY: on an IPv6 socket `SIOCSIFADDR` reads a `struct in6_ifreq` of 24 bytes.
    unsafe { ioctl(&socket, Updater::<SIOCSIFADDR, InterfaceAddress>::new(&mut request)) }?;
    Ok(())
}

/// Has the runtime watch a descriptor that does not block. Must be called inside a runtime.
pub(crate) fn watch(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives, its number never changes, and the
    // `AsyncFd` owns it: nobody can close or replace it while it is watched.
    Ok(unsafe { AsyncFd::register(file) }?)
}

/// Has the runtime wait until a socket that does not block can send. Must be called inside a runtime.
pub(crate) fn watch_room(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `watch`: an `OwnedFd` keeps its number open, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::WRITABLE) }?)
}

/// Datagrams that came for a socket when it had no room for them (`SO_MEMINFO`, Linux 4.12).
pub(crate) fn dropped_count(socket: impl AsFd) -> io::Result<u32> {
    let mut values = [0_u32; MEMORY_VALUE_COUNT];
    let mut size = libc::socklen_t::try_from(size_of_val(&values)).map_err(io::Error::other)?;
    let (file, pointer) = (socket.as_fd().as_raw_fd(), values.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `size` bytes behind the pointer, which is what `values` has, and any
    // bytes are numbers. Both outlive the call.
    let done =
        unsafe { libc::getsockopt(file, libc::SOL_SOCKET, SO_MEMINFO, pointer, &raw mut size) };
    if done == 0 { Ok(values[MEMORY_DROPS]) } else { Err(io::Error::last_os_error()) }
}

/// Marks what a socket sends, for firewalls and policy routing (`SO_MARK`).
pub(crate) fn set_socket_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark)
}

/// Bounds what a TCP socket holds that was not sent yet (`TCP_NOTSENT_LOWAT`): the rest waits with us,
/// where it can be dropped.
pub(crate) fn set_tcp_unsent_size_max(socket: impl AsFd, size: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, size)
}

fn set_option(socket: impl AsFd, level: c_int, name: c_int, value: u32) -> io::Result<()> {
    let pointer = (&raw const value).cast();
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let done =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, pointer, VALUE_SIZE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An address of `AF_VSOCK` (`struct sockaddr_vm`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags_and_zero: [u8; 4],
}

impl VsockAddress {
    /// Every address of this machine (`VMADDR_CID_ANY`).
    pub(crate) const CID_ANY: u32 = u32::MAX;

    pub(crate) fn new(cid: u32, port: u32) -> Self {
        Self {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port,
            cid,
            flags_and_zero: [0; 4],
        }
    }
}

// SAFETY: the callback gets a pointer to a whole `struct sockaddr_vm` and its size, both valid while
// it runs.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f(std::ptr::from_ref(self).cast(), VSOCK_ADDRESS_SIZE)
    }
}

fn interface_name(name: &str) -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    if name.is_empty() || name.len() > INTERFACE_NAME_SIZE_MAX || name.contains(['/', '\0']) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// A `struct ifreq` whose union holds flags.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// A `struct ifreq` whose union holds a number: an MTU or an index.
#[repr(C)]
struct InterfaceNumber {
    name: [u8; 16],
    number: c_int,
    padding: [u8; 20],
}

/// A `struct in6_ifreq`.
#[repr(C)]
struct InterfaceAddress {
    address: [u8; 16],
    prefix_len: u32,
    index: c_int,
}

const _: () = assert!(size_of::<InterfaceFlags>() == 40 && size_of::<InterfaceNumber>() == 40);
const _: () = assert!(size_of::<InterfaceAddress>() == 24 && size_of::<VsockAddress>() == 16);

const VALUE_SIZE: libc::socklen_t = 4;
/// `linux/sock_diag.h`: `SK_MEMINFO_VARS`, and the place of `SK_MEMINFO_DROPS`.
const MEMORY_VALUE_COUNT: usize = 9;
const MEMORY_DROPS: usize = 8;
/// `asm-generic/socket.h`, which all machines but SPARC and PA-RISC follow.
const SO_MEMINFO: c_int = 55;
const VSOCK_ADDRESS_SIZE: SocketAddrLen = 16;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFMTU: Opcode = 0x8922;
const SIOCGIFINDEX: Opcode = 0x8933;

const IFF_UP: u16 = 0x0001;
const IFF_RUNNING: u16 = 0x0040;
const IFF_TUN: u16 = 0x0001;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_fit_or_are_refused() {
        assert_eq!(interface_name("tun0").unwrap()[..5], *b"tun0\0");
        assert!(interface_name("fifteen-letters").is_ok());
        for bad in ["", "sixteen--letters", "a/b", "a\0b"] {
            assert!(interface_name(bad).is_err(), "{bad:?}");
        }
    }
}
