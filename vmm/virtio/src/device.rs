//! The two halves of a device: what a driver negotiates with, and what moves its data.
//!
//! ```text
//!             activate                     stop (reset, pause)
//!   Device ───────────► Units run ─────────────────────────────► queues back ─┐
//!     ▲                     │ error: the guest broke a rule                   │
//!     │                     ▼                                                 │
//!     │               device needs reset                                      │
//!     └──────────── activate again (resume, or after the driver's reset) ◄────┘
//! ```
//!
//! Pausing a machine is stopping its units, resuming it is activating with the queues they gave
//! back, and a snapshot is what [`Device::save`] says in between: one mechanism for all three.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::memory::SharedMemory;
use crate::{ConfigSpace, Counter, Queue, QueueError};

/// Virtio device ids (virtio 1.3 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum DeviceId {
    /// Network card, §5.1.
    Net = 1,
    /// Block device, §5.2.
    Block = 2,
    /// Console, §5.3.
    Console = 3,
    /// Entropy source, §5.4.
    Rng = 4,
    /// Memory balloon, §5.5.
    Balloon = 5,
    /// Socket device, §5.10.
    Vsock = 19,
    /// File system, §5.11.
    Fs = 26,
}

/// What a driver negotiates with.
pub trait Device: Send {
    /// What kind of device it is.
    fn id(&self) -> DeviceId;

    /// Device-specific and ring feature bits on offer. The transport adds `VERSION_1`.
    fn features(&self) -> u64;

    /// The size of each queue, which is the most that a driver may choose; powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// The device's configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The driver wrote `data` at `offset` of the configuration space. Most devices have nothing
    /// that a driver may write, and ignore it.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready (`DRIVER_OK`), or a paused machine resumes. The units returned serve
    /// all queues of `activation` that a driver may use.
    ///
    /// # Errors
    /// When the host lacks what the device needs: the driver then sees a device that needs reset.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError>;

    /// Forgets what the driver told it. Units have been stopped before.
    fn reset(&mut self) {}

    /// What a snapshot must keep beyond queues, features and configuration space. Units have been
    /// stopped before.
    ///
    /// # Errors
    /// When the device is in a state that cannot be moved; the message says why.
    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        Ok(serde_json::Value::Null)
    }

    /// A driver that was restored knows `seen` as the configuration space. What it wrote there, or
    /// was given for good, is taken over. All else is as the host has it now, of which the driver is
    /// told when the machine resumes. `seen` comes from a file: it may be anything.
    ///
    /// # Errors
    /// When this device differs in something that a driver can't be told of. By default that is
    /// everything.
    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        self.config().check_seen(seen, &[("the configuration", 0..seen.len())])
    }

    /// Takes what [`save`](Self::save) gave, after [`restore_config`](Self::restore_config) and
    /// before it is activated. `state` comes from a file: it may be anything.
    ///
    /// # Errors
    /// When `state` is not what `save` gives.
    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let _ = state;
        Ok(())
    }

    /// Counts for the operator: name and value. Names are the same for all devices of a kind.
    fn counters(&self) -> Vec<(&'static str, Counter)> {
        Vec::new()
    }
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: SharedMemory,
    /// The feature bits that the driver accepted.
    pub features: u64,
    /// The queues by index; `None` where the driver left one unused.
    pub queues: Vec<Option<Queue>>,
}

impl Activation {
    /// Takes queue `index` out, which the device cannot do without.
    ///
    /// # Errors
    /// [`DeviceError::QueueMissing`] when the driver did not set it up.
    pub fn take_queue(&mut self, index: u16) -> Result<Queue, DeviceError> {
        let queue = self.queues.get_mut(usize::from(index)).and_then(Option::take);
        queue.ok_or(DeviceError::QueueMissing { index })
    }

    /// Whether the driver accepted feature `bit`.
    #[must_use]
    pub const fn has_feature(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }
}

/// What moves a device's data: serves some of its queues, on one thread.
pub trait Unit: Send {
    /// Descriptors to be watched, besides the kicks of its queues. Asked after every call, since
    /// interests change; an empty interest means "not now".
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Shows `visit` what [`sources`](Self::sources) would list. This is what a worker asks, after
    /// every call; a unit with sources on a hot path overrides it, so that being asked allocates
    /// nothing.
    fn visit_sources(&self, visit: &mut dyn FnMut(Source)) {
        self.sources().into_iter().for_each(visit);
    }

    /// The queues it owns, by index. Asked once, before it is called for the first time.
    fn queues(&self) -> Vec<&Queue>;

    /// The driver kicked queue `index`. Called once for each queue before anything else, too: what
    /// was there before a pause, or before the driver was ready, is announced by no kick.
    ///
    /// # Errors
    /// [`UnitError`] when the device cannot go on; the unit is not called again, except to stop.
    fn kicked(&mut self, index: u16) -> Result<(), UnitError>;

    /// The source with this token has something to say.
    ///
    /// # Errors
    /// As for [`kicked`](Self::kicked).
    fn ready(&mut self, token: u32) -> Result<(), UnitError> {
        let _ = token;
        Ok(())
    }

    /// When it wants to be called though nothing happens. Asked after every call.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    ///
    /// # Errors
    /// As for [`kicked`](Self::kicked).
    fn expired(&mut self, now: Instant) -> Result<(), UnitError> {
        let _ = now;
        Ok(())
    }

    /// Finishes or cancels what is in flight, and gives the queues back: not before the host has let
    /// go of guest memory, however long that takes. It is the caller who need not wait for it.
    fn stop(self: Box<Self>) -> Vec<Queue>;
}

/// A descriptor that a unit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Owned by the unit, open as long as it is.
    pub descriptor: RawFd,
    /// How the unit knows it. A worker tells sources apart by descriptor and token: a descriptor
    /// that was closed and opened anew may come back with its number, so it needs another token.
    pub token: u32,
    /// What to wait for.
    pub interest: Interest,
}

/// What a source is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing, for now.
    None,
    /// It can be read.
    Read,
    /// It can be written.
    Write,
    /// Either.
    ReadWrite,
}

/// Why a device cannot start, be saved or be restored.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver is ready without a queue that the device needs.
    #[error("the driver did not set up queue {index}")]
    QueueMissing {
        /// Which.
        index: u16,
    },
    /// The host refused something.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// What a snapshot says of the device makes no sense, or its state cannot be saved.
    #[error("{0}")]
    State(String),
}

/// Why a unit stopped.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The guest broke a rule of the ring.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which queue.
        index: u16,
        /// Which rule.
        #[source]
        source: QueueError,
    },
    /// The guest broke a rule of the device.
    #[error("{0}")]
    Guest(String),
    /// The host failed.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}
