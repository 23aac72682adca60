//! Memory balloon (virtio 1.3 §5.5): takes memory that a guest does without, for the host to use.
//!
//! ```text
//!   set_target ──► num_pages ──► driver ── inflate ──► pages are discarded
//!   actual     ◄── actual    ◄──        ── deflate ──► they come back, as zeros, when touched
//!   statistics ◄───────────────────────── statistics   asked for at an interval
//!                                       ── reporting ─► free pages, discarded as they become free
//! ```
//!
//! Free page reporting needs no target and no cooperation beyond the driver's: what a guest frees
//! goes back to the host by itself. What may be discarded, and how, is told in `discard`. Page
//! frames outside guest memory stop the device.

mod discard;
#[cfg(test)]
mod tests;
mod unit;
mod wire;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{Activation, Chain, ConfigSpace, Counter, Device, DeviceError, DeviceId, Unit};
use discard::Discarder;
use unit::{BalloonUnit, StatisticsQueue};

/// The shortest interval between two questions for statistics.
pub const STATISTICS_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A memory balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    options: BalloonOptions,
}

/// How a balloon is to be.
#[derive(Clone, Debug)]
pub struct BalloonOptions {
    /// Guest memory in all, in bytes: the balloon cannot become larger.
    pub memory_size: u64,
    /// Whether the guest may take memory back when it has none left.
    pub deflates_on_oom: bool,
    /// Whether the guest reports pages as they become free.
    pub has_reporting: bool,
    /// Guest memory that is never discarded, because a file is mapped there privately.
    pub excluded: Vec<Range<GuestAddress>>,
}

/// Reaches a balloon from other threads. Clones reach the same balloon.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

/// A target that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a balloon of {wanted} bytes, in a machine of {memory_size}")]
pub struct TargetError {
    wanted: u64,
    memory_size: u64,
}

/// What a guest says of its memory.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    values: [Option<u64>; wire::STAT_NAMES.len()],
    received: Option<Instant>,
}

impl Statistics {
    /// Names and values of what the guest told; names end in their unit.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let named = wire::STAT_NAMES.into_iter().zip(&self.values);
        named.filter_map(|(name, value)| Some((name, (*value)?)))
    }

    /// When they came; `None` if none ever did.
    #[must_use]
    pub const fn received(&self) -> Option<Instant> {
        self.received
    }
}

struct Shared {
    config: ConfigSpace,
    memory_size: u64,
    /// Tells the unit that the interval has changed.
    wake: EventFd,
    /// 0 for no questions.
    interval_ms: AtomicU64,
    statistics: Mutex<Statistics>,
    inflated: Counter,
    deflated: Counter,
    reported: Counter,
    discarded: Counter,
    failed: Counter,
}

impl BalloonHandle {
    /// Asks the guest to leave `bytes` to the balloon, rounded down to pages. It takes its time,
    /// and may refuse: see [`actual`](Self::actual).
    ///
    /// # Errors
    /// [`TargetError`] when that is more than the guest has.
    pub fn set_target(&self, bytes: u64) -> Result<(), TargetError> {
        let memory_size = self.0.memory_size;
        let too_large = TargetError { wanted: bytes, memory_size };
        let pages = u32::try_from(bytes / wire::PAGE_SIZE).map_err(|_| too_large)?;
        if bytes > memory_size {
            return Err(too_large);
        }
        self.0
            .config
            .update(|config| config[wire::NUM_PAGES].copy_from_slice(&pages.to_le_bytes()));
        Ok(())
    }

    /// What the guest was asked to leave, in bytes.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.0.field(wire::NUM_PAGES)) * wire::PAGE_SIZE
    }

    /// What the balloon holds according to the guest, in bytes.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.field(wire::ACTUAL)) * wire::PAGE_SIZE
    }

    /// How often the guest is asked for statistics, [`STATISTICS_INTERVAL_MIN`] at least; `None`
    /// for never.
    pub fn set_statistics_interval(&self, interval: Option<Duration>) {
        let interval = interval.map(|interval| interval.max(STATISTICS_INTERVAL_MIN).as_millis());
        let interval_ms = interval.map_or(0, |ms| u64::try_from(ms).unwrap_or(u64::MAX));
        self.0.interval_ms.store(interval_ms.min(INTERVAL_MS_MAX), Ordering::Relaxed);
        // Fails only when the count is full, and then the unit has been woken.
        let _ = self.0.wake.write(1);
    }

    /// The statistics that came last.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.0.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A year: longer intervals could not be added to the time.
const INTERVAL_MS_MAX: u64 = 365 * 24 * 3600 * 1000;

impl Shared {
    fn field(&self, range: Range<usize>) -> u32 {
        let mut bytes = [0; 4];
        self.config.read(range.start as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn poison(&self) -> u32 {
        self.field(wire::POISON)
    }

    fn interval(&self) -> Option<Duration> {
        let interval_ms = self.interval_ms.load(Ordering::Relaxed);
        (interval_ms > 0).then(|| Duration::from_millis(interval_ms))
    }

    fn set_statistics(&self, statistics: Statistics) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }
}

impl Balloon {
    // Inflate, deflate, statistics, free page hints (not offered), reporting.
    const QUEUE_SIZES: [u16; 5] = [128; 5];

    /// An empty balloon.
    ///
    /// # Errors
    /// [`DeviceError::Host`] when there are no descriptors left.
    pub fn new(options: BalloonOptions) -> Result<Self, DeviceError> {
        let wake = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| DeviceError::Host { what: "make an eventfd".to_owned(), source })?;
        let shared = Shared {
            config: ConfigSpace::new(&[0; wire::CONFIG_SIZE]),
            memory_size: options.memory_size,
            wake,
            interval_ms: AtomicU64::new(0),
            statistics: Mutex::default(),
            inflated: Counter::default(),
            deflated: Counter::default(),
            reported: Counter::default(),
            discarded: Counter::default(),
            failed: Counter::default(),
        };
        Ok(Self { shared: Arc::new(shared), options })
    }

    /// Reaches this balloon from other threads.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }
}

/// Where the driver has the reporting queue. The specification gives each queue a number of its
/// own (§5.5.2), but many a Linux closes the gaps that features leave which it did not accept.
fn reporting_index(activation: &Activation) -> u16 {
    let has_own = activation.queues.get(4).is_some_and(Option::is_some);
    let closed_up = if activation.has_feature(wire::F_STATS_VQ) { 3 } else { 2 };
    if has_own { 4 } else { closed_up }
}

impl Device for Balloon {
    fn id(&self) -> DeviceId {
        DeviceId::Balloon
    }

    fn features(&self) -> u64 {
        let bits = [
            (true, wire::F_STATS_VQ),
            (self.options.deflates_on_oom, wire::F_DEFLATE_ON_OOM),
            // Without it a guest whose freed pages have known contents could not report them.
            (self.options.has_reporting, wire::F_PAGE_POISON),
            (self.options.has_reporting, wire::F_REPORTING),
            (true, VIRTIO_RING_F_INDIRECT_DESC),
            (true, VIRTIO_RING_F_EVENT_IDX),
        ];
        bits.into_iter().filter(|(is_on, _)| *is_on).fold(0, |all, (_, bit)| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &Self::QUEUE_SIZES
    }

    fn config(&self) -> &ConfigSpace {
        &self.shared.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let fields = [wire::ACTUAL, wire::POISON];
        let is_field = |field: &Range<usize>| offset == field.start as u64 && data.len() == 4;
        if fields.iter().any(is_field) {
            self.shared.config.write_from_driver(offset, data);
        }
    }

    /// All of it is the guest's: what it was asked for, what it gave, what it fills pages with.
    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        let config = &self.shared.config;
        config.check_seen(seen, &[])?;
        let field = |range: Range<usize>| seen.get(range).unwrap_or_default();
        let pages = field(wire::NUM_PAGES).first_chunk().copied().map_or(0, u32::from_le_bytes);
        let (wanted, memory_size) = (u64::from(pages) * wire::PAGE_SIZE, self.options.memory_size);
        if wanted > memory_size {
            return Err(DeviceError::State(TargetError { wanted, memory_size }.to_string()));
        }
        for range in [wire::NUM_PAGES, wire::ACTUAL, wire::POISON] {
            config.write_from_driver(range.start as u64, field(range));
        }
        Ok(())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        let (inflate, deflate) = (activation.take_queue(0)?, activation.take_queue(1)?);
        let reporting_index = reporting_index(&activation);
        let mut optional = |bit, index| {
            activation.has_feature(bit).then(|| activation.take_queue(index)).transpose()
        };
        let statistics = optional(wire::F_STATS_VQ, 2)?.map(StatisticsQueue::new);
        let reporting = optional(wire::F_REPORTING, reporting_index)?;
        Ok(vec![Box::new(BalloonUnit {
            shared: Arc::clone(&self.shared),
            discarder: Discarder::new(&activation.memory, &self.options.excluded),
            inflate,
            deflate,
            statistics,
            reporting,
            resume: None,
            chain: Chain::new(),
            frames: Vec::new(),
        })])
    }

    fn reset(&mut self) {
        // A new driver starts with an empty balloon and says itself what it fills pages with.
        for field in [wire::ACTUAL, wire::POISON] {
            self.shared.config.write_from_driver(field.start as u64, &[0; 4]);
        }
        self.shared.set_statistics(Statistics::default());
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        vec![
            ("inflated_pages", self.shared.inflated.clone()),
            ("deflated_pages", self.shared.deflated.clone()),
            ("reported_bytes", self.shared.reported.clone()),
            ("discarded_bytes", self.shared.discarded.clone()),
            ("discard_failed_bytes", self.shared.failed.clone()),
        ]
    }
}
