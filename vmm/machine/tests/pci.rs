//! A guest without a kernel finds an echo device on the bus, kicks it, and is interrupted: ECAM,
//! BARs, ioeventfd, worker, irqfd and MSI-X in one go, on whatever `/dev/kvm` there is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bare_guests::pci::{ECAM_ADDRESS, INTERRUPT_COUNT_ADDRESS, NOTIFY_OFFSET, PCI_ECHO};
use bare_guests::{
    CODE_ADDRESS, EXIT_PORT, MEMORY_SIZE, PAGE_TABLE_ADDRESS, RESULT_ADDRESS, STACK_ADDRESS,
};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_machine::interrupts::Interrupts;
use vmm_machine::memory::layout::ECAM_SIZE;
use vmm_machine::pci::{Bus, Layout};
use vmm_machine::worker::{Placement, Workers};
use vmm_virtio::memory::{Bytes, GuestAddress, GuestMemoryBackend, SharedMemory};
use vmm_virtio::pci::testing::Echo;
use vmm_virtio::pci::{Parts, Transport};
use vmm_virtio::testing;

/// After this many exits the guest is taken for runaway; it has about 60.
const EXIT_COUNT_MAX: usize = 10_000;
const WINDOW: std::ops::Range<u64> = 0xe010_0000..0xe020_0000;
/// Where the device is; the guest finds slots 1 to 4 empty.
const SLOT: usize = 5;

struct Machine {
    vcpu: VcpuFd,
    bus: Bus,
    memory: SharedMemory,
}

/// An address that the guest read or wrote by an exit.
#[derive(Debug, PartialEq, Eq)]
enum Exit {
    Read(u64),
    Write(u64),
}

impl Machine {
    fn new() -> Option<Self> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                eprintln!("skipped: /dev/kvm can't be used here: {error}");
                return None;
            }
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let memory = testing::memory(MEMORY_SIZE);
        memory.write_slice(&PCI_ECHO.memory(), GuestAddress(0)).unwrap();
        add_memory(&vm, &memory);
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm)));
        let layout = Layout { ecam: ECAM_ADDRESS, ecam_memory_slot: 1, window: WINDOW };
        let bus = Bus::new(Arc::clone(&vm), interrupts, layout).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        set_registers(&vcpu);
        Some(Self { vcpu, bus, memory })
    }

    fn add_echo(&self) {
        let (device, _control) = Echo::new(1);
        let workers = Workers::new(Arc::new(|_| Ok(())));
        let transport = Transport::new(Parts {
            name: "echo0".into(),
            host: self.bus.host(Transport::vector_count(&device)),
            device: Box::new(device),
            memory: Arc::clone(&self.memory),
            executor: workers.executor("echo0", Placement::Own { thread_count: 1 }).unwrap(),
        });
        assert_eq!(self.bus.add(Some(SLOT), Box::new(transport)).unwrap(), SLOT);
    }

    fn run(&mut self) -> Vec<Exit> {
        let mut exits = Vec::new();
        while exits.len() < EXIT_COUNT_MAX {
            match self.vcpu.run().unwrap() {
                VcpuExit::MmioRead(address, data) => {
                    assert!(self.bus.read(address, data), "a read of {address:#x}");
                    exits.push(Exit::Read(address));
                }
                VcpuExit::MmioWrite(address, data) => {
                    assert!(self.bus.write(address, data), "a write of {address:#x}");
                    exits.push(Exit::Write(address));
                }
                VcpuExit::IoOut(port, _) if port == u16::from(EXIT_PORT) => return exits,
                other => panic!("{other:?} after {exits:x?}"),
            }
        }
        panic!("no end after {EXIT_COUNT_MAX} exits");
    }

    fn word(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

fn add_memory(vm: &VmFd, memory: &SharedMemory) {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_SIZE as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
    };
    // SAFETY: exactly the guest memory, which is dropped after the vCPU.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

fn set_registers(vcpu: &VcpuFd) {
    let segment = |selector, type_, is_code: bool| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        l: u8::from(is_code),
        db: u8::from(!is_code),
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = vcpu.get_sregs().unwrap();
    let data = segment(0x10, 0b0011, false);
    special.cs = segment(0x08, 0b1011, true);
    (special.ds, special.es, special.ss) = (data, data, data);
    special.cr3 = PAGE_TABLE_ADDRESS;
    special.cr4 |= 1 << 5;
    special.cr0 |= 1 << 31 | 1;
    special.efer |= 1 << 8 | 1 << 10;
    vcpu.set_sregs(&special).unwrap();
    let registers =
        kvm_regs { rip: CODE_ADDRESS, rsp: STACK_ADDRESS, rflags: 2, ..kvm_regs::default() };
    vcpu.set_regs(&registers).unwrap();
}

/// A guest that waits for an interrupt in vain waits in the kernel, where no test ends it.
fn watchdog() -> impl Drop {
    struct Done(Arc<AtomicBool>);
    impl Drop for Done {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_done);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(60));
        if !seen.load(Ordering::Relaxed) {
            eprintln!("the guest did not end within 60 s");
            std::process::abort();
        }
    });
    Done(is_done)
}

#[test]
fn a_guest_is_echoed_and_interrupted() {
    let Some(mut machine) = Machine::new() else { return };
    let _watchdog = watchdog();
    machine.add_echo();
    let exits = machine.run();
    assert_eq!(machine.word(RESULT_ADDRESS), PCI_ECHO.result, "{exits:x?}");
    assert_eq!(machine.word(INTERRUPT_COUNT_ADDRESS), 1, "{exits:x?}");
    let ecam = ECAM_ADDRESS..ECAM_ADDRESS + ECAM_SIZE;
    let is_ecam_read = |exit: &Exit| matches!(exit, Exit::Read(at) if ecam.contains(at));
    assert!(!exits.iter().any(is_ecam_read), "configuration space is memory: {exits:x?}");
    assert!(!exits.contains(&Exit::Write(WINDOW.start + NOTIFY_OFFSET)), "{exits:x?}");
}

#[test]
fn a_guest_without_the_device_finds_empty_slots() {
    let Some(mut machine) = Machine::new() else { return };
    let _watchdog = watchdog();
    machine.add_echo();
    drop(machine.bus.remove(SLOT).unwrap());
    assert_eq!(machine.run(), []);
    assert_eq!(machine.word(RESULT_ADDRESS), 0);
}
