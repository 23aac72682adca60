//! `guestio console`: a machine's console in its owner's network, as a page and as a websocket.
//!
//! ```text
//!   browser ─┐  10.20.2.1:20005            one thread, poll           api.sock
//!   grid ────┼─────────────────► Door ──► Connection ◄──► Machine ◄──────────► VMM
//!   others ──┘  [5ab:…::1]:20005             │  ▲            │
//!                                            │  └─ output ───┤
//!                                            └── keys ───────┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`request`] | what a client asks first, and the page |
//! | [`door`] | who may come in, and how often |
//! | [`connection`] | one client |
//! | [`machine`] | the VMM's side |
//!
//! All terminals see the same and may all type. Whoever opens one sees first what was said last. The VMM is
//! asked for its console while somebody looks, and not otherwise. A machine that is not there, because it
//! starts again or was stopped, is said to be so in the terminal, which stays.

mod connection;
mod door;
mod machine;
mod request;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use connection::{Connection, Event, MESSAGE_SIZE_MAX};
use door::Door;
use machine::Machine;

/// Terminals at a time. One more takes the place of the one that was silent longest.
const TERMINAL_COUNT_MAX: usize = 8;
/// Connections that are no terminals yet, from inside and from outside each. One more takes the place of
/// the oldest.
const VISITOR_COUNT_MAX: usize = 8;
/// Bytes of output that are kept for the next terminal.
const SCROLLBACK_SIZE: usize = 64 << 10;
/// Connections that the kernel keeps for us to accept.
const BACKLOG: i32 = 16;
/// In the machine's folder: the VMM's socket, and who else may come in.
const SOCKET: &str = "api.sock";
const TICKETS: &str = "tickets";

const GONE: &[u8] = b"\r\n[the machine is not running; waiting for it]\r\n";
const COME: &[u8] = b"\r\n[the machine runs]\r\n";

/// Serve a machine's console to its own network
#[derive(Args)]
pub(crate) struct ConsoleArguments {
    /// The machine's folder: its VMM listens on `api.sock` in it, and `tickets` says who may come from
    /// outside
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Where to listen; may be repeated. The addresses need not be there yet
    #[arg(long, required = true, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
}

pub(crate) fn run(arguments: &ConsoleArguments) -> anyhow::Result<()> {
    let listeners: anyhow::Result<Vec<_>> = arguments.listen.iter().map(open).collect();
    let listeners = listeners?;
    crate::jail::close(&arguments.folder).context("the jail can't be closed")?;
    Ok(Server::new(listeners, "/".into(), Instant::now()).run()?)
}

/// Listens on an address that may come later: an IPv6 address is looked for by others first.
fn open(address: &SocketAddr) -> anyhow::Result<TcpListener> {
    let made = || -> rustix::io::Result<OwnedFd> {
        let is_ipv6 = address.is_ipv6();
        let family = if is_ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if is_ipv6 {
            sockopt::set_ipv6_v6only(&socket, true)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
        } else {
            sockopt::set_ip_freebind(&socket, true)?;
        }
        bind(&socket, address)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    Ok(made().with_context(|| format!("listen on {address}"))?.into())
}

/// The loop over everybody.
struct Server {
    listeners: Vec<TcpListener>,
    door: Door,
    machine: Machine,
    connections: Vec<Connection>,
    scrollback: VecDeque<u8>,
    /// Whether terminals were told that the machine is away.
    is_missed: bool,
}

/// Whose descriptor something happened to.
#[derive(Clone, Copy)]
enum Whose {
    Listener(usize),
    Machine,
    Connection(usize),
}

impl Server {
    fn new(listeners: Vec<TcpListener>, folder: PathBuf, now: Instant) -> Self {
        Self {
            listeners,
            door: Door::new(folder.join(TICKETS), now),
            machine: Machine::new(folder.join(SOCKET), now),
            connections: Vec::new(),
            scrollback: VecDeque::new(),
            is_missed: false,
        }
    }

    fn run(mut self) -> std::io::Result<()> {
        loop {
            self.turn()?;
        }
    }

    /// Waits, and does what there is to do.
    fn turn(&mut self) -> std::io::Result<()> {
        let ready = self.wait()?;
        let now = Instant::now();
        for whose in &ready {
            match *whose {
                Whose::Listener(index) => self.accept(index, now),
                Whose::Machine | Whose::Connection(_) => {}
            }
        }
        let is_ready = ready.iter().any(|whose| matches!(whose, Whose::Machine));
        let is_due = self.machine.deadline().is_some_and(|deadline| deadline <= now);
        if self.is_looked_at() && (is_ready || is_due) {
            self.hear(now);
        }
        for index in 0..self.connections.len() {
            let has_come = |whose: &Whose| matches!(whose, Whose::Connection(at) if *at == index);
            self.serve(index, ready.iter().any(has_come), now);
        }
        self.connections.retain(|connection| !connection.is_gone());
        if !self.is_looked_at() {
            self.machine.leave(now);
            self.scrollback.clear();
            self.is_missed = false;
        }
        Ok(())
    }

    fn is_looked_at(&self) -> bool {
        self.connections.iter().any(Connection::is_terminal)
    }

    /// Waits until something happens to somebody, or is due.
    fn wait(&self) -> std::io::Result<Vec<Whose>> {
        let now = Instant::now();
        let takes_keys = self.machine.room() >= MESSAGE_SIZE_MAX;
        let closed_until = self.door.closed_until(now);
        let (mut whose, mut descriptors) = (Vec::new(), Vec::new());
        if closed_until.is_none() {
            for (index, listener) in self.listeners.iter().enumerate() {
                whose.push(Whose::Listener(index));
                descriptors.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
            }
        }
        if let Some((descriptor, flags)) = self.machine.interest() {
            whose.push(Whose::Machine);
            descriptors.push(PollFd::from_borrowed_fd(descriptor, flags));
        }
        for (index, connection) in self.connections.iter().enumerate() {
            if let Some((descriptor, flags)) = connection.interest(takes_keys) {
                whose.push(Whose::Connection(index));
                descriptors.push(PollFd::from_borrowed_fd(descriptor, flags));
            }
        }
        let deadlines = self.connections.iter().filter_map(Connection::deadline);
        let of_machine = self.machine.deadline().filter(|_| self.is_looked_at());
        let mut due = deadlines.chain(of_machine).chain(closed_until).min();
        if takes_keys && self.connections.iter().any(Connection::has_more) {
            due = Some(now);
        }
        let timeout = due.map(|due| due.saturating_duration_since(now));
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = descriptors.iter().map(|descriptor| !descriptor.revents().is_empty());
        Ok(whose.into_iter().zip(is_ready).filter_map(|(one, is)| is.then_some(one)).collect())
    }

    fn accept(&mut self, index: usize, now: Instant) {
        let Some(listener) = self.listeners.get(index) else { return };
        // What fails is a visitor who left, or descriptors that others give back.
        let Ok((stream, peer)) = listener.accept() else { return self.door.note(now) };
        let Ok(local) = stream.local_addr() else { return };
        self.door.note(now);
        let new = Connection::new(stream, local, peer, now);
        let is_alike = |one: &Connection| !one.is_terminal() && one.is_inside == new.is_inside;
        self.make_room(VISITOR_COUNT_MAX, is_alike);
        self.connections.push(new);
    }

    /// Lets the one go that was silent longest, if there are so many.
    fn make_room(&mut self, count_max: usize, is_one: impl Fn(&Connection) -> bool) {
        let ones = self.connections.iter().enumerate().filter(|(_, connection)| is_one(connection));
        let ones: Vec<_> = ones.map(|(index, connection)| (connection.heard, index)).collect();
        if ones.len() >= count_max
            && let Some((_, index)) = ones.into_iter().min()
        {
            self.connections.remove(index);
        }
    }

    /// Takes what the machine says, and passes it on.
    fn hear(&mut self, now: Instant) {
        let news = self.machine.step(now);
        if news.has_come {
            if std::mem::take(&mut self.is_missed) {
                self.show(COME, now);
            }
            // It begins with all that it said last, which terminals that wait have not seen.
            self.scrollback.clear();
        }
        if !news.output.is_empty() {
            self.show(&news.output, now);
        }
        if news.has_gone || (!self.is_missed && self.machine.interest().is_none()) {
            self.is_missed = true;
            self.show(GONE, now);
        }
    }

    fn show(&mut self, output: &[u8], now: Instant) {
        self.scrollback.extend(output);
        let surplus = self.scrollback.len().saturating_sub(SCROLLBACK_SIZE);
        self.scrollback.drain(..surplus);
        self.connections.iter_mut().for_each(|connection| connection.show(output, now));
    }

    fn serve(&mut self, index: usize, is_ready: bool, now: Instant) {
        let room = self.machine.room();
        let Some(connection) = self.connections.get_mut(index) else { return };
        let is_due = connection.deadline().is_some_and(|deadline| deadline <= now);
        if !is_ready && !is_due && !connection.has_more() {
            return;
        }
        match connection.step(now, room) {
            Event::Nothing | Event::Gone => {}
            Event::Keys(keys) => self.machine.send(&keys),
            Event::Asks(upgrade) => {
                let ticket = upgrade.ticket.as_deref().unwrap_or_default();
                if !connection.is_inside && !self.door.admit(ticket) {
                    let reason = "from outside of the machine's network, a good ticket is needed";
                    connection.refuse("403 Forbidden", reason, now);
                    return;
                }
                connection.grant(&upgrade);
                let (front, back) = self.scrollback.as_slices();
                connection.show(&[front, back].concat(), now);
                self.leave_only(index);
            }
        }
    }

    /// Lets the terminal go that was silent longest, if there is one too many with the newest.
    fn leave_only(&mut self, newest: usize) {
        let terminals = self.connections.iter().enumerate();
        let others = terminals.filter(|(index, one)| *index != newest && one.is_terminal());
        let others: Vec<_> = others.map(|(index, one)| (one.heard, index)).collect();
        if others.len() >= TERMINAL_COUNT_MAX
            && let Some((_, index)) = others.into_iter().min()
            && let Some(oldest) = self.connections.get_mut(index)
        {
            oldest.dismiss();
        }
    }
}

#[cfg(test)]
mod tests;
