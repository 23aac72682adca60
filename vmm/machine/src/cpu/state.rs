//! The state of a virtual CPU, as a snapshot holds it, and as it was before the first instruction.
//!
//! The order of the calls matters. CPUID comes first, since KVM checks registers against it; the
//! local APIC needs the APIC base of the system registers; the deadline of the APIC's timer needs
//! both the APIC and the time stamp counter; pending events come last, for the registers before
//! them would clear them (Linux `Documentation/virt/kvm/api.rst`).

use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{CpuError, kvm};

/// How far, in millionths, a time stamp counter may be off the speed that a guest knows: KVM's
/// `tsc_tolerance_ppm`, below which it does not scale either.
const TSC_TOLERANCE_PPM: u64 = 250;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// All of a virtual CPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    registers: kvm_regs,
    system_registers: kvm_sregs,
    /// FPU and vector registers: `kvm_xsave.region`, 1024 words.
    extended_registers: Vec<u32>,
    extended_control: kvm_xcrs,
    debug_registers: kvm_debugregs,
    local_apic: kvm_lapic_state,
    /// Model specific registers, by number.
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    multi_processing: kvm_mp_state,
    /// Speed of its time stamp counter, where it is known.
    tsc_khz: Option<u32>,
}

impl VcpuState {
    /// Reads it all. `msrs` are the numbers that KVM keeps.
    pub(super) fn read(fd: &VcpuFd, msrs: &[u32]) -> Result<Self, CpuError> {
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_CPUID2"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            // Reading this delivers what a halted CPU waits for, so it comes before the others.
            multi_processing: fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?,
            registers: fd.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            system_registers: fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            extended_registers: fd.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?.region.to_vec(),
            extended_control: fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?,
            debug_registers: fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            local_apic: fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            msrs: read_msrs(fd, msrs)?,
            events: fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
            tsc_khz: fd.get_tsc_khz().ok(),
        })
    }

    /// Tells a CPU what it is. KVM takes that only before it has run.
    pub(super) fn write_cpuid(&self, fd: &VcpuFd) -> Result<(), CpuError> {
        let too_many = |_| CpuError::CpuidSize { count: self.cpuid.len() };
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(too_many)?;
        fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))
    }

    /// Writes it all, but for CPUID.
    pub(super) fn write(&self, fd: &VcpuFd) -> Result<(), CpuError> {
        self.write_tsc_speed(fd)?;
        fd.set_mp_state(self.multi_processing).map_err(kvm("KVM_SET_MP_STATE"))?;
        fd.set_sregs(&self.system_registers).map_err(kvm("KVM_SET_SREGS"))?;
        fd.set_regs(&self.registers).map_err(kvm("KVM_SET_REGS"))?;
        set_xsave(fd, &self.extended_registers)?;
        fd.set_xcrs(&self.extended_control).map_err(kvm("KVM_SET_XCRS"))?;
        fd.set_debug_regs(&self.debug_registers).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.local_apic).map_err(kvm("KVM_SET_LAPIC"))?;
        let (last, first): (Vec<_>, Vec<_>) =
            self.msrs.iter().partition(|entry| entry.index == MSR_TSC_DEADLINE);
        write_msrs(fd, &first)?;
        write_msrs(fd, &last)?;
        fd.set_vcpu_events(&self.events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// What it says of itself.
    pub(super) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Makes its counter run as fast as the guest knows it to.
    fn write_tsc_speed(&self, fd: &VcpuFd) -> Result<(), CpuError> {
        let own = fd.get_tsc_khz().ok().filter(|&khz| khz > 0);
        let (Some(wanted_khz), Some(own_khz)) = (self.tsc_khz, own) else { return Ok(()) };
        let off = u64::from(wanted_khz.abs_diff(own_khz)) * 1_000_000;
        if off <= u64::from(own_khz) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        fd.set_tsc_khz(wanted_khz).map_err(|error| CpuError::TscSpeed {
            wanted_khz,
            own_khz,
            source: error.into(),
        })
    }

    /// Moves the time stamp counter on by the time that passed; nothing where its speed is unknown.
    pub(super) fn advance_clock(&mut self, passed: Duration) {
        let cycles = passed.as_nanos() * u128::from(self.tsc_khz.unwrap_or(0)) / 1_000_000;
        let cycles = u64::try_from(cycles).unwrap_or(u64::MAX);
        for entry in self.msrs.iter_mut().filter(|entry| entry.index == MSR_TSC) {
            entry.data = entry.data.wrapping_add(cycles);
        }
    }

    /// Makes the time stamp counter begin again: KVM keeps CPUs in step that are all set to zero.
    pub(super) fn restart_clock(&mut self) {
        for entry in self.msrs.iter_mut().filter(|entry| entry.index == MSR_TSC) {
            entry.data = 0;
        }
    }
}

/// Sets the FPU and its extensions.
fn set_xsave(fd: &VcpuFd, words: &[u32]) -> Result<(), CpuError> {
    let region = words.try_into().map_err(|_| CpuError::XsaveSize { count: words.len() })?;
    let state = kvm_xsave { region, ..Default::default() };
    // SAFETY: KVM reads 4096 bytes, the size of the structure, unless the process asked for
    // features with larger state (`ARCH_REQ_XCOMP_GUEST_PERM`), which nobody here does.
    unsafe { fd.set_xsave(&state) }.map_err(kvm("KVM_SET_XSAVE"))
}

/// Reads as many of the registers as this virtual CPU has: some depend on its CPUID.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, CpuError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = msrs(&entries)?;
        let count = fd.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
        found.extend_from_slice(msrs.as_slice().get(..count).unwrap_or_default());
        // KVM stops at the first that it refuses: go on behind it.
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(found)
}

/// Writes the registers. One that KVM refuses is fine if it holds the value already, since some can
/// only be read, or if there is none here and it was zero.
fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), CpuError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let count = fd.set_msrs(&msrs(rest)?).map_err(kvm("KVM_SET_MSRS"))?;
        let Some(refused) = rest.get(count) else { break };
        let now = read_msrs(fd, &[refused.index])?;
        if now.first().map_or(0, |entry| entry.data) != refused.data {
            return Err(CpuError::Msr { index: refused.index, value: refused.data });
        }
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(())
}

/// The structure that KVM takes.
pub(super) fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs, CpuError> {
    Msrs::from_entries(entries).map_err(|_| CpuError::MsrCount { count: entries.len() })
}
