//! Virtual CPUs: what they are, how they run, and what their state is.
//!
//! ```text
//!   create ──► pristine ──► enter(first instruction) ──► run ⇄ parked ──► … ──► reset to pristine
//!                                                                     └──► saved, restored
//! ```
//!
//! Each has a thread, `vcpu0` and so on, which is in the guest whenever it may be. What the guest
//! does that KVM can't do itself, an exit, is counted and handed to a [`Platform`]. The pristine
//! state is read back right after creation, so that a reset gives each CPU exactly the state it
//! began with, whatever KVM thinks that is.

mod counters;
pub(crate) mod cpuid;
mod fit;
pub(crate) mod kick;
pub(crate) mod run;
mod state;
mod template;
mod xstate;

use std::io;
use std::time::Duration;

use kvm_bindings::{kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

pub use counters::{ExitCounters, ExitKind};
use cpuid::{Facts, MachineCpuid};
pub(crate) use run::{Outcome, Platform, Vcpu};
pub use state::VcpuState;
pub use template::CpuTemplate;

use crate::boot::Entry;

/// The most virtual CPUs: ids stay below 255, which an APIC takes for "all".
pub const VCPU_COUNT_MAX: u8 = 255;

/// What all CPUs of a machine have in common.
#[derive(Debug)]
pub(crate) struct CpuModel {
    cpuid: MachineCpuid,
    /// Numbers of the model specific registers that KVM keeps.
    msrs: Vec<u32>,
    pub(crate) address_bits: u8,
}

impl CpuModel {
    /// Finds out what CPUs of this machine are like.
    pub(crate) fn new(
        kvm_fd: &Kvm,
        template: CpuTemplate,
        vcpu_count: u8,
    ) -> Result<Self, CpuError> {
        let count_max = kvm_fd.get_max_vcpus().min(usize::from(VCPU_COUNT_MAX));
        if vcpu_count == 0 || usize::from(vcpu_count) > count_max {
            return Err(CpuError::Count { vcpu_count, count_max });
        }
        let supported = kvm_fd
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let facts =
            Facts { vcpu_count, has_tsc_deadline: kvm_fd.check_extension(Cap::TscDeadlineTimer) };
        let msrs = kvm_fd.get_msr_index_list().map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Self {
            cpuid: MachineCpuid::new(&supported, template, facts)?,
            msrs: msrs.as_slice().to_vec(),
            address_bits: MachineCpuid::address_bits(&supported),
        })
    }

    /// Creates virtual CPU `index`.
    pub(crate) fn create(&self, vm: &VmFd, index: u8) -> Result<VcpuFd, CpuError> {
        let fd = vm.create_vcpu(u64::from(index)).map_err(kvm("KVM_CREATE_VCPU"))?;
        let tsc_khz = fd.get_tsc_khz().ok().filter(|&khz| khz > 0);
        fd.set_cpuid2(&self.cpuid.for_vcpu(index, tsc_khz)?).map_err(kvm("KVM_SET_CPUID2"))?;
        set_initial_msrs(&fd)?;
        connect_local_interrupts(&fd)?;
        Ok(fd)
    }

    /// The state of a CPU.
    pub(crate) fn read(&self, fd: &VcpuFd) -> Result<VcpuState, CpuError> {
        VcpuState::read(fd, &self.msrs)
    }

    /// Refuses the state of a CPU that can what this host's can't, of which `pristine` is one.
    pub(crate) fn check(state: &VcpuState, pristine: &VcpuState) -> Result<(), CpuError> {
        fit::check(state.cpuid(), pristine.cpuid())
    }

    /// Gives a CPU that has not run a state; its time stamp counter moves on by `passed`.
    pub(crate) fn write(fd: &VcpuFd, state: &VcpuState, passed: Duration) -> Result<(), CpuError> {
        let mut state = state.clone();
        state.advance_clock(passed);
        state.write_cpuid(fd)?;
        state.write(fd)
    }

    /// Gives a CPU the state it had at first, with a clock that begins again.
    pub(crate) fn reset(fd: &VcpuFd, pristine: &VcpuState) -> Result<(), CpuError> {
        let mut state = pristine.clone();
        state.restart_clock();
        state.write(fd)
    }

    /// Sets the first CPU up for its first instruction.
    pub(crate) fn enter(fd: &VcpuFd, entry: Entry) -> Result<(), CpuError> {
        let reset = fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        fd.set_sregs(&entry.system_registers(&reset)).map_err(kvm("KVM_SET_SREGS"))?;
        fd.set_regs(&entry.registers()).map_err(kvm("KVM_SET_REGS"))
    }
}

/// What firmware would have set: fast string moves, and memory that is cached wherever no range
/// says otherwise (Intel SDM vol. 3 §12.11.2.1).
fn set_initial_msrs(fd: &VcpuFd) -> Result<(), CpuError> {
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entries = [(MISC_ENABLE, FAST_STRINGS), (MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let count = fd.set_msrs(&state::msrs(&entries)?).map_err(kvm("KVM_SET_MSRS"))?;
    match entries.get(count) {
        Some(refused) => Err(CpuError::Msr { index: refused.index, value: refused.data }),
        None => Ok(()),
    }
}

/// Connects the local APIC's pins as firmware does: the old interrupt controller to the first,
/// non-maskable interrupts to the second (Intel MultiProcessor Specification §3.6.2.2).
fn connect_local_interrupts(fd: &VcpuFd) -> Result<(), CpuError> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const EXTERNAL: u32 = 7 << 8;
    const NON_MASKABLE: u32 = 4 << 8;
    let mut apic = fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
    put_apic_register(&mut apic, LINT0, EXTERNAL);
    put_apic_register(&mut apic, LINT1, NON_MASKABLE);
    fd.set_lapic(&apic).map_err(kvm("KVM_SET_LAPIC"))
}

fn put_apic_register(apic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (register, byte) in apic.regs.iter_mut().skip(at).zip(value.to_le_bytes()) {
        *register = i8::from_le_bytes([byte]);
    }
}

/// Names the call in an error.
pub(crate) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> CpuError {
    move |error| CpuError::Kvm { call, source: error.into() }
}

/// Why a machine can't have its CPUs.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// None, or more than KVM takes.
    #[error("{vcpu_count} vCPUs: must be from 1 to {count_max}")]
    Count {
        /// What was asked for.
        vcpu_count: u8,
        /// What this host's KVM and APIC ids allow.
        count_max: usize,
    },
    /// A template promises what the host does not have.
    #[error("CPU template {template}: this host has no {missing}")]
    TemplateUnavailable {
        /// Its name.
        template: &'static str,
        /// Names of features.
        missing: String,
    },
    /// A guest in a snapshot relies on what this host has not.
    #[error("the guest's CPUs have what this host's have not: {missing}")]
    Lacks {
        /// Names of features.
        missing: String,
    },
    /// A counter runs at another speed, and this host can't make it.
    #[error(
        "the guest's time stamp counter runs at {wanted_khz} kHz, this host's at {own_khz} kHz \
         without scaling"
    )]
    TscSpeed {
        /// The guest's.
        wanted_khz: u32,
        /// The host's.
        own_khz: u32,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
    /// More CPUID leaves than KVM takes.
    #[error("{count} CPUID leaves")]
    CpuidSize {
        /// How many.
        count: usize,
    },
    /// More registers than KVM takes.
    #[error("{count} model specific registers")]
    MsrCount {
        /// How many.
        count: usize,
    },
    /// A state whose extended registers have the wrong size.
    #[error("{count} words of extended registers, not 1024")]
    XsaveSize {
        /// How many.
        count: usize,
    },
    /// A register does not take a value.
    #[error("model specific register {index:#x} does not take {value:#x}")]
    Msr {
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// KVM refused something.
    #[error("{call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
}
