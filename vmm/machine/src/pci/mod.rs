//! PCI bus 0: up to 31 functions behind a host bridge, whose configuration space the guest reads as
//! memory.
//!
//! ```text
//!   guest reads  ECAM ───────────────────────────► a page of memory      (no exit)
//!   guest writes ECAM, reads and writes BARs ────► exit ──► Bus ──► Function
//!   guest kicks a queue ─────────────────────────► ioeventfd ──► unit    (no exit to us)
//!   unit interrupts ─────────────────────────────► irqfd ──► vCPU        (no exit)
//! ```
//!
//! One function to a device, so slot, device number and function are the same thing here. Each
//! slot has a lock of its own. To find the slot of an address nothing is locked: every slot shows
//! the range that its BARs span, and whoever finds an address in it asks the function itself.
//!
//! This module knows nothing of ACPI: whoever adds and removes functions of a running machine tells
//! the guest.

mod bus;
mod doorbells;
mod ecam;
mod host;
mod host_bridge;
mod windows;

pub use bus::{Bus, BusError, Layout, SLOT_COUNT};
