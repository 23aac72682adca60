//! A machine, from its making to its end.
//!
//! ```text
//!   new ────► start ──► running ⇄ paused (state may be saved)
//!   restored ──┘         │
//!                        ▼ switched off, reset, crashed …
//!                      ended ── reset ──► paused ── resume ──► running
//! ```
//!
//! Making one reads the kernel into memory and creates everything that KVM keeps, with as few
//! changes of KVM's memory map as there are ranges of memory: each of them waits until all readers
//! of the old one have gone. Nothing runs before [`Machine::start`], which gives each virtual CPU
//! its thread.
//!
//! A machine knows no devices but those of `legacy` and `acpi`. A bus is attached by
//! [`Machine::connect`]; who attached it also stops its devices before a [`Machine::reset`], which
//! takes their memory away from under them, and resets them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::time::Instant;

use kvm_ioctls::{Kvm, VmFd};
use vmm_virtio::memory::{Bytes, GuestAddress, SharedMemory};

mod saved;

use crate::acpi::{Event, Events, Hotplug, RESET_CODE, Registers, tables};
use crate::boot::{self, Boot, BootError, Entry};
use crate::control::{Control, PARK_LIMIT};
use crate::cpu::kick::{self, ExitFlag, Kicker};
use crate::cpu::{CpuError, CpuModel, CpuTemplate, ExitCounters, Outcome, Platform, Vcpu, kvm};
use crate::end::{Ender, Exit};
use crate::kvm::KvmError;
use crate::legacy::{Ports, SerialConsole, SerialInput, Sink};
use crate::line::Line;
use crate::memory::layout::{
    ACPI_ADDRESS, GENERATION_ADDRESS, KVM_IDENTITY_MAP_ADDRESS, KVM_TSS_ADDRESS, Layout,
    RESET_VECTOR_ADDRESS, gsi,
};
use crate::memory::{Backing, Beginning, MemoryError, Ram};
use crate::worker::{self, ThreadSetup};

use saved::KvmState;
pub use saved::{Clocks, MachineState};

/// A virtual CPU's thread needs little: our code is shallow, and KVM's is the kernel's.
const VCPU_STACK_SIZE: usize = 256 << 10;

/// What a machine is made of.
pub struct MachineConfig {
    /// What it boots.
    pub boot: Boot,
    /// How many CPUs it has.
    pub vcpu_count: u8,
    /// Which features they have.
    pub cpu_template: CpuTemplate,
    /// How much memory it has.
    pub memory_mib: u64,
    /// What the memory is made of.
    pub backing: Backing,
    /// Where a serial port's output goes; without, there is no serial port.
    pub serial: Option<Sink>,
    /// Whether there will be a PCI bus, for ACPI to tell of.
    pub has_pci: bool,
}

/// Registers in the guest's memory space, such as those of a PCI bus. Called by all CPUs at once.
pub trait MmioBus: Send + Sync {
    /// Answers a read; `false` when nothing is there.
    fn read(&self, address: u64, data: &mut [u8]) -> bool;

    /// Takes a write; `false` when nothing is there.
    fn write(&self, address: u64, data: &[u8]) -> bool;
}

/// A machine.
pub struct Machine {
    control: Arc<Control>,
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    model: CpuModel,
    chipset: Arc<Chipset>,
    counters: ExitCounters,
    has_threads: bool,
    /// What CPUs and interrupt controllers were before the first instruction.
    pristine: KvmState,
    /// What tells a guest that it is not the one that it was.
    generation: [u8; 16],
    description: Description,
    boot: Boot,
    vm: Arc<VmFd>,
    ram: Ram,
}

/// What ACPI has to tell, without the layout.
#[derive(Clone, Copy, Debug)]
struct Description {
    has_serial: bool,
    has_pci: bool,
}

impl Machine {
    /// Makes a machine of `config` on `kvm`, with everything in memory that its kernel expects.
    ///
    /// # Errors
    /// [`MachineError`] that says what can't be.
    pub fn new(kvm_fd: &Kvm, config: MachineConfig) -> Result<Self, MachineError> {
        Self::build(kvm_fd, config, |ram, config, description| {
            load(&config.boot, description, config.vcpu_count, ram).map(Some)
        })
    }

    /// Makes a machine whose memory holds what a snapshot has: [`restore`](Self::restore) makes it go
    /// on from there. What `config` boots is for its resets.
    ///
    /// # Errors
    /// [`MachineError`] that says what can't be.
    pub fn from_memory(
        kvm_fd: &Kvm,
        config: MachineConfig,
        memory: &Beginning,
    ) -> Result<Self, MachineError> {
        Self::build(kvm_fd, config, |ram, _, _| {
            ram.begin_with(memory)?;
            Ok(None)
        })
    }

    fn build(
        kvm_fd: &Kvm,
        config: MachineConfig,
        fill: impl FnOnce(&mut Ram, &MachineConfig, Description) -> Result<Option<Entry>, MachineError>,
    ) -> Result<Self, MachineError> {
        kick::prepare().map_err(kvm("sigaction"))?;
        let model = CpuModel::new(kvm_fd, config.cpu_template, config.vcpu_count)?;
        let layout = Layout::new(config.memory_mib, model.address_bits)?;
        let mut ram = Ram::new(layout, config.backing)?;
        let description =
            Description { has_serial: config.serial.is_some(), has_pci: config.has_pci };
        let entry = fill(&mut ram, &config, description)?;
        let generation = new_generation()?;
        write_generation(&ram, &generation)?;

        let vm = Arc::new(create_vm(kvm_fd)?);
        ram.register(&vm)?;
        let control = Arc::new(Control::new());
        let chipset = Arc::new(Chipset::new(&vm, &control, config.serial)?);
        let counters = ExitCounters::default();
        let mut vcpus = Vec::with_capacity(usize::from(config.vcpu_count));
        for index in 0..config.vcpu_count {
            let fd = model.create(&vm, index)?;
            let platform: Arc<dyn Platform> = chipset.clone();
            let vcpu = Vcpu { index, fd, platform, counters: counters.clone() };
            vcpus.push(Arc::new(Mutex::new(vcpu)));
        }
        let pristine = KvmState::read(&vm, &model, &vcpus)?;
        if let (Some(first), Some(entry)) = (vcpus.first(), entry) {
            CpuModel::enter(&lock(first).fd, entry)?;
        }
        let has_threads = false;
        let boot = config.boot;
        Ok(Self {
            control,
            vcpus,
            model,
            chipset,
            counters,
            has_threads,
            pristine,
            generation,
            description,
            boot,
            vm,
            ram,
        })
    }

    /// KVM's side of the machine, for interrupts and doorbells of devices.
    #[must_use]
    pub const fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Its memory.
    #[must_use]
    pub const fn memory(&self) -> &SharedMemory {
        self.ram.memory()
    }

    /// The same, for whoever saves it.
    pub(crate) const fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Where memory and windows are.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        self.ram.layout()
    }

    /// Attaches what answers where there is no memory. The first stays; before the start.
    pub fn connect(&self, bus: Arc<dyn MmioBus>) {
        // Only a mistake of ours would connect two.
        let _ = self.chipset.bus.set(bus);
    }

    /// Slots of the PCI bus that may change while the guest runs.
    #[must_use]
    pub fn hotplug(&self) -> &Hotplug {
        &self.chipset.ports.acpi.hotplug
    }

    /// The way into the serial port.
    #[must_use]
    pub fn serial_input(&self) -> Option<SerialInput> {
        self.chipset.ports.serial.as_ref().map(SerialConsole::input)
    }

    /// The right to end the guest, for a watchdog or a device that hears a panic.
    #[must_use]
    pub fn ender(&self) -> Ender {
        Ender::new(&self.control)
    }

    /// Exits of all CPUs so far.
    #[must_use]
    pub const fn exits(&self) -> &ExitCounters {
        &self.counters
    }

    /// Gives each CPU its thread, set up by `setup` before it does anything. The CPUs are parked.
    ///
    /// # Errors
    /// [`MachineError::Thread`] when the host gives no thread, or it cannot be set up.
    pub fn start_threads(&mut self, setup: &ThreadSetup) -> Result<(), MachineError> {
        if !self.has_threads {
            self.has_threads = true;
            for vcpu in &self.vcpus {
                self.spawn(vcpu, setup)?;
            }
        }
        Ok(())
    }

    /// Lets the CPUs run, whose threads are started if they have none.
    ///
    /// # Errors
    /// As for [`start_threads`](Self::start_threads).
    pub fn start(&mut self) -> Result<(), MachineError> {
        let setup: ThreadSetup = Arc::new(|_| Ok(()));
        self.start_threads(&setup)?;
        self.control.run();
        Ok(())
    }

    fn spawn(&self, vcpu: &Arc<Mutex<Vcpu>>, setup: &ThreadSetup) -> Result<(), MachineError> {
        let (index, flag) = {
            let vcpu = lock(vcpu);
            (vcpu.index, ExitFlag::new(&self.vm, &vcpu.fd).map_err(kvm("mmap of kvm_run"))?)
        };
        let (vcpu, control) = (Arc::clone(vcpu), Arc::clone(&self.control));
        let name = format!("vcpu{index}");
        let work = move || serve(&vcpu, &control);
        let thread = worker::spawn(&name, VCPU_STACK_SIZE, setup, work)
            .map_err(|source| MachineError::Thread { index, source })?;
        self.control.add(Kicker { flag, thread });
        Ok(())
    }

    /// Whether CPUs run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.control.is_running()
    }

    /// Parks the CPUs: no guest instruction runs when it returns.
    ///
    /// # Errors
    /// [`MachineError::Pause`] when a CPU is held up; it will park as soon as it can.
    pub fn pause(&self) -> Result<(), MachineError> {
        if !self.control.park() {
            return Err(MachineError::Pause);
        }
        for vcpu in &self.vcpus {
            // Tells the guest's watchdogs; a guest without KVM's clock has none to tell.
            let _ = lock(vcpu).fd.kvmclock_ctrl();
        }
        Ok(())
    }

    /// Lets the CPUs run again, unless the guest has ended.
    pub fn resume(&self) {
        if self.has_threads {
            self.control.run();
        }
    }

    /// Presses the power button: a guest that listens shuts down and switches off.
    pub fn press_power_button(&self) {
        self.chipset.ports.acpi.events.raise(Event::PowerButton);
    }

    /// Why the guest has ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.control.exit()
    }

    /// Waits until the guest has ended, or for `limit`.
    #[must_use]
    pub fn wait(&self, limit: Option<Duration>) -> Option<Exit> {
        self.control.wait(limit.map(|limit| Instant::now() + limit))
    }

    /// Starts over: memory is zeroed and loaded anew, CPUs and interrupt controllers are what they
    /// were at first. The machine is then paused; devices must have been stopped before.
    ///
    /// # Errors
    /// [`MachineError`]; the machine can then only be dropped.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.pause()?;
        self.ram.clear()?;
        let vcpu_count = u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX);
        let entry = load(&self.boot, self.description, vcpu_count, &mut self.ram)?;
        write_generation(&self.ram, &self.generation)?;
        self.chipset.ports.reset();
        self.pristine.write_interrupt_controllers(&self.vm)?;
        for (vcpu, pristine) in self.vcpus.iter().zip(self.pristine.vcpus()) {
            CpuModel::reset(&lock(vcpu).fd, pristine)?;
        }
        if let Some(first) = self.vcpus.first() {
            CpuModel::enter(&lock(first).fd, entry)?;
        }
        self.control.forget_exit();
        Ok(())
    }

    /// Ends the threads. The guest is gone for good.
    pub fn stop(&mut self) {
        self.control.stop();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A virtual CPU's thread.
fn serve(vcpu: &Mutex<Vcpu>, control: &Control) {
    while control.may_run() {
        let outcome = lock(vcpu).run();
        match outcome {
            Outcome::Kicked => {}
            Outcome::Crash(report) => {
                tracing::error!(%report, "the guest crashed");
                control.end(Exit::Crash(report));
            }
            Outcome::Failed(error) => {
                control.end(Exit::Failed { reason: format!("KVM_RUN: {error}") });
            }
        }
    }
}

fn lock(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    // Nothing in it is ever half done.
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts kernel, ACPI tables and what goes for firmware into memory.
fn load(
    boot: &Boot,
    description: Description,
    vcpu_count: u8,
    ram: &mut Ram,
) -> Result<Entry, MachineError> {
    let entry = boot::load(boot, ram)?;
    let Description { has_serial, has_pci } = description;
    let description = tables::Description { layout: ram.layout(), vcpu_count, has_serial, has_pci };
    let tables = tables::build(&description);
    let parts: [(&str, u64, &[u8]); 2] =
        [("ACPI tables", ACPI_ADDRESS, &tables), ("reset code", RESET_VECTOR_ADDRESS, &RESET_CODE)];
    for (what, address, bytes) in parts {
        let size = bytes.len() as u64;
        ram.memory().write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::NoRoom {
            what,
            address,
            size,
        })?;
    }
    Ok(entry)
}

/// A VM with KVM's interrupt controllers, and without its interval timer: no guest needs one beside
/// KVM's clock and the local APIC's timer, and its making takes as long as all else here.
fn create_vm(kvm_fd: &Kvm) -> Result<VmFd, MachineError> {
    let vm = loop {
        match kvm_fd.create_vm() {
            // A signal came while KVM waited for others.
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(kvm("KVM_CREATE_VM"))?,
        }
    };
    vm.set_identity_map_address(KVM_IDENTITY_MAP_ADDRESS)
        .map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(KVM_TSS_ADDRESS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

/// An id that no machine had before.
fn new_generation() -> Result<[u8; 16], MachineError> {
    let mut id = [0; 16];
    let mut filled = 0;
    while let Some(rest) = id.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(rest, flags)
            .map_err(|error| MachineError::Random(error.into()))?;
    }
    Ok(id)
}

/// Puts the generation id where the ACPI tables say that it is.
fn write_generation(ram: &Ram, id: &[u8; 16]) -> Result<(), MachineError> {
    let (address, size) = (GENERATION_ADDRESS, id.len() as u64);
    let no_room = |_| BootError::NoRoom { what: "generation id", address, size };
    ram.memory().write_slice(id, GuestAddress(address)).map_err(no_room)?;
    Ok(())
}

/// What there is around the CPUs.
struct Chipset {
    ports: Ports,
    bus: OnceLock<Arc<dyn MmioBus>>,
}

impl Chipset {
    fn new(
        vm: &Arc<VmFd>,
        control: &Arc<Control>,
        sink: Option<Sink>,
    ) -> Result<Self, MachineError> {
        let line = |gsi| Line::new(Arc::clone(vm), gsi);
        let serial = sink.map(|sink| SerialConsole::new(sink, line(gsi::SERIAL)));
        let serial = serial.transpose().map_err(MachineError::Descriptor)?;
        let events = Events::new(line(gsi::EVENTS));
        let hotplug = Hotplug::new(events.clone());
        let ender = Ender::new(control);
        let acpi = Registers { events, hotplug, ender: ender.clone() };
        Ok(Self { ports: Ports { serial, acpi, ender }, bus: OnceLock::new() })
    }
}

impl Platform for Chipset {
    fn read_port(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        self.ports.write(port, data);
    }

    fn read_mmio(&self, address: u64, data: &mut [u8]) {
        if !self.bus.get().is_some_and(|bus| bus.read(address, data)) {
            data.fill(0xff);
        }
    }

    fn write_mmio(&self, address: u64, data: &[u8]) {
        if let Some(bus) = self.bus.get() {
            // Where nothing is, writes are lost.
            bus.write(address, data);
        }
    }
}

/// Why a machine can't be made, or can't do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is no KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its CPUs, or what else KVM keeps.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// What it boots.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// No thread for a CPU.
    #[error("a thread for vCPU {index}")]
    Thread {
        /// Which CPU.
        index: u8,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// No descriptor for an event.
    #[error("eventfd")]
    Descriptor(#[source] io::Error),
    /// A CPU did not leave the guest.
    #[error("a vCPU did not stop within {} s", PARK_LIMIT.as_secs())]
    Pause,
    /// It must be paused for this.
    #[error("the machine is running")]
    Running,
    /// KVM takes a state only before the first instruction.
    #[error("the machine was started already")]
    Started,
    /// A state of another machine.
    #[error("a state of {found} vCPUs for a machine of {wanted}")]
    State {
        /// CPUs in the state.
        found: usize,
        /// CPUs of the machine.
        wanted: usize,
    },
    /// A state that no machine was ever in.
    #[error("a state with {what}")]
    Nonsense {
        /// What makes no sense in it.
        what: &'static str,
    },
    /// The host gave no random bytes.
    #[error("random bytes")]
    Random(#[source] io::Error),
}

#[cfg(test)]
mod tests;
