//! The few sockets of the host that a jailed VMM may connect to, and how.
//!
//! Two devices open connections while the guest runs: a socket device, to whatever listens on the port
//! that the guest asked for, and a file system, to the cache process after that was restarted. A jailed
//! process has neither paths nor `socket(2)` for that. It asks its warden, which knows which sockets
//! the description names and connects to no others:
//!
//! ```text
//!   jailed ── door (4 bytes), port (4 bytes) ──► warden: connect
//!          ◄── errno (4 bytes), the descriptor ──
//! ```
//!
//! Before the jail is closed, and without one, a door is opened directly.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, send, sendmsg,
};

/// Something of the host that may be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// The cache process's socket.
    Cache(PathBuf),
    /// What listens beside the socket device's own socket: at `<path>_<port>`.
    Ports(PathBuf),
}

/// All doors of a VM.
#[derive(Clone, Debug, Default)]
pub struct Doors(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    doors: Vec<Door>,
    /// The way to the warden, in a jail.
    warden: OnceLock<Mutex<OwnedFd>>,
}

impl Door {
    fn open(&self, port: u32) -> io::Result<OwnedFd> {
        match self {
            Self::Cache(path) => vmm_virtio::fs::flist::connect(path),
            Self::Ports(path) => Ok(vmm_virtio::vsock::connect(path, port)?),
        }
    }
}

impl Doors {
    /// These, in this order.
    #[must_use]
    pub fn new(doors: Vec<Door>) -> Self {
        Self(Arc::new(Inner { doors, warden: OnceLock::new() }))
    }

    /// Connects through `door`. The port means something at [`Door::Ports`] only.
    ///
    /// # Errors
    /// What connecting said, or that there is no such door.
    pub fn connect(&self, door: &Door, port: u32) -> io::Result<OwnedFd> {
        match self.0.warden.get() {
            None => door.open(port),
            Some(warden) => {
                let index = self.0.doors.iter().position(|known| known == door);
                let index = index.and_then(|index| u32::try_from(index).ok());
                let warden = warden.lock().unwrap_or_else(PoisonError::into_inner);
                ask(warden.as_fd(), index.ok_or(Errno::NOENT)?, port)
            }
        }
    }

    /// From now on, through the warden at the other end of `socket`.
    pub(super) fn go_through(&self, socket: OwnedFd) {
        // A process is jailed once.
        let _ = self.0.warden.set(Mutex::new(socket));
    }

    /// The warden's part: answers one request, if there is one. False when nobody is there any more.
    pub(super) fn answer(&self, socket: BorrowedFd<'_>) -> bool {
        let mut request = [0; REQUEST_SIZE];
        let size = match recv(socket, &mut request, RecvFlags::DONTWAIT) {
            Ok((size, _)) if size > 0 => size,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Ok(_) | Err(_) => return false,
        };
        let (door, port) = request.split_at(4);
        let index = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        let opened = match usize::try_from(index(door)).ok().and_then(|at| self.0.doors.get(at)) {
            Some(door) if size == REQUEST_SIZE => door.open(index(port)),
            _ => Err(Errno::NOENT.into()),
        };
        // Who does not take its answers goes without.
        let _ = reply(socket, opened.as_ref());
        true
    }
}

const REQUEST_SIZE: usize = 8;

fn ask(warden: BorrowedFd<'_>, door: u32, port: u32) -> io::Result<OwnedFd> {
    let mut request = [0; REQUEST_SIZE];
    request[..4].copy_from_slice(&door.to_le_bytes());
    request[4..].copy_from_slice(&port.to_le_bytes());
    retry(|| send(warden, &request, SendFlags::NOSIGNAL))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut errno = [0; 4];
    retry(|| {
        let mut into = [IoSliceMut::new(&mut errno)];
        recvmsg(warden, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match (i32::from_le_bytes(errno), descriptor) {
        (0, Some(descriptor)) => Ok(descriptor),
        (0, None) => Err(io::ErrorKind::NotConnected.into()),
        (errno, _) => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn reply(socket: BorrowedFd<'_>, opened: Result<&OwnedFd, &io::Error>) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let errno = opened.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let bytes = errno.to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = opened.ok().map(|descriptor| [descriptor.as_fd()]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn the_warden_opens_the_doors_that_there_are_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let listener = UnixListener::bind(folder.path().join("v_52")).unwrap();
        let ports = Door::Ports(path);
        let outside = Doors::new(vec![ports.clone()]);
        let inside = Doors::new(vec![ports.clone()]);
        let (warden, jailed) = pair();
        inside.go_through(jailed);
        let serving = std::thread::spawn(move || {
            while {
                let mut polled =
                    [rustix::event::PollFd::new(&warden, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut polled, None).unwrap();
                outside.answer(warden.as_fd())
            } {}
        });
        let stream = inside.connect(&ports, 52).unwrap();
        UnixStream::from(stream).write_all(b"hello").unwrap();
        let mut heard = String::new();
        listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
        let errno = |result: io::Result<OwnedFd>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(inside.connect(&ports, 53)), Some(libc::ENOENT));
        let other = Door::Cache("/run/other".into());
        assert_eq!(errno(inside.connect(&other, 0)), Some(libc::ENOENT));
        drop(listener);
        assert_eq!(errno(inside.connect(&ports, 52)), Some(libc::ECONNREFUSED));
        let socket = inside.0.warden.get().unwrap().lock().unwrap().try_clone().unwrap();
        assert_eq!(errno(ask(socket.as_fd(), 7, 52)), Some(libc::ENOENT));
        drop((socket, inside));
        serving.join().unwrap();
    }
}
