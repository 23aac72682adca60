//! A virtual machine on KVM.
//!
//! [`vm`] makes one of a description and runs it to its end. It puts together what the other rooms
//! know nothing of each other about:
//!
//! ```text
//!   vm ──┬──► Machine ──► boot      kernel, initramfs, parameters into memory; the first CPU
//!        │       │  └───► memory    where it is, what backs it
//!        │       ├──────► cpu       what CPUs say of themselves; a thread each; their state
//!        │       ├──────► acpi      tables, and the few registers that they speak of
//!        │       └──────► legacy    serial port, and ports that must answer something
//!        ├──► pci, interrupts       the bus that devices are on, and how they interrupt
//!        ├──► worker                threads that run the devices' units
//!        ├──► jail                  what stands between a guest that broke out and the host
//!        ├──► snapshot              all of it as two files, from which it goes on
//!        ├──► footprint             what starting took, given back when the guest has settled
//!        └──► api                   the HTTP interface of a running VM
//! ```
//!
//! A [`Machine`] is everything that makes a Linux guest run, or a unikernel, but no devices; those
//! are `vmm-virtio`'s, and reach it as an [`MmioBus`].
//!
//! [`kvm::open`] says in words what is missing when there is no KVM. The guest is the attacker:
//! whatever it does to ports, memory or registers, and whatever its kernel file says, ends in an
//! answer, an [`Exit`] or an error, never in a panic.

pub mod acpi;
pub mod api;
pub mod boot;
mod control;
mod cpu;
mod end;
mod footprint;
pub mod interrupts;
pub mod jail;
pub mod kvm;
mod legacy;
mod line;
mod machine;
pub mod memory;
pub mod pci;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod vm;
pub mod worker;

pub use acpi::Hotplug;
pub use cpu::run::{CrashReason, CrashReport};
pub use cpu::{CpuError, CpuTemplate, ExitCounters, ExitKind, VCPU_COUNT_MAX, VcpuState};
pub use end::{Ender, Exit};
pub use legacy::{SerialInput, Sink};
pub use machine::{Clocks, Machine, MachineConfig, MachineError, MachineState, MmioBus};
