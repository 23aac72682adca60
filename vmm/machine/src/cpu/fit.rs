//! Whether a guest's CPUs, which it has known since it began, can be this host's.
//!
//! A guest that was told of a feature uses it. Where KVM lacks it the guest would crash, at once or
//! much later, so each feature bit of the snapshot must be among those of a new guest here, under
//! the same template. What is more here is not shown to it: it keeps the CPUID that it has. Its
//! physical addresses must not be wider, and the vendor must be the same, since kernels do what is
//! right for one of them.

use kvm_bindings::kvm_cpuid_entry2;

use super::CpuError;

/// Refuses CPUs like `saved` on a host whose own guests have `own`.
pub(super) fn check(saved: &[kvm_cpuid_entry2], own: &[kvm_cpuid_entry2]) -> Result<(), CpuError> {
    let mut missing = Vec::new();
    let [was, is] = [saved, own].map(vendor);
    if was != is {
        missing.push(format!("the vendor {was}, here it is {is}"));
    }
    let [was, is] = [saved, own].map(address_bits);
    if was > is {
        missing.push(format!("addresses of {was} bits, here they have {is}"));
    }
    for word in WORDS {
        let lacking = word.of(saved) & !word.of(own) & !word.ignored;
        missing
            .extend((0..u32::BITS).filter(|bit| lacking >> bit & 1 == 1).map(|bit| word.name(bit)));
    }
    if missing.is_empty() { Ok(()) } else { Err(CpuError::Lacks { missing: missing.join(", ") }) }
}

/// A register of a leaf in which each bit is a feature.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that KVM sets by what the guest does.
    ignored: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

const fn word(leaf: u32, subleaf: u32, register: Register) -> Word {
    Word { leaf, subleaf, register, ignored: 0 }
}

impl Word {
    fn of(&self, entries: &[kvm_cpuid_entry2]) -> u32 {
        let is_it =
            |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (self.leaf, self.subleaf);
        entries.iter().find(is_it).map_or(0, |entry| match self.register {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        })
    }

    fn name(&self, bit: u32) -> String {
        let &Self { leaf, subleaf, register, .. } = self;
        let known =
            NAMES.iter().find(|(l, s, r, b, _)| (*l, *s, *r, *b) == (leaf, subleaf, register, bit));
        known.map_or_else(
            || format!("CPUID {leaf:#x}.{subleaf} {register:?} bit {bit}"),
            |(.., name)| (*name).to_owned(),
        )
    }
}

/// `OSXSAVE` follows a control register of the guest's, `MONITOR` a model specific one.
const LEAF1_ECX_IGNORED: u32 = 1 << 27 | 1 << 3;
/// `OSPKE` follows a control register.
const LEAF7_ECX_IGNORED: u32 = 1 << 4;

/// Intel SDM vol. 2 CPUID, AMD APM vol. 3 appendix E, Linux `Documentation/virt/kvm/x86/cpuid.rst`.
const WORDS: &[Word] = &[
    word(1, 0, Edx),
    Word { leaf: 1, subleaf: 0, register: Ecx, ignored: LEAF1_ECX_IGNORED },
    word(7, 0, Ebx),
    Word { leaf: 7, subleaf: 0, register: Ecx, ignored: LEAF7_ECX_IGNORED },
    word(7, 0, Edx),
    word(7, 1, Eax),
    word(7, 1, Edx),
    word(0xd, 0, Eax),
    word(0xd, 1, Eax),
    word(0xd, 1, Ecx),
    word(0x4000_0001, 0, Eax),
    word(0x8000_0001, 0, Ecx),
    word(0x8000_0001, 0, Edx),
    word(0x8000_0007, 0, Edx),
    word(0x8000_0008, 0, Ebx),
    word(0x8000_0021, 0, Eax),
];

/// What people call the features that hosts differ in.
const NAMES: &[(u32, u32, Register, u32, &str)] = &[
    (1, 0, Ecx, 0, "sse3"),
    (1, 0, Ecx, 1, "pclmulqdq"),
    (1, 0, Ecx, 9, "ssse3"),
    (1, 0, Ecx, 12, "fma"),
    (1, 0, Ecx, 13, "cx16"),
    (1, 0, Ecx, 17, "pcid"),
    (1, 0, Ecx, 19, "sse4.1"),
    (1, 0, Ecx, 20, "sse4.2"),
    (1, 0, Ecx, 21, "x2apic"),
    (1, 0, Ecx, 22, "movbe"),
    (1, 0, Ecx, 23, "popcnt"),
    (1, 0, Ecx, 24, "the APIC timer's deadline mode"),
    (1, 0, Ecx, 25, "aes"),
    (1, 0, Ecx, 26, "xsave"),
    (1, 0, Ecx, 28, "avx"),
    (1, 0, Ecx, 29, "f16c"),
    (1, 0, Ecx, 30, "rdrand"),
    (7, 0, Ebx, 0, "fsgsbase"),
    (7, 0, Ebx, 3, "bmi1"),
    (7, 0, Ebx, 5, "avx2"),
    (7, 0, Ebx, 7, "smep"),
    (7, 0, Ebx, 8, "bmi2"),
    (7, 0, Ebx, 10, "invpcid"),
    (7, 0, Ebx, 16, "avx512f"),
    (7, 0, Ebx, 17, "avx512dq"),
    (7, 0, Ebx, 18, "rdseed"),
    (7, 0, Ebx, 19, "adx"),
    (7, 0, Ebx, 20, "smap"),
    (7, 0, Ebx, 23, "clflushopt"),
    (7, 0, Ebx, 29, "sha"),
    (7, 0, Ebx, 30, "avx512bw"),
    (7, 0, Ebx, 31, "avx512vl"),
    (7, 0, Ecx, 2, "umip"),
    (7, 0, Ecx, 3, "pku"),
    (7, 0, Ecx, 8, "gfni"),
    (7, 0, Ecx, 9, "vaes"),
    (7, 0, Ecx, 10, "vpclmulqdq"),
    (7, 0, Ecx, 22, "rdpid"),
    (7, 0, Edx, 26, "spec_ctrl"),
    (7, 0, Edx, 29, "arch_capabilities"),
    (7, 0, Edx, 31, "ssbd"),
    (0xd, 1, Eax, 0, "xsaveopt"),
    (0xd, 1, Eax, 1, "xsavec"),
    (0xd, 1, Eax, 3, "xsaves"),
    (0x8000_0001, 0, Ecx, 5, "lzcnt"),
    (0x8000_0001, 0, Ecx, 6, "sse4a"),
    (0x8000_0001, 0, Edx, 26, "pages of 1 GiB"),
    (0x8000_0001, 0, Edx, 27, "rdtscp"),
    (0x8000_0007, 0, Edx, 8, "an invariant time stamp counter"),
];

/// The vendor's twelve letters.
fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let first = entries.iter().find(|entry| entry.function == 0);
    let letters = first.map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
    let letters = letters.unwrap_or_default().concat();
    letters
        .iter()
        .filter(|letter| letter.is_ascii_graphic())
        .map(|&letter| char::from(letter))
        .collect()
}

/// Width of a physical address.
fn address_bits(entries: &[kvm_cpuid_entry2]) -> u8 {
    let sizes = entries.iter().find(|entry| entry.function == 0x8000_0008);
    sizes.map_or(0, |entry| entry.eax.to_le_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(leaf: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function: leaf, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn cpu(leaf1_ecx: u32, leaf7_ebx: u32) -> Vec<kvm_cpuid_entry2> {
        let [ebx, edx, ecx] = [b"Genu", b"ineI", b"ntel"].map(|part| u32::from_le_bytes(*part));
        vec![
            entry(0, [7, ebx, ecx, edx]),
            entry(1, [0, 0, leaf1_ecx, 0]),
            entry(7, [0, leaf7_ebx, 0, 0]),
            entry(0x8000_0008, [40, 0, 0, 0]),
        ]
    }

    #[test]
    fn more_than_the_guest_knows_is_fine_and_less_is_named() {
        let guest = cpu(1 << 25 | 1 << 27, 1 << 5);
        check(&guest, &guest).unwrap();
        check(&guest, &cpu(1 << 25 | 1 << 30, u32::MAX)).unwrap();
        let error = check(&cpu(1 << 25, 1 << 5 | 1 << 14), &cpu(0, 0)).unwrap_err().to_string();
        assert_eq!(
            error,
            "the guest's CPUs have what this host's have not: aes, avx2, CPUID 0x7.0 Ebx bit 14"
        );
    }

    #[test]
    fn another_vendor_or_narrower_addresses_are_refused() {
        let guest = cpu(0, 0);
        let mut other = guest.clone();
        other[0].ebx = u32::from_le_bytes(*b"Auth");
        let error = check(&guest, &other).unwrap_err().to_string();
        assert!(error.ends_with("the vendor GenuineIntel, here it is AuthineIntel"), "{error}");
        let mut narrow = guest.clone();
        narrow[3].eax = 36;
        check(&narrow, &guest).unwrap();
        let error = check(&guest, &narrow).unwrap_err().to_string();
        assert!(error.ends_with("addresses of 40 bits, here they have 36"), "{error}");
        // Of nothing nobody lacks anything.
        check(&[], &[]).unwrap();
        check(&[], &guest).unwrap_err();
    }
}
