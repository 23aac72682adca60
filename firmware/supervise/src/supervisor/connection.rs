//! One client of the socket: bytes in, bytes out, both bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use crate::program::DESCRIPTOR_COUNT_MAX;
use crate::socket;
use crate::wire::{REPLY_SIZE_MAX, REQUEST_SIZE_MAX, Reply};

/// Longest time that a client may take for a request, and to take its reply.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing: it is to ask.
    Asking,
    /// That this program is gone.
    Stop(String),
    /// That this program is over.
    Wait(String),
    /// Whatever happens.
    Watch,
}

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    output: Vec<u8>,
    pub(super) stage: Stage,
    /// What the socket is polled for.
    pub(super) interest: EventFlags,
    /// When it last finished something.
    since: Instant,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Vec::new(),
            descriptors: Vec::new(),
            output: Vec::new(),
            stage: Stage::Asking,
            interest: EventFlags::IN,
            since: Instant::now(),
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What the socket should be polled for: requests only from who waits for nothing.
    pub(super) fn wanted(&self) -> EventFlags {
        let mut wanted = EventFlags::RDHUP;
        wanted.set(EventFlags::IN, self.is_asking());
        wanted.set(EventFlags::OUT, !self.output.is_empty());
        wanted
    }

    /// When it is dropped unless something happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = self.stage != Stage::Asking && self.output.is_empty();
        (!waits).then(|| self.since + REQUEST_TIMEOUT)
    }

    fn is_asking(&self) -> bool {
        self.stage == Stage::Asking && self.output.is_empty()
    }

    /// Reads what is there. False at the end of the client.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let received = socket::receive(self.socket.as_fd(), &mut buffer, &mut self.descriptors)?;
        if self.descriptors.len() > DESCRIPTOR_COUNT_MAX {
            return Err(io::Error::other("too many descriptors"));
        }
        let Some(count) = received else { return Ok(true) };
        self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(count > 0)
    }

    /// The next request's line, with the descriptors that came so far.
    pub(super) fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        if !self.is_asking() {
            return Ok(None);
        }
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else {
            if self.input.len() >= REQUEST_SIZE_MAX {
                return Err(io::Error::other("a request without an end"));
            }
            return Ok(None);
        };
        let rest = self.input.split_off(end + 1);
        let line = std::mem::replace(&mut self.input, rest);
        self.since = Instant::now();
        Ok(Some((line, std::mem::take(&mut self.descriptors))))
    }

    /// Sends a reply, or keeps it until the client takes it.
    pub(super) fn send(&mut self, reply: &Reply) -> io::Result<()> {
        if self.output.is_empty() {
            self.since = Instant::now();
        }
        serde_json::to_writer(&mut self.output, reply)?;
        self.output.push(b'\n');
        if self.output.len() > REPLY_SIZE_MAX {
            return Err(io::Error::other("the client takes nothing"));
        }
        self.flush()
    }

    /// Sends what is kept, as far as the client takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let count = socket::send(self.socket.as_fd(), &self.output, &[])?;
        self.output.drain(..count);
        if count > 0 {
            self.since = Instant::now();
        }
        Ok(())
    }
}
