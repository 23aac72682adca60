//! Configuration space as memory: 4 KiB for each function of bus 0 (PCI Express 5.0 §7.2.2), in a
//! memory slot that the guest may only read.
//!
//! An empty slot must read as all ones, and anonymous memory reads as zero. So the mapping is
//! private copies of one page of ones, which is all that it costs for slots nobody fills:
//!
//! ```text
//!   slot 0      slot 1      slot 2      slot 3 …        each 32 KiB, of which a guest reads
//!   ┌────────┐  ┌────────┐  ┌────────┐  ┌────────┐      the first page only: functions 1 to 7
//!   │ bridge │  │ ones   │  │ blk    │  │ ones   │      belong to devices with several, and
//!   └────────┘  └───┬────┘  └────────┘  └───┬────┘      read as zero, which is no vendor either
//!    private        └──── the same page ────┘
//! ```
//!
//! Filling a slot copies the page, emptying it drops the copy. That is 31 mappings of one page
//! against 124 KiB of ones for each VM; with reads of empty slots left to exit, a guest would pay
//! 31 exits at boot instead, and filling a slot would mean a new memory slot, for which KVM waits
//! for all processors.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vmm_virtio::pci::FUNCTION_SIZE;

use super::SLOT_COUNT;
use crate::memory::layout::ECAM_SIZE;

/// From one device to the next: eight functions.
pub(super) const STRIDE: usize = 8 * FUNCTION_SIZE;
const SIZE: usize = SLOT_COUNT * STRIDE;
const _: () = assert!(SIZE as u64 == ECAM_SIZE, "the window is one bus");

/// The mapping, and the guest's view of it.
pub(super) struct Ecam {
    memory: NonNull<u8>,
    vm: Arc<VmFd>,
    region: kvm_userspace_memory_region,
}

// SAFETY: the mapping belongs to no thread, and is only accessed by atomic stores.
unsafe impl Send for Ecam {}
// SAFETY: as above.
unsafe impl Sync for Ecam {}

impl Ecam {
    /// All slots empty, as memory slot `memory_slot` of `vm` at `address`.
    pub(super) fn new(vm: Arc<VmFd>, memory_slot: u32, address: u64) -> io::Result<Self> {
        let memory = map(ones()?)?;
        let region = kvm_userspace_memory_region {
            slot: memory_slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: SIZE as u64,
            userspace_addr: memory.addr().get() as u64,
        };
        let ecam = Self { memory, vm, region };
        // SAFETY: the region is exactly the mapping, which stays until `drop` has taken it back
        // from the guest. The guest only reads it.
        unsafe { ecam.vm.set_user_memory_region(ecam.region) }?;
        Ok(ecam)
    }

    /// Shows `bytes`, and zeros after them, as the configuration space of `slot`.
    pub(super) fn fill(&self, slot: usize, bytes: &[u8]) {
        for (at, word) in (0..FUNCTION_SIZE / 4).map(|at| (at, bytes.get(at * 4..at * 4 + 4))) {
            let word = word.map_or(0, word_of);
            self.word(slot, at).store(word, Ordering::Relaxed);
        }
    }

    /// Shows those of `bytes` that an access of `size` bytes at `offset` may have changed.
    pub(super) fn update(&self, slot: usize, bytes: &[u8], offset: usize, size: usize) {
        let words = bytes.chunks_exact(4).enumerate().skip(offset / 4).take(size / 4 + 2);
        for (at, word) in words {
            self.word(slot, at).store(word_of(word), Ordering::Relaxed);
        }
    }

    /// Shows ones again.
    pub(super) fn empty(&self, slot: usize) {
        let at = slot * STRIDE;
        assert!(at < SIZE, "slot {slot}");
        // SAFETY: these pages are within the mapping, and hold nothing but what `fill` wrote: what
        // remains are the file's.
        let result = unsafe {
            rustix::mm::madvise(self.memory.as_ptr().add(at).cast(), STRIDE, Advice::LinuxDontNeed)
        };
        if result.is_err() {
            for at in 0..FUNCTION_SIZE / 4 {
                self.word(slot, at).store(u32::MAX, Ordering::Relaxed);
            }
        }
    }

    /// Double word `at` of the first function of `slot`.
    fn word(&self, slot: usize, at: usize) -> &AtomicU32 {
        let offset = slot * STRIDE + at * 4;
        assert!(at * 4 < FUNCTION_SIZE && offset < SIZE, "word {at} of slot {slot}");
        // SAFETY: within the mapping, aligned, and accessed by atomic stores only, from here and
        // by guests that read it.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Ecam {
    fn drop(&mut self) {
        let nothing = kvm_userspace_memory_region { memory_size: 0, ..self.region };
        // SAFETY: this takes memory from the guest, and gives none.
        let result = unsafe { self.vm.set_user_memory_region(nothing) };
        if result.is_ok() {
            // SAFETY: the guest has it no more, and nobody else had.
            let _ = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), SIZE) };
        }
    }
}

fn word_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|at| bytes.get(at).copied().unwrap_or(0)))
}

/// A file of one page of ones, and seven pages that nobody reads.
fn ones() -> io::Result<OwnedFd> {
    let file = File::from(rustix::fs::memfd_create("pci-empty", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&[0xff; FUNCTION_SIZE], 0)?;
    file.set_len(STRIDE as u64)?;
    Ok(file.into())
}

/// Maps the file once for each slot, one after the other.
fn map(file: OwnedFd) -> io::Result<NonNull<u8>> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), SIZE, access, MapFlags::PRIVATE)
    }?;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    for slot in 0..SLOT_COUNT {
        // SAFETY: replaces a part of the mapping above, to which nothing points yet.
        let part = unsafe {
            rustix::mm::mmap(memory.byte_add(slot * STRIDE), STRIDE, access, flags, &file, 0)
        };
        if let Err(error) = part {
            // SAFETY: the mapping above, to which nothing points yet.
            let _ = unsafe { rustix::mm::munmap(memory, SIZE) };
            return Err(error.into());
        }
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    impl Ecam {
        fn read(&self, slot: usize, at: usize) -> u32 {
            self.word(slot, at / 4).load(Ordering::Relaxed)
        }
    }

    /// Resident pages of the mapping, by `/proc/self/smaps`: private ones, and all.
    fn resident_kib(ecam: &Ecam) -> (u64, u64) {
        let first = ecam.memory.addr().get();
        let (mut private, mut all, mut inside) = (0, 0, false);
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let field = |name: &str| {
                let value = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
                value.parse::<u64>().ok()
            };
            let start = line.split_once('-').and_then(|(a, _)| usize::from_str_radix(a, 16).ok());
            if let Some(start) = start {
                inside = (first..first + SIZE).contains(&start);
            } else if inside {
                private += field("Anonymous:").unwrap_or(0);
                all += field("Rss:").unwrap_or(0);
            }
        }
        (private, all)
    }

    #[test]
    fn slots_are_ones_until_filled_and_again_when_emptied() {
        let Some(vm) = testing::vm() else { return };
        let ecam = Ecam::new(vm, 5, 0xe000_0000).unwrap();
        for slot in 0..SLOT_COUNT {
            assert_eq!((ecam.read(slot, 0), ecam.read(slot, 4092)), (u32::MAX, u32::MAX));
        }
        ecam.fill(3, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!([0, 4, 8, 4092].map(|at| ecam.read(3, at)), [0x0403_0201, 0x0807_0605, 0, 0]);
        assert_eq!(ecam.read(4, 0), u32::MAX);
        ecam.update(3, &[9, 9, 9, 9, 8, 8, 8, 8, 7, 7, 7, 7], 3, 2);
        assert_eq!([0, 4].map(|at| ecam.read(3, at)), [0x0909_0909, 0x0808_0808]);
        ecam.empty(3);
        assert_eq!(ecam.read(3, 0), u32::MAX);
    }

    /// What the drawing above promises.
    #[test]
    fn only_filled_slots_cost_memory() {
        let Some(vm) = testing::vm() else { return };
        let ecam = Ecam::new(vm, 5, 0xe000_0000).unwrap();
        ecam.fill(0, &[1; 256]);
        ecam.fill(31, &[1; 256]);
        let (private, _) = resident_kib(&ecam);
        if private == 0 {
            eprintln!("skipped: /proc/self/smaps does not count here");
            return;
        }
        assert_eq!(private, 8);
        ecam.empty(31);
        assert_eq!(resident_kib(&ecam).0, 4);
    }
}
