//! What a guest's CPUs say of themselves.
//!
//! KVM tells what it can virtualize; a [`CpuTemplate`] takes from that; what is left here is the
//! truth about this machine: how many CPUs it has, that they are cores of one package with one
//! thread each, and how fast its clocks are. APIC ids are CPU numbers, so all are below 255.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::{CpuError, CpuTemplate};

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the leaf has subleaves.
const INDEXED: u32 = 1;
/// The speed of a local APIC's timer under KVM, in kHz (`APIC_BUS_CYCLE_NS` is 1).
const APIC_BUS_KHZ: u32 = 1_000_000;

const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// Frequencies, a convention that several hypervisors share: EAX time stamp counter, EBX local
/// APIC's bus, both in kHz.
const HYPERVISOR_TIMING_LEAF: u32 = 0x4000_0010;

/// Leaves that all CPUs of a machine share, and those that differ.
#[derive(Clone, Debug)]
pub(crate) struct MachineCpuid {
    entries: Vec<kvm_cpuid_entry2>,
    vcpu_count: u8,
}

/// What CPUID tells of the machine beyond features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) vcpu_count: u8,
    /// Whether KVM's local APIC has a TSC deadline timer.
    pub(crate) has_tsc_deadline: bool,
}

impl MachineCpuid {
    /// Takes what KVM supports, and makes of it what the machine has.
    pub(crate) fn new(
        supported: &CpuId,
        template: CpuTemplate,
        facts: Facts,
    ) -> Result<Self, CpuError> {
        let mut entries = supported.as_slice().to_vec();
        template.apply(&mut entries)?;
        // Topology is told anew, for each CPU.
        entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f | HYPERVISOR_TIMING_LEAF));
        let vendor = Vendor::of(&entries);
        for entry in &mut entries {
            describe(entry, vendor, facts);
        }
        Ok(Self { entries, vcpu_count: facts.vcpu_count })
    }

    /// The leaves of one CPU, whose time stamp counter runs at `tsc_khz` if that is known.
    pub(crate) fn for_vcpu(&self, index: u8, tsc_khz: Option<u32>) -> Result<CpuId, CpuError> {
        let mut entries = self.entries.clone();
        if let Some(tsc_khz) = tsc_khz {
            add_timing(&mut entries, tsc_khz);
        }
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | u32::from(index) << 24,
                // AMD: extended APIC id; core id, one thread in it; node 0 of 1.
                0x8000_001e => {
                    (entry.eax, entry.ebx, entry.ecx) = (u32::from(index), u32::from(index), 0);
                }
                _ => {}
            }
        }
        let leaf_max = leaf_max(&entries, 0);
        for leaf in [0xb, 0x1f].into_iter().filter(|&leaf| leaf <= leaf_max) {
            entries.extend(topology(leaf, index, self.vcpu_count));
        }
        CpuId::from_entries(&entries).map_err(|_| CpuError::CpuidSize { count: entries.len() })
    }

    /// Width of a guest-physical address.
    pub(crate) fn address_bits(supported: &CpuId) -> u8 {
        let sizes = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
        // A CPU that doesn't say has 36 (Intel SDM vol. 3 §4.1.4).
        sizes.map_or(36, |entry| entry.eax.to_le_bytes()[0])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Amd,
    Other,
}

impl Vendor {
    fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let first = entries.iter().find(|entry| entry.function == 0);
        // `AuthenticAMD` and `HygonGenuine` in EBX, EDX, ECX.
        match first.map(|entry| entry.ebx.to_le_bytes()) {
            Some([b'A', b'u', b't', b'h'] | [b'H', b'y', b'g', b'o']) => Self::Amd,
            _ => Self::Other,
        }
    }
}

/// Bits of an APIC id that number `count` cores.
pub(super) const fn id_bits(count: u8) -> u32 {
    u8::BITS - (count - 1).leading_zeros()
}

/// Sets what all CPUs of the machine have in common.
fn describe(entry: &mut kvm_cpuid_entry2, vendor: Vendor, facts: Facts) {
    const HYPERVISOR: u32 = 1 << 31;
    const TSC_DEADLINE: u32 = 1 << 24;
    const MULTI_PROCESSOR: u32 = 1 << 28;
    const ALWAYS_RUNNING_APIC_TIMER: u32 = 1 << 2;
    const LEGACY_MULTI_CORE: u32 = 1 << 1;
    let count = u32::from(facts.vcpu_count);
    let is_multi = count > 1;
    let id_count = 1_u32 << id_bits(facts.vcpu_count);
    match entry.function {
        1 => {
            entry.ecx |= HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, facts.has_tsc_deadline);
            set(&mut entry.edx, MULTI_PROCESSOR, is_multi);
            let ids = if is_multi { id_count.min(255) } else { 0 };
            entry.ebx = entry.ebx & 0xff00_ffff | ids << 16;
        }
        // Intel's caches: how many ids share it, how many ids a package has for cores.
        4 => {
            let cores = (id_count - 1).min(63);
            entry.eax = cache_sharing(entry.eax, id_count) & 0x03ff_ffff | cores << 26;
        }
        6 => (entry.eax, entry.ecx) = (ALWAYS_RUNNING_APIC_TIMER, 0),
        0x8000_0001 if vendor == Vendor::Amd => {
            set(&mut entry.ecx, LEGACY_MULTI_CORE, is_multi);
        }
        // Number of cores, and of bits that their ids take.
        0x8000_0008 => {
            let cores = id_bits(facts.vcpu_count) << 12 | (count - 1);
            entry.ecx = if vendor == Vendor::Amd { cores } else { 0 };
        }
        0x8000_001d => entry.eax = cache_sharing(entry.eax, id_count) & 0x03ff_ffff,
        _ => {}
    }
}

/// First and second level caches are each core's own, a third is everybody's. Both vendors have
/// the level in bits 7..5 and the count of sharers, less one, in bits 25..14.
const fn cache_sharing(eax: u32, id_count: u32) -> u32 {
    let level = eax >> 5 & 7;
    let sharers = if level >= 3 { id_count - 1 } else { 0 };
    eax & !(0xfff << 14) | sharers << 14
}

/// A topology leaf (Intel SDM vol. 2, leaves 0xb and 0x1f): threads of a core, cores of the
/// package, end.
fn topology(leaf: u32, index: u8, vcpu_count: u8) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let level = |subleaf, shift, count, kind| kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf,
        flags: INDEXED,
        eax: shift,
        ebx: count,
        ecx: kind | subleaf,
        edx: u32::from(index),
        ..Default::default()
    };
    let bits = id_bits(vcpu_count);
    [level(0, 0, 1, THREADS), level(1, bits, u32::from(vcpu_count), CORES), level(2, 0, 0, 0)]
}

/// Tells how fast clocks are, and that there is such a leaf.
fn add_timing(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let Some(first) = entries.iter_mut().find(|entry| entry.function == HYPERVISOR_LEAF) else {
        return;
    };
    first.eax = first.eax.max(HYPERVISOR_TIMING_LEAF);
    entries.push(kvm_cpuid_entry2 {
        function: HYPERVISOR_TIMING_LEAF,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
}

/// The highest leaf of a range, which its first leaf tells.
fn leaf_max(entries: &[kvm_cpuid_entry2], first: u32) -> u32 {
    entries.iter().find(|entry| entry.function == first).map_or(0, |entry| entry.eax)
}

const fn set(register: &mut u32, bits: u32, is_set: bool) {
    if is_set {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cpu) fn entry(leaf: u32, subleaf: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function: leaf,
            index: subleaf,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn supported(vendor: &[u8; 4]) -> CpuId {
        let entries = [
            entry(0, 0, [0x1f, u32::from_le_bytes(*vendor), 0, 0]),
            entry(1, 0, [0, 0xdd10_0800, 0, 0]),
            entry(4, 0, [1 << 5 | 1 | 0xffff_c000, 0, 0, 0]),
            entry(4, 3, [3 << 5 | 3 | 0xffff_c000, 0, 0, 0]),
            entry(6, 0, [0x77, 0, 1, 0]),
            entry(0xb, 0, [1, 2, 0x100, 99]),
            entry(0xb, 1, [5, 20, 0x201, 99]),
            entry(HYPERVISOR_LEAF, 0, [0x4000_0001, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, 0, 0]),
            entry(0x8000_0008, 0, [0x3028, 0, 0x7777, 0]),
            entry(0x8000_001d, 3, [3 << 5 | 3, 0, 0, 0]),
            entry(0x8000_001e, 0, [7, 7, 7, 0]),
        ];
        CpuId::from_entries(&entries).unwrap()
    }

    fn cpuid(vendor: &[u8; 4], vcpu_count: u8, index: u8) -> Vec<kvm_cpuid_entry2> {
        let facts = Facts { vcpu_count, has_tsc_deadline: true };
        let machine = MachineCpuid::new(&supported(vendor), CpuTemplate::Host, facts).unwrap();
        machine.for_vcpu(index, Some(2_100_000)).unwrap().as_slice().to_vec()
    }

    pub(in crate::cpu) fn find(
        entries: &[kvm_cpuid_entry2],
        leaf: u32,
        subleaf: u32,
    ) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| (e.function, e.index) == (leaf, subleaf)).unwrap()
    }

    #[test]
    fn ids_take_as_many_bits_as_they_need() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8), (255, 8)]
        {
            assert_eq!(id_bits(count), bits, "{count} CPUs");
        }
    }

    #[test]
    fn topology_is_cores_of_one_package() {
        for (count, index, bits) in [(1_u8, 0_u8, 0), (2, 1, 1), (6, 5, 3), (255, 254, 8)] {
            let entries = cpuid(b"Genu", count, index);
            for leaf in [0xb, 0x1f] {
                let (thread, core, end) =
                    (find(&entries, leaf, 0), find(&entries, leaf, 1), find(&entries, leaf, 2));
                assert_eq!((thread.eax, thread.ebx, thread.ecx), (0, 1, 0x100));
                assert_eq!((core.eax, core.ebx, core.ecx), (bits, u32::from(count), 0x201));
                assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
                assert!([thread, core, end].iter().all(|e| e.edx == u32::from(index)));
            }
            let first = find(&entries, 1, 0);
            assert_eq!(first.ebx >> 24, u32::from(index));
            assert_eq!(first.ebx & 0xffff, 0x0800, "what else it says stays");
            assert_eq!(first.edx >> 28 & 1 == 1, count > 1);
        }
        assert_eq!(find(&cpuid(b"Genu", 6, 0), 1, 0).ebx >> 16 & 0xff, 8);
    }

    #[test]
    fn caches_are_shared_by_the_package_from_the_third_level_on() {
        let entries = cpuid(b"Genu", 6, 0);
        let (own, shared) = (find(&entries, 4, 0).eax, find(&entries, 4, 3).eax);
        assert_eq!((own >> 14 & 0xfff, own >> 26), (0, 7));
        assert_eq!((shared >> 14 & 0xfff, shared >> 26), (7, 7));
        assert_eq!((own & 0x3fff, shared & 0x3fff), (1 << 5 | 1, 3 << 5 | 3));
        assert_eq!(find(&cpuid(b"Auth", 6, 0), 0x8000_001d, 3).eax >> 14, 7);
    }

    #[test]
    fn amd_has_leaves_of_its_own() {
        let entries = cpuid(b"Auth", 6, 5);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 3 << 12 | 5);
        let ids = find(&entries, 0x8000_001e, 0);
        assert_eq!((ids.eax, ids.ebx, ids.ecx), (5, 5, 0));
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & 2, 2);
        assert_eq!(find(&cpuid(b"Genu", 6, 5), 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn clocks_and_hypervisor_are_announced() {
        let entries = cpuid(b"Auth", 1, 0);
        assert_eq!(find(&entries, 1, 0).ecx, 1 << 31 | 1 << 24);
        assert_eq!(find(&entries, 6, 0).eax, 4);
        assert_eq!(find(&entries, HYPERVISOR_LEAF, 0).eax, 0x4000_0010);
        let timing = find(&entries, HYPERVISOR_TIMING_LEAF, 0);
        assert_eq!((timing.eax, timing.ebx), (2_100_000, 1_000_000));
        assert_eq!(MachineCpuid::address_bits(&supported(b"Auth")), 40);
    }
}
