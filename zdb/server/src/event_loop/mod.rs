//! The loop: waits for sockets, serves what came, and sends what may be sent.
//!
//! ```text
//!   ┌─> wait (epoll) ─> receive and serve each ready client ─> write ─> send ─> upkeep ──┐
//!   └────────────────────────────────────────────────────────────────────────────────────┘
//!                ▲ eventfd                                        │ syncs, tasks
//!                └────────── threads that wait for the disk ◄─────┘
//! ```
//!
//! Clients are registered once, edge-triggered; what is readable and writable is remembered here, so
//! that a client who is not served for a while (it reads too slowly) costs nothing. No step walks over
//! all clients: there are lists of those with something to do. A client gets one turn of at most
//! 256 KiB a round. Replies leave together at the end of the round, after the batch is written: a client
//! program with many connections wakes up once for all of them. Large ones that wait for nothing, and
//! those of a client that is alone in its round, leave at the end of its turn.

mod clients;
mod listen;
mod memory;
mod metrics_http;
mod poll;
mod send;
mod settle;
mod workers;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clients::Clients;
use listen::{Accepted, Spare};
pub use listen::{Address, BindError, Listener};
pub use metrics_http::MetricsServer;
use poll::{Poll, Ready, Token, Waker};
use rustix::io::Errno;
use workers::Workers;

use crate::core::{ClientId, Core, Sync, Synced, Task, TaskDone};
use crate::output::Spares;

/// Bytes received from a client in one turn.
pub(crate) const RECEIVE_SIZE: usize = 256 * 1024;
/// Descriptors that are not for clients: segments, folders, hooks. A quarter, if there are few.
const DESCRIPTOR_RESERVE: u64 = 1024;
/// Bytes of replies that leave before other clients have their turn: the buffer is still in the
/// processor's caches, and is free for the next client.
const SENT_AT_ONCE_SIZE_MIN: u64 = 16 * 1024;
/// Syncs that run at the same time.
const SYNC_THREAD_COUNT: usize = 4;
/// Syncs that nobody waits for, of those that run at the same time.
const UPKEEP_THREAD_COUNT: usize = 2;
/// Tasks that run at the same time.
const TASK_THREAD_COUNT: usize = 2;
/// Rounds of syncs and tasks at the end: one may bring another, as a new segment brings writes to it.
const END_ROUND_COUNT_MAX: usize = 16;

/// The running server.
#[derive(Debug)]
pub struct Server {
    core: Core,
    poll: Poll,
    /// These are open as long as the loop waits for them.
    _waker: Arc<Waker>,
    _signals: UnixStream,
    listeners: Vec<Listener>,
    spare: Spare,
    clients: Clients,
    syncs: Workers<Sync, Synced>,
    upkeep: Workers<Sync, Synced>,
    tasks: Workers<Task, TaskDone>,
    metrics: Option<MetricsServer>,
    /// What is received, before it belongs to a client.
    shared: Vec<u8>,
    /// Buffers for replies that nobody uses.
    spares: Spares,
    /// Clients to be served in the next round.
    ready: Vec<ClientId>,
    /// Empty between rounds; it is kept for its memory.
    turns: Vec<ClientId>,
    /// Empty between rounds, too.
    sending: Vec<ClientId>,
    /// Clients with something to send.
    unsent: Vec<ClientId>,
    /// Clients whose replies wait for a write to be durable.
    waiting: Vec<ClientId>,
    /// Whether a follower may take more at once.
    must_feed: bool,
    swept_at: Duration,
}

impl Server {
    /// A server for these listeners. Ends when `signals` becomes readable.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(
        core: Core,
        listeners: Vec<Listener>,
        metrics: Option<std::net::TcpListener>,
        signals: UnixStream,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new()?);
        poll.add_edge(waker.descriptor(), Token::WAKER)?;
        signals.set_nonblocking(true)?;
        poll.add_level(&signals, Token::SIGNALS)?;
        for (index, listener) in (0..).zip(&listeners) {
            poll.add_level(listener, Token::listener(index))?;
        }
        let metrics = metrics.map(|listener| MetricsServer::start(listener, Arc::clone(&waker)));
        Ok(Self {
            core,
            poll,
            syncs: Workers::start(&waker, "sync", SYNC_THREAD_COUNT, Sync::run)?,
            upkeep: Workers::start(&waker, "upkeep", UPKEEP_THREAD_COUNT, Sync::run)?,
            tasks: Workers::start(&waker, "task", TASK_THREAD_COUNT, Task::run)?,
            _waker: waker,
            _signals: signals,
            listeners,
            spare: Spare::new()?,
            clients: Clients::new(client_limit()),
            metrics: metrics.transpose()?,
            shared: Vec::with_capacity(RECEIVE_SIZE),
            spares: Spares::default(),
            ready: Vec::new(),
            turns: Vec::new(),
            sending: Vec::new(),
            unsent: Vec::new(),
            waiting: Vec::new(),
            must_feed: false,
            swept_at: Duration::ZERO,
        })
    }

    /// Serves until a signal or `STOP`, then ends well.
    ///
    /// # Errors
    /// Only if the system no longer tells what happens.
    pub fn run(mut self) -> io::Result<()> {
        let mut due = Duration::ZERO;
        let mut events = Vec::new();
        loop {
            let has_work = !self.ready.is_empty() || !self.unsent.is_empty() || self.must_feed;
            let wait = if has_work { Duration::ZERO } else { due.saturating_sub(self.core.now()) };
            self.poll.wait(wait, &mut events)?;
            self.core.begin_batch();
            // Who waits for a reply has asked for something.
            let is_idle = events.is_empty() && !has_work && self.waiting.is_empty();
            let mut must_stop = false;
            for Ready { token, is_readable, is_writable, has_ended } in events.drain(..) {
                match token {
                    // What it wakes for is looked at in any case.
                    Token::Waker => {}
                    Token::Signals => must_stop = true,
                    Token::Listener(index) => self.accept(index),
                    Token::Client(client) => {
                        self.note(client, is_readable, is_writable, has_ended);
                    }
                }
            }
            self.serve();
            self.settle();
            due = self.core.upkeep(is_idle);
            self.settle();
            self.sweep();
            if must_stop || self.core.is_stopping() {
                return self.end();
            }
        }
    }

    /// Remembers what a client's socket is ready for.
    fn note(&mut self, id: ClientId, is_readable: bool, is_writable: bool, has_ended: bool) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.is_readable |= is_readable || has_ended;
        client.has_ended |= has_ended;
        if is_writable && !client.is_writable {
            client.is_writable = true;
            if client.connection.output().unsent_size() > 0 {
                Self::queue_unsent(&mut self.unsent, id, client);
            }
        }
        if client.is_readable {
            Self::queue_ready(&mut self.ready, id, client);
        }
    }

    fn queue_ready(ready: &mut Vec<ClientId>, id: ClientId, client: &mut clients::Client) {
        if !client.is_ready {
            client.is_ready = true;
            ready.push(id);
        }
    }

    fn queue_unsent(unsent: &mut Vec<ClientId>, id: ClientId, client: &mut clients::Client) {
        if !client.is_unsent {
            client.is_unsent = true;
            unsent.push(id);
        }
    }

    /// A turn for each client that is ready.
    fn serve(&mut self) {
        let mut now = Instant::now();
        // Those who have another turn get it in the next round.
        let mut turns = std::mem::take(&mut self.turns);
        std::mem::swap(&mut turns, &mut self.ready);
        let is_alone = turns.len() == 1;
        for id in turns.drain(..) {
            let Some(client) = self.clients.get_mut(id) else { continue };
            client.is_ready = false;
            if client.draining.is_some() {
                self.drain(id);
                continue;
            }
            if client.connection.may_resume() {
                now = client.connection.resume(&mut self.core, now);
            } else if client.is_readable && client.connection.may_receive() {
                client.connection.output_mut().borrow_from(&mut self.spares);
                match client.receive(&mut self.core, &mut self.shared, now) {
                    Ok(end) => now = end,
                    Err(_) => {
                        self.close(id);
                        continue;
                    }
                }
            }
            self.after_turn(id, is_alone);
        }
        self.turns = turns;
    }

    /// Sends what need not wait for the batch, and queues a client for what its turn left to do.
    fn after_turn(&mut self, id: ClientId, is_alone: bool) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.active_at = self.core.now();
        let output = client.connection.output();
        let is_urgent = is_alone || output.unsent_size() >= SENT_AT_ONCE_SIZE_MIN;
        if is_urgent && output.held_count() == 0 && !client.connection.is_closing() {
            self.send(id);
        }
        self.bound_memory(id);
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.connection.output().unsent_size() > 0 || client.connection.is_closing() {
            Self::queue_unsent(&mut self.unsent, id, client);
        }
        if client.connection.output().held_count() > 0 && !client.is_waiting {
            client.is_waiting = true;
            self.waiting.push(id);
        }
        let may_go_on = client.is_readable && client.connection.may_receive();
        if may_go_on || client.connection.may_resume() {
            Self::queue_ready(&mut self.ready, id, client);
        }
    }

    /// Takes new clients.
    fn accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        for _ in 0..listen::ACCEPT_COUNT {
            let socket = match listener.accept(&mut self.spare) {
                Accepted::Client(socket) => socket,
                Accepted::TurnedAway => {
                    self.core.metrics.refused_count += 1;
                    continue;
                }
                Accepted::Nobody => return,
            };
            let is_local = listener.is_local();
            if let Err(socket) = self.clients.insert(&mut self.core, &self.poll, socket, is_local) {
                self.core.metrics.refused_count += 1;
                listen::turn_away(&socket);
            }
        }
    }

    /// Sends what may be sent, and ends a conversation that is over.
    fn send(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.is_unsent = false;
        match client.send() {
            Ok(sent) => self.core.metrics.sent_size += sent,
            Err(_) => return self.close(id),
        }
        client.connection.output_mut().give_back_to(&mut self.spares);
        let is_sent = client.connection.output().unsent_size() == 0;
        self.must_feed |= is_sent && client.connection.session().follows.is_some();
        if client.is_writable && client.connection.output().next().is_some() {
            // Others have their turn first.
            Self::queue_unsent(&mut self.unsent, id, client);
        }
        if client.connection.may_resume() {
            Self::queue_ready(&mut self.ready, id, client);
        }
        if is_sent && client.connection.is_closing() && client.draining.is_none() {
            client.begin_draining(self.core.now());
            self.clients.draining.push(id);
            self.drain(id);
        }
    }

    /// Throws away what comes after the end of a conversation, so that the last reply arrives.
    fn drain(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if !client.drain(&mut self.shared) {
            self.close(id);
        }
    }

    fn close(&mut self, id: ClientId) {
        if let Some(client) = self.clients.remove(id) {
            self.core.forget(client.connection.session());
        }
        self.core.metrics.connected_count = self.clients.count() as u64;
    }

    /// Ends well: what was promised becomes durable, and clients hear of it.
    fn end(mut self) -> io::Result<()> {
        self.listeners.clear();
        self.tasks.finish();
        self.syncs.finish();
        self.upkeep.finish();
        for _ in 0..END_ROUND_COUNT_MAX {
            self.take_done();
            self.core.commit();
            let tasks: Vec<_> = self.core.take_tasks().collect();
            let syncs: Vec<_> = self.core.take_syncs().collect();
            if tasks.is_empty() && syncs.is_empty() {
                break;
            }
            for task in tasks {
                self.core.finish_task(task.run());
            }
            for sync in syncs {
                self.core.synced(sync.run());
            }
        }
        self.take_done();
        self.release();
        for id in std::mem::take(&mut self.unsent) {
            self.send(id);
        }
        self.core.close();
        self.core.announce_end();
        Ok(())
    }
}

/// How many clients there may be: what descriptors there may be, raised as far as we may, but for a
/// reserve.
fn client_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    // No limit is a limit of what a table holds.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    limit - DESCRIPTOR_RESERVE.min(limit / 4)
}

/// Whether an error says only that now is not the time.
fn is_transient(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::INTR)
}

/// A socket that a listener accepted.
pub(crate) type Socket = OwnedFd;
