//! What a snapshot keeps of a machine, memory and bus excepted: its CPUs, interrupt controllers,
//! clock and ports.
//!
//! # What time it is
//!
//! A guest has up to three clocks: KVM's, each CPU's time stamp counter, and what it makes of them.
//! [`Clocks`] says what they do over the time between snapshot and restore; both kinds keep the first
//! two in step with each other, and the counters of all CPUs in step.
//!
//! | | [`Clocks::Advance`] | [`Clocks::Continue`] |
//! |---|---|---|
//! | KVM's clock, counters | move on by the time that passed | go on from where they were |
//! | the guest's wall clock | right at once | wrong until somebody sets it |
//! | the guest's monotonic clock | jumps: timers that were due meanwhile fire | does not jump |
//!
//! Either way the guest's watchdogs are told that it stood still (`KVM_KVMCLOCK_CTRL`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};

use super::{Arc, Machine, MachineError, Mutex, lock, new_generation, write_generation};
use crate::acpi::Event;
use crate::cpu::{CpuModel, Vcpu, VcpuState, kvm};
use crate::legacy::PortsState;

/// All of a machine, memory and bus excepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    kvm: KvmState,
    clock: ClockState,
    ports: PortsState,
}

/// What KVM keeps of CPUs and interrupt controllers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvmState {
    vcpus: Vec<VcpuState>,
    /// Two of old, and the I/O APIC.
    interrupt_controllers: Vec<kvm_irqchip>,
}

/// KVM's clock, and the host's at the same moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockState {
    /// Since the guest began, in nanoseconds.
    guest_ns: u64,
    /// Since 1970, in nanoseconds.
    wall_ns: u64,
}

/// What a restored guest's clocks do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clocks {
    /// They have moved on by the time that passed since the snapshot.
    #[default]
    Advance,
    /// They go on as if no time had passed.
    Continue,
}

impl Machine {
    /// What a snapshot keeps of it. The machine must be paused.
    ///
    /// # Errors
    /// [`MachineError::Running`], or what KVM said.
    pub fn save(&self) -> Result<MachineState, MachineError> {
        if self.is_running() {
            return Err(MachineError::Running);
        }
        Ok(MachineState {
            kvm: KvmState::read(&self.vm, &self.model, &self.vcpus)?,
            clock: ClockState::read(&self.vm)?,
            ports: self.chipset.ports.save(),
        })
    }

    /// Takes what [`save`](Self::save) gave, of a machine with as many CPUs whose memory this one
    /// has. It must not have been started yet. The guest is told, once it runs, that it is another
    /// one than it was.
    ///
    /// # Errors
    /// [`MachineError::Cpu`] with [`CpuError::Lacks`](crate::CpuError::Lacks) when the guest relies
    /// on what this host has not; [`MachineError::Started`], [`MachineError::State`],
    /// [`MachineError::Nonsense`], or what KVM said.
    pub fn restore(&mut self, state: &MachineState, clocks: Clocks) -> Result<(), MachineError> {
        if self.has_threads {
            return Err(MachineError::Started);
        }
        let vcpus = state.kvm.vcpus();
        if vcpus.len() != self.vcpus.len() {
            let (found, wanted) = (vcpus.len(), self.vcpus.len());
            return Err(MachineError::State { found, wanted });
        }
        for (state, pristine) in vcpus.iter().zip(self.pristine.vcpus()) {
            CpuModel::check(state, pristine)?;
        }
        state.kvm.write_interrupt_controllers(&self.vm)?;
        let passed = match clocks {
            Clocks::Advance => state.clock.passed(),
            Clocks::Continue => Duration::ZERO,
        };
        // Before the CPUs: a register of theirs makes KVM write the time into memory.
        state.clock.write(&self.vm, clocks)?;
        for (vcpu, state) in self.vcpus.iter().zip(vcpus) {
            let vcpu = lock(vcpu);
            CpuModel::write(&vcpu.fd, state, passed)?;
            // A guest without KVM's clock has no watchdogs to tell.
            let _ = vcpu.fd.kvmclock_ctrl();
        }
        if !self.chipset.ports.restore(&state.ports) {
            return Err(MachineError::Nonsense { what: "another serial port" });
        }
        self.generation = new_generation()?;
        write_generation(&self.ram, &self.generation)?;
        self.chipset.ports.acpi.events.raise(Event::Generation);
        Ok(())
    }
}

impl KvmState {
    pub(super) fn read(
        vm: &VmFd,
        model: &CpuModel,
        vcpus: &[Arc<Mutex<Vcpu>>],
    ) -> Result<Self, MachineError> {
        let vcpus: Result<Vec<_>, _> =
            vcpus.iter().map(|vcpu| model.read(&lock(vcpu).fd)).collect();
        let mut interrupt_controllers = Vec::new();
        for chip_id in CONTROLLERS {
            let mut controller = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut controller).map_err(kvm("KVM_GET_IRQCHIP"))?;
            interrupt_controllers.push(controller);
        }
        Ok(Self { vcpus: vcpus?, interrupt_controllers })
    }

    pub(super) fn vcpus(&self) -> &[VcpuState] {
        &self.vcpus
    }

    pub(super) fn write_interrupt_controllers(&self, vm: &VmFd) -> Result<(), MachineError> {
        if !self.interrupt_controllers.iter().map(|controller| controller.chip_id).eq(CONTROLLERS) {
            return Err(MachineError::Nonsense { what: "other interrupt controllers" });
        }
        for controller in &self.interrupt_controllers {
            vm.set_irqchip(controller).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }
}

impl ClockState {
    fn read(vm: &VmFd) -> Result<Self, MachineError> {
        let data = vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?;
        // Linux 5.16 and newer tell both clocks at once, if the host's own clock allows it.
        let has_wall = data.flags & KVM_CLOCK_REALTIME != 0;
        let wall_ns = if has_wall { data.realtime } else { wall_ns() };
        Ok(Self { guest_ns: data.clock, wall_ns })
    }

    /// How much time has passed since then; none if this host's clock is behind.
    fn passed(&self) -> Duration {
        Duration::from_nanos(wall_ns().saturating_sub(self.wall_ns))
    }

    fn write(&self, vm: &VmFd, clocks: Clocks) -> Result<(), MachineError> {
        let known_flags = vm.check_extension_int(Cap::AdjustClock).cast_unsigned();
        let mut data = kvm_clock_data { clock: self.guest_ns, ..Default::default() };
        if clocks == Clocks::Advance && known_flags & KVM_CLOCK_REALTIME != 0 {
            // KVM adds what has passed until this very moment.
            (data.flags, data.realtime) = (KVM_CLOCK_REALTIME, self.wall_ns);
        } else if clocks == Clocks::Advance {
            let passed = u64::try_from(self.passed().as_nanos()).unwrap_or(u64::MAX);
            data.clock = data.clock.saturating_add(passed);
        }
        Ok(vm.set_clock(&data).map_err(kvm("KVM_SET_CLOCK"))?)
    }
}

/// The controllers in a state, in this order.
const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The host's wall clock.
fn wall_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
