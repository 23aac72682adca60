//! The client of the node's cache process: blocks for one image, over a unix socket.
//!
//! A VMM (or a mount) connects, names an image, is handed the image's index, and then is a
//! [`BlockSource`]: the daemon answers where in which segment a block's plaintext is, and gives each
//! segment's descriptor once. What was answered is remembered, so only the first request for a block
//! costs a round trip; the reading itself is the caller's, from the page cache.
//!
//! ```text
//!   block() ── place known ──────────────────────────────────────> range of a file
//!      └────── ask; wait for the reply, reading the socket for all ───^
//!                 └── connection lost: connect and bind again, ask again (within bounds)
//! ```
//!
//! There is no thread here. Of the threads that wait for a reply, one reads the socket and hands the
//! others theirs. A thread that has nothing else to do may call [`CacheClient::drain`] when
//! [`CacheClient::socket`] is readable, so that an idle VMM lets go of segments that left the cache.

mod places;
pub mod socket;
pub mod wire;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use self::places::Places;
use self::socket::Received;
use self::wire::{Bound, Failure, FailureKind, Located, REPLY_SIZE_MAX, Reply, Request};
use crate::block::{BlockData, BlockError, BlockRef, BlockSource};
use crate::index::{Index, IndexError};

/// Longest wait for one block, reconnections included. Longer than the daemon's own bound.
pub const BLOCK_TIMEOUT: Duration = Duration::from_secs(150);
/// Longest wait for the answer to a binding, which may build the image's index.
pub const BIND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request waits for a daemon that went away to come back.
pub const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Pause when the daemon reads no requests at the moment.
const SEND_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Times a reply may refer to a segment whose descriptor was just closed, before we give up.
const DESCRIPTOR_ATTEMPTS_MAX: u32 = 4;
/// The socket is looked at once in so many blocks that need no round trip.
const DRAIN_INTERVAL: u64 = 256;

/// How a client reaches the daemon, at first and after it was restarted.
type Connector = Box<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// Blocks of one image, from the node's cache process. Shared by all threads that serve the image.
pub struct CacheClient {
    connector: Connector,
    bind: Request,
    image_hash: [u8; 32],
    state: Mutex<State>,
    /// Signalled when a reply arrived, the reader stopped reading, or the connection changed.
    changed: Condvar,
    places: RwLock<Places>,
    answered: std::sync::atomic::AtomicU64,
}

/// Why there is no connection to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket can't be reached or failed.
    #[error("{what}: {source}")]
    Socket {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon refuses the image.
    #[error("cache process: {0}")]
    Refused(Failure),
    /// The daemon's answer makes no sense.
    #[error("cache process: {0}")]
    Protocol(&'static str),
    /// The index that the daemon gave can't be used.
    #[error("cache process: {0}")]
    Index(#[from] IndexError),
    /// After a restart, the path names another image than before.
    #[error("cache process: the image has changed")]
    ImageChanged,
}

impl ConnectError {
    /// Whether trying again is of no use.
    fn is_final(&self) -> bool {
        match self {
            Self::ImageChanged => true,
            Self::Refused(failure) => failure.kind != FailureKind::Busy,
            _ => false,
        }
    }
}

struct State {
    connection: Option<Arc<OwnedFd>>,
    /// Counts connections, so that a failure of an old one does not end its successor.
    generation: u64,
    connecting: bool,
    /// Some thread reads the socket.
    reading: bool,
    next_tag: u64,
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    position: u32,
    outcome: Option<Outcome>,
}

/// What became of a request.
enum Outcome {
    Block(BlockData),
    Failed(Failure),
    /// The reply came without a descriptor that we do not have (any more).
    NoDescriptor,
    /// The connection was lost.
    Lost,
}

impl CacheClient {
    /// Connects to the daemon at `socket` and binds to the image at `image`, a path as the daemon
    /// sees it. `stores` (`[xx-xx=]URL`) replace the image's own routes unless empty.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is retried.
    pub fn connect(
        socket: &Path,
        image: &Path,
        stores: &[String],
    ) -> Result<(Self, Index), ConnectError> {
        let socket: PathBuf = socket.to_path_buf();
        Self::with_connector(Box::new(move || socket::connect(&socket)), image, stores)
    }

    /// As [`CacheClient::connect`], for a process that must not open sockets by path itself:
    /// `connector` gives it a connected socket, now and whenever the daemon was restarted.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is retried.
    pub fn with_connector(
        connector: Connector,
        image: &Path,
        stores: &[String],
    ) -> Result<(Self, Index), ConnectError> {
        let bind = Request::Bind {
            path: std::os::unix::ffi::OsStrExt::as_bytes(image.as_os_str()).to_vec(),
            stores: stores.iter().map(|store| store.as_bytes().to_vec()).collect(),
        };
        let (connection, bound, index) = establish(&connector, &bind)?;
        let index = Index::open(&index)?;
        if *index.image_hash() != bound.image_hash || index.cipher() != bound.cipher {
            return Err(ConnectError::Protocol("the index is another image's"));
        }
        let state = State {
            connection: Some(Arc::new(connection)),
            generation: 0,
            connecting: false,
            reading: false,
            next_tag: 0,
            waiting: HashMap::new(),
        };
        let client = Self {
            connector,
            bind,
            image_hash: bound.image_hash,
            state: Mutex::new(state),
            changed: Condvar::new(),
            places: RwLock::new(Places::new(index.block_count())),
            answered: 0.into(),
        };
        Ok((client, index))
    }

    /// The socket, to watch for being readable; none while the daemon is away.
    #[must_use]
    pub fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.state().connection.clone()
    }

    /// Takes in what the daemon sent, without waiting.
    pub fn drain(&self) {
        let mut state = self.state();
        if state.reading {
            return;
        }
        state.reading = true;
        let connection = state.connection.clone().map(|connection| (connection, state.generation));
        drop(state);
        if let Some((connection, generation)) = connection {
            while self.read_message(&connection, generation) {}
        }
        self.state().reading = false;
        self.changed.notify_all();
    }

    /// Asks for a block and waits for its place.
    fn request(&self, position: u32, block: &BlockRef) -> Result<BlockData, BlockError> {
        let deadline = Instant::now() + BLOCK_TIMEOUT;
        let mut descriptor_attempts = 0;
        loop {
            let (connection, generation) = self.connection(deadline)?;
            match self.ask(&connection, generation, position, block, deadline)? {
                Outcome::Block(data) => return Ok(data),
                Outcome::Failed(failure) => return Err(failed(block, failure)),
                Outcome::Lost => {}
                Outcome::NoDescriptor => {
                    descriptor_attempts += 1;
                    if descriptor_attempts >= DESCRIPTOR_ATTEMPTS_MAX {
                        return Err(cache_error("answers without descriptors"));
                    }
                }
            }
        }
    }

    /// One request and its outcome, on one connection.
    fn ask(
        &self,
        connection: &OwnedFd,
        generation: u64,
        position: u32,
        block: &BlockRef,
        deadline: Instant,
    ) -> Result<Outcome, BlockError> {
        let mut state = self.state();
        if state.generation != generation {
            return Ok(Outcome::Lost);
        }
        let tag = state.next_tag;
        state.next_tag = state.next_tag.wrapping_add(1);
        state.waiting.insert(tag, Waiting { position, outcome: None });
        drop(state);
        let message = Request::Block { tag, position, block: *block }.encode();
        let sent = self.send_waiting(connection, generation, &message, deadline);
        let outcome = match sent {
            Ok(()) => self.wait(connection, generation, tag, deadline),
            Err(error) => Err(error),
        };
        self.state().waiting.remove(&tag);
        outcome
    }

    /// Sends, reading replies while the daemon takes no more requests.
    fn send_waiting(
        &self,
        connection: &OwnedFd,
        generation: u64,
        message: &[u8],
        deadline: Instant,
    ) -> Result<(), BlockError> {
        loop {
            match socket::send(connection.as_fd(), message, None) {
                Ok(true) => return Ok(()),
                Ok(false) if Instant::now() < deadline => {
                    self.drain();
                    std::thread::sleep(SEND_RETRY_INTERVAL);
                }
                Ok(false) => return Err(cache_error("reads no requests")),
                Err(_) => {
                    self.lose(generation);
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the outcome of a request; reads the socket if nobody else does.
    fn wait(
        &self,
        connection: &OwnedFd,
        generation: u64,
        tag: u64,
        deadline: Instant,
    ) -> Result<Outcome, BlockError> {
        let mut state = self.state();
        loop {
            if let Some(outcome) = state.waiting.get_mut(&tag).and_then(|w| w.outcome.take()) {
                return Ok(outcome);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(cache_error("does not answer"));
            }
            if state.reading {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.reading = true;
            drop(state);
            if socket::wait_readable(connection.as_fd(), left).is_err() {
                self.lose(generation);
            }
            self.read_message(connection, generation);
            state = self.state();
            state.reading = false;
            self.changed.notify_all();
        }
    }

    /// Reads one message, if there is one, and acts on it. Only the thread that set `reading` may.
    fn read_message(&self, connection: &OwnedFd, generation: u64) -> bool {
        let mut buffer = [0; REPLY_SIZE_MAX];
        match socket::receive(connection.as_fd(), &mut buffer) {
            Ok(Received::Nothing) => false,
            Ok(Received::Message(size, descriptor)) => {
                let reply = buffer.get(..size).and_then(Reply::decode);
                let understood = reply.is_some_and(|reply| {
                    self.accept(connection, generation, reply, descriptor.map(File::from))
                });
                if !understood {
                    self.lose(generation);
                }
                understood
            }
            Ok(Received::Closed | Received::TooLong) | Err(_) => {
                self.lose(generation);
                false
            }
        }
    }

    /// Acts on a reply; false if it breaks the protocol.
    fn accept(
        &self,
        connection: &OwnedFd,
        generation: u64,
        reply: Reply,
        descriptor: Option<File>,
    ) -> bool {
        match reply {
            Reply::Retired { segment } => {
                self.places_mut().close(segment);
                true
            }
            Reply::Block { tag, result, following } => {
                let mut state = self.state();
                if state.generation != generation {
                    return true;
                }
                // A request that gave up is not waiting any more, but its descriptor is welcome.
                let position = state.waiting.get(&tag).map(|waiting| waiting.position);
                let outcome = match result {
                    Err(failure) => Outcome::Failed(failure),
                    Ok(located) => {
                        let outcome = self.learn(connection, position, &located, descriptor);
                        self.learn_following(position, &following);
                        outcome
                    }
                };
                if let Some(waiting) = state.waiting.get_mut(&tag) {
                    waiting.outcome = Some(outcome);
                }
                true
            }
            Reply::Bound(_) | Reply::Status { .. } => false,
        }
    }

    fn learn(
        &self,
        connection: &OwnedFd,
        position: Option<u32>,
        located: &Located,
        descriptor: Option<File>,
    ) -> Outcome {
        let mut places = self.places_mut();
        if let Some(file) = descriptor
            && let Some(segment) = places.open(located.segment, file)
        {
            // If this does not get through, the connection is stuck or gone, and so is what the
            // daemon knows of our descriptors.
            let _ = socket::send(connection.as_fd(), &Request::Forget { segment }.encode(), None);
        }
        let data = position.and_then(|position| places.learn(position, located));
        data.map_or(Outcome::NoDescriptor, Outcome::Block)
    }

    /// Remembers where the blocks behind `position` are.
    fn learn_following(&self, position: Option<u32>, following: &[Located]) {
        let Some(position) = position.filter(|_| !following.is_empty()) else { return };
        let mut places = self.places_mut();
        for (position, located) in (position..).skip(1).zip(following) {
            places.learn(position, located);
        }
    }

    /// The connection, established anew if need be: by one thread, while the others wait.
    fn connection(&self, deadline: Instant) -> Result<(Arc<OwnedFd>, u64), BlockError> {
        let deadline = deadline.min(Instant::now() + RECONNECT_TIMEOUT);
        let mut state = self.state();
        loop {
            if let Some(connection) = &state.connection {
                return Ok((Arc::clone(connection), state.generation));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(cache_error("is away"));
            }
            if !state.connecting {
                state.connecting = true;
                drop(state);
                let result = self.reconnect();
                state = self.state();
                state.connecting = false;
                match result {
                    Ok(connection) => state.connection = Some(Arc::new(connection)),
                    Err(error) if error.is_final() => {
                        return Err(BlockError::Cache(error.to_string()));
                    }
                    Err(_) => {}
                }
                self.changed.notify_all();
                if state.connection.is_some() {
                    continue;
                }
            }
            let waited = self.changed.wait_timeout(state, left.min(RECONNECT_INTERVAL));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn reconnect(&self) -> Result<OwnedFd, ConnectError> {
        let (connection, bound, _index) = establish(&self.connector, &self.bind)?;
        if bound.image_hash != self.image_hash {
            return Err(ConnectError::ImageChanged);
        }
        Ok(connection)
    }

    /// Gives up a connection: whoever waits on it is told, and the daemon's successor knows nothing
    /// of our descriptors, so neither do we.
    fn lose(&self, generation: u64) {
        let mut state = self.state();
        if state.generation != generation {
            return;
        }
        state.generation += 1;
        state.connection = None;
        for waiting in state.waiting.values_mut() {
            waiting.outcome.get_or_insert(Outcome::Lost);
        }
        drop(state);
        self.places_mut().close_all();
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> std::sync::RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockSource for CacheClient {
    fn block(&self, position: u32, block: &BlockRef) -> Result<BlockData, BlockError> {
        let known = self.places.read().unwrap_or_else(PoisonError::into_inner).find(position);
        let Some(data) = known else { return self.request(position, block) };
        let answered = self.answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if answered % DRAIN_INTERVAL == DRAIN_INTERVAL - 1 {
            self.drain();
        }
        Ok(data)
    }
}

/// Asks a daemon what it has done; the answer is a JSON text.
///
/// # Errors
/// [`ConnectError`].
pub fn status(socket: &Path) -> Result<String, ConnectError> {
    let socket_error = |what| move |source| ConnectError::Socket { what, source };
    let connection = socket::connect(socket).map_err(socket_error("connecting"))?;
    let (reply, descriptor) = exchange(&connection, &Request::Status)?;
    let (Reply::Status { size }, Some(text)) = (reply, descriptor) else {
        return Err(ConnectError::Protocol("no status in the answer"));
    };
    let size = usize::try_from(size).ok().filter(|size| *size <= STATUS_SIZE_MAX);
    let mut bytes = vec![0; size.ok_or(ConnectError::Protocol("a status too long"))?];
    std::os::unix::fs::FileExt::read_exact_at(&text, &mut bytes, 0)
        .map_err(socket_error("reading the status"))?;
    String::from_utf8(bytes).map_err(|_| ConnectError::Protocol("a status that is no text"))
}

/// Longest status text, in bytes.
pub const STATUS_SIZE_MAX: usize = 4 << 20;

/// Connects and binds; gives the connection, what it is bound to, and the image's index.
fn establish(
    connector: &Connector,
    bind: &Request,
) -> Result<(OwnedFd, Bound, File), ConnectError> {
    let connection =
        connector().map_err(|source| ConnectError::Socket { what: "connecting", source })?;
    let (reply, descriptor) = exchange(&connection, bind)?;
    match (reply, descriptor) {
        (Reply::Bound(Ok(bound)), Some(index)) => Ok((connection, bound, index)),
        (Reply::Bound(Err(failure)), _) => Err(ConnectError::Refused(failure)),
        _ => Err(ConnectError::Protocol("no index in the answer")),
    }
}

/// Sends the first message of a connection and waits for its answer.
fn exchange(
    connection: &OwnedFd,
    request: &Request,
) -> Result<(Reply, Option<File>), ConnectError> {
    let socket_error = |what| move |source| ConnectError::Socket { what, source };
    let sent = socket::send(connection.as_fd(), &request.encode(), None);
    if !sent.map_err(socket_error("sending"))? {
        return Err(ConnectError::Protocol("the socket takes no message"));
    }
    let deadline = Instant::now() + BIND_TIMEOUT;
    let mut buffer = [0; REPLY_SIZE_MAX];
    loop {
        let received = socket::receive(connection.as_fd(), &mut buffer);
        match received.map_err(socket_error("receiving"))? {
            Received::Message(size, descriptor) => {
                let reply = buffer.get(..size).and_then(Reply::decode);
                let reply = reply.ok_or(ConnectError::Protocol("an answer that does not parse"))?;
                return Ok((reply, descriptor.map(File::from)));
            }
            Received::Nothing => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ConnectError::Protocol("no answer in time"));
                }
                socket::wait_readable(connection.as_fd(), left).map_err(socket_error("waiting"))?;
            }
            Received::Closed => return Err(ConnectError::Protocol("closed the connection")),
            Received::TooLong => return Err(ConnectError::Protocol("an answer too long")),
        }
    }
}

fn failed(block: &BlockRef, failure: Failure) -> BlockError {
    match failure.kind {
        FailureKind::Unavailable | FailureKind::TimedOut => {
            BlockError::Unavailable { id: block.id, reason: failure.text }
        }
        _ => BlockError::Cache(failure.text),
    }
}

fn cache_error(what: &str) -> BlockError {
    BlockError::Cache(format!("the cache process {what}"))
}
