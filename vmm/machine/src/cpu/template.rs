//! Named sets of CPU features.
//!
//! [`CpuTemplate::Host`] offers what KVM can virtualize on this host. The baselines offer the
//! instructions of one level of the x86-64 psABI and refuse hosts that lack any of them, so that a
//! program sees the same on each host of a vendor, and a snapshot taken on one may run on another.
//! What only kernels see, such as SMEP or the mitigations of speculation, follows the host in all
//! of them: a guest without its host's mitigations is worse than one that can't move.
//!
//! Never offered, since a guest must not depend on it: nested virtualization, performance
//! counters, SGX, processor trace, AMX (whose state does not fit an ordinary snapshot). Nor what needs
//! registers that can't be kept here (`xstate`).

use kvm_bindings::kvm_cpuid_entry2;

use super::{CpuError, xstate};

/// Which features a guest's CPUs have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuTemplate {
    /// All that KVM can virtualize here.
    #[default]
    Host,
    /// x86-64-v2 with AES and carry-less multiplication: Intel since 2010, AMD since 2011.
    BaselineV2,
    /// x86-64-v3 with AES, carry-less multiplication and RDRAND: Intel since 2013, AMD since 2015.
    BaselineV3,
}

impl CpuTemplate {
    /// All templates.
    pub const ALL: [Self; 3] = [Self::Host, Self::BaselineV2, Self::BaselineV3];

    /// Its name in descriptions and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::BaselineV2 => "baseline-v2",
            Self::BaselineV3 => "baseline-v3",
        }
    }

    /// Takes out of `entries` what the template does not offer.
    ///
    /// # Errors
    /// [`CpuError::TemplateUnavailable`] when the host lacks what it promises.
    pub(super) fn apply(self, entries: &mut Vec<kvm_cpuid_entry2>) -> Result<(), CpuError> {
        apply_masks(entries, NEVER);
        entries.retain(|entry| !LEAVES_NEVER.contains(&entry.function));
        xstate::drop_without_state(entries);
        let (required, masks): (&[&[Feature]], _) = match self {
            Self::Host => return Ok(()),
            Self::BaselineV2 => (&[REQUIRED_V2], MASKS_V2),
            Self::BaselineV3 => (&[REQUIRED_V2, REQUIRED_V3], MASKS_V3),
        };
        let missing: Vec<&str> = required
            .iter()
            .flat_map(|features| features.iter())
            .filter(|feature| !feature.is_in(entries))
            .map(|feature| feature.name)
            .collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(CpuError::TemplateUnavailable { template: self.name(), missing });
        }
        apply_masks(entries, masks);
        entries.retain(|entry| !LEAVES_BASELINE_OMITS.contains(&entry.function));
        xstate::trim(entries);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// The bits that stay in one register of one leaf.
pub(super) struct Mask {
    leaf: u32,
    subleaf: u32,
    register: Register,
    keep: u32,
}

const fn keep(leaf: u32, subleaf: u32, register: Register, keep: u32) -> Mask {
    Mask { leaf, subleaf, register, keep }
}

/// A mask that takes single bits out.
pub(super) const fn drop(leaf: u32, subleaf: u32, register: Register, bits: &[u32]) -> Mask {
    keep(leaf, subleaf, register, !mask(bits))
}

const fn mask(bits: &[u32]) -> u32 {
    let (mut mask, mut index) = (0, 0);
    while index < bits.len() {
        mask |= 1 << bits[index];
        index += 1;
    }
    mask
}

pub(super) fn apply_masks(entries: &mut [kvm_cpuid_entry2], masks: &[Mask]) {
    for mask in masks {
        for entry in entries.iter_mut() {
            if (entry.function, entry.index) == (mask.leaf, mask.subleaf) {
                *mask.register.of(entry) &= mask.keep;
            }
        }
    }
}

/// One feature bit.
struct Feature {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u32,
}

impl Feature {
    fn is_in(&self, entries: &[kvm_cpuid_entry2]) -> bool {
        entries.iter().any(|entry| {
            let mut entry = *entry;
            (entry.function, entry.index) == (self.leaf, self.subleaf)
                && *self.register.of(&mut entry) >> self.bit & 1 == 1
        })
    }
}

const fn feature(name: &'static str, leaf: u32, register: Register, bit: u32) -> Feature {
    Feature { name, leaf, subleaf: 0, register, bit }
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Intel SDM vol. 2 CPUID, AMD APM vol. 3 appendix E; in the order of leaves.
const NEVER: &[Mask] = &[
    // VMX, SMX; PDCM, which announces performance capabilities.
    drop(1, 0, Ecx, &[5, 6, 15]),
    // SGX, processor trace.
    drop(7, 0, Ebx, &[2, 25]),
    // SGX launch control.
    drop(7, 0, Ecx, &[30]),
    // AMX: BF16, TILE, INT8.
    drop(7, 0, Edx, &[22, 24, 25]),
    // AMX: FP16.
    drop(7, 1, Eax, &[21]),
    // AMX: COMPLEX.
    drop(7, 1, Edx, &[8]),
    // No architectural performance counters.
    keep(0xa, 0, Eax, 0),
    keep(0xa, 0, Ebx, 0),
    keep(0xa, 0, Ecx, 0),
    keep(0xa, 0, Edx, 0),
    // SVM; core, north bridge and last-level cache performance counters.
    drop(0x8000_0001, 0, Ecx, &[2, 23, 24, 28]),
];

/// SGX, processor trace, AMX (two), architectural performance counters (Intel's extended, AMD's
/// second version), SVM.
const LEAVES_NEVER: &[u32] = &[0x12, 0x14, 0x1d, 0x1e, 0x23, 0x8000_000a, 0x8000_0022];

/// Key locker, hybrid CPUs, AVX10: nothing of a baseline's.
const LEAVES_BASELINE_OMITS: &[u32] = &[0x19, 0x1a, 0x24];

const REQUIRED_V2: &[Feature] = &[
    feature("cx8", 1, Edx, 8),
    feature("cmov", 1, Edx, 15),
    feature("mmx", 1, Edx, 23),
    feature("fxsr", 1, Edx, 24),
    feature("sse", 1, Edx, 25),
    feature("sse2", 1, Edx, 26),
    feature("sse3", 1, Ecx, 0),
    feature("pclmulqdq", 1, Ecx, 1),
    feature("ssse3", 1, Ecx, 9),
    feature("cx16", 1, Ecx, 13),
    feature("sse4.1", 1, Ecx, 19),
    feature("sse4.2", 1, Ecx, 20),
    feature("popcnt", 1, Ecx, 23),
    feature("aes", 1, Ecx, 25),
    feature("lahf", 0x8000_0001, Ecx, 0),
    feature("syscall", 0x8000_0001, Edx, 11),
    feature("nx", 0x8000_0001, Edx, 20),
    feature("lm", 0x8000_0001, Edx, 29),
];

/// What version 3 adds.
const REQUIRED_V3: &[Feature] = &[
    feature("fma", 1, Ecx, 12),
    feature("movbe", 1, Ecx, 22),
    feature("xsave", 1, Ecx, 26),
    feature("avx", 1, Ecx, 28),
    feature("f16c", 1, Ecx, 29),
    feature("rdrand", 1, Ecx, 30),
    feature("bmi1", 7, Ebx, 3),
    feature("avx2", 7, Ebx, 5),
    feature("bmi2", 7, Ebx, 8),
    feature("lzcnt", 0x8000_0001, Ecx, 5),
];

/// FPU to PSE-36, CLFLUSH, MMX, FXSR, SSE, SSE2, self snoop, hyper-threading.
const LEAF1_EDX: u32 = 0x1f8b_fbff;
/// SSE3, PCLMULQDQ, SSSE3, CX16, PCID, SSE4.1, SSE4.2, x2APIC, POPCNT, TSC deadline, AES,
/// hypervisor.
const LEAF1_ECX_V2: u32 = mask(&[0, 1, 9, 13, 17, 19, 20, 21, 23, 24, 25, 31]);
/// With FMA, MOVBE, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX_V3: u32 = LEAF1_ECX_V2 | mask(&[12, 22, 26, 28, 29, 30]);
/// FSGSBASE, SMEP, fast string moves, INVPCID, SMAP.
const LEAF7_EBX_V2: u32 = mask(&[0, 7, 9, 10, 20]);
/// With BMI1, AVX2, BMI2.
const LEAF7_EBX_V3: u32 = LEAF7_EBX_V2 | mask(&[3, 5, 8]);
/// UMIP.
const LEAF7_ECX: u32 = mask(&[2]);
/// Mitigations: MD_CLEAR, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const LEAF7_EDX: u32 = mask(&[10, 26, 27, 28, 29, 31]);
/// LAHF, legacy multi-core, CR8, prefetch, topology extensions.
const EXTENDED1_ECX_V2: u32 = mask(&[0, 1, 4, 8, 22]);
/// With LZCNT.
const EXTENDED1_ECX_V3: u32 = EXTENDED1_ECX_V2 | mask(&[5]);
/// AMD's copy of leaf 1, SYSCALL, NX, pages of 1 GiB, RDTSCP, long mode.
const EXTENDED1_EDX: u32 = 0x2d93_fbff & !mask(&[22, 25]) | mask(&[26, 27]);
/// Saved error pointers; mitigations: IBPB, IBRS, STIBP, their modes, SSBD, PSFD, BTC_NO.
const EXTENDED8_EBX: u32 = mask(&[2, 12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 29]);
/// Serializing LFENCE, null selectors, automatic IBRS.
const EXTENDED21_EAX: u32 = mask(&[2, 6, 8]);

macro_rules! baseline {
    ($leaf1_ecx:expr, $leaf7_ebx:expr, $extended1_ecx:expr, $xcr0:expr, $xsave:expr) => {
        &[
            keep(1, 0, Edx, LEAF1_EDX),
            keep(1, 0, Ecx, $leaf1_ecx),
            keep(7, 0, Ebx, $leaf7_ebx),
            keep(7, 0, Ecx, LEAF7_ECX),
            keep(7, 0, Edx, LEAF7_EDX),
            keep(7, 1, Eax, 0),
            keep(7, 1, Ebx, 0),
            keep(7, 1, Ecx, 0),
            keep(7, 1, Edx, 0),
            keep(0xd, 0, Eax, $xcr0),
            keep(0xd, 0, Edx, 0),
            keep(0xd, 1, Eax, $xsave),
            keep(0xd, 1, Ecx, 0),
            keep(0xd, 1, Edx, 0),
            keep(0x8000_0001, 0, Ecx, $extended1_ecx),
            keep(0x8000_0001, 0, Edx, EXTENDED1_EDX),
            // The time stamp counter of another host runs at another speed: not invariant.
            keep(0x8000_0007, 0, Edx, 0),
            keep(0x8000_0008, 0, Ebx, EXTENDED8_EBX),
            keep(0x8000_0021, 0, Eax, EXTENDED21_EAX),
        ]
    };
}

/// XSAVE is not in version 2: no extended state at all.
const MASKS_V2: &[Mask] = baseline!(LEAF1_ECX_V2, LEAF7_EBX_V2, EXTENDED1_ECX_V2, 0, 0);
/// x87, SSE and AVX state; XSAVEOPT.
const MASKS_V3: &[Mask] = baseline!(LEAF1_ECX_V3, LEAF7_EBX_V3, EXTENDED1_ECX_V3, 0b111, 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::cpuid::tests::{entry, find};

    /// A CPU with every bit set, and AVX-512 state.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let leaves = [(1, 0), (7, 0), (7, 1), (0xa, 0), (0x12, 0), (0x14, 0), (0xd, 1)];
        let extended = [0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_000a, 0x8000_0021];
        let mut entries: Vec<_> =
            leaves.iter().map(|&(leaf, subleaf)| entry(leaf, subleaf, [u32::MAX; 4])).collect();
        entries.extend(extended.map(|leaf| entry(leaf, 0, [u32::MAX; 4])));
        entries.push(entry(0xd, 0, [0xe7, 2696, 2696, 0]));
        entries.push(entry(0xd, 2, [256, 576, 0, 0]));
        entries.push(entry(0xd, 5, [64, 1088, 0, 0]));
        entries
    }

    #[test]
    fn nested_virtualization_counters_and_enclaves_are_never_offered() {
        for template in CpuTemplate::ALL {
            let mut entries = everything();
            template.apply(&mut entries).unwrap();
            assert_eq!(find(&entries, 1, 0).ecx & mask(&[5, 15]), 0, "VMX, PDCM");
            assert_eq!(find(&entries, 0x8000_0001, 0).ecx & mask(&[2, 23]), 0, "SVM, counters");
            assert_eq!(find(&entries, 7, 0).ebx & mask(&[2, 25]), 0, "SGX, trace");
            assert_eq!(find(&entries, 0xa, 0).eax, 0);
            assert!(entries.iter().all(|e| !LEAVES_NEVER.contains(&e.function)));
        }
    }

    #[test]
    fn host_keeps_the_rest() {
        let mut entries = everything();
        CpuTemplate::Host.apply(&mut entries).unwrap();
        // Bounds have no state here.
        assert_eq!(find(&entries, 7, 0).ebx, !mask(&[2, 14, 25]));
        assert_eq!(find(&entries, 0xd, 0).eax, 0xe7);
    }

    #[test]
    fn baselines_offer_their_level_and_their_hosts_mitigations() {
        for (template, has_avx) in
            [(CpuTemplate::BaselineV2, false), (CpuTemplate::BaselineV3, true)]
        {
            let mut entries = everything();
            template.apply(&mut entries).unwrap();
            let avx = find(&entries, 1, 0).ecx >> 28 & 1 == 1;
            let avx2 = find(&entries, 7, 0).ebx >> 5 & 1 == 1;
            let avx512 = find(&entries, 7, 0).ebx >> 16 & 1 == 1;
            assert_eq!((avx, avx2, avx512), (has_avx, has_avx, false));
            assert_eq!(find(&entries, 7, 0).edx >> 26 & 1, 1, "SPEC_CTRL");
            let state = find(&entries, 0xd, 0);
            let want = if has_avx { (7, 576, 832) } else { (0, 0, 0) };
            assert_eq!((state.eax, state.ebx, state.ecx), want);
            assert!(!entries.iter().any(|e| e.function == 0xd && e.index == 5));
        }
    }

    #[test]
    fn a_host_that_lacks_something_is_refused_with_its_name() {
        let mut entries = everything();
        entries.retain(|entry| entry.function != 7);
        let error = CpuTemplate::BaselineV3.apply(&mut entries).unwrap_err().to_string();
        assert!(error.contains("baseline-v3") && error.contains("bmi1, avx2, bmi2"), "{error}");
        assert!(CpuTemplate::BaselineV2.apply(&mut entries).is_ok());
    }
}
