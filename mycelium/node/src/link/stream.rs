//! A link over a stream: a TCP or vsock connection, bare or with TLS or a WebSocket on top.
//!
//! Any thread may send; it writes to the socket itself, under the link's lock and without waiting
//! ([`Outbound`]). The link's task, [`StreamCarrier::run`], does the rest: it sends what had to wait, takes
//! what arrives, and has it decoded where it lies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mycelium_wire::frame::{FrameError, PACKET_SIZE_MAX};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::link::layer::Layer;
use crate::link::outbound::{Outbound, Sent, Transmit};
use crate::link::pace::AHEAD_SIZE_MAX;
use crate::sys;

/// A connection, and what waits to leave on it.
pub(crate) struct StreamCarrier {
    file: AsyncFd<OwnedFd>,
    layer: Option<Layer>,
    outbound: Mutex<Outbound>,
    waiting: Notify,
    sent_size: AtomicU64,
}

/// A connected socket that does not block, and the session on top of it, if there is one.
#[derive(Clone, Copy)]
struct Socket<'a> {
    file: &'a OwnedFd,
    layer: Option<&'a Layer>,
}

/// Why a link came to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer sends what is no packet")]
    Frame(#[from] FrameError),
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the node stops")]
    Stopping,
}

/// Takes packets of a link's peer without waiting, in whatever thread has read them.
pub(crate) trait Taker: Send {
    /// Takes the packets at the front of `bytes` and gives how many bytes they were. Bodies are opened in
    /// place.
    fn packets(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError>;
    /// Bytes arrived.
    fn arrived(&mut self, size: usize);
}

/// Takes what a link's peer sends, in the link's task.
pub(crate) trait Inbound: Taker {
    /// Does what can't be done without waiting, before more is read.
    fn settle(&mut self) -> impl Future<Output = Result<(), LinkError>> + Send;
    /// One more for the data packets of this link, which passes over control packets: a thread that reads
    /// for many links must not wait for one.
    fn data_taker(&self) -> Box<dyn Taker>;
}

/// Memory for what a link reads at once. Pages that are never touched cost nothing.
const BUFFER_SIZE: usize = 256 << 10;
/// There must be room for the largest packet behind a rest of another.
const _: () = assert!(BUFFER_SIZE > 2 * PACKET_SIZE_MAX);
/// Reads in a row before others have their turn.
const READ_COUNT_MAX: usize = 16;
/// Keeps to the pace of the path, where others fill its queues until something is lost.
const CONGESTION_CONTROL: &str = "bbr";
/// How long the kernel sends again before a connection is broken.
const USER_TIMEOUT: Duration = Duration::from_secs(8);

impl StreamCarrier {
    /// Takes over a connection. Must be called inside a runtime.
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        Self::with_layer(file, None)
    }

    /// Takes over a connection and the session on top of it.
    pub(crate) fn with_layer(file: OwnedFd, layer: Option<Layer>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Self {
            file: sys::watch(file)?,
            layer,
            outbound: Mutex::default(),
            waiting: Notify::new(),
            sent_size: AtomicU64::new(0),
        })
    }

    /// Sends whole data packets, one behind the other.
    pub(crate) fn send_data(&self, packets: &[u8], now: Instant) {
        self.with(packets.len(), |outbound, socket| outbound.send_data(socket, packets, now));
    }

    /// Sends a control packet.
    pub(crate) fn send_control(&self, packet: &[u8]) {
        self.with(packet.len(), |outbound, socket| outbound.send_control(socket, packet));
    }

    /// Ends the connection; its task finds out at once.
    pub(crate) fn close(&self) {
        // It may be closed already.
        let _ = rustix::net::shutdown(self.file.get_ref(), Shutdown::Both);
    }

    /// Bytes given to the link to send.
    pub(crate) fn sent_size(&self) -> u64 {
        self.sent_size.load(Ordering::Relaxed)
    }

    /// Data packets that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner).dropped()
    }

    fn with(&self, size: usize, send: impl FnOnce(&mut Outbound, &Socket<'_>) -> io::Result<Sent>) {
        self.sent_size.fetch_add(size as u64, Ordering::Relaxed);
        let mut outbound = self.outbound.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = send(&mut outbound, &self.socket());
        drop(outbound);
        match sent {
            Ok(Sent::Done) => {}
            Ok(Sent::Waiting) => self.waiting.notify_one(),
            Err(error) => {
                tracing::debug!(%error, "a link takes nothing more");
                self.close();
            }
        }
    }

    /// Carries packets both ways until the connection ends.
    pub(crate) async fn run(&self, inbound: &mut impl Inbound) -> LinkError {
        tokio::select! {
            error = self.read(inbound) => error,
            error = self.drain() => error,
        }
    }

    /// Sends what waits, as long as the connection lives.
    async fn drain(&self) -> LinkError {
        loop {
            self.waiting.notified().await;
            if let Err(error) = self.drain_waiting().await {
                return LinkError::Io(error);
            }
        }
    }

    async fn drain_waiting(&self) -> io::Result<()> {
        loop {
            let mut ready = self.file.writable().await?;
            let drained = ready.try_io(|_| {
                let mut outbound = self.outbound.lock().unwrap_or_else(PoisonError::into_inner);
                match outbound.drain(&self.socket(), Instant::now())? {
                    Sent::Done => Ok(()),
                    Sent::Waiting => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            if let Ok(done) = drained {
                return done;
            }
        }
    }

    /// Takes what arrives until the connection ends or says what is no packet.
    async fn read(&self, inbound: &mut impl Inbound) -> LinkError {
        let mut buffer = vec![0; BUFFER_SIZE].into_boxed_slice();
        let mut end = 0;
        let mut reads = 0;
        loop {
            match self.receive(&mut buffer[end..]).await {
                Ok(0) => return LinkError::Closed,
                Ok(size) => {
                    inbound.arrived(size);
                    end += size;
                }
                Err(error) => return LinkError::Io(error),
            }
            match inbound.packets(&mut buffer[..end]) {
                Ok(done) => {
                    buffer.copy_within(done..end, 0);
                    end -= done;
                }
                Err(error) => return LinkError::Frame(error),
            }
            if let Err(error) = inbound.settle().await {
                return error;
            }
            reads += 1;
            if reads % READ_COUNT_MAX == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn socket(&self) -> Socket<'_> {
        Socket { file: self.file.get_ref(), layer: self.layer.as_ref() }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.file.readable().await?;
            let room = buffer.len();
            let received = ready.try_io(|_| self.socket().receive(buffer));
            match received {
                Ok(Ok(size)) => {
                    // Less than there was room for: nothing is left, and what comes next wakes us. A
                    // session gives a record or message at a time, which says nothing of what is left.
                    if size > 0 && size < room && self.layer.is_none() {
                        ready.clear_ready();
                    }
                    return Ok(size);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

impl Socket<'_> {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.layer {
            Some(layer) => layer.receive(buffer),
            None => Ok(rustix::net::recv(self.file, buffer, RecvFlags::DONTWAIT)?.1),
        }
    }
}

impl Transmit for Socket<'_> {
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match self.layer {
            Some(layer) => layer.transmit(bytes),
            None => Ok(rustix::net::send(self.file, bytes, flags)?),
        }
    }

    fn flush(&self) -> io::Result<bool> {
        self.layer.map_or(Ok(true), Layer::flush)
    }

    fn limit(&self, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        // A vsock has no such limit.
        let _ = sys::set_tcp_unsent_size_max(self.file, size);
    }

    fn has_room(&self) -> io::Result<bool> {
        let mut events = [PollFd::new(self.file, PollFlags::OUT)];
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(rustix::event::poll(&mut events, Some(&nothing))? > 0)
    }
}

/// Sets what links ask of a TCP connection: packets leave at once, little waits in the kernel, and a
/// path that went dead is noticed.
pub(crate) fn tune_tcp(socket: impl AsFd) -> io::Result<()> {
    let timeout = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&socket, timeout)?;
    // Where the kernel has it not, or keeps it for others, links work as well.
    let _ = rustix::net::sockopt::set_tcp_congestion(&socket, CONGESTION_CONTROL);
    // The rest waits with us, where it can be dropped.
    let unsent = u32::try_from(AHEAD_SIZE_MAX).unwrap_or(u32::MAX);
    match sys::set_tcp_unsent_size_max(&socket, unsent) {
        Err(error) if error.raw_os_error() != Some(Errno::NOPROTOOPT.raw_os_error()) => Err(error),
        _ => Ok(()),
    }
}
