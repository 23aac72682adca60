//! The lab's end of the agent's port: requests that overlap, each with its own answer.
//!
//! ```text
//!   unready ──(ready)──► ready ──(reset)──► unready        what was under way fails: Reset
//!      │                   │
//!      └────(port closes)──┴──► closed                     what is under way fails: Closed
//! ```
//!
//! A reader thread takes frames off the port and puts them where their request waits. Output
//! beyond a command's limit is dropped and marked as truncated, so a loud command costs a
//! bounded amount of memory here and is never held up.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab_agent::wire::{Decoder, Frame, Reply, Request, VERSION, WireError};
use thiserror::Error;

/// How often the lab asks whether the agent is there.
const HELLO_INTERVAL: Duration = Duration::from_millis(200);
/// How long the lab waits for a reply before it reminds the machine of its port.
const NUDGE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the agent may leave its port unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// The hello's id; commands count from 1.
const HELLO_ID: u32 = 0;

/// The connection.
#[derive(Debug)]
pub(crate) struct Link {
    writer: Mutex<UnixStream>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    decoder: Decoder,
    /// The agent's time stamp at its start, once it has said ready.
    ready: Option<u64>,
    last_id: u32,
    pending: HashMap<u32, Pending>,
    closed: Option<Option<WireError>>,
}

/// What has come for a request.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) is_truncated: bool,
    pub(crate) end: Option<Reply>,
    output_size_max: usize,
    is_lost: bool,
}

impl Link {
    /// Takes over the connection.
    pub(crate) fn start(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let reader = stream.try_clone()?;
        let state = State {
            decoder: Decoder::for_lab(),
            ready: None,
            last_id: HELLO_ID,
            pending: HashMap::new(),
            closed: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let seen = Arc::clone(&shared);
        thread::Builder::new().name("lab-link".to_owned()).spawn(move || {
            let error = seen.read(reader).err();
            seen.lock().closed = Some(error);
            seen.changed.notify_all();
        })?;
        Ok(Self { writer: Mutex::new(stream), shared })
    }

    /// Asks until the agent is there; returns the time stamp of its start.
    pub(crate) fn wait_ready(&self, timeout: Duration) -> Result<u64, LinkError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.send(HELLO_ID, &Request::Hello { version: VERSION })?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shared.wait(left.min(HELLO_INTERVAL), |state| state.ready) {
                Err(LinkError::Timeout(_)) if !left.is_zero() => {}
                Err(LinkError::Timeout(_)) => return Err(LinkError::Timeout(timeout)),
                other => return other,
            }
        }
    }

    /// Sends a request that has an answer, to be waited for by the id returned.
    pub(crate) fn begin(
        &self,
        request: &Request,
        output_size_max: usize,
    ) -> Result<u32, LinkError> {
        let id = {
            let mut state = self.shared.lock();
            state.last_id = state.last_id.wrapping_add(1).max(HELLO_ID + 1);
            let id = state.last_id;
            state.pending.insert(id, Pending { output_size_max, ..Pending::default() });
            id
        };
        self.send(id, request).map(|()| id)
    }

    /// Sends a request.
    pub(crate) fn send(&self, id: u32, request: &Request) -> Result<(), LinkError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&request.encode(id)).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => LinkError::Timeout(WRITE_TIMEOUT),
            _ => LinkError::Closed(None),
        })
    }

    /// Waits for a request's last reply. An emulated machine may miss the interrupt that tells of the
    /// request, or its own end of the reply; the next message wakes it, so there is one now and then.
    pub(crate) fn wait_end(&self, id: u32, timeout: Duration) -> Result<Pending, LinkError> {
        let deadline = Instant::now() + timeout;
        let ended = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.shared.wait(left.min(NUDGE_INTERVAL), |state| {
                let is_over = |pending: &Pending| pending.end.is_some() || pending.is_lost;
                state.pending.get(&id).is_none_or(is_over).then(|| state.pending.remove(&id))
            });
            match ended {
                Err(LinkError::Timeout(_)) if left > NUDGE_INTERVAL => {
                    self.send(HELLO_ID, &Request::Hello { version: VERSION })?;
                }
                Err(LinkError::Timeout(_)) => return Err(LinkError::Timeout(timeout)),
                other => break other?,
            }
        };
        match ended {
            Some(pending) if !pending.is_lost => Ok(pending),
            _ => Err(LinkError::Reset),
        }
    }

    /// Waits for a request's last reply, which stays for [`wait_end`](Self::wait_end); whether it came.
    pub(crate) fn has_ended(&self, id: u32, timeout: Duration) -> Result<bool, LinkError> {
        let is_over = |pending: &Pending| pending.end.is_some() || pending.is_lost;
        let ended = self
            .shared
            .wait(timeout, |state| state.pending.get(&id).is_none_or(is_over).then_some(()));
        match ended {
            Err(LinkError::Timeout(_)) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Waits until a command's standard output contains `needle`.
    pub(crate) fn wait_output(
        &self,
        id: u32,
        needle: &[u8],
        timeout: Duration,
    ) -> Result<(), LinkError> {
        let is_found = self.shared.wait(timeout, |state| {
            let Some(pending) = state.pending.get(&id) else { return Some(false) };
            let is_found = pending.stdout.windows(needle.len()).any(|window| window == needle);
            let is_over = pending.end.is_some() || pending.is_lost;
            (is_found || is_over).then_some(is_found)
        })?;
        if is_found { Ok(()) } else { Err(LinkError::Timeout(Duration::ZERO)) }
    }

    /// Takes what a command has written by now; what comes later follows on it.
    pub(crate) fn take_output(&self, id: u32) -> (Vec<u8>, Vec<u8>) {
        let mut state = self.shared.lock();
        let taken = state.pending.get_mut(&id).map(|pending| {
            (std::mem::take(&mut pending.stdout), std::mem::take(&mut pending.stderr))
        });
        taken.unwrap_or_default()
    }

    /// The machine was reset: its agent will be another.
    pub(crate) fn reset(&self) {
        self.shared.reset();
    }

    /// A handle for whoever learns of resets.
    pub(crate) fn resetter(&self) -> impl Fn() + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.reset()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.decoder.restart();
        state.ready = None;
        state.pending.values_mut().for_each(|pending| pending.is_lost = true);
        self.changed.notify_all();
    }

    /// Reads to the port's end.
    fn read(&self, mut stream: UnixStream) -> Result<(), WireError> {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(size @ 1..) = stream.read(&mut buffer) {
            let mut state = self.lock();
            state.decoder.push(buffer.get(..size).unwrap_or_default());
            while let Some(frame) = state.decoder.next_frame()? {
                state.take(frame)?;
            }
            self.changed.notify_all();
        }
        Ok(())
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        mut find: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, LinkError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&mut state) {
                return Ok(found);
            }
            if let Some(error) = &state.closed {
                return Err(LinkError::Closed(error.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Timeout(timeout));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn take(&mut self, frame: Frame) -> Result<(), WireError> {
        let id = frame.id;
        let reply = Reply::decode(frame)?;
        if let Reply::Ready { tsc, .. } = reply {
            self.ready = Some(tsc);
            return Ok(());
        }
        // Nobody waits for what came before a reset.
        let Some(pending) = self.pending.get_mut(&id) else { return Ok(()) };
        match reply {
            Reply::Stdout(bytes) => pending.put(&bytes, |pending| &mut pending.stdout),
            Reply::Stderr(bytes) => pending.put(&bytes, |pending| &mut pending.stderr),
            end => pending.end = Some(end),
        }
        Ok(())
    }
}

impl Pending {
    fn put(&mut self, bytes: &[u8], output: impl Fn(&mut Self) -> &mut Vec<u8>) {
        let size_max = self.output_size_max;
        let output = output(self);
        let room = size_max.saturating_sub(output.len()).min(bytes.len());
        output.extend_from_slice(bytes.get(..room).unwrap_or_default());
        self.is_truncated |= room < bytes.len();
    }
}

/// The agent can't be reached.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// The port is closed: QEMU has ended, or the stream was out of step.
    #[error("the agent's port is closed")]
    Closed(Option<WireError>),
    /// Nothing came in time.
    #[error("nothing within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The machine was reset meanwhile.
    #[error("the machine was reset")]
    Reset,
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab_agent::wire::{Exec, Exit, Outcome};

    const SECOND: Duration = Duration::from_secs(5);

    /// Reads requests on an agent's side of a port.
    struct Agent {
        port: UnixStream,
        decoder: Decoder,
    }

    impl Agent {
        fn next(&mut self) -> (u32, Request) {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    return (frame.id, Request::decode(&frame).unwrap());
                }
                let mut buffer = [0; 1000];
                let size = self.port.read(&mut buffer).unwrap();
                assert!(size > 0);
                self.decoder.push(&buffer[..size]);
            }
        }

        fn answer(&mut self, id: u32, reply: &Reply) {
            self.port.write_all(&reply.encode(id)).unwrap();
        }
    }

    fn ready() -> (Link, Agent) {
        let (ours, port) = UnixStream::pair().unwrap();
        let link = Link::start(ours).unwrap();
        let mut agent = Agent { port, decoder: Decoder::for_agent() };
        let agent = thread::scope(|scope| {
            let waiting = scope.spawn(|| link.wait_ready(SECOND));
            let (id, request) = agent.next();
            assert_eq!(request, Request::Hello { version: VERSION });
            agent.answer(id, &Reply::Ready { version: VERSION, tsc: 42 });
            assert_eq!(waiting.join().unwrap(), Ok(42));
            agent
        });
        (link, agent)
    }

    fn exit() -> Reply {
        Reply::Exit(Exit { outcome: Outcome::Exited(0), tsc_start: 1, tsc_end: 2 })
    }

    #[test]
    fn overlapping_requests_get_their_own_answers() {
        let (link, mut agent) = ready();
        let exec = Request::Exec(Exec { argv: vec!["/a".into()], ..Exec::default() });
        let (first, second) = (link.begin(&exec, 8).unwrap(), link.begin(&exec, 8).unwrap());
        agent.answer(second, &Reply::Stdout(b"two".to_vec()));
        agent.answer(first, &Reply::Stdout(b"one is long".to_vec()));
        agent.answer(first, &Reply::Stderr(b"err".to_vec()));
        agent.answer(second, &exit());
        agent.answer(first, &exit());
        assert_eq!(link.wait_output(second, b"wo", SECOND), Ok(()));
        let one = link.wait_end(first, SECOND).unwrap();
        assert_eq!((&one.stdout[..], &one.stderr[..]), (&b"one is l"[..], &b"err"[..]));
        let two = link.wait_end(second, SECOND).unwrap();
        assert_eq!(
            (&two.stdout[..], two.is_truncated, one.is_truncated),
            (&b"two"[..], false, true)
        );
    }

    #[test]
    fn a_reset_fails_what_is_under_way_and_finds_the_next_agent() {
        let (link, mut agent) = ready();
        let id = link.begin(&Request::TimeStamp, 0).unwrap();
        agent.port.write_all(b"ZLAB\x05\0\0\0torn").unwrap();
        thread::sleep(Duration::from_millis(20));
        link.reset();
        assert_eq!(link.wait_end(id, SECOND).err(), Some(LinkError::Reset));
        agent.answer(HELLO_ID, &Reply::Ready { version: VERSION, tsc: 43 });
        assert_eq!(link.wait_ready(SECOND), Ok(43));
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let (link, mut agent) = ready();
        let id = link.begin(&Request::TimeStamp, 0).unwrap();
        let short = Duration::from_millis(10);
        assert_eq!(link.wait_end(id, short).err(), Some(LinkError::Timeout(short)));
        agent.port.write_all(b"kernel panic, sorry").unwrap();
        let closed = link.wait_end(id, SECOND).err();
        assert_eq!(closed, Some(LinkError::Closed(Some(WireError::Magic { magic: *b"kern" }))));
        drop(agent);
    }
}
