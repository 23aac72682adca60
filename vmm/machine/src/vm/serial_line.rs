//! Whoever attaches to the serial port while the VM runs, beside where its output goes from the start.
//!
//! ```text
//!   guest ──► port ──► sink (stdout, a file, a pty)            sink's own keys ──┐
//!                └───► last output, and who is attached                          ├──► port
//!                                  who is attached ──keys──────────────────────── ┘
//! ```
//!
//! One client at a time: a new one takes the place of the one before. It gets the last
//! [`SCROLLBACK_SIZE`] bytes and then all that follows, byte by byte as the guest sends it, as far as its
//! socket takes it; what it does not take is lost to it, since a vCPU sends and waits for nobody.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use vmm_virtio::console::SCROLLBACK_SIZE;

use crate::{SerialInput, Sink};

/// The port's other end. Clones are the same one.
#[derive(Clone)]
pub(super) struct SerialLine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Tells who reads keys that somebody else is attached.
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    scrollback: VecDeque<u8>,
    attached: Option<Arc<UnixStream>>,
}

impl SerialLine {
    /// A line that nobody is attached to.
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared { state: Mutex::default(), wake })))
    }

    /// A sink whose output is heard here, too.
    pub(super) fn heard(&self, sink: Sink) -> Sink {
        Box::new(Heard { sink, line: self.clone() })
    }

    /// Attaches a client whose stream does not block.
    pub(super) fn attach(&self, stream: UnixStream) {
        let mut state = self.state();
        let (front, back) = state.scrollback.as_slices();
        // A socket that nothing was sent to takes all of it, or the client does without the rest.
        let _ = rustix::io::write(&stream, &[front, back].concat());
        state.attached = Some(Arc::new(stream));
        drop(state);
        // It fails only when it has been written 2^64 times unread.
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_le_bytes());
    }

    /// Passes keys on, of `from` until it ends and of whoever is attached, for as long as the VM runs.
    pub(super) fn pass_keys(&self, mut from: Option<File>, to: &SerialInput) {
        loop {
            let attached = self.state().attached.clone();
            let Some((own, theirs)) = self.wait(from.as_ref(), attached.as_deref()) else { return };
            if own
                && let Some(file) = &from
                && !pass(file.as_fd(), to)
            {
                from = None;
            }
            if theirs
                && let Some(stream) = &attached
                && !pass(stream.as_fd(), to)
            {
                self.detach(stream);
            }
        }
    }

    /// Waits for keys, or for somebody who attaches; tells of which of both there are some. Nothing, if
    /// that can't be waited for.
    fn wait(&self, from: Option<&File>, attached: Option<&UnixStream>) -> Option<(bool, bool)> {
        let mut waited = vec![PollFd::new(&self.0.wake, PollFlags::IN)];
        waited.extend(from.map(|file| PollFd::new(file, PollFlags::IN)));
        waited.extend(attached.map(|stream| PollFd::new(stream, PollFlags::IN)));
        if poll(&mut waited, None).is_err_and(|error| error != Errno::INTR) {
            return None;
        }
        let mut ready = waited.iter().map(|one| !one.revents().is_empty());
        if ready.next().unwrap_or_default() {
            let mut count = [0; size_of::<u64>()];
            let _ = rustix::io::read(&self.0.wake, &mut count);
        }
        let own = from.is_some() && ready.next().unwrap_or_default();
        Some((own, attached.is_some() && ready.next().unwrap_or_default()))
    }

    fn output(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.scrollback.extend(bytes);
        let surplus = state.scrollback.len().saturating_sub(SCROLLBACK_SIZE);
        state.scrollback.drain(..surplus);
        if let Some(stream) = &state.attached {
            match rustix::io::write(stream, bytes) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => state.attached = None,
            }
        }
    }

    fn detach(&self, stream: &Arc<UnixStream>) {
        let mut state = self.state();
        if state.attached.as_ref().is_some_and(|attached| Arc::ptr_eq(attached, stream)) {
            state.attached = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink that is heard.
struct Heard {
    sink: Sink,
    line: SerialLine,
}

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Heard even if the sink refuses it.
        self.line.output(bytes);
        self.sink.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Passes on what there is; false if there will be no more.
fn pass(from: BorrowedFd<'_>, to: &SerialInput) -> bool {
    let mut keys = [0; 64];
    let size = match rustix::io::read(from, &mut keys) {
        Ok(0) => return false,
        Ok(size) => size,
        Err(Errno::AGAIN | Errno::INTR) => return true,
        Err(_) => return false,
    };
    let mut rest = keys.get(..size).unwrap_or_default();
    while !rest.is_empty() {
        let taken = to.enqueue(rest);
        rest = rest.get(taken..).unwrap_or_default();
        if taken == 0 && !wait_for_room(to) {
            return false;
        }
    }
    true
}

/// Waits until the guest has taken what the port holds. False if that cannot be waited for.
fn wait_for_room(port: &SerialInput) -> bool {
    let mut waited = [PollFd::from_borrowed_fd(port.drained(), PollFlags::IN)];
    let result = poll(&mut waited, None);
    // Nothing, after an interruption.
    let _ = port.take_drained();
    result.is_ok() || result == Err(Errno::INTR)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::legacy::SerialConsole;
    use crate::line::Line;

    const DATA: u16 = 0x3f8;
    const LINE_STATUS: u16 = DATA + 5;
    /// Far longer than it takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn port(sink: Sink) -> SerialConsole {
        SerialConsole::new(sink, Line::counting(vmm_virtio::Counter::default())).unwrap()
    }

    /// Takes what is there, a byte at a time, as a guest does.
    fn take(console: &SerialConsole, count: usize) -> Vec<u8> {
        let give_up = Instant::now() + PATIENCE;
        let mut taken = Vec::new();
        while taken.len() < count {
            if console.read(LINE_STATUS) & 1 == 1 {
                taken.push(console.read(DATA));
            } else {
                assert!(Instant::now() < give_up, "{} bytes came", taken.len());
                thread::yield_now();
            }
        }
        taken
    }

    fn client(line: &SerialLine) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        line.attach(theirs);
        ours
    }

    fn say(console: &SerialConsole, text: &[u8]) {
        text.iter().for_each(|byte| console.write(DATA, *byte));
    }

    fn expect(client: &mut UnixStream, text: &[u8]) {
        let mut heard = vec![0; text.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, text);
    }

    #[test]
    fn keys_wait_for_room_in_the_port_and_come_in_order() {
        let line = SerialLine::new().unwrap();
        let console = port(Box::new(io::sink()));
        let (from, mut to) = io::pipe().unwrap();
        let (input, reader) = (console.input(), line.clone());
        thread::spawn(move || reader.pass_keys(Some(File::from(OwnedFd::from(from))), &input));
        let typed: Vec<u8> = (0..=255).cycle().take(1000).collect();
        to.write_all(&typed).unwrap();
        assert_eq!(take(&console, 300), typed[..300]);
        // What was on its way is gone with the reset, and what comes after it still comes.
        while console.read(LINE_STATUS) & 1 == 0 {
            thread::yield_now();
        }
        console.reset();
        let rest = take(&console, 500);
        assert!(typed[300..].windows(500).any(|window| window == rest), "{rest:?}");
    }

    #[test]
    fn a_client_hears_types_and_gives_way_while_the_log_goes_on() {
        let line = SerialLine::new().unwrap();
        let (mut log, sink) = io::pipe().unwrap();
        let console = port(line.heard(Box::new(sink)));
        // As under a supervisor, there are no keys but those of clients.
        let (input, reader) = (console.input(), line.clone());
        let nothing = File::open("/dev/null").unwrap();
        thread::spawn(move || reader.pass_keys(Some(nothing), &input));
        say(&console, b"before ");
        let mut first = client(&line);
        say(&console, b"after");
        expect(&mut first, b"before after");
        first.write_all(b"ls\r").unwrap();
        assert_eq!(take(&console, 3), b"ls\r");

        // One more takes its place.
        let mut second = client(&line);
        expect(&mut second, b"before after");
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
        second.write_all(b"x").unwrap();
        assert_eq!(take(&console, 1), b"x");
        drop(second);
        say(&console, b"!");
        let mut logged = [0; 13];
        log.read_exact(&mut logged).unwrap();
        assert_eq!(&logged, b"before after!");
    }

    #[test]
    fn who_does_not_read_holds_up_no_cpu() {
        let line = SerialLine::new().unwrap();
        let console = port(line.heard(Box::new(io::sink())));
        let _silent = client(&line);
        let flood = vec![b'x'; 1 << 20];
        line.output(&flood);
        for _ in 0..16 {
            line.output(&flood);
        }
        say(&console, b"end");
        assert_eq!(line.state().scrollback.len(), SCROLLBACK_SIZE);
        // The next one sees what was said last.
        let mut late = client(&line);
        let mut heard = vec![0; SCROLLBACK_SIZE];
        late.read_exact(&mut heard).unwrap();
        assert!(heard.ends_with(b"xend"));
    }
}
