//! A VM from its description: a machine with the devices that it names, run to its end.
//!
//! ```text
//!   VerifiedSpec ──► Opened: files, taps, sockets ──► jail::enter                (opened.rs)
//!   Snapshot ──────► Origin   ┌──────────────────────────┘                     (restore.rs)
//!         ┌─────────────┴─────┘
//!         └──► Vm::new ──► Machine (memory, vCPUs)
//!                       ├──────► pci::Bus ◄── one function for each device   (devices.rs)
//!                       ├──────► Workers: threads for the devices' units
//!                       ├──────► where console and serial port go             (console.rs)
//!                       └──────► api::Server, if it has a socket             (control.rs, hotplug.rs,
//!                                                                             metrics.rs, snapshot.rs)
//!
//!   Vm::run ──► the guest's life, resets and all ──► Exit                        (life.rs)
//! ```
//!
//! Everything that may fail for want of a file, a device or memory fails in `Vm::new`, before the
//! guest's first instruction. Slots of the bus are given in the order of the description, so that
//! a guest's `/dev/vda` is its first disk; a VM from a snapshot keeps those that its guest knows.

mod console;
mod control;
mod devices;
mod error;
mod hotplug;
mod life;
mod metrics;
mod opened;
mod restore;
mod serial_line;
mod snapshot;

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_spec::api::Wall;
use vmm_spec::{HugePages, OnReset, VerifiedSpec, VmSpec};
use vmm_virtio::balloon::BalloonHandle;
use vmm_virtio::console::ConsoleHandle;

use crate::api::{Listener, Server, Stopper};
use crate::boot::{Boot, Image, Loading};
use crate::interrupts::Interrupts;
use crate::jail::{self, Inside, Needs, Side};
use crate::memory::Backing;
use crate::memory::layout::{ECAM_ADDRESS, slot};
use crate::pci::Bus;
use crate::worker::{self, ThreadSetup, Workers};
use crate::{CpuTemplate, Machine, MachineConfig, MmioBus, Sink};

use console::Consoles;
use control::VmControl;
use devices::Plugged;
use hotplug::Job;
use opened::Opened;
use restore::{Origin, Places};
use serial_line::SerialLine;

pub use devices::open_tap;
pub use error::VmError;
pub use restore::restore;

/// Of threads with little to do.
const STACK_SIZE: usize = 512 << 10;

/// Runs the VM of `spec` until it ends; in a jail, unless the description says otherwise. The process
/// must have one thread.
///
/// # Errors
/// [`VmError`] when it cannot be started; once it runs, everything is an [`Exit`](vmm_spec::Exit).
pub fn run(spec: &VerifiedSpec) -> Result<vmm_spec::Exit, VmError> {
    run_from(spec, None)
}

/// Runs the VM of `spec`, from its beginning or from a snapshot.
fn run_from(spec: &VerifiedSpec, origin: Option<Origin>) -> Result<vmm_spec::Exit, VmError> {
    let opened = Opened::new(spec, origin.as_ref())?;
    let Some(jail) = &spec.jail else {
        tracing::warn!("no jail: a guest that breaks out of its VM has this process's rights");
        return Vm::new(spec, opened, None, origin)?.run();
    };
    let shares = Opened::shares(spec);
    let block_devices = opened.block_devices(jail, &shares)?;
    let needs = Needs {
        shares: &shares,
        doors: &opened.doors,
        block_devices: &block_devices,
        has_pagemap: needs_pagemap(spec),
    };
    match jail::enter(jail, needs)? {
        Side::Inside(inside) => {
            let opened = opened.move_into(&inside);
            Vm::new(spec, opened, Some(inside), origin)?.run()
        }
        Side::Outside(warden) => {
            // A disk that is unplugged must be free.
            let Opened { sockets, .. } = opened;
            drop(origin);
            let ended = warden.watch();
            drop(sockets);
            Ok(ended?.finish())
        }
    }
}

/// Only a client of the API asks for a snapshot.
fn needs_pagemap(spec: &VerifiedSpec) -> bool {
    spec.api_socket.is_some()
}

/// A VM.
struct Vm {
    shared: Arc<Shared>,
    on_reset: OnReset,
    consoles: Consoles,
    api: Option<Api>,
    /// It is paused before its first instruction.
    waits: bool,
}

/// The API's thread.
struct Api {
    stopper: Stopper,
    thread: JoinHandle<()>,
}

/// What the main thread and the API share.
struct Shared {
    machine: RwLock<Machine>,
    bus: Arc<Bus>,
    workers: Workers,
    plugged: Mutex<Vec<Plugged>>,
    /// Slots that a snapshot's guest knows its devices by.
    places: Mutex<Places>,
    console: OnceLock<ConsoleHandle>,
    serial: Option<SerialLine>,
    balloon: OnceLock<BalloonHandle>,
    /// The description as it is now.
    spec: Mutex<VmSpec>,
    /// Held while the VM pauses, resumes, or resets.
    lifecycle: Mutex<()>,
    is_paused: AtomicBool,
    is_ending: AtomicBool,
    /// The next reset was asked for through the API: the description has no say in it.
    reboot_is_wanted: AtomicBool,
    reboots: AtomicU64,
    started: Instant,
    ptys: console::Ptys,
    /// What each thread does first.
    threads: ThreadSetup,
    /// The thread that plugs devices in and out, if there is an API to ask for it.
    hotplug: OnceLock<mpsc::Sender<Job>>,
    /// The process's id on the host.
    pid: u32,
    /// Those of the jail, if there is one.
    walls: Vec<Wall>,
    /// Which of our pages exist, for snapshots.
    pagemap: Option<File>,
}

/// The bus behind the machine's door for it.
struct BusDoor(Arc<Bus>);

impl MmioBus for BusDoor {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.0.read(address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.0.write(address, data)
    }
}

impl Vm {
    /// Builds it.
    ///
    /// # Errors
    /// [`VmError`], naming what of the description cannot be had.
    fn new(
        spec: &VerifiedSpec,
        opened: Opened,
        inside: Option<Inside>,
        origin: Option<Origin>,
    ) -> Result<Self, VmError> {
        let started = Instant::now();
        raise_descriptor_limit();
        let Opened { kvm, kernel, initramfs, mut consoles, devices, mut sockets, .. } = opened;
        let config = machine_config(spec, (kernel, initramfs), consoles.take_serial());
        let machine = match &origin {
            None => Machine::new(&kvm, config)?,
            Some(origin) => origin.machine(&kvm, config)?,
        };
        let inside = inside.unwrap_or_else(|| Inside::nowhere(needs_pagemap(spec)));
        let Inside { threads, walls, pid, pagemap, .. } = inside;
        consoles.connect_serial(machine.serial_input());

        let interrupts = Arc::new(Interrupts::new(Arc::clone(machine.vm())));
        let window = machine.layout().mmio64;
        let layout = crate::pci::Layout {
            ecam: ECAM_ADDRESS,
            ecam_memory_slot: slot::FIRST_FREE,
            window: window.start..window.end(),
        };
        let bus = Arc::new(Bus::new(Arc::clone(machine.vm()), interrupts, layout)?);
        machine.connect(Arc::new(BusDoor(Arc::clone(&bus))));
        let shared = Arc::new(Shared {
            machine: RwLock::new(machine),
            bus,
            workers: Workers::new(Arc::clone(&threads)),
            plugged: Mutex::default(),
            places: Mutex::new(origin.as_ref().map(Origin::places).unwrap_or_default()),
            console: OnceLock::new(),
            serial: consoles.serial_line(),
            balloon: OnceLock::new(),
            spec: Mutex::new(spec.spec().clone()),
            lifecycle: Mutex::default(),
            is_paused: AtomicBool::new(origin.is_some()),
            is_ending: AtomicBool::new(false),
            reboot_is_wanted: AtomicBool::new(false),
            reboots: AtomicU64::new(0),
            started,
            ptys: consoles.ptys(),
            threads,
            hotplug: OnceLock::new(),
            pid,
            walls,
            pagemap,
        });
        shared.add_devices(spec, devices, &mut consoles, sockets.vsock.take())?;
        let waits = origin.as_ref().is_some_and(|origin| origin.waits);
        if let Some(origin) = origin {
            origin.give_to(&shared)?;
        }
        let api = match sockets.api.take() {
            None => None,
            Some(listener) => {
                shared.start_hotplug()?;
                Some(shared.serve_api(listener)?)
            }
        };
        Ok(Self { shared, on_reset: spec.on_reset, consoles, api, waits })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`VmError`] when its threads cannot be started, or a reset fails.
    fn run(self) -> Result<vmm_spec::Exit, VmError> {
        let Self { shared, on_reset, consoles, api, waits } = self;
        let result = shared.start(consoles, waits).and_then(|_terminal| shared.run(on_reset));
        shared.is_ending.store(true, Ordering::SeqCst);
        if let Some(Api { stopper, thread }) = api {
            // Whoever asked for the end still gets an answer, and the socket's file goes.
            stopper.stop();
            let _ = thread.join();
        }
        result
    }
}

impl Drop for Shared {
    /// The guest stands, then its devices, and only then does its memory go: the kernel may still be
    /// writing it to a disk.
    fn drop(&mut self) {
        self.machine.get_mut().unwrap_or_else(PoisonError::into_inner).stop();
        for slot in self.bus.taken_slots() {
            // The host bridge stays.
            drop(self.bus.remove(slot));
        }
    }
}

impl Shared {
    fn machine(&self) -> RwLockReadGuard<'_, Machine> {
        // A thread that panicked took the process with it, or changed nothing by half.
        self.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine_mut(&self) -> RwLockWriteGuard<'_, Machine> {
        self.machine.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugged(&self) -> MutexGuard<'_, Vec<Plugged>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spec(&self) -> MutexGuard<'_, VmSpec> {
        self.spec.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lifecycle(&self) -> MutexGuard<'_, ()> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_api(self: &Arc<Self>, listener: Listener) -> Result<Api, VmError> {
        let control = Arc::new(VmControl(Arc::downgrade(self)));
        let failed = VmError::host("start the API");
        let (server, stopper) = Server::new(listener, control).map_err(failed)?;
        let work = move || {
            if let Err(error) = server.run() {
                tracing::error!(%error, "the API ended");
            }
        };
        let thread = worker::spawn("api", STACK_SIZE, &self.threads, work)
            .map_err(VmError::host("start the API's thread"))?;
        Ok(Api { stopper, thread })
    }
}

/// Queues, connections and a guest's open files cost a descriptor each; the usual soft limit of 1024 is
/// less than a guest may keep us busy with.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

fn machine_config(
    spec: &VerifiedSpec,
    boot: (Image, Option<Image>),
    serial: Option<Sink>,
) -> MachineConfig {
    let memory = spec.memory;
    let backing = match (memory.hugepages, memory.shared) {
        (HugePages::Size2M, _) => Backing::HugePages2Mib,
        (HugePages::Size1G, _) => Backing::HugePages1Gib,
        (HugePages::Off, true) => Backing::Memfd,
        (HugePages::Off, false) => Backing::Anonymous { huge_pages: memory.thp },
    };
    let (kernel, initramfs) = boot;
    MachineConfig {
        boot: Boot { kernel, initramfs, cmdline: spec.cmdline.clone(), loading: Loading::Copy },
        // 1 to 255, verified.
        vcpu_count: u8::try_from(spec.cpus.count).unwrap_or(u8::MAX),
        cpu_template: match spec.cpus.template {
            vmm_spec::CpuTemplate::Host => CpuTemplate::Host,
            vmm_spec::CpuTemplate::BaselineV2 => CpuTemplate::BaselineV2,
            vmm_spec::CpuTemplate::BaselineV3 => CpuTemplate::BaselineV3,
        },
        memory_mib: memory.size.bytes() >> 20,
        backing,
        serial,
        has_pci: true,
    }
}
