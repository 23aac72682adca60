//! A block device (virtio 1.3 §5.2) over any [`Storage`].
//!
//! The device half here negotiates; a `unit` for each queue moves data; a lane of the storage
//! does what is asked of the disk.
//!
//! ```text
//!   Block ──activate──► unit 0 ── queue 0        BlockHandle: resize, limits, counts
//!     │                  │  └──── lane ──┐         │
//!     │                 unit 1 … ─ lane ─┴─► Storage: a file, an encrypted volume
//!     └──────── shared: capacity, write cache, limits, counts ◄────┘
//! ```
//!
//! # What a request costs
//!
//! A kick is served to the end before the thread goes back to wait: all chains that are there are
//! popped and started, the lane gets them as one batch, and what comes back at once goes into the
//! used ring with at most one interrupt. Where the data is in the page cache, that is everything:
//! one wake-up, one system call for the batch, one interrupt. There is no copy between disk and
//! guest besides the kernel's own, no lock that two queues would fight for, and no allocation.
//!
//! # Order and durability
//!
//! Requests of a driver may be served in any order, and are. A write that has been answered is in
//! the host's page cache, or beyond it: it outlives this process, but not the host's power.
//!
//! - A *flush* is `fdatasync`, after all writes, discards and zeroes that this queue got before it
//!   have completed (`flush_order`). Writes of other queues are covered once they were answered.
//! - *Write back*, the default, is that. It is in force if the driver accepted
//!   `VIRTIO_BLK_F_FLUSH` and has not cleared `writeback` in the configuration space, which
//!   `VIRTIO_BLK_F_CONFIG_WCE` lets it do (§5.2.5.2).
//! - *Write through*, for drivers that cannot flush or do not want to: each write, discard and
//!   zeroing is followed by an `fdatasync` of its own before it is answered.
//!
//! There is no mode that ignores flushes.
//!
//! # When the host fails
//!
//! What a disk cannot do is answered with `VIRTIO_BLK_S_IOERR`, counted, and logged each time the
//! count has doubled, so that a guest that retries for ever does not fill the log. That includes a
//! file that was cut short: reads beyond its end fail rather than return zeroes.
//!
//! A unit that stops waits for its requests, but not for ever: if the host hangs for longer than
//! 10 s, it gives its queue back with these requests unanswered and says so. The kernel may
//! still write to their buffers, so memory and ring stay as they are until the process ends. A
//! guest that is resumed later waits for the lost requests until its own timeout.
//!
//! # What a guest can do
//!
//! It occupies one slot for each request that it has in flight, as many as its queue has
//! descriptors, and the lists of segments that go with them: a chain may have no more segments than
//! the queue has descriptors (§2.7.5.3.1). A kick serves a bounded number of requests before other
//! units on the thread have their turn. Limits on bytes and operations are one [`RateLimiter`] for
//! all queues.

mod config;
pub mod file;
mod flush_order;
mod request;
pub mod storage;
#[cfg(test)]
mod tests;
mod unit;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk as abi;

use self::request::{Rules, SERIAL_SIZE};
use self::storage::Storage;
use self::unit::BlockUnit;
use crate::memory::SharedMemory;
use crate::rate_limiter::{RateLimiter, RateLimits};
use crate::{Activation, ConfigSpace, Counter, Device, DeviceError, DeviceId, Queue, Unit};

/// A block device.
pub struct Block {
    config: ConfigSpace,
    queue_sizes: Vec<u16>,
    features: u64,
    shared: Arc<Shared>,
    /// Whether the driver accepted a write cache that it may switch; unknown until it is ready.
    has_switch: Option<bool>,
}

/// How a block device appears to its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// How many queues, 1 to [`Self::QUEUES_MAX`]: one for each vCPU is best.
    pub queues: u16,
    /// The size of each: a power of two from [`Self::QUEUE_SIZE_MIN`] to
    /// [`Self::QUEUE_SIZE_MAX`]. A request has at most two segments less than that.
    pub queue_size: u16,
    /// The serial number, of 20 bytes at most, by which a guest finds the disk.
    pub serial: String,
    /// Limits for all queues together.
    pub limits: RateLimits,
}

/// Why a block device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Too many queues, or none.
    #[error("{0} queues are not between 1 and {max}", max = BlockOptions::QUEUES_MAX)]
    Queues(u16),
    /// A queue of a size that cannot be.
    #[error(
        "a queue size of {0} is no power of two between {min} and {max}",
        min = BlockOptions::QUEUE_SIZE_MIN,
        max = BlockOptions::QUEUE_SIZE_MAX
    )]
    QueueSize(u16),
    /// A serial number that does not fit.
    #[error("the serial number {0:?} is longer than {SERIAL_SIZE} bytes")]
    Serial(String),
    /// The size of the disk is unknown.
    #[error("cannot tell the size of the disk")]
    Size(#[source] io::Error),
}

/// Reaches a block device while its units run. Clones reach the same device.
#[derive(Clone)]
pub struct BlockHandle {
    config: ConfigSpace,
    shared: Arc<Shared>,
}

/// What the device, its units and its handles share.
struct Shared {
    storage: Arc<dyn Storage>,
    serial: [u8; SERIAL_SIZE],
    /// In bytes; a multiple of the block size.
    capacity: AtomicU64,
    /// Keeps resizes apart.
    resize: Mutex<()>,
    is_writeback: AtomicBool,
    limiter: RateLimiter,
    counts: Counts,
    stop_limit: Duration,
}

/// What happened, for the operator.
#[derive(Default)]
struct Counts {
    reads: Counter,
    read_bytes: Counter,
    writes: Counter,
    written_bytes: Counter,
    flushes: Counter,
    discards: Counter,
    zeroings: Counter,
    errors: Counter,
    throttled: Counter,
}

/// How long a unit that stops waits for the host before it cancels what is in flight.
const STOP_LIMIT: Duration = Duration::from_secs(10);

impl BlockOptions {
    /// The most queues of a device.
    pub const QUEUES_MAX: u16 = 16;
    /// The smallest queue that holds a request: header, data, status.
    pub const QUEUE_SIZE_MIN: u16 = 4;
    /// The largest queue.
    pub const QUEUE_SIZE_MAX: u16 = 1024;
}

impl Default for BlockOptions {
    /// One queue of 256, no serial number, no limits.
    fn default() -> Self {
        let limits = RateLimits::default();
        Self { queues: 1, queue_size: 256, serial: String::new(), limits }
    }
}

impl Block {
    /// A device that serves `storage`.
    ///
    /// # Errors
    /// When the options make no sense, or the size of the disk is unknown.
    pub fn new(storage: Arc<dyn Storage>, options: &BlockOptions) -> Result<Self, BlockError> {
        let BlockOptions { queues, queue_size, .. } = *options;
        if !(1..=BlockOptions::QUEUES_MAX).contains(&queues) {
            return Err(BlockError::Queues(queues));
        }
        let sizes = BlockOptions::QUEUE_SIZE_MIN..=BlockOptions::QUEUE_SIZE_MAX;
        if !sizes.contains(&queue_size) || !queue_size.is_power_of_two() {
            return Err(BlockError::QueueSize(queue_size));
        }
        let mut serial = [0; SERIAL_SIZE];
        let bytes = options.serial.as_bytes();
        let field = serial.get_mut(..bytes.len());
        field.ok_or_else(|| BlockError::Serial(options.serial.clone()))?.copy_from_slice(bytes);
        let traits = storage.traits();
        let capacity = capacity(&*storage).map_err(BlockError::Size)?;
        let shared = Shared {
            storage,
            serial,
            capacity: AtomicU64::new(capacity),
            resize: Mutex::default(),
            is_writeback: AtomicBool::new(true),
            limiter: RateLimiter::new(&options.limits, Instant::now()),
            counts: Counts::default(),
            stop_limit: STOP_LIMIT,
        };
        Ok(Self {
            config: config::space(&traits, capacity, queues, queue_size),
            queue_sizes: vec![queue_size; usize::from(queues)],
            features: config::features(&traits, queues),
            shared: Arc::new(shared),
            has_switch: None,
        })
    }

    /// Makes what its units will need of the host, so that they can be started by threads that may
    /// not ask for it. `memory` is the one that it will be activated with.
    ///
    /// # Errors
    /// What the host said.
    pub fn prepare(&self, memory: &SharedMemory) -> io::Result<()> {
        let queue_count = u16::try_from(self.queue_sizes.len()).unwrap_or(BlockOptions::QUEUES_MAX);
        let depth = self.queue_sizes.first().copied().unwrap_or(BlockOptions::QUEUE_SIZE_MAX);
        self.shared.storage.prepare(memory, queue_count, depth)
    }

    /// A way to reach the device while it works.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        BlockHandle { config: self.config.clone(), shared: Arc::clone(&self.shared) }
    }

    fn unit(&self, queue: Queue, activation: &Activation) -> Result<Box<dyn Unit>, DeviceError> {
        let lane = self.shared.storage.open_lane(&activation.memory, queue.size());
        let lane = lane.map_err(|source| DeviceError::Host {
            what: "cannot set up access to the disk".into(),
            source,
        })?;
        let traits = self.shared.storage.traits();
        let rules = Rules {
            capacity: 0,
            block_size: traits.block_size,
            is_read_only: traits.is_read_only,
            has_discard: activation.has_feature(abi::VIRTIO_BLK_F_DISCARD),
            has_write_zeroes: activation.has_feature(abi::VIRTIO_BLK_F_WRITE_ZEROES),
        };
        Ok(Box::new(BlockUnit::new(queue, lane, rules, Arc::clone(&self.shared))))
    }
}

impl Device for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // §5.2.5: the one field that a driver may write, if it accepted it.
        if let (config::WRITEBACK, [value], None | Some(true)) = (offset, data, self.has_switch) {
            self.shared.is_writeback.store(*value != 0, Ordering::Relaxed);
            config::set_writeback(&self.config, *value != 0);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        // §5.2.5.2: what cannot be flushed is written through.
        let can_flush = activation.has_feature(abi::VIRTIO_BLK_F_FLUSH);
        let has_switch = can_flush && activation.has_feature(abi::VIRTIO_BLK_F_CONFIG_WCE);
        let is_writeback = can_flush && (!has_switch || config::is_writeback(&self.config));
        self.has_switch = Some(has_switch);
        self.shared.is_writeback.store(is_writeback, Ordering::Relaxed);
        config::set_writeback(&self.config, is_writeback);
        let queues: Vec<_> = activation.queues.iter_mut().filter_map(Option::take).collect();
        if queues.is_empty() {
            return Err(DeviceError::QueueMissing { index: 0 });
        }
        queues.into_iter().map(|queue| self.unit(queue, &activation)).collect()
    }

    fn reset(&mut self) {
        self.has_switch = None;
        config::set_writeback(&self.config, true);
    }

    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        let saved = Saved {
            capacity: self.shared.capacity.load(Ordering::Relaxed),
            is_writeback: config::is_writeback(&self.config),
        };
        serde_json::to_value(saved).map_err(|error| DeviceError::State(error.to_string()))
    }

    fn restore_config(&mut self, seen: &[u8]) -> Result<(), DeviceError> {
        self.config.check_seen(seen, &config::FIXED)
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let saved: Saved = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("a block device's state: {error}")))?;
        let found = self.shared.capacity.load(Ordering::Relaxed);
        if found < saved.capacity {
            let Saved { capacity, .. } = saved;
            let why = format!("the disk has {found} bytes, where the guest knows {capacity}");
            return Err(DeviceError::State(why));
        }
        config::set_writeback(&self.config, saved.is_writeback);
        config::set_capacity(&self.config, found);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        self.shared.counts.list()
    }
}

impl BlockHandle {
    /// Looks how big the disk is now, and tells the driver if that has changed. Returns the size
    /// in bytes. Requests in flight beyond the end of a disk that has shrunk are errors.
    ///
    /// # Errors
    /// When the host cannot tell.
    pub fn resize(&self) -> io::Result<u64> {
        let _guard = self.shared.resize.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = capacity(&*self.shared.storage)?;
        if self.shared.capacity.swap(capacity, Ordering::Relaxed) != capacity {
            config::set_capacity(&self.config, capacity);
        }
        Ok(capacity)
    }

    /// Other limits from now on.
    pub fn set_limits(&self, limits: &RateLimits) {
        self.shared.limiter.set_limits(limits, Instant::now());
    }

    /// Its size in bytes, as the driver was told.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.shared.capacity.load(Ordering::Relaxed)
    }
}

/// What a snapshot keeps.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    capacity: u64,
    is_writeback: bool,
}

impl Counts {
    fn list(&self) -> Vec<(&'static str, Counter)> {
        let counts = [
            ("reads", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("writes", &self.writes),
            ("written_bytes", &self.written_bytes),
            ("flushes", &self.flushes),
            ("discards", &self.discards),
            ("zeroings", &self.zeroings),
            ("errors", &self.errors),
            ("throttled", &self.throttled),
        ];
        counts.map(|(name, count)| (name, count.clone())).into()
    }
}

/// As much of the disk as consists of whole blocks.
fn capacity(storage: &dyn Storage) -> io::Result<u64> {
    let block_size = u64::from(storage.traits().block_size);
    Ok(storage.size()? / block_size * block_size)
}
