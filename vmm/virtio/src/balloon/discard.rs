//! Gives ranges of guest memory back to the host: the one place that may throw pages away.
//!
//! How depends on what lies under the memory. Afterwards the guest must read zeros, for a kernel
//! that was told that freed pages are zero relies on it, and nobody else must be affected:
//!
//! | memory | what is done | the guest reads |
//! |---|---|---|
//! | private, anonymous | `MADV_DONTNEED` | zeros |
//! | shared (memfd) | `MADV_REMOVE`: a hole in the file | zeros, as all who map it |
//! | a private mapping of a file | nothing | what it wrote |
//! | huge pages (hugetlbfs) | nothing: they go only as a whole | what it wrote |
//! | a range that was excluded | nothing | what it wrote |
//!
//! A private mapping of a file (a kernel image, the memory of a snapshot) is left alone because
//! what comes back after `MADV_DONTNEED` are the file's bytes, not zeros. Where such a mapping was
//! put over part of a region, only whoever did it knows: those are the excluded ranges. The same
//! goes for memory whose pages a userfaultfd handler provides: unless the handler learns what has
//! been removed (`UFFD_EVENT_REMOVE`) and gives zeros for it, that memory must be excluded.

use std::ops::Range;

use rustix::mm::{Advice, MapFlags};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, VolatileSlice,
};

use crate::memory::Memory;

/// What may be discarded, and how.
#[derive(Debug)]
pub(super) struct Discarder {
    /// Regions of guest memory, in order of their addresses.
    regions: Vec<Region>,
    /// In order, apart from each other, and of whole host pages.
    excluded: Vec<Range<u64>>,
    host_page_size: u64,
}

#[derive(Debug)]
struct Region {
    range: Range<u64>,
    advice: Option<Advice>,
}

/// What became of a range, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) discarded: u64,
    /// The host refused.
    pub(super) failed: u64,
}

impl Discarder {
    pub(super) fn new(memory: &Memory, excluded: &[Range<GuestAddress>]) -> Self {
        let host_page_size = rustix::param::page_size() as u64;
        let mut ranges: Vec<_> = excluded
            .iter()
            .map(|range| {
                // A page is left alone when any of it is.
                let end = range.end.0.checked_next_multiple_of(host_page_size);
                range.start.0 / host_page_size * host_page_size..end.unwrap_or(u64::MAX)
            })
            .filter(|range| !range.is_empty())
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut excluded: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match excluded.last_mut().filter(|last| range.start <= last.end) {
                Some(last) => last.end = last.end.max(range.end),
                None => excluded.push(range),
            }
        }
        let regions = memory.iter().map(|region| Region {
            range: region.start_addr().0..region.start_addr().0.saturating_add(region.len()),
            advice: advice_for(region),
        });
        Self { regions: regions.collect(), excluded, host_page_size }
    }

    /// Whether all of `range` is guest memory.
    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        let mut start = range.start;
        for region in &self.regions {
            if region.range.contains(&start) {
                start = region.range.end.min(range.end);
            }
        }
        start >= range.end
    }

    /// Discards the whole host pages of `range` that are guest memory and not excluded.
    pub(super) fn discard(&self, memory: &Memory, range: &Range<u64>) -> Outcome {
        let page = self.host_page_size;
        let Some(start) = range.start.checked_next_multiple_of(page) else {
            return Outcome::default();
        };
        let range = start..range.end / page * page;
        let mut outcome = Outcome::default();
        for region in &self.regions {
            let Some(advice) = region.advice else { continue };
            self.each_allowed(&intersection(&region.range, &range), |part| {
                let size = part.end - part.start;
                let slice = usize::try_from(size)
                    .ok()
                    .and_then(|size| memory.get_slice(GuestAddress(part.start), size).ok());
                match slice.map(|slice| advise(&slice, advice)) {
                    Some(Ok(())) => outcome.discarded += size,
                    _ => outcome.failed += size,
                }
            });
        }
        outcome
    }

    /// Calls `each` for the parts of `range` between excluded ranges.
    fn each_allowed(&self, range: &Range<u64>, mut each: impl FnMut(Range<u64>)) {
        let mut start = range.start;
        for excluded in &self.excluded {
            if excluded.end <= start {
                continue;
            }
            if excluded.start >= range.end {
                break;
            }
            if start < excluded.start {
                each(start..excluded.start);
            }
            start = excluded.end;
        }
        if start < range.end {
            each(start..range.end);
        }
    }
}

fn intersection(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

/// How pages of a region are discarded; `None` if they are not.
fn advice_for(region: &GuestRegionMmap<()>) -> Option<Advice> {
    let mapping = region.get_mmap();
    let is_shared = u32::try_from(mapping.flags())
        .is_ok_and(|flags| MapFlags::from_bits_retain(flags).contains(MapFlags::SHARED));
    if mapping.is_hugetlbfs() == Some(true) {
        None
    } else if is_shared {
        Some(Advice::LinuxRemove)
    } else {
        mapping.file_offset().is_none().then_some(Advice::LinuxDontNeed)
    }
}

fn advise(slice: &VolatileSlice<'_>, advice: Advice) -> rustix::io::Result<()> {
    let first = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the slice is mapped guest memory of whole host pages, and stays mapped. The advice
    // turns its contents to zeros, as a guest could at any time: no reference to it exists, and
    // nobody relies on what it holds.
    unsafe { rustix::mm::madvise(first.cast(), slice.len(), advice) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_ranges_are_rounded_out_and_joined() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let range = |start, end| GuestAddress(start)..GuestAddress(end);
        let excluded = [range(0x5001, 0x5002), range(0x1000, 0x2fff), range(0x2800, 0x4000)];
        let empty = range(0x9000, 0x9000);
        let discarder = Discarder::new(&memory, &[&excluded[..], &[empty]].concat());
        assert_eq!(discarder.excluded, [0x1000..0x4000, 0x5000..0x6000]);
        let mut parts = Vec::new();
        discarder.each_allowed(&(0x2000..0x8000), |part| parts.push(part));
        assert_eq!(parts, [0x4000..0x5000, 0x6000..0x8000]);
    }

    #[test]
    fn ranges_are_covered_across_regions_but_not_across_gaps() {
        let at = |start, size| (GuestAddress(start), size);
        let regions = [at(0, 0x2000), at(0x2000, 0x1000), at(0x8000, 0x1000)];
        let discarder = Discarder::new(&Memory::from_ranges(&regions).unwrap(), &[]);
        assert!(discarder.covers(&(0x1000..0x3000)));
        assert!(discarder.covers(&(0x8000..0x9000)));
        for range in [0x2000..0x4000, 0x7000..0x9000, 0x8000..0x9001, 0x5000..0x6000] {
            assert!(!discarder.covers(&range), "{range:x?}");
        }
    }

    #[test]
    fn only_whole_host_pages_within_the_range_go() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let discarder = Discarder::new(&memory, &[]);
        let outcome = |start, end| discarder.discard(&memory, &(start..end)).discarded;
        assert_eq!(outcome(1, 0x2fff), 0x1000);
        assert_eq!(outcome(1, 0xfff), 0);
        assert_eq!(outcome(0x1800, 0x2800), 0);
        assert_eq!(outcome(0, u64::MAX), 1 << 16);
        assert_eq!(outcome(u64::MAX - 1, u64::MAX), 0);
    }
}
