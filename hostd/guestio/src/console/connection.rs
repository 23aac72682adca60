//! One client: a request, and then an answer or a terminal.
//!
//! ```text
//!   head ──page, refusal──► answer ──sent──► gone
//!     └──────terminal─────► terminal ──closed, too slow──► gone
//! ```
//!
//! Head and answer have a deadline. A terminal may rest for ever. One that is [`OUTPUT_SIZE_MAX`] bytes
//! behind is spared what follows, and told how much that was when it has caught up; one that does not
//! catch up within [`STALLED_TIME_MAX`] is gone.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::sockopt;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::door::is_inside;
use super::machine::is_later;
use super::request::{self, HEAD_SIZE_MAX, Upgrade, Wanted};

/// Bytes that wait for one slow terminal. What the machine said last is 64 KiB of it.
pub(super) const OUTPUT_SIZE_MAX: usize = 256 << 10;
/// Bytes of one message of keys.
pub(super) const MESSAGE_SIZE_MAX: usize = 64 << 10;
/// Buffers of one terminal begin with so many bytes.
const BUFFER_SIZE: usize = 4096;
/// Messages in a row, before others get their turn.
const TURN: usize = 16;
/// How long a request may take, and its answer.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a terminal may be behind, and a peer silent that has something to acknowledge.
const STALLED_TIME_MAX: Duration = Duration::from_secs(60);
/// A peer that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A client.
pub(super) struct Connection {
    state: State,
    /// Whether it is in the machine's own network.
    pub(super) is_inside: bool,
    /// When it last said something.
    pub(super) heard: Instant,
}

enum State {
    Head { stream: TcpStream, bytes: Vec<u8>, deadline: Instant },
    Answer { stream: TcpStream, bytes: Vec<u8>, sent: usize, deadline: Instant },
    Terminal(Box<Terminal>),
    Gone,
}

struct Terminal {
    socket: WebSocket<TcpStream>,
    /// Since when something waits to be sent.
    behind_since: Option<Instant>,
    /// Bytes that it was spared since it was last told.
    left_out: usize,
    /// Whether messages came that were not looked at yet.
    has_more: bool,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing that others need to know.
    Nothing,
    /// It asks for a terminal: [`Connection::grant`] or [`Connection::refuse`].
    Asks(Upgrade),
    /// Keys.
    Keys(Vec<u8>),
    /// It is over.
    Gone,
}

impl Connection {
    /// Somebody who was just accepted.
    pub(super) fn new(
        stream: TcpStream,
        local: SocketAddr,
        peer: SocketAddr,
        now: Instant,
    ) -> Self {
        let is_inside = is_inside(local, peer);
        let state = match prepare(&stream) {
            Ok(()) => State::Head { stream, bytes: Vec::new(), deadline: now + HEAD_TIME_MAX },
            Err(_) => State::Gone,
        };
        Self { state, is_inside, heard: now }
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.state, State::Terminal(_))
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// Its descriptor and what to wait for; keys are not, while the machine has no room for them.
    pub(super) fn interest(&self, takes_keys: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Head { stream, .. } => Some((stream.as_fd(), PollFlags::IN)),
            State::Answer { stream, .. } => Some((stream.as_fd(), PollFlags::OUT)),
            State::Terminal(terminal) => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, takes_keys);
                flags.set(PollFlags::OUT, terminal.behind_since.is_some());
                Some((terminal.socket.get_ref().as_fd(), flags))
            }
            State::Gone => None,
        }
    }

    /// When it is to be looked at, if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Head { deadline, .. } | State::Answer { deadline, .. } => Some(*deadline),
            State::Terminal(terminal) => {
                terminal.behind_since.map(|since| since + STALLED_TIME_MAX)
            }
            State::Gone => None,
        }
    }

    /// Whether there are keys that came already, and no descriptor will tell.
    pub(super) fn has_more(&self) -> bool {
        matches!(&self.state, State::Terminal(terminal) if terminal.has_more)
    }

    /// Its descriptor is ready, or its deadline may have passed.
    pub(super) fn step(&mut self, now: Instant, room: usize) -> Event {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.state = State::Gone;
        }
        let event = match &mut self.state {
            State::Head { .. } => self.receive(now),
            State::Answer { stream, bytes, sent, .. } => {
                match stream.write(bytes.get(*sent..).unwrap_or_default()) {
                    Ok(size) => {
                        *sent += size;
                        if *sent >= bytes.len() { Event::Gone } else { Event::Nothing }
                    }
                    Err(error) if is_later(&error) => Event::Nothing,
                    Err(_) => Event::Gone,
                }
            }
            State::Terminal(terminal) => terminal.step(now, room),
            State::Gone => Event::Gone,
        };
        match &event {
            Event::Keys(_) => self.heard = now,
            Event::Gone => self.state = State::Gone,
            Event::Nothing | Event::Asks(_) => {}
        }
        event
    }

    fn receive(&mut self, now: Instant) -> Event {
        let State::Head { stream, bytes, .. } = &mut self.state else { return Event::Gone };
        let mut piece = [0; BUFFER_SIZE];
        match stream.read(&mut piece) {
            Ok(0) => return Event::Gone,
            Ok(size) => bytes.extend_from_slice(piece.get(..size).unwrap_or_default()),
            Err(error) if is_later(&error) => return Event::Nothing,
            Err(_) => return Event::Gone,
        }
        debug_assert!(bytes.len() <= HEAD_SIZE_MAX + BUFFER_SIZE);
        match request::read(bytes) {
            Wanted::More => Event::Nothing,
            Wanted::Terminal(upgrade) => Event::Asks(upgrade),
            Wanted::Answer(answer) => {
                self.answer(answer, now);
                self.step(now, 0)
            }
        }
    }

    fn answer(&mut self, bytes: Vec<u8>, now: Instant) {
        if let State::Head { stream, .. } = std::mem::replace(&mut self.state, State::Gone) {
            let deadline = now + ANSWER_TIME_MAX;
            self.state = State::Answer { stream, bytes, sent: 0, deadline };
        }
    }

    /// It gets no terminal.
    pub(super) fn refuse(&mut self, status: &str, reason: &str, now: Instant) {
        self.answer(request::refusal(status, reason), now);
    }

    /// It gets a terminal.
    pub(super) fn grant(&mut self, upgrade: &Upgrade) {
        let State::Head { mut stream, bytes, .. } = std::mem::replace(&mut self.state, State::Gone)
        else {
            return;
        };
        // Far smaller than what a socket that has sent nothing takes at once.
        if stream.write_all(&upgrade.answer).is_err() {
            return;
        }
        let early = bytes.get(upgrade.head_size..).unwrap_or_default().to_vec();
        let has_more = !early.is_empty();
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_SIZE)
            .write_buffer_size(BUFFER_SIZE)
            .max_write_buffer_size(OUTPUT_SIZE_MAX)
            .max_message_size(Some(MESSAGE_SIZE_MAX))
            .max_frame_size(Some(MESSAGE_SIZE_MAX));
        let socket = WebSocket::from_partially_read(stream, early, Role::Server, Some(config));
        let terminal = Terminal { socket, behind_since: None, left_out: 0, has_more };
        self.state = State::Terminal(Box::new(terminal));
    }

    /// Others need its place.
    pub(super) fn dismiss(&mut self) {
        self.state = State::Gone;
    }

    /// The machine said something.
    pub(super) fn show(&mut self, output: &[u8], now: Instant) {
        if let State::Terminal(terminal) = &mut self.state
            && !output.is_empty()
            && !terminal.show(output, now)
        {
            self.state = State::Gone;
        }
    }
}

impl Terminal {
    fn step(&mut self, now: Instant, room: usize) -> Event {
        let mut keys = Vec::new();
        self.has_more = false;
        for turn in 0.. {
            // What came already stays in its buffers until there is room for the longest message.
            if turn == TURN || keys.len() + MESSAGE_SIZE_MAX > room {
                self.has_more = true;
                break;
            }
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => keys.extend_from_slice(&bytes),
                Ok(Message::Text(text)) => keys.extend_from_slice(text.as_bytes()),
                Ok(_) => {}
                Err(Error::Io(error)) if is_later(&error) => break,
                Err(_) => return Event::Gone,
            }
        }
        // What waited, and answers to pings.
        if !self.flush(now) || !self.catch_up(now) {
            return Event::Gone;
        }
        if keys.is_empty() { Event::Nothing } else { Event::Keys(keys) }
    }

    /// Whether it is still there.
    fn show(&mut self, output: &[u8], now: Instant) -> bool {
        if self.left_out > 0 {
            self.left_out = self.left_out.saturating_add(output.len());
            return true;
        }
        match self.socket.write(Message::binary(output.to_vec())) {
            Ok(()) => self.flush(now),
            // It is in the buffer all the same.
            Err(Error::Io(error)) if is_later(&error) => self.flush(now),
            Err(Error::WriteBufferFull(_)) => {
                self.left_out = output.len();
                true
            }
            Err(_) => false,
        }
    }

    /// Tells what was left out, once there is room again.
    fn catch_up(&mut self, now: Instant) -> bool {
        if self.behind_since.is_some() || self.left_out == 0 {
            return true;
        }
        let count = std::mem::take(&mut self.left_out);
        self.show(format!("\r\n[{count} bytes were left out]\r\n").as_bytes(), now)
    }

    fn flush(&mut self, now: Instant) -> bool {
        match self.socket.flush() {
            Ok(()) => self.behind_since = None,
            Err(Error::Io(error)) if is_later(&error) => {
                self.behind_since.get_or_insert(now);
            }
            Err(_) => return false,
        }
        true
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    // Somebody types, and waits for the echo.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    let milliseconds = u32::try_from(STALLED_TIME_MAX.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, milliseconds)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const HANDSHAKE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    /// A terminal, and who looks at it.
    fn terminal() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        let now = Instant::now();
        let mut connection = Connection::new(stream, listener.local_addr().unwrap(), peer, now);
        client.write_all(HANDSHAKE).unwrap();
        loop {
            match connection.step(Instant::now(), 0) {
                Event::Asks(upgrade) => connection.grant(&upgrade),
                Event::Nothing => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
            if connection.is_terminal() {
                return (connection, client);
            }
        }
    }

    #[test]
    fn who_is_behind_is_spared_and_told_and_in_the_end_let_go() {
        let (mut connection, mut client) = terminal();
        let start = Instant::now();
        for _ in 0..4096 {
            connection.show(&[b'x'; 4096], start);
        }
        let deadline = connection.deadline().expect("it is behind");
        assert_eq!(deadline, start + STALLED_TIME_MAX);
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut seen = Vec::new();
        let mut bytes = [0; 64 << 10];
        while connection.deadline().is_some() || connection.step(start, 0) != Event::Nothing {
            if let Ok(size) = client.read(&mut bytes) {
                seen.extend_from_slice(&bytes[..size]);
            }
            assert_ne!(connection.step(start, 0), Event::Gone);
        }
        while let Ok(size) = client.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..size]);
        }
        let text = String::from_utf8_lossy(&seen);
        assert!(text.contains("bytes were left out]"), "it is told");
        assert!(seen.len() < 4096 * 4096, "it was spared");

        for _ in 0..4096 {
            connection.show(&[b'x'; 4096], start);
        }
        assert_eq!(connection.step(start + STALLED_TIME_MAX, 0), Event::Gone);
        assert!(connection.is_gone());
    }

    #[test]
    fn half_a_request_has_a_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        let now = Instant::now();
        let mut connection = Connection::new(stream, address, peer, now);
        assert_eq!(connection.step(now, 0), Event::Nothing);
        assert_eq!(connection.step(now + HEAD_TIME_MAX, 0), Event::Gone);
    }
}
