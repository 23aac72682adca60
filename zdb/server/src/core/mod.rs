//! The server without sockets: namespaces, rights, clock and figures, shared by all clients.
//!
//! The event loop calls it in batches. A batch is what all clients sent since the last one; its writes
//! cost one system call for each namespace, and its replies wait for one sync that they share:
//!
//! ```text
//!  begin_batch ─> Connection::process (for each client) ─> commit ─> take_syncs ─┐
//!       ▲                                                    │                   │ another thread
//!       │                                     replies of level none go           ▼
//!       └──────────────── replies of level group go <──── synced <──────── Sync::run
//! ```
//!
//! Nothing here opens a socket, starts a thread (except to load namespaces faster) or waits. What would
//! have to wait is a [`Task`] for others' threads.

mod batch;
mod events;
mod namespaces;
mod open;
mod replicate;
mod tasks;
pub(crate) mod upkeep;
mod waits;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use batch::{Failure, Sync, Synced};
pub use namespaces::NamespaceId;
pub(crate) use namespaces::{Absence, Entry, Follower, NAMESPACE_COUNT_MAX, Namespaces, Watcher};
pub use open::OpenError;
pub(crate) use tasks::{Answer, Asker, Worked};
pub use tasks::{Answered, Reply, Task, TaskDone};
pub(crate) use waits::Waits;
use zdb_engine::{Durability, Engine, Mode, Namespace, Password, Secret, SeqNo};

use crate::commands::CommandId;
use crate::hooks::Hooks;
use crate::metrics::Metrics;
use crate::output::Output;
use crate::refusal::{Refusal, SET_FAILED};
use crate::session::Session;

/// A client: its place in the event loop's table, and the how-manieth there it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    /// Place in the table.
    pub place: u32,
    /// Tells it from earlier clients of that place.
    pub generation: u32,
}

/// How the server treats all clients and namespaces. Set once, at the start.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The administrator's password; without one everybody is administrator.
    pub admin: Option<Password>,
    /// Whether the default namespace is read-only without the administrator's password.
    pub is_protected: bool,
    /// The one mode of all namespaces, if there is only one.
    pub mode: Option<Mode>,
    /// The level of durability of new namespaces, and of the default one.
    pub durability: Option<Durability>,
    /// Limit of the default namespace, in bytes.
    pub default_size_max: Option<u64>,
    /// Whether `STOP` and `KSCAN` exist.
    pub has_test_commands: bool,
    /// How hooks know this server.
    pub instance: String,
    /// The program that is told what happens.
    pub hook: Option<std::path::PathBuf>,
    /// After how long a segment that was written to is closed.
    pub rotate: Option<Duration>,
    /// Encrypts new namespaces and opens those that it opens.
    pub secret: Option<Secret>,
    /// How many followers must have a write before its reply is sent.
    pub follower_count_min: usize,
}

/// The time, read once a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// Since the start.
    pub(crate) now: Duration,
    /// Seconds of the epoch.
    pub(crate) unix: u32,
    /// When the server started, in seconds of the epoch.
    pub(crate) unix_started: u32,
}

/// Everything that commands act on.
#[derive(Debug)]
pub struct Core {
    pub(crate) engine: Engine,
    pub(crate) policy: Policy,
    pub(crate) namespaces: Namespaces,
    pub(crate) default: NamespaceId,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) hooks: Hooks,
    pub(crate) waits: Waits,
    /// What other clients are to be told.
    pub(crate) messages: Vec<(ClientId, Vec<u8>)>,
    /// Where a reply is put together whose beginning is known last.
    pub(crate) scratch: Vec<u8>,
    /// Whether somebody said `STOP`.
    pub(crate) is_stopping: bool,
    pub(crate) instance_id: u32,
    follower_count: usize,
    touched: Vec<NamespaceId>,
    /// Namespaces with something to be synced.
    unsynced: Vec<NamespaceId>,
    syncs: Vec<Sync>,
    tasks: Vec<Task>,
    answers: Vec<Answered>,
    woken: Vec<ClientId>,
    failures: Vec<Failure>,
    upkeep: upkeep::Upkeep,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let unix = unix_seconds();
        Self { started: Instant::now(), now: Duration::ZERO, unix, unix_started: unix }
    }

    pub(crate) fn update(&mut self) {
        self.now = self.started.elapsed();
        self.unix = unix_seconds();
    }
}

/// Seconds of the epoch, as timestamps hold them.
fn unix_seconds() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

impl Core {
    /// A session of a client that has just come.
    #[must_use]
    pub fn session(&mut self, client: ClientId, is_local: bool) -> Session {
        self.metrics.client_count += 1;
        let mut session = Session::new(client, self.default, is_local);
        session.is_admin = self.policy.admin.is_none();
        session.is_writable = !self.policy.is_protected;
        session
    }

    /// Reads the clock. To be called before requests are executed.
    pub fn begin_batch(&mut self) {
        self.clock.update();
    }

    /// Time since the start, as of the running batch.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.now
    }

    /// Whether the server was told to stop by a command.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// What other clients are to be told since the last call.
    pub fn take_messages(&mut self) -> Vec<(ClientId, Vec<u8>)> {
        std::mem::take(&mut self.messages)
    }

    /// The password of a namespace; the default one has the administrator's under `--protect`, which
    /// is never written to its descriptor.
    pub(crate) fn password(&self, id: NamespaceId) -> Option<&Password> {
        if id == self.default && self.policy.is_protected {
            return self.policy.admin.as_ref();
        }
        let namespace = self.namespaces.get(id)?.namespace.as_ref().ok()?;
        namespace.settings().password.as_ref()
    }

    /// The namespace that a session works in.
    pub(crate) fn active(&mut self, session: &Session) -> Result<&mut Namespace, Refusal> {
        let entry = self.namespaces.get_mut(session.namespace);
        entry.ok_or(crate::commands::DETACHED)?.loaded()
    }

    /// Remembers that the running batch wrote to a namespace.
    pub(crate) fn touch(&mut self, id: NamespaceId) {
        if let Some(entry) = self.namespaces.get_mut(id)
            && !entry.is_touched
        {
            entry.is_touched = true;
            self.touched.push(id);
        }
    }

    /// Holds back the reply that begins at `begin` until `seq` is as durable as it must be.
    pub(crate) fn hold(
        &mut self,
        session: &Session,
        output: &mut Output,
        begin: u64,
        seq: SeqNo,
        failure: &'static str,
    ) {
        output.hold(begin, session.namespace, seq, failure);
        self.touch(session.namespace);
    }

    /// Holds back a reply to `SET`.
    pub(crate) fn hold_set(
        &mut self,
        session: &Session,
        output: &mut Output,
        begin: u64,
        seq: SeqNo,
    ) {
        self.hold(session, output, begin, seq, SET_FAILED);
    }

    /// Tells those who wait for this command in this namespace.
    pub(crate) fn notify(&mut self, session: &Session, command: CommandId) {
        let Some(entry) = self.namespaces.get_mut(session.namespace) else { return };
        if entry.watchers.is_empty() {
            return;
        }
        let waits = &mut self.waits;
        let messages = &mut self.messages;
        entry.watchers.retain(|watcher| {
            let matches = watcher.command.is_none_or(|wanted| wanted == command);
            if matches && watcher.client != session.client {
                waits.remove(watcher.client);
                let mut reply = Vec::new();
                zdb_resp::write::simple(&mut reply, command.name().as_bytes());
                messages.push((watcher.client, reply));
                return false;
            }
            true
        });
    }

    /// Forgets a client that has gone.
    pub fn forget(&mut self, session: &Session) {
        self.stop_waiting(session.client);
        let Some(id) = session.follows else { return };
        self.follower_count -= 1;
        if let Some(entry) = self.namespaces.get_mut(id) {
            entry.followers.retain(|follower| follower.client != session.client);
            self.hold_for_followers(id);
        }
    }
}
