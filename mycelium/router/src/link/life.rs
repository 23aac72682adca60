//! When a link says Hello, and when silence means that it is dead.
//!
//! ```text
//!            Hello or traffic goes out                 0.7 s pass
//!   quiet ──────────────────────────────> waiting ──────────────────> probing: Hello each 0.5 s
//!     ^                                      │                           │ (each 2 s without traffic)
//!     └──────────── any bytes come ──────────┴───────────────────────────┤
//!                                                                        v
//!                        3 probes, and 2.2 s under traffic or 8 s without: dead
//! ```
//!
//! Every node answers a Hello by an IHU at once, so a Hello is a probe that works with all of them.
//! A link whose round trip is long gets four of them before it is dead. Probes are counted, not only
//! time: a host that slept for an hour wakes up with links that are asked first.
//!
//! The n-th IHU answers the n-th Hello, since links keep the order. An IHU that comes when no Hello
//! waits is no sample: a neighbour can't make a link cheaper by sending more of them.

use std::collections::VecDeque;
use std::time::Duration;

use mycelium_wire::control::Seqno;

use crate::limits::{
    FIRST_HELLOS, HELLO_INTERVAL, HELLO_LOST_AFTER, IDLE_PROBE_GAP, IDLE_SILENCE_MAX,
    IHU_MISSING_MAX, OUTSTANDING_HELLOS_MAX, PROBE_AFTER, PROBE_COUNT, PROBE_GAP, SILENCE_MAX,
    SLOW_SILENCE_MAX, TRAFFIC_RECENT,
};
use crate::time::Time;

/// Proofs of life, and the lack of them.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    seqno: Seqno,
    hello_count: usize,
    next_hello: Time,
    /// When Hellos were sent whose IHUs have not come.
    outstanding: VecDeque<Time>,
    last_ihu: Time,
    /// Hellos lost since an IHU came.
    lost_in_a_row: u32,
    silence: Option<Silence>,
    /// When data last went out.
    sent_at: Option<Time>,
    /// Moves Hellos about a little, so that nobody foresees them and not all come at once.
    jitter: u64,
}

/// Something went out, and nothing has come since.
#[derive(Clone, Debug)]
struct Silence {
    since: Time,
    has_traffic: bool,
    probe_count: u8,
    last_probe: Time,
}

/// What a look at a link's timers finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing.
    Nothing,
    /// A Hello with this number.
    Hello(Seqno),
    /// The link is dead.
    Dead,
}

impl Life {
    /// A link that came up now; its first Hello is due.
    pub(crate) fn new(now: Time, jitter: u64) -> Self {
        Self {
            seqno: Seqno(0),
            hello_count: 0,
            next_hello: now,
            outstanding: VecDeque::new(),
            last_ihu: now,
            lost_in_a_row: 0,
            silence: None,
            sent_at: None,
            jitter: jitter | 1,
        }
    }

    /// Bytes came. In the midst of traffic the next ones are waited for at once, so that both ends see a
    /// cut, not only the one whose packets no longer arrive; a probe ends the wait when traffic ends.
    pub(crate) fn heard(&mut self, now: Time) {
        let is_busy = self.sent_at.is_some_and(|sent| now.since(sent) < TRAFFIC_RECENT);
        self.silence = is_busy.then(|| Silence { has_traffic: true, ..Silence::new(now) });
    }

    /// Data went out.
    pub(crate) fn sent(&mut self, now: Time) {
        self.sent_at = Some(now);
        self.silence.get_or_insert_with(|| Silence::new(now)).has_traffic = true;
    }

    /// An IHU came: the round trip, if it answers a Hello.
    pub(crate) fn ihu(&mut self, now: Time) -> Option<Duration> {
        let sent = self.outstanding.pop_front()?;
        self.last_ihu = now;
        self.lost_in_a_row = 0;
        Some(now.since(sent))
    }

    /// Gives up Hellos that nobody answered in time: how many.
    pub(crate) fn give_up(&mut self, now: Time, round_trip: Option<Duration>) -> u32 {
        let before = self.outstanding.len();
        self.outstanding.retain(|sent| now.since(*sent) < lost_after(round_trip));
        let lost = u32::try_from(before - self.outstanding.len()).unwrap_or(u32::MAX);
        self.lost_in_a_row = self.lost_in_a_row.saturating_add(lost);
        lost
    }

    /// What is to be done now.
    pub(crate) fn due(&mut self, now: Time, round_trip: Option<Duration>) -> Due {
        let is_deaf = self.lost_in_a_row >= 2 && now.since(self.last_ihu) >= IHU_MISSING_MAX;
        let is_dead = self.silence.as_ref().is_some_and(|s| s.death(round_trip) <= now);
        if is_deaf || is_dead {
            return Due::Dead;
        }
        if self.hello_due(round_trip) > now {
            return Due::Nothing;
        }
        Due::Hello(self.hello(now))
    }

    /// When to look again.
    pub(crate) fn deadline(&self, round_trip: Option<Duration>) -> Time {
        let death = self.silence.as_ref().map(|silence| silence.death(round_trip));
        let lost = self.outstanding.front().map(|sent| *sent + lost_after(round_trip));
        let deaf = (self.lost_in_a_row >= 2).then(|| self.last_ihu + IHU_MISSING_MAX);
        let moments = [death, lost, deaf].into_iter().flatten();
        moments.fold(self.hello_due(round_trip), Time::min)
    }

    fn hello_due(&self, round_trip: Option<Duration>) -> Time {
        let probe = self.silence.as_ref().and_then(|silence| silence.next_probe(round_trip));
        probe.map_or(self.next_hello, |probe| probe.min(self.next_hello))
    }

    fn hello(&mut self, now: Time) -> Seqno {
        if self.next_hello <= now {
            let pause = FIRST_HELLOS.get(self.hello_count).copied().unwrap_or(HELLO_INTERVAL);
            self.next_hello = now + pause.mul_f64(self.jittered());
            self.hello_count += 1;
        }
        if self.outstanding.len() == OUTSTANDING_HELLOS_MAX {
            self.outstanding.pop_front();
            self.lost_in_a_row = self.lost_in_a_row.saturating_add(1);
        }
        self.outstanding.push_back(now);
        let silence = self.silence.get_or_insert_with(|| Silence::new(now));
        silence.probe_count = silence.probe_count.saturating_add(1);
        silence.last_probe = now;
        let seqno = self.seqno;
        self.seqno = seqno.next();
        seqno
    }

    /// Between 0.9 and 1.
    fn jittered(&mut self) -> f64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let part = u32::try_from(self.jitter >> 32).unwrap_or(0);
        1.0 - 0.1 * f64::from(part) / f64::from(u32::MAX)
    }
}

impl Silence {
    fn new(now: Time) -> Self {
        Self { since: now, has_traffic: false, probe_count: 0, last_probe: now }
    }

    /// When the next probe is due; none once there are enough of them and death is near.
    fn next_probe(&self, round_trip: Option<Duration>) -> Option<Time> {
        let gap = match (self.has_traffic, self.probe_count) {
            (_, 0) => PROBE_AFTER,
            (true, _) => PROBE_GAP,
            (false, _) => IDLE_PROBE_GAP,
        };
        let next = self.last_probe + gap.max(slow(round_trip, 2));
        let is_enough = self.probe_count >= PROBE_COUNT && next >= self.death(round_trip);
        (!is_enough).then_some(next)
    }

    /// When silence is death, if it lasts and enough probes are sent by then.
    fn death(&self, round_trip: Option<Duration>) -> Time {
        if self.probe_count < PROBE_COUNT {
            return Time(Duration::MAX);
        }
        let silence = if self.has_traffic { SILENCE_MAX } else { IDLE_SILENCE_MAX };
        let by_silence = self.since + silence.max(slow(round_trip, 4));
        by_silence.max(self.last_probe + PROBE_GAP.max(slow(round_trip, 1)))
    }
}

/// So many round trips, within reason.
fn slow(round_trip: Option<Duration>, count: u32) -> Duration {
    round_trip.map_or(Duration::ZERO, |time| time.saturating_mul(count).min(SLOW_SILENCE_MAX))
}

fn lost_after(round_trip: Option<Duration>) -> Duration {
    HELLO_LOST_AFTER.max(slow(round_trip, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(Duration::from_millis(1_000_000 + ms))
    }

    /// Runs a link from `begin` that hears nothing, with traffic each `traffic_ms`; gives the Hellos
    /// and the moment of death.
    fn run(life: &mut Life, begin: u64, traffic_ms: Option<u64>) -> (u32, u64) {
        let mut hellos = 0;
        for ms in (begin..begin + 200_000).step_by(10) {
            if traffic_ms.is_some_and(|step| ms % step == 0) {
                life.sent(at(ms));
            }
            life.give_up(at(ms), None);
            match life.due(at(ms), None) {
                Due::Nothing => {}
                Due::Hello(_) => hellos += 1,
                Due::Dead => return (hellos, ms),
            }
        }
        panic!("a silent link lives");
    }

    /// A link whose first Hellos are answered.
    fn settled() -> (Life, u64) {
        let mut life = Life::new(at(0), 7);
        for ms in (0..60_000).step_by(10) {
            if let Due::Hello(_) = life.due(at(ms), None) {
                life.heard(at(ms));
                assert_eq!(life.ihu(at(ms + 3)), Some(Duration::from_millis(3)));
            }
        }
        (life, 60_000)
    }

    #[test]
    fn silence_under_traffic_is_death_in_less_than_three_seconds() {
        let (mut life, now) = settled();
        let (hellos, death) = run(&mut life, now, Some(100));
        assert!((2200..=2500).contains(&(death - now)), "{death}");
        assert!((3..=5).contains(&hellos), "{hellos}");
    }

    #[test]
    fn an_idle_link_is_dead_soon_after_a_hello() {
        let (mut life, now) = settled();
        let (hellos, death) = run(&mut life, now, None);
        assert!(death - now <= 28_500, "{death}");
        assert!((3..=6).contains(&hellos), "{hellos}");
    }

    #[test]
    fn an_end_that_has_nothing_more_to_send_sees_the_cut_too() {
        let (mut life, now) = settled();
        life.sent(at(now));
        life.heard(at(now + 50));
        let (_, death) = run(&mut life, now + 50, None);
        assert!((2200..=2300).contains(&(death - now)), "{death}");
    }

    #[test]
    fn the_end_of_traffic_costs_one_hello() {
        let (mut life, now) = settled();
        life.sent(at(now));
        life.heard(at(now + 50));
        let mut hellos = 0;
        for ms in (now + 50..now + 10_000).step_by(10) {
            if let Due::Hello(_) = life.due(at(ms), None) {
                hellos += 1;
                life.ihu(at(ms));
                life.heard(at(ms));
            }
        }
        assert!((1..=2).contains(&hellos), "{hellos}, one of which may be the usual one");
    }

    #[test]
    fn traffic_one_way_is_probed_each_second_or_so() {
        let (mut life, now) = settled();
        let mut hellos = 0;
        for ms in (now..now + 60_000).step_by(10) {
            if ms % 100 == 0 {
                life.sent(at(ms));
            }
            if let Due::Hello(_) = life.due(at(ms), None) {
                hellos += 1;
                life.heard(at(ms));
                life.ihu(at(ms));
            }
        }
        assert!((60..=95).contains(&hellos), "{hellos}");
    }

    #[test]
    fn after_a_sleep_the_link_is_asked_first() {
        let (mut life, now) = settled();
        life.sent(at(now));
        let woken = now + 3_600_000;
        life.give_up(at(woken), None);
        let mut due = Vec::new();
        for ms in (woken..woken + 1000).step_by(10) {
            match life.due(at(ms), None) {
                Due::Nothing => {}
                other => due.push((ms - woken, other)),
            }
        }
        assert!(due.iter().all(|(_, due)| matches!(due, Due::Hello(_))), "{due:?}");
        life.heard(at(woken + 1000));
        assert_eq!(life.due(at(woken + 1000), None), Due::Nothing);
    }

    #[test]
    fn a_neighbour_that_never_answers_is_dead_though_it_talks() {
        let mut life = Life::new(at(0), 7);
        for ms in (0..100_000).step_by(10) {
            life.heard(at(ms));
            life.give_up(at(ms), None);
            if life.due(at(ms), None) == Due::Dead {
                assert!((43_000..44_000).contains(&ms), "{ms}");
                return;
            }
        }
        panic!("it lives");
    }

    #[test]
    fn only_answers_are_samples() {
        let mut life = Life::new(at(0), 7);
        assert_eq!(life.ihu(at(0)), None);
        assert_eq!(life.due(at(0), None), Due::Hello(Seqno(0)));
        assert_eq!(life.ihu(at(30)), Some(Duration::from_millis(30)));
        assert_eq!(life.ihu(at(31)), None);
    }

    #[test]
    fn a_slow_link_has_time() {
        let slow = Some(Duration::from_millis(1500));
        let (mut life, now) = settled();
        for ms in (now..now + 5_900).step_by(10) {
            life.sent(at(ms));
            assert_ne!(life.due(at(ms), slow), Due::Dead, "{ms}");
        }
    }

    #[test]
    fn the_deadline_is_never_missed() {
        let (mut life, now) = settled();
        let mut moment = at(now);
        loop {
            life.sent(moment);
            life.give_up(moment, None);
            if life.due(moment, None) == Due::Dead {
                break;
            }
            let next = life.deadline(None);
            assert!(next > moment, "{life:?} {moment:?}");
            moment = next.min(moment + Duration::from_millis(100));
        }
        assert!(moment.since(at(now)) < Duration::from_millis(2500));
    }
}
