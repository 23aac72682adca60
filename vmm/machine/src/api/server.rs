//! The server: one thread, one poll, a bounded number of connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::connection::{Connection, Next, Timeouts};
use super::control::Control;
use super::dispatch::dispatch;
use super::listener::Listener;

/// Connections at a time. When one more comes, the one that would have been closed first makes room.
pub const CONNECTION_COUNT_MAX: usize = 16;
/// Longest wait, at the end, for answers to be taken.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause in accepting when the host has no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server of one machine's API.
pub struct Server {
    listener: Listener,
    control: Arc<dyn Control>,
    stop: Arc<OwnedFd>,
    connections: Vec<Connection>,
    pub(super) timeouts: Timeouts,
    accept_again: Option<Instant>,
}

/// Ends a server, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    /// Lets [`Server::run`] return, as soon as answers that are on their way are sent.
    pub fn stop(&self) {
        // Any number will do. Fails when the counter is full, and then it was called before.
        let _ = rustix::io::write(&*self.0, &[1; 8]);
    }
}

impl Server {
    /// A server that is yet to run.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(listener: Listener, control: Arc<dyn Control>) -> io::Result<(Self, Stopper)> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let server = Self {
            listener,
            control,
            stop: Arc::clone(&stop),
            connections: Vec::new(),
            timeouts: Timeouts::default(),
            accept_again: None,
        };
        Ok((server, Stopper(stop)))
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// When the host can't poll any more.
    pub fn run(mut self) -> io::Result<()> {
        let mut end = None;
        loop {
            let ready = self.wait(end)?;
            let now = Instant::now();
            if ready.stop && end.is_none() {
                end = Some(now + DRAIN_TIMEOUT);
            }
            self.serve(&ready.connections);
            match end {
                None if ready.listener => self.accept(now),
                None => {}
                Some(end) => {
                    self.connections.retain(Connection::is_answering);
                    if self.connections.is_empty() || now >= end {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn wait(&self, end: Option<Instant>) -> io::Result<Ready> {
        let now = Instant::now();
        // What is not waited for still reports errors, which are then harmless: a full turn of the
        // loop finds nothing to do but a deadline.
        let when = |wanted, flags| if wanted { flags } else { PollFlags::empty() };
        let accepting = end.is_none() && self.accept_again.is_none_or(|again| again <= now);
        let mut descriptors = vec![
            PollFd::from_borrowed_fd(self.stop.as_fd(), when(end.is_none(), PollFlags::IN)),
            PollFd::from_borrowed_fd(self.listener.as_fd(), when(accepting, PollFlags::IN)),
        ];
        for connection in &self.connections {
            let interest = connection.interest();
            descriptors.push(PollFd::from_borrowed_fd(connection.as_fd(), interest));
        }
        let timeout = self.timeout(end, now);
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::nothing(self.connections.len())),
            Err(error) => return Err(error.into()),
        }
        let mut ready = descriptors.iter().map(|descriptor| !descriptor.revents().is_empty());
        Ok(Ready {
            stop: ready.next().unwrap_or_default(),
            listener: ready.next().unwrap_or_default() && accepting,
            connections: ready.collect(),
        })
    }

    /// Until the first deadline; not at all when a request waits.
    fn timeout(&self, end: Option<Instant>, now: Instant) -> Option<Timespec> {
        if self.connections.iter().any(Connection::is_ready) {
            return Some(Timespec::default());
        }
        let deadlines = self.connections.iter().map(Connection::deadline);
        let first = deadlines.chain(end).chain(self.accept_again).min()?;
        let wait = first.saturating_duration_since(now);
        Timespec::try_from(wait).ok()
    }

    /// One step for each connection that has something to do.
    fn serve(&mut self, ready: &[bool]) {
        let mut kept = Vec::with_capacity(self.connections.len());
        for (index, mut connection) in self.connections.drain(..).enumerate() {
            // Looked up each time: the call before may have taken long.
            let now = Instant::now();
            let socket_is_ready = ready.get(index).copied().unwrap_or_default();
            let next = if socket_is_ready || connection.is_ready() {
                connection.step(socket_is_ready, now, |call| {
                    let (method, target) = (call.method.to_owned(), call.target.to_owned());
                    let answer = dispatch(&*self.control, call);
                    let status = answer.response.status;
                    tracing::debug!(method, target, status, "request");
                    answer
                })
            } else if connection.deadline() <= now {
                connection.expire(now)
            } else {
                Next::Stay
            };
            match next {
                Next::Stay => kept.push(connection),
                Next::Close => {}
                Next::Attach => connection.attach(),
            }
        }
        self.connections = kept;
    }

    fn accept(&mut self, now: Instant) {
        self.accept_again = None;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = match accept_with(self.listener.as_fd(), flags) {
            Ok(socket) => UnixStream::from(socket),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                self.accept_again = Some(now + ACCEPT_PAUSE);
                return;
            }
            // Gone before we came.
            Err(_) => return,
        };
        if self.connections.len() >= CONNECTION_COUNT_MAX {
            let oldest = self.connections.iter().enumerate().min_by_key(|(_, c)| c.deadline());
            if let Some((index, _)) = oldest {
                self.connections.swap_remove(index);
            }
        }
        self.connections.push(Connection::new(stream, self.timeouts, now));
    }
}

/// What a poll found.
struct Ready {
    stop: bool,
    listener: bool,
    connections: Vec<bool>,
}

impl Ready {
    fn nothing(connection_count: usize) -> Self {
        Self { stop: false, listener: false, connections: vec![false; connection_count] }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}
