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
//!   Vm::run:   start ──► wait ──► ended ──► off, crashed, … ──► Exit
//!                          ▲         │
//!                          └─ reset ─┘  in place, if the description lets it
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
mod metrics;
mod opened;
mod restore;
mod snapshot;

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_spec::api::Wall;
use vmm_spec::{HugePages, OnReset, VerifiedSpec, VmSpec};
use vmm_sys_util::signal::unblock_signal;
use vmm_virtio::balloon::BalloonHandle;
use vmm_virtio::console::ConsoleHandle;

use crate::api::{Listener, Server, Stopper};
use crate::boot::{Boot, Image, Loading};
use crate::interrupts::Interrupts;
use crate::jail::{self, Inside, Side};
use crate::memory::Backing;
use crate::memory::layout::{ECAM_ADDRESS, slot};
use crate::pci::Bus;
use crate::worker::{self, ThreadSetup, Workers};
use crate::{CpuTemplate, Exit, Machine, MachineConfig, MmioBus, Sink, footprint};

use console::{Consoles, Terminal};
use control::VmControl;
use devices::Plugged;
use hotplug::Job;
use opened::Opened;
use restore::{Origin, Places};

pub use devices::open_tap;
pub use error::VmError;
pub use restore::restore;

/// What ends a VM in good order.
const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];
/// Of threads with little to do.
const STACK_SIZE: usize = 512 << 10;
/// Until a guest has booted, about, and its VMM does what it will go on doing.
const SETTLE_TIME: Duration = Duration::from_secs(2);

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
    match jail::enter(jail, &Opened::shares(spec), &opened.doors)? {
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
    /// Which of our pages exist.
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
        let Inside { threads, walls, pid, pagemap, .. } = inside.unwrap_or_else(Inside::nowhere);
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

    /// Lets the guest run, unless it waits to be resumed. The terminal is its own as long as what is
    /// returned lives.
    fn start(self: &Arc<Self>, consoles: Consoles, waits: bool) -> Result<Terminal, VmError> {
        self.end_by_signals()?;
        let terminal = consoles.start_input(&self.threads);
        let terminal = terminal.map_err(VmError::host("read the console"))?;
        let _lifecycle = self.lifecycle();
        self.machine_mut().start_threads(&self.threads)?;
        // All threads are there: this one starts no more.
        (self.threads)("main").map_err(VmError::host("set the main thread up"))?;
        if !self.is_paused.load(Ordering::SeqCst) {
            self.machine().resume();
        } else if !waits {
            self.go_on();
        }
        Ok(terminal)
    }

    /// Whoever ends the process ends the guest, without asking it, and everything else in good
    /// order: the terminal comes back, sockets go. A second signal ends the process at once.
    fn end_by_signals(self: &Arc<Self>) -> Result<(), VmError> {
        let failed = || VmError::host("listen to signals");
        let mut signals = Signals::new(SIGNALS).map_err(failed())?;
        let shared = Arc::downgrade(self);
        let work = move || {
            for signal in SIGNALS {
                // Blocked until now in a jail, so that none was lost. It was not blocked elsewhere.
                let _ = unblock_signal(signal);
            }
            for signal in &mut signals {
                let Some(shared) = shared.upgrade() else { return };
                if shared.is_ending.swap(true, Ordering::SeqCst) {
                    // As a shell tells of a process that a signal ended.
                    signal_hook::low_level::exit(128 + signal);
                }
                shared.machine().ender().end(Exit::Off);
            }
        };
        worker::spawn("signals", STACK_SIZE, &self.threads, work).map_err(failed())?;
        Ok(())
    }

    /// How the guest ended. Once it has settled, what starting took is given back.
    fn await_end(&self) -> Exit {
        let mut limit = Some(SETTLE_TIME);
        loop {
            if let Some(exit) = self.machine().wait(limit) {
                return exit;
            }
            if limit.take().is_some() {
                footprint::give_back();
            }
        }
    }

    /// Waits for the guest's end, which a reset need not be.
    fn run(&self, on_reset: OnReset) -> Result<vmm_spec::Exit, VmError> {
        loop {
            let exit = self.await_end();
            let is_wanted = self.reboot_is_wanted.swap(false, Ordering::SeqCst);
            // A guest that wants to start over while it is being stopped is off.
            let is_ending = self.is_ending.load(Ordering::SeqCst);
            let exit = if exit == Exit::Reset && is_ending { Exit::Off } else { exit };
            if exit == Exit::Reset && (is_wanted || on_reset == OnReset::Reboot) {
                self.reset()?;
                continue;
            }
            let exits = self.machine().exits().total();
            if exit == Exit::Off {
                tracing::info!(exits, "the guest ended: {exit}");
            } else {
                tracing::error!(exits, "the guest ended: {exit}");
            }
            return Ok(match exit {
                Exit::Off => vmm_spec::Exit::Off,
                Exit::Reset => vmm_spec::Exit::ResetRefused,
                Exit::Crash(_) | Exit::Panic => vmm_spec::Exit::Crashed,
                Exit::Watchdog => vmm_spec::Exit::Watchdog,
                Exit::Failed { .. } => vmm_spec::Exit::HostFailure,
            });
        }
    }

    /// Starts the guest over, in place: the vCPUs are parked already. A paused VM stays paused.
    fn reset(&self) -> Result<(), VmError> {
        let _lifecycle = self.lifecycle();
        self.machine().pause()?;
        self.bus.reset()?;
        let mut machine = self.machine_mut();
        machine.reset()?;
        self.reboots.fetch_add(1, Ordering::Relaxed);
        // What was asked for meanwhile has been forgotten with the exit: a reboot is this one, and
        // an end still comes, since it was noted before it was asked for.
        self.reboot_is_wanted.store(false, Ordering::SeqCst);
        if self.is_ending.load(Ordering::SeqCst) {
            machine.ender().end(Exit::Off);
        }
        if !self.is_paused.load(Ordering::SeqCst) {
            machine.resume();
        }
        Ok(())
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
