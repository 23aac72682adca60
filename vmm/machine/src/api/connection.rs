//! One connection: bytes in, requests, bytes out, and a deadline at every moment.
//!
//! ```text
//!             first byte            last byte of a request
//!   idle ───────────────► reading ─────────────────────────► answering ──┐
//!    ▲  IDLE               REQUEST: 408, close                WRITE       │ sent
//!    └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! While an answer is being sent nothing is read, so a client that doesn't read its answers can't
//! make us keep more than one.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::control::Attach;
use super::dispatch::{Answer, Call};
use super::http::{self, BODY_SIZE_MAX, HEAD_SIZE_MAX, Response};

/// Descriptors that a request can bring: the queues of a network card.
const DESCRIPTOR_COUNT_MAX: usize = vmm_spec::QUEUE_COUNT_MAX as usize;
/// Bytes that are read at once.
const READ_SIZE: usize = 4 << 10;

/// How long a connection may take for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// Until the first byte of a request.
    pub(super) idle: Duration,
    /// From the first byte of a request to its last.
    pub(super) request: Duration,
    /// From the first byte of an answer to its last.
    pub(super) write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            request: Duration::from_secs(10),
            write: Duration::from_secs(10),
        }
    }
}

/// What becomes of a connection after a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Close,
    /// It is a console's now.
    Attach,
}

/// What follows an answer.
enum Then {
    Read,
    Close,
    Attach(Attach),
}

/// A connection.
pub(super) struct Connection {
    stream: UnixStream,
    timeouts: Timeouts,
    deadline: Instant,
    input: Vec<u8>,
    /// Whether `input` was looked at since it last changed.
    looked_at: bool,
    descriptors: Vec<OwnedFd>,
    output: Vec<u8>,
    sent: usize,
    then: Then,
}

impl Connection {
    /// A connection that was just accepted. `stream` does not block.
    pub(super) fn new(stream: UnixStream, timeouts: Timeouts, now: Instant) -> Self {
        Self {
            stream,
            timeouts,
            deadline: now + timeouts.idle,
            input: Vec::new(),
            looked_at: true,
            descriptors: Vec::new(),
            output: Vec::new(),
            sent: 0,
            then: Then::Read,
        }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.is_answering() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Until when to wait.
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether an answer is on its way.
    pub(super) fn is_answering(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether there is something to do without waiting: another request was sent along.
    pub(super) fn is_ready(&self) -> bool {
        !self.looked_at && !self.is_answering()
    }

    /// The socket says that it is ready for what [`interest`](Self::interest) said, or
    /// [`is_ready`](Self::is_ready). `serve` answers at most one request.
    pub(super) fn step(
        &mut self,
        socket_is_ready: bool,
        now: Instant,
        serve: impl FnOnce(Call<'_>) -> Answer,
    ) -> Next {
        if self.is_answering() {
            return self.send(now);
        }
        if socket_is_ready && self.looked_at {
            match self.receive(now) {
                Ok(true) => {}
                Ok(false) => return Next::Stay,
                Err(Gone) => return Next::Close,
            }
        }
        self.look(now, serve)
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) -> Next {
        if self.is_answering() || self.input.is_empty() {
            return Next::Close;
        }
        let late = Response::error(408, "the request took too long", None::<String>);
        self.answer(&late, false, now);
        self.send(now)
    }

    /// Gives the stream away, to whom the answer said.
    pub(super) fn attach(self) {
        if let Then::Attach(attach) = self.then {
            attach(self.stream);
        }
    }

    /// Reads once; `false` when there was nothing.
    fn receive(&mut self, now: Instant) -> Result<bool, Gone> {
        let old = self.input.len();
        let size = READ_SIZE.min(HEAD_SIZE_MAX + BODY_SIZE_MAX - old);
        self.input.resize(old + size, 0);
        let received = receive_with_descriptors(
            self.stream.as_fd(),
            &mut self.input[old..],
            &mut self.descriptors,
        );
        self.input.truncate(old + received.as_ref().map_or(0, |(read, _)| *read));
        match received {
            Ok((0, _)) => Err(Gone),
            Ok((_, truncated)) => {
                if old == 0 {
                    self.deadline = now + self.timeouts.request;
                }
                self.looked_at = false;
                if truncated || self.descriptors.len() > DESCRIPTOR_COUNT_MAX {
                    let many = format!("more than {DESCRIPTOR_COUNT_MAX} descriptors");
                    self.answer(&Response::error(400, many, None::<String>), false, now);
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(_) => Err(Gone),
        }
    }

    /// Looks for a request in what was read, and answers it.
    fn look(&mut self, now: Instant, serve: impl FnOnce(Call<'_>) -> Answer) -> Next {
        if self.is_answering() {
            return self.send(now);
        }
        self.looked_at = true;
        let request = match http::parse(&self.input) {
            Ok(Some(request)) => request,
            Ok(None) => return Next::Stay,
            Err(bad) => {
                self.answer(&bad.into(), false, now);
                return self.send(now);
            }
        };
        let end = request.body.end;
        if request.upgrade && self.input.len() > end {
            let early = "wait for `101 Switching Protocols` before you go on";
            self.answer(&Response::error(400, early, None::<String>), false, now);
            return self.send(now);
        }
        let answer = serve(Call {
            method: &request.method,
            target: &request.target,
            body: &self.input[request.body],
            descriptors: std::mem::take(&mut self.descriptors),
            upgrade: request.upgrade,
        });
        if self.input.len() == end {
            // An idle connection keeps no memory.
            self.input = Vec::new();
        } else {
            self.input.drain(..end);
        }
        // The call may have taken its time: the answer has its own.
        self.answer(&answer.response, request.keep_alive, Instant::now());
        if let Some(attach) = answer.attach {
            self.then = Then::Attach(attach);
        }
        self.send(now)
    }

    fn answer(&mut self, response: &Response, keep_alive: bool, now: Instant) {
        self.output = response.render(keep_alive);
        self.sent = 0;
        self.then = if keep_alive { Then::Read } else { Then::Close };
        self.deadline = now + self.timeouts.write;
    }

    /// Sends as much as goes.
    fn send(&mut self, now: Instant) -> Next {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Next::Close,
                Ok(size) => self.sent += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Stay,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Next::Close,
            }
        }
        self.output = Vec::new();
        self.looked_at = self.input.is_empty();
        let wait = if self.input.is_empty() { self.timeouts.idle } else { self.timeouts.request };
        self.deadline = now + wait;
        match self.then {
            Then::Read => Next::Stay,
            Then::Close => Next::Close,
            Then::Attach(_) => Next::Attach,
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The client is.
struct Gone;

/// Reads bytes, and adds the descriptors that came with them. Tells how many bytes, and whether
/// descriptors were lost because there were too many.
fn receive_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<(usize, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    for control in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = control {
            descriptors.extend(received);
        }
    }
    Ok((message.bytes, message.flags.contains(ReturnFlags::CTRUNC)))
}
