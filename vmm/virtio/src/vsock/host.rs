//! The host's ends of connections: unix sockets, none of which is ever waited for.
//!
//! All of them, and the listener, are in one epoll instance, so that whoever runs the device
//! watches one descriptor. They are watched for edges: an event says once that there is something,
//! and whoever was told remembers it until a read or write would block. A socket that the guest has
//! no room for therefore costs nothing while it waits.
//!
//! A client on the host begins with a line, `CONNECT <port>`, and only then is a connection. Those
//! that have not said it yet are few and have little time, because anybody can be slow.
//!
//! `SIGPIPE` is ignored, as every Rust program does from its start: a peer that is gone is an error.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, SocketFlags};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::listener::Listener;
use super::mux::{ConnectionId, Read};

/// Clients that have not said yet what they want; more wait in the kernel.
pub(super) const WAITING_MAX: usize = 32;
/// How long a client may take to say it.
pub(super) const WAITING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest line of a client, its end included: `CONNECT 4294967295` has 19 bytes.
const LINE_SIZE_MAX: usize = 32;
/// Events taken in one go; more are taken in the next.
const EVENTS_MAX: usize = 64;
/// How long to leave clients alone when the host has no descriptor for them.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Payload in more pieces than this is collected first: a guest can make thousands of one byte,
/// and each would cost a system call.
const PIECES_MAX: usize = 4;
/// An empty backlog keeps memory up to this size.
const BACKLOG_KEPT: usize = 4096;

/// How the listener is known to epoll.
const LISTENER: u64 = u64::MAX;
/// How waiting clients are told from connections.
const WAITING: u64 = 1 << 63;

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostEvent {
    /// Something for a connection.
    Connection {
        id: ConnectionId,
        /// There is something to be read.
        is_readable: bool,
        /// What was kept back may be written.
        is_writable: bool,
        /// The peer has closed; it takes nothing more.
        is_hung_up: bool,
    },
    /// A client wants to be connected to this port of the guest.
    Client {
        /// For [`Host::adopt`], or [`Host::dismiss`].
        client: u64,
        port: u32,
    },
}

/// What came of writing to the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes that have left our hands.
    pub(super) size: u32,
    /// It takes no more, and what we had for it is gone.
    pub(super) is_broken: bool,
}

/// The host's ends.
#[derive(Debug)]
pub(super) struct Host {
    epoll: OwnedFd,
    listener: Arc<Listener>,
    can_accept: bool,
    /// Not before this.
    accepts_again: Option<Instant>,
    /// In order of arrival, which is that of their deadlines.
    waiting: BTreeMap<u64, Waiting>,
    next_waiting: u64,
    sockets: HashMap<ConnectionId, Socket>,
}

#[derive(Debug)]
struct Waiting {
    socket: OwnedFd,
    deadline: Instant,
}

#[derive(Debug)]
struct Socket {
    stream: OwnedFd,
    /// What the peer could not take yet; no more than the connection's buffer size.
    backlog: VecDeque<u8>,
}

impl Host {
    /// No connections yet.
    pub(super) fn new(listener: Arc<Listener>) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, listener.socket(), epoll::EventData::new_u64(LISTENER), flags)?;
        Ok(Self {
            epoll,
            listener,
            can_accept: true,
            accepts_again: None,
            waiting: BTreeMap::new(),
            next_waiting: WAITING,
            sockets: HashMap::new(),
        })
    }

    /// Readable when [`poll`](Self::poll) has something to do.
    pub(super) const fn descriptor(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Collects what has happened. True if there may be more.
    pub(super) fn poll(&mut self, into: &mut Vec<HostEvent>, now: Instant) -> Result<bool, Errno> {
        let mut events = [MaybeUninit::uninit(); EVENTS_MAX];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let is_full = match epoll::wait(&self.epoll, &mut events, Some(&at_once)) {
            Ok((events, rest)) => {
                for event in events {
                    self.happened(event.data.u64(), event.flags, into);
                }
                rest.is_empty()
            }
            Err(Errno::INTR) => true,
            Err(error) => return Err(error),
        };
        self.accept(into, now);
        Ok(is_full)
    }

    /// Whether clients may have been left in the kernel that could be let in now.
    pub(super) fn has_clients(&self) -> bool {
        self.can_accept && self.accepts_again.is_none() && self.waiting.len() < WAITING_MAX
    }

    /// When [`expire`](Self::expire) or [`poll`](Self::poll) has something to do though nothing
    /// happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let first = self.waiting.first_key_value().map(|(_, waiting)| waiting.deadline);
        first.into_iter().chain(self.accepts_again).min()
    }

    /// Turns clients away that did not say what they want in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(first) = self.waiting.first_entry() {
            if first.get().deadline > now {
                return;
            }
            first.remove();
        }
    }

    /// The client becomes the host's end of this connection. False if it could not be.
    pub(super) fn adopt(&mut self, client: u64, id: ConnectionId) -> bool {
        let Some(waiting) = self.waiting.remove(&client) else { return false };
        let data = epoll::EventData::new_u64(id.0);
        let is_watched = epoll::modify(&self.epoll, &waiting.socket, data, watched()).is_ok();
        if is_watched {
            self.sockets.insert(id, Socket::new(waiting.socket));
        }
        is_watched
    }

    /// The client is turned away.
    pub(super) fn dismiss(&mut self, client: u64) {
        self.waiting.remove(&client);
    }

    /// Connects to what listens on `port` of the host, as the host's end of this connection.
    pub(super) fn connect(&mut self, id: ConnectionId, port: u32) -> Result<(), Errno> {
        let stream = self.listener.connect(port)?;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(id.0), watched())?;
        self.sockets.insert(id, Socket::new(stream));
        Ok(())
    }

    /// Tells the client that it is connected. False if it is not there any more: nothing was
    /// written to it before, so that there is room for the line.
    pub(super) fn greet(&self, id: ConnectionId, port: u32) -> bool {
        let line = format!("OK {port}\n");
        let Some(socket) = self.sockets.get(&id) else { return false };
        rustix::io::write(&socket.stream, line.as_bytes()) == Ok(line.len())
    }

    /// Hands over payload, in `count` pieces at most: writes what can be written, keeps the rest.
    pub(super) fn write<'a>(
        &mut self,
        id: ConnectionId,
        pieces: impl Iterator<Item = VolatileSlice<'a>>,
        count: usize,
    ) -> Written {
        match self.sockets.get_mut(&id) {
            Some(socket) if count <= PIECES_MAX => socket.write(pieces),
            Some(socket) => socket.write_collected(pieces),
            None => Written { size: 0, is_broken: true },
        }
    }

    /// Writes what was kept back.
    pub(super) fn flush(&mut self, id: ConnectionId) -> Written {
        let nothing = Written { size: 0, is_broken: false };
        self.sockets.get_mut(&id).map_or(nothing, Socket::flush)
    }

    /// Reads what there is into the guest's memory.
    pub(super) fn read<'a>(
        &mut self,
        id: ConnectionId,
        pieces: impl Iterator<Item = VolatileSlice<'a>>,
    ) -> Read {
        self.sockets.get(&id).map_or(Read::End, |socket| socket.read(pieces))
    }

    /// Ends one direction.
    pub(super) fn shut(&self, id: ConnectionId, direction: Shutdown) {
        if let Some(socket) = self.sockets.get(&id) {
            // A peer that is gone is told nothing, and is found out by the next event.
            let _ = rustix::net::shutdown(&socket.stream, direction);
        }
    }

    /// Ends a connection. What was written is still delivered; what was kept back is not.
    pub(super) fn close(&mut self, id: ConnectionId) {
        self.sockets.remove(&id);
    }

    fn happened(&mut self, token: u64, flags: epoll::EventFlags, into: &mut Vec<HostEvent>) {
        use epoll::EventFlags as Flags;
        if token == LISTENER {
            self.can_accept = true;
        } else if token & WAITING != 0 {
            into.extend(self.hear(token));
        } else {
            into.push(HostEvent::Connection {
                id: ConnectionId(token),
                is_readable: flags.intersects(Flags::IN | Flags::RDHUP | Flags::HUP | Flags::ERR),
                is_writable: flags.contains(Flags::OUT),
                is_hung_up: flags.contains(Flags::HUP),
            });
        }
    }

    /// Listens to what a client says; turns it away if that is nonsense.
    fn hear(&mut self, client: u64) -> Option<HostEvent> {
        let waiting = self.waiting.get(&client)?;
        match read_line(&waiting.socket) {
            Line::Port(port) => Some(HostEvent::Client { client, port }),
            Line::Unfinished => None,
            Line::Nonsense => {
                self.waiting.remove(&client);
                None
            }
        }
    }

    /// Lets clients in, as many as may wait.
    fn accept(&mut self, into: &mut Vec<HostEvent>, now: Instant) {
        if self.accepts_again.is_some_and(|at| at > now) {
            return;
        }
        self.accepts_again = None;
        for _ in 0..WAITING_MAX {
            if !self.has_clients() {
                return;
            }
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(self.listener.socket(), flags) {
                Ok(socket) => into.extend(self.let_in(socket, now)),
                Err(Errno::AGAIN) => self.can_accept = false,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, "vsock: a client cannot be let in");
                    self.accepts_again = Some(now + ACCEPT_RETRY_INTERVAL);
                }
            }
        }
    }

    /// Lets a client in, which often has said already what it wants.
    fn let_in(&mut self, socket: OwnedFd, now: Instant) -> Option<HostEvent> {
        let client = self.next_waiting;
        self.next_waiting += 1;
        let data = epoll::EventData::new_u64(client);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        // Without being watched it would never be heard of again: it is closed.
        epoll::add(&self.epoll, &socket, data, flags).ok()?;
        self.waiting.insert(client, Waiting { socket, deadline: now + WAITING_TIMEOUT });
        self.hear(client)
    }
}

/// What the socket of a connection is watched for.
fn watched() -> epoll::EventFlags {
    use epoll::EventFlags as Flags;
    Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET
}

impl Socket {
    const fn new(stream: OwnedFd) -> Self {
        Self { stream, backlog: VecDeque::new() }
    }

    fn write<'a>(&mut self, mut pieces: impl Iterator<Item = VolatileSlice<'a>>) -> Written {
        if !self.backlog.is_empty() {
            self.keep(pieces);
            return Written { size: 0, is_broken: false };
        }
        let mut size = 0;
        while let Some(piece) = pieces.next() {
            let Ok(written) = self.write_piece(&piece) else {
                return Written { size: 0, is_broken: true };
            };
            size += written;
            if written < piece.len() {
                self.keep(piece.offset(written).into_iter().chain(pieces));
                break;
            }
        }
        Written { size: u32::try_from(size).unwrap_or(u32::MAX), is_broken: false }
    }

    fn write_collected<'a>(&mut self, pieces: impl Iterator<Item = VolatileSlice<'a>>) -> Written {
        let is_blocked = !self.backlog.is_empty();
        self.keep(pieces);
        if is_blocked { Written { size: 0, is_broken: false } } else { self.flush() }
    }

    /// Writes one piece until it is gone, or would block: only then is there an edge to come.
    fn write_piece(&self, piece: &VolatileSlice<'_>) -> io::Result<usize> {
        let mut written = 0;
        while let Ok(rest) = piece.offset(written)
            && !rest.is_empty()
        {
            match outcome(self.stream.as_fd().write_volatile(&rest)) {
                Ok(size) => written += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn keep<'a>(&mut self, pieces: impl Iterator<Item = VolatileSlice<'a>>) {
        let mut chunk = [0; 4096];
        for piece in pieces {
            let mut kept = 0;
            while let Ok(rest) = piece.offset(kept)
                && !rest.is_empty()
            {
                let size = rest.copy_to(&mut chunk);
                self.backlog.extend(&chunk[..size]);
                kept += size;
            }
        }
    }

    fn flush(&mut self) -> Written {
        let mut size = 0;
        while !self.backlog.is_empty() {
            match rustix::io::write(&self.stream, self.backlog.as_slices().0) {
                Ok(written) => {
                    self.backlog.drain(..written);
                    size += written;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.backlog = VecDeque::new();
                    return Written { size: 0, is_broken: true };
                }
            }
        }
        if self.backlog.is_empty() && self.backlog.capacity() > BACKLOG_KEPT {
            self.backlog = VecDeque::new();
        }
        Written { size: u32::try_from(size).unwrap_or(u32::MAX), is_broken: false }
    }

    fn read<'a>(&self, pieces: impl Iterator<Item = VolatileSlice<'a>>) -> Read {
        let mut total = 0;
        for mut piece in pieces.take(PIECES_MAX) {
            match outcome(self.stream.as_fd().read_volatile(&mut piece)) {
                Ok(0) if total == 0 => return Read::End,
                Ok(size) => {
                    total += size;
                    if size < piece.len() {
                        break;
                    }
                }
                // Whatever it is, the next read says it again.
                Err(_) if total > 0 => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Blocked,
                Err(_) => return Read::Failed,
            }
        }
        Read::Bytes(u32::try_from(total).unwrap_or(u32::MAX))
    }
}

fn outcome(result: Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    result.map_err(|error| match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    })
}

/// What a client has said.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Port(u32),
    Unfinished,
    Nonsense,
}

/// Takes the line that a client begins with, and not a byte more: what follows is the guest's.
fn read_line(socket: &OwnedFd) -> Line {
    let mut bytes = [0; LINE_SIZE_MAX];
    let (size, _) = match rustix::net::recv(socket, &mut bytes, RecvFlags::PEEK) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Line::Unfinished,
        Err(_) => return Line::Nonsense,
    };
    let Some(end) = bytes[..size].iter().position(|byte| *byte == b'\n') else {
        let may_go_on = size > 0 && size < LINE_SIZE_MAX;
        return if may_go_on { Line::Unfinished } else { Line::Nonsense };
    };
    let mut taken = 0;
    while taken <= end {
        // It was there a moment ago, and nobody else reads it.
        match rustix::io::read(socket, &mut bytes[taken..=end]) {
            Ok(size) if size > 0 => taken += size,
            Err(Errno::INTR) => {}
            _ => return Line::Nonsense,
        }
    }
    parse_line(&bytes[..end]).map_or(Line::Nonsense, Line::Port)
}

/// The port of `CONNECT <port>`, in whichever case, with whichever blanks, as clients of other
/// VMMs write it.
fn parse_line(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|word| word.eq_ignore_ascii_case("connect"))?;
    let port = words.next()?;
    // `parse` would take a sign.
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit()) && words.next().is_none();
    port.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_port() {
        let table: [(&str, Option<u32>); 14] = [
            ("CONNECT 52", Some(52)),
            ("connect 0", Some(0)),
            ("CONNECT 4294967295\r", Some(u32::MAX)),
            ("  Connect\t7 ", Some(7)),
            ("CONNECT 4294967296", None),
            ("CONNECT +5", None),
            ("CONNECT -5", None),
            ("CONNECT 5 6", None),
            ("CONNECT", None),
            ("CONNECT five", None),
            ("CONNECT5", None),
            ("", None),
            ("GET / HTTP/1.1", None),
            ("OK 5", None),
        ];
        for (line, port) in table {
            assert_eq!(parse_line(line.as_bytes()), port, "{line:?}");
        }
        assert_eq!(parse_line(b"CONNECT \xff"), None);
    }
}
