//! Room for BARs, within one range of guest-physical addresses.

use std::ops::Range;

/// The lowest place within `window` for `size` bytes, aligned to their size, that overlaps none of
/// `taken`.
///
/// `size` is a power of two. There are a few dozen ranges, so going through them again for each
/// try is cheap: every try ends past one of them.
pub(super) fn place(window: &Range<u64>, size: u64, taken: &[Range<u64>]) -> Option<u64> {
    let mut at = window.start.checked_next_multiple_of(size)?;
    loop {
        let end = at.checked_add(size).filter(|&end| end <= window.end)?;
        let Some(other) = taken.iter().find(|other| other.start < end && at < other.end) else {
            return Some(at);
        };
        at = other.end.checked_next_multiple_of(size)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lowest_gap_that_is_large_enough_is_taken() {
        let window = 0x1000..0x8000;
        assert_eq!(place(&window, 0x1000, &[]), Some(0x1000));
        assert_eq!(place(&window, 0x4000, &[]), Some(0x4000));
        assert_eq!(place(&window, 0x8000, &[]), None);
        let taken = [0x3000..0x4000, 0x1000..0x2000];
        assert_eq!(place(&window, 0x1000, &taken), Some(0x2000));
        assert_eq!(place(&window, 0x2000, &taken), Some(0x4000));
        assert_eq!(place(&window, 0x1000, std::slice::from_ref(&(0..u64::MAX))), None);
    }

    proptest! {
        #[test]
        fn places_never_overlap(sizes in prop::collection::vec(4..16_u32, 1..40)) {
            let window = 0x1_2340..0x8_0000;
            let mut taken: Vec<Range<u64>> = Vec::new();
            for size in sizes {
                let size = 1 << size;
                let Some(at) = place(&window, size, &taken) else { continue };
                prop_assert_eq!(at % size, 0);
                prop_assert!(window.start <= at && at + size <= window.end);
                for other in &taken {
                    prop_assert!(other.end <= at || at + size <= other.start);
                }
                taken.push(at..at + size);
            }
        }
    }
}
