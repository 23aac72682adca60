//! One process, many identities: a node for the machine itself and one for each user network, each with its
//! key, its router, its TUN device and its network namespace.
//!
//! ```text
//!  SIGHUP, file ──┐             ┌──> instance: thread in its namespace ── peers, TUN
//!                 ├──> manager ─┤                │ memory, no socket, nothing sealed twice
//!  control socket ┘             └──> instance: thread in its namespace ── TUN
//! ```
//!
//! Instances reach each other and each other's peers over links in memory (`link::local`). They
//! share nothing else: an instance that fails is noted, taken apart and started again later, and the others
//! do not notice. What is added by the control socket lasts as long as the process; whoever adds keeps it.

mod control;
mod instance;
mod manager;
pub mod settings;

pub use control::ControlSocketError;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::instances::control::Order;
use crate::instances::instance::Event;
use crate::instances::manager::Manager;
use crate::instances::settings::{CONTROL_SOCKET, InstancesFile};

/// What instances and clients may have to say before they wait.
const WAITING_COUNT_MAX: usize = 64;
/// How long instances may take to end with the process.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the instances of `file` until SIGTERM or SIGINT. SIGHUP reads it again. `socket` overrides the
/// file's control socket.
///
/// # Errors
/// When the file makes no sense, or there can't be a control socket. An instance that can't start is no
/// such error: others may.
pub fn run(file: &Path, socket: Option<PathBuf>) -> anyhow::Result<()> {
    let wanted = InstancesFile::read(file)?;
    let socket = socket.or_else(|| wanted.control_socket.clone());
    let socket = socket.unwrap_or_else(|| PathBuf::from(CONTROL_SOCKET));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be made")?;
    runtime.block_on(async {
        let (listener, _file) = control::listen(&socket)?;
        let (orders, orders_taken) = mpsc::channel(WAITING_COUNT_MAX);
        tokio::spawn(control::serve(listener, orders));
        tracing::info!(socket = %socket.display(), "instances are controlled here");
        serve(file, wanted, orders_taken).await
    })
}

async fn serve(
    file: &Path,
    wanted: InstancesFile,
    mut orders: mpsc::Receiver<Order>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (events, mut events_taken) = mpsc::channel(WAITING_COUNT_MAX);
    let mut manager = Manager::new(events);
    manager.reload(wanted.instances);
    loop {
        let retry_at = manager.deadline();
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = events_taken.recv() => manager.event(event),
            Some(order) = orders.recv() => obey(&mut manager, order),
            () = retry => manager.retry(std::time::Instant::now()),
            _ = hangup.recv() => reload(&mut manager, file),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    stop(manager, events_taken).await;
    Ok(())
}

fn obey(manager: &mut Manager, order: Order) {
    match order {
        // Whoever asked may have gone.
        Order::List(answer) => drop(answer.send(manager.list())),
        Order::Add(settings, reply) => manager.add(*settings, reply),
        Order::Remove(name, answer) => {
            manager.remove(&name, answer);
        }
        Order::Control(name, answer) => drop(answer.send(manager.control(&name))),
    }
}

/// Reads the file again. One that makes no sense changes nothing.
fn reload(manager: &mut Manager, file: &Path) {
    match InstancesFile::read(file) {
        Ok(wanted) => manager.reload(wanted.instances),
        Err(error) => tracing::error!(error = format!("{error:#}"), "the file is not taken"),
    }
}

async fn stop(mut manager: Manager, mut events: mpsc::Receiver<Event>) {
    tracing::info!("all instances stop");
    manager.stop_all();
    let all = async {
        while !manager.is_empty() {
            let Some(event) = events.recv().await else { return };
            manager.event(event);
        }
    };
    if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
        tracing::warn!("some instances did not end in time");
    }
}
