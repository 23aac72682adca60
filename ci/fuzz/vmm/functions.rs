//! PCI functions by their configuration space and BARs, alone and on the bus: every width, any
//! offset.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_ioctls::VmFd;
use vmm_machine::interrupts::Interrupts;
use vmm_machine::kvm;
use vmm_machine::pci::{Bus, Layout};
use vmm_virtio::memory::{Bytes, GuestAddress};
use vmm_virtio::pci::testing::{ECHO_QUEUE_SIZE, Echo, Inline, Rig};
use vmm_virtio::pci::{BAR_SIZE, Executor, FUNCTION_SIZE, Function, Parts, Pvpanic, Transport};
use vmm_virtio::testing::{self, DRIVER_SIZE, Driver};

use super::script::Script;

const OPERATION_COUNT_MAX: u32 = 300;
const QUEUE_COUNT: usize = 2;
const MEMORY_SIZE: u64 = 2 * DRIVER_SIZE;

/// A virtio function with an echo behind it, whose units run when the script says so.
pub(crate) fn pci(bytes: &[u8]) {
    let script = &mut Script::new(bytes);
    let memory = testing::memory(usize::try_from(MEMORY_SIZE).expect("small"));
    let executor = Arc::new(Inline::default());
    let shared = Arc::clone(&executor) as Arc<dyn Executor>;
    let mut rig = Rig::new(QUEUE_COUNT, Arc::clone(&memory), shared);
    let driver = |index: u64| Driver::alone(&memory, index * DRIVER_SIZE, ECHO_QUEUE_SIZE);
    let mut drivers = [driver(0), driver(1)];
    for _ in 0..OPERATION_COUNT_MAX {
        if script.is_over() {
            return;
        }
        match script.byte() % 16 {
            0 | 1 => {
                let offset = usize::from(script.u16()) % FUNCTION_SIZE;
                let size = script.pick(&[1, 2, 4, 8, 3]);
                rig.transport.write_config(offset, script.take(size));
                let mut read = [0; 8];
                rig.transport.config().read(offset, &mut read[..size]);
            }
            2..=4 => {
                let (offset, size) = place_in_bar(script);
                rig.transport.write_bar(0, offset, script.take(size));
            }
            5 => {
                let (offset, size) = place_in_bar(script);
                rig.transport.read_bar(0, offset, &mut [0; 8][..size]);
            }
            6 => rig.negotiate(script.flag()),
            7 => {
                let index = script.byte() % 3;
                rig.set_up_queue(u16::from(index), u64::from(index) * DRIVER_SIZE);
                rig.set_up_vector(index);
            }
            8 => rig.go(),
            9 => {
                let place = GuestAddress(u64::from(script.u32()) % MEMORY_SIZE);
                let _ = memory.write_slice(script.take(64), place);
            }
            10 => drivers[usize::from(script.flag())].offer(script.u16()),
            11 => {
                let driver = &drivers[usize::from(script.flag())];
                let (at, address) = (script.byte(), script.number());
                let size = u32::try_from(script.number()).unwrap_or(u32::MAX);
                driver.descriptor(u16::from(at % 32), address, size, script.u16(), script.u16());
            }
            12 => executor.run(),
            13 => {
                executor.is_stuck.store(script.flag(), std::sync::atomic::Ordering::Relaxed);
                if rig.transport.pause().is_ok() {
                    if let Ok(state) = rig.transport.save()
                        && script.flag()
                    {
                        let _ = rig.transport.restore(state);
                    }
                    rig.transport.resume();
                }
                executor.is_stuck.store(false, std::sync::atomic::Ordering::Relaxed);
            }
            14 => {
                let _ = rig.transport.reset();
            }
            _ => {
                rig.host.refuse(script.flag());
                rig.host.take();
            }
        }
    }
}

/// An offset in the BAR, near a register as a rule, and a width with which it stays inside.
fn place_in_bar(script: &mut Script<'_>) -> (u64, usize) {
    let area = script.pick(&[0_u64, 0, 0, 0x1000, 0x2000, 0x3000, 0x4000]);
    let offset = match script.byte() {
        0xff => script.u64(),
        small => area + u64::from(small),
    };
    let size = script.pick(&[1, 2, 4, 8, 3]);
    (offset % (BAR_SIZE - size as u64 + 1), size)
}

const ECAM: u64 = 0xe000_0000;
const WINDOW: std::ops::Range<u64> = 0xe010_0000..0xe030_0000;

/// The bus of a VM that never runs.
struct Host {
    bus: Bus,
    _vm: Arc<VmFd>,
}

/// One for all inputs: making one takes long. Reset between two of them.
fn host() -> Option<&'static Mutex<Host>> {
    static HOST: OnceLock<Option<Mutex<Host>>> = OnceLock::new();
    let make = || {
        let kvm = kvm::open().inspect_err(|error| eprintln!("skipped: {error}")).ok()?;
        let vm = Arc::new(kvm.create_vm().expect("a VM"));
        vm.create_irq_chip().expect("interrupt controllers");
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm)));
        let layout = Layout { ecam: ECAM, ecam_memory_slot: 9, window: WINDOW };
        let bus = Bus::new(Arc::clone(&vm), interrupts, layout).expect("a bus");
        Some(Mutex::new(Host { bus, _vm: vm }))
    };
    HOST.get_or_init(make).as_ref()
}

/// A bus with a virtio function and another, by addresses; functions come and go.
pub(crate) fn bus(bytes: &[u8]) {
    let Some(host) = host() else { return };
    let host = host.lock().unwrap_or_else(PoisonError::into_inner);
    let bus = &host.bus;
    let script = &mut Script::new(bytes);
    let memory = testing::memory(usize::try_from(MEMORY_SIZE).expect("small"));
    bus.reset().expect("nothing is at work");
    let virtio = || {
        let (device, _) = Echo::new(QUEUE_COUNT);
        let vector_count = Transport::vector_count(&device);
        Box::new(Transport::new(Parts {
            name: "echo0".into(),
            device: Box::new(device),
            memory: Arc::clone(&memory),
            executor: Arc::new(Inline::default()),
            host: bus.host(vector_count),
        }))
    };
    bus.add(Some(1), virtio()).expect("an empty bus");
    bus.add(Some(2), Box::new(Pvpanic::new(|_| ()))).expect("an empty bus");
    for _ in 0..OPERATION_COUNT_MAX {
        if script.is_over() {
            break;
        }
        match script.byte() % 12 {
            0..=4 => {
                let address = address(script);
                let size = script.pick(&[1, 2, 4, 8, 3]);
                bus.write(address, script.take(size));
            }
            5..=7 => {
                let address = address(script);
                let size = script.pick(&[1, 2, 4, 8, 3]);
                bus.read(address, &mut [0; 8][..size]);
            }
            8 => drop(bus.remove(usize::from(script.byte() % 4))),
            9 => {
                let slot = script.flag().then(|| usize::from(script.byte()));
                let function: Box<dyn Function> =
                    if script.flag() { virtio() } else { Box::new(Pvpanic::new(|_| ())) };
                if let Err(error) = bus.add(slot, function) {
                    drop(error.to_string());
                }
            }
            10 => {
                if bus.pause().is_ok() {
                    let states = bus.save().expect("what is paused can be saved");
                    let _ = bus.restore(states);
                    bus.resume();
                }
            }
            _ => bus.reset().expect("it stops at once"),
        }
    }
    for slot in bus.taken_slots() {
        // The host bridge stays.
        drop(bus.remove(slot));
    }
}

/// Configuration space, the window, or anything.
fn address(script: &mut Script<'_>) -> u64 {
    match script.byte() {
        0xff => script.u64(),
        0x80.. => WINDOW.start + u64::from(script.u32()) % (WINDOW.end - WINDOW.start + 64),
        slot => ECAM + u64::from(slot % 8) * 0x8000 + u64::from(script.u16()) % 0x1100,
    }
}
