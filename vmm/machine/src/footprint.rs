//! What starting took and running does not need, given back when the guest has settled.
//!
//! A VMM runs for months by a small part of its code, and a node runs hundreds of them. Starting touches
//! nearly all of it: parsing, verifying, opening, filters, boot protocols. So a moment after that
//!
//! - the allocator returns what is free in its heaps, and
//! - the program's code and constants leave the page tables. They stay in the page cache, shared by all
//!   VMMs; what the running VMM touches comes back by a fault for 64 KiB or so, about forty in all.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Gives back what can be had again.
pub(crate) fn give_back() {
    // SAFETY: it returns free memory of the allocator's, under the allocator's locks.
    unsafe { libc::malloc_trim(0) };
    for segment in readonly_segments() {
        let (start, size) =
            (std::ptr::without_provenance_mut::<c_void>(segment.start), segment.len());
        // SAFETY: the segment is a private, read-only mapping of our program's file, which nobody can
        // write to while it runs, and no relocation has changed: dropped pages are read again as they
        // were.
        let dropped = unsafe { madvise(start, size, Advice::LinuxDontNeed) };
        if let Err(error) = dropped {
            tracing::debug!(%error, "the program's code stays mapped");
        }
    }
}

/// Where the program's code and constants are; whole pages.
fn readonly_segments() -> Vec<Range<usize>> {
    /// The first object is the program itself; the end of the iteration is any other value than 0.
    extern "C" fn note(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
        // SAFETY: `dl_iterate_phdr` gives a valid structure, and hands `found` on, which is the vector
        // below that nobody else uses meanwhile.
        let (info, found) = unsafe { (&*info, &mut *found.cast::<Vec<Range<usize>>>()) };
        // SAFETY: the program headers are as many as it says, and live as long as the program.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let page_size = rustix::param::page_size();
        for header in headers {
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let start = usize::try_from(info.dlpi_addr.wrapping_add(header.p_vaddr));
            let (Ok(start), Ok(size)) = (start, usize::try_from(header.p_memsz)) else { continue };
            found.push(start & !(page_size - 1)..(start + size).next_multiple_of(page_size));
        }
        1
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: `note` matches what the function calls, and `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// KiB of this program's code that are in its page tables.
    fn resident_code() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let program = fs::read_link("/proc/self/exe").unwrap().display().to_string();
        let mut is_code = false;
        let mut sum = 0;
        for line in smaps.lines() {
            let rights = line.split(' ').nth(1).filter(|word| word.ends_with(['p', 's']));
            if let Some(rights) = rights {
                is_code = rights == "r-xp" && line.ends_with(&program);
            } else if is_code && let Some(size) = line.strip_prefix("Rss:") {
                sum += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_that_was_touched_leaves_and_comes_back() {
        let segments = readonly_segments();
        assert!(segments.iter().any(|segment| segment.contains(&(give_back as fn() as usize))));
        // Touches all of it.
        for segment in &segments {
            for page in segment.clone().step_by(4096) {
                let byte = std::ptr::with_exposed_provenance::<u8>(page);
                // SAFETY: the page is mapped and readable.
                std::hint::black_box(unsafe { byte.read_volatile() });
            }
        }
        let before = resident_code();
        // Other tests run meanwhile, and touch theirs again.
        let after = (0..20).map(|_| {
            give_back();
            resident_code()
        });
        let after = after.min().unwrap_or(before);
        assert!(after < before / 2, "{after} of {before} KiB are still there");
    }
}
