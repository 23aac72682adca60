//! The file system device (virtio 1.3 §5.11): a FUSE server on virtqueues.
//!
//! The guest is the FUSE client, and mounts the device by its tag. What is served is a
//! [`GuestFileSystem`]; there are three:
//!
//! ```text
//!   guest ── queues ──► unit ──► flist_view::fuse::Server ─┬─► FlistView       an image, read-only
//!                                                          ├─► HostDirectory   [`host`]
//!                                                          └─► Overlay         [`overlay`]: an image
//!                                                                  below, a directory above
//! ```
//!
//! It is all in this process: guest memory stays private (and made of huge pages), and a read costs one
//! system call, from the page cache into the guest's buffers. There are no handles (see
//! [`flist_view::filesystem`]); what the host must remember of a guest is the inodes that it has looked
//! up, in one bounded table.
//!
//! A request is served to its end before the next one of its queue. Reading a block that the node does
//! not have yet waits for the network, so a machine gives each unit of this device a thread of its own.
//!
//! DAX and notifications are not offered: `VIRTIO_FS_F_NOTIFICATION` has no driver in Linux.

mod buffers;
pub mod flist;
pub mod host;
pub mod overlay;
#[cfg(test)]
mod tests;
mod unit;
mod vectored;

use std::sync::Arc;

use flist_view::cache_client::CacheClient;
use flist_view::filesystem::FileSystem;
use flist_view::fuse::{REPLY_BODY_SIZE_MAX, Server};
use flist_view::view::FlistView;
use serde_json::Value;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::{Activation, ConfigSpace, Counter, Device, DeviceError, DeviceId, Unit};

use self::unit::FsUnit;

/// Longest tag, in bytes (virtio 1.3 §5.11.4).
pub const TAG_SIZE_MAX: usize = 36;
/// Most request queues of one device.
pub const QUEUE_COUNT_MAX: u16 = 64;
/// Linux cuts the 256 pages of a request to what a queue holds without indirect descriptors.
const QUEUE_SIZE: u16 = 1024;
/// Of the queue for `FORGET` and `INTERRUPT`.
const PRIORITY_QUEUE_SIZE: u16 = 128;

/// A file system that can be served to a guest, and saved with it.
pub trait GuestFileSystem: FileSystem {
    /// What must be known to go on serving the same guest in another process.
    ///
    /// # Errors
    /// When the guest uses something that cannot be found again; the message says what.
    fn save(&self) -> Result<Value, DeviceError> {
        Ok(Value::Null)
    }

    /// Takes what [`save`](Self::save) gave. `state` may be anything.
    ///
    /// # Errors
    /// When it is not what `save` gives, or does not fit what is there.
    fn restore(&self, state: Value) -> Result<(), DeviceError> {
        let _ = state;
        Ok(())
    }
}

/// Nobody has to remember anything: inode numbers are places in the image's index, if it is the same
/// image.
impl GuestFileSystem for FlistView {
    fn save(&self) -> Result<Value, DeviceError> {
        Ok(Value::String(image_name(self)))
    }

    fn restore(&self, state: Value) -> Result<(), DeviceError> {
        check_image(self, state.as_str().unwrap_or_default())
    }
}

/// The hash of an image, for states.
pub(crate) fn image_name(view: &FlistView) -> String {
    view.index().image_hash().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses a state of another image than this one.
pub(crate) fn check_image(view: &FlistView, name: &str) -> Result<(), DeviceError> {
    let own = image_name(view);
    if name == own {
        return Ok(());
    }
    Err(DeviceError::State(format!("the guest used image {name:?}, this is {own:?}")))
}

/// The device.
pub struct Fs {
    config: ConfigSpace,
    queue_sizes: Vec<u16>,
    server: Arc<Server<dyn GuestFileSystem>>,
    counters: Counters,
    cache: Option<Arc<CacheClient>>,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is empty, too long, or has a NUL in it.
    #[error("tag {tag:?} has {} bytes: 1 to {TAG_SIZE_MAX} are possible, without NUL", tag.len())]
    Tag {
        /// The tag.
        tag: String,
    },
    /// No or too many request queues.
    #[error("{count} request queues: 1 to {QUEUE_COUNT_MAX} are possible")]
    QueueCount {
        /// How many.
        count: u16,
    },
}

/// What the operator sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    requests: Counter,
    read_bytes: Counter,
    written_bytes: Counter,
}

impl Fs {
    /// A device that serves `file_system` under `tag`, on `queue_count` request queues.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn new(
        tag: &str,
        queue_count: u16,
        file_system: impl GuestFileSystem + 'static,
    ) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_SIZE_MAX || tag.contains('\0') {
            return Err(FsError::Tag { tag: tag.to_owned() });
        }
        if !(1..=QUEUE_COUNT_MAX).contains(&queue_count) {
            return Err(FsError::QueueCount { count: queue_count });
        }
        // tag, num_request_queues
        let mut config = [0; TAG_SIZE_MAX + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_SIZE_MAX..].copy_from_slice(&u32::from(queue_count).to_le_bytes());
        let mut queue_sizes = vec![PRIORITY_QUEUE_SIZE];
        queue_sizes.extend((0..queue_count).map(|_| QUEUE_SIZE));
        Ok(Self {
            config: ConfigSpace::new(&config),
            queue_sizes,
            server: Arc::new(Server::new(file_system, REPLY_BODY_SIZE_MAX)),
            counters: Counters::default(),
            cache: None,
        })
    }

    /// Listens to the cache process while the guest asks for nothing, so that segments which left
    /// the cache are let go of.
    #[must_use]
    pub fn with_cache(mut self, cache: Arc<CacheClient>) -> Self {
        self.cache = Some(cache);
        self
    }
}

impl Device for Fs {
    fn id(&self) -> DeviceId {
        DeviceId::Fs
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Unit>>, DeviceError> {
        let first = vec![activation.take_queue(0)?, activation.take_queue(1)?];
        // A driver uses as many of the others as it likes.
        let others = activation.queues.into_iter().flatten().map(|queue| vec![queue]);
        let mut cache = self.cache.clone();
        let units = std::iter::once(first).chain(others).map(|queues| {
            let (server, counters) = (Arc::clone(&self.server), self.counters.clone());
            Box::new(FsUnit::new(server, queues, counters, cache.take())) as Box<dyn Unit>
        });
        Ok(units.collect())
    }

    fn reset(&mut self) {
        self.server.file_system().forget_all();
    }

    fn save(&self) -> Result<Value, DeviceError> {
        self.server.file_system().save()
    }

    fn restore(&mut self, state: Value) -> Result<(), DeviceError> {
        self.server.file_system().restore(state)
    }

    fn counters(&self) -> Vec<(&'static str, Counter)> {
        let Counters { requests, read_bytes, written_bytes } = self.counters.clone();
        vec![("requests", requests), ("read_bytes", read_bytes), ("written_bytes", written_bytes)]
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("config", &self.config).finish_non_exhaustive()
    }
}
