//! A link over UDP, between nodes of this kind: datagrams in batches, sealed, on sockets that all links
//! share.
//!
//! TCP below TCP waits twice for what is lost once, and QUIC's datagrams cost more than what they carry.
//! Here data is sent once, as the batches that the data plane makes, many datagrams in a call; only
//! control packets come again. `FORMAT.md` beside the crate has all layouts.
//!
//! ```text
//!  any thread ─ send_data ─> cut, seal, UDP_SEGMENT ──> socket   full? ──> outbound (CoDel) ─┐
//!  router ─ send_control ─> engine: numbers, times ───> socket <──────── the link's task ────┤
//!  socket ─> reading thread: open, join ─ data ─> Taker                                      │
//!                                       └─ control packets, what is to be answered ──────────┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | `packet` | layouts |
//! | `handshake` | Noise in datagrams, cookies |
//! | `dial` | making a link |
//! | `crypt` | keys, replay window |
//! | `pieces` | batches cut and joined |
//! | `arq` | control packets: all, in order |
//! | `mtu` | how large a datagram may be |
//! | `engine` | one end of a link, without I/O |
//! | `socket`, `entries` | the sockets, and whom an index means |
//! | `reader`, `receive` | threads that read them, and what they do for each link |
//! | `limits` | against floods |

mod arq;
mod crypt;
pub(crate) mod dial;
mod engine;
mod entries;
mod handshake;
mod limits;
mod mtu;
mod packet;
mod pieces;
mod reader;
mod receive;
pub(crate) mod socket;
#[cfg(test)]
mod tests;

pub(crate) use packet::mapped;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycelium_wire::identity::PublicKey;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};

use crate::link::outbound::{Outbound, Sent, Transmit};
use crate::link::stream::{Inbound, LinkError};
use crate::link::udp::crypt::Opener;
use crate::link::udp::engine::{Engine, Start};
use crate::link::udp::pieces::{Cuts, whole_before};
use crate::link::udp::receive::Receiver;
use crate::link::udp::socket::Sockets;
use crate::tun::MTU;

/// The owner of a link: when it is dropped, datagrams for the link are from nowhere.
pub(crate) struct UdpCarrier(Arc<UdpLink>);

/// A link, and what waits to leave on it.
pub(crate) struct UdpLink {
    sockets: Arc<Sockets>,
    index: u32,
    peer: PublicKey,
    /// This end's address, where it matters which one of several it is.
    local: Option<IpAddr>,
    engine: Mutex<Engine>,
    /// Data that the socket did not take.
    outbound: Mutex<Outbound>,
    has_waiting: AtomicBool,
    /// Locked before the engine, never while that is.
    receiver: Mutex<Receiver>,
    /// The link's task has something to do.
    wake: Notify,
    is_closed: AtomicBool,
    is_carried: AtomicBool,
    sent_size: AtomicU64,
    lost_count: AtomicU64,
    /// The largest IPv6 packet that the peer takes for itself.
    takes: AtomicU16,
}

/// How long data waits when it can't be known whether the socket takes more.
const REST: Duration = Duration::from_millis(10);

thread_local! {
    /// Where datagrams are made; what is in it is of no use after a call.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl UdpCarrier {
    pub(super) fn new(link: Arc<UdpLink>) -> Self {
        Self(link)
    }
}

impl Deref for UdpCarrier {
    type Target = UdpLink;

    fn deref(&self) -> &UdpLink {
        &self.0
    }
}

impl Drop for UdpCarrier {
    fn drop(&mut self) {
        self.sockets.forget(self.index);
    }
}

impl std::fmt::Debug for UdpCarrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl UdpLink {
    pub(super) fn new(
        sockets: Arc<Sockets>,
        index: u32,
        peer: PublicKey,
        start: Start,
        local: Option<IpAddr>,
        opener: Opener,
    ) -> Self {
        Self {
            sockets,
            index,
            peer,
            local,
            receiver: Mutex::new(Receiver::new(opener, start.address)),
            engine: Mutex::new(Engine::new(start, Instant::now())),
            outbound: Mutex::default(),
            has_waiting: AtomicBool::new(false),
            wake: Notify::new(),
            is_closed: AtomicBool::new(false),
            is_carried: AtomicBool::new(false),
            sent_size: AtomicU64::new(0),
            lost_count: AtomicU64::new(0),
            takes: AtomicU16::new(MTU),
        }
    }

    /// Who is at the other end: it has proved that it has the key.
    pub(crate) fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Where the other end is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.engine().address()
    }

    /// The largest IPv6 packet that the peer takes for itself: no smaller than what all nodes take.
    pub(crate) fn takes(&self) -> u16 {
        self.takes.load(Ordering::Relaxed).max(MTU)
    }

    /// Sends whole data packets, one behind the other.
    pub(crate) fn send_data(&self, packets: &[u8], now: Instant) {
        self.sent_size.fetch_add(packets.len() as u64, Ordering::Relaxed);
        let done =
            if self.has_waiting.load(Ordering::Acquire) { 0 } else { self.send_now(packets) };
        if done < packets.len() {
            // The socket takes nothing here, so this only queues and can't fail.
            let _ = lock(&self.outbound).send_data(&Later, &packets[done..], now);
            if !self.has_waiting.swap(true, Ordering::AcqRel) {
                self.wake.notify_one();
            }
        }
    }

    /// Sends a control packet.
    pub(crate) fn send_control(&self, packet: &[u8]) {
        self.sent_size.fetch_add(packet.len() as u64, Ordering::Relaxed);
        let taken = self.engine().send_control(packet);
        if let Err(error) = taken {
            tracing::debug!(%error, "a link takes nothing more");
            return self.close();
        }
        self.flush(Instant::now());
        // Its deadline may be an earlier one now.
        self.wake.notify_one();
    }

    /// Ends the link; its task finds out at once.
    pub(crate) fn close(&self) {
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            let mut datagram = Vec::new();
            let to = self.engine().close(&mut datagram);
            self.sockets.send_one(to, self.local, &datagram);
        }
        self.wake.notify_one();
    }

    /// Bytes given to the link to send.
    pub(crate) fn sent_size(&self) -> u64 {
        self.sent_size.load(Ordering::Relaxed)
    }

    /// Data packets that were dropped, and calls of the kernel that failed.
    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.outbound).dropped() + self.lost_count.load(Ordering::Relaxed)
    }

    /// Carries packets both ways until the link ends. It can be done once.
    pub(crate) async fn run(&self, inbound: &mut impl Inbound) -> LinkError {
        if self.is_carried.swap(true, Ordering::AcqRel) {
            return LinkError::Closed;
        }
        let _carried = Carried::begin(self, inbound);
        let mut watched: Option<(SocketAddr, AsyncFd<OwnedFd>)> = None;
        loop {
            self.flush(Instant::now());
            let (deadline, address) = {
                let engine = self.engine();
                (engine.deadline(), engine.address())
            };
            let has_waiting = self.has_waiting.load(Ordering::Acquire);
            // Watched no longer than that: a socket that is wakes its watcher with each datagram that left.
            watched = watched.filter(|(to, _)| has_waiting && *to == address);
            if has_waiting && watched.is_none() {
                watched = self.sockets.watch(address).ok().map(|socket| (address, socket));
            }
            let socket = watched.as_ref().map(|(_, socket)| socket);
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.drain_when_writable(socket), if has_waiting => {}
                () = sleep_until(deadline.into()) => {}
            }
            if let Err(error) = self.settle(inbound).await {
                return error;
            }
            if self.is_closed.load(Ordering::Acquire) {
                return LinkError::Closed;
            }
            let ticked = self.engine().tick(Instant::now());
            if let Err(error) = ticked {
                return LinkError::Io(io::Error::new(io::ErrorKind::TimedOut, error));
            }
        }
    }

    /// Takes the control packets that came.
    async fn settle(&self, inbound: &mut impl Inbound) -> Result<(), LinkError> {
        let mut control = self.control_packets()?;
        if !control.is_empty() {
            if inbound.packets(&mut control)? != control.len() {
                tracing::debug!("a control packet is cut off");
            }
            inbound.settle().await?;
        }
        Ok(())
    }

    /// The peer said where it sees this node, and what it takes.
    fn observed(&self, address: SocketAddr, takes: u16, now: Instant) {
        self.takes.store(takes, Ordering::Relaxed);
        self.sockets.observations().note(self.peer, address, now);
    }

    /// The peer has ended the link.
    fn closed(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Sends what the engine has to say.
    fn flush(&self, now: Instant) {
        let mut datagram = Vec::new();
        for _ in 0..FLUSH_COUNT_MAX {
            datagram.clear();
            let mut engine = self.engine();
            let Some(to) = engine.poll(now, &mut datagram) else { return };
            let sent = self.sockets.send(to, self.local, &datagram, datagram.len());
            if is_too_large(&sent) {
                engine.refused(datagram.len());
            }
        }
        self.wake.notify_one();
    }

    /// Sends what waits when the socket takes more, as far as it does.
    async fn drain_when_writable(&self, watched: Option<&AsyncFd<OwnedFd>>) {
        let Some(watched) = watched else {
            sleep(REST).await;
            self.drain();
            return;
        };
        let Ok(mut ready) = watched.writable().await else { return };
        if !self.drain() {
            ready.clear_ready();
        }
    }

    /// Sends what waits, as far as the socket takes it. Whether it took all.
    fn drain(&self) -> bool {
        let mut outbound = lock(&self.outbound);
        let is_done = matches!(outbound.drain(self, Instant::now()), Ok(Sent::Done));
        if is_done {
            self.has_waiting.store(false, Ordering::Release);
        }
        is_done
    }

    /// Sends packets, and gives how many bytes of whole ones are done with: sent, or lost for good.
    fn send_now(&self, packets: &[u8]) -> usize {
        let mut engine = self.engine();
        let done = SCRATCH.with_borrow_mut(|scratch| {
            let (to, stride) = (engine.address(), engine.datagram_size());
            let count_max = self.sockets.count_max(to, stride);
            let mut cuts = Cuts::new(packets, engine.piece_size());
            loop {
                let begin = cuts.position();
                scratch.clear();
                if engine.seal_batch(&mut cuts, count_max, scratch) == 0 {
                    return packets.len();
                }
                let sent = self.sockets.send(to, self.local, scratch, stride);
                match &sent {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return whole_before(packets, begin);
                    }
                    Err(_) => {
                        self.lost_count.fetch_add(1, Ordering::Relaxed);
                        if is_too_large(&sent) {
                            engine.refused(stride);
                            return packets.len();
                        }
                    }
                }
            }
        });
        if engine.hurried() {
            self.wake.notify_one();
        }
        done
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        lock(&self.engine)
    }
}

impl std::fmt::Debug for UdpLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UdpLink({})", self.peer)
    }
}

/// A link whose data packets are taken, until the end of its scope: also when the runtime drops its task.
struct Carried<'a>(&'a UdpLink);

impl<'a> Carried<'a> {
    fn begin(link: &'a UdpLink, inbound: &impl Inbound) -> Self {
        link.give_data_to(Some(inbound.data_taker()));
        Self(link)
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        // It knows of the link, which would live for ever.
        self.0.give_data_to(None);
    }
}

/// Datagrams that the engine sends before others have their turn.
const FLUSH_COUNT_MAX: usize = 32;

/// Takes nothing: all waits for the link's task.
struct Later;

impl Transmit for Later {
    fn transmit(&self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Transmit for UdpLink {
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.send_now(bytes) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            size => Ok(size),
        }
    }
}

fn is_too_large(sent: &io::Result<()>) -> bool {
    let code = sent.as_ref().err().and_then(io::Error::raw_os_error);
    // Some kernels call it an argument that makes no sense when it is one of many.
    [Errno::MSGSIZE, Errno::INVAL].iter().any(|errno| code == Some(errno.raw_os_error()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
