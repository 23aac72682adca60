//! Which writes a flush waits for.
//!
//! virtio 1.3 §5.2.6.2 has a flush cover the writes that were completed before it was submitted.
//! This device covers those as well that were only submitted before it: a driver that relies on
//! order within a queue loses nothing. Writes that come later do not wait.
//!
//! ```text
//!   epochs:   [ writes 2, flush A ] [ writes 0, flush B ] [ writes 1, open ]
//!               A waits for two       B waits for A's two    what comes now
//! ```

use std::collections::VecDeque;

/// Writes in flight, and flushes that wait for them. Slots are the unit's, and bound its size.
#[derive(Debug, Default)]
pub(super) struct FlushOrder {
    epochs: VecDeque<Epoch>,
    /// The number of the first one.
    first: u64,
}

#[derive(Debug, Default)]
struct Epoch {
    writes: u16,
    /// The slot of the flush that ended it.
    flush: Option<u16>,
}

impl FlushOrder {
    /// A write starts. Returns the number of its epoch.
    pub(super) fn write_started(&mut self) -> u64 {
        if self.epochs.is_empty() {
            self.epochs.push_back(Epoch::default());
        }
        let last = self.epochs.len() - 1;
        self.epochs[last].writes += 1;
        self.first + last as u64
    }

    /// The write that was started in `epoch` is over.
    pub(super) fn write_done(&mut self, epoch: u64) {
        let index = usize::try_from(epoch - self.first).unwrap_or(usize::MAX);
        self.epochs[index].writes -= 1;
    }

    /// A flush comes. True if there is nothing to wait for; else it is held until
    /// [`next_flush`](Self::next_flush) returns `slot`.
    pub(super) fn flush(&mut self, slot: u16) -> bool {
        if self.epochs.iter().all(|epoch| epoch.writes == 0) {
            return true;
        }
        if let Some(last) = self.epochs.back_mut() {
            last.flush = Some(slot);
        }
        self.epochs.push_back(Epoch::default());
        false
    }

    /// The next held flush that has nothing to wait for any more.
    pub(super) fn next_flush(&mut self) -> Option<u16> {
        let first = self.epochs.front()?;
        let flush = first.flush.filter(|_| first.writes == 0)?;
        self.epochs.pop_front();
        self.first += 1;
        Some(flush)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flush_waits_for_what_came_before_it_and_for_nothing_else() {
        let mut order = FlushOrder::default();
        assert!(order.flush(0));
        let before = order.write_started();
        assert!(!order.flush(1));
        assert!(!order.flush(2));
        let after = order.write_started();
        assert_eq!(order.next_flush(), None);
        order.write_done(before);
        assert_eq!((order.next_flush(), order.next_flush()), (Some(1), Some(2)));
        assert_eq!(order.next_flush(), None);
        order.write_done(after);
        assert_eq!(order.next_flush(), None);
        assert!(order.flush(3));
    }

    proptest! {
        /// Against a model that keeps, for each flush, the set of writes that it waits for.
        #[test]
        fn flushes_come_out_when_their_writes_are_over(
            steps in prop::collection::vec((0_u8..3, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut order = FlushOrder::default();
            let mut writes: Vec<(u16, u64)> = Vec::new();
            let mut held: Vec<(u16, BTreeSet<u16>)> = Vec::new();
            for (slot, (step, index)) in steps.into_iter().enumerate() {
                let slot = u16::try_from(slot).unwrap();
                match step {
                    0 => writes.push((slot, order.write_started())),
                    1 => {
                        let waits: BTreeSet<u16> = writes.iter().map(|write| write.0).collect();
                        prop_assert_eq!(order.flush(slot), waits.is_empty());
                        if !waits.is_empty() {
                            held.push((slot, waits));
                        }
                    }
                    _ if writes.is_empty() => {}
                    _ => {
                        let (slot, epoch) = writes.swap_remove(index.index(writes.len()));
                        order.write_done(epoch);
                        held.iter_mut().for_each(|(_, waits)| { waits.remove(&slot); });
                    }
                }
                while let Some(flush) = order.next_flush() {
                    let (slot, waits) = held.remove(0);
                    prop_assert_eq!((slot, waits.is_empty()), (flush, true));
                }
                prop_assert!(held.iter().all(|(_, waits)| !waits.is_empty()));
            }
        }
    }
}
