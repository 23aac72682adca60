//! One connection, and how requests and replies go over it. What they say is [`commands`](crate::commands)'s.
//!
//! ```text
//!   connect ──> ready ──request──> waiting ──reply──> ready
//!                 │                   │ timeout, hang-up, broken protocol
//!                 └──────────────────>└──────────> broken: every call fails
//! ```
//!
//! A server's error is an answer like others and leaves the connection ready.

use std::time::{Duration, Instant};

use zdb_resp::buffer::Buffer;
use zdb_resp::reply::{self, Parsed, Reply};
use zdb_resp::{BULK_SIZE_MAX, Limits, UNREAD_SIZE_MAX, write};

use crate::stream::{AddressCheck, ConnectFailure, Stream};
use crate::value::Value;
use crate::{ClientError, Endpoint, Timeouts};

/// Requests of a batch that are sent before the first reply is read. Small enough that a server's
/// replies to them never wait for us while we wait for the server.
pub const BATCH_COUNT_MAX: usize = 64;
/// Bytes of a batch that are sent before the first reply is read, unless one request is larger.
const BATCH_SIZE_MAX: usize = 1024 * 1024;
/// Room for what surrounds the largest bulk string in a reply.
const REPLY_OVERHEAD_SIZE: usize = 64 * 1024;
/// Longest text of a server's error that is kept, in characters.
const ERROR_SIZE_MAX: usize = 200;

/// A connection to a ZDB server.
#[derive(Debug)]
pub struct Client {
    endpoint: String,
    stream: Stream,
    request_timeout: Duration,
    limits: Limits,
    input: Buffer,
    output: Vec<u8>,
    is_broken: bool,
}

impl Client {
    /// Connects, and accepts values of up to 8 MiB.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(endpoint: &Endpoint, timeouts: &Timeouts) -> Result<Self, ClientError> {
        Self::connect_with(endpoint, timeouts, BULK_SIZE_MAX, None)
    }

    /// Connects to an address that `check` lets pass, and accepts values of up to `value_size_max`
    /// bytes. A reply with a larger one breaks the connection.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Forbidden`].
    pub fn connect_with(
        endpoint: &Endpoint,
        timeouts: &Timeouts,
        value_size_max: usize,
        check: Option<&AddressCheck>,
    ) -> Result<Self, ClientError> {
        let name = endpoint.to_string();
        let stream =
            Stream::connect(endpoint, timeouts.connect, check).map_err(|error| match error {
                ConnectFailure::Io(source) => {
                    ClientError::Connect { endpoint: name.clone(), source }
                }
                ConnectFailure::Forbidden(reason) => {
                    ClientError::Forbidden { endpoint: name.clone(), reason }
                }
            })?;
        let bulk_size_max = value_size_max.min(BULK_SIZE_MAX);
        let unread_size_max = bulk_size_max.saturating_add(REPLY_OVERHEAD_SIZE);
        Ok(Self {
            endpoint: name,
            stream,
            request_timeout: timeouts.request,
            limits: Limits { bulk_size_max, ..Limits::default() },
            input: Buffer::new(unread_size_max.min(UNREAD_SIZE_MAX)),
            output: Vec::new(),
            is_broken: false,
        })
    }

    /// Whether this connection failed and should be dropped.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Sends a command that has no reply.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn tell(&mut self, arguments: &[&[u8]]) -> Result<(), ClientError> {
        self.output.clear();
        write::request(&mut self.output, arguments);
        self.send(Instant::now() + self.request_timeout)
    }

    /// Waits for something that the server sends unasked; `None` if nothing came in time.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it is an error.
    pub fn next_push(&mut self, timeout: Duration) -> Result<Option<Value>, ClientError> {
        if self.is_broken {
            return Err(ClientError::Broken { endpoint: self.endpoint.clone() });
        }
        let deadline = Instant::now() + timeout;
        match self.receive("push", |reply| Some(Value::from(reply)), deadline) {
            Err(ClientError::Timeout { .. }) => {
                // What has come of it stays in the buffer.
                self.is_broken = false;
                Ok(None)
            }
            other => other?.map(Some),
        }
    }

    /// Whether something that the server sent unasked is here already.
    #[must_use]
    pub fn has_push(&self) -> bool {
        matches!(reply::parse(self.input.unread(), &self.limits), Ok(Parsed::Complete(..)))
    }

    /// One request and its reply, which `take` turns into a result; `None` says that the command has
    /// no such reply.
    pub(crate) fn one<T>(
        &mut self,
        command: &'static str,
        arguments: &[&[u8]],
        take: impl Fn(Reply<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        self.output.clear();
        write::request(&mut self.output, arguments);
        let deadline = Instant::now() + self.request_timeout;
        self.send(deadline)?;
        self.receive(command, &take, deadline)?
    }

    pub(crate) fn batch<A: AsRef<[u8]>, T>(
        &mut self,
        command: &'static str,
        requests: impl Iterator<Item = impl AsRef<[A]>>,
        take: impl Fn(Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, ClientError> {
        let mut answers = Vec::with_capacity(requests.size_hint().0);
        let mut requests = requests.peekable();
        while requests.peek().is_some() {
            self.output.clear();
            let mut count = 0;
            while count < BATCH_COUNT_MAX && self.output.len() < BATCH_SIZE_MAX {
                let Some(request) = requests.next() else { break };
                write::request(&mut self.output, request.as_ref());
                count += 1;
            }
            let deadline = Instant::now() + self.request_timeout;
            self.send(deadline)?;
            let first = answers.len();
            let mut refusal = None;
            // After a refusal the other replies still come, and must not be taken for later ones.
            while answers.len() - first < count {
                match self.receive(command, &take, deadline)? {
                    Ok(answer) => answers.push(answer),
                    Err(error) => {
                        refusal = refusal.or(Some(error));
                        count -= 1;
                    }
                }
            }
            if let Some(error) = refusal {
                return Err(error);
            }
        }
        Ok(answers)
    }

    fn send(&mut self, deadline: Instant) -> Result<(), ClientError> {
        if self.is_broken {
            return Err(ClientError::Broken { endpoint: self.endpoint.clone() });
        }
        let sent = self.stream.write_all(&self.output, deadline);
        if self.output.capacity() > 2 * BATCH_SIZE_MAX {
            self.output = Vec::new();
        }
        sent.map_err(|source| self.broken(source))
    }

    /// The next reply. The outer error breaks the connection, the inner one is the server's answer.
    fn receive<T>(
        &mut self,
        command: &'static str,
        take: impl Fn(Reply<'_>) -> Option<T>,
        deadline: Instant,
    ) -> Result<Result<T, ClientError>, ClientError> {
        loop {
            let wanted = match reply::parse(self.input.unread(), &self.limits) {
                Ok(Parsed::Complete(reply, size)) => {
                    let answer = match reply {
                        Reply::Error(text) => Err(printable(text)),
                        reply => Ok(take(reply)),
                    };
                    self.input.consume(size);
                    return self.answer(command, answer);
                }
                Ok(Parsed::Incomplete(wanted)) => wanted,
                Err(source) => {
                    self.is_broken = true;
                    return Err(ClientError::Protocol { endpoint: self.endpoint.clone(), source });
                }
            };
            while self.input.unread().len() < wanted {
                self.fill(deadline)?;
            }
        }
    }

    fn answer<T>(
        &mut self,
        command: &'static str,
        answer: Result<Option<T>, String>,
    ) -> Result<Result<T, ClientError>, ClientError> {
        let endpoint = self.endpoint.clone();
        match answer {
            Ok(Some(value)) => Ok(Ok(value)),
            Ok(None) => {
                self.is_broken = true;
                Err(ClientError::Unexpected { endpoint, command })
            }
            Err(text) => Ok(Err(ClientError::Refused { endpoint, command, text })),
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let received = match self.input.space() {
            Ok(space) => self.stream.read(space, deadline),
            Err(full) => {
                self.is_broken = true;
                let endpoint = self.endpoint.clone();
                return Err(ClientError::ReplySize { endpoint, size_max: full.size });
            }
        };
        match received {
            Ok(0) => {
                self.is_broken = true;
                Err(ClientError::Closed { endpoint: self.endpoint.clone() })
            }
            Ok(count) => {
                self.input.received(count);
                Ok(())
            }
            Err(source) => Err(self.broken(source)),
        }
    }

    fn broken(&mut self, source: std::io::Error) -> ClientError {
        self.is_broken = true;
        let endpoint = self.endpoint.clone();
        if source.kind() == std::io::ErrorKind::TimedOut {
            return ClientError::Timeout { endpoint, limit_ms: self.request_timeout.as_millis() };
        }
        ClientError::Io { endpoint, source }
    }
}

fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().take(ERROR_SIZE_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
