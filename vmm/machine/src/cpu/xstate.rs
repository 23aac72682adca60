//! Registers that a guest's kernel must keep, and the instructions that use them.
//!
//! Instructions on wide registers work only where the operating system has set a bit of XCR0 for the
//! registers, and leaf 0xd says which bits there are. Feature bits say nothing of that. A program that
//! looks at those alone meets an invalid opcode where the two disagree, as they may on a host that is a
//! guest itself, or was started with some state disabled. So what has no state is not offered, and leaf
//! 0xd speaks of the state that is left (Intel SDM vol. 1 §13.2, §14.3, §15.2 and §15.3; vol. 2 CPUID).

use kvm_bindings::kvm_cpuid_entry2;

use super::template::{Mask, Register, apply_masks, drop};

use Register::{Eax, Ebx, Ecx, Edx};

/// Bits of XCR0: SSE and the upper halves of YMM.
const YMM: u64 = 0b110;
/// Those, mask registers, and both parts of ZMM.
const ZMM: u64 = YMM | 0b111 << 5;
/// Bounds, and their configuration.
const BOUNDS: u64 = 0b11 << 3;
const PROTECTION_KEYS: u64 = 1 << 9;

/// Features by the state that they need; each in the order of leaves.
const NEEDS: &[(u64, &[Mask])] = &[
    (
        YMM,
        &[
            // FMA, AVX, F16C.
            drop(1, 0, Ecx, &[12, 28, 29]),
            // AVX2.
            drop(7, 0, Ebx, &[5]),
            // VAES, VPCLMULQDQ.
            drop(7, 0, Ecx, &[9, 10]),
            // SHA512, SM3, SM4, AVX-VNNI, AVX-IFMA.
            drop(7, 1, Eax, &[0, 1, 2, 4, 23]),
            // AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16.
            drop(7, 1, Edx, &[4, 5, 10]),
            // XOP, FMA4.
            drop(0x8000_0001, 0, Ecx, &[11, 16]),
        ],
    ),
    (
        ZMM,
        &[
            // AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL.
            drop(7, 0, Ebx, &[16, 17, 21, 26, 27, 28, 30, 31]),
            // VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
            drop(7, 0, Ecx, &[1, 6, 11, 12, 14]),
            // 4VNNIW, 4FMAPS, VP2INTERSECT, FP16.
            drop(7, 0, Edx, &[2, 3, 8, 23]),
            // BF16.
            drop(7, 1, Eax, &[5]),
            // AVX10.
            drop(7, 1, Edx, &[19]),
        ],
    ),
    (BOUNDS, &[drop(7, 0, Ebx, &[14])]),
    (PROTECTION_KEYS, &[drop(7, 0, Ecx, &[3])]),
];

/// Takes out features whose state can't be kept.
pub(super) fn drop_without_state(entries: &mut [kvm_cpuid_entry2]) {
    let state = state(entries);
    for (needed, masks) in NEEDS {
        if state & needed != *needed {
            apply_masks(entries, masks);
        }
    }
}

/// The bits that XCR0 may have: none without XSAVE.
fn state(entries: &[kvm_cpuid_entry2]) -> u64 {
    const XSAVE: u32 = 1 << 26;
    let find = |leaf| entries.iter().find(|entry| (entry.function, entry.index) == (leaf, 0));
    match (find(1), find(0xd)) {
        (Some(first), Some(main)) if first.ecx & XSAVE != 0 => {
            u64::from(main.edx) << 32 | u64::from(main.eax)
        }
        _ => 0,
    }
}

/// Makes leaf 0xd speak of the state components that are left: those of the masked XCR0.
pub(super) fn trim(entries: &mut Vec<kvm_cpuid_entry2>) {
    /// The legacy area and the header, which are always there.
    const XSAVE_SIZE_MIN: u32 = 576;
    let main = entries.iter().find(|entry| (entry.function, entry.index) == (0xd, 0));
    let xcr0 = main.map_or(0, |entry| entry.eax);
    entries.retain(|entry| {
        entry.function != 0xd
            || entry.index < 2
            || (entry.index < 32 && xcr0 >> entry.index & 1 == 1)
    });
    let components = entries.iter().filter(|entry| entry.function == 0xd && entry.index >= 2);
    // Of a component, EAX is the size and EBX the offset.
    let size = components.map(|entry| entry.eax.saturating_add(entry.ebx)).max();
    let size = size.unwrap_or(0).max(XSAVE_SIZE_MIN);
    for entry in entries.iter_mut().filter(|entry| entry.function == 0xd) {
        match entry.index {
            0 if xcr0 == 0 => (entry.ebx, entry.ecx) = (0, 0),
            0 => (entry.ebx, entry.ecx) = (XSAVE_SIZE_MIN, size),
            1 => entry.ebx = 0,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::cpuid::tests::{entry, find};

    /// All features, and the state that `xcr0` says.
    fn with_state(xcr0: u32, has_xsave: bool) -> Vec<kvm_cpuid_entry2> {
        let leaf1_ecx = if has_xsave { u32::MAX } else { !(1 << 26) };
        let mut entries = vec![
            entry(1, 0, [0, 0, leaf1_ecx, u32::MAX]),
            entry(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
            entry(7, 1, [u32::MAX; 4]),
            entry(0xd, 0, [xcr0, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, u32::MAX, 0]),
        ];
        drop_without_state(&mut entries);
        entries
    }

    /// AVX, AVX2, AVX512F, MPX, VPCLMULQDQ, PKU, BF16.
    fn offered(entries: &[kvm_cpuid_entry2]) -> [bool; 7] {
        let bit = |register: u32, bit: u32| register >> bit & 1 == 1;
        let (first, seven, more) = (find(entries, 1, 0), find(entries, 7, 0), find(entries, 7, 1));
        [
            bit(first.ecx, 28),
            bit(seven.ebx, 5),
            bit(seven.ebx, 16),
            bit(seven.ebx, 14),
            bit(seven.ecx, 10),
            bit(seven.ecx, 3),
            bit(more.eax, 5),
        ]
    }

    #[test]
    fn what_has_no_state_is_not_offered() {
        assert_eq!(offered(&with_state(0x2ff, true)), [true; 7]);
        let avx = [true, true, false, false, true, false, false];
        assert_eq!(offered(&with_state(0b111, true)), avx);
        assert_eq!(offered(&with_state(0b011, true)), [false; 7]);
        // Half of what AVX-512 needs is not enough.
        assert_eq!(offered(&with_state(0b0110_0111, true)), avx);
        assert_eq!(offered(&with_state(0x2ff, false)), [false; 7]);
        // Vector registers of before need nothing.
        let entries = with_state(0, false);
        assert_eq!(find(&entries, 1, 0).ecx & (1 << 1 | 1 << 20), 1 << 1 | 1 << 20);
        assert_eq!(find(&entries, 7, 0).ebx & (1 << 3 | 1 << 8), 1 << 3 | 1 << 8);
    }
}
