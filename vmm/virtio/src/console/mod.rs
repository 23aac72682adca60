//! Console (virtio 1.3 §5.3): one port, `hvc0` in a Linux guest.
//!
//! ```text
//!   driver ── transmit queue ──► scrollback, and every stream      file, stdout, pty, attached
//!          ◄── receive queue ─── input ◄── streams, ConsoleHandle::send
//! ```
//!
//! A [`Stream`] is where output goes or input comes from. What the guest writes is kept twice: the
//! last [`SCROLLBACK_SIZE`] bytes for whoever attaches later, and [`PENDING_SIZE_MAX`] bytes for
//! each stream whose reader is slow. A reader slower than that loses the oldest, counted; it never
//! makes the guest wait, because a guest's kernel spins until its console has taken a message.
//! Input is the other way round: it waits in bounded room, and is not read from its stream before
//! the guest has taken what came earlier.
//!
//! Streams outlive a driver: a guest that reboots finds its console as it was.

mod sink;
#[cfg(test)]
mod tests;
mod unit;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use sink::{FILE_SIZE_MAX, RawPty, Stream};

use crate::{Activation, ConfigSpace, Counter, Device, DeviceError, DeviceId, Unit};
use unit::ConsoleUnit;

/// Bytes of output that are kept for whoever attaches.
pub const SCROLLBACK_SIZE: usize = 64 * 1024;
/// Bytes of output that wait for one slow reader.
pub const PENDING_SIZE_MAX: usize = 64 * 1024;
/// Bytes of input that wait for the guest.
pub const INPUT_SIZE_MAX: usize = 64 * 1024;
/// Streams of one console.
pub const STREAMS_MAX: usize = 8;

/// `VIRTIO_CONSOLE_F_SIZE` (§5.3.3).
const F_SIZE: u32 = 0;
/// `struct virtio_console_config` (§5.3.4): `cols` u16, `rows` u16, then what is for several
/// ports, `max_nr_ports` and `emerg_wr`, u32 each.
const CONFIG_SIZE: usize = 12;

/// A console.
pub struct Console {
    shared: Arc<Shared>,
}

/// Reaches a console from other threads. Clones reach the same console.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Shared>);

/// What the device, its unit and its handle share.
struct Shared {
    config: ConfigSpace,
    /// Tells the unit that streams or input have come.
    wake: EventFd,
    lines: Mutex<Lines>,
    written: Counter,
    dropped: Counter,
    read: Counter,
}

/// Both directions. Nothing here waits, so that a lock on it is short.
#[derive(Default)]
struct Lines {
    scrollback: VecDeque<u8>,
    streams: Vec<(u32, Stream)>,
    /// The number of the stream that came last.
    last_number: u32,
    /// Streams that have ended. They stay open for one event more, since whoever watches the
    /// unit's descriptors does not know yet.
    ended: Vec<Stream>,
    input: VecDeque<u8>,
}

impl Console {
    const QUEUE_SIZES: [u16; 2] = [64, 64];

    /// A console of so many columns and rows (0 if nobody knows), with `streams` from the start.
    ///
    /// # Errors
    /// [`DeviceError::State`] for more than [`STREAMS_MAX`] streams, [`DeviceError::Host`] when
    /// there are no descriptors left.
    pub fn new(columns: u16, rows: u16, streams: Vec<Stream>) -> Result<Self, DeviceError> {
        if streams.len() > STREAMS_MAX {
            let what = format!("console: {} streams, of {STREAMS_MAX} possible", streams.len());
            return Err(DeviceError::State(what));
        }
        let wake = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| DeviceError::Host { what: "make an eventfd".to_owned(), source })?;
        let mut config = [0; CONFIG_SIZE];
        set_size(&mut config, columns, rows);
        let mut lines = Lines::default();
        for stream in streams {
            lines.add(stream);
        }
        let shared = Shared {
            config: ConfigSpace::new(&config),
            wake,
            lines: Mutex::new(lines),
            written: Counter::default(),
            dropped: Counter::default(),
            read: Counter::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Reaches this console from other threads.
    #[must_use]
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.shared))
    }
}

impl ConsoleHandle {
    /// Types `bytes`. Returns how many there was room for; the others are not taken.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> usize {
        let taken = self.0.with(|lines| {
            let taken = bytes.len().min(INPUT_SIZE_MAX.saturating_sub(lines.input.len()));
            lines.input.extend(&bytes[..taken]);
            taken
        });
        self.0.wake();
        taken
    }

    /// The last output, [`SCROLLBACK_SIZE`] bytes at most.
    #[must_use]
    pub fn recent(&self) -> Vec<u8> {
        self.0.with(|lines| lines.scrollback.iter().copied().collect())
    }

    /// Adds a socket, pipe or terminal that gets the recent output and all that follows, and whose
    /// input goes to the guest. It ends when its other end is closed.
    ///
    /// # Errors
    /// When there are [`STREAMS_MAX`] already, or the descriptor cannot be used.
    pub fn attach(&self, descriptor: OwnedFd) -> io::Result<()> {
        let mut stream = Stream::duplex(descriptor)?;
        self.0.with(|lines| {
            if lines.streams.len() >= STREAMS_MAX {
                let what = format!("the console has {STREAMS_MAX} streams already");
                return Err(io::Error::other(what));
            }
            stream.queue(&lines.scrollback);
            lines.add(stream);
            Ok(())
        })?;
        self.0.wake();
        Ok(())
    }

    /// The terminal has a new size: the guest is told.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.config.update(|config| set_size(config, columns, rows));
    }
}

fn set_size(config: &mut [u8], columns: u16, rows: u16) {
    if let Some((width, rest)) = config.split_first_chunk_mut::<2>()
        && let Some((height, _)) = rest.split_first_chunk_mut::<2>()
    {
        (*width, *height) = (columns.to_le_bytes(), rows.to_le_bytes());
    }
}

impl Shared {
    fn with<T>(&self, use_it: impl FnOnce(&mut Lines) -> T) -> T {
        use_it(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake(&self) {
        // Fails only when the count is full, and then the unit has been woken.
        let _ = self.wake.write(1);
    }
}

impl Lines {
    /// Takes a stream in, under the next number; 0 is never one.
    fn add(&mut self, stream: Stream) {
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        self.streams.push((self.last_number, stream));
    }

    /// Output of the guest. Returns how many bytes slow readers lost.
    fn output(&mut self, bytes: &[u8]) -> u64 {
        let surplus = (self.scrollback.len() + bytes.len()).saturating_sub(SCROLLBACK_SIZE);
        self.scrollback.drain(..surplus.min(self.scrollback.len()));
        let kept = bytes.len().min(SCROLLBACK_SIZE);
        self.scrollback.extend(&bytes[bytes.len() - kept..]);
        let dropped = self.streams.iter_mut().map(|(_, stream)| stream.write(bytes)).sum();
        self.bury();
        dropped
    }

    /// Sends what waits.
    fn flush(&mut self) {
        for (_, stream) in &mut self.streams {
            stream.flush();
        }
        self.bury();
    }

    /// Does what stream `number` is ready for. Returns how many bytes of input came.
    fn ready(&mut self, number: u32) -> usize {
        let before = self.input.len();
        if let Some((_, stream)) = self.streams.iter_mut().find(|(known, _)| *known == number) {
            stream.ready(&mut self.input);
        }
        self.bury();
        self.input.len() - before
    }

    /// Takes streams that have ended out of use.
    fn bury(&mut self) {
        let ended = self.streams.extract_if(.., |(_, stream)| stream.has_ended());
        self.ended.extend(ended.map(|(_, stream)| stream));
    }
}

impl Device for Console {
    fn id(&self) -> DeviceId {
        DeviceId::Console
    }

    fn features(&self) -> u64 {
        1 << F_SIZE | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &Self::QUEUE_SIZES
    }

    fn config(&self) -> &ConfigSpace {
        &self.shared.config
    }

    /// The size is that of this host's terminal.
    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        self.shared.config.check_seen(seen, &[])
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        let (receive, transmit) = (activation.take_queue(0)?, activation.take_queue(1)?);
        // What came before there was a driver.
        self.shared.wake();
        Ok(vec![Box::new(ConsoleUnit::new(Arc::clone(&self.shared), receive, transmit))])
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        vec![
            ("output_bytes", self.shared.written.clone()),
            ("output_bytes_dropped", self.shared.dropped.clone()),
            ("input_bytes", self.shared.read.clone()),
        ]
    }
}
