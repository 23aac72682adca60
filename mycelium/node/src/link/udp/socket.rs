//! The node's UDP sockets: one for IPv4 and one for IPv6, shared by all links, dialers and punches, so
//! that a NAT sees one port.
//!
//! A task for each socket reads what arrives, many datagrams at once (`recvmmsg` with UDP GRO), and
//! gives runs of sealed datagrams to the link that their index names, a whole buffer at a time. All else
//! belongs to handshakes and is done here. Memory is bounded: by the buffers that all links together
//! may hold, and by what each may have waiting; what comes on top is lost, as on any network.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycelium_wire::identity::SecretKey;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::link::udp::UdpCarrier;
use crate::link::udp::dial::Dialing;
use crate::link::udp::engine::Start;
use crate::link::udp::entries::{Batch, Entries, Entry, Reply, is_proof};
use crate::link::udp::handshake::{Admission, Doorman, Established, Pending};
use crate::link::udp::limits::{Observations, Restraint};
use crate::link::udp::packet::{COOKIE_SIZE, Datagram, Kind, PUNCH, sealed_receiver};
use crate::link::udp::pool::{BUFFER_SIZE, Buffer, Pool};

/// Buffers that one call fills.
const RECEIVE_COUNT: usize = 4;
/// Runs smaller than this are copied, and their buffer stays.
const COPY_SIZE_MAX: usize = 4 << 10;
/// Runs that wait for one link.
const BATCH_COUNT_MAX: usize = 64;
/// Links that are made and not yet taken by the node.
pub(crate) const ACCEPTED_COUNT_MAX: usize = 32;
/// What the kernel may hold until it is read: some joined datagrams of 64 KiB. What it holds unsent is
/// left at its default, which is small: the rest waits with us, where it can be dropped.
const RECEIVE_BUFFER_SIZE: usize = 4 << 20;
/// Replies that wait for one dialer.
const REPLY_COUNT_MAX: usize = 8;
/// Bytes that one call sends.
const SEND_SIZE_MAX: usize = 65_000;
/// How long reading rests when the kernel has no memory.
const REST: Duration = Duration::from_millis(100);

/// Sockets, and who uses them.
pub(crate) struct Sockets {
    pub(crate) secret: SecretKey,
    /// The largest IPv6 packet for this node itself.
    takes: u16,
    v4: Socket,
    v6: Option<Socket>,
    entries: Mutex<Entries>,
    doorman: Mutex<Doorman>,
    restraint: Mutex<Restraint>,
    observations: Mutex<Observations>,
    pool: Pool,
    accepted: mpsc::Sender<UdpCarrier>,
    overflowed: AtomicU64,
}

struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    fn open(address: SocketAddr, mark: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        mark(&socket)?;
        rustix::net::bind(&socket, &address)?;
        let state = UdpSocketState::new((&socket).into())?;
        // Beyond the system's limit as far as this process may; else what the kernel gives.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_SIZE).is_err() {
            let _ = state.set_recv_buffer_size((&socket).into(), RECEIVE_BUFFER_SIZE);
        }
        Ok(Self { io: UdpSocket::from_std(socket.into())?, state })
    }
}

impl Sockets {
    /// Opens both sockets at `port`, or the one for IPv4 alone where there is no IPv6. Packets for this node
    /// itself may have `takes` bytes. New links that others dialed go to `accepted`. Must be called inside a
    /// runtime.
    pub(crate) fn open(
        secret: SecretKey,
        (port, takes): (u16, u16),
        mark: impl Fn(&OwnedFd) -> io::Result<()>,
        accepted: mpsc::Sender<UdpCarrier>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let v4 = Socket::open((Ipv4Addr::UNSPECIFIED, port).into(), &mark)?;
        // Any port means: the same for both.
        let port = v4.io.local_addr()?.port();
        let v6 = match Socket::open((Ipv6Addr::UNSPECIFIED, port).into(), &mark) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // A kernel without IPv6 still has peers.
            v6 => v6.ok(),
        };
        Ok(Self {
            secret,
            takes,
            v4,
            v6,
            entries: Mutex::default(),
            doorman: Mutex::new(Doorman::new(now).map_err(io::Error::other)?),
            restraint: Mutex::new(Restraint::new(now)),
            observations: Mutex::default(),
            pool: Pool::default(),
            accepted,
            overflowed: AtomicU64::new(0),
        })
    }

    /// The port of both sockets.
    pub(crate) fn port(&self) -> u16 {
        self.v4.io.local_addr().map_or(0, |address| address.port())
    }

    /// The socket of one family.
    fn socket(&self, is_ipv6: bool) -> Option<&Socket> {
        if is_ipv6 { self.v6.as_ref() } else { Some(&self.v4) }
    }

    /// Reads the socket of one family for as long as the node runs.
    pub(crate) async fn receive(self: Arc<Self>, is_ipv6: bool) {
        let Some(socket) = self.socket(is_ipv6) else { return };
        let mut buffers: [Vec<u8>; RECEIVE_COUNT] = std::array::from_fn(|_| vec![0; BUFFER_SIZE]);
        let mut metas = [RecvMeta::default(); RECEIVE_COUNT];
        loop {
            if socket.io.readable().await.is_err() {
                return;
            }
            let received = socket.io.try_io(Interest::READABLE, || {
                let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
                socket.state.recv((&socket.io).into(), &mut slices, &mut metas)
            });
            match received {
                Ok(count) => {
                    for (buffer, meta) in buffers.iter_mut().zip(&metas).take(count) {
                        self.take(buffer, meta);
                    }
                    // Their links take these while they are in the processor's cache.
                    tokio::task::yield_now().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "nothing can be read from a UDP socket for a moment");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// Takes what one buffer holds.
    fn take(self: &Arc<Self>, buffer: &mut Vec<u8>, meta: &RecvMeta) {
        let (size, stride) = (meta.len.min(buffer.len()), meta.stride.max(1));
        let from = canonical(meta.addr);
        let mut at = 0;
        while at < size {
            let end = size.min(at + stride);
            let Some(receiver) = sealed_receiver(&buffer[at..end]) else {
                self.handshake(&buffer[at..end], from, meta.dst_ip);
                at = end;
                continue;
            };
            let mut run_end = end;
            while run_end < size
                && sealed_receiver(&buffer[run_end..size.min(run_end + stride)]) == Some(receiver)
            {
                run_end = size.min(run_end + stride);
            }
            let bytes = if run_end - at == size && size > COPY_SIZE_MAX {
                match self.pool.exchange(buffer, size) {
                    Some(bytes) => bytes,
                    None => return self.overflow(),
                }
            } else {
                Buffer::copy(&buffer[at..run_end])
            };
            self.deliver(receiver, Batch { bytes, stride, from });
            at = run_end;
        }
    }

    /// Gives a run to its link.
    fn deliver(self: &Arc<Self>, receiver: u32, mut batch: Batch) {
        let mut entries = self.entries();
        let link = match entries.0.get(&receiver) {
            Some(Entry::Link(link)) => Some(link.clone()),
            Some(Entry::Pending(pending)) if is_proof(pending, &mut batch) => {
                let pending = entries.take_pending(receiver);
                pending.and_then(|pending| self.accept(&mut entries, receiver, pending))
            }
            _ => None,
        };
        drop(entries);
        if let Some(Err(mpsc::error::TrySendError::Full(_))) = link.map(|link| link.try_send(batch))
        {
            self.overflow();
        }
    }

    /// A handshake has come to its end: there is a new link.
    fn accept(
        self: &Arc<Self>,
        entries: &mut Entries,
        index: u32,
        pending: Pending,
    ) -> Option<mpsc::Sender<Batch>> {
        let (from, local) = (pending.from, pending.local);
        let established = pending.establish(&self.secret).ok()?;
        let permit = self.accepted.try_reserve().ok()?;
        let (carrier, link) = self.carrier(index, established, from, local, None);
        entries.0.insert(index, Entry::Link(link.clone()));
        permit.send(carrier);
        Some(link)
    }

    /// A link's carrier, and what its datagrams go to.
    pub(super) fn carrier(
        self: &Arc<Self>,
        index: u32,
        established: Established,
        address: SocketAddr,
        local: Option<IpAddr>,
        finish: Option<Vec<u8>>,
    ) -> (UdpCarrier, mpsc::Sender<Batch>) {
        let Established { peer, peer_index, sealer, opener } = established;
        let (sender, inbox) = mpsc::channel(BATCH_COUNT_MAX);
        let start = Start { sealer, peer_index, address, finish, takes: self.takes };
        let carrier = UdpCarrier::new(Arc::clone(self), index, peer, start, local, opener, inbox);
        (carrier, sender)
    }

    /// Takes a datagram that belongs to a handshake, or to nothing.
    fn handshake(self: &Arc<Self>, bytes: &[u8], from: SocketAddr, local: Option<IpAddr>) {
        match Datagram::parse(bytes) {
            Some(Datagram::Init { kind, sender, cookie, noise }) => {
                self.init((kind, sender, noise), cookie, (from, local));
            }
            Some(Datagram::Response { receiver, sender, noise }) => {
                self.reply(receiver, Reply::Response { from, sender, noise: noise.to_vec() });
            }
            Some(Datagram::Cookie { receiver, cookie }) => {
                self.reply(receiver, Reply::Cookie { from, cookie });
            }
            Some(Datagram::Finish { receiver, noise }) => {
                let mut entries = self.entries();
                let is_end = match entries.0.get_mut(&receiver) {
                    Some(Entry::Pending(pending)) => pending.read(noise),
                    _ => false,
                };
                if is_end && let Some(pending) = entries.take_pending(receiver) {
                    self.accept(&mut entries, receiver, pending);
                }
            }
            Some(Datagram::Sealed { .. }) | None => {}
        }
    }

    fn reply(&self, receiver: u32, reply: Reply) {
        if let Some(Entry::Dialing(dialer)) = self.entries().0.get(&receiver) {
            // A dialer needs one; it does not matter which of many.
            let _ = dialer.try_send(reply);
        }
    }

    /// Answers who wants to begin a handshake.
    fn init(
        &self,
        begun: (Kind, u32, &[u8]),
        cookie: [u8; COOKIE_SIZE],
        at: (SocketAddr, Option<IpAddr>),
    ) {
        let (now, from, sender) = (Instant::now(), at.0, begun.1);
        let mut entries = self.entries();
        if let Some(response) = entries.response(from, sender) {
            drop(entries);
            return self.send_one(from, at.1, &response);
        }
        match lock(&self.doorman).admit(from, sender, cookie, now) {
            Admission::Refused => {}
            Admission::Cookie(cookie) => {
                drop(entries);
                let answer = Datagram::Cookie { receiver: sender, cookie }.encode();
                self.send_one(from, at.1, &answer);
            }
            Admission::Welcome if entries.has_room(from, now) => {
                let Some(index) = entries.free_index() else { return };
                match Pending::new(&self.secret, index, begun, at, now) {
                    Ok(pending) => {
                        let response = pending.response.clone();
                        entries.0.insert(index, Entry::Pending(Box::new(pending)));
                        drop(entries);
                        self.send_one(from, at.1, &response);
                    }
                    Err(error) => tracing::debug!(%from, %error, "a handshake is refused"),
                }
            }
            Admission::Welcome => {}
        }
    }

    /// Reserves an index for a dialer.
    pub(crate) fn begin_dial(self: &Arc<Self>) -> Option<(Dialing, mpsc::Receiver<Reply>)> {
        let (sender, replies) = mpsc::channel(REPLY_COUNT_MAX);
        let mut entries = self.entries();
        let index = entries.free_index()?;
        entries.0.insert(index, Entry::Dialing(sender));
        Some((Dialing { sockets: Arc::clone(self), index }, replies))
    }

    /// Sends datagrams of `stride` bytes each, but for the last, in one call. The largest count that one
    /// call takes is [`Self::count_max`].
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        local: Option<IpAddr>,
        bytes: &[u8],
        stride: usize,
    ) -> io::Result<()> {
        let Some(socket) = self.socket(to.is_ipv6()) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let segment_size = (bytes.len() > stride).then_some(stride);
        let transmit =
            Transmit { destination: to, ecn: None, contents: bytes, segment_size, src_ip: local };
        socket
            .io
            .try_io(Interest::WRITABLE, || socket.state.try_send((&socket.io).into(), &transmit))
    }

    /// Datagrams of a size that one call takes.
    pub(crate) fn count_max(&self, to: SocketAddr, datagram_size: usize) -> usize {
        let socket = self.socket(to.is_ipv6());
        let by_kernel = socket.map_or(1, |socket| socket.state.max_gso_segments());
        by_kernel.min(SEND_SIZE_MAX / datagram_size.max(1)).max(1)
    }

    /// Waits until the socket that reaches `to` takes more.
    pub(crate) async fn writable(&self, to: SocketAddr) {
        match self.socket(to.is_ipv6()) {
            // An error is found by the next who sends.
            Some(socket) => drop(socket.io.writable().await),
            None => std::future::pending().await,
        }
    }

    /// Sends a datagram that may get lost.
    pub(crate) fn send_one(&self, to: SocketAddr, local: Option<IpAddr>, bytes: &[u8]) {
        if let Err(error) = self.send(to, local, bytes, bytes.len()) {
            tracing::trace!(%to, %error, "a datagram is not sent");
        }
    }

    /// Sends a small datagram to an address that others named and that has not answered, unless there
    /// were too many.
    pub(crate) fn send_unasked(&self, to: SocketAddr, bytes: &[u8]) {
        if lock(&self.restraint).may_send(to, Instant::now()) {
            self.send_one(to, None, bytes);
        }
    }

    /// Opens the NATs on the way for what comes from `to`.
    pub(crate) fn punch(&self, to: SocketAddr) {
        self.send_unasked(to, &PUNCH);
    }

    /// Where neighbours see this node.
    pub(crate) fn observations(&self) -> MutexGuard<'_, Observations> {
        lock(&self.observations)
    }

    /// A link or a dialer is gone.
    pub(crate) fn forget(&self, index: u32) {
        self.entries().0.remove(&index);
    }

    /// Runs of datagrams that were lost since links were too slow.
    pub(crate) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Links, dialers, and handshakes that wait.
    #[cfg(test)]
    pub(crate) fn entry_count(&self) -> usize {
        self.entries().0.len()
    }

    fn overflow(&self) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }
}

impl std::fmt::Debug for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sockets(port {})", self.port())
    }
}

/// An address as its family writes it.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => address,
        _ => SocketAddr::new(address.ip().to_canonical(), address.port()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
