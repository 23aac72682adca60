//! Virtio device models over guest memory, and the PCI transport that a guest finds them by.
//!
//! A device is two things. Its [`Device`] half is what the driver negotiates with: an id, feature
//! bits, configuration space. Its [`Unit`]s are what moves data: each owns some of the device's
//! queues from the moment the driver is ready until it resets the device, and is called when there
//! is something to do. Nothing here starts a thread, opens KVM or waits: whoever runs a machine
//! calls units from threads of its choice, and a test calls them in a loop.
//!
//! ```text
//!   driver ──config writes──► pci::Transport ──activate──► Device ──► Unit, Unit …
//!      │                                                                ▲   │
//!      └──────────── rings in guest memory, kicks ──────────────────────┘   │
//!      ◄─────────────────── interrupts ─────────────────────────────────────┘
//! ```
//!
//! The guest is the attacker. Whatever it writes into a register, a ring or a buffer ends in a
//! [`QueueError`] or [`UnitError`] that stops the device and says why, never in a panic, a spin or
//! an access outside guest memory.

pub mod balloon;
pub mod block;
mod config;
pub mod console;
mod counter;
mod device;
pub mod fs;
mod interrupt;
pub mod memory;
pub mod net;
pub mod pci;
mod queue;
pub mod rate_limiter;
pub mod rng;
pub mod socket_file;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;

pub use config::ConfigSpace;
pub use counter::Counter;
pub use device::{Activation, Device, DeviceError, DeviceId, Interest, Source, Unit, UnitError};
pub use interrupt::Interrupt;
pub use queue::{Buffers, Chain, Queue, QueueError, Segment};
