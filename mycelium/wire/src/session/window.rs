//! Which packets of a session have come, so that none is taken twice (RFC 6479).
//!
//! A ring of blocks of bits. The newest counter moves the window on by clearing blocks; nothing is ever
//! shifted. Packets may overtake each other by [`WINDOW_SIZE`].

/// Counters behind the newest one that may still come.
pub const WINDOW_SIZE: u64 = 2048;

const BLOCK_BITS: u64 = u64::BITS as u64;
/// One more than the window has, for the block that the newest counter is in.
const BLOCK_COUNT: usize = 33;

const _: () = assert!((BLOCK_COUNT as u64 - 1) * BLOCK_BITS == WINDOW_SIZE);

/// What has come.
#[derive(Debug)]
pub struct Window {
    /// One more than the newest counter.
    end: u64,
    blocks: [u64; BLOCK_COUNT],
}

impl Default for Window {
    fn default() -> Self {
        Self { end: 0, blocks: [0; BLOCK_COUNT] }
    }
}

impl Window {
    /// Notes that the packet with this counter has come. False when it had before, or may have: it is
    /// older than the window. Counters must be below [`u64::MAX`].
    #[must_use]
    pub fn take(&mut self, counter: u64) -> bool {
        if counter < self.end && self.end - counter > WINDOW_SIZE {
            return false;
        }
        if counter >= self.end {
            let newest = self.end.saturating_sub(1) / BLOCK_BITS;
            let blocks = (newest + 1..=counter / BLOCK_BITS).take(BLOCK_COUNT);
            for block in blocks {
                *self.block(block) = 0;
            }
            self.end = counter.saturating_add(1);
        }
        let bit = 1 << (counter % BLOCK_BITS);
        let block = self.block(counter / BLOCK_BITS);
        let is_new = *block & bit == 0;
        *block |= bit;
        is_new
    }

    fn block(&mut self, number: u64) -> &mut u64 {
        let at = usize::try_from(number % BLOCK_COUNT as u64).unwrap_or(0);
        self.blocks.get_mut(at).expect("a remainder is smaller than its divisor")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_counter_is_taken_once_and_old_ones_never() {
        let mut window = Window::default();
        assert!(window.take(0) && !window.take(0));
        assert!(window.take(WINDOW_SIZE + 5));
        assert!(!window.take(5) && window.take(6) && !window.take(6));
        assert!(window.take(u64::MAX - 1) && !window.take(u64::MAX - 1));
        assert!(window.take(u64::MAX - WINDOW_SIZE));
        assert!(!window.take(u64::MAX - 1 - WINDOW_SIZE) && !window.take(7));
    }

    proptest! {
        #[test]
        fn is_a_set_that_forgets_what_is_old(
            steps in prop::collection::vec((-3000_i64..3000, any::<bool>()), 1..400)
        ) {
            let (mut window, mut model, mut at) = (Window::default(), BTreeSet::new(), 0_u64);
            for (step, is_far) in steps {
                at = at.saturating_add_signed(if is_far { step } else { step % 70 });
                let newest = model.last().copied().unwrap_or(0);
                let is_old = newest >= at && newest - at >= WINDOW_SIZE;
                let expected = !is_old && model.insert(at);
                prop_assert_eq!(window.take(at), expected, "counter {}", at);
            }
        }
    }
}
