//! Runs a bare-metal guest on `/dev/kvm`: the shortest proof that virtualization works here.
//!
//! One virtual CPU, one memory slot, no interrupt controller. The guests and their memory
//! layout are the `bare-guests` crate's.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bare_guests::{BareGuest, CODE_ADDRESS, Mode, PAGE_TABLE_ADDRESS, SERIAL_PORT, STACK_ADDRESS};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use memmap2::MmapMut;

/// After this many exits a guest is taken for runaway; the longest of them has about 1,000.
const EXIT_COUNT_MAX: u32 = 100_000;

/// What a guest did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// What it wrote to the serial port.
    pub(crate) serial: Vec<u8>,
    /// What it left as its result.
    pub(crate) result: u64,
    /// How often it came back to us, the final halt included.
    pub(crate) exit_count: u32,
}

/// The `kvm-smoke` tool: runs a guest, prints what it did, fails if that isn't as it should be.
pub(crate) fn smoke(name: &str) -> Result<()> {
    let names = || bare_guests::ALL.iter().map(|guest| guest.name).collect::<Vec<_>>().join(", ");
    let guest = bare_guests::by_name(name)
        .with_context(|| format!("no guest {name:?}; there are {}", names()))?;
    let start = Instant::now();
    let outcome = run(guest)?;
    print!("{}", String::from_utf8_lossy(&outcome.serial));
    println!(
        "guest {name}: result {}, {} exits, {} us",
        outcome.result,
        outcome.exit_count,
        start.elapsed().as_micros()
    );
    ensure!(outcome.serial == guest.serial, "serial output is not {:?}", guest.serial);
    ensure!(outcome.result == guest.result, "result is not {}", guest.result);
    Ok(())
}

/// Runs a guest to its halt.
pub(crate) fn run(guest: &BareGuest) -> Result<Outcome> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    // Declared before the VM, so that the VM is gone before its memory is.
    let memory = guest.memory();
    let mut mapping = MmapMut::map_anon(memory.len()).context("cannot map guest memory")?;
    mapping.copy_from_slice(&memory);
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    add_memory(&vm, &mapping)?;
    let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    set_registers(&vcpu, guest.mode)?;
    let (serial, exit_count) = run_to_halt(&mut vcpu)?;
    drop((vcpu, vm));
    let result = BareGuest::result_in(&mapping).context("guest memory holds no result")?;
    Ok(Outcome { serial, result, exit_count })
}

fn add_memory(vm: &VmFd, mapping: &MmapMut) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: mapping.len() as u64,
        userspace_addr: mapping.as_ptr() as u64,
    };
    // SAFETY: the region is exactly the anonymous mapping, which outlives the VM (see `run`)
    // and to which no Rust reference is used while a virtual CPU runs.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

fn set_registers(vcpu: &VcpuFd, mode: Mode) -> Result<()> {
    const CR0_PROTECTED: u64 = 1;
    const CR0_PAGING: u64 = 1 << 31;
    const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
    let mut special = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    match mode {
        Mode::Real => {
            for segment in [&mut special.cs, &mut special.ds, &mut special.es, &mut special.ss] {
                segment.base = 0;
                segment.selector = 0;
            }
        }
        Mode::Long => {
            let data = flat_segment(0x10, 0b0011, false);
            special.cs = flat_segment(0x08, 0b1011, true);
            (special.ds, special.es, special.ss) = (data, data, data);
            special.cr3 = PAGE_TABLE_ADDRESS;
            special.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
            special.cr0 |= CR0_PROTECTED | CR0_PAGING;
            special.efer |= EFER_LONG_MODE;
        }
    }
    vcpu.set_sregs(&special).context("KVM_SET_SREGS")?;
    let registers =
        kvm_regs { rip: CODE_ADDRESS, rsp: STACK_ADDRESS, rflags: 2, ..kvm_regs::default() };
    vcpu.set_regs(&registers).context("KVM_SET_REGS")
}

/// A segment from 0 to the end (Intel SDM 3, section 3.4.5).
fn flat_segment(selector: u16, kind: u8, is_code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        l: u8::from(is_code),
        db: u8::from(!is_code),
        g: 1,
        ..kvm_segment::default()
    }
}

fn run_to_halt(vcpu: &mut VcpuFd) -> Result<(Vec<u8>, u32)> {
    let mut serial = Vec::new();
    for exit_count in 1..=EXIT_COUNT_MAX {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(SERIAL_PORT, bytes) => serial.extend_from_slice(bytes),
            VcpuExit::IoOut(port, _) if port == u16::from(bare_guests::EXIT_PORT) => {}
            VcpuExit::Hlt => return Ok((serial, exit_count)),
            other => bail!("unexpected exit {other:?}"),
        }
    }
    bail!("no end after {EXIT_COUNT_MAX} exits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_does_what_it_says() {
        if let Err(error) = Kvm::new() {
            eprintln!("skipped: /dev/kvm can't be used here: {error}");
            return;
        }
        for guest in bare_guests::ALL.iter().filter(|guest| guest.halts) {
            let outcome = run(guest).unwrap();
            assert_eq!((&outcome.serial[..], outcome.result), (guest.serial, guest.result));
        }
    }
}
