//! The node's UDP sockets, at one port for IPv4 and IPv6, shared by all links, dialers and punches, so
//! that a NAT sees one port.
//!
//! There are as many sockets of a family as threads that read them ([`super::reader`]; `SO_REUSEPORT`):
//! the kernel spreads peers over them by address and port, and keeps those of one peer together and in
//! order. What is sealed goes to the link that its index names. All else belongs to handshakes and is done
//! here.
//!
//! The runtime does not watch these sockets: with each datagram that leaves or comes it would wake a
//! thread for nothing. Only a link that waits for room has one watched, for as long as it waits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use mycelium_wire::identity::SecretKey;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::link::udp::dial::Dialing;
use crate::link::udp::engine::Start;
use crate::link::udp::entries::{Entries, Entry, Reply, is_proof};
use crate::link::udp::handshake::{Admission, Doorman, Established, Pending};
use crate::link::udp::limits::{Observations, Restraint};
use crate::link::udp::packet::{COOKIE_SIZE, Datagram, Kind, PUNCH, sealed_receiver};
use crate::link::udp::reader::{Reader, Run};
use crate::link::udp::{UdpCarrier, UdpLink};
use crate::sys;

/// Links that are made and not yet taken by the node.
pub(crate) const ACCEPTED_COUNT_MAX: usize = 32;
/// What the kernel may hold until it is read: some joined datagrams of 64 KiB. What it holds unsent is
/// left at its default, which is small: the rest waits with us, where it can be dropped.
const RECEIVE_BUFFER_SIZE: usize = 4 << 20;
/// Replies that wait for one dialer.
const REPLY_COUNT_MAX: usize = 8;
/// Bytes that one call sends.
const SEND_SIZE_MAX: usize = 65_000;

/// What sockets are opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketSettings {
    /// Zero: any that is free.
    pub(crate) port: u16,
    /// The largest IPv6 packet for this node itself.
    pub(crate) takes: u16,
    /// Threads that read each family.
    pub(crate) reader_count: usize,
}

/// Sockets, and who uses them.
pub(crate) struct Sockets {
    pub(crate) secret: SecretKey,
    port: u16,
    takes: u16,
    v4: Vec<Arc<Socket>>,
    /// Empty where there is no IPv6.
    v6: Vec<Arc<Socket>>,
    entries: Mutex<Entries>,
    doorman: Mutex<Doorman>,
    restraint: Mutex<Restraint>,
    observations: Mutex<Observations>,
    accepted: mpsc::Sender<UdpCarrier>,
    /// Readable when the threads are to end.
    stop: Arc<OwnedFd>,
}

/// One of them.
pub(super) struct Socket {
    pub(super) file: OwnedFd,
    pub(super) state: UdpSocketState,
}

impl Socket {
    fn open(address: SocketAddr, mark: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<Self> {
        let file = unbound(address, &mark)?;
        Self::bind(file, address)
    }

    fn bind(file: OwnedFd, address: SocketAddr) -> io::Result<Self> {
        rustix::net::bind(&file, &address)?;
        let state = UdpSocketState::new((&file).into())?;
        // Beyond the system's limit as far as this process may; else what the kernel gives.
        if sockopt::set_socket_recv_buffer_size_force(&file, RECEIVE_BUFFER_SIZE).is_err() {
            let _ = state.set_recv_buffer_size((&file).into(), RECEIVE_BUFFER_SIZE);
        }
        Ok(Self { file, state })
    }

    fn port(&self) -> io::Result<u16> {
        let address = SocketAddr::try_from(rustix::net::getsockname(&self.file)?)?;
        Ok(address.port())
    }

    /// One more at the same port, to which the kernel gives a part of the peers.
    fn another(
        &self,
        address: SocketAddr,
        mark: impl Fn(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<Self> {
        // Only now, so that the first one is sure to have the port alone.
        sockopt::set_socket_reuseport(&self.file, true)?;
        let file = unbound(address, &mark)?;
        sockopt::set_socket_reuseport(&file, true)?;
        Self::bind(file, address)
    }
}

/// A socket without an address.
fn unbound(address: SocketAddr, mark: &impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let file = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&file, true)?;
    }
    mark(&file)?;
    Ok(file)
}

/// Sockets at one address, at least one and at most `count`.
fn open_all(
    address: SocketAddr,
    count: usize,
    mark: impl Fn(&OwnedFd) -> io::Result<()>,
) -> io::Result<Vec<Arc<Socket>>> {
    let first = Arc::new(Socket::open(address, &mark)?);
    let address = SocketAddr::new(address.ip(), first.port()?);
    let others = (1..count).map_while(|_| {
        let another = first.another(address, &mark);
        // One is enough; more are faster.
        another.inspect_err(|error| tracing::debug!(%error, "fewer UDP sockets")).ok()
    });
    Ok(std::iter::once(Arc::clone(&first)).chain(others.map(Arc::new)).collect())
}

impl Sockets {
    /// Opens sockets of both families, or those of IPv4 alone where there is no IPv6, and reads them for as
    /// long as they live. New links that others dialed go to `accepted`.
    pub(crate) fn open(
        secret: SecretKey,
        settings: SocketSettings,
        mark: impl Fn(&OwnedFd) -> io::Result<()>,
        accepted: mpsc::Sender<UdpCarrier>,
    ) -> io::Result<Arc<Self>> {
        let SocketSettings { port, takes, reader_count } = settings;
        let now = Instant::now();
        let v4 = open_all((Ipv4Addr::UNSPECIFIED, port).into(), reader_count, &mark)?;
        // Any port means: the same for both.
        let port = v4[0].port()?;
        let v6 = match open_all((Ipv6Addr::UNSPECIFIED, port).into(), reader_count, &mark) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // A kernel without IPv6 still has peers.
            v6 => v6.unwrap_or_default(),
        };
        let sockets = Arc::new(Self {
            secret,
            port,
            takes,
            v4,
            v6,
            entries: Mutex::default(),
            doorman: Mutex::new(Doorman::new(now).map_err(io::Error::other)?),
            restraint: Mutex::new(Restraint::new(now)),
            observations: Mutex::default(),
            accepted,
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?),
        });
        for (number, socket) in sockets.v4.iter().chain(&sockets.v6).enumerate() {
            let reader = Reader {
                socket: Arc::clone(socket),
                stop: Arc::clone(&sockets.stop),
                sockets: Arc::downgrade(&sockets),
            };
            let builder = thread::Builder::new().name(format!("udp-{number}"));
            builder.spawn(move || reader.run())?;
        }
        Ok(sockets)
    }

    /// The port of all sockets.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A socket of one family, to send with.
    fn socket(&self, is_ipv6: bool) -> Option<&Arc<Socket>> {
        if is_ipv6 { self.v6.first() } else { self.v4.first() }
    }

    /// Takes what one buffer holds: notes runs of sealed datagrams for links, and does the rest.
    pub(super) fn take(
        self: &Arc<Self>,
        number: usize,
        bytes: &mut [u8],
        meta: &RecvMeta,
        runs: &mut Vec<Run>,
    ) {
        let (size, stride) = (meta.len.min(bytes.len()), meta.stride.max(1));
        let from = canonical(meta.addr);
        let mut at = 0;
        while at < size {
            let end = size.min(at + stride);
            let Some(receiver) = sealed_receiver(&bytes[at..end]) else {
                self.handshake(&bytes[at..end], from, meta.dst_ip);
                at = end;
                continue;
            };
            let mut run_end = end;
            while run_end < size
                && sealed_receiver(&bytes[run_end..size.min(run_end + stride)]) == Some(receiver)
            {
                run_end = size.min(run_end + stride);
            }
            if let Some(link) = self.receiver(receiver, &mut bytes[at..end]) {
                runs.push(Run { link, buffer: number, at: at..run_end, stride, from });
            }
            at = run_end;
        }
    }

    /// Whom a run of datagrams is for, of which this is the first.
    fn receiver(self: &Arc<Self>, index: u32, first: &mut [u8]) -> Option<Arc<UdpLink>> {
        let mut entries = self.entries();
        match entries.0.get(&index) {
            Some(Entry::Link(link)) => Some(Arc::clone(link)),
            Some(Entry::Pending(pending)) if is_proof(pending, first) => {
                let pending = entries.take_pending(index)?;
                self.accept(&mut entries, index, pending)
            }
            _ => None,
        }
    }

    /// A handshake has come to its end: there is a new link.
    fn accept(
        self: &Arc<Self>,
        entries: &mut Entries,
        index: u32,
        pending: Pending,
    ) -> Option<Arc<UdpLink>> {
        let (from, local) = (pending.from, pending.local);
        let established = pending.establish(&self.secret).ok()?;
        let permit = self.accepted.try_reserve().ok()?;
        let link = self.link(index, established, from, local, None);
        entries.0.insert(index, Entry::Link(Arc::clone(&link)));
        permit.send(UdpCarrier::new(Arc::clone(&link)));
        Some(link)
    }

    /// A new link.
    pub(super) fn link(
        self: &Arc<Self>,
        index: u32,
        established: Established,
        address: SocketAddr,
        local: Option<IpAddr>,
        finish: Option<Vec<u8>>,
    ) -> Arc<UdpLink> {
        let Established { peer, peer_index, sealer, opener } = established;
        let start = Start { sealer, peer_index, address, finish, takes: self.takes };
        Arc::new(UdpLink::new(Arc::clone(self), index, peer, start, local, opener))
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
        socket.state.try_send((&socket.file).into(), &transmit)
    }

    /// Datagrams of a size that one call takes.
    pub(crate) fn count_max(&self, to: SocketAddr, datagram_size: usize) -> usize {
        let socket = self.socket(to.is_ipv6());
        let by_kernel = socket.map_or(1, |socket| socket.state.max_gso_segments());
        by_kernel.min(SEND_SIZE_MAX / datagram_size.max(1)).max(1)
    }

    /// Watches whether the socket that reaches `to` takes more. Must be called inside a runtime.
    pub(crate) fn watch(&self, to: SocketAddr) -> io::Result<AsyncFd<OwnedFd>> {
        let socket = self.socket(to.is_ipv6()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        // A descriptor of its own: several links may wait.
        sys::watch_room(socket.file.try_clone()?)
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

    /// Datagrams that were lost since they came faster than they were read.
    pub(crate) fn overflowed(&self) -> u64 {
        let sockets = self.v4.iter().chain(&self.v6);
        // An old kernel does not tell.
        sockets.map(|socket| u64::from(sys::dropped_count(&socket.file).unwrap_or(0))).sum()
    }

    /// Links, dialers, and handshakes that wait.
    #[cfg(test)]
    pub(crate) fn entry_count(&self) -> usize {
        self.entries().0.len()
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // Nobody else writes to it, so it takes eight bytes.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_le_bytes());
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
