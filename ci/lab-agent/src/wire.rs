//! The protocol between the lab and the agent in a machine, on a virtio-serial port.
//!
//! Requests carry an id of the lab's choice and may overlap; each reply carries the id of its
//! request. All numbers are little-endian. A frame is
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `ZLAB` |
//! | 4 | 4 | body size, at most [`BODY_SIZE_MAX`] |
//! | 8 | 4 | id |
//! | 12 | 1 | kind |
//! | 13 | body size | body |
//!
//! | kind | request | body | answered by |
//! |---|---|---|---|
//! | 1 | hello | version `u32` | ready |
//! | 2 | exec | timeout in ms `u64`, arguments, environment, folder, standard input | stdout and stderr, any number; then exit, or failed |
//! | 3 | signal | signal `u32`; the id is the exec's | nothing |
//! | 4 | write file | flags `u8` (1 append, 2 fsync), mode `u32`, path, data | done or failed |
//! | 5 | read file | offset `u64`, size `u32`, path | data (shorter at the end) or failed |
//! | 6 | time stamp | | data: `u64` |
//! | 7 | power | `u8`: 0 off, 1 reboot, 2 panic | nothing |
//!
//! | kind | reply | body |
//! |---|---|---|
//! | 128 | ready | version `u32`, time stamp at the agent's start `u64` |
//! | 129, 130 | stdout, stderr | bytes |
//! | 131 | exit | how `u8` (0 exited, 1 killed, 2 timed out), status or signal `u32`, time stamps before and after `u64` `u64` |
//! | 132 | data | bytes |
//! | 133 | done | |
//! | 134 | failed | text |
//!
//! A string or a byte string is its size as `u32` and its bytes; a list is its count as `u32`
//! and its items; an environment is a list of name, value, name, value.
//!
//! When a machine is reset, the stream may break off within a frame. Both decoders therefore
//! begin by looking for the first hello (ready, respectively) and skip what comes before; the
//! lab repeats its hello until it is answered.

use thiserror::Error;

/// The virtio-serial port's name.
pub const PORT_NAME: &str = "zero-os.lab";
/// The protocol's version; both sides are built from one tree, so it must be equal.
pub const VERSION: u32 = 1;
/// The largest body of a frame, in bytes.
pub const BODY_SIZE_MAX: usize = 1 << 20;
/// The largest piece of a file or of standard input in one frame, in bytes.
pub const DATA_SIZE_MAX: usize = BODY_SIZE_MAX / 2;
/// The most arguments, or environment strings, of a command.
pub const STRING_COUNT_MAX: u32 = 4096;

const MAGIC: [u8; 4] = *b"ZLAB";
const HEADER_SIZE: usize = 13;
const KIND_HELLO: u8 = 1;
const KIND_READY: u8 = 128;

/// A command to run in the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exec {
    /// After this the agent kills the command's process group, in ms.
    pub timeout_ms: u64,
    /// The program's path and its arguments.
    pub argv: Vec<String>,
    /// Names and values in addition to the agent's own few.
    pub env: Vec<(String, String)>,
    /// The working folder; empty for `/`.
    pub cwd: String,
    /// Standard input; it ends after this.
    pub stdin: Vec<u8>,
}

/// What the lab asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Are you there?
    Hello {
        /// The lab's [`VERSION`].
        version: u32,
    },
    /// Run a command.
    Exec(Exec),
    /// Signal a running command's process group.
    Signal {
        /// The signal's number.
        signal: u32,
    },
    /// Write a piece of a file.
    WriteFile {
        /// Append to it rather than replace it.
        append: bool,
        /// Flush it to its disk.
        sync: bool,
        /// Permission bits, when it is created.
        mode: u32,
        /// Its path.
        path: String,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Read a piece of a file.
    ReadFile {
        /// From where.
        offset: u64,
        /// How much, in bytes, at most [`DATA_SIZE_MAX`].
        size: u32,
        /// Its path.
        path: String,
    },
    /// The CPU's time stamp counter.
    TimeStamp,
    /// End or restart the machine.
    Power(Power),
}

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// By switching off.
    Off,
    /// By a reset.
    Reboot,
    /// By a kernel panic.
    Panic,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The agent is there.
    Ready {
        /// The agent's [`VERSION`].
        version: u32,
        /// The time stamp counter when the agent started.
        tsc: u64,
    },
    /// A piece of a command's standard output.
    Stdout(Vec<u8>),
    /// A piece of a command's standard error.
    Stderr(Vec<u8>),
    /// A command has ended.
    Exit(Exit),
    /// A piece of a file, or a time stamp.
    Data(Vec<u8>),
    /// It is done.
    Done,
    /// It can't be done, for this reason.
    Failed(String),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an exit status.
    Exited(u32),
    /// By a signal.
    Killed(u32),
    /// It took too long and was killed.
    TimedOut,
}

/// A command's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// How.
    pub outcome: Outcome,
    /// The time stamp counter before it was started.
    pub tsc_start: u64,
    /// The time stamp counter after it had ended.
    pub tsc_end: u64,
}

impl Request {
    /// The whole frame.
    #[must_use]
    pub fn encode(&self, id: u32) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Hello { version } => {
                put_u32(&mut body, *version);
                KIND_HELLO
            }
            Self::Exec(exec) => {
                put_u64(&mut body, exec.timeout_ms);
                put_count(&mut body, exec.argv.len());
                exec.argv.iter().for_each(|arg| put_bytes(&mut body, arg.as_bytes()));
                put_count(&mut body, exec.env.len() * 2);
                for (name, value) in &exec.env {
                    put_bytes(&mut body, name.as_bytes());
                    put_bytes(&mut body, value.as_bytes());
                }
                put_bytes(&mut body, exec.cwd.as_bytes());
                put_bytes(&mut body, &exec.stdin);
                2
            }
            Self::Signal { signal } => {
                put_u32(&mut body, *signal);
                3
            }
            Self::WriteFile { append, sync, mode, path, data } => {
                body.push(u8::from(*append) | u8::from(*sync) << 1);
                put_u32(&mut body, *mode);
                put_bytes(&mut body, path.as_bytes());
                put_bytes(&mut body, data);
                4
            }
            Self::ReadFile { offset, size, path } => {
                put_u64(&mut body, *offset);
                put_u32(&mut body, *size);
                put_bytes(&mut body, path.as_bytes());
                5
            }
            Self::TimeStamp => 6,
            Self::Power(power) => {
                body.push(*power as u8);
                7
            }
        };
        frame(id, kind, &body)
    }

    /// The request in a frame.
    ///
    /// # Errors
    ///
    /// [`WireError`] for an unknown kind or a body that isn't right.
    pub fn decode(frame: &Frame) -> Result<Self, WireError> {
        let mut body = Body(&frame.body);
        let request = match frame.kind {
            KIND_HELLO => Self::Hello { version: body.u32()? },
            2 => Self::Exec(Exec {
                timeout_ms: body.u64()?,
                argv: body.strings()?,
                env: pairs(body.strings()?),
                cwd: body.string()?,
                stdin: body.bytes()?.to_vec(),
            }),
            3 => Self::Signal { signal: body.u32()? },
            4 => {
                let flags = body.u8()?;
                Self::WriteFile {
                    append: flags & 1 != 0,
                    sync: flags & 2 != 0,
                    mode: body.u32()?,
                    path: body.string()?,
                    data: body.bytes()?.to_vec(),
                }
            }
            5 => Self::ReadFile { offset: body.u64()?, size: body.u32()?, path: body.string()? },
            6 => Self::TimeStamp,
            7 => Self::Power(match body.u8()? {
                0 => Power::Off,
                1 => Power::Reboot,
                2 => Power::Panic,
                value => return Err(WireError::Value { kind: 7, value }),
            }),
            kind => return Err(WireError::Kind { kind }),
        };
        body.end(frame.kind)?;
        Ok(request)
    }
}

impl Reply {
    /// The whole frame.
    #[must_use]
    pub fn encode(&self, id: u32) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Ready { version, tsc } => {
                put_u32(&mut body, *version);
                put_u64(&mut body, *tsc);
                frame(id, KIND_READY, &body)
            }
            Self::Stdout(bytes) => frame(id, 129, bytes),
            Self::Stderr(bytes) => frame(id, 130, bytes),
            Self::Exit(exit) => {
                let (how, value) = match exit.outcome {
                    Outcome::Exited(status) => (0, status),
                    Outcome::Killed(signal) => (1, signal),
                    Outcome::TimedOut => (2, 0),
                };
                body.push(how);
                put_u32(&mut body, value);
                put_u64(&mut body, exit.tsc_start);
                put_u64(&mut body, exit.tsc_end);
                frame(id, 131, &body)
            }
            Self::Data(bytes) => frame(id, 132, bytes),
            Self::Done => frame(id, 133, &[]),
            Self::Failed(text) => frame(id, 134, text.as_bytes()),
        }
    }

    /// The reply in a frame.
    ///
    /// # Errors
    ///
    /// [`WireError`] for an unknown kind or a body that isn't right.
    pub fn decode(frame: Frame) -> Result<Self, WireError> {
        let mut body = Body(&frame.body);
        match frame.kind {
            KIND_READY => Ok(Self::Ready { version: body.u32()?, tsc: body.u64()? }),
            129 => Ok(Self::Stdout(frame.body)),
            130 => Ok(Self::Stderr(frame.body)),
            131 => {
                let outcome = match (body.u8()?, body.u32()?) {
                    (0, status) => Outcome::Exited(status),
                    (1, signal) => Outcome::Killed(signal),
                    (2, _) => Outcome::TimedOut,
                    (value, _) => return Err(WireError::Value { kind: 131, value }),
                };
                Ok(Self::Exit(Exit { outcome, tsc_start: body.u64()?, tsc_end: body.u64()? }))
            }
            132 => Ok(Self::Data(frame.body)),
            133 => Ok(Self::Done),
            134 => Ok(Self::Failed(String::from_utf8_lossy(&frame.body).into_owned())),
            kind => Err(WireError::Kind { kind }),
        }
    }
}

/// A frame taken off the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The request's id.
    pub id: u32,
    /// What the body means.
    pub kind: u8,
    /// The body.
    pub body: Vec<u8>,
}

/// Cuts a stream into frames. Sans-I/O: bytes go in, frames come out.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    first_kind: u8,
    is_synchronized: bool,
}

impl Decoder {
    /// The lab's: begins at the first ready.
    #[must_use]
    pub fn for_lab() -> Self {
        Self { buffer: Vec::new(), first_kind: KIND_READY, is_synchronized: false }
    }

    /// The agent's: begins at the first hello.
    #[must_use]
    pub fn for_agent() -> Self {
        Self { buffer: Vec::new(), first_kind: KIND_HELLO, is_synchronized: false }
    }

    /// Forgets everything and looks for the first frame anew: the other side was restarted.
    pub fn restart(&mut self) {
        self.buffer.clear();
        self.is_synchronized = false;
    }

    /// Takes bytes off the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` when it takes more bytes.
    ///
    /// # Errors
    ///
    /// [`WireError::Magic`] or [`WireError::BodySize`] when the stream is out of step.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        if !self.is_synchronized {
            self.skip_to_first();
        }
        let Some(header) = self.buffer.first_chunk::<HEADER_SIZE>() else { return Ok(None) };
        let [m0, m1, m2, m3, s0, s1, s2, s3, i0, i1, i2, i3, kind] = *header;
        let magic = [m0, m1, m2, m3];
        if magic != MAGIC {
            return Err(WireError::Magic { magic });
        }
        let size = usize::try_from(u32::from_le_bytes([s0, s1, s2, s3])).unwrap_or(usize::MAX);
        if size > BODY_SIZE_MAX {
            return Err(WireError::BodySize { size });
        }
        let Some(body) = self.buffer.get(HEADER_SIZE..HEADER_SIZE + size) else {
            return Ok(None);
        };
        let frame = Frame { id: u32::from_le_bytes([i0, i1, i2, i3]), kind, body: body.to_vec() };
        self.buffer.drain(..HEADER_SIZE + size);
        self.is_synchronized = true;
        Ok(Some(frame))
    }

    /// Drops bytes until the buffer begins with a header of the kind that comes first.
    fn skip_to_first(&mut self) {
        let is_first = |header: &[u8]| {
            header.starts_with(&MAGIC) && header.last().is_some_and(|kind| *kind == self.first_kind)
        };
        let at = self.buffer.windows(HEADER_SIZE).position(is_first);
        let keep = (HEADER_SIZE - 1).min(self.buffer.len());
        self.buffer.drain(..at.unwrap_or(self.buffer.len() - keep));
    }
}

fn frame(id: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= BODY_SIZE_MAX, "callers cut data into pieces of DATA_SIZE_MAX");
    let mut out = Vec::with_capacity(HEADER_SIZE + body.len());
    out.extend(MAGIC);
    put_count(&mut out, body.len());
    put_u32(&mut out, id);
    out.push(kind);
    out.extend_from_slice(body);
    out
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    put_u32(out, u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn pairs(strings: Vec<String>) -> Vec<(String, String)> {
    let mut strings = strings.into_iter();
    std::iter::from_fn(|| strings.next().zip(strings.next())).collect()
}

/// The unread rest of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(size).ok_or(WireError::BodyShort)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.first_chunk().copied().ok_or(WireError::BodyShort)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let size = self.u32()?;
        self.take(usize::try_from(size).map_err(|_| WireError::BodyShort)?)
    }

    fn string(&mut self) -> Result<String, WireError> {
        str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| WireError::Text)
    }

    fn strings(&mut self) -> Result<Vec<String>, WireError> {
        let count = self.u32()?;
        if count > STRING_COUNT_MAX {
            return Err(WireError::StringCount { count });
        }
        (0..count).map(|_| self.string()).collect()
    }

    fn end(&self, kind: u8) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::BodyLong { kind }) }
    }
}

/// The stream isn't what the protocol says.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum WireError {
    /// A frame doesn't begin with the magic.
    #[error("frame begins with {magic:02x?}")]
    Magic {
        /// What it begins with.
        magic: [u8; 4],
    },
    /// A frame is too large.
    #[error("frame of {size} bytes is larger than {BODY_SIZE_MAX}")]
    BodySize {
        /// Its body's size.
        size: usize,
    },
    /// A body ends too early.
    #[error("frame body is too short")]
    BodyShort,
    /// A body has bytes left over.
    #[error("frame of kind {kind} has stray bytes at its end")]
    BodyLong {
        /// The frame's kind.
        kind: u8,
    },
    /// A string isn't UTF-8.
    #[error("string is not UTF-8")]
    Text,
    /// A list is too long.
    #[error("list of {count} strings is longer than {STRING_COUNT_MAX}")]
    StringCount {
        /// Its count.
        count: u32,
    },
    /// No such kind.
    #[error("no frame kind {kind}")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// No such value.
    #[error("frame of kind {kind} has no value {value}")]
    Value {
        /// The frame's kind.
        kind: u8,
        /// The value.
        value: u8,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        vec![
            Request::Hello { version: VERSION },
            Request::Exec(Exec {
                timeout_ms: 5000,
                argv: vec!["/init".into(), "tsc".into()],
                env: vec![("A".into(), "1".into())],
                cwd: "/tmp".into(),
                stdin: b"in".to_vec(),
            }),
            Request::Signal { signal: 15 },
            Request::WriteFile {
                append: true,
                sync: true,
                mode: 0o640,
                path: "/a".into(),
                data: vec![1, 2],
            },
            Request::ReadFile { offset: 1 << 40, size: 7, path: "/b".into() },
            Request::TimeStamp,
            Request::Power(Power::Panic),
        ]
    }

    fn replies() -> Vec<Reply> {
        let exit = |outcome| Reply::Exit(Exit { outcome, tsc_start: 1, tsc_end: u64::MAX });
        vec![
            Reply::Ready { version: VERSION, tsc: 99 },
            Reply::Stdout(b"out".to_vec()),
            Reply::Stderr(Vec::new()),
            exit(Outcome::Exited(3)),
            exit(Outcome::Killed(9)),
            exit(Outcome::TimedOut),
            Reply::Data(vec![0; 1000]),
            Reply::Done,
            Reply::Failed("no such file".into()),
        ]
    }

    #[test]
    fn requests_round_trip_byte_by_byte() {
        let mut decoder = Decoder::for_agent();
        let mut decoded = Vec::new();
        let stream: Vec<u8> =
            (0u32..).zip(requests()).flat_map(|(id, request)| request.encode(id)).collect();
        for byte in stream {
            decoder.push(&[byte]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                assert_eq!(frame.id as usize, decoded.len());
                decoded.push(Request::decode(&frame).unwrap());
            }
        }
        assert_eq!(decoded, requests());
    }

    #[test]
    fn replies_round_trip_at_once() {
        let mut decoder = Decoder::for_lab();
        decoder.push(&replies().iter().flat_map(|reply| reply.encode(8)).collect::<Vec<_>>());
        let mut decoded = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            decoded.push(Reply::decode(frame).unwrap());
        }
        assert_eq!(decoded, replies());
    }

    #[test]
    fn a_stream_that_broke_off_is_picked_up_at_the_next_hello() {
        let cut = Request::ReadFile { offset: 0, size: 1, path: "/x".into() }.encode(1);
        let mut decoder = Decoder::for_agent();
        decoder.push(&cut[..15]);
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.push(b"ZLA");
        decoder.push(&Request::Hello { version: 1 }.encode(2));
        assert_eq!(decoder.next_frame().unwrap().map(|frame| frame.id), Some(2));
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.restart();
        decoder.push(&Request::TimeStamp.encode(3));
        assert_eq!(decoder.next_frame(), Ok(None));
    }

    #[test]
    fn a_stream_out_of_step_is_an_error() {
        let mut decoder = Decoder::for_agent();
        decoder.push(&Request::Hello { version: 1 }.encode(0));
        assert!(decoder.next_frame().unwrap().is_some());
        decoder.push(b"this is no frame at all");
        assert_eq!(decoder.next_frame(), Err(WireError::Magic { magic: *b"this" }));
        let mut large = Decoder::for_lab();
        large.push(b"ZLAB\xff\xff\xff\xff\0\0\0\0\x80");
        assert!(matches!(large.next_frame(), Err(WireError::BodySize { .. })));
    }

    #[test]
    fn hostile_bodies_are_errors() {
        for request in requests() {
            let whole = request.encode(0);
            let body = &whole[HEADER_SIZE..];
            for len in 0..body.len() {
                let cut = Frame { id: 0, kind: whole[12], body: body[..len].to_vec() };
                assert!(Request::decode(&cut).is_err(), "{request:?} cut to {len}");
            }
            let long = Frame { id: 0, kind: whole[12], body: [body, b"x"].concat() };
            assert!(Request::decode(&long).is_err(), "{request:?}");
        }
        let many = [&[0; 8][..], &u32::MAX.to_le_bytes()].concat();
        let error = Request::decode(&Frame { id: 0, kind: 2, body: many });
        assert_eq!(error, Err(WireError::StringCount { count: u32::MAX }));
        assert!(Reply::decode(Frame { id: 0, kind: 1, body: vec![] }).is_err());
    }
}
