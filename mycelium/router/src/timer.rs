//! All timers in one ordered set: what is due next costs a look at its first element.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_wire::identity::Subnet;

use crate::event::LinkId;
use crate::time::Time;

/// Whose time it is. Each owner has one timer and decides, when it fires, what is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A link's Hellos, announcements, paced updates, death.
    Link(LinkId),
    /// Expiry of routes, retractions and distances of a destination.
    Destination(Subnet),
    /// A query that is sent again, or ends.
    Query(Subnet),
    /// The own sequence number may be increased again.
    Bump,
    /// Requests for sequence numbers are forgotten.
    Seqnos,
}

/// At most one moment for each timer.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(Time, Timer)>,
    moments: BTreeMap<Timer, Time>,
}

impl Timers {
    /// Sets a timer, in place of what it was set to.
    pub(crate) fn set(&mut self, timer: Timer, moment: Time) {
        match self.moments.insert(timer, moment) {
            Some(before) if before == moment => return,
            Some(before) => {
                self.queue.remove(&(before, timer));
            }
            None => {}
        }
        self.queue.insert((moment, timer));
    }

    /// Sets a timer unless it fires earlier.
    pub(crate) fn advance(&mut self, timer: Timer, moment: Time) {
        if self.moments.get(&timer).is_none_or(|set| *set > moment) {
            self.set(timer, moment);
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some(moment) = self.moments.remove(&timer) {
            self.queue.remove(&(moment, timer));
        }
    }

    /// The moment of the first.
    pub(crate) fn next(&self) -> Option<Time> {
        self.queue.first().map(|(moment, _)| *moment)
    }

    /// Takes the first that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Timer> {
        let (moment, timer) = *self.queue.first()?;
        if moment > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_timer_has_one_moment_and_fires_in_order() {
        let at = |seconds| Time(Duration::from_secs(seconds));
        let (first, second) = (Timer::Link(LinkId(1)), Timer::Link(LinkId(2)));
        let mut timers = Timers::default();
        timers.set(first, at(5));
        timers.set(second, at(3));
        timers.set(first, at(1));
        timers.advance(second, at(9));
        timers.set(Timer::Bump, at(2));
        timers.cancel(Timer::Bump);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop(at(0)), None);
        assert_eq!(timers.pop(at(4)), Some(first));
        assert_eq!(timers.pop(at(4)), Some(second));
        assert_eq!((timers.pop(at(99)), timers.next()), (None, None));
    }
}
