//! Machines that run: a few instructions each, on whatever `/dev/kvm` there is.

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc;

use kvm_ioctls::Kvm;

use super::*;
use crate::boot::Image;
use crate::boot::elf::tests::{elf, pvh_note};
use crate::cpu::run::CrashReport;
use crate::memory::Filling;

/// Where the guests' code is.
const CODE: u32 = 0x20_0000;
/// Enough for an emulated KVM on a busy host; nothing here takes a second on hardware.
const LIMIT: Duration = Duration::from_secs(60);

/// `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`, in 32-bit and 64-bit code alike.
const OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];
/// `ud2`: with no interrupt table, a triple fault.
const CRASH: &[u8] = &[0x0f, 0x0b];

/// KVM, or a message that says why a test is skipped.
fn kvm_or_skip() -> Option<Kvm> {
    match crate::kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            eprintln!("skipped: {error} ({})", error.hint());
            None
        }
    }
}

fn image(bytes: &[u8]) -> Image {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Image { file, name: "guest".to_owned() }
}

struct Channel(mpsc::Sender<u8>);

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.0.send(byte).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine that begins at `code`, and what it says.
fn machine(kvm: &Kvm, code: &[u8], is_pvh: bool) -> (Machine, mpsc::Receiver<u8>) {
    let notes = if is_pvh { pvh_note(CODE) } else { Vec::new() };
    let (sender, receiver) = mpsc::channel();
    let config = MachineConfig {
        serial: Some(Box::new(Channel(sender))),
        ..config(&elf(u64::from(CODE), code, &notes))
    };
    (Machine::new(kvm, config).unwrap(), receiver)
}

/// One that boots `kernel`, without a serial port.
fn config(kernel: &[u8]) -> MachineConfig {
    MachineConfig {
        boot: Boot {
            kernel: image(kernel),
            initramfs: None,
            cmdline: String::new(),
            loading: boot::Loading::Map,
        },
        vcpu_count: 1,
        cpu_template: CpuTemplate::Host,
        memory_mib: 16,
        backing: Backing::default(),
        serial: None,
        has_pci: false,
    }
}

fn run(code: &[u8], is_pvh: bool) -> Option<(Exit, Vec<u8>)> {
    let kvm = kvm_or_skip()?;
    let (mut machine, said) = machine(&kvm, code, is_pvh);
    machine.start().unwrap();
    let exit = machine.wait(Some(LIMIT)).expect("the guest did not end");
    Some((exit, said.try_iter().collect()))
}

/// `mov al, byte; mov dx, port; out dx, al`.
fn out(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, byte, 0x66, 0xba, low, high, 0xee]
}

#[test]
fn a_unikernel_that_only_switches_off() {
    // cmp dword [ebx], 0x336ec578; je +2; ud2
    let check = [0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, 0x74, 0x02];
    let code = [&check[..], CRASH, &out(0x3f8, b'u'), OFF].concat();
    if let Some((exit, said)) = run(&code, true) {
        assert_eq!((exit, said.as_slice()), (Exit::Off, b"u".as_slice()));
    }
}

#[test]
fn linux_is_entered_in_long_mode_with_its_zero_page() {
    // cmp dword [rsi + 0x202], "HdrS"; je +2; ud2
    let header = [0x81, 0xbe, 0x02, 0x02, 0, 0, b'H', b'd', b'r', b'S', 0x74, 0x02];
    // mov ax, cs; cmp ax, 0x10; je +2; ud2
    let segment = [0x66, 0x8c, 0xc8, 0x66, 0x83, 0xf8, 0x10, 0x74, 0x02];
    // 64-bit mode: inc eax's old encoding is a prefix. mov rax, 1 << 40; shr rax, 40; add al, '0'
    let wide = [0x48, 0xb8, 0, 0, 0, 0, 0, 1, 0, 0, 0x48, 0xc1, 0xe8, 40, 0x04, b'0'];
    // mov dx, 0x3f8; out dx, al
    let say = [0x66, 0xba, 0xf8, 0x03, 0xee];
    let code = [&header[..], CRASH, &segment, CRASH, &wide, &say, OFF].concat();
    if let Some((exit, said)) = run(&code, false) {
        assert_eq!((exit, said.as_slice()), (Exit::Off, b"1".as_slice()));
    }
}

#[test]
fn a_triple_fault_is_a_crash_with_registers() {
    if let Some((exit, _)) = run(CRASH, false) {
        let Exit::Crash(CrashReport { vcpu_index, reason, registers }) = exit else {
            panic!("{exit:?}")
        };
        assert_eq!((vcpu_index, reason), (0, crate::CrashReason::TripleFault));
        assert!(registers.is_some());
    }
}

#[test]
fn the_clock_and_missing_ports_answer_what_they_should() {
    // mov dx, port; in al, dx; mov dx, 0x3f8; out dx, al
    let ask = |port: u16| {
        let [low, high] = port.to_le_bytes();
        [0x66, 0xba, low, high, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee]
    };
    let code = [&ask(0x71)[..], &ask(0x64), &ask(0xcfc), &ask(0x1234), OFF].concat();
    if let Some((_, said)) = run(&code, false) {
        assert_eq!(said, [0, 0, 0xff, 0xff]);
    }
}

#[test]
fn a_reset_starts_over_with_clean_memory() {
    let Some(kvm) = kvm_or_skip() else { return };
    for reset in [out(0x64, 0xfe), out(0x602, 1)] {
        // inc byte [0x300000]; mov al, [0x300000]; mov dx, 0x3f8; out dx, al
        let count = [0xfe, 0x04, 0x25, 0, 0, 0x30, 0, 0x8a, 0x04, 0x25, 0, 0, 0x30, 0];
        let say = [0x66, 0xba, 0xf8, 0x03, 0xee];
        let code = [&count[..], &say, &reset, &[0xf4]].concat();
        let (mut machine, said) = machine(&kvm, &code, false);
        machine.start().unwrap();
        for _ in 0..3 {
            assert_eq!(machine.wait(Some(LIMIT)), Some(Exit::Reset));
            machine.reset().unwrap();
            assert_eq!(machine.exit(), None);
            machine.resume();
        }
        assert_eq!(machine.wait(Some(LIMIT)), Some(Exit::Reset));
        machine.stop();
        assert_eq!(said.try_iter().collect::<Vec<_>>(), [1; 4]);
    }
}

#[test]
fn a_kernel_that_jumps_to_the_reset_vector_is_reset() {
    let Some(kvm) = kvm_or_skip() else { return };
    let (mut machine, _said) = machine(&kvm, CRASH, false);
    {
        let vcpu = lock(&machine.vcpus[0]);
        let pristine = &machine.pristine.vcpus()[0];
        CpuModel::reset(&vcpu.fd, pristine).unwrap();
        let mut system = vcpu.fd.get_sregs().unwrap();
        (system.cs.base, system.cs.selector) = (0xf_0000, 0xf000);
        vcpu.fd.set_sregs(&system).unwrap();
        assert_eq!(vcpu.fd.get_regs().unwrap().rip, 0xfff0);
    }
    machine.start().unwrap();
    assert_eq!(machine.wait(Some(LIMIT)), Some(Exit::Reset));
}

#[test]
fn a_spinning_guest_is_paused_saved_and_stopped() {
    let Some(kvm) = kvm_or_skip() else { return };
    // mov rbx, 0x1234567; jmp $
    let code = [0x48, 0xc7, 0xc3, 0x67, 0x45, 0x23, 0x01, 0xeb, 0xfe];
    let (mut first, _said) = machine(&kvm, &code, false);
    first.start().unwrap();
    assert!(matches!(first.save(), Err(MachineError::Running)));
    assert_eq!(first.wait(Some(Duration::from_millis(200))), None);
    for _ in 0..20 {
        first.pause().unwrap();
        assert!(!first.is_running());
        first.resume();
    }
    first.pause().unwrap();
    let state = state(&first);
    assert!(matches!(first.restore(&state, Clocks::Continue), Err(MachineError::Started)));
    first.stop();

    let mut second = clone_of(&kvm, &first);
    second.restore(&state, Clocks::Continue).unwrap();
    let registers = lock(&second.vcpus[0]).fd.get_regs().unwrap();
    assert_eq!((registers.rip, registers.rbx), (u64::from(CODE) + 7, 0x123_4567));
    let error = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut other = serde_json::to_value(&state).unwrap();
        change(&mut other);
        let other: MachineState = serde_json::from_value(other).unwrap();
        clone_of(&kvm, &first).restore(&other, Clocks::Continue).unwrap_err()
    };
    let none = error(&|state| state["kvm"]["vcpus"] = serde_json::json!([]));
    assert!(matches!(none, MachineError::State { found: 0, wanted: 1 }));
    let pins = error(&|state| state["kvm"]["interrupt_controllers"] = serde_json::json!([[7]]));
    assert!(matches!(pins, MachineError::Nonsense { .. }), "{pins}");
    let port = error(&|state| state["ports"]["serial"] = serde_json::Value::Null);
    assert!(matches!(port, MachineError::Nonsense { .. }), "{port}");
    let words =
        error(&|state| state["kvm"]["vcpus"][0]["extended_registers"] = serde_json::json!([1]));
    assert!(words.to_string().contains("1 words of extended registers"), "{words}");
}

/// What a paused machine saves, by way of a file's bytes.
fn state(machine: &Machine) -> MachineState {
    let bytes = serde_json::to_vec(&machine.save().unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// A machine with another's memory, which boots nothing that it could need.
fn clone_of(kvm: &Kvm, machine: &Machine) -> Machine {
    clone_with(kvm, machine, Filling::Map, None).0
}

fn clone_with(
    kvm: &Kvm,
    machine: &Machine,
    how: Filling,
    serial: Option<Sink>,
) -> (Machine, std::fs::File) {
    use std::os::unix::fs::FileExt;
    let image = tempfile::tempfile().unwrap();
    image.set_len(machine.ram().image_size()).unwrap();
    let write = &mut |at, bytes: &[u8]| image.write_all_at(bytes, at);
    machine.ram().read_out(None, write).unwrap();
    let config = MachineConfig {
        serial: Some(serial.unwrap_or_else(|| Box::new(io::sink()))),
        ..config(&elf(u64::from(CODE), CRASH, &[]))
    };
    let beginning = Beginning { image: image.try_clone().unwrap(), how };
    (Machine::from_memory(kvm, config, &beginning).unwrap(), image)
}

/// A guest that counts in memory and says each number goes on counting elsewhere, several times from
/// one snapshot, as if nothing had happened.
#[test]
fn a_counting_guest_goes_on_in_other_machines() {
    let Some(kvm) = kvm_or_skip() else { return };
    // inc byte [0x300000]; mov al, [0x300000]; mov dx, 0x3f8; out dx, al
    let count = [0xfe, 0x04, 0x25, 0, 0, 0x30, 0, 0x8a, 0x04, 0x25, 0, 0, 0x30, 0];
    let say = [0x66, 0xba, 0xf8, 0x03, 0xee];
    // jmp to the beginning
    let code = [&count[..], &say, &[0xeb, 0xeb]].concat();
    let (mut first, said) = machine(&kvm, &code, false);
    first.start().unwrap();
    for _ in 0..20 {
        said.recv_timeout(LIMIT).unwrap();
    }
    first.pause().unwrap();
    let last = said.try_iter().last().unwrap_or(20);
    let state = state(&first);
    for how in [Filling::Map, Filling::Copy] {
        let (sender, said) = mpsc::channel();
        let (mut second, image) = clone_with(&kvm, &first, how, Some(Box::new(Channel(sender))));
        let count = || {
            let mut byte = [0];
            std::os::unix::fs::FileExt::read_exact_at(&image, &mut byte, 0x30_0000).unwrap();
            byte
        };
        let before = count();
        second.restore(&state, Clocks::Advance).unwrap();
        second.start().unwrap();
        let next: Vec<u8> = (0..20).map(|_| said.recv_timeout(LIMIT).unwrap()).collect();
        let expected: Vec<u8> = (1..=20).map(|i| last.wrapping_add(i)).collect();
        assert_eq!(next, expected, "{how:?}");
        second.pause().unwrap();
        assert_eq!(count(), before, "the snapshot stays as it was");
        // It can be saved again, and reset: then it is what it boots, which crashes.
        second.save().unwrap();
        second.reset().unwrap();
        second.resume();
        assert!(matches!(second.wait(Some(LIMIT)), Some(Exit::Crash(_))));
    }
}

/// ACPI: the id is another, and the guest is told by its event device.
#[test]
fn a_restored_guest_has_another_generation_and_is_told() {
    let Some(kvm) = kvm_or_skip() else { return };
    // mov dx, 0x604; in eax, dx; test al, 4; jz -9: waits to be told
    let poll = [0x66, 0xba, 0x04, 0x06, 0xed, 0xa8, 0x04, 0x74, 0xf7];
    // mov dx, 0x3f8; mov rsi, 0xdf000; mov ecx, 16; rep outsb
    let say = [0x66, 0xba, 0xf8, 0x03, 0x48, 0xc7, 0xc6, 0, 0xf0, 0x0d, 0, 0xb9, 16, 0, 0, 0];
    let code = [&say[..], &[0xf3, 0x6e], &poll, &say, &[0xf3, 0x6e], OFF].concat();
    let (mut first, said) = machine(&kvm, &code, false);
    first.start().unwrap();
    let id = |said: &mpsc::Receiver<u8>| -> Vec<u8> {
        (0..16).map(|_| said.recv_timeout(LIMIT).unwrap()).collect()
    };
    let before = id(&said);
    first.pause().unwrap();
    let state = state(&first);
    let mut ids = vec![before];
    for _ in 0..2 {
        let (sender, said) = mpsc::channel();
        let sink: Sink = Box::new(Channel(sender));
        let (mut second, _) = clone_with(&kvm, &first, Filling::Map, Some(sink));
        second.restore(&state, Clocks::Advance).unwrap();
        second.start().unwrap();
        let now = id(&said);
        assert_eq!(second.wait(Some(LIMIT)), Some(Exit::Off));
        assert!(!ids.contains(&now), "{now:x?} again");
        ids.push(now);
    }
    assert!(!ids.contains(&vec![0; 16]));
}

/// Clocks move on by the time that passed, or don't; counters and KVM's clock alike.
#[test]
fn clocks_advance_or_continue() {
    let Some(kvm) = kvm_or_skip() else { return };
    let (mut first, _said) = machine(&kvm, &[0xeb, 0xfe], false);
    first.start().unwrap();
    first.pause().unwrap();
    let mut old = serde_json::to_value(first.save().unwrap()).unwrap();
    // As if it had been saved an hour ago.
    let hour = 3_600_000_000_000;
    let wall = old["clock"]["wall_ns"].as_u64().unwrap();
    old["clock"]["wall_ns"] = (wall - hour).into();
    let guest = old["clock"]["guest_ns"].as_u64().unwrap();
    let state: MachineState = serde_json::from_value(old).unwrap();
    let tsc = |machine: &Machine| machine.save_tsc();
    let (before, khz) = (tsc(&first), lock(&first.vcpus[0]).fd.get_tsc_khz().ok());
    for (clocks, moved) in [(Clocks::Advance, hour), (Clocks::Continue, 0)] {
        let mut second = clone_of(&kvm, &first);
        second.restore(&state, clocks).unwrap();
        let now = serde_json::to_value(second.save().unwrap()).unwrap();
        let counter = tsc(&second);
        let passed = now["clock"]["guest_ns"].as_u64().unwrap() - guest;
        let slack = 300_000_000_000;
        assert!((moved..moved + slack).contains(&passed), "{clocks:?}: {passed} ns");
        if let Some(khz) = khz.filter(|&khz| khz > 0 && second.takes_tsc()) {
            let passed = u128::from(counter - before) * 1_000_000 / u128::from(khz);
            assert!(
                (u128::from(moved)..u128::from(moved + slack)).contains(&passed),
                "{passed} ns"
            );
        }
    }
}

impl Machine {
    /// Whether KVM lets the counter be set; an emulated one may not.
    fn takes_tsc(&self) -> bool {
        const FAR: u64 = 1 << 60;
        let entry = kvm_bindings::kvm_msr_entry { index: 0x10, data: FAR, ..Default::default() };
        let msrs = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(lock(&self.vcpus[0]).fd.set_msrs(&msrs).unwrap(), 1);
        let takes_it = self.save_tsc() >= FAR;
        if !takes_it {
            eprintln!("skipped: this KVM's time stamp counters can't be set");
        }
        takes_it
    }

    /// The first CPU's time stamp counter.
    fn save_tsc(&self) -> u64 {
        let entry = kvm_bindings::kvm_msr_entry { index: 0x10, ..Default::default() };
        let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(lock(&self.vcpus[0]).fd.get_msrs(&mut msrs).unwrap(), 1);
        msrs.as_slice()[0].data
    }
}

#[test]
fn the_power_button_raises_an_event() {
    let Some(kvm) = kvm_or_skip() else { return };
    // mov dx, 0x604; in eax, dx; test al, 1; jz -9
    let poll = [0x66, 0xba, 0x04, 0x06, 0xed, 0xa8, 0x01, 0x74, 0xf7];
    let (mut machine, said) = machine(&kvm, &[&out(0x3f8, b'?')[..], &poll, OFF].concat(), false);
    machine.start().unwrap();
    assert_eq!(said.recv_timeout(LIMIT), Ok(b'?'));
    assert_eq!(machine.exit(), None);
    machine.press_power_button();
    assert_eq!(machine.wait(Some(LIMIT)), Some(Exit::Off));
}

/// Remembers what was written.
#[derive(Default)]
struct Notebook(Mutex<HashMap<u64, Vec<u8>>>);

impl MmioBus for Notebook {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let notes = self.0.lock().unwrap();
        notes.get(&address).is_some_and(|note| {
            data.copy_from_slice(&note[..data.len()]);
            true
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.0.lock().unwrap().insert(address, data.to_vec());
        true
    }
}

#[test]
fn a_bus_answers_where_there_is_no_memory() {
    let Some(kvm) = kvm_or_skip() else { return };
    // mov rdi, 0xc0000000; mov dword [rdi], 0x64636261; mov eax, [rdi]
    let there = [0xbf, 0, 0, 0, 0xc0, 0xc7, 0x07, 0x61, 0x62, 0x63, 0x64, 0x8b, 0x07];
    // mov dx, 0x3f8; out dx, al; mov al, [rdi + 4]; out dx, al
    let say = [0x66, 0xba, 0xf8, 0x03, 0xee, 0x8a, 0x47, 0x04, 0xee];
    let (mut machine, said) = machine(&kvm, &[&there[..], &say, OFF].concat(), false);
    let bus = Arc::new(Notebook::default());
    machine.connect(bus.clone());
    machine.start().unwrap();
    assert_eq!(machine.wait(Some(LIMIT)), Some(Exit::Off));
    machine.stop();
    assert_eq!(said.try_iter().collect::<Vec<_>>(), [b'a', 0xff]);
    assert_eq!(bus.0.lock().unwrap()[&0xc000_0000], b"abcd");
    let exits = machine.exits();
    assert_eq!(exits.of(crate::ExitKind::MmioWrite).value(), 1);
    assert_eq!(exits.of(crate::ExitKind::MmioRead).value(), 2);
}

#[test]
fn whoever_ends_the_guest_first_decides() {
    let Some(kvm) = kvm_or_skip() else { return };
    let (mut machine, _said) = machine(&kvm, &[0xeb, 0xfe], false);
    machine.start().unwrap();
    machine.ender().end(Exit::Watchdog);
    machine.ender().end(Exit::Panic);
    assert_eq!(machine.wait(Some(LIMIT)), Some(Exit::Watchdog));
    machine.pause().unwrap();
    machine.resume();
    assert!(!machine.is_running(), "an ended guest does not go on");
    let ender = machine.ender();
    drop(machine);
    ender.end(Exit::Off);
}

#[test]
fn a_machine_that_cannot_be_says_why() {
    let Some(kvm) = kvm_or_skip() else { return };
    let config = |vcpu_count, memory_mib| MachineConfig {
        boot: Boot {
            kernel: image(&elf(u64::from(CODE), OFF, &[])),
            initramfs: None,
            cmdline: String::new(),
            loading: boot::Loading::Copy,
        },
        vcpu_count,
        cpu_template: CpuTemplate::Host,
        memory_mib,
        backing: Backing::default(),
        serial: None,
        has_pci: true,
    };
    let error = |config| Machine::new(&kvm, config).err().unwrap().to_string();
    assert!(error(config(0, 16)).starts_with("0 vCPUs: must be from 1 to "));
    assert!(error(config(1, 0)).starts_with("memory of 0 MiB"));
    assert!(error(config(1, 2)).starts_with("guest: a segment"));
}
