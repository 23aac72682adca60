//! The daemon's loop: sockets, requests, results, time limits.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use flist_view::block::{BlockError, BlockRef};
use flist_view::cache_client::socket::{self, Received};
use flist_view::cache_client::wire::{
    Bound, Failure, FailureKind, REQUEST_SIZE_MAX, Reply, Request,
};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::{Connection, Stage};
use super::image::{Binding, BoundImage, ImageError};
use super::indexer::Indexer;
use super::pool::{Done, Pool};
use super::status::{ImageStatus, Status};
use super::{CachedError, Config, prefetch, trace};
use crate::cache::{Cache, CacheError, Flights, Found, Handout, Join, SegmentNumber};
use crate::store::route::StoreOptions;

/// Most connections.
const CONNECTION_COUNT_MAX: usize = 1024;
/// Connections that may wait to be let in.
const BACKLOG: i32 = 128;
/// Time that a connection may take to say which image it wants.
const BIND_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which a request is answered with an error, whatever its fetch does.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Time limits and the ends of recordings are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Requests taken from one client before the others have their turn.
const REQUESTS_PER_TURN: usize = 32;
/// Share of the cache that one image may fill ahead of its requests.
const PREFETCH_SHARE: u64 = 4;
const EVENTS_PER_WAIT: usize = 64;

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
const STOP: u64 = u64::MAX - 2;

/// A daemon that listens.
pub struct Server {
    config: Config,
    cache: Arc<Cache>,
    listener: OwnedFd,
    _lock: File,
    epoll: OwnedFd,
    pool: Pool,
    retired: Receiver<SegmentNumber>,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    images: HashMap<ImageKey, Weak<BoundImage>>,
    flights: Flights<Waiter>,
    requests: u64,
    begun: Instant,
    /// Where requests are received.
    buffer: Vec<u8>,
    /// Whether new connections are let in; not for a moment after descriptors ran out.
    listening: bool,
}

/// Clients share an image if they would get the same blocks from the same stores.
#[derive(PartialEq, Eq, Hash)]
struct ImageKey {
    hash: [u8; 32],
    stores: Vec<Vec<u8>>,
}

/// A request that waits for a block.
struct Waiter {
    connection: u64,
    tag: u64,
    image: Arc<BoundImage>,
}

impl Server {
    /// Opens the cache and listens on the socket, whose mode is 0600.
    ///
    /// # Errors
    /// [`CachedError`]; [`CachedError::Running`] if another daemon serves the socket.
    pub fn new(config: Config) -> Result<Self, CachedError> {
        let lock = lock_socket(&config.socket)?;
        let cache = Arc::new(Cache::open(&config.cache, config.bounds.clone())?);
        let system =
            |what| move |source: Errno| CachedError::System { what, source: source.into() };
        let indexer = Indexer { directory: config.index.clone(), program: config.indexer.clone() };
        let stores = StoreOptions { policy: config.policy.clone(), ..StoreOptions::default() };
        let pool = Pool::new(Arc::clone(&cache), indexer, stores)
            .map_err(|source| CachedError::System { what: "eventfd", source })?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(system("epoll"))?;
        let listener = listen(&config.socket)
            .map_err(|source| CachedError::Socket { path: config.socket.clone(), source })?;
        for (descriptor, token) in [(listener.as_fd(), LISTENER), (pool.wake(), WAKE)] {
            epoll::add(&epoll, descriptor, EventData::new_u64(token), EventFlags::IN)
                .map_err(system("epoll"))?;
        }
        let retired = cache.watch_retired();
        Ok(Self {
            config,
            cache,
            listener,
            _lock: lock,
            epoll,
            pool,
            retired,
            connections: HashMap::new(),
            next_connection: 0,
            images: HashMap::new(),
            flights: Flights::default(),
            requests: 0,
            begun: Instant::now(),
            buffer: vec![0; REQUEST_SIZE_MAX],
            listening: true,
        })
    }

    /// Serves until `stop` becomes readable, then removes the socket.
    ///
    /// # Errors
    /// [`CachedError::System`] if the loop can't wait for events.
    pub fn run(mut self, stop: BorrowedFd<'_>) -> Result<(), CachedError> {
        let system = |source: Errno| CachedError::System { what: "epoll", source: source.into() };
        epoll::add(&self.epoll, stop, EventData::new_u64(STOP), EventFlags::IN).map_err(system)?;
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_PER_WAIT);
        let mut next_tick = Instant::now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::from(left >= TICK) * TICK.as_secs().cast_signed(),
                tv_nsec: if left >= TICK { 0 } else { left.subsec_nanos().into() },
            };
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(system(error)),
            }
            for event in &events {
                match event.data.u64() {
                    STOP => {
                        self.finish();
                        return Ok(());
                    }
                    LISTENER => self.let_in(),
                    WAKE => self.take_results(),
                    number => self.serve(number, event.flags),
                }
            }
            self.announce_retired();
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// Lets new clients in, as far as there is room.
    fn let_in(&mut self) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot let a client in");
                    self.listen(false);
                    return;
                }
            };
            let mut connection = Connection::new(socket);
            if self.connections.len() >= CONNECTION_COUNT_MAX {
                let text = format!("{CONNECTION_COUNT_MAX} clients are connected already");
                let failure = Failure { kind: FailureKind::Busy, text };
                let _ = connection.send(&Reply::Bound(Err(failure)), None);
                continue;
            }
            let number = self.next_connection;
            let data = EventData::new_u64(number);
            if epoll::add(&self.epoll, &connection.socket, data, EventFlags::IN).is_ok() {
                self.next_connection += 1;
                self.connections.insert(number, connection);
            }
        }
    }

    fn listen(&mut self, listening: bool) {
        let interest = if listening { EventFlags::IN } else { EventFlags::empty() };
        let data = EventData::new_u64(LISTENER);
        if epoll::modify(&self.epoll, &self.listener, data, interest).is_ok() {
            self.listening = listening;
        }
    }

    /// A client's socket has something, or takes something, or is gone.
    fn serve(&mut self, number: u64, flags: EventFlags) {
        let result = if flags.contains(EventFlags::ERR) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            self.exchange(number, flags)
        };
        self.settle(number, result);
    }

    fn exchange(&mut self, number: u64, flags: EventFlags) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if flags.contains(EventFlags::OUT) {
            connection.flush()?;
        }
        for _ in 0..REQUESTS_PER_TURN {
            let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
            if !connection.reads() {
                // Hung up, and there will be no room for what it sent before: it is gone.
                return if flags.contains(EventFlags::HUP) {
                    Err(io::ErrorKind::ConnectionReset.into())
                } else {
                    Ok(())
                };
            }
            match socket::receive(connection.socket.as_fd(), &mut self.buffer)? {
                Received::Nothing => return Ok(()),
                Received::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
                Received::TooLong => self.break_off(number, "a message too long")?,
                Received::Message(size, _descriptor) => {
                    match self.buffer.get(..size).and_then(Request::decode) {
                        Some(request) => self.answer(number, request)?,
                        None => self.break_off(number, "a message that does not parse")?,
                    }
                }
            }
        }
        Ok(())
    }

    /// After anything that concerned a connection: closes it, or polls it for what it needs now.
    fn settle(&mut self, number: u64, result: io::Result<()>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let wanted = connection.wanted();
        if result.is_err() || connection.is_over() {
            self.close(number);
        } else if wanted != connection.interest {
            let data = EventData::new_u64(number);
            if epoll::modify(&self.epoll, &connection.socket, data, wanted).is_ok() {
                connection.interest = wanted;
            }
        }
    }

    fn close(&mut self, number: u64) {
        let Some(connection) = self.connections.remove(&number) else { return };
        // Closing the descriptor takes it out of the poll set.
        if let Stage::Bound(image) = &connection.stage
            && self.client_count(image) == 0
        {
            self.save_trace(image, true);
            self.pool.cancel_prefetch(image);
        }
    }

    /// The client broke the protocol: it is told, and cut off.
    fn break_off(&mut self, number: u64, rule: &str) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        tracing::warn!(connection = number, rule, "a client broke the protocol");
        let failure = Failure { kind: FailureKind::Protocol, text: rule.to_owned() };
        connection.send(&Reply::Bound(Err(failure)), None)?;
        connection.end();
        Ok(())
    }

    fn answer(&mut self, number: u64, request: Request) -> io::Result<()> {
        match request {
            Request::Bind { path, stores } => self.bind(number, path, stores),
            Request::Block { tag, position, block } => {
                self.answer_block(number, tag, position, block)
            }
            Request::Forget { segment } => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.forget(segment);
                }
                Ok(())
            }
            Request::Status => self.answer_status(number),
        }
    }

    fn bind(&mut self, number: u64, path: Vec<u8>, stores: Vec<Vec<u8>>) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if !matches!(connection.stage, Stage::New) {
            return self.break_off(number, "a connection is bound only once");
        }
        connection.stage = Stage::Binding;
        let path = PathBuf::from(OsString::from_vec(path));
        self.pool.bind(number, Binding { path, stores });
        Ok(())
    }

    fn answer_block(
        &mut self,
        number: u64,
        tag: u64,
        position: u32,
        block: BlockRef,
    ) -> io::Result<()> {
        self.requests += 1;
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let Stage::Bound(image) = &connection.stage else {
            return self.break_off(number, "the first message must name an image");
        };
        if connection.pending.contains_key(&tag) {
            return self.break_off(number, "a tag that is still unanswered");
        }
        let image = Arc::clone(image);
        image.counters.requests.fetch_add(1, Ordering::Relaxed);
        if image.index.block(position).ok() != Some(block) {
            image.counters.refused.fetch_add(1, Ordering::Relaxed);
            let text = format!("block {}: not the image's block {position}", block.id);
            return connection.fail(tag, FailureKind::NotInImage, text);
        }
        image.recorder().note(position);
        match self.cache.find(image.cipher(), &block) {
            Ok(Found::Ready(handout)) => {
                image.counters.hits.fetch_add(1, Ordering::Relaxed);
                // While the trace of an image is recorded, each block is to be asked for.
                let last = if image.is_traced() { u32::MAX } else { 0 };
                let following = (position..last).skip(1).map_while(|position| {
                    let block = image.index.block(position).ok()?;
                    self.cache.current(image.cipher(), &block)
                });
                connection.hand_out(tag, &handout, following, false)
            }
            Ok(Found::Unchecked | Found::Absent) => {
                connection.pending.insert(tag, Instant::now() + REQUEST_TIMEOUT);
                self.join(Waiter { connection: number, tag, image }, &block);
                Ok(())
            }
            Err(error) => {
                image.counters.refused.fetch_add(1, Ordering::Relaxed);
                connection.fail(tag, failure_kind(&error), error.to_string())
            }
        }
    }

    /// Has a waiter told about a block; the first one also has it fetched.
    fn join(&self, waiter: Waiter, block: &BlockRef) {
        let image = Arc::clone(&waiter.image);
        if self.flights.join(image.cipher(), block, waiter) == Join::First {
            self.pool.demand(&image, *block);
        }
    }

    fn take_results(&mut self) {
        for done in self.pool.take_done() {
            match done {
                Done::Bound { connection, result } => {
                    let result = self.bound(connection, result.map(|image| *image));
                    self.settle(connection, result);
                }
                Done::Block { image, block, result } => self.landed(&image, &block, &result),
            }
        }
    }

    fn bound(&mut self, number: u64, result: Result<BoundImage, ImageError>) -> io::Result<()> {
        let image = match result {
            Ok(image) => self.share(image),
            Err(error) => {
                let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
                tracing::info!(connection = number, %error, "a client asked for a bad image");
                let failure = Failure { kind: FailureKind::Image, text: error.to_string() };
                connection.end();
                return connection.send(&Reply::Bound(Err(failure)), None);
            }
        };
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let bound = Bound {
            image_hash: image.hash,
            index_size: image.index.size() as u64,
            cipher: image.cipher(),
        };
        let index_file = Arc::new(image.index_file.try_clone()?);
        connection.stage = Stage::Bound(image);
        connection.send(&Reply::Bound(Ok(bound)), Some(index_file))
    }

    /// The image as other clients have it, or this one, whose blocks are then fetched ahead.
    fn share(&mut self, image: BoundImage) -> Arc<BoundImage> {
        let key = ImageKey { hash: image.hash, stores: image.binding.stores.clone() };
        if let Some(shared) = self.images.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        let image = Arc::new(image);
        let positions = prefetch::positions(&image.index, &image.index_directory, &image.hash);
        if !positions.is_empty() {
            let budget = self.config.bounds.size_max / PREFETCH_SHARE;
            self.pool.prefetch(&image, positions, budget);
        }
        self.images.retain(|_, image| image.strong_count() > 0);
        self.images.insert(key, Arc::downgrade(&image));
        image
    }

    /// A block was got, or could not be: whoever waits for it is told.
    fn landed(
        &mut self,
        image: &Arc<BoundImage>,
        block: &BlockRef,
        result: &Result<Handout, BlockError>,
    ) {
        for waiter in self.flights.finish(image.cipher(), block) {
            // Another image's stores may do better.
            if result.is_err() && !Arc::ptr_eq(&waiter.image, image) {
                self.join(waiter, block);
                continue;
            }
            let number = waiter.connection;
            let told = self.tell(&waiter, block, result);
            self.settle(number, told);
        }
    }

    fn tell(
        &mut self,
        waiter: &Waiter,
        block: &BlockRef,
        result: &Result<Handout, BlockError>,
    ) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&waiter.connection) else { return Ok(()) };
        if connection.pending.remove(&waiter.tag).is_none() {
            return Ok(());
        }
        match result {
            Ok(handout) => {
                let none = std::iter::empty();
                // It may have moved or left since the worker saw it.
                match self.cache.current(waiter.image.cipher(), block) {
                    Some(current) => connection.hand_out(waiter.tag, &current, none, false),
                    None => connection.hand_out(waiter.tag, handout, none, true),
                }
            }
            Err(error) => {
                waiter.image.counters.failed.fetch_add(1, Ordering::Relaxed);
                let (kind, text) = match error {
                    BlockError::Unavailable { reason, .. } => {
                        (FailureKind::Unavailable, reason.clone())
                    }
                    BlockError::Cache(text) => (FailureKind::Cache, text.clone()),
                };
                connection.fail(waiter.tag, kind, text)
            }
        }
    }

    /// Tells clients which segments are gone.
    fn announce_retired(&mut self) {
        let retired: Vec<u64> = self.retired.try_iter().map(|segment| segment.0).collect();
        if retired.is_empty() {
            return;
        }
        for number in self.numbers() {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            let told = retired.iter().try_for_each(|segment| connection.retire(*segment));
            self.settle(number, told);
        }
    }

    /// What only time brings about.
    fn tick(&mut self) {
        if !self.listening {
            self.listen(true);
        }
        let now = Instant::now();
        for number in self.numbers() {
            let result = self.expire(number, now);
            self.settle(number, result);
        }
        let images: Vec<_> = self.images.values().filter_map(Weak::upgrade).collect();
        for image in images {
            self.save_trace(&image, false);
        }
    }

    fn expire(&mut self, number: u64, now: Instant) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if matches!(connection.stage, Stage::New) && now - connection.since > BIND_TIMEOUT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let late: Vec<u64> = connection
            .pending
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in late {
            connection.pending.remove(&tag);
            let text = format!("no answer within {} s", REQUEST_TIMEOUT.as_secs());
            connection.fail(tag, FailureKind::TimedOut, text)?;
        }
        Ok(())
    }

    fn save_trace(&self, image: &BoundImage, leaving: bool) {
        let Some(positions) = image.recorder().finish(leaving) else { return };
        if positions.is_empty() {
            return;
        }
        if let Err(error) = trace::store(&self.config.index, &image.hash, &positions) {
            tracing::warn!(%error, "a first boot's trace is not kept");
        }
    }

    fn answer_status(&mut self, number: u64) -> io::Result<()> {
        let text = serde_json::to_vec(&self.status())?;
        let memory: File = rustix::fs::memfd_create("flist-status", MemfdFlags::CLOEXEC)?.into();
        (&memory).write_all(&text)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
        let readable = File::open(path)?;
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        connection.send(&Reply::Status { size: text.len() as u64 }, Some(Arc::new(readable)))
    }

    fn status(&self) -> Status {
        let images: Vec<_> = self.images.values().filter_map(Weak::upgrade).collect();
        Status {
            uptime_s: self.begun.elapsed().as_secs(),
            connections: self.connections.len(),
            requests: self.requests,
            cache: self.cache.statistics(),
            pool: self.pool.status(),
            images: images
                .iter()
                .map(|image| ImageStatus::new(image, self.client_count(image)))
                .collect(),
        }
    }

    fn client_count(&self, image: &Arc<BoundImage>) -> usize {
        let is_bound = |connection: &&Connection| matches!(&connection.stage, Stage::Bound(bound) if Arc::ptr_eq(bound, image));
        self.connections.values().filter(is_bound).count()
    }

    fn numbers(&self) -> Vec<u64> {
        self.connections.keys().copied().collect()
    }

    /// An orderly end: traces are kept, the socket is removed, and what was cached is known to whoever
    /// comes next, even where a worker is still busy when the process ends.
    fn finish(mut self) {
        for number in self.numbers() {
            self.close(number);
        }
        let _ = fs::remove_file(&self.config.socket);
        let cache = Arc::clone(&self.cache);
        // Workers end here, or are given up.
        drop(self);
        cache.flush();
    }
}

fn failure_kind(error: &CacheError) -> FailureKind {
    match error {
        CacheError::Key(_) => FailureKind::NotInImage,
        _ => FailureKind::Cache,
    }
}

/// Takes the lock beside the socket: two daemons can't serve one path, and a socket whose lock is
/// free is a dead daemon's.
fn lock_socket(path: &Path) -> Result<File, CachedError> {
    let error = |source| CachedError::Socket { path: path.to_path_buf(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&name)
        .map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CachedError::Running(path.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

/// Nobody can connect between `bind` and `listen`, so nobody connects before the mode is right.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    // A dead daemon's socket, and nothing but a socket.
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other("is there, and is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
