//! Every number that bounds something, and the pace that bounds what comes in time.
//!
//! The protocol's own timers are as its existing nodes have them, so that both kinds agree on when
//! something is stale. The bounds are ours. They hold against a neighbour who sends what it likes:
//! nothing in this crate grows, loops or answers without one of them.

use std::time::Duration;

use crate::time::Time;

/// Between two Hellos on a link that is well.
pub(crate) const HELLO_INTERVAL: Duration = Duration::from_secs(20);
/// What an IHU says about the time until the next one, which nobody reads.
pub(crate) const IHU_INTERVAL: Duration = Duration::from_secs(60);
/// Between two announcements of the own subnet to a neighbour; what an Update says about the next.
pub(crate) const UPDATE_INTERVAL: Duration = Duration::from_secs(300);
/// How long a route lives without an update, 3.5 times its interval, and never longer than this.
pub(crate) const ROUTE_HOLD_MAX: Duration = Duration::from_secs(1050);
/// A route whose sender promises updates without end lives this long at least.
pub(crate) const ROUTE_HOLD_MIN: Duration = Duration::from_secs(2);
/// Without an IHU for this long a link is dead, even if other bytes come.
pub(crate) const IHU_MISSING_MAX: Duration = Duration::from_secs(43);
/// Between two increases of the own sequence number.
pub(crate) const SEQNO_BUMP_INTERVAL: Duration = Duration::from_secs(4);
/// How long a feasibility distance is kept after its last use (RFC 8966 3.7.3 and appendix B).
pub(crate) const SOURCE_HOLD: Duration = Duration::from_secs(30 * 60);
/// How long an unanswered request for a route stays open.
pub(crate) const QUERY_HOLD: Duration = Duration::from_secs(15);
/// A route in use is asked for again when less than this is left of its life.
pub(crate) const ALMOST_EXPIRED: Duration = Duration::from_secs(15);
/// A neighbour may hold a route for so much longer than we think, since clocks differ.
pub(crate) const ROUTE_HOLD_MARGIN: Duration = Duration::from_secs(120);
/// How long neighbours are told about a route's loss before they count as knowing it.
pub(crate) const RETRACTION_HOLD: Duration = Duration::from_secs(6);
/// A metric that differs by more than this is news, and a route that is better by more is chosen.
pub(crate) const SIGNIFICANT_CHANGE: u16 = 10;
/// The hop count with which a seqno request begins.
pub(crate) const SEQNO_HOP_COUNT: u8 = 64;
/// How often a route request is passed on between our nodes. Existing nodes stop at 16; they
/// know subnets that are farther away because they flood their routes, which we don't.
pub(crate) const GENERATION_MAX: u8 = 248;
/// So many times a route request may be passed on for each time that a seqno request may, where one
/// turns into the other. Both end, and so must their mixture.
pub(crate) const GENERATIONS_PER_HOP: u8 = 4;

/// More time than this does not pass between two calls. A router with links is called at least as
/// often as it says Hello, so its host slept.
pub(crate) const PASSED_MAX: Duration = Duration::from_secs(30);
/// No timer is set to fire sooner than this, so that no mistake about one can spin.
pub(crate) const TIMER_PAUSE_MIN: Duration = Duration::from_millis(1);

/// Hellos of a new link come after these pauses, then each [`HELLO_INTERVAL`].
pub(crate) const FIRST_HELLOS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// A link that has something outstanding and says nothing for this long is probed by a Hello.
pub(crate) const PROBE_AFTER: Duration = Duration::from_millis(700);
/// Who sent so lately before it heard something expects to hear more. Less than what a probe takes, so
/// that the answer to one is not taken for traffic.
pub(crate) const TRAFFIC_RECENT: Duration = Duration::from_millis(600);
/// Between two probes while traffic waits.
pub(crate) const PROBE_GAP: Duration = Duration::from_millis(500);
/// Between two probes while nothing waits.
pub(crate) const IDLE_PROBE_GAP: Duration = Duration::from_secs(2);
/// So many probes must be unanswered before silence is death.
pub(crate) const PROBE_COUNT: u8 = 3;
/// So long a silence under traffic is death, if the round trip isn't longer.
pub(crate) const SILENCE_MAX: Duration = Duration::from_millis(2200);
/// So long a silence is death if no traffic waits.
pub(crate) const IDLE_SILENCE_MAX: Duration = Duration::from_secs(8);
/// The longest that a silence may last because round trips are long.
pub(crate) const SLOW_SILENCE_MAX: Duration = Duration::from_secs(10);
/// A Hello without an answer for this long, or four round trips, is lost.
pub(crate) const HELLO_LOST_AFTER: Duration = Duration::from_secs(2);
/// Hellos whose answers are awaited at a time.
pub(crate) const OUTSTANDING_HELLOS_MAX: usize = 16;
/// What one lost Hello of the last sixteen adds to a link's cost.
pub(crate) const LOSS_COST: u32 = 8;
/// The cost of a link before its first sample, as existing nodes assume it.
pub(crate) const UNKNOWN_RTT_COST: u16 = 1000;
/// The greatest cost of a link.
pub(crate) const LINK_COST_MAX: u16 = 60_000;

/// How long after its last use a destination counts as in use.
pub(crate) const USE_HOLD: Duration = Duration::from_secs(60);
/// How often all neighbours are asked again for a route in use, since a better one may exist.
pub(crate) const REFRESH_INTERVAL: Duration = Duration::from_secs(120);
/// A next hop that is asked for its route must have answered by then, or it is asked again.
pub(crate) const CONFIRM_AFTER: Duration = Duration::from_secs(3);
/// So many questions a next hop may leave unanswered before its route is dropped.
pub(crate) const UNCONFIRMED_MAX: u8 = 3;
/// Pauses after which an open query of ours is sent again.
pub(crate) const QUERY_RESENDS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(4)];
/// A query that is asked for again is passed on again if the last time is longer ago.
pub(crate) const QUERY_REPEAT: Duration = Duration::from_millis(1500);
/// Moments after a route's loss at which it is said again.
pub(crate) const RETRACTION_REPEATS: [Duration; 2] =
    [Duration::from_secs(1), Duration::from_secs(3)];
/// Between two seqno requests for one destination to the neighbour whose update was infeasible.
pub(crate) const SEQNO_ASK_INTERVAL: Duration = Duration::from_secs(1);
/// A seqno request that comes again is passed on again if the last time is longer ago.
pub(crate) const SEQNO_REPEAT: Duration = Duration::from_millis(1500);
/// How long it is remembered who asked for a sequence number.
pub(crate) const SEQNO_HOLD: Duration = Duration::from_secs(60);
/// How far a sequence number may run ahead of what is known of its source. In the time that a
/// distance is kept, a source may increase its number 450 times; what is far above is forged.
pub(crate) const SEQNO_JUMP_MAX: u16 = 4096;
/// Between two renewals of the own router id.
pub(crate) const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);
/// Between two dumps of the whole table to one neighbour.
pub(crate) const DUMP_INTERVAL: Duration = Duration::from_secs(60);

/// Links at a time.
pub(crate) const LINKS_MAX: usize = 4096;
/// Routes that one neighbour may have here.
pub(crate) const ROUTES_PER_LINK_MAX: usize = 16_384;
/// Routes of all neighbours.
pub(crate) const ROUTES_MAX: usize = 131_072;
/// Feasibility distances of all destinations. Destinations with routes need at most half of them, so
/// that some of a destination without any can always be given up.
pub(crate) const SOURCES_MAX: usize = 2 * ROUTES_MAX;
/// Feasibility distances of one destination, one for each router id; the latest are kept. An owner
/// has one in half an hour, unless it restarts. Who makes some up can't make its true one unusable,
/// as it could if new ones were refused instead.
pub(crate) const SOURCES_PER_SUBNET_MAX: usize = 16;
/// Pairs of a neighbour and a subnet that it was told; links share them evenly.
pub(crate) const TOLD_MAX: usize = 524_288;
/// Open queries of our own.
pub(crate) const OWN_QUERIES_MAX: usize = 4096;
/// Open queries that one neighbour has asked for.
pub(crate) const QUERIES_PER_LINK_MAX: usize = 1024;
/// Open queries of all neighbours.
pub(crate) const QUERIES_MAX: usize = 16_384;
/// Sequence numbers asked for through us by one neighbour.
pub(crate) const SEQNOS_PER_LINK_MAX: usize = 1024;
/// Sequence numbers asked for through us.
pub(crate) const SEQNOS_MAX: usize = 16_384;
/// How long a next hop that lost packets is avoided the first time, at most, and remembered after that.
pub(crate) const AVOIDED_FOR_MIN: Duration = Duration::from_secs(60);
pub(crate) const AVOIDED_FOR_MAX: Duration = Duration::from_secs(3600);
pub(crate) const AVOIDED_KEPT: Duration = Duration::from_secs(3600);
/// Next hops that are avoided for one destination.
pub(crate) const AVOIDED_MAX: usize = 8;

/// Neighbours that wait for one sequence number, and that one was passed on to.
pub(crate) const SEQNO_LINKS_MAX: usize = 32;

/// Updates that a neighbour may send: a full table at once, then this many a second.
pub(crate) const UPDATES_IN: Pace = Pace::new(2_000, 20_000);
/// Updates that a neighbour is sent.
pub(crate) const UPDATES_OUT: Pace = Pace::new(1_000, 1_000);
/// Requests of either kind that a neighbour may send.
pub(crate) const REQUESTS_IN: Pace = Pace::new(200, 1_000);
/// Proofs of a neighbour that are checked, which takes some 0.1 ms each.
pub(crate) const PROOFS_IN: Pace = Pace::new(100, 1_000);
/// Proofs of all neighbours that are checked: a twentieth of a core.
pub(crate) const PROOFS_IN_ALL: Pace = Pace::new(500, 5_000);
/// So many proofs of a neighbour may be none. Nobody passes one on that it has not checked.
pub(crate) const FORGED_PROOFS_MAX: u8 = 3;
/// Hellos of a neighbour that are answered.
pub(crate) const HELLOS_IN: Pace = Pace::new(20, 100);

/// So many a second, and so many at once after a rest.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    per_second: u32,
    burst: u32,
    /// When all that was taken would have come at the pace (the "theoretical arrival time").
    paid_until: Time,
}

impl Pace {
    pub(crate) const fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, paid_until: Time(Duration::ZERO) }
    }

    /// Takes one, if the pace allows it now.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        let allowed = self.ready_at() <= now;
        if allowed {
            self.paid_until = self.paid_until.max(now) + self.interval();
        }
        allowed
    }

    /// From when on one may be taken.
    pub(crate) fn ready_at(&self) -> Time {
        Time(self.paid_until.0.saturating_sub(self.interval() * (self.burst - 1)))
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_allows_a_burst_and_then_its_rate() {
        let mut pace = Pace::new(10, 5);
        let start = Time(Duration::from_secs(100));
        assert_eq!((0..20).filter(|_| pace.take(start)).count(), 5);
        assert_eq!(pace.ready_at(), start + Duration::from_millis(100));
        let taken = (1..=100).filter(|i| pace.take(start + Duration::from_millis(20 * i))).count();
        assert_eq!(taken, 20);
        assert_eq!((0..20).filter(|_| pace.take(start + Duration::from_secs(60))).count(), 5);
    }
}
