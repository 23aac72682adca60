//! Sockets to the host: the few calls that rustix has no address for.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, acceptfrom_with, bind,
    listen as listen_with, recv, send as send_with, socket_with,
};

/// `VMADDR_CID_ANY`: ourselves, whatever address we have.
const CID_ANY: u32 = u32::MAX;
/// `VMADDR_CID_HOST`.
const CID_HOST: u32 = 2;
/// Connections that wait for us.
const BACKLOG: i32 = 4;

/// `struct sockaddr_vm` (linux/vm_sockets.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

/// Its size, which is that of a `struct sockaddr`.
const ADDRESS_SIZE: SocketAddrLen = 16;

impl Address {
    const fn new(cid: u32, port: u32) -> Self {
        let family = AddressFamily::VSOCK.as_raw();
        Self { family, reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }
}

#[expect(unsafe_code, reason = "an address that rustix does not know")]
// SAFETY: the pointer leads to all 16 bytes of a `struct sockaddr_vm`, without padding, which live
// as long as the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f((&raw const *self).cast(), ADDRESS_SIZE)
    }
}

/// Listens on a port of ours.
pub(crate) fn listen(port: u32) -> rustix::io::Result<OwnedFd> {
    let socket = stream()?;
    bind(&socket, &Address::new(CID_ANY, port))?;
    listen_with(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to a port of the host. Waits for its answer, which the kernel gives up on after two
/// seconds.
pub(crate) fn connect(port: u32) -> rustix::io::Result<OwnedFd> {
    let socket = stream()?;
    rustix::net::connect(&socket, &Address::new(CID_HOST, port))?;
    Ok(socket)
}

/// Takes a connection of the host's, which then has so long for each byte.
pub(crate) fn accept_from_host(
    listener: &OwnedFd,
    timeout: Duration,
) -> rustix::io::Result<OwnedFd> {
    let (socket, from) = acceptfrom_with(listener, SocketFlags::CLOEXEC)?;
    if from.and_then(|from| cid(&from)) != Some(CID_HOST) {
        return Err(Errno::ACCESS);
    }
    set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    Ok(socket)
}

/// Whose address it is.
#[expect(unsafe_code, reason = "an address that rustix does not know")]
fn cid(address: &rustix::net::SocketAddrAny) -> Option<u32> {
    if address.address_family() != AddressFamily::VSOCK || address.addr_len() < ADDRESS_SIZE {
        return None;
    }
    // SAFETY: the kernel wrote an address of this family there, which has 16 bytes, and any bytes
    // are one; nothing is said of its alignment.
    let address = unsafe { address.as_ptr().cast::<Address>().read_unaligned() };
    Some(address.cid)
}

/// Sends all of a few bytes, which there is room for or it fails.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let sent = send_with(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::NOBUFS) }
}

/// Receives as many bytes.
pub(crate) fn receive_exact(socket: &OwnedFd, bytes: &mut [u8]) -> rustix::io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match recv(socket.as_fd(), rest, RecvFlags::empty()) {
            Ok((0, _)) => return Err(Errno::PIPE),
            Ok((size, _)) => filled += size,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn stream() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Address>(), ADDRESS_SIZE as usize);
        let any = Address::new(CID_HOST, 990).as_any();
        assert_eq!(any.address_family(), AddressFamily::VSOCK);
        assert_eq!(cid(&any), Some(CID_HOST));
    }
}
