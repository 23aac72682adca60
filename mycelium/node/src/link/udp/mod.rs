//! A link over UDP, between nodes of this kind: datagrams in batches, sealed, on sockets that all links
//! share.
//!
//! TCP below TCP waits twice for what is lost once, and QUIC's datagrams cost more than what they carry.
//! Here data is sent once, as the batches that the data plane makes, many datagrams in a call; only
//! control packets come again. `FORMAT.md` beside the crate has all layouts.
//!
//! ```text
//!  any thread ─ send_data ─> cut, seal, UDP_SEGMENT ──> socket   full? ──> outbound (CoDel) ─┐
//!  router ─ send_control ─> engine: numbers, times ───> socket <──────── the link's task ────┘
//!  socket ─> receive task ─ whole buffers ─> link's task: open, join ─> Inbound
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
//! | `socket`, `pool`, `entries` | the sockets, who reads them, into what, and for whom |
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
mod pool;
pub(crate) mod socket;
#[cfg(test)]
mod tests;

pub(crate) use packet::mapped;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mycelium_wire::identity::PublicKey;
use rustix::io::Errno;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep_until;

use crate::link::outbound::{Outbound, Sent, Transmit};
use crate::link::stream::{Inbound, LinkError};
use crate::link::udp::crypt::Opener;
use crate::link::udp::engine::{Engine, Outcome, Start};
use crate::link::udp::entries::Batch;
use crate::link::udp::packet::{Payload, split_sealed};
use crate::link::udp::pieces::{Cuts, Joiner, whole_before};
use crate::link::udp::socket::Sockets;
use crate::tun::MTU;

/// A link, and what waits to leave on it.
pub(crate) struct UdpCarrier {
    sockets: Arc<Sockets>,
    index: u32,
    peer: PublicKey,
    /// This end's address, where it matters which one of several it is.
    local: Option<IpAddr>,
    engine: Mutex<Engine>,
    /// Data that the socket did not take.
    outbound: Mutex<Outbound>,
    has_waiting: AtomicBool,
    /// Taken by the link's task.
    receiver: Mutex<Option<Receiver>>,
    /// The link's task has something to do.
    wake: Notify,
    is_closed: AtomicBool,
    sent_size: AtomicU64,
    lost_count: AtomicU64,
    /// The largest IPv6 packet that the peer takes for itself.
    takes: AtomicU16,
}

/// The receiving half.
struct Receiver {
    opener: Opener,
    joiner: Joiner,
    inbox: mpsc::Receiver<Batch>,
    /// Where the peer was last.
    address: SocketAddr,
    is_confirmed: bool,
    /// Data packets of some batches, one behind the other, and the front of one more.
    stream: Vec<u8>,
    /// Control packets that came with them.
    control: Vec<u8>,
}

impl Receiver {
    /// Gives back memory that an idle link does not need.
    fn shrink(&mut self) {
        self.stream.shrink_to(SIZE_KEPT);
        self.control.shrink_to(SIZE_KEPT);
    }
}

/// Batches that are taken together, so that packets of a flow can be joined.
const BATCH_COUNT_MAX: usize = 4;
/// Memory that an idle link keeps.
const SIZE_KEPT: usize = 4 << 10;

thread_local! {
    /// Where datagrams are made; what is in it is of no use after a call.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl UdpCarrier {
    fn new(
        sockets: Arc<Sockets>,
        index: u32,
        peer: PublicKey,
        start: Start,
        local: Option<IpAddr>,
        opener: Opener,
        inbox: mpsc::Receiver<Batch>,
    ) -> Self {
        let receiver = Receiver {
            opener,
            joiner: Joiner::default(),
            inbox,
            address: start.address,
            is_confirmed: false,
            stream: Vec::new(),
            control: Vec::new(),
        };
        Self {
            sockets,
            index,
            peer,
            local,
            engine: Mutex::new(Engine::new(start, Instant::now())),
            outbound: Mutex::default(),
            has_waiting: AtomicBool::new(false),
            receiver: Mutex::new(Some(receiver)),
            wake: Notify::new(),
            is_closed: AtomicBool::new(false),
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
            self.has_waiting.store(true, Ordering::Release);
            self.wake.notify_one();
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

    /// Carries packets both ways until the link ends.
    pub(crate) async fn run(&self, inbound: &mut impl Inbound) -> LinkError {
        let Some(mut receiver) = lock(&self.receiver).take() else { return LinkError::Closed };
        loop {
            self.flush(Instant::now());
            let (deadline, address) = {
                let engine = self.engine();
                (engine.deadline(), engine.address())
            };
            let has_waiting = self.has_waiting.load(Ordering::Acquire);
            tokio::select! {
                batch = receiver.inbox.recv() => {
                    let Some(batch) = batch else { return LinkError::Closed };
                    if let Err(error) = self.receive(&mut receiver, batch, inbound).await {
                        return error;
                    }
                }
                () = self.wake.notified() => {}
                () = self.sockets.writable(address), if has_waiting => self.drain(),
                () = sleep_until(deadline.into()) => receiver.shrink(),
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

    /// Takes a batch and those behind it.
    async fn receive(
        &self,
        receiver: &mut Receiver,
        first: Batch,
        inbound: &mut impl Inbound,
    ) -> Result<(), LinkError> {
        let mut size = self.open(receiver, first);
        for _ in 1..BATCH_COUNT_MAX {
            let Ok(batch) = receiver.inbox.try_recv() else { break };
            size += self.open(receiver, batch);
        }
        if size > 0 {
            inbound.arrived(size);
            let whole = receiver.joiner.whole_size(&receiver.stream);
            inbound.packets(&mut receiver.stream[..whole])?;
            receiver.joiner.taken(&mut receiver.stream);
            if inbound.packets(&mut receiver.control)? != receiver.control.len() {
                tracing::debug!("a control packet is cut off");
            }
            receiver.control.clear();
            inbound.settle().await?;
        }
        Ok(())
    }

    /// Opens the datagrams of a batch, and gives how many bytes were genuine.
    fn open(&self, receiver: &mut Receiver, mut batch: Batch) -> usize {
        let (now, from, mut size) = (Instant::now(), batch.from, 0);
        for datagram in batch.bytes.chunks_mut(batch.stride) {
            let datagram_size = datagram.len();
            let Some((counter, sealed)) = split_sealed(datagram) else { continue };
            let Ok(payload) = receiver.opener.open(counter, sealed) else { continue };
            size += datagram_size;
            if !receiver.is_confirmed {
                receiver.is_confirmed = true;
                self.engine().confirmed();
            }
            if from != receiver.address && receiver.opener.is_newest(counter) {
                self.engine().heard_elsewhere(from, now);
            }
            match Payload::parse(payload) {
                Some(Payload::Data { first, piece }) => {
                    receiver.joiner.add(counter, first, piece, &mut receiver.stream);
                }
                Some(payload) => self.take(payload, receiver, from, now),
                None => {}
            }
        }
        size
    }

    fn take(&self, payload: Payload<'_>, receiver: &mut Receiver, from: SocketAddr, now: Instant) {
        let outcome = self.engine().received(payload, from, now, &mut receiver.control);
        match outcome {
            Outcome::Nothing => {}
            Outcome::Observed { address, takes } => {
                self.takes.store(takes, Ordering::Relaxed);
                self.sockets.observations().note(self.peer, address, now);
            }
            Outcome::Moved(address) => {
                tracing::info!(peer = %self.peer, %address, "a peer has moved");
                receiver.address = address;
            }
            Outcome::Closed => self.is_closed.store(true, Ordering::Release),
        }
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

    /// Sends what waits, as far as the socket takes it.
    fn drain(&self) {
        let mut outbound = lock(&self.outbound);
        if matches!(outbound.drain(self, Instant::now()), Ok(Sent::Done)) {
            self.has_waiting.store(false, Ordering::Release);
        }
    }

    /// Sends packets, and gives how many bytes of whole ones are done with: sent, or lost for good.
    fn send_now(&self, packets: &[u8]) -> usize {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut engine = self.engine();
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
        })
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        lock(&self.engine)
    }
}

impl Drop for UdpCarrier {
    fn drop(&mut self) {
        self.sockets.forget(self.index);
    }
}

impl std::fmt::Debug for UdpCarrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UdpCarrier({})", self.peer)
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

impl Transmit for UdpCarrier {
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
