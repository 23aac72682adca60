//! The socket that the API listens on: only its user's, and never somebody else's.
//!
//! A VMM that was killed leaves its socket behind, and the next one must be able to start. Whether
//! the socket at a path is such a leftover is told by connecting: a dead one refuses. Two VMMs that
//! start at once agree by locking the directory meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Connections that the kernel keeps for us to accept.
const BACKLOG: i32 = 16;
/// Longest wait for another VMM that is starting in the same directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, by which it is known to be ours to remove.
    file: Option<(u64, u64)>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Somebody answers there.
    #[error("{}: another process listens there", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something is there that is no socket, and stays.
    #[error("{}: there is a file that is no socket", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The host failed.
    #[error("{}: {what}", path.display())]
    Host {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Listener {
    /// Listens at `path`, for this user alone (mode 0600). A socket that nobody listens on any more
    /// is replaced.
    ///
    /// # Errors
    /// When something else is there, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        let host = |what| {
            move |source: io::Error| ListenerError::Host { path: path.to_owned(), what, source }
        };
        let _lock = lock_directory(path).map_err(host("can't lock the directory"))?;
        remove_stale(path)?;
        let socket = new_socket().map_err(|error| host("can't make a socket")(error.into()))?;
        let address = address(path).map_err(host("can't be a socket's address"))?;
        bind(&socket, &address).map_err(|error| host("can't bind a socket")(error.into()))?;
        // Until it listens, nobody can connect: there is no moment at which others could.
        let permissions = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, permissions).map_err(host("can't set permissions"))?;
        let metadata = path.symlink_metadata().map_err(host("can't look at the socket"))?;
        listen(&socket, BACKLOG).map_err(|error| host("can't listen")(error.into()))?;
        let file = Some((metadata.dev(), metadata.ino()));
        Ok(Self { socket, path: path.to_owned(), file })
    }

    /// The same socket, whose file somebody else removes.
    #[must_use]
    pub fn keep_file(mut self) -> Self {
        self.file = None;
        self
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_none() {
            return;
        }
        let metadata = self.path.symlink_metadata();
        if metadata.ok().map(|metadata| (metadata.dev(), metadata.ino())) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Keeps other VMMs from binding in this directory, until the file is dropped.
fn lock_directory(path: &Path) -> io::Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or_else(|| Path::new(".")))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenerError> {
    let host = |what, source| Err(ListenerError::Host { path: path.to_owned(), what, source });
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return host("can't look what is there", error),
    }
    // Without blocking: a backlog that is full is a sign of life, too.
    let refused = new_socket()
        .map_err(io::Error::from)
        .and_then(|socket| Ok(connect(&socket, &address(path)?)?))
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if !refused {
        return Err(ListenerError::InUse { path: path.to_owned() });
    }
    std::fs::remove_file(path).or_else(|error| host("can't remove a stale socket", error))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_its_user_can_connect_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenerError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenerError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let nowhere = Listener::bind(&folder.path().join("a/b")).unwrap_err();
        assert!(matches!(nowhere, ListenerError::Host { .. }), "{nowhere}");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let first = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }
}
