//! TCP or unix socket, with deadlines.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address (IPv6 without brackets), and a port.
    Tcp(String, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// How long to wait for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect: to look up the host's name, and over all of its addresses.
    pub connect: Duration,
    /// For one operation: from its first byte out to its last byte in.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), request: Duration::from_secs(30) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Says of an address, before it is connected to, whether it may be; if not, why not.
#[derive(Clone)]
pub struct AddressCheck(Arc<CheckAddress>);

type CheckAddress = dyn Fn(IpAddr) -> Result<(), String> + Send + Sync;

/// Why there is no stream.
pub(crate) enum ConnectFailure {
    Io(io::Error),
    /// None of the host's addresses may be connected to.
    Forbidden(String),
}

impl AddressCheck {
    /// A check by `check`, which returns the reason for a refusal.
    pub fn new(check: impl Fn(IpAddr) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }
}

impl fmt::Debug for AddressCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddressCheck(..)")
    }
}

impl From<io::Error> for ConnectFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects, trying those of a host's addresses that `check` lets pass, in order, until `timeout`
    /// is over.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        timeout: Duration,
        check: Option<&AddressCheck>,
    ) -> Result<Self, ConnectFailure> {
        match endpoint {
            Endpoint::Unix(path) => Ok(Self::Unix(connect_unix(path, timeout)?)),
            Endpoint::Tcp(host, port) => {
                let deadline = Instant::now() + timeout;
                let addresses = look_up(host, *port, deadline)?;
                connect_tcp(&addresses, deadline, check).map(Self::Tcp)
            }
        }
    }

    /// Reads some bytes; `TimedOut` after the deadline.
    pub(crate) fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            let timeout = Some(remaining(deadline)?);
            let read = match self {
                Self::Tcp(stream) => {
                    stream.set_read_timeout(timeout)?;
                    stream.read(buffer)
                }
                Self::Unix(stream) => {
                    stream.set_read_timeout(timeout)?;
                    stream.read(buffer)
                }
            };
            if !is_retryable(&read) {
                return read;
            }
        }
    }

    /// Writes all bytes; `TimedOut` after the deadline.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let timeout = Some(remaining(deadline)?);
            let written = match self {
                Self::Tcp(stream) => {
                    stream.set_write_timeout(timeout)?;
                    stream.write(bytes)
                }
                Self::Unix(stream) => {
                    stream.set_write_timeout(timeout)?;
                    stream.write(bytes)
                }
            };
            if is_retryable(&written) {
                continue;
            }
            match written? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => bytes = bytes.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}

/// Connects to the first address that may be connected to and answers. What was checked is what is
/// connected to: the name is not looked up again.
fn connect_tcp(
    addresses: &[SocketAddr],
    deadline: Instant,
    check: Option<&AddressCheck>,
) -> Result<TcpStream, ConnectFailure> {
    let mut refusal = None;
    let mut failure = None;
    for address in addresses {
        if let Some(Err(reason)) = check.map(|check| (check.0)(address.ip())) {
            refusal = refusal.or(Some(reason));
            continue;
        }
        match TcpStream::connect_timeout(address, remaining(deadline)?) {
            Ok(stream) => {
                // A request must not wait for the acknowledgement of the one before.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(match (failure, refusal) {
        (Some(failure), _) => ConnectFailure::Io(failure),
        (None, Some(reason)) => ConnectFailure::Forbidden(reason),
        (None, None) => io::Error::new(io::ErrorKind::NotFound, "no address for that name").into(),
    })
}

/// A host's addresses. The system's own look-up knows no deadline, so it gets a thread, which is left
/// behind when it takes too long.
fn look_up(host: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = sync_channel(1);
    let host = host.to_owned();
    std::thread::Builder::new().name("zdb-look-up".to_owned()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // Whoever asked may have given up.
        let _ = sender.try_send(addresses);
    })?;
    receiver.recv_timeout(remaining(deadline)?).map_err(|_| io::ErrorKind::TimedOut)?
}

/// Like [`UnixStream::connect`], which would wait for ever on a server that accepts nobody.
fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket =
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Time left, never zero (which would mean for ever to a socket).
fn remaining(deadline: Instant) -> io::Result<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// Interrupted, or woken at the socket's timeout; the deadline decides whether to go on.
fn is_retryable(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| {
        matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_addresses_that_pass_the_check_are_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = |host: &str, check: &AddressCheck| {
            let endpoint = Endpoint::Tcp(host.to_owned(), port);
            Stream::connect(&endpoint, Duration::from_secs(5), Some(check))
        };
        let all = AddressCheck::new(|_| Ok(()));
        let none = AddressCheck::new(|address| Err(format!("not {address}")));
        for host in ["127.0.0.1", "localhost"] {
            assert!(connect(host, &all).is_ok(), "{host}");
            let Err(ConnectFailure::Forbidden(reason)) = connect(host, &none) else {
                panic!("{host} was connected to")
            };
            assert!(reason == "not 127.0.0.1" || reason == "not ::1", "{reason}");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_ok() && listener.accept().is_ok());
        assert!(listener.accept().is_err(), "a refused address is not even connected to");
    }
}
