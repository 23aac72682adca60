//! The unix socket by which the host reaches the guest.
//!
//! Whoever may open it may talk to any port of the guest, so its file belongs to us alone, from the
//! moment it exists. A file left behind by a process that was killed is replaced; one that somebody
//! listens on, or that is no socket, is not.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of the main socket: with `_4294967295` behind it, and a zero, it must fit into the
/// 108 bytes of a unix socket address.
pub const PATH_SIZE_MAX: usize = 108 - 1 - "_4294967295".len();
/// Connections that the kernel keeps until we accept them.
const BACKLOG: i32 = 128;

/// A listening socket and its file, which is removed with it.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file: what we created, and may remove.
    identity: Option<(u64, u64)>,
    connector: Option<Connector>,
}

/// Connects to what listens on a port of the host, without waiting.
pub type Connector = Box<dyn Fn(u32) -> io::Result<OwnedFd> + Send + Sync>;

/// Why there is no socket at the path.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit into a socket's address.
    #[error("{}: the path has {} bytes, it may have {PATH_SIZE_MAX}", path.display(), path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// There is something else.
    #[error("{}: exists, and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody listens there.
    #[error("{}: another process listens there", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The host refused something.
    #[error("{}: {what}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Listener {
    /// Listens at `path`, with a socket file that only our user may open.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        if path.as_os_str().len() > PATH_SIZE_MAX {
            return Err(ListenError::TooLong { path: path.to_path_buf() });
        }
        let host = |what| {
            move |source: Errno| ListenError::Host {
                path: path.to_path_buf(),
                what,
                source: source.into(),
            }
        };
        remove_stale(path)?;
        let address = SocketAddrUnix::new(path).map_err(host("address"))?;
        let socket = stream_socket().map_err(host("socket"))?;
        // Linux gives the file the mode of the socket: no moment passes in which it is open to
        // others, and the umask, which is the whole process's, stays as it is.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(host("set the mode"))?;
        rustix::net::bind(&socket, &address).map_err(host("bind"))?;
        let path = path.to_path_buf();
        let mut listener = Self { socket, path, identity: None, connector: None };
        listener.identity = identity(&listener.path);
        rustix::net::listen(&listener.socket, BACKLOG).map_err(host("listen"))?;
        Ok(listener)
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
    pub const fn keep_file(mut self) -> Self {
        self.identity = None;
        self
    }

    /// Where the socket's file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Connects to what listens on `port` of the host, as [`connect`] does.
    pub(super) fn connect(&self, port: u32) -> Result<OwnedFd, Errno> {
        match &self.connector {
            None => connect(&self.path, port),
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
        f.debug_struct("Listener").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may be another's by now.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nobody is there to be told; the next one to listen here replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Makes way for a socket at `path`, if what is there is a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let host = |what, source| ListenError::Host { path: path.to_path_buf(), what, source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(host("look for an old socket", error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_path_buf() });
    }
    let address = SocketAddrUnix::new(path).map_err(|error| host("address", error.into()))?;
    let probe = stream_socket().map_err(|error| host("socket", error.into()))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(host("remove an old socket", error))
            }
            _ => Ok(()),
        },
        // Also when it does not let us in, or is too busy: it is somebody's.
        _ => Err(ListenError::InUse { path: path.to_path_buf() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_file_is_ours_alone_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(listener);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successor_s_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let old = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = Listener::bind(&path).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
    }

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
