//! `vmm console`: a terminal on a VM's console.
//!
//! The terminal is raw while attached, so that every key, Ctrl-C too, is the guest's; it is as it was
//! when we end, by a signal too. One key is ours: Ctrl-].

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::client::Client;
use crate::output;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// Keys that wait for a guest that doesn't read; more are lost.
const PENDING_SIZE_MAX: usize = 64 << 10;

/// Attach to a VM's console
///
/// Every key goes to the guest, but Ctrl-]: Ctrl-] d detaches, Ctrl-] Ctrl-] sends one Ctrl-]. Whoever
/// was attached before is detached. With standard input from a pipe, all of it goes to the guest, and
/// output is printed until the VM ends.
#[derive(Args)]
pub(crate) struct ConsoleArguments {
    /// The VM's API socket
    socket: PathBuf,
}

pub(crate) fn run(arguments: &ConsoleArguments) -> anyhow::Result<()> {
    let signals = signals()?;
    let stream = Client::new(&arguments.socket).attach()?;
    stream.set_nonblocking(true)?;
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        eprintln!("attached; Ctrl-] d detaches");
    }
    let raw = if is_terminal { Some(RawTerminal::new()?) } else { None };
    let ended = Session::new(stream, is_terminal).run(&signals);
    drop(raw);
    match ended.context("the console")? {
        End::Detached => eprintln!("detached"),
        End::Closed if is_terminal => eprintln!("the VM closed the console"),
        End::Closed | End::Signal => {}
    }
    Ok(())
}

/// Why a session is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Detached,
    Closed,
    Signal,
}

/// Bytes both ways.
struct Session {
    stream: UnixStream,
    /// `None` when standard input is no terminal, or has ended.
    escape: Option<Escape>,
    input_is_open: bool,
    pending: Vec<u8>,
}

impl Session {
    fn new(stream: UnixStream, is_terminal: bool) -> Self {
        let escape = is_terminal.then(Escape::default);
        Self { stream, escape, input_is_open: true, pending: Vec::new() }
    }

    fn run(mut self, signals: &UnixStream) -> io::Result<End> {
        let stdin = io::stdin();
        loop {
            let (input, stream, signal) = self.wait(stdin.as_fd(), signals)?;
            if signal {
                return Ok(End::Signal);
            }
            if input && self.read_input(&mut stdin.lock())? {
                return Ok(End::Detached);
            }
            self.send()?;
            if stream && !self.copy_output()? {
                return Ok(End::Closed);
            }
        }
    }

    fn wait(&self, stdin: BorrowedFd<'_>, signals: &UnixStream) -> io::Result<(bool, bool, bool)> {
        let mut of_stream = PollFlags::IN;
        if !self.pending.is_empty() {
            of_stream |= PollFlags::OUT;
        }
        // A pipe waits for the guest; a person's keys are read all the same, for one may be Ctrl-].
        let room = self.escape.is_some() || self.pending.is_empty();
        let of_input = if self.input_is_open && room { PollFlags::IN } else { PollFlags::empty() };
        let mut descriptors =
            vec![PollFd::new(&self.stream, of_stream), PollFd::new(signals, PollFlags::IN)];
        // One that is closed would report that for ever.
        if !of_input.is_empty() {
            descriptors.push(PollFd::from_borrowed_fd(stdin, of_input));
        }
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| {
            descriptors.get(index).is_some_and(|descriptor| !descriptor.revents().is_empty())
        };
        Ok((ready(2), ready(0), ready(1)))
    }

    /// Whether to detach.
    fn read_input(&mut self, input: &mut impl Read) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let size = input.read(&mut bytes)?;
        self.input_is_open = size != 0;
        let detach = match &mut self.escape {
            None => {
                self.pending.extend_from_slice(&bytes[..size]);
                false
            }
            Some(escape) => escape.feed(&bytes[..size], &mut self.pending),
        };
        self.pending.truncate(PENDING_SIZE_MAX);
        Ok(detach)
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(size) => drop(self.pending.drain(..size)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It is closed, which reading will say.
                Err(_) => self.pending.clear(),
            }
        }
        Ok(())
    }

    /// Whether there may be more.
    fn copy_output(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(size) => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes[..size]).and_then(|()| out.flush())?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Looks for our key among the guest's.
#[derive(Default)]
struct Escape {
    is_armed: bool,
}

impl Escape {
    /// Adds what is the guest's to `out`; tells whether to detach.
    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in input {
            match (self.is_armed, *byte) {
                (false, ESCAPE) => self.is_armed = true,
                (false, key) => out.push(key),
                (true, b'd' | b'D') => return true,
                (true, key) => {
                    self.is_armed = false;
                    out.push(ESCAPE);
                    if key != ESCAPE {
                        out.push(key);
                    }
                }
            }
        }
        false
    }
}

/// The terminal of standard input, raw until this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn new() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).context("the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
        // The guest may have left the cursor anywhere in a line.
        let _ = output::print("\r\n");
    }
}

/// Becomes readable when somebody asks us to end.
fn signals() -> anyhow::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut escape, mut out) = (Escape::default(), Vec::new());
        let detached = pieces.iter().any(|piece| escape.feed(piece, &mut out));
        (out, detached)
    }

    #[test]
    fn only_the_sequence_detaches() {
        assert_eq!(feed(&[b"ls\rd"]), (b"ls\rd".to_vec(), false));
        assert_eq!(feed(&[b"a\x1dd", b"b"]), (b"a".to_vec(), true));
        assert_eq!(feed(&[b"a\x1d", b"d"]), (b"a".to_vec(), true));
        assert_eq!(feed(&[b"\x1d\x1dd"]), (b"\x1dd".to_vec(), false));
        assert_eq!(feed(&[b"\x1dx"]), (b"\x1dx".to_vec(), false));
    }

    proptest! {
        /// Whoever doubles the key gets every byte through, however it is cut.
        #[test]
        fn doubled_keys_pass(bytes: Vec<u8>, cut: prop::sample::Index) {
            let typed: Vec<u8> = bytes
                .iter()
                .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == ESCAPE { 2 } else { 1 }))
                .collect();
            let (start, end) = typed.split_at(if typed.is_empty() { 0 } else { cut.index(typed.len()) });
            prop_assert_eq!(feed(&[start, end]), (bytes, false));
        }
    }
}
