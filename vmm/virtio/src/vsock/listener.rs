//! The unix socket by which the host reaches the guest, and those beside it by which the guest
//! reaches the host.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::socket_file::{self, ListenError, SocketFile, stream_socket};

/// Longest path of the main socket: with `_4294967295` behind it, and a zero, it must fit into the
/// 108 bytes of a unix socket address.
pub const PATH_SIZE_MAX: usize = 108 - 1 - "_4294967295".len();
/// Connections that the kernel keeps until we accept them.
const BACKLOG: i32 = 128;

/// A listening socket and its file, which is removed with it.
pub struct Listener {
    socket: OwnedFd,
    file: SocketFile,
    connector: Option<Connector>,
}

/// Connects to what listens on a port of the host, without waiting.
pub type Connector = Box<dyn Fn(u32) -> io::Result<OwnedFd> + Send + Sync>;

impl Listener {
    /// Listens at `path`, with a socket file that only our user may open.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        if path.as_os_str().len() > PATH_SIZE_MAX {
            let (path, size_max) = (path.to_path_buf(), PATH_SIZE_MAX);
            return Err(ListenError::TooLong { path, size_max });
        }
        let (socket, file) = socket_file::listen(path, BACKLOG)?;
        Ok(Self { socket, file, connector: None })
    }

    /// The same socket; ports of the host are reached through `connector`, in a process that cannot
    /// open sockets by path itself.
    #[must_use]
    pub fn connecting_by(mut self, connector: Connector) -> Self {
        self.connector = Some(connector);
        self
    }

    /// The same socket, whose file somebody else removes.
    #[must_use]
    pub fn keep_file(mut self) -> Self {
        self.file = self.file.kept();
        self
    }

    /// Where the socket's file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Connects to what listens on `port` of the host, as [`connect`] does.
    pub(super) fn connect(&self, port: u32) -> Result<OwnedFd, Errno> {
        match &self.connector {
            None => connect(self.path(), port),
            Some(connector) => {
                connector(port).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
        }
    }
}

/// Connects to what listens on `port` of the host, beside the socket at `path`: at `<path>_<port>`.
/// Does not wait: a listener whose backlog is full refuses.
///
/// # Errors
/// What the host said: that nobody listens there, usually.
pub fn connect(path: &Path, port: u32) -> Result<OwnedFd, Errno> {
    let mut path = path.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let address = SocketAddrUnix::new(PathBuf::from(path))?;
    let socket = stream_socket()?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("path", &self.path()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_path_must_leave_room_for_any_port() {
        let folder = tempfile::tempdir().unwrap();
        let room = PATH_SIZE_MAX - folder.path().as_os_str().len() - 1;
        let longest = folder.path().join("x".repeat(room));
        let listener = Listener::bind(&longest).unwrap();
        let port = UnixListener::bind(format!("{}_{}", longest.display(), u32::MAX)).unwrap();
        listener.connect(u32::MAX).unwrap();
        drop(port);
        assert_eq!(listener.connect(u32::MAX).unwrap_err(), Errno::CONNREFUSED);
        assert_eq!(listener.connect(7).unwrap_err(), Errno::NOENT);
        let longer = folder.path().join("x".repeat(room + 1));
        let error = Listener::bind(&longer).unwrap_err();
        assert!(error.to_string().contains("has 97 bytes, it may have 96"), "{error}");
    }
}
