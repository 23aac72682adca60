//! How much one twin, and all together, may ask of us.
//!
//! A twin may have so many commands running, and ask so often: a bucket of permits that refills at a
//! steady rate. Neither takes anything from others; a limit on all that runs protects us when they are
//! many. Twins that ask for nothing are forgotten.

use std::collections::HashMap;
use std::time::Instant;

use crate::twins::TwinId;

/// Twins that are remembered before those that rest are forgotten.
const TWIN_COUNT_MAX: usize = 4096;

/// How much may be asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Commands of one twin that run at a time.
    pub running_per_twin: u32,
    /// Commands that run at a time.
    pub running: u32,
    /// Requests of one twin per second, for long.
    pub rate_per_second: f64,
    /// Requests of one twin at once, after a rest.
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { running_per_twin: 16, running: 256, rate_per_second: 20.0, burst: 100 }
    }
}

/// Why a request is not even looked at.
#[derive(Debug, thiserror::Error, PartialEq, Clone)]
pub enum Refusal {
    /// That twin has enough going on.
    #[error("too many requests: {0} of this twin are running")]
    RunningPerTwin(u32),
    /// So have we.
    #[error("too many requests: the node is busy with {0}")]
    Running(u32),
    /// That twin asks too often.
    #[error("too many requests: a twin may make {0} a second")]
    Rate(f64),
    /// Too many twins at once.
    #[error("too many requests: {TWIN_COUNT_MAX} twins are asking")]
    Twins,
}

/// Who has how much left.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    running: u32,
    twins: HashMap<TwinId, Account>,
}

#[derive(Debug)]
struct Account {
    running: u32,
    bucket: Bucket,
}

/// Permits that come at a steady rate and are kept up to a limit.
#[derive(Debug)]
pub(crate) struct Bucket {
    permits: f64,
    at: Instant,
    rate_per_second: f64,
    burst: f64,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate_per_second: f64, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { permits: burst, at: now, rate_per_second, burst }
    }

    /// Takes a permit if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.permits = self.permits_at(now);
        self.at = now;
        let is_enough = self.permits >= 1.0;
        if is_enough {
            self.permits -= 1.0;
        }
        is_enough
    }

    fn is_full(&self, now: Instant) -> bool {
        self.permits_at(now) >= self.burst
    }

    fn permits_at(&self, now: Instant) -> f64 {
        let time = now.saturating_duration_since(self.at);
        (self.permits + time.as_secs_f64() * self.rate_per_second).min(self.burst)
    }
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, running: 0, twins: HashMap::new() }
    }

    /// Lets a request in, until [`leave`](Self::leave), or says why not.
    pub(crate) fn enter(&mut self, twin: TwinId, now: Instant) -> Result<(), Refusal> {
        let Limits { running_per_twin, running, rate_per_second, burst } = self.limits;
        if !self.twins.contains_key(&twin) && self.twins.len() >= TWIN_COUNT_MAX {
            self.twins.retain(|_, account| account.running > 0 || !account.bucket.is_full(now));
            if self.twins.len() >= TWIN_COUNT_MAX {
                return Err(Refusal::Twins);
            }
        }
        let new = || Account { running: 0, bucket: Bucket::new(rate_per_second, burst, now) };
        let account = self.twins.entry(twin).or_insert_with(new);
        if !account.bucket.take(now) {
            return Err(Refusal::Rate(rate_per_second));
        }
        if account.running >= running_per_twin {
            return Err(Refusal::RunningPerTwin(account.running));
        }
        if self.running >= running {
            return Err(Refusal::Running(self.running));
        }
        account.running += 1;
        self.running += 1;
        Ok(())
    }

    /// A request that was let in is done.
    pub(crate) fn leave(&mut self, twin: TwinId) {
        if let Some(account) = self.twins.get_mut(&twin) {
            account.running = account.running.saturating_sub(1);
        }
        self.running = self.running.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn twin(number: u32) -> TwinId {
        TwinId::new(number).unwrap()
    }

    #[test]
    fn one_twin_takes_nothing_from_others() {
        let now = Instant::now();
        let mut admission = Admission::new(Limits::default());
        for _ in 0..16 {
            admission.enter(twin(1), now).unwrap();
        }
        assert_eq!(admission.enter(twin(1), now), Err(Refusal::RunningPerTwin(16)));
        admission.enter(twin(2), now).unwrap();
        admission.leave(twin(1));
        admission.enter(twin(1), now).unwrap();
    }

    #[test]
    fn all_together_may_not_have_more_than_there_is() {
        let now = Instant::now();
        let mut admission = Admission::new(Limits { running: 3, ..Limits::default() });
        for number in 1..=3 {
            admission.enter(twin(number), now).unwrap();
        }
        assert_eq!(admission.enter(twin(4), now), Err(Refusal::Running(3)));
        admission.leave(twin(2));
        admission.enter(twin(4), now).unwrap();
    }

    #[test]
    fn permits_come_back_with_time() {
        let mut now = Instant::now();
        let limits = Limits { rate_per_second: 2.0, burst: 3, ..Limits::default() };
        let mut admission = Admission::new(limits);
        let mut ask = |now| {
            let entered = admission.enter(twin(1), now);
            if entered.is_ok() {
                admission.leave(twin(1));
            }
            entered
        };
        for _ in 0..3 {
            ask(now).unwrap();
        }
        assert_eq!(ask(now), Err(Refusal::Rate(2.0)));
        now += Duration::from_millis(500);
        ask(now).unwrap();
        assert_eq!(ask(now), Err(Refusal::Rate(2.0)));
        // Never more than the burst.
        now += Duration::from_secs(3600);
        for _ in 0..3 {
            ask(now).unwrap();
        }
        assert_eq!(ask(now), Err(Refusal::Rate(2.0)));
    }

    #[test]
    fn who_rests_is_forgotten() {
        let now = Instant::now();
        let mut admission = Admission::new(Limits { running: u32::MAX, ..Limits::default() });
        let count = u32::try_from(TWIN_COUNT_MAX).unwrap();
        for number in 1..=count {
            admission.enter(twin(number), now).unwrap();
            admission.leave(twin(number));
        }
        assert_eq!(admission.enter(twin(count + 1), now), Err(Refusal::Twins));
        let later = now + Duration::from_secs(1);
        admission.enter(twin(count + 1), later).unwrap();
        assert_eq!(admission.twins.len(), 1);
    }
}
