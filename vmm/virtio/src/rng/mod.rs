//! Entropy source (virtio 1.3 §5.4): fills buffers with the host kernel's random bytes.
//!
//! One queue, no configuration. What a guest asks for is bounded twice, so that one that asks
//! without end costs the host a known share of one thread: [`CHAIN_SIZE_MAX`] bytes a buffer, which
//! the specification allows to be less than was asked, and [`WAKE_SIZE_MAX`] bytes a wake-up, after
//! which the queue rests for [`REST`].

#[cfg(test)]
mod tests;
mod unit;

use std::time::Duration;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::{Activation, ConfigSpace, Counter, Device, DeviceError, DeviceId, Unit};
use unit::RngUnit;

/// Bytes that one buffer gets at most.
pub const CHAIN_SIZE_MAX: u32 = 4096;
/// Bytes in a row, before a rest.
pub const WAKE_SIZE_MAX: u32 = 64 * 1024;
/// The rest: with the bytes before it, 64 MiB a second and no more.
pub const REST: Duration = Duration::from_millis(1);

/// An entropy source.
#[derive(Debug)]
pub struct Rng {
    config: ConfigSpace,
    bytes: Counter,
}

impl Rng {
    const QUEUE_SIZES: [u16; 1] = [64];

    /// An entropy source that draws from `getrandom`.
    #[must_use]
    pub fn new() -> Self {
        Self { config: ConfigSpace::new(&[]), bytes: Counter::default() }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Rng {
    fn id(&self) -> DeviceId {
        DeviceId::Rng
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &Self::QUEUE_SIZES
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        let queue = activation.take_queue(0)?;
        Ok(vec![Box::new(RngUnit::new(queue, self.bytes.clone()))])
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        vec![("bytes", self.bytes.clone())]
    }
}
