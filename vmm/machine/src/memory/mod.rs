//! A guest's memory: where it lies, what backs it, how KVM learns of it.
//!
//! Memory is reserved, not committed: a page exists from the moment someone touches it, so a guest
//! may be promised more than the host has. By default it is private anonymous memory in which the
//! kernel uses huge pages, the cheapest there is; a `memfd` can be shared with another process, and
//! hugetlbfs pages come from a pool that the operator set aside.
//!
//! A guest that goes on from a snapshot begins with the snapshot's bytes in its memory
//! ([`Beginning`]); `contents` knows how they get in, and out again.
//!
//! # Lifetime
//!
//! One process runs one machine, and the kernel may hold on to memory while I/O is in flight. So
//! mappings are never undone, and pages are given back by the end of the process alone.

pub(crate) mod contents;
pub mod layout;
mod mapping;

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vmm_virtio::memory::{Memory, SharedMemory};

pub use contents::{Beginning, Filling};
pub use layout::{Layout, Range};
use mapping::Mapping;

/// What a guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory, with transparent huge pages if so wished.
    Anonymous {
        /// Whether the kernel may use huge pages; it is nearly always better.
        huge_pages: bool,
    },
    /// Memory in a file without a name, which can be shared with another process.
    Memfd,
    /// Pages of 2 MiB out of the host's pool (`/proc/sys/vm/nr_hugepages`).
    HugePages2Mib,
    /// Pages of 1 GiB out of the host's pool.
    HugePages1Gib,
}

impl Default for Backing {
    fn default() -> Self {
        Self::Anonymous { huge_pages: true }
    }
}

impl Backing {
    /// Memory comes in multiples of this.
    const fn granularity_mib(self) -> u64 {
        match self {
            Self::Anonymous { .. } | Self::Memfd => 1,
            Self::HugePages2Mib => 2,
            Self::HugePages1Gib => 1024,
        }
    }

    /// The file that says how many pages there are, if they come from a pool.
    const fn pool(self) -> Option<&'static str> {
        match self {
            Self::Anonymous { .. } | Self::Memfd => None,
            Self::HugePages2Mib => Some("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
            Self::HugePages1Gib => {
                Some("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
            }
        }
    }
}

/// A guest's memory and the mappings that hold it.
#[derive(Debug)]
pub struct Ram {
    layout: Layout,
    memory: SharedMemory,
    mappings: Vec<Mapping>,
}

impl Ram {
    /// Reserves memory as `layout` says.
    ///
    /// # Errors
    /// [`MemoryError`] when it does not suit `backing` or the host has no room.
    pub fn new(layout: Layout, backing: Backing) -> Result<Self, MemoryError> {
        let granularity_mib = backing.granularity_mib();
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for range in layout.ram() {
            if !range.size.is_multiple_of(granularity_mib * layout::MIB) {
                let size_mib = range.size / layout::MIB;
                return Err(MemoryError::Granularity { size_mib, granularity_mib });
            }
            let mapping = Mapping::new(range.size, backing)?;
            regions.push(mapping.region(range.start)?);
            mappings.push(mapping);
        }
        let memory = Memory::from_regions(regions).map_err(|_| MemoryError::Regions)?;
        Ok(Self { layout, memory: Arc::new(memory), mappings })
    }

    /// Where memory lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Memory, for devices.
    #[must_use]
    pub const fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// Tells KVM, one slot a range.
    ///
    /// # Errors
    /// [`MemoryError::Slot`].
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        let slots = [layout::slot::LOW_RAM, layout::slot::HIGH_RAM];
        for ((mapping, range), slot) in self.mappings.iter().zip(self.layout.ram()).zip(slots) {
            mapping.register(vm, slot, range.start)?;
        }
        Ok(())
    }

    /// Gives all pages back to the host: memory is zero again.
    ///
    /// # Errors
    /// [`MemoryError::Host`].
    pub fn clear(&mut self) -> Result<(), MemoryError> {
        self.mappings.iter_mut().try_for_each(Mapping::clear)
    }

    /// Ranges in which memory that is given back would show a file's bytes, not zeros.
    #[must_use]
    pub fn images(&self) -> Vec<Range> {
        let ranges = self.layout.ram().zip(&self.mappings);
        ranges.filter(|(_, mapping)| mapping.is_image()).map(|(range, _)| range).collect()
    }

    /// Maps `size` bytes of `file` from `offset` privately over memory at `address`: pages are
    /// read from the file until the guest writes to them. Address, offset and size are multiples
    /// of the page size. Says whether it was done: memory that is shared or made of large pages
    /// can't be covered.
    ///
    /// # Errors
    /// [`MemoryError::Host`], and [`MemoryError::Range`] when the place is not memory.
    pub(crate) fn map_file(
        &mut self,
        address: u64,
        file: &std::fs::File,
        offset: u64,
        size: u64,
    ) -> Result<bool, MemoryError> {
        let misfit = MemoryError::Range { address, size };
        let ranges = self.layout.ram().zip(self.mappings.iter_mut());
        let end = address.checked_add(size);
        for (range, mapping) in ranges {
            if address >= range.start && end.is_some_and(|end| end <= range.end()) {
                return mapping.cover(address - range.start, file, offset, size);
            }
        }
        Err(misfit)
    }
}

/// Why a guest can't have its memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too little or too much.
    #[error(
        "memory of {memory_mib} MiB: must be from {} to {} MiB",
        layout::MEMORY_MIB_MIN,
        layout::MEMORY_MIB_MAX
    )]
    Size {
        /// What was asked for.
        memory_mib: u64,
    },
    /// The host's CPU can't address as much.
    #[error("memory of {memory_mib} MiB: this host's guests have addresses of {address_bits} bits")]
    AddressBits {
        /// What was asked for.
        memory_mib: u64,
        /// Width of a guest-physical address.
        address_bits: u8,
    },
    /// Not a whole number of huge pages.
    #[error("a memory range of {size_mib} MiB is not a multiple of {granularity_mib} MiB pages")]
    Granularity {
        /// Below or above the gap.
        size_mib: u64,
        /// Size of a page.
        granularity_mib: u64,
    },
    /// Ranges overlap, which a layout's never do.
    #[error("memory ranges overlap")]
    Regions,
    /// A place that is not memory.
    #[error("{size:#x} bytes at {address:#x} are not in memory")]
    Range {
        /// Its first address.
        address: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// The operator's pool has too few pages left.
    #[error("{size_mib} MiB of huge pages: the host has fewer left; {pool} sets how many it has")]
    Pool {
        /// What was asked for.
        size_mib: u64,
        /// Where their number is written.
        pool: &'static str,
    },
    /// The host refused something.
    #[error("{what} of {size} bytes")]
    Host {
        /// The system call.
        what: &'static str,
        /// For how much memory.
        size: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// KVM refused a memory slot.
    #[error("KVM_SET_USER_MEMORY_REGION of slot {slot}")]
    Slot {
        /// Which.
        slot: u32,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmm_virtio::memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::memory::layout::{GIB, MIB};

    fn ram(memory_mib: u64, backing: Backing) -> Ram {
        Ram::new(Layout::new(memory_mib, 46).unwrap(), backing).unwrap()
    }

    #[test]
    fn memory_is_lazy_even_by_the_terabyte_and_clear_zeroes_it() {
        for backing in [Backing::default(), Backing::Memfd] {
            let mut ram = ram(1 << 20, backing);
            let memory = Arc::clone(ram.memory());
            let places = [0, 3 * GIB - 8, 4 * GIB, 1024 * GIB];
            for place in places.map(GuestAddress) {
                memory.write_obj(place.0 ^ 0xff, place).unwrap();
                assert_eq!(memory.read_obj::<u64>(place).unwrap(), place.0 ^ 0xff);
            }
            assert!(!memory.address_in_range(GuestAddress(3 * GIB)));
            ram.clear().unwrap();
            drop(ram);
            for place in places.map(GuestAddress) {
                assert_eq!(memory.read_obj::<u64>(place).unwrap(), 0);
            }
        }
    }

    #[test]
    fn anonymous_memory_is_aligned_to_huge_pages() {
        let ram = ram(16, Backing::default());
        let host = ram.memory().get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host as usize % (2 << 20), 0);
    }

    #[test]
    fn huge_pages_want_whole_pages() {
        let layout = Layout::new(3, 46).unwrap();
        let error = Ram::new(layout, Backing::HugePages2Mib).unwrap_err();
        assert!(matches!(error, MemoryError::Granularity { size_mib: 3, granularity_mib: 2 }));
    }

    /// More than any host here has set aside.
    #[test]
    fn an_empty_pool_is_told_before_a_guest_starts() {
        let layout = Layout::new(4 << 20, 46).unwrap();
        let error = Ram::new(layout, Backing::HugePages2Mib).unwrap_err();
        assert!(matches!(error, MemoryError::Pool { .. }), "{error:?}");
        assert!(error.to_string().contains("hugepages-2048kB"), "{error}");
    }

    #[test]
    fn a_file_over_memory_is_private_and_goes_away_when_cleared() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0x11; 3 * 4096]).unwrap();
        let mut ram = ram(16, Backing::default());
        let memory = Arc::clone(ram.memory());
        assert!(ram.map_file(MIB, &file, 4096, 8192).unwrap());
        let place = GuestAddress(MIB);
        assert_eq!(memory.read_obj::<u64>(place).unwrap(), 0x1111_1111_1111_1111);
        memory.write_obj(7_u64, place).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 4096).unwrap();
        assert_eq!(byte, [0x11], "the guest wrote to the file");
        ram.clear().unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(MIB + 4096)).unwrap(), 0);
        // What is not memory is not covered.
        for address in [16 * MIB - 4096, 3 * GIB, u64::MAX - 4095] {
            assert!(matches!(
                ram.map_file(address, &file, 0, 8192),
                Err(MemoryError::Range { .. })
            ));
        }
        let mut shared = super::tests::ram(16, Backing::Memfd);
        assert!(!shared.map_file(MIB, &file, 0, 4096).unwrap());
    }
}
