//! Request numbers of `ioctl`, by which filters tell them apart.
//!
//! As `<asm-generic/ioctl.h>` puts them together: direction, size of the argument, whose it is, and
//! which. None of the crates that make these calls tells its numbers.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing,
    kvm_irqchip, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msrs, kvm_regs, kvm_sregs,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

const WRITE: u32 = 1;
const READ: u32 = 2;
const KVM: u32 = 0xae;
const TUN: u32 = b'T' as u32;

pub(super) const KVM_RUN: u32 = request::<()>(0, KVM, 0x80);
pub(super) const KVM_IRQ_LINE: u32 = request::<kvm_irq_level>(WRITE, KVM, 0x61);
pub(super) const KVM_IRQFD: u32 = request::<kvm_irqfd>(WRITE, KVM, 0x76);
pub(super) const KVM_IOEVENTFD: u32 = request::<kvm_ioeventfd>(WRITE, KVM, 0x79);
pub(super) const KVM_SET_GSI_ROUTING: u32 = request::<kvm_irq_routing>(WRITE, KVM, 0x6a);
pub(super) const KVM_SIGNAL_MSI: u32 = request::<kvm_msi>(WRITE, KVM, 0xa5);
pub(super) const KVM_SET_USER_MEMORY_REGION: u32 =
    request::<kvm_userspace_memory_region>(WRITE, KVM, 0x46);
pub(super) const KVM_KVMCLOCK_CTRL: u32 = request::<()>(0, KVM, 0xad);
pub(super) const KVM_GET_REGS: u32 = request::<kvm_regs>(READ, KVM, 0x81);
pub(super) const KVM_GET_SREGS: u32 = request::<kvm_sregs>(READ, KVM, 0x83);

/// What a machine's state is read by.
pub(super) const KVM_GET_STATE: &[u32] = &[
    KVM_GET_REGS,
    KVM_GET_SREGS,
    request::<kvm_msrs>(READ | WRITE, KVM, 0x88),
    request::<kvm_lapic_state>(READ, KVM, 0x8e),
    request::<kvm_cpuid2>(READ | WRITE, KVM, 0x91),
    request::<kvm_mp_state>(READ, KVM, 0x98),
    request::<kvm_vcpu_events>(READ, KVM, 0x9f),
    request::<kvm_debugregs>(READ, KVM, 0xa1),
    // KVM_GET_TSC_KHZ, without an argument.
    request::<()>(0, KVM, 0xa3),
    request::<kvm_xsave>(READ, KVM, 0xa4),
    request::<kvm_xcrs>(READ, KVM, 0xa6),
    request::<kvm_irqchip>(READ | WRITE, KVM, 0x62),
    request::<kvm_clock_data>(READ, KVM, 0x7c),
];

/// What a machine's state is set by.
pub(super) const KVM_SET_STATE: &[u32] = &[
    request::<kvm_regs>(WRITE, KVM, 0x82),
    request::<kvm_sregs>(WRITE, KVM, 0x84),
    request::<kvm_msrs>(WRITE, KVM, 0x89),
    request::<kvm_lapic_state>(WRITE, KVM, 0x8f),
    request::<kvm_cpuid2>(WRITE, KVM, 0x90),
    request::<kvm_mp_state>(WRITE, KVM, 0x99),
    request::<kvm_vcpu_events>(WRITE, KVM, 0xa0),
    request::<kvm_debugregs>(WRITE, KVM, 0xa2),
    // KVM_SET_TSC_KHZ, whose argument is a number.
    request::<()>(0, KVM, 0xa2),
    request::<kvm_xsave>(WRITE, KVM, 0xa5),
    request::<kvm_xcrs>(WRITE, KVM, 0xa7),
    // Its direction is the wrong one in the kernel, too.
    request::<kvm_irqchip>(READ, KVM, 0x63),
    request::<kvm_clock_data>(WRITE, KVM, 0x7b),
];

pub(super) const TUN_GET_INTERFACE: u32 = request::<u32>(READ, TUN, 210);
pub(super) const TUN_SET_OFFLOAD: u32 = request::<u32>(WRITE, TUN, 208);
pub(super) const TUN_SET_HEADER_SIZE: u32 = request::<i32>(WRITE, TUN, 216);
pub(super) const TUN_SET_QUEUE: u32 = request::<i32>(WRITE, TUN, 217);

pub(super) const BLOCK_DISCARD: u32 = request::<()>(0, 0x12, 119);
pub(super) const BLOCK_PHYSICAL_SIZE: u32 = request::<()>(0, 0x12, 123);

/// `FS_IOC_FIEMAP`, whose structure is followed by what it asks for.
pub(super) const FILE_EXTENTS: u32 = request::<[u64; 4]>(READ | WRITE, b'f' as u32, 11);

/// Those of before the scheme: `<asm-generic/ioctls.h>`.
pub(super) const NON_BLOCKING: u32 = 0x5421;
/// Modes and size of a terminal, read.
pub(super) const TERMINAL_GET: &[u32] = &[0x5401, 0x802c_542a, 0x5413];
/// Modes of a terminal, set: now, when written, and by the newer structure.
pub(super) const TERMINAL_SET: &[u32] = &[0x5402, 0x402c_542b];

const fn request<T>(direction: u32, whose: u32, which: u32) -> u32 {
    let size = size_of::<T>();
    // 14 bits; nothing here comes near.
    assert!(size < 1 << 14, "an argument too large");
    #[expect(clippy::cast_possible_truncation, reason = "just checked")]
    let size = size as u32;
    direction << 30 | size << 16 | whose << 8 | which
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `strace` shows them.
    #[test]
    fn numbers_are_the_kernel_s() {
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(KVM_IRQFD, 0x4020_ae76);
        assert_eq!(KVM_IOEVENTFD, 0x4040_ae79);
        assert_eq!(KVM_SET_GSI_ROUTING, 0x4008_ae6a);
        assert_eq!(KVM_SIGNAL_MSI, 0x4020_aea5);
        assert_eq!(KVM_GET_REGS, 0x8090_ae81);
        assert_eq!(TUN_SET_OFFLOAD, 0x4004_54d0);
        assert_eq!(BLOCK_DISCARD, 0x1277);
        assert_eq!(FILE_EXTENTS, 0xc020_660b);
    }
}
