//! Both ends of a function, for tests: a host that records, a device that echoes, and a driver
//! that goes through registers.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Doorbell, Executor, Failure, Function, Host, Message, Parts, Running, Transport};
use crate::memory::SharedMemory;
use crate::{
    Activation, Chain, ConfigSpace, Device, DeviceError, DeviceId, Interest, Queue, Source, Unit,
    UnitError,
};

/// What a function asked of its [`FakeHost`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Host::connect`], when it was not refused.
    Connect(Vec<(u16, Message)>),
    /// [`Host::send`], with the message that the vector was connected to.
    Send(u16, Message),
    /// [`Host::send_unprepared`].
    Unprepared(Message),
}

/// A host that records what it is asked.
#[derive(Default)]
pub struct FakeHost(Mutex<HostState>);

#[derive(Default)]
struct HostState {
    events: Vec<Event>,
    connected: HashMap<u16, Message>,
    doorbells: Vec<Doorbell>,
    refuses: bool,
}

impl FakeHost {
    /// What it was asked since the last call.
    ///
    /// # Panics
    /// When another test thread did.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().expect("no panic").events)
    }

    /// Whether to refuse connections.
    ///
    /// # Panics
    /// When another test thread did.
    pub fn refuse(&self, refuses: bool) {
        self.0.lock().expect("no panic").refuses = refuses;
    }

    /// Where the driver kicks without an exit.
    ///
    /// # Panics
    /// When another test thread did.
    pub fn doorbells(&self) -> Vec<u64> {
        let state = self.0.lock().expect("no panic");
        state.doorbells.iter().map(|doorbell| doorbell.address).collect()
    }

    /// The driver writes to `address`: true if that was a doorbell.
    ///
    /// # Panics
    /// When another test thread did.
    pub fn ring(&self, address: u64) -> bool {
        let state = self.0.lock().expect("no panic");
        let doorbell = state.doorbells.iter().find(|doorbell| doorbell.address == address);
        doorbell.is_some_and(|doorbell| doorbell.kick.write(1).is_ok())
    }
}

impl Host for FakeHost {
    fn connect(&self, vectors: &[(u16, Message)]) -> io::Result<()> {
        let mut state = self.0.lock().expect("no panic");
        if state.refuses {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        state.connected.extend(vectors.iter().copied());
        state.events.push(Event::Connect(vectors.to_vec()));
        Ok(())
    }

    fn send(&self, vector: u16) {
        let mut state = self.0.lock().expect("no panic");
        let message = state.connected[&vector];
        state.events.push(Event::Send(vector, message));
    }

    fn send_unprepared(&self, message: Message) {
        self.0.lock().expect("no panic").events.push(Event::Unprepared(message));
    }

    fn watch(&self, doorbells: &[Doorbell]) {
        self.0.lock().expect("no panic").doorbells = doorbells.to_vec();
    }
}

/// The size of each of an [`Echo`]'s queues.
pub const ECHO_QUEUE_SIZE: u16 = 16;
/// A request that an [`Echo`] answers after [`ECHO_DELAY`].
pub const ECHO_LATER: &[u8] = b"later";
/// A request that no [`Echo`] stands.
pub const ECHO_FAIL: &[u8] = b"fail!";
/// How long [`ECHO_LATER`] takes.
pub const ECHO_DELAY: Duration = Duration::from_millis(20);

/// A device with a queue for each unit, that writes into a chain what it reads from it.
pub struct Echo {
    config: ConfigSpace,
    sizes: Vec<u16>,
    control: Arc<EchoControl>,
}

/// The test's hand on an [`Echo`].
#[derive(Debug)]
pub struct EchoControl {
    /// The next activation fails.
    pub fails_to_start: AtomicBool,
    /// How long a unit takes to stop, in milliseconds.
    pub stop_ms: AtomicU64,
    /// Watched by the first unit while [`is_watching`](Self::is_watching).
    pub poke: EventFd,
    /// Whether the first unit is interested in [`poke`](Self::poke).
    pub is_watching: AtomicBool,
    /// How often it was ready.
    pub poke_count: AtomicU64,
    /// How many units are alive.
    pub unit_count: AtomicU64,
}

impl Echo {
    /// An echo of `queue_count` queues, with 8 bytes of configuration.
    ///
    /// # Panics
    /// When the host has no descriptors left.
    #[must_use]
    pub fn new(queue_count: usize) -> (Self, Arc<EchoControl>) {
        let control = Arc::new(EchoControl {
            fails_to_start: AtomicBool::new(false),
            stop_ms: AtomicU64::new(0),
            poke: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            is_watching: AtomicBool::new(true),
            poke_count: AtomicU64::new(0),
            unit_count: AtomicU64::new(0),
        });
        let device = Self {
            config: ConfigSpace::new(b"echoecho"),
            sizes: vec![ECHO_QUEUE_SIZE; queue_count],
            control: Arc::clone(&control),
        };
        (device, control)
    }
}

impl Device for Echo {
    fn id(&self) -> DeviceId {
        DeviceId::Rng
    }

    fn features(&self) -> u64 {
        1 | 1 << 28 | 1 << 29
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config.write_from_driver(offset, data);
    }

    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        self.config.check_seen(seen, &[])?;
        self.config.write_from_driver(0, seen);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        if self.control.fails_to_start.load(Ordering::Relaxed) {
            return Err(DeviceError::QueueMissing { index: 99 });
        }
        let queues = activation.queues.into_iter().flatten();
        Ok(queues.map(|queue| EchoUnit::boxed(queue, &self.control)).collect())
    }
}

struct EchoUnit {
    queue: Queue,
    chain: Chain,
    later: Option<(Instant, Vec<u8>)>,
    control: Arc<EchoControl>,
}

impl EchoUnit {
    fn boxed(queue: Queue, control: &Arc<EchoControl>) -> Box<dyn Unit> {
        control.unit_count.fetch_add(1, Ordering::Relaxed);
        Box::new(Self { queue, chain: Chain::new(), later: None, control: Arc::clone(control) })
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), UnitError> {
        let memory = Arc::clone(self.queue.memory());
        let size = self.chain.writable_size().min(u32::try_from(bytes.len()).unwrap_or(0));
        let to = self.chain.writable(&memory);
        to.write(0, &bytes[..size as usize], "an echo")
            .map_err(|source| UnitError::Queue { index: self.queue.index(), source })?;
        self.queue.push(self.chain.head(), size)?;
        self.queue.notify()
    }
}

impl Unit for EchoUnit {
    fn visit_sources(&self, visit: &mut dyn FnMut(Source)) {
        if self.queue.index() == 0 {
            let is_watching = self.control.is_watching.load(Ordering::Relaxed);
            let interest = if is_watching { Interest::Read } else { Interest::None };
            visit(Source { descriptor: self.control.poke.as_raw_fd(), token: 7, interest });
        }
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn kicked(&mut self, index: u16) -> Result<(), UnitError> {
        assert_eq!(index, self.queue.index());
        while self.later.is_none() {
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.rearm()? {
                    continue;
                }
                return Ok(());
            }
            let memory = Arc::clone(self.queue.memory());
            let size = self.chain.readable_size().min(4096);
            let mut bytes = vec![0; size as usize];
            let from = self.chain.readable(&memory);
            from.read(0, &mut bytes, "a request")
                .map_err(|source| UnitError::Queue { index, source })?;
            match &*bytes {
                ECHO_FAIL => return Err(UnitError::Guest("was told to fail".into())),
                ECHO_LATER => self.later = Some((Instant::now() + ECHO_DELAY, bytes)),
                _ => self.answer(&bytes)?,
            }
        }
        Ok(())
    }

    fn ready(&mut self, token: u32) -> Result<(), UnitError> {
        assert_eq!(token, 7);
        let _ = self.control.poke.read();
        self.control.poke_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.later.as_ref().map(|(at, _)| *at)
    }

    fn expired(&mut self, now: Instant) -> Result<(), UnitError> {
        if let Some((_, bytes)) = self.later.take_if(|(at, _)| *at <= now) {
            self.answer(&bytes)?;
        }
        self.kicked(self.queue.index())
    }

    fn stop(mut self: Box<Self>) -> Vec<Queue> {
        let stop_ms = self.control.stop_ms.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(stop_ms));
        if self.later.take().is_some() {
            self.queue.unpop();
        }
        self.control.unit_count.fetch_sub(1, Ordering::Relaxed);
        vec![self.queue]
    }
}

/// An executor without threads: units run when the test says so.
#[derive(Default)]
pub struct Inline {
    units: Arc<Mutex<Vec<InlineUnit>>>,
    /// Whether units refuse to stop for now.
    pub is_stuck: Arc<AtomicBool>,
}

struct InlineUnit {
    unit: Box<dyn Unit>,
    failure: Arc<dyn Failure>,
    has_failed: bool,
    is_new: bool,
}

struct InlineRunning {
    units: Arc<Mutex<Vec<InlineUnit>>>,
    is_stuck: Arc<AtomicBool>,
}

impl Inline {
    /// Calls every unit whose queues were kicked.
    ///
    /// # Panics
    /// When a unit does.
    pub fn run(&self) {
        for entry in &mut *self.units.lock().expect("no panic") {
            let queues = entry.unit.queues();
            let kicked: Vec<_> = queues
                .iter()
                .filter(|queue| queue.kick().read().is_ok() || entry.is_new)
                .map(|queue| queue.index())
                .collect();
            entry.is_new = false;
            for index in kicked {
                if entry.has_failed {
                    continue;
                }
                if let Err(error) = entry.unit.kicked(index) {
                    entry.has_failed = true;
                    entry.failure.failed(&error);
                }
            }
        }
    }
}

impl Executor for Inline {
    fn start(
        &self,
        units: Vec<Box<dyn Unit>>,
        failure: Arc<dyn Failure>,
    ) -> io::Result<Box<dyn Running>> {
        let entry = |unit| InlineUnit {
            unit,
            failure: Arc::clone(&failure),
            has_failed: false,
            is_new: true,
        };
        let mut running = self.units.lock().expect("no panic");
        assert!(running.is_empty(), "started twice");
        running.extend(units.into_iter().map(entry));
        let (units, is_stuck) = (Arc::clone(&self.units), Arc::clone(&self.is_stuck));
        Ok(Box::new(InlineRunning { units, is_stuck }))
    }
}

impl Running for InlineRunning {
    fn stop(&mut self, _: Duration) -> Option<Vec<Queue>> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return None;
        }
        let units = std::mem::take(&mut *self.units.lock().expect("no panic"));
        Some(units.into_iter().flat_map(|entry| entry.unit.stop()).collect())
    }
}

/// A transport and its driver, who does everything by register accesses.
pub struct Rig {
    /// The function.
    pub transport: Transport,
    /// Its host.
    pub host: Arc<FakeHost>,
    /// Guest memory.
    pub memory: SharedMemory,
    /// The test's hand on the device.
    pub control: Arc<EchoControl>,
}

/// Where a [`Rig`]'s BAR is.
pub const RIG_BAR: u64 = 0xe800_0000;

impl Rig {
    /// An echo of `queue_count` queues, its BAR in place and on.
    #[must_use]
    pub fn new(queue_count: usize, memory: SharedMemory, executor: Arc<dyn Executor>) -> Self {
        let host = Arc::new(FakeHost::default());
        let (device, control) = Echo::new(queue_count);
        let mut transport = Transport::new(Parts {
            name: "echo0".into(),
            device: Box::new(device),
            memory: Arc::clone(&memory),
            executor,
            host: Arc::clone(&host) as Arc<dyn Host>,
        });
        transport.place_bar(0, RIG_BAR);
        transport.write_config(4, &[6, 0]);
        Self { transport, host, memory, control }
    }

    /// Reads `N` bytes of the BAR.
    #[must_use]
    pub fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.transport.read_bar(0, offset, &mut data);
        data
    }

    /// The status register.
    #[must_use]
    pub fn status(&mut self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    /// Writes to the BAR.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.transport.write_bar(0, offset, data);
    }

    /// Resets and negotiates, up to `FEATURES_OK`; version 1 and the event index if wanted.
    pub fn negotiate(&mut self, has_event_idx: bool) {
        self.write(0x14, &[0]);
        self.write(0x14, &[1]);
        self.write(0x14, &[3]);
        self.write(0x08, &[0; 4]);
        self.write(0x0c, &(u32::from(has_event_idx) << 29).to_le_bytes());
        self.write(0x08, &[1, 0, 0, 0]);
        self.write(0x0c, &[1, 0, 0, 0]);
        self.write(0x14, &[11]);
    }

    /// Gives queue `index` the rings of a [`Driver`](crate::testing::Driver) whose memory begins at
    /// `base`, and vector `index + 1`.
    pub fn set_up_queue(&mut self, index: u16, base: u64) {
        self.write(0x16, &index.to_le_bytes());
        self.write(0x18, &ECHO_QUEUE_SIZE.to_le_bytes());
        self.write(0x1a, &(index + 1).to_le_bytes());
        for (at, address) in [(0x20, base), (0x28, base + 0x1_0000), (0x30, base + 0x2_0000)] {
            let address = address.to_le_bytes();
            self.write(at, &address[..4]);
            self.write(at + 4, &address[4..]);
        }
        self.write(0x1c, &[1, 0]);
    }

    /// Vector `index` sends `40 + index` to the first local APIC, with MSI-X on.
    pub fn set_up_vector(&mut self, index: u8) {
        let at = 0x3000 + u64::from(index) * 16;
        self.write(at, &0xfee0_0000_u64.to_le_bytes());
        self.write(at + 8, &[40 + index, 0, 0, 0]);
        self.write(at + 12, &[0; 4]);
        self.transport.write_config(0x42, &[0, 0x80]);
    }

    /// `DRIVER_OK`.
    pub fn go(&mut self) {
        self.write(0x14, &[15]);
    }
}

/// The message that [`Rig::set_up_vector`] gives vector `index`.
#[must_use]
pub fn rig_message(index: u8) -> Message {
    Message { address: 0xfee0_0000, data: 40 + u32::from(index) }
}
