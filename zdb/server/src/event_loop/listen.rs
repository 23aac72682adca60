//! Where clients come from: TCP and a unix socket.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// Clients that are taken at once, before those who are here are served.
pub(super) const ACCEPT_COUNT: usize = 256;
/// Clients that wait to be taken.
const BACKLOG: i32 = 4096;
/// Who may connect to the unix socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and port.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As hooks know a server (`reference: zdb 2.6`).
            Self::Tcp(address) => write!(formatter, "tcp://{address}"),
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
        }
    }
}

/// An address that can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    /// Which.
    pub address: Address,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

/// An open listening socket; a socket file is removed with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: Option<PathBuf>,
}

impl Listener {
    /// Listens. Clients can connect from now on, and wait until they are taken.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(address: &Address) -> Result<Self, BindError> {
        let listener = match address {
            Address::Tcp(address) => bind_tcp(*address),
            Address::Unix(path) => bind_unix(path),
        };
        listener.map_err(|source| BindError { address: address.clone(), source })
    }

    /// The TCP address it listens on, with the port that port 0 became.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        let listener = TcpListener::from(self.socket.try_clone().ok()?);
        listener.local_addr().ok().filter(|_| self.path.is_none())
    }

    /// Whether clients are on this machine, and passed the socket file's permissions.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.path.is_some()
    }

    /// Takes a client.
    pub(super) fn accept(&self, spare: &mut Spare) -> Accepted {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match net::accept_with(&self.socket, flags) {
            Ok(socket) => Accepted::Client(socket),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                if spare.turn_away(&self.socket) { Accepted::TurnedAway } else { Accepted::Nobody }
            }
            // Somebody who left before being taken is nobody's problem; the next event brings others.
            Err(_) => Accepted::Nobody,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What came of taking a client.
pub(super) enum Accepted {
    Client(OwnedFd),
    TurnedAway,
    Nobody,
}

/// A descriptor in reserve. When there are no others, it is given up for the moment that it takes to
/// turn somebody away; otherwise the one who waits would wake the loop for ever.
#[derive(Debug)]
pub(super) struct Spare(Option<OwnedFd>);

impl Spare {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Some(open_nothing()?)))
    }

    /// Whether somebody was turned away.
    fn turn_away(&mut self, listener: &OwnedFd) -> bool {
        self.0 = None;
        let accepted = net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
        if let Ok(socket) = &accepted {
            turn_away(socket);
        }
        let is_away = accepted.is_ok();
        drop(accepted);
        self.0 = open_nothing().ok();
        is_away
    }
}

/// Says why before hanging up.
pub(super) fn turn_away(socket: &OwnedFd) {
    let text = b"-Too many clients, try again later\r\n";
    // It may have gone already.
    let _ = net::send(socket, text, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn open_nothing() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty())?)
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = net::socket_with(family, SocketType::STREAM, flags(), None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // `::` is everybody, those with IPv4 too.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // Clients' sockets inherit it: a reply must not wait for the acknowledgement of the one before.
    sockopt::set_tcp_nodelay(&socket, true)?;
    // And this: a client whose machine vanished is noticed in the end.
    sockopt::set_socket_keepalive(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(Listener { socket, path: None })
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None)?;
    let address = SocketAddrUnix::new(path)?;
    if let Err(error) = net::bind(&socket, &address) {
        // A file that a killed server left behind is in the way; one that lives is not ours to take.
        if error != Errno::ADDRINUSE || std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(error.into());
        }
        std::fs::remove_file(path)?;
        net::bind(&socket, &address)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    net::listen(&socket, BACKLOG)?;
    Ok(Listener { socket, path: Some(path.to_owned()) })
}

fn flags() -> SocketFlags {
    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_file_left_behind_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zdb.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).is_err());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn without_descriptors_clients_are_turned_away() {
        use std::io::Read;
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        let mut client = std::net::TcpStream::connect(listener.tcp_address().unwrap()).unwrap();
        let mut spare = Spare::new().unwrap();
        assert!(spare.turn_away(&listener.socket));
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "-Too many clients, try again later\r\n");
        assert!(spare.0.is_some());
    }
}
