//! A virtio device as a PCI function (virtio 1.3 §4.1, modern interface only).
//!
//! What is where in its BAR stands in `layout`.
//!
//! ```text
//!            DRIVER_OK                  pause
//!   Idle ───────────────► Running ◄──────────────► Paused
//!     ▲                      │          resume
//!     └──── Stopping ◄───────┘ reset
//! ```
//!
//! `Stopping` is a reset whose units need longer than a vCPU should wait: the status register does
//! not read as 0 yet, which a driver must wait for anyway (§4.1.4.3.2). A unit that fails leaves
//! its device `Running` with `DEVICE_NEEDS_RESET`, until the driver resets it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{Common, DRIVER_OK, Effect, NEEDS_RESET};
use super::interrupts::Interrupts;
use super::layout::{Area, NOTIFY_AT, NOTIFY_MULTIPLIER, QUEUE_COUNT_MAX, configuration};
use super::msix::Msix;
use super::rings::RingError;
use super::state::TransportState;
use super::{Changes, Config, Doorbell, Executor, Failure, Function, Host, Running};
use crate::memory::SharedMemory;
use crate::{Activation, Counter, Device, DeviceError, Interrupt, Queue, UnitError};

/// How long a vCPU waits for units to stop before a reset goes on without it.
const RESET_WAIT: Duration = Duration::from_millis(100);
/// How long a pause may take.
const PAUSE_WAIT: Duration = Duration::from_secs(5);
/// How long a resume waits for units that a pause could not wait for: longer than a file system waits
/// for a block from the network (150 s).
const RESUME_WAIT: Duration = Duration::from_secs(170);
/// After so many complaints about one device, further ones are for debugging only: a guest could
/// fill the operator's disk with them.
const COMPLAINT_COUNT_MAX: u32 = 32;

/// What a transport is made of.
pub struct Parts {
    /// How the operator knows the device.
    pub name: String,
    /// The device.
    pub device: Box<dyn Device>,
    /// Guest memory.
    pub memory: SharedMemory,
    /// Where its units run.
    pub executor: Arc<dyn Executor>,
    /// What it needs of the machine.
    pub host: Arc<dyn Host>,
}

/// A virtio device as a PCI function.
pub struct Transport {
    pub(super) config: Config,
    pub(super) msix: Msix,
    pub(super) common: Common,
    pub(super) device: Box<dyn Device>,
    pub(super) shared: Arc<Shared>,
    pub(super) run: Run,
    memory: SharedMemory,
    executor: Arc<dyn Executor>,
    host: Arc<dyn Host>,
    kicks: Vec<Option<Arc<EventFd>>>,
}

/// What the device's units are doing.
pub(super) enum Run {
    Idle,
    Running(Box<dyn Running>),
    Stopping(Box<dyn Running>),
    /// After a restore, interrupts that were on their way may be lost, so all are raised.
    Paused {
        is_restored: bool,
    },
}

/// What units reach from their threads.
pub(super) struct Shared {
    name: String,
    pub(super) interrupts: Interrupts,
    pub(super) needs_reset: AtomicBool,
    complaints: AtomicU32,
}

/// Why a device does not start though its driver is ready.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("queue {index}: {source}")]
    Ring {
        index: u16,
        #[source]
        source: RingError,
    },
    #[error("an eventfd for a queue")]
    Kick(#[source] io::Error),
    #[error(transparent)]
    Device(DeviceError),
    #[error("starting its units")]
    Units(#[source] io::Error),
}

impl Transport {
    /// How many MSI-X vectors the function of `device` has: one for each queue, one for its
    /// configuration.
    ///
    /// # Panics
    /// When it has more than [`QUEUE_COUNT_MAX`] queues.
    #[must_use]
    pub fn vector_count(device: &dyn Device) -> u16 {
        let count = device.queue_sizes().len();
        assert!(count <= QUEUE_COUNT_MAX, "{count} queues");
        u16::try_from(count + 1).expect("few")
    }

    /// Puts `parts` together.
    ///
    /// # Panics
    /// When the device has more queues or a larger configuration space than there is room for.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { name, device, memory, executor, host } = parts;
        let vector_count = Self::vector_count(&*device);
        let queue_count = device.queue_sizes().len();
        let msix = Msix::new(vector_count, Arc::clone(&host));
        let shared = Arc::new(Shared {
            name,
            interrupts: Interrupts::new(queue_count, Arc::clone(msix.vectors())),
            needs_reset: AtomicBool::new(false),
            complaints: AtomicU32::new(0),
        });
        Self {
            config: configuration(&*device, vector_count),
            common: Common::new(device.features(), device.queue_sizes()),
            kicks: vec![None; queue_count],
            run: Run::Idle,
            msix,
            shared,
            device,
            memory,
            executor,
            host,
        }
    }

    /// How the operator knows the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Counts for the operator.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, Counter)> {
        self.device.counters()
    }

    /// The status register.
    pub(super) fn status(&self) -> u8 {
        let needs_reset = self.shared.needs_reset.load(Ordering::Acquire);
        self.common.status | if needs_reset { NEEDS_RESET } else { 0 }
    }

    fn read_common(&mut self, offset: u64, data: &mut [u8]) {
        if let Run::Stopping(running) = &mut self.run
            && running.stop(Duration::ZERO).is_some()
        {
            self.finish_reset();
        }
        let generation = self.device.config().generation();
        let image = self.common.image(self.status(), generation, &self.shared.interrupts);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = image.get(at..).unwrap_or_default();
        let size = rest.len().min(data.len());
        data[..size].copy_from_slice(&rest[..size]);
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        if matches!(self.run, Run::Stopping(_)) {
            return;
        }
        match self.common.write(offset, data, &self.shared.interrupts) {
            Effect::None => {}
            Effect::Activate => self.activate(),
            Effect::Reset => self.reset_device(RESET_WAIT),
        }
    }

    fn activate(&mut self) {
        if let Err(error) = self.try_activate() {
            self.shared.give_up(&error);
        }
    }

    fn try_activate(&mut self) -> Result<(), StartError> {
        let interrupt = Arc::clone(&self.shared) as Arc<dyn Interrupt>;
        self.device.config().announce_to(Some(interrupt));
        let queues = self.build_queues()?;
        let features = self.common.driver_features;
        let activation = Activation { memory: Arc::clone(&self.memory), features, queues };
        let units = self.device.activate(activation).map_err(StartError::Device)?;
        self.msix.go_live();
        let failure = Arc::clone(&self.shared) as Arc<dyn Failure>;
        let running = self.executor.start(units, failure).map_err(StartError::Units)?;
        self.run = Run::Running(running);
        self.watch();
        Ok(())
    }

    fn build_queues(&mut self) -> Result<Vec<Option<Queue>>, StartError> {
        let has_event_idx = self.common.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.kicks.len());
        let registers = self.common.queues.iter().zip(&mut self.kicks);
        for (index, (registers, kick)) in (0..).zip(registers) {
            if !registers.is_enabled {
                queues.push(None);
                continue;
            }
            let ring = registers.to_ring(&self.memory, has_event_idx);
            let ring = ring.map_err(|source| StartError::Ring { index, source })?;
            let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(StartError::Kick)?);
            *kick = Some(Arc::clone(&eventfd));
            let memory = Arc::clone(&self.memory);
            let interrupt = Arc::clone(&self.shared) as Arc<dyn Interrupt>;
            queues.push(Some(Queue::new(index, ring, memory, eventfd, interrupt)));
        }
        Ok(queues)
    }

    /// Tells the host where the driver kicks now.
    fn watch(&self) {
        let mut doorbells = Vec::new();
        if let Some(bar) = self.config.bars().next() {
            for (offset, kick) in (0..).step_by(NOTIFY_MULTIPLIER as usize).zip(&self.kicks) {
                let Some(kick) = kick else { continue };
                let address = bar.address + NOTIFY_AT + offset;
                doorbells.push(Doorbell { address, kick: Arc::clone(kick) });
            }
        }
        self.host.watch(&doorbells);
    }

    fn reset_device(&mut self, wait: Duration) {
        self.device.config().announce_to(None);
        match std::mem::replace(&mut self.run, Run::Idle) {
            Run::Running(mut running) | Run::Stopping(mut running) => {
                if running.stop(wait).is_none() {
                    tracing::debug!(device = self.name(), "a reset waits for requests in flight");
                    self.run = Run::Stopping(running);
                    return;
                }
            }
            Run::Idle | Run::Paused { .. } => {}
        }
        self.finish_reset();
    }

    fn finish_reset(&mut self) {
        self.run = Run::Idle;
        if self.kicks.iter().any(Option::is_some) {
            self.kicks.fill(None);
            self.host.watch(&[]);
        }
        self.msix.rest();
        self.device.reset();
        self.common.reset();
        self.shared.interrupts.reset();
        self.shared.needs_reset.store(false, Ordering::Release);
    }

    /// Keeps where units got to.
    fn take_back(&mut self, queues: Vec<Queue>) {
        let wanted = self.common.queues.iter().filter(|queue| queue.is_enabled).count();
        if queues.len() < wanted && !self.shared.needs_reset.load(Ordering::Acquire) {
            let what = format!("{} of {wanted} queues came back", queues.len());
            self.shared.give_up(&DeviceError::State(what));
        }
        for queue in queues {
            let index = usize::from(queue.index());
            if let Some(registers) = self.common.queues.get_mut(index) {
                registers.keep(&queue.into_ring());
            }
        }
    }

    /// Lets the MSI-X control register have its effect.
    fn control_msix(&mut self) {
        self.msix.set_control(self.config.msix_control());
        self.shared.interrupts.use_msix(self.msix.is_enabled());
    }
}

impl Function for Transport {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Changes {
        let changes = self.config.write(offset, data);
        if changes.msix {
            self.control_msix();
        }
        if changes.bars && matches!(self.run, Run::Running(_)) {
            self.watch();
        }
        changes
    }

    fn place_bar(&mut self, bar: usize, address: u64) {
        self.config.place_bar(bar, address);
    }

    fn read_bar(&mut self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Area::at(offset, self.kicks.len()) {
            Area::Common(offset) => self.read_common(offset, data),
            Area::Isr => {
                if let Some(first) = data.first_mut() {
                    *first = self.shared.interrupts.take_isr();
                }
            }
            Area::Device(offset) => self.device.config().read(offset, data),
            Area::Table(offset) => self.msix.read_table(offset, data),
            Area::Pending(offset) => self.msix.read_pending(offset, data),
            Area::Notify(_) | Area::Nothing => {}
        }
    }

    fn write_bar(&mut self, _: usize, offset: u64, data: &[u8]) {
        match Area::at(offset, self.kicks.len()) {
            Area::Common(offset) => self.write_common(offset, data),
            Area::Device(offset) => self.device.write_config(offset, data),
            Area::Notify(offset) => {
                let index = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).ok();
                let kick = index.and_then(|index| self.kicks.get(index)?.as_ref());
                if let Some(kick) = kick {
                    // Fails only when it was signalled 2^64 times unseen: it is still signalled.
                    let _ = kick.write(1);
                }
            }
            Area::Table(offset) => self.msix.write_table(offset, data),
            Area::Isr | Area::Pending(_) | Area::Nothing => {}
        }
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.reset_device(PAUSE_WAIT);
        if matches!(self.run, Run::Stopping(_)) {
            return Err(self.late());
        }
        self.config.reset();
        self.msix.reset();
        self.shared.interrupts.use_msix(false);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        match std::mem::replace(&mut self.run, Run::Paused { is_restored: false }) {
            Run::Running(mut running) => {
                let Some(queues) = running.stop(PAUSE_WAIT) else {
                    self.run = Run::Running(running);
                    return Err(self.late());
                };
                self.take_back(queues);
            }
            Run::Stopping(mut running) => {
                if running.stop(PAUSE_WAIT).is_none() {
                    self.run = Run::Stopping(running);
                    return Err(self.late());
                }
                self.finish_reset();
            }
            other => self.run = other,
        }
        Ok(())
    }

    fn resume(&mut self) {
        // After a pause that was given up its units are still stopping: late is not broken. A request
        // that waits for the network may take as long as that does.
        let mut waited = Duration::ZERO;
        while matches!(self.run, Run::Running(_))
            && let Err(error) = self.pause()
        {
            waited += PAUSE_WAIT;
            if waited >= RESUME_WAIT {
                self.shared.give_up(&error);
                return;
            }
        }
        let Run::Paused { is_restored } = self.run else { return };
        self.run = Run::Idle;
        self.control_msix();
        if self.status() & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return;
        }
        self.activate();
        if is_restored {
            self.shared.config();
            for (index, queue) in (0..).zip(&self.common.queues) {
                if queue.is_enabled {
                    self.shared.queue(index);
                }
            }
        }
    }

    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        let state = TransportState::of(self)?;
        serde_json::to_value(state).map_err(|error| DeviceError::State(error.to_string()))
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let state: TransportState = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("{}: {error}", self.name())))?;
        state.give_to(self)
    }
}

impl Transport {
    fn late(&self) -> DeviceError {
        let waited = PAUSE_WAIT.as_secs();
        DeviceError::State(format!("{}: requests in flight after {waited} s", self.name()))
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.reset_device(PAUSE_WAIT);
    }
}

impl Shared {
    /// The device cannot go on (§2.1.2): the driver is told, and so is the operator.
    fn give_up(&self, error: &(dyn std::error::Error + 'static)) {
        let device = self.name.as_str();
        if self.complaints.fetch_add(1, Ordering::Relaxed) < COMPLAINT_COUNT_MAX {
            tracing::warn!(device, error, "device needs reset");
        } else {
            tracing::debug!(device, error, "device needs reset");
        }
        self.needs_reset.store(true, Ordering::Release);
        self.interrupts.config();
    }
}

impl Failure for Shared {
    fn failed(&self, error: &UnitError) {
        self.give_up(error);
    }
}

impl Interrupt for Shared {
    fn queue(&self, index: u16) {
        self.interrupts.queue(index);
    }

    fn config(&self) {
        self.interrupts.config();
    }
}
