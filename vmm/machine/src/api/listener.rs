//! The socket that the API listens on: only its user's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use vmm_virtio::socket_file::{self, ListenError, SocketFile};

/// Connections that the kernel keeps for us to accept.
const BACKLOG: i32 = 16;

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    file: SocketFile,
}

impl Listener {
    /// Listens at `path`, for this user alone (mode 0600). A socket that nobody listens on any more
    /// is replaced.
    ///
    /// # Errors
    /// When something else is there, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let (socket, file) = socket_file::listen(path, BACKLOG)?;
        Ok(Self { socket, file })
    }

    /// The same socket, whose file somebody else removes.
    #[must_use]
    pub fn keep_file(mut self) -> Self {
        self.file = self.file.kept();
        self
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
