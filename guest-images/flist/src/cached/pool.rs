//! The threads that do what may take time: reading images, checking and fetching blocks.
//!
//! ```text
//!   binds ──────────┐   at most BIND_THREADS
//!   demand by image ┼─> workers ──> results ──> the server's loop (woken by an eventfd)
//!   prefetch runs ──┘   only when no demand waits, at most PREFETCH_THREADS
//! ```
//!
//! Images take turns, and none may hold more than [`IMAGE_THREADS`] workers, nor more than its
//! [`Pace`](super::image::Pace) allows: images whose stores are away, or slow on purpose, must not
//! starve the others. Workers are started when there is work for them.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flist_view::block::{BlockCipher, BlockError, BlockRef};
use rustix::event::EventfdFlags;

use super::image::{Binding, BoundImage, ImageError};
use super::indexer::Indexer;
use crate::block::Codec;
use crate::cache::{self, Cache, Handout};
use crate::store::route::StoreOptions;

/// Workers in all. Each may hold 1.5 MB while it has a large block in hand.
const THREADS: usize = 10;
/// Workers that one image may hold.
const IMAGE_THREADS: usize = 8;
/// Workers that fetch ahead.
const PREFETCH_THREADS: usize = 6;
/// Workers that read images.
const BIND_THREADS: usize = 2;
/// A worker decodes one block at a time; this is far more than that needs.
const STACK_SIZE: usize = 512 * 1024;
/// Longest wait for workers at the end. One that waits for a store is left behind.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What a worker hands back.
pub(super) enum Done {
    /// A block was asked for, or fetched ahead.
    Block { image: Arc<BoundImage>, block: BlockRef, result: Result<Handout, BlockError> },
    /// An image was read for a connection.
    Bound { connection: u64, result: Result<Box<BoundImage>, ImageError> },
}

/// The workers and their work.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(super) struct PoolStatus {
    /// Worker threads started.
    pub(super) threads: usize,
    /// Requests that wait for a worker.
    pub(super) demand: usize,
    /// Blocks that may be fetched ahead.
    pub(super) prefetch: usize,
}

struct Shared {
    cache: Arc<Cache>,
    indexer: Indexer,
    stores: StoreOptions,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Done>>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Queue {
    binds: VecDeque<(u64, Binding)>,
    binding: usize,
    /// One for each image with work, waiting or under way; in turn.
    images: VecDeque<ImageQueue>,
    /// Blocks being checked or fetched.
    running: HashSet<(BlockCipher, BlockRef)>,
    prefetching: usize,
    threads: usize,
    idle: usize,
    stopping: bool,
}

struct ImageQueue {
    image: Arc<BoundImage>,
    demand: VecDeque<BlockRef>,
    prefetch: VecDeque<u32>,
    /// Bytes that may still be fetched ahead.
    prefetch_budget: u64,
    running: usize,
}

enum Job {
    Bind(u64, Binding),
    Block { image: Arc<BoundImage>, block: BlockRef, ahead: bool },
}

impl Pool {
    /// A pool without threads yet.
    pub(super) fn new(
        cache: Arc<Cache>,
        indexer: Indexer,
        stores: StoreOptions,
    ) -> std::io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            cache,
            indexer,
            stores,
            queue: Mutex::default(),
            work: Condvar::new(),
            done: Mutex::default(),
            wake,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Readable when [`Pool::take_done`] has something.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Reads an image for a connection.
    pub(super) fn bind(&self, connection: u64, binding: Binding) {
        self.submit(|queue| queue.binds.push_back((connection, binding)));
    }

    /// Gets a block that someone waits for.
    pub(super) fn demand(&self, image: &Arc<BoundImage>, block: BlockRef) {
        self.submit(|queue| queue.of(image).demand.push_back(block));
    }

    /// Gets blocks that someone may soon want: those at `positions`, until `budget` bytes are
    /// fetched.
    pub(super) fn prefetch(&self, image: &Arc<BoundImage>, positions: Vec<u32>, budget: u64) {
        // Enough workers at once; each takes one position after the other.
        for _ in 0..PREFETCH_THREADS.min(positions.len()) {
            self.start_worker();
        }
        self.submit(|queue| {
            let image = queue.of(image);
            image.prefetch.extend(positions);
            image.prefetch_budget = budget;
        });
        self.shared.work.notify_all();
    }

    /// Nobody will want them any more.
    pub(super) fn cancel_prefetch(&self, image: &Arc<BoundImage>) {
        let mut queue = self.shared.queue();
        if let Some(queue) = queue.images.iter_mut().find(|q| Arc::ptr_eq(&q.image, image)) {
            queue.prefetch.clear();
        }
    }

    /// What workers have finished since the last call.
    pub(super) fn take_done(&self) -> Vec<Done> {
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        std::mem::take(&mut *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn status(&self) -> PoolStatus {
        let queue = self.shared.queue();
        PoolStatus {
            threads: queue.threads,
            demand: queue.images.iter().map(|image| image.demand.len()).sum(),
            prefetch: queue.images.iter().map(|image| image.prefetch.len()).sum(),
        }
    }

    fn submit(&self, add: impl FnOnce(&mut Queue)) {
        let mut queue = self.shared.queue();
        add(&mut queue);
        let need = queue.idle < queue.waiting();
        drop(queue);
        if need {
            self.start_worker();
        }
        self.shared.work.notify_one();
    }

    fn start_worker(&self) {
        let mut queue = self.shared.queue();
        if queue.threads >= THREADS || queue.stopping {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let name = format!("flist-fetch-{}", queue.threads);
        let thread = std::thread::Builder::new().name(name).stack_size(STACK_SIZE);
        match thread.spawn(move || shared.work()) {
            Ok(_) => queue.threads += 1,
            Err(error) => tracing::error!(%error, "cannot start a worker"),
        }
    }
}

impl Drop for Pool {
    /// Asks the workers to stop and waits for them, but not for long.
    fn drop(&mut self) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut queue = self.shared.queue();
        queue.stopping = true;
        self.shared.work.notify_all();
        while queue.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.work.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut codec = Codec::new();
        while let Some(job) = self.next(&mut codec) {
            match job {
                Job::Bind(connection, binding) => {
                    let result = BoundImage::open(binding, &self.indexer).map(Box::new);
                    self.queue().binding -= 1;
                    self.report(Done::Bound { connection, result });
                }
                Job::Block { image, block, ahead } => self.get(&mut codec, image, block, ahead),
            }
        }
        self.queue().threads -= 1;
        self.work.notify_all();
    }

    /// Waits for work. An idle worker keeps no buffers: there may be many of them.
    fn next(&self, codec: &mut Codec) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if queue.stopping {
                return None;
            }
            if let Some(job) = queue.take() {
                return Some(job);
            }
            queue.idle += 1;
            *codec = Codec::new();
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn get(&self, codec: &mut Codec, image: Arc<BoundImage>, block: BlockRef, ahead: bool) {
        let (result, fetched) = self.get_or_fetch(codec, &image, &block);
        if ahead && fetched {
            image.counters.prefetched.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = result.as_ref().ok().map(|handout| u64::from(handout.data.size));
        let bytes_fetched = if fetched { bytes } else { bytes.and(Some(0)) };
        self.queue().finished(&image, &block, ahead, bytes_fetched);
        // Room for one more of this image's blocks, which an idle worker may have passed over.
        self.work.notify_one();
        self.report(Done::Block { image, block, result });
    }

    fn get_or_fetch(
        &self,
        codec: &mut Codec,
        image: &BoundImage,
        block: &BlockRef,
    ) -> (Result<Handout, BlockError>, bool) {
        let cipher = image.cipher();
        match self.cache.get(cipher, block) {
            Ok(Some(handout)) => return (Ok(handout), false),
            Ok(None) => {}
            Err(error) => return (Err(cache::cache_error(&error)), false),
        }
        let begun = Instant::now();
        let result = image
            .fetcher(block.id, &self.stores)
            .and_then(|fetcher| cache::fetch_into(&self.cache, &*fetcher, codec, cipher, block));
        image.pace.note(begun.elapsed(), IMAGE_THREADS);
        (result, true)
    }

    fn report(&self, done: Done) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        // Only a counter at its limit refuses, and then the loop is awake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_le_bytes());
    }
}

impl Queue {
    fn of(&mut self, image: &Arc<BoundImage>) -> &mut ImageQueue {
        let place = self.images.iter().position(|queue| Arc::ptr_eq(&queue.image, image));
        let place = place.unwrap_or_else(|| {
            self.images.push_back(ImageQueue {
                image: Arc::clone(image),
                demand: VecDeque::new(),
                prefetch: VecDeque::new(),
                prefetch_budget: 0,
                running: 0,
            });
            self.images.len() - 1
        });
        &mut self.images[place]
    }

    /// Pieces of work that someone waits for.
    fn waiting(&self) -> usize {
        let demand: usize = self.images.iter().map(|image| image.demand.len()).sum();
        self.binds.len() + demand
    }

    fn take(&mut self) -> Option<Job> {
        if self.binding < BIND_THREADS
            && let Some((connection, binding)) = self.binds.pop_front()
        {
            self.binding += 1;
            return Some(Job::Bind(connection, binding));
        }
        self.take_block(false).or_else(|| {
            if self.prefetching < PREFETCH_THREADS { self.take_block(true) } else { None }
        })
    }

    /// A block of the first image that has one and may have one more worker; the image then goes to
    /// the end of the line.
    fn take_block(&mut self, ahead: bool) -> Option<Job> {
        for _ in 0..self.images.len() {
            let mut queue = self.images.pop_front()?;
            let block = if queue.running < queue.image.pace.workers(IMAGE_THREADS) {
                queue.next(ahead, &self.running)
            } else {
                None
            };
            let job = block.map(|block| {
                queue.running += 1;
                self.prefetching += usize::from(ahead);
                self.running.insert((queue.image.cipher(), block));
                Job::Block { image: Arc::clone(&queue.image), block, ahead }
            });
            if queue.running > 0 || !queue.is_empty() {
                self.images.push_back(queue);
            }
            if job.is_some() {
                return job;
            }
        }
        None
    }

    /// `bytes_fetched` is none if the block can't be had.
    fn finished(
        &mut self,
        image: &Arc<BoundImage>,
        block: &BlockRef,
        ahead: bool,
        bytes_fetched: Option<u64>,
    ) {
        self.running.remove(&(image.cipher(), *block));
        self.prefetching -= usize::from(ahead);
        let Some(place) = self.images.iter().position(|q| Arc::ptr_eq(&q.image, image)) else {
            return;
        };
        let queue = &mut self.images[place];
        queue.running -= 1;
        match bytes_fetched {
            Some(bytes) if ahead => {
                queue.prefetch_budget = queue.prefetch_budget.saturating_sub(bytes);
            }
            Some(_) => {}
            // Stores that fail are left to those who need a block now.
            None => queue.prefetch.clear(),
        }
        if queue.running == 0 && queue.is_empty() {
            self.images.remove(place);
        }
    }
}

impl ImageQueue {
    fn is_empty(&self) -> bool {
        self.demand.is_empty() && self.prefetch.is_empty()
    }

    /// The next block that no worker has in hand. Those in hand are dropped: when they are done,
    /// all who wait for them are told.
    fn next(
        &mut self,
        ahead: bool,
        running: &HashSet<(BlockCipher, BlockRef)>,
    ) -> Option<BlockRef> {
        let cipher = self.image.cipher();
        loop {
            let block = if !ahead {
                self.demand.pop_front()?
            } else if self.prefetch_budget == 0 {
                self.prefetch.clear();
                return None;
            } else {
                let position = self.prefetch.pop_front()?;
                let Ok(block) = self.image.index.block(position) else { continue };
                block
            };
            if !running.contains(&(cipher, block)) {
                return Some(block);
            }
        }
    }
}
