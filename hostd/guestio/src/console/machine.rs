//! The machine's side: a connection to its VMM's console, made when somebody looks, and made again when
//! the VMM is.
//!
//! ```text
//!   away ──somebody looks──► asking ──101──► there ──end, error──► away, for a while
//!    ▲                         └──no, or nothing in time──► away, for a while
//!    └── nobody looks ─────────────────────────────────┘
//! ```
//!
//! The VMM gives what was said last (64 KiB) and then whatever comes, and drops what is not taken in time; so
//! the guest never waits for us. Keys wait in bounded room, and are not read from terminals while it is
//! full. The VMM is believed little: its answer has a size and a time.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Keys that wait for the machine.
pub(super) const INPUT_SIZE_MAX: usize = 128 << 10;
/// How long the VMM may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of its answer's head.
const HEAD_SIZE_MAX: usize = 4096;
/// Bytes in one read.
const READ_SIZE: usize = 16 << 10;
/// Pause after a failure; it doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The VMM's upgrade, `vmm-console` (see `vmm/spec`'s `openapi.json`).
const REQUEST: &[u8] = b"GET /console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                         Upgrade: vmm-console\r\n\r\n";
const ACCEPTED: &[u8] = b"HTTP/1.1 101 ";

/// The machine's console, as far as it is reached.
pub(super) struct Machine {
    socket: PathBuf,
    state: State,
    pause: Duration,
    input: VecDeque<u8>,
}

enum State {
    Away { until: Instant },
    Asking { stream: UnixStream, head: Vec<u8>, deadline: Instant },
    There { stream: UnixStream },
}

/// What happened.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// What the machine said.
    pub(super) output: Vec<u8>,
    /// It is there since now.
    pub(super) has_come: bool,
    /// It is away since now.
    pub(super) has_gone: bool,
}

impl Machine {
    /// The machine whose VMM listens there, or will.
    pub(super) fn new(socket: PathBuf, now: Instant) -> Self {
        let state = State::Away { until: now };
        Self { socket, state, pause: PAUSE_MIN, input: VecDeque::new() }
    }

    /// Its descriptor and what to wait for.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Away { .. } => None,
            State::Asking { stream, .. } => Some((stream.as_fd(), PollFlags::IN)),
            State::There { stream } if self.input.is_empty() => {
                Some((stream.as_fd(), PollFlags::IN))
            }
            State::There { stream } => Some((stream.as_fd(), PollFlags::IN | PollFlags::OUT)),
        }
    }

    /// When it is to be looked at again, if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Away { until } => Some(*until),
            State::Asking { deadline, .. } => Some(*deadline),
            State::There { .. } => None,
        }
    }

    /// Bytes of keys that there is room for.
    pub(super) fn room(&self) -> usize {
        INPUT_SIZE_MAX.saturating_sub(self.input.len())
    }

    /// Whether what it says is heard.
    pub(super) fn is_there(&self) -> bool {
        matches!(self.state, State::There { .. })
    }

    /// Whether nothing speaks against its reading soon what is typed now: it is there, or was asked for the
    /// first time since somebody looks, so that no pause has grown yet.
    fn is_hoped(&self) -> bool {
        self.pause == PAUSE_MIN
    }

    /// Types `keys`, of which those are lost that there is no room for, or nobody to read. Whoever types at
    /// once, as a script does, is heard as soon as the machine is.
    pub(super) fn send(&mut self, keys: &[u8]) {
        if self.is_hoped() {
            let taken = keys.len().min(self.room());
            self.input.extend(keys.iter().take(taken));
        }
    }

    /// Nobody looks any more.
    pub(super) fn leave(&mut self, now: Instant) {
        self.state = State::Away { until: now };
        self.pause = PAUSE_MIN;
        self.input.clear();
    }

    /// Does what there is to do, for somebody who looks.
    pub(super) fn step(&mut self, now: Instant) -> News {
        let mut news = News::default();
        let done = match &self.state {
            State::Away { until } if *until > now => return news,
            State::Away { .. } => self.ask(now),
            State::Asking { .. } => self.listen(now, &mut news),
            State::There { .. } => self.exchange(&mut news),
        };
        if done.is_err() {
            news.has_gone = self.is_there();
            self.input.clear();
            self.state = State::Away { until: now + self.pause };
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        news
    }

    fn ask(&mut self, now: Instant) -> io::Result<()> {
        let mut stream = dial(&self.socket)?;
        // The request is far smaller than what a socket takes at once.
        stream.write_all(REQUEST)?;
        self.state = State::Asking { stream, head: Vec::new(), deadline: now + ANSWER_TIME_MAX };
        Ok(())
    }

    fn listen(&mut self, now: Instant, news: &mut News) -> io::Result<()> {
        let State::Asking { stream, head, deadline } = &mut self.state else { return Ok(()) };
        let mut bytes = [0; HEAD_SIZE_MAX];
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(size) => head.extend_from_slice(bytes.get(..size).unwrap_or_default()),
            Err(error) if is_later(&error) && now < *deadline => return Ok(()),
            Err(error) => return Err(error),
        }
        let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else {
            let is_short = head.len() < HEAD_SIZE_MAX;
            return if is_short { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) };
        };
        if !head.starts_with(ACCEPTED) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        news.output = head.split_off(end + 4);
        news.has_come = true;
        let stream = stream.try_clone()?;
        self.state = State::There { stream };
        self.pause = PAUSE_MIN;
        Ok(())
    }

    fn exchange(&mut self, news: &mut News) -> io::Result<()> {
        let State::There { stream } = &mut self.state else { return Ok(()) };
        while !self.input.is_empty() {
            let (front, _) = self.input.as_slices();
            match stream.write(front) {
                Ok(size) => drop(self.input.drain(..size)),
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let mut bytes = [0; READ_SIZE];
        match stream.read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(size) => {
                news.output.extend_from_slice(bytes.get(..size).unwrap_or_default());
                Ok(())
            }
            Err(error) if is_later(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether an error passes by itself.
pub(super) fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Connects without ever waiting: a VMM whose queue is full is one that is not there.
fn dial(path: &std::path::Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn step_until(machine: &mut Machine, mut is_enough: impl FnMut(News) -> bool) {
        let end = Instant::now() + SOON;
        loop {
            if is_enough(machine.step(Instant::now())) {
                return;
            }
            assert!(Instant::now() < end, "in time");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn head_of(stream: &mut UnixStream) {
        let mut head = vec![0; REQUEST.len()];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head, REQUEST);
    }

    #[test]
    fn a_console_is_heard_typed_into_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let mut machine = Machine::new(path.clone(), Instant::now());
        // Nobody is there yet, and it is asked again later.
        assert_eq!(machine.step(Instant::now()), News::default());
        assert!(machine.interest().is_none() && machine.deadline().unwrap() > Instant::now());
        for round in 0..2 {
            let listener = UnixListener::bind(&path).unwrap();
            step_until(&mut machine, |_| true);
            let accepting = std::thread::spawn(move || listener.accept().unwrap().0);
            step_until(&mut machine, |_| accepting.is_finished());
            let mut vmm = accepting.join().unwrap();
            head_of(&mut vmm);
            // It was away: keys before it answered are lost, not kept for whatever comes.
            machine.send(b"early");
            vmm.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nlogin: ")
                .unwrap();
            step_until(&mut machine, |news| news.has_come && news.output == b"login: ");
            machine.send(b"root\r");
            step_until(&mut machine, |_| true);
            let mut keys = [0; 5];
            vmm.read_exact(&mut keys).unwrap();
            assert_eq!(&keys, b"root\r", "round {round}");
            drop(vmm);
            step_until(&mut machine, |news| news.has_gone);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_is_typed_at_once_waits_for_the_first_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut machine = Machine::new(path, Instant::now());
        machine.send(b"ro");
        machine.step(Instant::now());
        machine.send(b"ot\r");
        let (mut vmm, _) = listener.accept().unwrap();
        head_of(&mut vmm);
        vmm.write_all(b"HTTP/1.1 101 x\r\n\r\n").unwrap();
        step_until(&mut machine, |news| news.has_come);
        step_until(&mut machine, |_| true);
        let mut keys = [0; 5];
        vmm.read_exact(&mut keys).unwrap();
        assert_eq!(&keys, b"root\r");
    }

    #[test]
    fn who_refuses_or_babbles_is_left() {
        for answer in [&b"HTTP/1.1 409 Conflict\r\n\r\n{}"[..], &[b'x'; HEAD_SIZE_MAX + 1]] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("api.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let mut machine = Machine::new(path, Instant::now());
            machine.step(Instant::now());
            let (mut vmm, _) = listener.accept().unwrap();
            head_of(&mut vmm);
            vmm.write_all(answer).unwrap();
            let end = Instant::now() + SOON;
            while machine.interest().is_some() {
                assert_eq!(machine.step(Instant::now()), News::default());
                assert!(Instant::now() < end, "in time");
            }
        }
    }

    #[test]
    fn keys_have_bounded_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut machine = Machine::new(path, Instant::now());
        machine.step(Instant::now());
        let (mut vmm, _) = listener.accept().unwrap();
        vmm.write_all(b"HTTP/1.1 101 x\r\n\r\n").unwrap();
        step_until(&mut machine, |news| news.has_come);
        machine.send(&[b'x'; INPUT_SIZE_MAX * 2]);
        assert_eq!(machine.room(), 0);
        machine.leave(Instant::now());
        assert_eq!(machine.room(), INPUT_SIZE_MAX);
    }
}
