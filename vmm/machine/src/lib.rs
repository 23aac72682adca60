//! A virtual machine on KVM.
//!
//! A [`Machine`] is memory, CPUs, interrupt controllers, ACPI, and the little that is left of the
//! PC; everything that makes a Linux guest run, or a unikernel, but no devices:
//!
//! ```text
//!   Machine ──► boot      kernel, initramfs, parameters into memory; the first CPU's registers
//!      │  └───► memory    where it is, what backs it
//!      ├──────► cpu       what CPUs say of themselves; a thread each; their state
//!      ├──────► acpi      tables, and the few registers that they speak of
//!      └──────► legacy    serial port, and ports that must answer something
//! ```
//!
//! [`kvm::open`] says in words what is missing when there is no KVM. The guest is the attacker:
//! whatever it does to ports, memory or registers, and whatever its kernel file says, ends in an
//! answer, an [`Exit`] or an error, never in a panic.

pub mod acpi;
pub mod boot;
mod control;
mod cpu;
mod end;
pub mod kvm;
mod legacy;
mod line;
mod machine;
pub mod memory;

pub use acpi::Hotplug;
pub use cpu::run::{CrashReason, CrashReport};
pub use cpu::{CpuError, CpuTemplate, ExitCounters, ExitKind, VCPU_COUNT_MAX, VcpuState};
pub use end::{Ender, Exit};
pub use legacy::{SerialInput, Sink};
pub use machine::{Machine, MachineConfig, MachineError, MachineState, MmioBus};
