//! A twin on the bus: makes calls, answers them.
//!
//! A [`Peer`] owns the connections to its relays and one task that takes what they bring; every
//! envelope is then looked at in a task of its own, of which there are only so many. A node gives it
//! [`Commands`]; a client gives it none, and [`Peer::call`]s.
//!
//! ```text
//!  relay ─> pump ─> for us? ─┬─ request ─> fresh? who? signed? ─> new? ─> let in? ─> command ─┐
//!                            ├─ answer ─> asked for? who? signed? ─> the call that waits      │
//!                            └─ a relay's error ─> the call that waits                        │
//!  relay <─ closed <───────────────────────────────────────────────────── answer or error <───┘
//! ```
//!
//! What is wrong with a request is answered as peers of the grid do ([`fault`]); what is wrong with
//! anything else is counted and dropped. Waiting calls, requests under way and answers to nonsense are
//! all limited.

mod answers;
mod calls;
mod counters;
pub mod fault;
mod pending;
mod requests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::debug;

use crate::envelope::{Address, Body, Envelope};
use crate::identity::Identity;
use crate::random::RandomError;
use crate::relay::{Credentials, Incoming, RELAY_COUNT_MAX, RelayAddress, Relays, TrustedRoots};
use crate::seal::Desk;
use crate::server::limits::{Admission, Bucket, Limits};
use crate::server::replay::ReplayWindow;
use crate::server::{Commands, Journal};
use crate::signature::Version;
use crate::twins::{TwinId, Twins};

pub use calls::{Call, CallError, Retry};
pub use counters::Event;

use counters::Counters;
use pending::Pending;

/// Envelopes that are looked at at a time, before it is known whether they are worth anything.
const LOOKING_COUNT_MAX: usize = 64;
/// Envelopes of which something is under way: looked at, or their command runs.
const BUSY_COUNT_MAX: usize = 1024;
/// Answers per second to requests that are not in order, and as many at once.
const FAULTS_PER_SECOND: u32 = 50;

/// Who a peer is, and where.
#[derive(Clone)]
pub struct PeerConfig {
    /// The twin's number on the chain.
    pub twin: TwinId,
    /// Which of the twin's sessions; a node has none.
    pub session: Option<String>,
    /// The twin's relays, all of which it connects to.
    pub relays: Vec<RelayAddress>,
    /// Of which version the key is that the twin published on the chain, if it published one.
    pub encryption: Option<Version>,
    /// Whose certificates the relays may show.
    pub roots: TrustedRoots,
    /// How much others may ask for.
    pub limits: Limits,
}

/// Why there is no peer.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum StartError {
    /// None, or too many.
    #[error("a twin has 1 to {RELAY_COUNT_MAX} relays, not {0}")]
    RelayCount(usize),
    /// No randomness for the replay window.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A twin on the bus, until it is dropped.
pub struct Peer {
    shared: Arc<Shared>,
    _pump: JoinSet<()>,
}

/// What all tasks of a peer share.
struct Shared {
    desk: Desk,
    relays: Relays,
    twins: Arc<dyn Twins>,
    commands: Commands,
    pending: Mutex<Pending>,
    replay: Mutex<ReplayWindow>,
    journal: Option<Arc<dyn Journal>>,
    admission: Mutex<Admission>,
    faults: Mutex<Bucket>,
    counters: Counters,
}

impl Peer {
    /// Starts to connect, and answers `commands` from then on. Must be called in a tokio runtime.
    pub fn start(
        config: PeerConfig,
        identity: Arc<Identity>,
        twins: Arc<dyn Twins>,
        commands: Commands,
    ) -> Result<Self, StartError> {
        Self::start_after(config, identity, twins, commands, &[], None)
    }

    /// The same, after a peer whose [`Peer::seen`] was that, with what was appended to it since: what it
    /// was asked is not done again. Bytes that are something else are nothing. Requests for commands that
    /// change something go to `journal` first; one that can't be written down is not done.
    pub fn start_after(
        config: PeerConfig,
        identity: Arc<Identity>,
        twins: Arc<dyn Twins>,
        commands: Commands,
        seen: &[u8],
        journal: Option<Arc<dyn Journal>>,
    ) -> Result<Self, StartError> {
        let PeerConfig { twin, session, relays, encryption, roots, limits } = config;
        if relays.is_empty() || relays.len() > RELAY_COUNT_MAX {
            return Err(StartError::RelayCount(relays.len()));
        }
        let session = session.filter(|name| !name.is_empty());
        let address = Address::new(twin, session.as_deref());
        let credentials = Credentials { identity: Arc::clone(&identity), twin, session };
        let replay = match ReplayWindow::from_bytes(seen) {
            Some(replay) => replay,
            None => ReplayWindow::new()?,
        };
        let (relays, incoming) = Relays::start(relays, credentials, &roots);
        let rate = f64::from(FAULTS_PER_SECOND);
        let shared = Arc::new(Shared {
            desk: Desk::new(identity, address, encryption),
            relays,
            twins,
            commands,
            pending: Mutex::default(),
            replay: Mutex::new(replay),
            journal,
            admission: Mutex::new(Admission::new(limits)),
            faults: Mutex::new(Bucket::new(rate, FAULTS_PER_SECOND, Instant::now())),
            counters: Counters::default(),
        });
        let mut pump = JoinSet::new();
        pump.spawn(run_pump(Arc::clone(&shared), incoming));
        Ok(Self { shared, _pump: pump })
    }

    /// Calls a command of another twin, and waits for the answer.
    pub async fn call(&self, call: Call) -> Result<bytes::Bytes, CallError> {
        self.shared.call(call).await
    }

    /// Waits until there is a connection to a relay, for `time` at most; says whether there is.
    pub async fn wait_connected(&self, time: Duration) -> bool {
        self.shared.relays.wait_connected(tokio::time::Instant::now() + time).await.is_ok()
    }

    /// What it was asked and must not do again, to be written down for whoever comes after.
    pub fn seen(&self) -> Vec<u8> {
        lock(&self.shared.replay).to_bytes()
    }

    /// How many relays it is connected to.
    pub fn connected_count(&self) -> usize {
        self.shared.relays.connected_count()
    }

    /// How often each kind of thing has happened, by its name in metrics.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.shared.counters.counts()
    }

    /// How often that has happened.
    pub fn count(&self, event: Event) -> u64 {
        self.shared.counters.count(event)
    }
}

/// Takes what relays bring, and has each looked at.
async fn run_pump(shared: Arc<Shared>, mut incoming: mpsc::Receiver<Incoming>) {
    let looking = Arc::new(Semaphore::new(LOOKING_COUNT_MAX));
    let mut tasks = JoinSet::new();
    while let Some(message) = incoming.recv().await {
        let Ok(permit) = Arc::clone(&looking).acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= BUSY_COUNT_MAX {
            tasks.join_next().await;
        }
        tasks.spawn(Arc::clone(&shared).look_at(message, permit));
    }
}

impl Shared {
    /// Looks at one envelope. `looking` is given up as soon as it is known to be genuine.
    async fn look_at(self: Arc<Self>, message: Incoming, looking: OwnedSemaphorePermit) {
        self.counters.add(Event::Received);
        let envelope = match Envelope::parse(message.bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                debug!(%error, "no envelope");
                return self.counters.add(Event::Malformed);
            }
        };
        match &envelope.body {
            Some(Body::Error(error)) if envelope.source_twin().is_none() => {
                self.relay_error(&envelope.uid, &error.message);
            }
            _ if !self.is_for_us(&envelope) => {
                debug!(uid = envelope.uid, destination = ?envelope.destination, "not for us");
                self.counters.add(Event::Misdirected);
            }
            Some(Body::Request(_)) => self.request(envelope, message.relay, looking).await,
            Some(Body::Response(_) | Body::Error(_)) => self.answer(envelope).await,
            Some(Body::Ping(_) | Body::Pong(_)) | None => self.counters.add(Event::Malformed),
        }
    }

    fn is_for_us(&self, envelope: &Envelope) -> bool {
        let ours = self.desk.address();
        let theirs = envelope.destination.as_ref();
        theirs.is_some_and(|theirs| theirs.twin == ours.twin && theirs.session() == ours.session())
    }
}

/// Locks what is never left half done, so that a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
