//! The first serial port: a 16550, for kernels that talk before they have drivers.
//!
//! Output goes to a sink byte by byte, in order, from the thread of the CPU that wrote it: a sink
//! that blocks stops that CPU, so whoever needs a machine that can't be held up passes one that
//! drops instead. What a sink refuses is counted and lost. Input comes from whoever holds a
//! [`SerialInput`]; the port takes 64 bytes at a time and says when it has room again.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_virtio::Counter;

use crate::line::Line;

pub(super) const PORT_FIRST: u16 = 0x3f8;
pub(super) const PORT_LAST: u16 = 0x3ff;

/// What the port holds of input (`vm_superio`'s `FIFO_SIZE`).
const INPUT_SIZE_MAX: usize = 64;

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
        let drained = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
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

    pub(crate) fn read(&self, port: u16) -> u8 {
        self.lock().read(offset(port))
    }

    pub(crate) fn write(&self, port: u16, byte: u8) {
        // What fails is the sink, which counts, or the interrupt, which the guest can do without.
        let _ = self.lock().write(offset(port), byte);
    }

    /// As after power-on; the sink stays.
    pub(crate) fn reset(&self) {
        // The port's own first state is one that it takes.
        let _ = self.replace(&SerialState::default());
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> SavedSerial {
        SavedSerial::of(self.lock().state())
    }

    /// Takes what [`save`](Self::save) gave; false if that can't be.
    pub(super) fn restore(&self, saved: &SavedSerial) -> bool {
        self.replace(&saved.to_state())
    }

    fn replace(&self, state: &SerialState) -> bool {
        if state.in_buffer.len() > INPUT_SIZE_MAX {
            return false;
        }
        let mut device = self.lock();
        let line = device.interrupt_evt().0.clone();
        let events = Arc::clone(&self.drained);
        let lost = self.lost.clone();
        let empty = CountingSink { sink: Box::new(io::sink()), lost: lost.clone() };
        let sink = std::mem::replace(device.writer_mut(), empty).sink;
        let sink = CountingSink { sink, lost };
        // It fails for too much input, or when the interrupt does, which the guest can do without.
        if let Ok(new) = Serial::from_state(state, Interrupt(line), events, sink) {
            *device = new;
        }
        // Whoever waits for room has it now.
        self.drained.in_buffer_empty();
        true
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

/// What a snapshot keeps of the port: its registers, and what the guest has not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedSerial {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

impl SavedSerial {
    fn of(state: SerialState) -> Self {
        Self {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    fn to_state(&self) -> SerialState {
        SerialState {
            baud_divisor_low: self.divisor[0],
            baud_divisor_high: self.divisor[1],
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input.clone(),
        }
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
        let Some(taken) = bytes.get(..room).filter(|taken| !taken.is_empty()) else { return 0 };
        match device.enqueue_raw_bytes(taken) {
            // The guest has connected the port to itself: what comes by the wire is lost.
            Ok(0) => bytes.len(),
            // An error is an interrupt that the guest can do without.
            Ok(_) | Err(_) => taken.len(),
        }
    }

    /// Bytes of output that the sink refused.
    #[must_use]
    pub const fn lost(&self) -> &Counter {
        &self.console.lost
    }

    /// Becomes readable when the guest has taken all that was handed over, or has forgotten it in a
    /// reset; until [`take_drained`](Self::take_drained).
    #[must_use]
    pub fn drained(&self) -> BorrowedFd<'_> {
        self.console.drained.0.as_fd()
    }

    /// Whether that has happened since the last call.
    #[must_use]
    pub fn take_drained(&self) -> bool {
        let mut count = [0; size_of::<u64>()];
        rustix::io::read(self.drained(), &mut count).is_ok()
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
struct Drained(OwnedFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // It fails only when it has been written 2^64 times unread.
        let _ = rustix::io::write(&self.0, &1_u64.to_le_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it is given.
    #[derive(Clone, Default)]
    struct Record(Arc<Mutex<Vec<u8>>>);

    impl Write for Record {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    const INTERRUPT_ENABLE: u16 = PORT_FIRST + 1;
    const LINE_STATUS: u16 = PORT_FIRST + 5;
    const SCRATCH: u16 = PORT_FIRST + 7;

    fn console(sink: Sink) -> (SerialConsole, Counter) {
        let interrupts = Counter::default();
        (SerialConsole::new(sink, Line::counting(interrupts.clone())).unwrap(), interrupts)
    }

    #[test]
    fn output_arrives_in_order_and_at_once() {
        let record = Record::default();
        let (console, _) = console(Box::new(record.clone()));
        for byte in 0..=255 {
            assert_eq!(console.read(LINE_STATUS) & 0x60, 0x60, "ready for the next");
            console.write(PORT_FIRST, byte);
            assert_eq!(record.0.lock().unwrap().last(), Some(&byte));
        }
        assert_eq!(*record.0.lock().unwrap(), (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn a_sink_that_fails_costs_its_bytes_and_nothing_else() {
        let (console, _) = console(Box::new(Broken));
        (0..10).for_each(|byte| console.write(PORT_FIRST, byte));
        assert_eq!(console.input().lost().value(), 10);
        assert_eq!(console.read(LINE_STATUS) & 0x60, 0x60);
    }

    #[test]
    fn input_is_bounded_and_asks_for_more_when_it_was_taken() {
        let (console, interrupts) = console(Box::new(io::sink()));
        console.write(INTERRUPT_ENABLE, 1);
        let input = console.input();
        let bytes: Vec<u8> = (0..100).collect();
        assert_eq!(input.enqueue(&bytes), 64);
        assert_eq!(input.enqueue(&bytes[64..]), 0);
        assert!(interrupts.value() > 0);
        assert!(!input.take_drained(), "nothing was taken yet");
        let taken: Vec<u8> = (0..64).map(|_| console.read(PORT_FIRST)).collect();
        assert_eq!(taken, bytes[..64]);
        assert!(input.take_drained() && !input.take_drained());
        assert_eq!(input.enqueue(&bytes[64..]), 36);
    }

    #[test]
    fn a_snapshot_keeps_registers_and_what_was_not_read() {
        let (old, _) = console(Box::new(io::sink()));
        old.write(SCRATCH, 0x5a);
        old.write(INTERRUPT_ENABLE, 1);
        assert_eq!(old.input().enqueue(b"keys"), 4);
        assert_eq!(old.read(PORT_FIRST), b'k');
        let saved = old.save();
        let record = Record::default();
        let (new, _) = console(Box::new(record.clone()));
        assert!(new.restore(&saved));
        assert_eq!(new.save(), saved);
        let rest: Vec<u8> = (0..3).map(|_| new.read(PORT_FIRST)).collect();
        assert_eq!((new.read(SCRATCH), rest.as_slice()), (0x5a, b"eys".as_slice()));
        new.write(PORT_FIRST, b'x');
        assert_eq!(*record.0.lock().unwrap(), b"x", "the sink is the new one");
        assert!(!new.restore(&SavedSerial { input: vec![0; 65], ..saved }));
    }

    #[test]
    fn what_comes_while_the_port_talks_to_itself_is_lost() {
        const MODEM_CONTROL: u16 = PORT_FIRST + 4;
        const LOOPBACK: u8 = 1 << 4;
        let (console, _) = console(Box::new(io::sink()));
        console.write(MODEM_CONTROL, LOOPBACK);
        assert_eq!(console.input().enqueue(b"typed"), 5, "nobody waits for it");
        console.write(MODEM_CONTROL, 0);
        assert_eq!(console.read(LINE_STATUS) & 1, 0);
        assert_eq!(console.input().enqueue(b"again"), 5);
        assert_eq!(console.read(PORT_FIRST), b'a');
    }

    #[test]
    fn reset_forgets_registers_and_input_but_not_the_sink() {
        let record = Record::default();
        let (console, _) = console(Box::new(record.clone()));
        console.write(SCRATCH, 0x5a);
        console.write(PORT_FIRST, b'a');
        assert_eq!(console.input().enqueue(b"old"), 3);
        let input = console.input();
        assert!(!input.take_drained());
        console.reset();
        assert!(input.take_drained(), "whoever waits for room has it");
        assert_eq!((console.read(SCRATCH), console.read(LINE_STATUS) & 1), (0, 0));
        console.write(PORT_FIRST, b'b');
        assert_eq!(*record.0.lock().unwrap(), b"ab");
    }
}
