//! PCI functions as bytes, and the transport that puts a virtio device into one (virtio 1.3 §4.1).
//!
//! A [`Function`] is a configuration space and some BARs. It knows nothing of KVM, of addresses
//! other than its own, or of threads; what it needs of the machine it asks through two doors:
//!
//! ```text
//!   vCPU ── config write, BAR access ──► Function ── connect, send, watch ──► Host     (KVM)
//!                                            │
//!                                            └────── start ─► Running ──────► Executor (threads)
//! ```
//!
//! A read of configuration space is a read of plain memory: a machine may show the guest those
//! bytes without an exit. So nothing in them may change by itself or by being read, which is why
//! the transport has no `VIRTIO_PCI_CAP_PCI_CFG` window (§4.1.4.9): reading that must have effects,
//! and no driver needs it where memory BARs work.
//!
//! What is here:
//!
//! | file | what |
//! |---|---|
//! | `config` | configuration space: header, BARs, capabilities, which bits a guest may write |
//! | `msix` | the MSI-X table, its masks and pending bits |
//! | `common` | the common configuration registers and the status state machine |
//! | `rings` | from registers to checked rings |
//! | `interrupts` | which vector a queue or a configuration change raises |
//! | `layout` | who a device is to PCI, and what is where in its BAR |
//! | `transport` | all of them around a [`Device`](crate::Device): activation, reset, pause |
//! | `state` | what a snapshot keeps of a transport |
//! | `pvpanic` | the device by which a guest says that it panicked |

mod common;
mod config;
mod interrupts;
mod layout;
mod msix;
mod pvpanic;
mod rings;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;
#[cfg(test)]
mod transport_tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::{DeviceError, Queue, Unit, UnitError};

pub use config::{Bar, Changes, Config, FUNCTION_SIZE, Identity};
pub use layout::{BAR_SIZE, QUEUE_COUNT_MAX};
pub use pvpanic::{GuestPanic, Pvpanic};
pub use transport::{Parts, Transport};

/// A PCI function.
pub trait Function: Send {
    /// Its configuration space as the guest reads it. Changes in `write_config`, `place_bar`,
    /// `reset` and `restore` only.
    fn config(&self) -> &Config;

    /// The guest wrote `data` at `offset` of its configuration space, with whatever size and
    /// alignment it likes.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> Changes;

    /// The machine gives BAR `bar` its address, as firmware would.
    fn place_bar(&mut self, bar: usize, address: u64);

    /// The guest reads `data.len()` bytes at `offset` of BAR `bar`, within its size.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` of BAR `bar`, within its size.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// Power-on state, with BARs where the machine placed them.
    ///
    /// # Errors
    /// When it does not become quiet within its time.
    fn reset(&mut self) -> Result<(), DeviceError>;

    /// Becomes quiet: guest memory is not touched from here on. vCPUs have been stopped before.
    ///
    /// # Errors
    /// When it does not become quiet within its time. Whoever gives up on it then resumes it.
    fn pause(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes on after [`pause`](Self::pause) or [`restore`](Self::restore).
    fn resume(&mut self) {}

    /// What a snapshot keeps of it, while paused.
    ///
    /// # Errors
    /// When the state cannot be moved; the message says why.
    fn save(&self) -> Result<serde_json::Value, DeviceError>;

    /// Takes what [`save`](Self::save) gave, before the guest saw the function. `state` comes from
    /// a file: it may be anything.
    ///
    /// # Errors
    /// When `state` does not fit the function.
    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError>;
}

/// A message-signalled interrupt: what the guest wants written where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Where; the guest's choice, not checked.
    pub address: u64,
    /// What; the guest's choice, not checked.
    pub data: u32,
}

/// A place where the guest kicks a queue: any write to it is meant.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// Guest-physical.
    pub address: u64,
    /// What to signal.
    pub kick: Arc<EventFd>,
}

/// What a function needs of the machine. One for each function.
pub trait Host: Send + Sync {
    /// Prepares vectors so that [`send`](Self::send) of them delivers these messages, until told
    /// otherwise. Costs a system call or more, which is why all that is known comes at once.
    ///
    /// # Errors
    /// When the host is out of something, or the guest's message makes no sense to it. Nothing
    /// has changed then.
    fn connect(&self, vectors: &[(u16, Message)]) -> io::Result<()>;

    /// Delivers the message that `vector` was prepared for. The hot path.
    fn send(&self, vector: u16);

    /// Delivers a message that nothing was prepared for.
    fn send_unprepared(&self, message: Message);

    /// Lets writes to these places signal their queue without an exit, and forgets all earlier
    /// ones. A place where that fails is left out: an access to it exits, and works all the same.
    fn watch(&self, doorbells: &[Doorbell]);
}

/// Where a device's units run.
pub trait Executor: Send + Sync {
    /// Begins to call `units`, each queue's kick first, and tells `failure` when one cannot go on.
    /// That may happen before this returns.
    ///
    /// # Errors
    /// When the host refuses what that takes. The units are gone then.
    fn start(
        &self,
        units: Vec<Box<dyn Unit>>,
        failure: Arc<dyn Failure>,
    ) -> io::Result<Box<dyn Running>>;
}

/// Units that run.
pub trait Running: Send {
    /// Stops the units and gives their queues back; `None` if that takes longer than `within`. It
    /// goes on meanwhile, and the next call waits for it again.
    fn stop(&mut self, within: Duration) -> Option<Vec<Queue>>;
}

/// Who is told of a unit that cannot go on.
pub trait Failure: Send + Sync {
    /// Called on the unit's thread. The unit is not called again, except to stop.
    fn failed(&self, error: &UnitError);
}
