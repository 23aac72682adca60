//! What a link costs: its kind, its round trip in milliseconds, and the Hellos it loses.
//!
//! ```text
//!  cost = static + smoothed round trip + 8 x Hellos lost of the last sixteen
//! ```
//!
//! The first sample is taken as it is, and the next ones are averaged evenly until there are eight:
//! a link's cost is right after the first round trip, and steady after a few. Existing nodes begin
//! at 1000 and move by a tenth each 20 s, which takes a quarter of an hour.
//!
//! Routes are computed with the *applied* cost, which follows only when it is off by more than what
//! counts as news for a metric: a link that trembles makes no work and no messages.

use std::time::Duration;

use crate::limits::{LINK_COST_MAX, LOSS_COST, SIGNIFICANT_CHANGE, UNKNOWN_RTT_COST};

/// Samples over which the round trip is averaged.
const SAMPLE_COUNT: u32 = 8;

/// A link's cost.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    static_cost: u16,
    round_trip: Option<Duration>,
    sample_count: u32,
    /// One bit for each of the last Hellos; those that are set were lost.
    history: u16,
    applied: u16,
}

impl Cost {
    /// Of a link without a sample.
    pub(crate) fn new(static_cost: u16) -> Self {
        let static_cost = static_cost.max(1);
        let applied = static_cost.saturating_add(UNKNOWN_RTT_COST).min(LINK_COST_MAX);
        Self { static_cost, round_trip: None, sample_count: 0, history: 0, applied }
    }

    /// What the link adds to metrics.
    pub(crate) fn applied(&self) -> u16 {
        self.applied
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Lost Hellos of the last sixteen.
    pub(crate) fn lost_count(&self) -> u8 {
        u8::try_from(self.history.count_ones()).unwrap_or(u8::MAX)
    }

    /// A Hello was answered after this time. Says whether the applied cost changed.
    pub(crate) fn answered(&mut self, round_trip: Duration) -> bool {
        self.history <<= 1;
        self.sample_count = (self.sample_count + 1).min(SAMPLE_COUNT);
        let is_first = self.round_trip.is_none();
        let before = self.round_trip.unwrap_or(round_trip);
        let weighted = before * (self.sample_count - 1) + round_trip;
        self.round_trip = Some(weighted / self.sample_count);
        self.apply(is_first)
    }

    /// A Hello was not answered. Says whether the applied cost changed.
    pub(crate) fn lost(&mut self) -> bool {
        self.history = self.history << 1 | 1;
        self.apply(false)
    }

    fn apply(&mut self, is_first: bool) -> bool {
        let now = self.exact();
        let differs = now != self.applied;
        let follows = differs && (is_first || now.abs_diff(self.applied) > SIGNIFICANT_CHANGE);
        if follows {
            self.applied = now;
        }
        follows
    }

    fn exact(&self) -> u16 {
        let unknown = u128::from(UNKNOWN_RTT_COST);
        let milliseconds = self.round_trip.map_or(unknown, |time| time.as_millis());
        let loss = self.history.count_ones() * LOSS_COST;
        let cost = u128::from(self.static_cost) + milliseconds + u128::from(loss);
        u16::try_from(cost).unwrap_or(LINK_COST_MAX).min(LINK_COST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn the_first_sample_is_the_cost() {
        let mut cost = Cost::new(10);
        assert_eq!(cost.applied(), 1010);
        assert!(cost.answered(ms(3)));
        assert_eq!(cost.applied(), 13);
        assert_eq!(Cost::new(0).applied(), 1001, "routes become longer with each hop");
    }

    #[test]
    fn a_cost_that_trembles_stays() {
        let mut cost = Cost::new(10);
        cost.answered(ms(20));
        let changes = [24, 16, 29, 12, 20, 25].map(|sample| cost.answered(ms(sample)));
        assert_eq!((changes, cost.applied()), ([false; 6], 30));
        let changed = (0..8).filter(|_| cost.answered(ms(120))).count() > 0;
        assert!(changed && cost.applied() > 60, "{cost:?}");
    }

    #[test]
    fn what_is_lost_costs_until_it_is_forgotten() {
        let mut cost = Cost::new(10);
        cost.answered(ms(1));
        assert!(!cost.lost());
        assert!(cost.lost());
        assert_eq!((cost.applied(), cost.lost_count()), (11 + 16, 2));
        (0..16).for_each(|_| {
            cost.answered(ms(1));
        });
        assert_eq!((cost.applied(), cost.lost_count()), (11, 0));
    }

    #[test]
    fn a_cost_is_bounded() {
        let mut cost = Cost::new(u16::MAX);
        assert_eq!(cost.applied(), LINK_COST_MAX);
        cost.answered(Duration::MAX / 16);
        assert_eq!(cost.applied(), LINK_COST_MAX);
    }
}
