//! Blocks without a cache process: a mount that fetches for itself.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flist_view::block::{BlockCipher, BlockData, BlockError, BlockRef, BlockSource};

use super::{Cache, Flights, Found, Join, Verified};
use crate::block::Codec;
use crate::store::fetch::Fetcher;

/// Longest wait for a block that another thread fetches. Longer than the fetch may take, so that the
/// other's own error arrives first.
const JOINED_TIMEOUT: Duration = Duration::from_secs(150);
/// Codecs kept for the next request; each has buffers of a block's size.
const IDLE_CODEC_COUNT_MAX: usize = 8;

/// Who gets blocks from stores. [`Fetcher`] does; tests have others.
pub trait Fetch: Send + Sync {
    /// The block, verified.
    ///
    /// # Errors
    /// [`BlockError::Unavailable`] after bounded attempts.
    fn fetch(
        &self,
        codec: &mut Codec,
        cipher: BlockCipher,
        block: &BlockRef,
    ) -> Result<Verified<'static>, BlockError>;
}

/// A [`BlockSource`] over a cache and an image's stores, in this process. Threads that want the same
/// missing block cause one fetch.
pub struct LocalSource {
    cache: Arc<Cache>,
    fetch: Arc<dyn Fetch>,
    cipher: BlockCipher,
    flights: Flights<SyncSender<Result<BlockData, BlockError>>>,
    codecs: Mutex<Vec<Codec>>,
}

impl LocalSource {
    /// Blocks of one image.
    #[must_use]
    pub fn new(cache: Arc<Cache>, fetch: Arc<dyn Fetch>, cipher: BlockCipher) -> Self {
        Self { cache, fetch, cipher, flights: Flights::default(), codecs: Mutex::default() }
    }

    fn fetch_and_tell(&self, block: &BlockRef) -> Result<BlockData, BlockError> {
        let result = self.fetch_and_insert(block);
        for waiter in self.flights.finish(self.cipher, block) {
            // A waiter that gave up is gone; ours is told too, and drops it.
            let _ = waiter.try_send(result.clone());
        }
        result
    }

    fn fetch_and_insert(&self, block: &BlockRef) -> Result<BlockData, BlockError> {
        // An earlier flight may have landed since we looked.
        let found = self.cache.find(self.cipher, block).map_err(|e| cache_error(&e))?;
        if let Found::Ready(handout) = found {
            return Ok(handout.data);
        }
        let mut codec = self.codecs().pop().unwrap_or_default();
        let result = fetch_into(&self.cache, &*self.fetch, &mut codec, self.cipher, block);
        let mut idle = self.codecs();
        if idle.len() < IDLE_CODEC_COUNT_MAX {
            idle.push(codec);
        }
        result.map(|handout| handout.data)
    }

    fn codecs(&self) -> std::sync::MutexGuard<'_, Vec<Codec>> {
        self.codecs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockSource for LocalSource {
    fn block(&self, _position: u32, block: &BlockRef) -> Result<BlockData, BlockError> {
        if let Some(handout) = self.cache.get(self.cipher, block).map_err(|e| cache_error(&e))? {
            return Ok(handout.data);
        }
        let (sender, receiver) = sync_channel(1);
        match self.flights.join(self.cipher, block, sender) {
            Join::First => self.fetch_and_tell(block),
            Join::Joined => receiver.recv_timeout(JOINED_TIMEOUT).unwrap_or_else(|_| {
                let reason = "the thread that fetches it does not come back".to_owned();
                Err(BlockError::Unavailable { id: block.id, reason })
            }),
        }
    }
}

impl Fetch for Fetcher {
    fn fetch(
        &self,
        codec: &mut Codec,
        _cipher: BlockCipher,
        block: &BlockRef,
    ) -> Result<Verified<'static>, BlockError> {
        match Self::fetch(self, codec, block) {
            // Its own cipher is the one that it verified with.
            Ok(plaintext) => Ok(Verified::fetched(self.cipher(), *block, plaintext)),
            Err(error) => Err(BlockError::Unavailable { id: block.id, reason: error.reason() }),
        }
    }
}

/// Fetches a block and keeps it.
pub(crate) fn fetch_into(
    cache: &Cache,
    fetch: &dyn Fetch,
    codec: &mut Codec,
    cipher: BlockCipher,
    block: &BlockRef,
) -> Result<super::Handout, BlockError> {
    let verified = fetch.fetch(codec, cipher, block)?;
    cache.insert(&verified).map_err(|e| cache_error(&e))
}

/// A [`super::CacheError`] as readers of a file system see it.
pub(crate) fn cache_error(error: &super::CacheError) -> BlockError {
    BlockError::Cache(error.to_string())
}
