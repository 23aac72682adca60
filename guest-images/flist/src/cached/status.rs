//! What the daemon tells about itself, as JSON.

use serde::Serialize;

use super::image::BoundImage;
use super::pool::PoolStatus;
use crate::cache::Statistics;

/// The whole status. Fields are only ever added.
#[derive(Serialize)]
pub(super) struct Status {
    /// Seconds since the daemon began.
    pub(super) uptime_s: u64,
    /// Connections now, those that are not bound included.
    pub(super) connections: usize,
    /// Requests for blocks since the daemon began.
    pub(super) requests: u64,
    /// The cache.
    pub(super) cache: Statistics,
    /// The workers.
    pub(super) pool: PoolStatus,
    /// Images with at least one client.
    pub(super) images: Vec<ImageStatus>,
}

/// One image.
#[derive(Serialize)]
pub(super) struct ImageStatus {
    /// BLAKE2b-256 of its file, in hex.
    hash: String,
    /// Where its first client said it is.
    path: String,
    /// Connections bound to it.
    clients: usize,
    /// Requests for its blocks.
    requests: u64,
    /// Those answered at once.
    hits: u64,
    /// Those refused: not a block of the image, or not its key.
    refused: u64,
    /// Those that failed.
    failed: u64,
    /// Blocks fetched before anyone asked.
    prefetched: u64,
    /// Blocks fetched from stores.
    fetched: u64,
    /// Their stored (compressed, encrypted) bytes.
    fetched_bytes: u64,
    /// Answers of stores that were not the block.
    bad: u64,
    /// Attempts after a first round over all stores.
    retried: u64,
}

impl ImageStatus {
    pub(super) fn new(image: &BoundImage, clients: usize) -> Self {
        let read = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        let fetcher =
            image.existing_fetcher().map(|fetcher| fetcher.counters()).unwrap_or_default();
        Self {
            hash: image.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            path: image.binding.path.to_string_lossy().into_owned(),
            clients,
            requests: read(&image.counters.requests),
            hits: read(&image.counters.hits),
            refused: read(&image.counters.refused),
            failed: read(&image.counters.failed),
            prefetched: read(&image.counters.prefetched),
            fetched: fetcher.fetched,
            fetched_bytes: fetcher.bytes,
            bad: fetcher.bad,
            retried: fetcher.retried,
        }
    }
}
