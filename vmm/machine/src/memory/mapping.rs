//! One mapping of host memory, and all that is unsafe about it.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use vm_memory::{GuestRegionMmap, MmapRegion};
use vmm_virtio::memory::GuestAddress;

use super::contents::{PAGE_SIZE, next_data};
use super::{Backing, MemoryError};

/// Transparent huge pages need the host's and the guest's address to agree in these low bits.
const ALIGNMENT: usize = 2 << 20;

/// Host memory that stays mapped until the process ends.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Aligned to [`ALIGNMENT`]; kept as a number because nobody here follows it.
    address: usize,
    size: usize,
    backing: Backing,
    beneath: Beneath,
}

/// What a page holds that nobody has written to since it was mapped.
#[derive(Debug)]
enum Beneath {
    /// Zeros.
    Zeros,
    /// What a file has that everybody shares who maps it.
    Shared(File),
    /// What the file of a snapshot has, from an offset on.
    Image { file: File, offset: u64 },
    /// Zeros, or what some file has that was mapped over a part of it.
    Files,
}

impl Mapping {
    pub(super) fn new(size: u64, backing: Backing) -> Result<Self, MemoryError> {
        let host = |what, error: io::Error| MemoryError::Host { what, size, source: error };
        let length = usize::try_from(size).map_err(|_| MemoryError::Regions)?;
        let address = reserve(length).map_err(|error| host("mmap", error))?;
        let mut mapping = Self { address, size: length, backing, beneath: Beneath::Zeros };
        match backing {
            Backing::Anonymous { .. } => mapping.map_anonymous(),
            _ => file(size, backing).and_then(|file| mapping.map_shared(file)),
        }
        .map_err(|error| match backing.pool() {
            Some(pool) if error.raw_os_error() == Some(NO_MEMORY) => {
                MemoryError::Pool { size_mib: size >> 20, pool }
            }
            _ => host("mmap", error),
        })?;
        // So that a crash leaves a small core, without the guest's secrets.
        mapping.advise(Advice::LinuxDontDump).map_err(|error| host("madvise", error))?;
        Ok(mapping)
    }

    /// The mapping as guest memory at `start`.
    pub(super) fn region(&self, start: u64) -> Result<GuestRegionMmap<()>, MemoryError> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::NORESERVE);
        #[expect(clippy::cast_possible_wrap, reason = "flags, whose top bit is clear")]
        let (protection, flags) = (protection.bits() as i32, flags.bits() as i32);
        // SAFETY: `address` and `size` are a mapping of this process, readable and writable,
        // which is never undone (see the story of the parent module).
        let region =
            unsafe { MmapRegion::build_raw(self.address as *mut u8, self.size, protection, flags) };
        let region = region.map_err(|_| MemoryError::Regions)?;
        GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Regions)
    }

    /// Makes it memory of a virtual machine.
    pub(super) fn register(&self, vm: &VmFd, slot: u32, start: u64) -> Result<(), MemoryError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: self.size as u64,
            userspace_addr: self.address as u64,
        };
        // SAFETY: The mapping is never undone, so the guest only ever reaches memory that was set
        // aside for it. Rust's view of it is `vm_memory`'s, whose accesses are volatile.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| MemoryError::Slot { slot, source: error.into() })
    }

    /// Gives its pages back.
    pub(super) fn clear(&mut self) -> Result<(), MemoryError> {
        let result = match self.beneath {
            Beneath::Zeros => self.advise(Advice::LinuxDontNeed),
            Beneath::Shared(_) => self.advise(Advice::LinuxRemove),
            // New anonymous memory in place of files that cover the old.
            Beneath::Image { .. } | Beneath::Files => {
                self.beneath = Beneath::Zeros;
                self.map_anonymous()
            }
        };
        let size = self.size as u64;
        result.map_err(|source| MemoryError::Host { what: "madvise", size, source })
    }

    /// Maps a part of a file over a part of it, if its kind allows. The caller has checked that
    /// the part lies within.
    pub(super) fn cover(
        &mut self,
        start: u64,
        file: &File,
        offset: u64,
        size: u64,
    ) -> Result<bool, MemoryError> {
        if !matches!(self.backing, Backing::Anonymous { .. }) {
            return Ok(false);
        }
        let misfit = || MemoryError::Range { address: start, size };
        let length = usize::try_from(size).map_err(|_| misfit())?;
        let start = usize::try_from(start).map_err(|_| misfit())?;
        let end = start.checked_add(length).filter(|&end| end <= self.size);
        if end.is_none() || !start.is_multiple_of(4096) || !length.is_multiple_of(4096) {
            return Err(misfit());
        }
        self.beneath = Beneath::Files;
        self.map_over(start, length, file, offset)?;
        Ok(true)
    }

    /// Maps the image of a snapshot over all of it, from `offset` of its file on, if its kind allows.
    pub(super) fn map_image(&mut self, image: &File, offset: u64) -> Result<bool, MemoryError> {
        if !matches!(self.backing, Backing::Anonymous { .. }) {
            return Ok(false);
        }
        let size = self.size as u64;
        let host = |source| MemoryError::Host { what: "a descriptor for mmap", size, source };
        let file = image.try_clone().map_err(host)?;
        self.map_over(0, self.size, image, offset)?;
        self.beneath = Beneath::Image { file, offset };
        Ok(true)
    }

    /// Whether pages that are given back would come back with what a snapshot has.
    pub(super) const fn is_image(&self) -> bool {
        matches!(self.beneath, Beneath::Image { .. })
    }

    /// The file in which its bytes are, for those who share it.
    pub(super) const fn shared_file(&self) -> Option<&File> {
        match &self.beneath {
            Beneath::Shared(file) => Some(file),
            _ => None,
        }
    }

    /// Marks the pages from `offset` on that may be other than zero. `marks` end within the mapping.
    pub(super) fn mark_data(&self, offset: u64, pagemap: Option<&File>, marks: &mut [bool]) {
        match &self.beneath {
            Beneath::Zeros => self.mark_populated(offset, pagemap, marks),
            Beneath::Shared(file) => mark_file_data(file, offset, marks),
            Beneath::Image { file, offset: start } => {
                self.mark_populated(offset, pagemap, marks);
                mark_file_data(file, start + offset, marks);
            }
            Beneath::Files => marks.fill(true),
        }
    }

    /// Marks pages that are present or swapped (Linux `Documentation/admin-guide/mm/pagemap.rst`).
    fn mark_populated(&self, offset: u64, pagemap: Option<&File>, marks: &mut [bool]) {
        const ENTRY_SIZE: usize = 8;
        const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;
        let first = (self.address as u64 + offset) / PAGE_SIZE as u64;
        let mut entries = vec![0; marks.len() * ENTRY_SIZE];
        let at = first * ENTRY_SIZE as u64;
        if pagemap.is_none_or(|pagemap| pagemap.read_exact_at(&mut entries, at).is_err()) {
            return marks.fill(true);
        }
        for (mark, entry) in marks.iter_mut().zip(entries.as_chunks::<ENTRY_SIZE>().0) {
            *mark |= u64::from_le_bytes(*entry) & PRESENT_OR_SWAPPED != 0;
        }
    }

    /// Maps a part of a file privately over a part of it, which lies within.
    fn map_over(
        &self,
        start: usize,
        length: usize,
        file: &File,
        offset: u64,
    ) -> Result<(), MemoryError> {
        let size = length as u64;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let address = (self.address + start) as *mut c_void;
        // SAFETY: The range lies within a mapping of ours, which `MAP_FIXED` replaces in one step;
        // accesses to it are volatile and never assume contents.
        unsafe { mmap(address, length, ProtFlags::READ | ProtFlags::WRITE, flags, file, offset) }
            .map_err(|error| MemoryError::Host { what: "mmap", size, source: error.into() })?;
        // A dump without the kernel's text is as good.
        // SAFETY: As above; the advice changes no contents.
        let advised = unsafe { madvise(address, length, Advice::LinuxDontDump) };
        advised.map_err(|error| MemoryError::Host { what: "madvise", size, source: error.into() })
    }

    fn map_anonymous(&self) -> io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let (address, protection) = (self.pointer(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: The range is ours alone: reserved by `reserve`, or mapped here before.
        unsafe { mmap_anonymous(address, self.size, protection, flags) }?;
        let huge_pages = self.backing == (Backing::Anonymous { huge_pages: true });
        let advice = if huge_pages { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        match self.advise(advice) {
            // A kernel without transparent huge pages.
            Err(error) if error.raw_os_error() == Some(INVALID) => Ok(()),
            other => other,
        }?;
        self.advise(Advice::LinuxDontDump)
    }

    fn map_shared(&mut self, file: File) -> io::Result<()> {
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        // Pages of a pool are set aside now: a guest that found it empty later would end by a signal.
        flags.set(MapFlags::NORESERVE, self.backing.pool().is_none());
        let (address, protection) = (self.pointer(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: The range was reserved by `reserve` and is ours alone; the file has no name, so
        // nobody can truncate it who wasn't given its descriptor.
        unsafe { mmap(address, self.size, protection, flags, &file, 0) }?;
        self.beneath = Beneath::Shared(file);
        Ok(())
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: The range is a mapping of ours, to which all accesses are volatile: contents may
        // change at any time.
        unsafe { madvise(self.pointer(), self.size, advice) }.map_err(io::Error::from)
    }

    const fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }
}

/// `EINVAL`.
const INVALID: i32 = rustix::io::Errno::INVAL.raw_os_error();
/// `ENOMEM`.
const NO_MEMORY: i32 = rustix::io::Errno::NOMEM.raw_os_error();

/// Reserves an aligned range of addresses, with nothing behind it yet.
fn reserve(size: usize) -> io::Result<usize> {
    // Pages of 1 GiB want more than the alignment of 2 MiB.
    let alignment = if size.is_multiple_of(1 << 30) { 1 << 30 } else { ALIGNMENT };
    let padded = size.checked_add(alignment).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: A new mapping at an address of the kernel's choice.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), padded, ProtFlags::empty(), flags) }?;
    let base = base as usize;
    let address = base.next_multiple_of(alignment);
    let end = address + size;
    for (from, to) in [(base, address), (end, base + padded)] {
        if from < to {
            // SAFETY: The ends of the mapping just made, which nobody knows of.
            unsafe { munmap(from as *mut c_void, to - from) }?;
        }
    }
    Ok(address)
}

/// Marks pages from `offset` of a file on that are no holes.
fn mark_file_data(file: &File, offset: u64, marks: &mut [bool]) {
    let page_size = PAGE_SIZE as u64;
    let end = offset + marks.len() as u64 * page_size;
    let mut at = offset;
    while let Some(data) = next_data(file, at, end) {
        let page = |at: u64| usize::try_from((at - offset) / page_size).unwrap_or(usize::MAX);
        let (first, last) = (page(data.start), page(data.end - 1));
        if let Some(marks) = marks.get_mut(first..=last) {
            marks.fill(true);
        }
        at = data.end;
    }
}

/// A file without a name, of that size.
fn file(size: u64, backing: Backing) -> io::Result<File> {
    let pages = match backing {
        Backing::HugePages2Mib => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Backing::HugePages1Gib => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        Backing::Memfd | Backing::Anonymous { .. } => MemfdFlags::empty(),
    };
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC | pages)?;
    ftruncate(&file, size)?;
    Ok(file.into())
}
