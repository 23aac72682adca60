//! Asking a supervisor.
//!
//! Every call has a connection of its own: a client can be cloned and shared, and a call that fails spoils
//! no other. Every call ends in time; what a supervisor that died left undone is an error, and asking
//! again is safe.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::program::{DESCRIPTOR_COUNT_MAX, Program};
use crate::socket;
use crate::status::Status;
use crate::wire::{REPLY_SIZE_MAX, REQUEST_SIZE_MAX, Refusal, RefusalKind, Reply, Request};

/// Longest time for a call, besides what it waits for by its nature.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before the next try when the supervisor's queue is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(2);

/// A supervisor's address.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves that socket, or the connection broke.
    #[error("supervisor at {}: {source}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No reply in time.
    #[error("supervisor at {}: no reply within {limit_ms} ms", socket.display())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// The limit.
        limit_ms: u128,
    },
    /// What came is no reply to this request.
    #[error("supervisor at {}: unexpected reply: {reason}", socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The request or a descriptor list is larger than the protocol allows.
    #[error("a request of {size} bytes and {descriptors} descriptors is too large")]
    Size {
        /// Bytes.
        size: usize,
        /// Descriptors.
        descriptors: usize,
    },
    /// The supervisor says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ClientError {
    /// Whether there is no such program.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.is(RefusalKind::Absent)
    }

    /// Whether another program runs under that name.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.is(RefusalKind::Conflict)
    }

    fn is(&self, kind: RefusalKind) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.kind == kind)
    }
}

impl Client {
    /// Finds a supervisor.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn connect(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let client = Self { socket: socket.into() };
        client.list()?;
        Ok(client)
    }

    /// Where it is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts a program, or finds it: running already or waiting for its restart, if it is exactly this
    /// one. One that is over starts afresh. The program finds `descriptors` at
    /// [`DESCRIPTOR_FIRST`](crate::program::DESCRIPTOR_FIRST) and behind; when it was found, those that it
    /// got first stay.
    ///
    /// # Errors
    /// A rule is broken, another program has that name ([`ClientError::is_conflict`]), or the system
    /// cannot start it. Then nothing is left of it.
    pub fn start(
        &self,
        program: &Program,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Status, ClientError> {
        let count = descriptors.len();
        let request = Request::Start { program: Box::new(program.clone()), descriptors: count };
        match self.call(&request, descriptors, CALL_TIMEOUT)? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Ends a program and all that it started, and forgets it: with SIGTERM, and after `grace` with
    /// SIGKILL. Returns when nothing of it runs any more; how it was last, none if there was no such
    /// program.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stop(&self, name: &str, grace: Duration) -> Result<Option<Status>, ClientError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Stop { name: name.to_owned(), grace_ms };
        match self.call(&request, &[], grace.saturating_add(CALL_TIMEOUT))? {
            Reply::Stopped(status) => Ok(status.map(|status| *status)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// All programs, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn list(&self) -> Result<Vec<Status>, ClientError> {
        match self.call(&Request::List {}, &[], CALL_TIMEOUT)? {
            Reply::Statuses(statuses) => Ok(statuses),
            other => Err(self.unexpected(&other)),
        }
    }

    /// One program, now; none if there is no such.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn find(&self, name: &str) -> Result<Option<Status>, ClientError> {
        Ok(self.list()?.into_iter().find(|status| status.name == name))
    }

    /// Waits until a program is over: ended for good, or given up.
    ///
    /// # Errors
    /// There is no such program ([`ClientError::is_absent`]), it was stopped meanwhile (the same), or the
    /// time is over.
    pub fn wait(&self, name: &str, timeout: Duration) -> Result<Status, ClientError> {
        let request = Request::Wait { name: name.to_owned() };
        match self.call(&request, &[], timeout)? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Follows what happens to programs.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn watch(&self) -> Result<Watch, ClientError> {
        let mut connection = Connection::open(self, CALL_TIMEOUT)?;
        connection.send(&Request::Watch {}, &[])?;
        match connection.receive()? {
            Reply::Statuses(statuses) => Ok(Watch { connection, statuses }),
            Reply::Error(refusal) => Err(refusal.into()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Reply, ClientError> {
        let mut connection = Connection::open(self, timeout)?;
        connection.send(request, descriptors)?;
        match connection.receive()? {
            Reply::Error(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    fn unexpected(&self, reply: &Reply) -> ClientError {
        let text = serde_json::to_string(reply).unwrap_or_default();
        self.protocol(text.chars().take(100).collect())
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), reason }
    }

    fn io(&self, source: io::Error, limit: Duration) -> ClientError {
        let socket = self.socket.clone();
        if matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
            return ClientError::Timeout { socket, limit_ms: limit.as_millis() };
        }
        ClientError::Io { socket, source }
    }
}

/// News of programs, one after the other.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
    statuses: Vec<Status>,
}

/// What happened to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Its state is another.
    Changed(Box<Status>),
    /// It is forgotten.
    Removed(String),
}

impl Watch {
    /// All programs as they were when the watch began.
    #[must_use]
    pub fn statuses(&self) -> &[Status] {
        &self.statuses
    }

    /// The next news; none if there are none within `timeout`.
    ///
    /// # Errors
    /// The supervisor ended, or dropped a watcher that took no news for too long: watch again.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<News>, ClientError> {
        self.connection.limit(timeout);
        match self.connection.receive() {
            Ok(Reply::Changed(status)) => Ok(Some(News::Changed(status))),
            Ok(Reply::Removed(name)) => Ok(Some(News::Removed(name))),
            Ok(other) => Err(self.connection.client.unexpected(&other)),
            Err(ClientError::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What becomes readable with news, for those who wait for something else beside them. News that were
/// received already do not make it so: take all that [`Watch::next`] has at once before waiting.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}

/// One conversation.
#[derive(Debug)]
struct Connection {
    client: Client,
    socket: OwnedFd,
    received: VecDeque<u8>,
    limit: Duration,
    deadline: Instant,
}

impl Connection {
    fn open(client: &Client, limit: Duration) -> Result<Self, ClientError> {
        let began = Instant::now();
        let socket = loop {
            match socket::connect(&client.socket) {
                // Many wait to be let in.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() < limit =>
                {
                    std::thread::sleep(CONNECT_PAUSE);
                }
                other => break other.map_err(|error| client.io(error, limit))?,
            }
        };
        let mut connection = Self {
            client: client.clone(),
            socket,
            received: VecDeque::new(),
            limit,
            deadline: Instant::now(),
        };
        connection.limit(limit);
        Ok(connection)
    }

    /// From now on, so much time is left.
    fn limit(&mut self, limit: Duration) {
        // A limit that no clock can hold is as good as a day.
        let now = Instant::now();
        self.limit = limit;
        self.deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(86_400));
    }

    fn send(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| self.client.protocol(error.to_string()))?;
        line.push(b'\n');
        let (size, count) = (line.len(), descriptors.len());
        if size > REQUEST_SIZE_MAX || count > DESCRIPTOR_COUNT_MAX {
            return Err(ClientError::Size { size, descriptors: count });
        }
        let mut sent = 0;
        while sent < size {
            let rest = line.get(sent..).unwrap_or_default();
            // Beside the first byte, once.
            let descriptors = if sent == 0 { descriptors } else { &[] };
            let step = socket::wait_writable(self.socket.as_fd(), self.deadline)
                .and_then(|()| socket::send(self.socket.as_fd(), rest, descriptors));
            sent += step.map_err(|error| self.client.io(error, self.limit))?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Reply, ClientError> {
        let mut searched = 0;
        let end = loop {
            let found = self.received.iter().skip(searched).position(|byte| *byte == b'\n');
            if let Some(position) = found {
                break searched + position;
            }
            searched = self.received.len();
            if searched >= REPLY_SIZE_MAX {
                return Err(self.client.protocol("it has no end".to_owned()));
            }
            self.fill().map_err(|error| self.client.io(error, self.limit))?;
        };
        let line: Vec<u8> = self.received.drain(..=end).collect();
        serde_json::from_slice(&line).map_err(|error| self.client.protocol(error.to_string()))
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            socket::wait_readable(self.socket.as_fd(), self.deadline)?;
            let received = socket::receive(self.socket.as_fd(), &mut buffer, &mut Vec::new())?;
            match received {
                // Woken for nothing.
                None => {}
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(count) => {
                    self.received.extend(buffer.get(..count).unwrap_or_default());
                    return Ok(());
                }
            }
        }
    }
}
