//! One instance: a node on a thread of its own, which lives in the instance's namespace.
//!
//! ```text
//!  start ──> thread: namespace ──> runtime ──> Node ──Started──> manager
//!                        │            │          │
//!                        └────────────┴──error───┴──stop, or its device is gone──> Ended
//! ```
//!
//! The runtime and all its tasks belong to the thread; with more than one thread, workers enter the
//! namespace as well, as do those that ask DNS. So an instance that ends, for whatever reason, takes its
//! tasks, sockets and device with it, and one that is busy keeps nobody else from running.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use mycelium_wire::identity::PublicKey;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::api::Control;
use crate::control::NodeControl;
use crate::daemon::Node;
use crate::instances::settings::InstanceSettings;
use crate::key_file::KeyFileError;
use crate::link::local::LocalCarrier;
use crate::namespace::{Namespace, NamespaceError};
use crate::peers::Peers;
use crate::tun::TunError;

/// What an instance tells its manager.
pub(super) struct Event {
    /// Which instance.
    pub(super) name: String,
    /// Which of its lives.
    pub(super) life: u64,
    pub(super) kind: EventKind,
}

/// What happened.
pub(super) enum EventKind {
    /// It runs.
    Started(Started),
    /// It ended; with an error unless it was asked to.
    Ended(Option<anyhow::Error>),
}

/// An instance that runs, as others see it.
pub(super) struct Started {
    handle: Handle,
    peers: Arc<Peers>,
    control: Arc<NodeControl>,
}

/// Ends its instance when it is dropped.
pub(super) type Stop = oneshot::Sender<()>;

impl Started {
    /// What its API asks.
    pub(super) fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.control) as Arc<dyn Control>
    }

    /// Its key.
    pub(super) fn key(&self) -> PublicKey {
        self.control.info().node_pubkey
    }

    /// Its peers.
    pub(super) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Inside its runtime, where peers may be added.
    pub(super) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.handle.enter()
    }

    /// Has it carry one end of a link to the instance `name`.
    pub(super) fn join(&self, name: String, end: LocalCarrier) {
        self.handle.spawn(Arc::clone(&self.peers).join(name, end));
    }
}

/// Starts an instance. What becomes of it is told to `events`.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn start(
    settings: InstanceSettings,
    life: u64,
    events: mpsc::Sender<Event>,
) -> anyhow::Result<Stop> {
    let (stop, stopped) = oneshot::channel();
    let name = settings.name.clone();
    let live = move || {
        let span = tracing::info_span!("instance", instance = %settings.name);
        let _inside = span.entered();
        let started = |started| {
            let name = settings.name.clone();
            let told =
                events.blocking_send(Event { name, life, kind: EventKind::Started(started) });
            // Else the process ends, and with it this instance.
            told.map_err(|_| anyhow!("the process ends"))
        };
        let ended = run(&settings, stopped, started).err();
        let name = settings.name.clone();
        let _ = events.blocking_send(Event { name, life, kind: EventKind::Ended(ended) });
    };
    let builder = std::thread::Builder::new().name(name);
    builder.spawn(live).context("no thread for the instance")?;
    Ok(stop)
}

/// What is told of an error, with what can be done about it where we know.
pub(super) fn told(error: &anyhow::Error) -> String {
    let hint = error.chain().find_map(|cause| {
        let namespace = cause.downcast_ref().and_then(NamespaceError::hint);
        let tun = || cause.downcast_ref().and_then(TunError::hint);
        namespace.or_else(tun).or_else(|| cause.downcast_ref().and_then(KeyFileError::hint))
    });
    match hint {
        Some(hint) => format!("{error:#} (hint: {hint})"),
        None => format!("{error:#}"),
    }
}

/// Runs until it is asked to stop or can't go on.
fn run(
    settings: &InstanceSettings,
    stopped: oneshot::Receiver<()>,
    started: impl FnOnce(Started) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let config = settings.check()?;
    let namespace = settings.namespace.as_deref().map(Namespace::open).transpose()?;
    if let Some(namespace) = &namespace {
        namespace.enter()?;
    }
    let runtime = runtime(settings.thread_count(), namespace).context("no runtime can be made")?;
    let result = {
        let _inside = runtime.enter();
        Node::start(config)
    };
    let done = result.and_then(|node| {
        let (peers, control) = (Arc::clone(node.peers()), Arc::clone(node.control()));
        started(Started { handle: runtime.handle().clone(), peers, control })?;
        let ended = runtime.block_on(async {
            tokio::select! {
                _ = stopped => Ok(()),
                () = node.device_gone() => Err(anyhow!("the TUN device is gone")),
            }
        });
        node.stop();
        ended
    });
    runtime.shutdown_background();
    done
}

fn runtime(thread_count: u8, namespace: Option<Namespace>) -> std::io::Result<Runtime> {
    let mut builder = match thread_count {
        1 => Builder::new_current_thread(),
        count => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(usize::from(count));
            builder
        }
    };
    if let Some(namespace) = namespace {
        builder.on_thread_start(move || {
            namespace.enter().expect("a namespace that was entered can be entered again");
        });
    }
    builder.enable_all().build()
}
