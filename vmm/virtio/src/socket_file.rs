//! Sockets of the host with a file: by which others reach the guest, or the VMM.
//!
//! Whoever may open such a file may talk to who listens, so it belongs to our user alone, from the
//! moment it exists. A VMM that was killed leaves its file behind, and the next one must be able to
//! start: whether a file is such a leftover is told by connecting, which a dead one refuses. What
//! somebody listens on, or what is no socket, stays. Two that start at once agree by locking the
//! directory meanwhile.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest wait for another that is starting in the same directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// The file of a listening socket, which is removed with this.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: what we created, and may remove.
    identity: Option<(u64, u64)>,
}

/// Why nobody listens at a path.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit into a socket's address.
    #[error("{}: the path has {} bytes, it may have {size_max}", path.display(), path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The longest possible.
        size_max: usize,
    },
    /// There is something else, which stays.
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

/// Listens at `path`, with a socket that does not block, and a file that only our user may open.
///
/// # Errors
/// [`ListenError`], but not for the path's size.
pub fn listen(path: &Path, backlog: i32) -> Result<(OwnedFd, SocketFile), ListenError> {
    let host = |what| {
        move |source: io::Error| ListenError::Host { path: path.to_path_buf(), what, source }
    };
    let refused = |what| move |source: Errno| host(what)(source.into());
    let _lock = lock_directory(path).map_err(host("cannot lock the directory"))?;
    remove_stale(path)?;
    let address = SocketAddrUnix::new(path).map_err(refused("cannot be a socket's address"))?;
    let socket = stream_socket().map_err(refused("cannot make a socket"))?;
    // Linux gives the file the mode of the socket: no moment passes in which it is open to others,
    // and the umask, which is the whole process's, stays as it is.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(refused("cannot set the mode"))?;
    rustix::net::bind(&socket, &address).map_err(refused("cannot bind a socket"))?;
    let file = SocketFile { path: path.to_path_buf(), identity: identity(path) };
    rustix::net::listen(&socket, backlog).map_err(refused("cannot listen"))?;
    Ok((socket, file))
}

/// A socket for a connection to another of this host, which is made without waiting.
pub(crate) fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same file, which somebody else removes.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.identity = None;
        self
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be another's by now.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nobody is there to be told; the next one to listen here replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Keeps others from listening in this directory, until the file is dropped.
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

/// Makes way for a socket at `path`, if what is there is a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let host = |what, source| ListenError::Host { path: path.to_path_buf(), what, source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(host("cannot look what is there", error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_path_buf() });
    }
    let address = SocketAddrUnix::new(path);
    let address = address.map_err(|error| host("cannot be a socket's address", error.into()))?;
    let probe = stream_socket().map_err(|error| host("cannot make a socket", error.into()))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(host("cannot remove an old socket", error))
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
        let listener = listen(&path, 1).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path, 1), Err(ListenError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let listener = listen(&path, 1).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path, 1), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = listen(&folder.path().join("a/b"), 1).unwrap_err();
        assert!(matches!(nowhere, ListenError::Host { .. }), "{nowhere}");
    }

    #[test]
    fn a_successor_s_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let old = listen(&path, 1).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = listen(&path, 1).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
    }
}
