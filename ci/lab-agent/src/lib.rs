//! What the agent in a lab machine and the lab outside of it have in common: the protocol, and a mark.
//!
//! The agent is the `lab-agent` binary: PID 1 of a machine, and a few small tools that tests
//! need where no other program is (see `main.rs`). The lab links this library only for
//! [`wire`] and [`MARK_LEAF`].

#![forbid(unsafe_code)]

pub mod wire;

/// The leaf of `CPUID`, of those that are a hypervisor's, by which a guest marks that it runs: KVM's
/// tracepoint `kvm_cpuid` shows when it was asked for.
pub const MARK_LEAF: u32 = 0x4fff_5a05;
