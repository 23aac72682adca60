//! The task that makes sessions: it owns the machine, and does what the machine says.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mycelium_wire::RandomError;
use mycelium_wire::identity::{PublicKey, SecretKey};
use mycelium_wire::inner::InnerType;
use mycelium_wire::session::{Clock, Event, Machine, Suites};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use crate::data::session::proved::ProvedFile;
use crate::data::session::{Order, Sessions};
use crate::data::{DataPlane, lock};

/// Changes to the file of proved peers are gathered for this long.
const WRITE_AFTER: Duration = Duration::from_secs(1);
/// Orders that are taken before their effects are carried out.
const BATCH_COUNT_MAX: usize = 64;

/// The machine and what it acts on.
pub(crate) struct Keeper {
    machine: Machine,
    sessions: Arc<Sessions>,
    plane: Arc<DataPlane>,
    file: Option<ProvedFile>,
    /// When the file is written, if it should be; and the thread that writes it.
    write_at: Option<Instant>,
    writer: Option<JoinHandle<()>>,
}

impl Keeper {
    /// The keeper of a node with this key; `proved` is what an earlier run knew.
    pub(crate) fn new(
        secret: SecretKey,
        plane: Arc<DataPlane>,
        proved: &[PublicKey],
        file: Option<ProvedFile>,
    ) -> Result<Self, RandomError> {
        let mut machine = Machine::new(secret, Suites::here())?;
        for peer in proved {
            machine.remember(*peer);
        }
        let sessions = Arc::clone(plane.sessions());
        Ok(Self { machine, sessions, plane, file, write_at: None, writer: None })
    }

    /// Runs until nobody can give orders any more.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let next = self.deadline();
            let time = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.order(order, Instant::now()),
                    None => return,
                },
                () = time => {}
            }
            for _ in 0..BATCH_COUNT_MAX {
                let Ok(order) = orders.try_recv() else { break };
                self.order(order, Instant::now());
            }
            self.act(Instant::now());
            self.write(Instant::now());
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let deadline = self.machine.deadline();
        let deadline = deadline.and_then(|at| self.sessions.start.checked_add(at.0));
        deadline.into_iter().chain(self.write_at).min()
    }

    fn clock(&self, now: Instant) -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { now: self.sessions.time(now), wall }
    }

    pub(super) fn order(&mut self, order: Order, now: Instant) {
        let clock = self.clock(now);
        match order {
            Order::Want(peer) => self.machine.want(peer, clock),
            Order::Handshake(from, payload) => self.machine.received(from, &payload, clock),
            Order::Confirmed => self.machine.tick(clock),
            Order::Forget(peer) => {
                if self.machine.forget(&peer) {
                    tracing::info!(%peer, "its proof is forgotten");
                    self.sessions.set_proved(peer, false);
                    self.write_at.get_or_insert(now + WRITE_AFTER);
                }
            }
        }
    }

    /// Does what is due, and what the machine says.
    pub(super) fn act(&mut self, now: Instant) {
        let clock = self.clock(now);
        if self.machine.deadline().is_some_and(|deadline| deadline <= clock.now) {
            self.machine.tick(clock);
        }
        while let Some(event) = self.machine.poll() {
            self.event(event, now);
        }
        *lock(&self.sessions.handshakes) = self.machine.counters();
    }

    fn event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Send(peer, payload) => {
                let (source, destination) = (self.plane.address, peer.address());
                self.plane.send(InnerType::Session, source, destination, &payload);
            }
            Event::Changed(peer, ring) => {
                let Some(channel) = self.sessions.channel_of(peer) else {
                    return tracing::warn!(%peer, "too many peers: no session with this one");
                };
                channel.set_ring(ring);
                self.plane.unpark(&channel, now);
            }
            Event::SignOfLife(peer) => {
                if let Some(channel) = self.sessions.channel_of(peer) {
                    self.plane.send_sign_of_life(&channel, now);
                }
            }
            Event::Unanswered(peer) => {
                let is_proved = self.machine.is_proved(&peer);
                tracing::debug!(%peer, is_proved, "nobody answers the handshake");
                // Who says that it can and does not answer may never have been asked.
                if is_proved || self.plane.is_announced(peer) {
                    self.plane.note_astray(peer);
                }
                if let Some(channel) = self.sessions.channel_of(peer) {
                    channel.set_unanswered();
                    self.plane.unpark(&channel, now);
                }
            }
            Event::Proved(peer) => {
                tracing::debug!(%peer, "first session");
                self.sessions.set_proved(peer, true);
                self.write_at.get_or_insert(now + WRITE_AFTER);
            }
        }
    }

    /// Writes the file of proved peers when it is due.
    fn write(&mut self, now: Instant) {
        if self.write_at.is_none_or(|at| now < at) {
            return;
        }
        let Some(file) = self.file.clone() else {
            self.write_at = None;
            return;
        };
        if self.writer.as_ref().is_some_and(|writer| !writer.is_finished()) {
            // The disk is slow.
            self.write_at = Some(now + WRITE_AFTER);
            return;
        }
        self.write_at = None;
        let mut peers: Vec<_> = self.machine.proved().copied().collect();
        peers.sort_unstable();
        self.writer = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = file.write(&peers) {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "peers that had sessions will be strangers after a restart"
                );
            }
        }));
    }
}
