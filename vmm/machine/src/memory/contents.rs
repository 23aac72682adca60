//! What is in a guest's memory, apart from zeros: out to a snapshot, and in from one.
//!
//! Both sides see memory as one image, its ranges laid end to end. A guest may be promised far more
//! memory than it ever touched, so it matters to find what there is without reading all of it: that
//! would cost hours for a terabyte, and give every guest of it pages of its own. Where pages may be
//! other than zero depends on what lies beneath the memory:
//!
//! | memory | what may hold something |
//! |---|---|
//! | private, anonymous | pages that are present or swapped (`/proc/self/pagemap`) |
//! | a private map of a snapshot | the same, and where the snapshot's file has no hole |
//! | shared: memfd, hugetlbfs | where its file has no hole |
//! | other files mapped over it | everything |
//!
//! Where one of these sources can't be asked, everything may. Pages are read once, into a buffer: what
//! is looked at, summed up and written are the same bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vmm_virtio::memory::{Bytes, GuestAddress};

use super::mapping::Mapping;
use super::{MemoryError, Ram};

/// The granularity of an image.
pub(crate) const PAGE_SIZE: usize = 4096;
/// Bytes that are moved at once.
const CHUNK_SIZE: usize = 1 << 20;
/// Pages that are asked about at once.
const WINDOW_PAGES: usize = 8192;

/// What memory holds before the guest's first instruction here.
#[derive(Debug)]
pub struct Beginning {
    /// A file that begins with the image of memory.
    pub image: File,
    /// How the image gets into memory.
    pub how: Filling,
}

/// How an image gets into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// It is mapped privately: pages are read when they are touched, and shared until they are written
    /// to. The file must stay as it is. Memory that can't be mapped is copied.
    Map,
    /// It is read at once.
    Copy,
}

impl Ram {
    /// Size of the image of all memory, in bytes.
    pub(crate) fn image_size(&self) -> u64 {
        self.layout.ram().map(|range| range.size).sum()
    }

    /// Makes memory, which is all zeros, what an image has.
    ///
    /// # Errors
    /// [`MemoryError::Host`].
    pub(crate) fn begin_with(&mut self, beginning: &Beginning) -> Result<(), MemoryError> {
        let Beginning { image, how } = beginning;
        let ranges: Vec<_> = self.layout.ram().collect();
        let mut offset = 0;
        for (range, mapping) in ranges.into_iter().zip(&mut self.mappings) {
            let is_mapped = *how == Filling::Map && mapping.map_image(image, offset)?;
            if !is_mapped {
                let copied = copy_in(&self.memory, range.start, image, offset, range.size);
                copied.map_err(|source| MemoryError::Host {
                    what: "reading a snapshot",
                    size: range.size,
                    source,
                })?;
            }
            offset += range.size;
        }
        Ok(())
    }

    /// Calls `each` with what may be other than zero: where in the image it begins, and its bytes,
    /// whole pages.
    pub(crate) fn read_out(
        &self,
        pagemap: Option<&File>,
        each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_SIZE];
        let mut marks = vec![false; WINDOW_PAGES];
        let mut image_offset = 0;
        for (range, mapping) in self.layout.ram().zip(&self.mappings) {
            let mut at = 0;
            while at < range.size {
                let pages_left = usize::try_from(range.size - at).unwrap_or(usize::MAX) / PAGE_SIZE;
                let window = &mut marks[..WINDOW_PAGES.min(pages_left)];
                window.fill(false);
                mapping.mark_data(at, pagemap, window);
                for run in runs(window, CHUNK_SIZE / PAGE_SIZE) {
                    let offset = at + (run.start * PAGE_SIZE) as u64;
                    let bytes = &mut buffer[..run.len() * PAGE_SIZE];
                    self.copy_out(mapping, range.start, offset, bytes)?;
                    each(image_offset + offset, bytes)?;
                }
                at += (window.len() * PAGE_SIZE) as u64;
            }
            image_offset += range.size;
        }
        Ok(())
    }

    fn copy_out(
        &self,
        mapping: &Mapping,
        start: u64,
        offset: u64,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        match mapping.shared_file() {
            // Reading a hole through a mapping would fill it.
            Some(file) => file.read_exact_at(bytes, offset),
            None => {
                let read = self.memory.read_slice(bytes, GuestAddress(start + offset));
                read.map_err(io::Error::other)
            }
        }
    }
}

/// Copies `size` bytes of an image to memory at `start`, which is all zeros.
fn copy_in(
    memory: &vmm_virtio::memory::Memory,
    start: u64,
    image: &File,
    offset: u64,
    size: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_SIZE];
    for_each_data(image, offset..offset + size, &mut buffer, &mut |at, bytes| {
        for run in nonzero_runs(bytes) {
            let address = start + (at - offset) + run.start as u64;
            memory.write_slice(&bytes[run], GuestAddress(address)).map_err(io::Error::other)?;
        }
        Ok(())
    })
}

/// Calls `each` with the parts of `range` of a file that are no holes, whole pages, in pieces of up to
/// the buffer's size. The range begins and ends with a page.
pub(crate) fn for_each_data(
    file: &File,
    range: std::ops::Range<u64>,
    buffer: &mut [u8],
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let page_size = PAGE_SIZE as u64;
    let mut at = range.start;
    while let Some(data) = next_data(file, at, range.end) {
        at = (data.start / page_size * page_size).max(at);
        let end = data.end.next_multiple_of(page_size).min(range.end);
        while at < end {
            let size = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = &mut buffer[..size];
            file.read_exact_at(bytes, at)?;
            each(at, bytes)?;
            at += size as u64;
        }
    }
    Ok(())
}

/// The first part of a file from `at` on, and before `end`, that is no hole. All of it where holes
/// can't be asked for.
pub(super) fn next_data(file: &File, at: u64, end: u64) -> Option<std::ops::Range<u64>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    if at >= end {
        return None;
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        Err(_) => return Some(at..end),
    };
    let stop = seek(file, SeekFrom::Hole(start)).unwrap_or(end).min(end);
    // A file that changes meanwhile must not keep us here.
    (start < stop && start >= at).then_some(start..stop)
}

/// Runs of marked pages, none of them longer than `count_max`.
fn runs(marks: &[bool], count_max: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + marks.get(at..)?.iter().position(|&mark| mark)?;
        let count = marks[start..].iter().take(count_max).take_while(|&&mark| mark).count();
        at = start + count;
        Some(start..at)
    })
}

/// Ranges of `bytes`, which are whole pages, without the pages that are zero.
pub(crate) fn nonzero_runs(bytes: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let page = |index: usize| bytes.get(index * PAGE_SIZE..(index + 1) * PAGE_SIZE);
    let mut index = 0;
    std::iter::from_fn(move || {
        while is_zero(page(index)?) {
            index += 1;
        }
        let start = index * PAGE_SIZE;
        while page(index).is_some_and(|page| !is_zero(page)) {
            index += 1;
        }
        Some(start..index * PAGE_SIZE)
    })
}

fn is_zero(page: &[u8]) -> bool {
    page.as_chunks::<16>().0.iter().all(|chunk| u128::from_le_bytes(*chunk) == 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::layout::{GIB, MIB};
    use crate::memory::{Backing, Layout};

    fn ram(memory_mib: u64, backing: Backing) -> Ram {
        Ram::new(Layout::new(memory_mib, 46).unwrap(), backing).unwrap()
    }

    fn pagemap() -> Option<File> {
        File::open("/proc/self/pagemap").ok()
    }

    /// What is other than zero, by page, and how much was looked at.
    fn contents(ram: &Ram, pagemap: Option<&File>) -> (BTreeMap<u64, Vec<u8>>, u64) {
        let (mut pages, mut size) = (BTreeMap::new(), 0);
        ram.read_out(pagemap, &mut |offset, bytes| {
            size += bytes.len() as u64;
            for run in nonzero_runs(bytes) {
                for at in run.step_by(PAGE_SIZE) {
                    let page = bytes[at..at + PAGE_SIZE].to_vec();
                    assert!(pages.insert(offset + at as u64, page).is_none(), "seen twice");
                }
            }
            Ok(())
        })
        .unwrap();
        (pages, size)
    }

    fn image(ram: &Ram) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(ram.image_size()).unwrap();
        for (offset, page) in contents(ram, None).0 {
            file.write_all_at(&page, offset).unwrap();
        }
        file
    }

    const PLACES: [u64; 4] = [0x1000, 5 * MIB + 8, 3 * GIB - 8, 4 * GIB + MIB];

    fn filled(backing: Backing) -> Ram {
        let ram = ram(3072 + 8, backing);
        let memory = Arc::clone(ram.memory());
        for place in PLACES {
            memory.write_obj(place ^ 0xff, GuestAddress(place)).unwrap();
        }
        // Touched, and zero.
        memory.write_obj(0_u64, GuestAddress(GIB)).unwrap();
        ram
    }

    #[test]
    fn only_what_there_is_is_read() {
        for backing in
            [Backing::default(), Backing::Anonymous { huge_pages: false }, Backing::Memfd]
        {
            let ram = filled(backing);
            let (pages, size) = contents(&ram, pagemap().as_ref());
            let offsets = [0x1000, 5 * MIB, 3 * GIB - 4096, 3 * GIB + MIB];
            assert!(pages.keys().copied().eq(offsets), "{:x?}", pages.keys());
            if pagemap().is_some() {
                assert!(size <= 16 * MIB, "{size} bytes of {backing:?}");
            }
        }
    }

    #[test]
    fn an_image_comes_back_mapped_or_copied_whatever_memory_is_made_of() {
        let old = filled(Backing::default());
        let file = image(&old);
        for backing in [Backing::default(), Backing::Memfd] {
            for how in [Filling::Map, Filling::Copy] {
                let mut new = ram(3072 + 8, backing);
                let beginning = Beginning { image: file.try_clone().unwrap(), how };
                new.begin_with(&beginning).unwrap();
                let memory = Arc::clone(new.memory());
                for place in PLACES {
                    assert_eq!(memory.read_obj::<u64>(GuestAddress(place)).unwrap(), place ^ 0xff);
                }
                // A snapshot of what came from a snapshot has both: what was written since, and what
                // nobody touched.
                memory.write_obj(7_u64, GuestAddress(MIB)).unwrap();
                memory.write_obj(0_u64, GuestAddress(0x1000)).unwrap();
                let offsets = [MIB, 5 * MIB, 3 * GIB - 4096, 3 * GIB + MIB];
                let (pages, size) = contents(&new, pagemap().as_ref());
                assert!(pages.keys().copied().eq(offsets), "{backing:?}, {how:?}");
                assert!(size <= 16 * MIB || pagemap().is_none(), "{size} of {backing:?}, {how:?}");
                assert_eq!(contents(&new, None).0, pages);
                new.clear().unwrap();
                assert_eq!(memory.read_obj::<u64>(GuestAddress(PLACES[1])).unwrap(), 0);
                let mut byte = [0];
                file.read_exact_at(&mut byte, MIB).unwrap();
                assert_eq!(byte, [0], "the guest wrote to the snapshot");
            }
        }
    }

    proptest! {
        #[test]
        fn runs_are_the_marked_pages(marks in prop::collection::vec(any::<bool>(), 0..40), max in 1..9_usize) {
            let mut seen = vec![false; marks.len()];
            for run in runs(&marks, max) {
                prop_assert!(!run.is_empty() && run.len() <= max);
                for at in run {
                    prop_assert!(!std::mem::replace(&mut seen[at], true));
                }
            }
            prop_assert_eq!(seen, marks);
        }

        #[test]
        fn runs_without_zeros_are_all_that_is_not_zero(pages in prop::collection::vec(0..2_u8, 0..9)) {
            let bytes: Vec<u8> = pages.iter().flat_map(|&page| {
                let mut bytes = vec![0; PAGE_SIZE];
                bytes[PAGE_SIZE - 1] = page;
                bytes
            }).collect();
            let mut seen = vec![0; pages.len()];
            for run in nonzero_runs(&bytes) {
                prop_assert!(run.start.is_multiple_of(PAGE_SIZE) && run.len().is_multiple_of(PAGE_SIZE));
                seen[run.start / PAGE_SIZE..run.end / PAGE_SIZE].fill(1);
            }
            prop_assert_eq!(seen, pages);
        }
    }
}
