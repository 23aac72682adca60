//! How much a guest may take from the host: token buckets for bytes and for operations.
//!
//! A bucket holds up to `size` tokens and fills from empty to full in `refill_time`, evenly. An
//! operation takes one token from the bucket of operations, and one a byte from the bucket of
//! bytes. `burst` tokens come on top once, at the start: a guest that boots is not one that lives
//! off its neighbours.
//!
//! An operation passes when every bucket has a token, and then takes all that it costs, even if
//! that leaves a debt for its successors to wait for. Thus no operation is too big to ever pass,
//! none is half paid, and what passes in a time `t` is at most
//! `burst + size + size × t / refill_time` and one operation.
//!
//! All queues of a device share one limiter, and the API changes its limits while they run. It
//! reads no clock and waits for nobody: [`RateLimiter::admit`] is told what time it is, and a unit
//! that is refused is told when to come again, which is what it answers when asked for its
//! deadline. That moment is late enough for several operations to pass at once, where the bucket
//! is deep enough for that: waking a thread for each would cost more than the operation.
//!
//! Levels are counted in tokens times nanoseconds of the refill time, as integers: nothing is
//! rounded, so nothing drifts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one bucket grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    size: u64,
    refill_ns: u64,
    burst: u64,
}

/// The limits of one device, or of one direction of it. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Payload bytes.
    pub bytes: Option<Bucket>,
    /// Operations, whatever their size.
    pub operations: Option<Bucket>,
}

/// Why a bucket makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateLimitError {
    /// It would never let anything pass.
    #[error("a rate limit of 0 tokens lets nothing pass")]
    Empty,
    /// More tokens than the arithmetic has room for.
    #[error("a rate limit of {size} tokens is more than {}", Bucket::SIZE_MAX)]
    Size {
        /// What was asked for.
        size: u64,
    },
    /// Refills in no time, or in too long a time.
    #[error("a refill time of {0:?} is not between 1 ms and 24 h")]
    RefillTime(Duration),
}

impl Bucket {
    /// The most tokens that a bucket may hold.
    pub const SIZE_MAX: u64 = 1 << 62;
    /// The shortest time in which one may fill.
    pub const REFILL_TIME_MIN: Duration = Duration::from_millis(1);
    /// The longest time in which one may fill.
    pub const REFILL_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

    /// A bucket of `size` tokens that fills in `refill_time`, with `burst` tokens on top once.
    ///
    /// # Errors
    /// When it would let nothing pass, or the numbers are out of range.
    pub fn new(size: u64, refill_time: Duration, burst: u64) -> Result<Self, RateLimitError> {
        if size == 0 {
            return Err(RateLimitError::Empty);
        }
        if size > Self::SIZE_MAX {
            return Err(RateLimitError::Size { size });
        }
        let in_range = (Self::REFILL_TIME_MIN..=Self::REFILL_TIME_MAX).contains(&refill_time);
        let refill_ns = u64::try_from(refill_time.as_nanos()).ok().filter(|_| in_range);
        let refill_ns = refill_ns.ok_or(RateLimitError::RefillTime(refill_time))?;
        Ok(Self { size, refill_ns, burst })
    }
}

/// Admits operations within its limits. Clones are the same limiter.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Whether there is any limit, so that those without one pay for no lock and no clock.
    is_limited: AtomicBool,
    levels: Mutex<Levels>,
}

#[derive(Debug)]
struct Levels {
    bytes: Option<Level>,
    operations: Option<Level>,
}

impl RateLimiter {
    /// A limiter whose buckets are full at `now`.
    #[must_use]
    pub fn new(limits: &RateLimits, now: Instant) -> Self {
        let levels = Mutex::new(Levels::new(limits, now));
        Self(Arc::new(Shared { is_limited: AtomicBool::new(limits.is_any()), levels }))
    }

    /// Whether there is any limit: if not, there is no need to ask what time it is.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.0.is_limited.load(Ordering::Relaxed)
    }

    /// Admits one operation of `size` bytes, or says when to ask again.
    ///
    /// # Errors
    /// The moment to ask again, at most [`RETRY_MAX`] from `now`.
    pub fn admit(&self, now: Instant, size: u64) -> Result<(), Instant> {
        self.with(|levels| levels.admit(now, size)).map_err(|wait| now + wait)
    }

    /// Other limits from `now` on, with full buckets. Who waits learns of it within
    /// [`RETRY_MAX`].
    pub fn set_limits(&self, limits: &RateLimits, now: Instant) {
        self.with(|levels| *levels = Levels::new(limits, now));
        self.0.is_limited.store(limits.is_any(), Ordering::Relaxed);
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Levels) -> T) -> T {
        use_it(&mut self.0.levels.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The longest that a refused operation waits before it asks again, though its bucket may need
/// more: limits change.
pub const RETRY_MAX: Duration = Duration::from_millis(100);

/// The shortest that it waits, unless the bucket is full sooner.
const RETRY_MIN: Duration = Duration::from_millis(2);

impl RateLimits {
    const fn is_any(&self) -> bool {
        self.bytes.is_some() || self.operations.is_some()
    }
}

impl Levels {
    fn new(limits: &RateLimits, now: Instant) -> Self {
        let level = |bucket: Option<Bucket>| bucket.map(|bucket| Level::new(bucket, now));
        Self { bytes: level(limits.bytes), operations: level(limits.operations) }
    }

    fn admit(&mut self, now: Instant, size: u64) -> Result<(), Duration> {
        let levels = [(&mut self.bytes, size), (&mut self.operations, 1)];
        let mut levels = levels.map(|(level, cost)| level.as_mut().map(|level| (level, cost)));
        let mut wait = None;
        for (level, _) in levels.iter_mut().flatten() {
            wait = wait.max(level.refill(now));
        }
        if let Some(wait) = wait {
            return Err(wait.min(RETRY_MAX));
        }
        for (level, cost) in levels.iter_mut().flatten() {
            level.spend(*cost);
        }
        Ok(())
    }
}

/// How full one bucket is.
#[derive(Debug)]
struct Level {
    bucket: Bucket,
    /// Tokens times `refill_ns`; a debt if negative. Its size is at most 2^62 × 2^47, a cost at
    /// most 2^64 × 2^47: within `i128` either way.
    scaled: i128,
    /// What is left of the burst, in tokens.
    burst: u64,
    refilled: Instant,
}

impl Level {
    fn new(bucket: Bucket, now: Instant) -> Self {
        let scaled = i128::from(bucket.size) * i128::from(bucket.refill_ns);
        Self { bucket, scaled, burst: bucket.burst, refilled: now }
    }

    /// Brings it to `now`, and says how long to wait if it then has no token.
    fn refill(&mut self, now: Instant) -> Option<Duration> {
        let (size, token) = (i128::from(self.bucket.size), i128::from(self.bucket.refill_ns));
        let full = size * token;
        let elapsed = now.saturating_duration_since(self.refilled).as_nanos();
        let elapsed = i128::try_from(elapsed).unwrap_or(i128::MAX);
        self.scaled = self.scaled.saturating_add(elapsed.saturating_mul(size)).min(full);
        self.refilled = self.refilled.max(now);
        if self.burst > 0 || self.scaled >= token {
            return None;
        }
        let until = |level: i128| nanoseconds((level - self.scaled + size - 1) / size);
        Some(until(token).max(RETRY_MIN.min(until(full))))
    }

    fn spend(&mut self, cost: u64) {
        let from_burst = cost.min(self.burst);
        self.burst -= from_burst;
        self.scaled -= i128::from(cost - from_burst) * i128::from(self.bucket.refill_ns);
    }
}

fn nanoseconds(count: i128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter(bytes: Option<Bucket>, operations: Option<Bucket>, now: Instant) -> RateLimiter {
        RateLimiter::new(&RateLimits { bytes, operations }, now)
    }

    #[test]
    fn buckets_out_of_range_are_refused() {
        assert_eq!(Bucket::new(0, SECOND, 5), Err(RateLimitError::Empty));
        assert_eq!(Bucket::new(u64::MAX, SECOND, 0), Err(RateLimitError::Size { size: u64::MAX }));
        for time in [Duration::ZERO, Duration::from_micros(999), SECOND * 24 * 3601, Duration::MAX]
        {
            assert_eq!(Bucket::new(1, time, 0), Err(RateLimitError::RefillTime(time)));
        }
    }

    #[test]
    fn what_has_no_limit_passes() {
        let now = Instant::now();
        let limiter = limiter(None, None, now);
        assert!(!limiter.is_limited());
        assert_eq!(limiter.admit(now, u64::MAX), Ok(()));
    }

    #[test]
    fn a_bucket_grants_its_size_and_its_burst_then_its_rate() {
        let now = Instant::now();
        let limiter = limiter(None, Some(Bucket::new(10, SECOND, 5).unwrap()), now);
        for _ in 0..15 {
            assert_eq!(limiter.admit(now, 1), Ok(()));
        }
        let next = now + SECOND / 10;
        assert_eq!(limiter.admit(now, 1), Err(next));
        assert_eq!(
            limiter.admit(next - Duration::from_nanos(1), 1),
            Err(next + RETRY_MIN - Duration::from_nanos(1))
        );
        assert_eq!(limiter.admit(next, 1), Ok(()));
        assert!(limiter.admit(next, 1).is_err());
        // The burst comes once: a full bucket is its size.
        let later = now + SECOND * 60;
        assert_eq!((0..20).filter(|_| limiter.admit(later, 1).is_ok()).count(), 10);
    }

    #[test]
    fn an_operation_bigger_than_the_bucket_passes_and_leaves_a_debt() {
        let now = Instant::now();
        let limiter = limiter(Some(Bucket::new(1000, SECOND, 0).unwrap()), None, now);
        assert_eq!(limiter.admit(now, 5000), Ok(()));
        assert_eq!(limiter.admit(now, 1), Err(now + RETRY_MAX));
        assert!(limiter.admit(now + SECOND * 4, 1).is_err());
        assert_eq!(limiter.admit(now + SECOND * 4 + SECOND / 1000, 1), Ok(()));
    }

    #[test]
    fn an_operation_refused_by_one_bucket_takes_nothing_from_the_other() {
        let now = Instant::now();
        let bytes = Bucket::new(100, SECOND, 0).unwrap();
        let limiter = limiter(Some(bytes), Some(Bucket::new(2, SECOND, 0).unwrap()), now);
        assert_eq!(limiter.admit(now, 100), Ok(()));
        for _ in 0..10 {
            assert!(limiter.admit(now, 1).is_err());
        }
        assert_eq!(limiter.admit(now + SECOND / 100, 0), Ok(()));
    }

    #[test]
    fn time_that_goes_backwards_and_numbers_at_their_limits_do_no_harm() {
        let now = Instant::now() + SECOND * 100;
        let bucket = Bucket::new(Bucket::SIZE_MAX, Bucket::REFILL_TIME_MAX, u64::MAX).unwrap();
        let limiter = limiter(Some(bucket), Some(bucket), now);
        assert_eq!(limiter.admit(now, u64::MAX), Ok(()));
        assert_eq!(limiter.admit(now - SECOND, u64::MAX), Ok(()));
        assert_eq!(limiter.admit(now - SECOND, u64::MAX), Err(now - SECOND + RETRY_MAX));
        assert!(limiter.admit(now + SECOND * (1 << 30), 1).is_ok());
    }

    #[test]
    fn new_limits_hold_at_once() {
        let now = Instant::now();
        let limiter = limiter(None, Some(Bucket::new(1, SECOND * 3600, 0).unwrap()), now);
        let same = limiter.clone();
        assert_eq!(limiter.admit(now, 1), Ok(()));
        assert_eq!(same.admit(now, 1), Err(now + RETRY_MAX));
        same.set_limits(&RateLimits::default(), now);
        assert!(!limiter.is_limited());
        assert_eq!(limiter.admit(now, 1), Ok(()));
    }

    #[derive(Clone, Copy, Debug)]
    struct Grant {
        at_ns: u64,
        cost: u64,
    }

    /// What the module promises: no window of time sees more than the bucket allows.
    fn check_windows(bucket: Bucket, grants: &[Grant]) {
        for (i, from) in grants.iter().enumerate() {
            let mut sum = 0_u128;
            for to in &grants[i..] {
                // One operation may exceed what is there, so the last is not counted.
                let window = u128::from(to.at_ns - from.at_ns);
                let scale = u128::from(bucket.refill_ns);
                let allowed = u128::from(bucket.size + bucket.burst) * scale
                    + window * u128::from(bucket.size);
                prop_assert_within(sum * scale, allowed);
                sum += u128::from(to.cost);
            }
        }
    }

    fn prop_assert_within(granted: u128, allowed: u128) {
        assert!(granted <= allowed, "granted {granted}, allowed {allowed}");
    }

    proptest! {
        #[test]
        fn no_window_of_time_sees_more_than_was_granted(
            size in 1_u64..200, refill_ms in 1_u64..2000, burst in 0_u64..100,
            steps in prop::collection::vec((0_u64..50_000_000, 0_u64..300), 1..200),
        ) {
            let bucket = Bucket::new(size, Duration::from_millis(refill_ms), burst).unwrap();
            let start = Instant::now();
            let limiter = limiter(Some(bucket), None, start);
            let (mut at_ns, mut grants) = (0, Vec::new());
            for (pause, cost) in steps {
                at_ns += pause;
                if limiter.admit(start + Duration::from_nanos(at_ns), cost).is_ok() {
                    grants.push(Grant { at_ns, cost });
                }
            }
            check_windows(bucket, &grants);
        }

        /// Who comes when told to gets all that the bucket grants, and is never told to spin.
        #[test]
        fn a_patient_client_gets_the_full_rate(
            size in 1_u64..10_000, refill_ms in 1_u64..2000, cost in 1_u64..20_000,
        ) {
            let bucket = Bucket::new(size, Duration::from_millis(refill_ms), 0).unwrap();
            let start = Instant::now();
            let limiter = limiter(Some(bucket), None, start);
            let (mut now, mut granted, mut refusals) = (start, 0_u128, 0_u32);
            while now < start + SECOND * 2 && granted < 2_000_000 {
                match limiter.admit(now, cost) {
                    Ok(()) => granted += u128::from(cost),
                    Err(again) => {
                        let wait = again - now;
                        prop_assert!(wait > Duration::ZERO && wait <= RETRY_MAX, "{wait:?}");
                        now = again;
                        refusals += 1;
                    }
                }
            }
            let elapsed = (now - start).as_nanos();
            let due = elapsed * u128::from(size) / u128::from(bucket.refill_ns);
            prop_assert!(granted + u128::from(cost) >= due, "{granted} of {due}");
            // A wait is 2 ms, or as long as the bucket takes to fill, which is 1 ms at least, less
            // what a partial token had.
            prop_assert!(u128::from(refusals) <= elapsed / 500_000 + 2, "{refusals}");
        }
    }
}
