//! The first serial port: a 16550, for kernels that talk before they have drivers.
//!
//! Output goes to a sink byte by byte, in order, from the thread of the CPU that wrote it: a sink
//! that blocks stops that CPU, so whoever needs a machine that can't be held up passes one that
//! drops instead. What a sink refuses is counted and lost. Input comes from whoever holds a
//! [`SerialInput`]; the port takes 64 bytes at a time and says when it has room again.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;
use vmm_virtio::Counter;

use crate::line::Line;

pub(super) const PORT_FIRST: u16 = 0x3f8;
pub(super) const PORT_LAST: u16 = 0x3ff;

/// Where output goes.
pub type Sink = Box<dyn Write + Send>;

type Device = Serial<Interrupt, Arc<Drained>, CountingSink>;

/// The port, shared by CPUs and whoever feeds it.
#[derive(Clone)]
pub(crate) struct SerialConsole {
    device: Arc<Mutex<Device>>,
    drained: Arc<Drained>,
    lost: Counter,
}

impl SerialConsole {
    /// A port that writes to `sink`, and interrupts by `line`.
    pub(crate) fn new(sink: Sink, line: Line) -> io::Result<Self> {
        let drained = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        let drained = Arc::new(Drained(drained));
        let lost = Counter::default();
        let sink = CountingSink { sink, lost: lost.clone() };
        let device = Serial::with_events(Interrupt(line), Arc::clone(&drained), sink);
        Ok(Self { device: Arc::new(Mutex::new(device)), drained, lost })
    }

    /// The way in.
    pub(crate) fn input(&self) -> SerialInput {
        SerialInput { console: self.clone() }
    }

    pub(super) fn read(&self, port: u16) -> u8 {
        self.lock().read(offset(port))
    }

    pub(super) fn write(&self, port: u16, byte: u8) {
        // What fails is the sink, which counts, or the interrupt, which the guest can do without.
        let _ = self.lock().write(offset(port), byte);
    }

    /// As after power-on; the sink stays.
    pub(super) fn reset(&self) {
        let mut device = self.lock();
        let line = device.interrupt_evt().0.clone();
        let events = Arc::clone(&self.drained);
        let lost = self.lost.clone();
        let empty = CountingSink { sink: Box::new(io::sink()), lost: lost.clone() };
        let sink = std::mem::replace(device.writer_mut(), empty).sink;
        let sink = CountingSink { sink, lost };
        if let Ok(new) = Serial::from_state(&SerialState::default(), Interrupt(line), events, sink)
        {
            *device = new;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        // A sink that panicked has left the registers as they were.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialConsole").field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// The way into the port, for an event loop.
#[derive(Clone, Debug)]
pub struct SerialInput {
    console: SerialConsole,
}

impl SerialInput {
    /// Hands over as many of `bytes` as the port has room for, and says how many.
    #[must_use]
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let mut device = self.console.lock();
        let room = device.fifo_capacity().min(bytes.len());
        let taken = bytes.get(..room).unwrap_or_default();
        // An error is a full queue, or an interrupt that the guest can do without.
        device.enqueue_raw_bytes(taken).unwrap_or(0)
    }

    /// Bytes of output that the sink refused.
    #[must_use]
    pub const fn lost(&self) -> &Counter {
        &self.console.lost
    }

    /// Becomes readable when the guest has taken all that was handed over. Read it, then hand over
    /// more.
    #[must_use]
    pub fn drained(&self) -> &EventFd {
        &self.console.drained.0
    }
}

#[expect(clippy::cast_possible_truncation, reason = "less than 8")]
const fn offset(port: u16) -> u8 {
    (port - PORT_FIRST) as u8
}

struct Interrupt(Line);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

/// Says that the queue is empty.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // It fails only when it has been written 2^64 times unread.
        let _ = self.0.write(1);
    }
}

/// A sink that never fails, but counts.
struct CountingSink {
    sink: Sink,
    lost: Counter,
}

impl Write for CountingSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sink.write_all(bytes).is_err() {
            self.lost.add(bytes.len() as u64);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // As for `write`, but nothing is lost by it.
        let _ = self.sink.flush();
        Ok(())
    }
}
