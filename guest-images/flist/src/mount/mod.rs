//! Mounts a [`FileSystem`] on this machine: the transport between `/dev/fuse` and the FUSE server.
//!
//! ```text
//!   kernel ── /dev/fuse ──> worker threads ──> Server ──> FileSystem
//! ```
//!
//! Each worker reads a request, has it answered in its own buffer and writes the reply. A worker that
//! waits for a block holds up nobody but its own caller: whenever the last idle worker takes a request,
//! another one is started, up to [`WORKER_COUNT_MAX`]; those beyond `IDLE_COUNT_MAX` leave when they
//! have nothing to do. The mount ends when [`Mount::unmount`] is called, when the [`Mount`] is dropped,
//! or when somebody else unmounts it; the kernel then answers `ENODEV` and the workers leave.
//!
//! For people and tests. VMs get the same server over virtio-fs, without a mount.

mod attach;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use flist_view::filesystem::FileSystem;
use flist_view::fuse::{BufferReply, Outcome, REQUEST_SIZE_MAX, Server};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Most threads that serve one mount: as many reads can wait for stores before metadata has to wait
/// too.
pub const WORKER_COUNT_MAX: usize = 16;
/// Threads that stay when there is nothing to do.
const IDLE_COUNT_MAX: usize = 4;
/// Most bytes of contents in one reply. More would spare few system calls, and each worker has a
/// buffer of this size.
const BODY_SIZE_MAX: usize = 256 << 10;
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
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ended = Arc::new(ended.map_err(|error| MountError::Device(error.into()))?);
        let device = attach::mount(source, &mount_point)?;
        let mut mount =
            Self { mount_point, ended: Arc::clone(&ended), device_number: 0, is_mounted: true };
        let service = Arc::new(Service {
            server: Server::new(file_system, BODY_SIZE_MAX),
            device,
            ended,
            worker_count: AtomicUsize::new(0),
            idle_count: AtomicUsize::new(0),
        });
        // The first request is INIT; with that answered, the mount works.
        let mut buffers = Buffers::new();
        buffers
            .receive(&service.device)
            .and_then(|size| service.answer(&mut buffers, size))
            .map_err(|error| MountError::Handshake(error.into()))?;
        drop(buffers);
        service.start_worker().map_err(MountError::Device)?;
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

/// What the workers of one mount share.
struct Service<F> {
    server: Server<F>,
    device: OwnedFd,
    ended: Arc<OwnedFd>,
    worker_count: AtomicUsize,
    /// Workers that wait for a request.
    idle_count: AtomicUsize,
}

/// What each worker has for itself.
struct Buffers {
    request: Box<[u8]>,
    reply: BufferReply,
}

impl<F: FileSystem + 'static> Service<F> {
    fn start_worker(self: &Arc<Self>) -> io::Result<()> {
        self.worker_count.fetch_add(1, Ordering::Relaxed);
        let service = Arc::clone(self);
        let result = thread::Builder::new().name("fuse".to_owned()).spawn(move || {
            service.work();
            service.worker_count.fetch_sub(1, Ordering::Relaxed);
        });
        if result.is_err() {
            self.worker_count.fetch_sub(1, Ordering::Relaxed);
        }
        result.map(drop)
    }

    /// Serves until the mount ends, or others are idle enough.
    fn work(self: &Arc<Self>) {
        let mut buffers = Buffers::new();
        while self.idle_count.load(Ordering::Relaxed) < IDLE_COUNT_MAX {
            self.idle_count.fetch_add(1, Ordering::Relaxed);
            let received = buffers.receive(&self.device);
            let was_last = self.idle_count.fetch_sub(1, Ordering::Relaxed) == 1;
            let result = received.and_then(|size| {
                if was_last {
                    self.start_another_worker();
                }
                self.answer(&mut buffers, size)
            });
            if let Err(error) = result {
                if !matches!(error, Errno::NODEV | Errno::CONNABORTED) {
                    tracing::error!(%error, "/dev/fuse broke off");
                }
                // A counter that is full is as readable as any other.
                let _ = rustix::io::write(&*self.ended, &1u64.to_le_bytes());
                return;
            }
        }
    }

    /// Without another one, requests wait a little longer.
    fn start_another_worker(self: &Arc<Self>) {
        if self.worker_count.load(Ordering::Relaxed) < WORKER_COUNT_MAX
            && let Err(error) = self.start_worker()
        {
            tracing::warn!(%error, "cannot start another worker");
        }
    }

    /// Answers the request of `size` bytes in `buffers`.
    fn answer(&self, buffers: &mut Buffers, size: usize) -> Result<(), Errno> {
        let Buffers { request, reply } = buffers;
        reply.reset();
        match self.server.handle(request.get(..size).unwrap_or_default(), reply) {
            Ok(Outcome::Malformed) => tracing::warn!(size, "the kernel sent half a request"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "no reply"),
        }
        let Some(reply) = reply.as_bytes() else { return Ok(()) };
        match rustix::io::write(&self.device, reply) {
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

impl Buffers {
    fn new() -> Self {
        Self {
            request: vec![0; REQUEST_SIZE_MAX].into_boxed_slice(),
            reply: BufferReply::new(BODY_SIZE_MAX),
        }
    }

    /// Waits for a request; returns its size.
    fn receive(&mut self, device: &OwnedFd) -> Result<usize, Errno> {
        loop {
            match rustix::io::read(device, &mut *self.request) {
                // ENOENT: the request was withdrawn while we read it.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                result => return result,
            }
        }
    }
}
