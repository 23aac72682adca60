//! Mounts a [`FileSystem`] on this machine: the transport between `/dev/fuse` and the FUSE server.
//!
//! ```text
//!   kernel ── /dev/fuse ──> worker threads ──> Server ──> FileSystem
//! ```
//!
//! Each worker reads a request, has it answered in its own buffer and writes the reply. A worker that
//! waits for a block holds up nobody but its own caller: there are [`WORKER_COUNT`], and idle ones
//! cost nothing. The mount ends when [`Mount::unmount`] is called, when the [`Mount`] is dropped, or
//! when somebody else unmounts it; the kernel then answers `ENODEV` and the workers leave.
//!
//! For people and tests. VMs get the same server over virtio-fs, without a mount.

mod attach;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use flist_view::filesystem::FileSystem;
use flist_view::fuse::{BufferReply, Outcome, REPLY_BODY_SIZE_MAX, REQUEST_SIZE_MAX, Server};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Threads that serve one mount: as many reads can wait for stores before metadata has to wait too.
pub const WORKER_COUNT: usize = 8;
/// How far the kernel may read ahead in a file, if we are allowed to say: two blocks.
const READ_AHEAD_KIB: u32 = 1024;

/// A file system that is mounted. Dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    mount_point: PathBuf,
    ended: Arc<OwnedFd>,
    /// `st_dev` of what we mounted; 0 until it is known.
    device_number: u64,
    is_mounted: bool,
}

/// Why a file system can't be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no directory to mount on.
    #[error("{}: cannot mount there: {source}", mount_point.display())]
    MountPoint {
        /// Where.
        mount_point: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `/dev/fuse` is missing or closed to us.
    #[error("/dev/fuse: {0}")]
    Device(#[source] io::Error),
    /// The system refused to mount.
    #[error("{}: {reason}", mount_point.display())]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The kernel broke off before it had asked anything.
    #[error("the kernel does not speak FUSE with us: {0}")]
    Handshake(#[source] io::Error),
}

impl Mount {
    /// Mounts `file_system` on the directory `mount_point`, read-only, without device files and
    /// set-id programs taking effect. `source` is the name that the mount table shows.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn new<F: FileSystem + 'static>(
        file_system: F,
        source: &str,
        mount_point: &Path,
    ) -> Result<Self, MountError> {
        let unusable =
            |source| MountError::MountPoint { mount_point: mount_point.to_owned(), source };
        let mount_point = mount_point.canonicalize().map_err(unusable)?;
        if !fs::metadata(&mount_point).map_err(unusable)?.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        let device = Arc::new(attach::mount(source, &mount_point)?);
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ended = Arc::new(ended.map_err(|error| MountError::Device(error.into()))?);
        let mut mount = Self { mount_point, ended, device_number: 0, is_mounted: true };
        let server = Arc::new(Server::new(file_system));
        // The first request is INIT; with that answered, the mount works.
        let mut worker = Worker::new(Arc::clone(&server), Arc::clone(&device));
        worker.serve_one().map_err(|error| MountError::Handshake(error.into()))?;
        mount.start(0, worker).map_err(MountError::Device)?;
        for number in 1..WORKER_COUNT {
            let worker = Worker::new(Arc::clone(&server), Arc::clone(&device));
            mount.start(number, worker).map_err(MountError::Device)?;
        }
        mount.device_number = fs::metadata(&mount.mount_point).map_or(0, |m| m.dev());
        mount.set_read_ahead();
        Ok(mount)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Becomes readable when the mount has ended, whoever ended it.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Unmounts. Programs that still have files open keep them until this process ends.
    ///
    /// # Errors
    /// [`MountError::Mount`].
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.detach()
    }

    /// The thread ends with the mount; nobody waits for it.
    fn start<F: FileSystem + 'static>(
        &self,
        number: usize,
        mut worker: Worker<F>,
    ) -> io::Result<()> {
        let ended = Arc::clone(&self.ended);
        thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
            worker.serve();
            // A counter that is full is as readable as any other.
            let _ = rustix::io::write(&*ended, &1u64.to_le_bytes());
        })?;
        Ok(())
    }

    /// The kernel's default of 128 KiB is a quarter of a block; only root may change it.
    fn set_read_ahead(&self) {
        let number = self.device_number;
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(path, %error, "reading ahead as the kernel likes");
        }
    }

    fn detach(&mut self) -> Result<(), MountError> {
        if !self.is_mounted {
            return Ok(());
        }
        self.is_mounted = false;
        if self.is_there() { attach::unmount(&self.mount_point) } else { Ok(()) }
    }

    /// Whether what is mounted there is still ours: somebody else may have unmounted it, and even
    /// have mounted something of theirs.
    fn is_there(&self) -> bool {
        if self.device_number == 0 {
            // Nobody serves it yet, so that asking would wait forever.
            return true;
        }
        match fs::metadata(&self.mount_point) {
            Ok(metadata) => metadata.dev() == self.device_number,
            // A mount whose connection is gone.
            Err(_) => true,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::error!(%error, "cannot unmount");
        }
    }
}

/// One thread's share of the service.
struct Worker<F> {
    server: Arc<Server<F>>,
    device: Arc<OwnedFd>,
    request: Box<[u8]>,
    reply: BufferReply,
}

impl<F: FileSystem> Worker<F> {
    fn new(server: Arc<Server<F>>, device: Arc<OwnedFd>) -> Self {
        Self {
            server,
            device,
            request: vec![0; REQUEST_SIZE_MAX].into_boxed_slice(),
            reply: BufferReply::new(REPLY_BODY_SIZE_MAX),
        }
    }

    /// Serves until the mount ends.
    fn serve(&mut self) {
        loop {
            match self.serve_one() {
                Ok(()) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return,
                Err(error) => {
                    tracing::error!(%error, "/dev/fuse broke off");
                    return;
                }
            }
        }
    }

    /// Waits for one request and answers it.
    fn serve_one(&mut self) -> Result<(), Errno> {
        let size = loop {
            match rustix::io::read(&*self.device, &mut *self.request) {
                Ok(size) => break size,
                // ENOENT: the request was withdrawn while we read it.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        };
        let request = self.request.get(..size).unwrap_or_default();
        self.reply.reset();
        match self.server.handle(request, &mut self.reply) {
            Ok(Outcome::Malformed) => tracing::warn!(size, "the kernel sent half a request"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "no reply"),
        }
        let Some(reply) = self.reply.as_bytes() else { return Ok(()) };
        match rustix::io::write(&*self.device, reply) {
            // ENOENT: whoever asked was interrupted and no longer waits.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::INVAL) => {
                tracing::error!(size = reply.len(), "the kernel refuses a reply");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
