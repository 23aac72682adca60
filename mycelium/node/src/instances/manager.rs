//! Which instances there are, and how each is doing.
//!
//! ```text
//!            add                 Started
//!    ──────────────> Starting ────────────> Running
//!                       ^  │ Ended             │ Ended
//!       after a while   │  v                   v
//!                       └─ Failed <────────────┘
//!
//!    remove, or other settings:  Starting, Running ──> Stopping ──Ended──> gone, or Starting anew
//! ```
//!
//! Instances are joined in a star: each has a link to the first that runs, the *hub*, by which it reaches
//! the hub's peers and all others. When the hub ends, the next takes its place at once. Instances of a
//! private network are joined among themselves only.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::api::Control;
use crate::instances::instance::{self, Event, EventKind, Started, Stop};
use crate::instances::settings::{InstanceError, InstanceSettings};
use crate::link::local::{self, Closer};

/// Instances that may be added.
const INSTANCE_COUNT_MAX: usize = 1024;
/// The first wait before an instance that failed is started again, and the longest.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// An instance that ran for so long was a good one: it starts again soon.
const GOOD_AGE: Duration = Duration::from_secs(60);

/// What is told of an instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InstanceInfo {
    name: String,
    state: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// It came with the file; else by the control socket.
    is_from_file: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<std::net::Ipv6Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    namespace: Option<String>,
    tun_name: Option<String>,
    /// Other instances that it has a link to.
    joined_instances: usize,
    /// Peers elsewhere that it has a link to.
    alive_peers: usize,
}

/// Why an instance was not added.
#[derive(Debug, thiserror::Error)]
pub(super) enum AddError {
    #[error(transparent)]
    Settings(#[from] InstanceError),
    #[error("instance {0} exists already")]
    Exists(String),
    #[error("{INSTANCE_COUNT_MAX} instances are there already, which is the most")]
    TooMany,
    #[error("instance {0} does not start: {1}")]
    Failed(String, String),
}

/// An answer that is awaited.
pub(super) type AddReply = oneshot::Sender<Result<InstanceInfo, AddError>>;

/// All instances of the process.
pub(super) struct Manager {
    slots: BTreeMap<String, Slot>,
    /// Numbers instances and their lives.
    next: u64,
    events: mpsc::Sender<Event>,
}

struct Slot {
    /// By which instances stand in order.
    number: u64,
    settings: InstanceSettings,
    is_from_file: bool,
    /// Which of its lives this is: what earlier ones say is late.
    life: u64,
    failures: u32,
    state: State,
}

enum State {
    Starting {
        _stop: Stop,
        reply: Option<AddReply>,
    },
    Running(Running),
    Failed {
        error: String,
        retry_at: Instant,
    },
    Stopping {
        /// What it runs with next, if it does.
        next: Option<Box<InstanceSettings>>,
        /// Why it is stopped, if it is its own fault.
        fault: Option<(String, Option<AddReply>)>,
        replies: Vec<oneshot::Sender<()>>,
    },
}

struct Running {
    _stop: Stop,
    started: Started,
    since: Instant,
    /// The hub's life, and the link to it.
    joined: Option<(u64, Closer)>,
}

impl Manager {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { slots: BTreeMap::new(), next: 0, events }
    }

    /// How all are doing, in their order.
    pub(super) fn list(&self) -> Vec<InstanceInfo> {
        let mut slots: Vec<&Slot> = self.slots.values().collect();
        slots.sort_by_key(|slot| slot.number);
        slots.into_iter().map(Slot::info).collect()
    }

    /// What the API of a running instance asks.
    pub(super) fn control(&self, name: &str) -> Option<std::sync::Arc<dyn Control>> {
        match &self.slots.get(name)?.state {
            State::Running(running) => Some(running.started.control()),
            _ => None,
        }
    }

    /// Adds one by the control socket. The reply comes when it runs or has failed, and one that fails is
    /// not kept.
    pub(super) fn add(&mut self, settings: InstanceSettings, reply: AddReply) {
        if let Err(error) = self.may_add(&settings) {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error));
            return;
        }
        let name = settings.name.clone();
        self.insert(settings, false);
        self.start(&name, Some(reply));
    }

    fn may_add(&self, settings: &InstanceSettings) -> Result<(), AddError> {
        settings.check()?;
        if self.slots.contains_key(&settings.name) {
            return Err(AddError::Exists(settings.name.clone()));
        }
        if self.slots.len() >= INSTANCE_COUNT_MAX {
            return Err(AddError::TooMany);
        }
        Ok(())
    }

    /// Removes one. The reply comes when nothing is left of it; false when there was none.
    pub(super) fn remove(&mut self, name: &str, reply: oneshot::Sender<()>) -> bool {
        let Some(slot) = self.slots.get_mut(name) else { return false };
        if let State::Failed { .. } = slot.state {
            self.slots.remove(name);
            // Whoever asked may have gone.
            let _ = reply.send(());
        } else {
            slot.stop(None).push(reply);
        }
        true
    }

    /// Makes the instances that came with the file those of `wanted`. One of which only the peers differ
    /// keeps running.
    pub(super) fn reload(&mut self, wanted: Vec<InstanceSettings>) {
        let is_gone = |slot: &Slot| {
            slot.is_from_file && !wanted.iter().any(|wanted| wanted.name == slot.settings.name)
        };
        let gone: Vec<String> = self
            .slots
            .iter()
            .filter(|(_, slot)| is_gone(slot))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            tracing::info!(instance = name, "removed");
            // Nobody waits for it.
            self.remove(&name, oneshot::channel().0);
        }
        for settings in wanted {
            self.want(settings);
        }
        self.join();
    }

    fn want(&mut self, settings: InstanceSettings) {
        let name = settings.name.clone();
        let Some(slot) = self.slots.get_mut(&name) else {
            if let Err(error) = self.may_add(&settings) {
                return tracing::error!(instance = name, %error, "not added");
            }
            self.insert(settings, true);
            return self.start(&name, None);
        };
        if !slot.is_from_file {
            tracing::warn!(instance = name, "was added by the control socket, and stays as it is");
            return;
        }
        let differs = slot.settings != settings;
        match &mut slot.state {
            State::Failed { .. } => {
                slot.settings = settings;
                self.start(&name, None);
            }
            State::Stopping { next, .. } => *next = Some(Box::new(settings)),
            State::Running(running) if slot.settings.differs_in_peers_alone(&settings) => {
                let peers = settings.check().map(|config| config.peers).unwrap_or_default();
                let _inside = running.started.enter();
                running.started.peers().replace_static(&peers);
                slot.settings = settings;
            }
            _ if differs => {
                tracing::info!(instance = name, "other settings: starts anew");
                slot.stop(Some(settings));
            }
            _ => {}
        }
    }

    fn insert(&mut self, settings: InstanceSettings, is_from_file: bool) {
        self.next += 1;
        let state = State::Failed { error: String::new(), retry_at: Instant::now() };
        let (number, life) = (self.next, self.next);
        let name = settings.name.clone();
        self.slots.insert(name, Slot { number, settings, is_from_file, life, failures: 0, state });
    }

    /// Starts a new life of an instance that has none.
    fn start(&mut self, name: &str, reply: Option<AddReply>) {
        self.next += 1;
        let Some(slot) = self.slots.get_mut(name) else { return };
        slot.life = self.next;
        match instance::start(slot.settings.clone(), slot.life, self.events.clone()) {
            Ok(stop) => slot.state = State::Starting { _stop: stop, reply },
            Err(error) => self.failed(name, format!("{error:#}"), reply),
        }
    }

    /// Takes what an instance tells.
    pub(super) fn event(&mut self, event: Event) {
        let Event { name, life, kind } = event;
        if self.slots.get(&name).is_some_and(|slot| slot.life == life) {
            match kind {
                EventKind::Started(started) => self.started(&name, started),
                EventKind::Ended(error) => self.ended(&name, error),
            }
            self.join();
        }
    }

    fn started(&mut self, name: &str, started: Started) {
        let key = started.key();
        let Some(slot) = self.slots.get_mut(name) else { return };
        let number = slot.number;
        let starting = std::mem::replace(&mut slot.state, State::stopping());
        let State::Starting { _stop: stop, reply } = starting else {
            // It is to stop already.
            slot.state = starting;
            return;
        };
        let is_twin = |other: &Slot| other.running().is_some_and(|twin| twin.started.key() == key);
        let twin = self.slots.iter_mut().find(|(_, other)| is_twin(other));
        let mut fault = None;
        if let Some((twin, other)) = twin {
            if other.number < number {
                fault = Some(format!("it has the same key as instance {twin}"));
            } else {
                // The one that stands first stays.
                other.blame(format!("it has the same key as instance {name}"), None);
            }
        }
        let Some(slot) = self.slots.get_mut(name) else { return };
        if let Some(fault) = fault {
            return slot.blame(fault, reply);
        }
        let since = Instant::now();
        slot.state = State::Running(Running { _stop: stop, started, since, joined: None });
        tracing::info!(instance = name, "runs");
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(slot.info()));
        }
    }

    fn ended(&mut self, name: &str, error: Option<anyhow::Error>) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let error = error.map(|error| instance::told(&error));
        let gone = State::Failed { error: String::new(), retry_at: Instant::now() };
        match std::mem::replace(&mut slot.state, gone) {
            State::Stopping { next: Some(settings), .. } => {
                slot.settings = *settings;
                self.start(name, None);
            }
            State::Stopping { fault: Some((fault, reply)), .. } => self.failed(name, fault, reply),
            State::Stopping { replies, .. } => {
                self.slots.remove(name);
                for reply in replies {
                    // Whoever asked may have gone.
                    let _ = reply.send(());
                }
            }
            State::Starting { reply, .. } => {
                self.failed(name, error.unwrap_or_else(ended_by_itself), reply);
            }
            State::Running(running) => {
                if running.since.elapsed() >= GOOD_AGE {
                    slot.failures = 0;
                }
                // Its device goes with what is known of it.
                drop(running);
                self.failed(name, error.unwrap_or_else(ended_by_itself), None);
            }
            failed @ State::Failed { .. } => slot.state = failed,
        }
    }

    /// Notes that an instance failed, to be started again; one that somebody waits for is not kept.
    fn failed(&mut self, name: &str, error: String, reply: Option<AddReply>) {
        if let Some(reply) = reply {
            self.slots.remove(name);
            // Whoever asked may have gone.
            let _ = reply.send(Err(AddError::Failed(name.to_owned(), error)));
            return;
        }
        let Some(slot) = self.slots.get_mut(name) else { return };
        tracing::error!(instance = name, error, "failed");
        let wait = RETRY_MIN.saturating_mul(1 << slot.failures.min(16)).min(RETRY_MAX);
        slot.failures = slot.failures.saturating_add(1);
        slot.state = State::Failed { error, retry_at: Instant::now() + wait };
    }

    /// When to start one again that failed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.slots.values().filter_map(Slot::retry_at).min()
    }

    /// Starts those again whose time has come.
    pub(super) fn retry(&mut self, now: Instant) {
        let is_due = |slot: &Slot| slot.retry_at().is_some_and(|at| at <= now);
        let due: Vec<String> = self
            .slots
            .iter()
            .filter(|(_, slot)| is_due(slot))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.start(&name, None);
        }
    }

    /// Asks all to stop.
    pub(super) fn stop_all(&mut self) {
        self.slots.retain(|_, slot| !matches!(slot.state, State::Failed { .. }));
        for slot in self.slots.values_mut() {
            slot.stop(None);
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Joins each instance that runs with its hub.
    fn join(&mut self) {
        let mut slots: Vec<&mut Slot> = self.slots.values_mut().collect();
        slots.sort_by_key(|slot| slot.number);
        let mut hubs: HashMap<Option<(String, PathBuf)>, &Slot> = HashMap::new();
        for slot in slots {
            if !matches!(slot.state, State::Running(_)) {
                continue;
            }
            let network = slot.settings.private_network();
            let network = network.map(|(name, key)| (name.to_owned(), key.to_owned()));
            if let Some(hub) = hubs.get(&network) {
                slot.join(hub);
            } else {
                hubs.insert(network, slot);
            }
        }
    }
}

impl State {
    /// About to stop, for good.
    fn stopping() -> Self {
        Self::Stopping { next: None, fault: None, replies: Vec::new() }
    }
}

impl Slot {
    /// Has it stop for a fault of its own, to be tried again later. `reply` is who waits for it.
    fn blame(&mut self, fault: String, reply: Option<AddReply>) {
        let fault = Some((fault, reply));
        self.state = State::Stopping { next: None, fault, replies: Vec::new() };
    }

    fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    fn retry_at(&self) -> Option<Instant> {
        match self.state {
            State::Failed { retry_at, .. } => Some(retry_at),
            _ => None,
        }
    }

    /// Has it stop, and then run with `next`, if given. Gives who is told when it has.
    fn stop(&mut self, next: Option<InstanceSettings>) -> &mut Vec<oneshot::Sender<()>> {
        if !matches!(self.state, State::Stopping { .. }) {
            // What ran or started is asked to stop by being dropped here.
            if let State::Starting { reply: Some(reply), .. } =
                std::mem::replace(&mut self.state, State::stopping())
            {
                let error = "it was removed meanwhile".to_owned();
                // Whoever asked may have gone.
                let _ = reply.send(Err(AddError::Failed(self.settings.name.clone(), error)));
            }
        }
        match &mut self.state {
            State::Stopping { next: after, replies, .. } => {
                *after = next.map(Box::new);
                replies
            }
            _ => unreachable!("it was made to stop above"),
        }
    }

    /// Has a link between this instance and its hub, unless there is one.
    fn join(&mut self, hub: &Self) {
        let (hub_name, hub_life) = (&hub.settings.name, hub.life);
        let (State::Running(running), Some(hub)) = (&mut self.state, hub.running()) else { return };
        if running.joined.as_ref().is_some_and(|(life, _)| *life == hub_life) {
            return;
        }
        if let Some((_, old)) = running.joined.take() {
            old.close();
        }
        let (ours, theirs, closer) = local::pair();
        running.started.join(hub_name.clone(), ours);
        hub.started.join(self.settings.name.clone(), theirs);
        running.joined = Some((hub_life, closer));
    }

    fn info(&self) -> InstanceInfo {
        let running = self.running();
        let peers = running.map(|running| running.started.peers().list()).unwrap_or_default();
        let count = |is_instance: bool| {
            let is_counted = |peer: &&crate::peers::PeerStatus| {
                peer.state == crate::peers::PeerState::Alive
                    && (peer.kind == crate::peers::PeerKind::Instance) == is_instance
            };
            peers.iter().filter(is_counted).count()
        };
        let key = running.map(|running| running.started.key());
        InstanceInfo {
            name: self.settings.name.clone(),
            state: match self.state {
                State::Starting { .. } => "starting",
                State::Running(_) => "running",
                State::Failed { .. } => "failed",
                State::Stopping { .. } => "stopping",
            },
            error: match &self.state {
                State::Failed { error, .. } => Some(error.clone()),
                _ => None,
            },
            is_from_file: self.is_from_file,
            address: key.map(|key| key.address()),
            public_key: key.map(|key| key.to_string()),
            namespace: self.settings.namespace.clone(),
            tun_name: self.settings.tun_name.clone(),
            joined_instances: count(true),
            alive_peers: count(false),
        }
    }
}

fn ended_by_itself() -> String {
    "it ended by itself".to_owned()
}
