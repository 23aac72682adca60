//! One message with at most one descriptor, over a socket that keeps message boundaries.
//!
//! Both ends use it: the client here and the daemon in the `flist` crate.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Most descriptors that a peer may attach to a message; all but the first are closed at once.
const DESCRIPTOR_COUNT_MAX: usize = 4;

/// What [`receive`] got.
#[derive(Debug)]
pub enum Received {
    /// A message of this many bytes, and the descriptor that came with it.
    Message(usize, Option<OwnedFd>),
    /// A message too long for the protocol.
    TooLong,
    /// The peer closed the connection.
    Closed,
    /// Nothing there now.
    Nothing,
}

/// Connects to a daemon's socket, without waiting. The descriptor is non-blocking.
///
/// # Errors
/// What the system says, such as that nobody listens, or that too many are waiting to be let in.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends one message; false if the peer's queue is full now.
///
/// # Errors
/// What the system says; the connection is of no use then.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, flags) {
            Ok(_) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message into `buffer`, without waiting. One that does not fit is
/// [`Received::TooLong`].
///
/// # Errors
/// What the system says; the connection is of no use then.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut reset = false;
    let message = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(message) => break message,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::INTR) => {}
            // A peer that closed with something unread. It says so before what it sent last.
            Err(Errno::CONNRESET) if !reset => reset = true,
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptor = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            descriptors.for_each(|extra| {
                descriptor.get_or_insert(extra);
            });
        }
    }
    Ok(if message.bytes == 0 {
        Received::Closed
    } else if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        Received::TooLong
    } else {
        Received::Message(message.bytes, descriptor)
    })
}

/// Waits until the socket can be read, or until `timeout` has passed. Signals end the wait early.
///
/// # Errors
/// What the system says.
pub fn wait_readable(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut polled = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_sent_last_arrives_even_if_it_left_something_unread() {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        assert!(send(ours.as_fd(), b"unread", None).unwrap());
        assert!(send(theirs.as_fd(), b"too many clients", None).unwrap());
        drop(theirs);
        let mut buffer = [0; 64];
        let received = receive(ours.as_fd(), &mut buffer).unwrap();
        assert!(matches!(received, Received::Message(16, None)), "{received:?}");
        assert!(matches!(receive(ours.as_fd(), &mut buffer).unwrap(), Received::Closed));
    }

    #[test]
    fn a_message_that_does_not_fit_and_extra_descriptors_are_no_danger() {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut buffer = [0; 64];
        assert!(matches!(receive(ours.as_fd(), &mut buffer).unwrap(), Received::Nothing));
        assert!(send(theirs.as_fd(), &[1; 65], None).unwrap());
        assert!(matches!(receive(ours.as_fd(), &mut buffer).unwrap(), Received::TooLong));
        assert!(send(theirs.as_fd(), b"x", Some(theirs.as_fd())).unwrap());
        let received = receive(ours.as_fd(), &mut buffer).unwrap();
        assert!(matches!(received, Received::Message(1, Some(_))), "{received:?}");
    }
}
