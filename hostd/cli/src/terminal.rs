//! This computer's terminal, tied to a console: keys there, output here, until somebody leaves.
//!
//! The terminal is raw meanwhile, so that every key, Ctrl-C too, is the machine's; it is as it was when we
//! end, by a signal too. One key is ours: Ctrl-].

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message, WebSocket};

/// A console's other end.
pub(crate) type Socket = WebSocket<TcpStream>;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// Bytes that are read from standard input at a time.
const INPUT_SIZE_MAX: usize = 4096;
/// Bytes of keys that wait for a machine that doesn't read.
const PENDING_SIZE_MAX: usize = 64 << 10;
/// Bytes of one message from the console.
const MESSAGE_SIZE_MAX: usize = 1 << 20;

/// How a console is spoken to.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .write_buffer_size(INPUT_SIZE_MAX)
        .max_write_buffer_size(PENDING_SIZE_MAX)
        .max_message_size(Some(MESSAGE_SIZE_MAX))
        .max_frame_size(Some(MESSAGE_SIZE_MAX))
}

/// Ties them together until somebody leaves; `signals` becomes readable when we are asked to end.
pub(crate) fn run(socket: Socket, signals: &UnixStream) -> anyhow::Result<()> {
    let stdin = io::stdin();
    let is_terminal = stdin.is_terminal();
    if is_terminal {
        eprintln!("connected; Ctrl-] d leaves");
    }
    // Without the buffer of the library's own, which no descriptor tells about.
    let input = File::from(stdin.as_fd().try_clone_to_owned().context("standard input")?);
    let raw = if is_terminal { Some(RawTerminal::new()?) } else { None };
    let ended = Session::new(socket, is_terminal)?.run(input, &mut io::stdout(), signals);
    drop(raw);
    match ended.context("the console")? {
        End::Left => eprintln!("left"),
        End::Closed if is_terminal => eprintln!("the connection is closed"),
        End::Closed | End::Signal => {}
    }
    Ok(())
}

/// Becomes readable when somebody asks us to end.
pub(crate) fn signals() -> anyhow::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
    }
    Ok(ours)
}

/// Why a session is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Left,
    Closed,
    Signal,
}

/// Bytes both ways.
struct Session {
    socket: Socket,
    /// `None` when standard input is no terminal.
    escape: Option<Escape>,
    input_is_open: bool,
    is_behind: bool,
}

impl Session {
    fn new(socket: Socket, is_terminal: bool) -> io::Result<Self> {
        socket.get_ref().set_nonblocking(true)?;
        let escape = is_terminal.then(Escape::default);
        Ok(Self { socket, escape, input_is_open: true, is_behind: false })
    }

    fn run(
        mut self,
        mut input: File,
        output: &mut impl Write,
        signals: &UnixStream,
    ) -> io::Result<End> {
        loop {
            // What the handshake brought along is here already.
            if !self.copy_output(output)? || !self.flush()? {
                return Ok(End::Closed);
            }
            let (typed, signal) = self.wait(input.as_fd(), signals)?;
            if signal {
                return Ok(End::Signal);
            }
            if typed && self.read_input(&mut input)? {
                return Ok(End::Left);
            }
        }
    }

    /// Waits until something happens; tells whether there is input, and a signal.
    fn wait(&self, input: BorrowedFd<'_>, signals: &UnixStream) -> io::Result<(bool, bool)> {
        let mut of_socket = PollFlags::IN;
        of_socket.set(PollFlags::OUT, self.is_behind);
        let mut descriptors = vec![
            PollFd::new(self.socket.get_ref(), of_socket),
            PollFd::new(signals, PollFlags::IN),
        ];
        // A pipe waits for the machine; a person's keys are read all the same, for one may be Ctrl-].
        if self.input_is_open && (self.escape.is_some() || !self.is_behind) {
            descriptors.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
        }
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| {
            descriptors.get(index).is_some_and(|descriptor| !descriptor.revents().is_empty())
        };
        Ok((ready(2), ready(1)))
    }

    /// Whether to leave.
    fn read_input(&mut self, input: &mut impl Read) -> io::Result<bool> {
        let mut bytes = [0; INPUT_SIZE_MAX];
        let size = match input.read(&mut bytes) {
            Ok(size) => size,
            Err(error) if is_later(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        self.input_is_open = size != 0;
        let typed = bytes.get(..size).unwrap_or_default();
        let mut keys = Vec::new();
        let leaves = match &mut self.escape {
            None => {
                keys.extend_from_slice(typed);
                false
            }
            Some(escape) => escape.feed(typed, &mut keys),
        };
        if !keys.is_empty() {
            match self.socket.write(Message::binary(keys)) {
                // Keys that a machine has no room for are lost, as with any terminal.
                Ok(()) | Err(Error::WriteBufferFull(_)) => {}
                Err(Error::Io(error)) if is_later(&error) => {}
                // It is closed, which reading will say.
                Err(_) => {}
            }
        }
        Ok(leaves)
    }

    /// Whether the connection is still there.
    fn flush(&mut self) -> io::Result<bool> {
        match self.socket.flush() {
            Ok(()) => self.is_behind = false,
            Err(Error::Io(error)) if is_later(&error) => self.is_behind = true,
            Err(_) => return Ok(false),
        }
        Ok(true)
    }

    /// Prints what came; tells whether there may be more.
    fn copy_output(&mut self, output: &mut impl Write) -> io::Result<bool> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => output.write_all(&bytes)?,
                Ok(Message::Text(text)) => output.write_all(text.as_bytes())?,
                Ok(Message::Close(_)) => return output.flush().map(|()| false),
                Ok(_) => {}
                Err(Error::Io(error)) if is_later(&error) => return output.flush().map(|()| true),
                Err(_) => return output.flush().map(|()| false),
            }
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Looks for our key among the machine's.
#[derive(Default)]
struct Escape {
    is_armed: bool,
}

impl Escape {
    /// Adds what is the machine's to `out`; tells whether to leave.
    fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in input {
            match (self.is_armed, *byte) {
                (false, ESCAPE) => self.is_armed = true,
                (false, key) => out.push(key),
                (true, b'd' | b'D') => return true,
                (true, key) => {
                    self.is_armed = false;
                    out.push(ESCAPE);
                    out.extend(Some(key).filter(|key| *key != ESCAPE));
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
        // The machine may have left the cursor anywhere in a line.
        let _ = io::stdout().write_all(b"\r\n").and_then(|()| io::stdout().flush());
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A console that says `greeting`, then what it is told in capitals, and ends when it reads `bye`.
    fn console(greeting: &'static str) -> (Socket, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
            socket.send(Message::binary(greeting)).unwrap();
            let mut heard = Vec::new();
            while let Ok(message) = socket.read() {
                let keys = message.into_data();
                heard.extend_from_slice(&keys);
                let _ = socket.send(Message::binary(keys.to_ascii_uppercase()));
                if heard.ends_with(b"bye") {
                    let _ = socket.close(None);
                }
            }
            heard
        });
        let stream = TcpStream::connect(address).unwrap();
        let url = format!("ws://{address}/ws");
        let shaken = tungstenite::client::client_with_config(url, stream, Some(config()));
        (shaken.unwrap().0, serving)
    }

    fn pipe() -> (File, File) {
        let (from, to) = io::pipe().unwrap();
        (File::from(std::os::fd::OwnedFd::from(from)), File::from(std::os::fd::OwnedFd::from(to)))
    }

    #[test]
    fn keys_go_there_and_output_comes_here_until_it_ends() {
        let (socket, serving) = console("login: ");
        let (from, mut to) = pipe();
        let (_quiet, signals) = UnixStream::pair().unwrap();
        to.write_all(b"root\x1d\rbye").unwrap();
        drop(to);
        let mut output = Vec::new();
        let end = Session::new(socket, false).unwrap().run(from, &mut output, &signals).unwrap();
        assert_eq!(end, End::Closed);
        assert_eq!(output, b"login: ROOT\x1d\rBYE");
        // From a pipe, no key is ours.
        assert_eq!(serving.join().unwrap(), b"root\x1d\rbye");
    }

    #[test]
    fn who_is_at_a_terminal_leaves_by_a_key_and_a_signal_ends_it() {
        let (socket, serving) = console("");
        let (from, mut to) = pipe();
        let (asking, signals) = UnixStream::pair().unwrap();
        to.write_all(b"ls\r\x1dd").unwrap();
        let session = Session::new(socket, true).unwrap();
        let again = from.try_clone().unwrap();
        assert_eq!(session.run(from, &mut Vec::new(), &signals).unwrap(), End::Left);
        drop(serving);

        let (socket, _serving) = console("");
        (&asking).write_all(b"x").unwrap();
        let session = Session::new(socket, true).unwrap();
        assert_eq!(session.run(again, &mut Vec::new(), &signals).unwrap(), End::Signal);
    }

    #[test]
    fn only_the_sequence_leaves() {
        for (typed, keys, leaves) in [
            (&b"ls\rd"[..], &b"ls\rd"[..], false),
            (b"a\x1dd", b"a", true),
            (b"\x1d\x1dd", b"\x1dd", false),
            (b"\x1dx", b"\x1dx", false),
        ] {
            // However it is cut.
            for cut in 0..=typed.len() {
                let (mut escape, mut out) = (Escape::default(), Vec::new());
                let (first, second) = typed.split_at(cut);
                let left = escape.feed(first, &mut out) || escape.feed(second, &mut out);
                assert_eq!((out.as_slice(), left), (keys, leaves), "{typed:?} cut at {cut}");
            }
        }
    }
}
