//! One client without its socket: bytes in, replies out.
//!
//! ```text
//!  received ─> [shared buffer] ─> requests ─> commands ─> [output] ─> sent
//!                   └ rest ─> [input] ──┘
//! ```
//!
//! A client that reads slowly stops being served: beyond a limit of unsent bytes its requests stay where
//! they are, first in `input`, then in the kernel, then with the client. All limits are constants here.
//! So do requests behind one that another thread does, or that needs a namespace which is away.

use std::time::Instant;

use zdb_engine::WARM_COUNT_MAX;
use zdb_resp::request::{KeysAhead, RequestParser};
use zdb_resp::{Limits, UNREAD_SIZE_MAX, write};

use crate::commands::{self, Call};
use crate::core::{Answer, Core, Reply};
use crate::input::Input;
use crate::output::Output;
use crate::session::Session;

/// Most bytes that wait for a client to read them before its next request is served.
pub const UNSENT_SIZE_MAX: u64 = 32 * 1024 * 1024;
/// Most replies of a client that wait for their write to be durable.
pub const HELD_COUNT_MAX: usize = 4096;
/// Most values of a client that wait to be sent from their files. `MGET` may exceed it once.
pub const FILE_COUNT_MAX: usize = 64;
/// Least room to receive into.
const ROOM_MIN: usize = 16 * 1024;
/// Most room to receive into.
const ROOM_MAX: usize = 256 * 1024;

/// A client.
#[derive(Debug)]
pub struct Connection {
    session: Session,
    parser: RequestParser,
    input: Input,
    output: Output,
    pause: Pause,
}

/// Why requests may wait in `input`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// They don't.
    No,
    /// Replies are unsent.
    Full,
    /// Another thread makes the last request's reply, or has the namespace that the next one is about.
    Task,
}

impl Connection {
    /// A client that has sent nothing yet.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self {
            session,
            parser: RequestParser::new(Limits::default()),
            input: Input::default(),
            output: Output::default(),
            pause: Pause::No,
        }
    }

    /// Its rights.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Whether the connection ends once all is sent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.session.is_closing
    }

    /// Its replies.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Its replies, to be sent.
    pub fn output_mut(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Whether more may be received.
    #[must_use]
    pub fn may_receive(&self) -> bool {
        self.pause == Pause::No && !self.session.is_closing
    }

    /// Whether requests wait that can be served now.
    #[must_use]
    pub fn may_resume(&self) -> bool {
        self.pause == Pause::Full && !self.is_full() && !self.session.is_closing
    }

    /// Bytes of memory held by its buffers.
    #[must_use]
    pub fn memory_size(&self) -> usize {
        self.input.memory_size() + self.output.memory_size()
    }

    /// Whether nothing is under way in either direction.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.input.is_empty() && self.output.unsent_size() == 0
    }

    /// Gives memory back. For idle clients.
    pub fn shrink(&mut self) {
        self.input.shrink();
        self.output.shrink();
    }

    /// A buffer to receive the rest of an unfinished request into, into its spare capacity; `None` if
    /// there is none, and any buffer will do for [`receive`](Self::receive). After receiving,
    /// [`resume`](Self::resume) is to be called.
    pub fn unfinished(&mut self) -> Option<&mut Vec<u8>> {
        if self.input.is_empty() {
            return None;
        }
        let missing = self.parser.wanted().saturating_sub(self.input.unread().len());
        Some(self.input.space(missing.clamp(ROOM_MIN, ROOM_MAX)))
    }

    /// Serves what was received elsewhere, and keeps what is no whole request. Gives when it ended.
    pub fn receive(&mut self, core: &mut Core, bytes: &[u8], begin: Instant) -> Instant {
        if !self.input.is_empty() {
            self.input.extend(bytes);
            return self.resume(core, begin);
        }
        let (consumed, end) = self.serve(core, bytes, begin);
        self.input.extend(bytes.get(consumed..).unwrap_or_default());
        end
    }

    /// Serves what waits. Gives when it ended.
    pub fn resume(&mut self, core: &mut Core, begin: Instant) -> Instant {
        let mut input = std::mem::take(&mut self.input);
        let (consumed, end) = self.serve(core, input.unread(), begin);
        input.consume(consumed);
        self.input = input;
        if self.pause == Pause::No && self.input.unread().len() >= UNREAD_SIZE_MAX {
            self.refuse(core, "Request too large");
        }
        end
    }

    /// Ends the conversation.
    pub fn refuse(&mut self, core: &mut Core, text: &str) {
        core.metrics.refused_count += 1;
        write::error(self.output.buffer(), text.as_bytes());
        self.session.is_closing = true;
        self.input = Input::default();
    }

    /// The client sends no more: what it was promised is sent, then the connection ends.
    pub fn finish(&mut self) {
        self.session.is_closing = true;
        self.input = Input::default();
    }

    /// The reply to a request that another thread has done. Requests behind it can be served.
    pub fn answer(&mut self, reply: &Reply) {
        self.session.is_asking = false;
        self.wake();
        // Whoever was hung up on gets nothing more.
        if self.session.is_closing {
            return;
        }
        let out = self.output.buffer();
        match &reply.0 {
            Ok(Answer::Ok) => write::simple(out, b"OK"),
            Ok(Answer::Integer(number)) => {
                write::integer(out, i64::try_from(*number).unwrap_or(i64::MAX));
            }
            Err(refusal) => write::error(out, refusal.text.as_bytes()),
        }
    }

    /// A namespace is back that a request waits for.
    pub fn wake(&mut self) {
        if self.pause == Pause::Task && !self.session.is_asking {
            self.pause = Pause::Full;
        }
    }

    /// Says something that is no reply: the end of a wait.
    pub fn tell(&mut self, message: &[u8]) {
        self.output.buffer().extend_from_slice(message);
    }

    /// Gives a follower more writes.
    pub fn feed(&mut self, core: &mut Core) {
        core.feed(&mut self.session, &mut self.output);
    }

    /// Serves whole requests at the start of `bytes`; how many bytes they took, and when it ended.
    fn serve(&mut self, core: &mut Core, bytes: &[u8], begin: Instant) -> (usize, Instant) {
        if self.pause == Pause::Task {
            return (0, begin);
        }
        let mut now = begin;
        let mut consumed = 0;
        // Requests whose keys were looked up ahead.
        let mut warm_count: usize = 0;
        self.pause = Pause::No;
        while !self.session.is_closing {
            let rest = bytes.get(consumed..).unwrap_or_default();
            if rest.len() < self.parser.wanted() {
                break;
            }
            if self.is_full() {
                self.pause = Pause::Full;
                break;
            }
            warm_count = match warm_count.checked_sub(1) {
                Some(left) => left,
                None => self.look_ahead(core, rest),
            };
            let Self { session, parser, output, .. } = self;
            match parser.parse(rest) {
                Ok(Some(request)) => {
                    let size = request.size();
                    let mut call = Call { core, session, output, request, begin: now };
                    let executed = commands::execute(&mut call);
                    now = executed.end;
                    if executed.is_postponed {
                        self.pause = Pause::Task;
                        break;
                    }
                    consumed += size;
                    if self.session.is_asking {
                        self.pause = Pause::Task;
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    write::error(output.buffer(), error.to_string().as_bytes());
                    session.is_closing = true;
                }
            }
        }
        if self.session.is_closing {
            consumed = bytes.len();
        }
        (consumed, now)
    }

    /// Looks up what the next requests are about, if there are several; how many come behind the first.
    fn look_ahead(&self, core: &mut Core, bytes: &[u8]) -> usize {
        let mut keys: [&[u8]; WARM_COUNT_MAX] = [&[]; WARM_COUNT_MAX];
        let mut count = 0;
        for (place, key) in keys.iter_mut().zip(KeysAhead::new(bytes)) {
            *place = key;
            count += 1;
        }
        if count > 1
            && let Ok(namespace) = core.active(&self.session)
        {
            namespace.warm(keys[..count].iter().copied());
        }
        count.saturating_sub(1)
    }

    fn is_full(&self) -> bool {
        self.output.unsent_size() >= UNSENT_SIZE_MAX
            || self.output.held_count() >= HELD_COUNT_MAX
            || self.output.file_count() >= FILE_COUNT_MAX
    }
}
