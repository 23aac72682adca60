//! Answering: one thread that waits for clients, children and clocks.
//!
//! Whoever may connect may run programs as this process's user, so the socket is for that user alone: its
//! mode is 0600, and a peer of another user is dropped. A client that breaks the protocol, asks too slowly
//! or takes no replies is dropped too, and nothing that it started ends with it.

mod cgroup;
mod connection;
mod descriptors;
mod history;
mod journal;
mod log_file;
mod programs;
mod spawn;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{
    Resource, Rlimit, geteuid, getpid, getrlimit, set_child_subreaper, setrlimit,
};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};

use self::cgroup::Groups;
pub use self::connection::REQUEST_TIMEOUT;
use self::connection::{Connection, Stage};
pub use self::history::STEADY;
pub use self::journal::RATE_MAX;
pub use self::programs::PROGRAM_COUNT_MAX;
use self::programs::{News, OutputId, Programs, absent, refusal};
pub use self::spawn::close_inherited;
use crate::socket;
use crate::wire::{RefusalKind, Reply, Request};

/// Most clients at once.
pub const CLIENT_COUNT_MAX: usize = 256;
/// Clients that may wait to be let in.
const BACKLOG: i32 = 128;
/// How long programs may take to end when the supervisor ends.
pub const END_GRACE: Duration = Duration::from_secs(10);
/// Longest time for all of an end: what is not dead by then dies with this process.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a client could not be let in.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Events taken at once.
const EVENT_COUNT: usize = 64;

/// Where a supervisor listens, and what it may use.
#[derive(Debug, Clone)]
pub struct Config {
    /// The socket's path. Its folder must exist.
    pub socket: PathBuf,
    /// A cgroup (version 2) that is the supervisor's own, with a cgroup below it for each program.
    pub cgroup: Option<PathBuf>,
}

/// Why a supervisor can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Another one serves this socket.
    #[error("{}: another supervisor listens here", .0.display())]
    Running(PathBuf),
    /// The socket can't be made.
    #[error("{}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call that must not fail has failed.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Listener,
    Child,
    End,
    Client(u64),
    /// What the program of this name says.
    Output(String),
}

/// A supervisor, listening.
#[derive(Debug)]
pub struct Supervisor {
    socket_path: PathBuf,
    listener: OwnedFd,
    /// Held as long as the socket is ours.
    _lock: File,
    child: UnixStream,
    end: UnixStream,
    epoll: OwnedFd,
    /// What is polled, by the number that the kernel hands back.
    sources: HashMap<u64, Source>,
    /// Pipes that are polled, by their programs' names.
    outputs: BTreeMap<String, (u64, OutputId)>,
    next_source: u64,
    clients: HashMap<u64, Connection>,
    programs: Programs,
    ending: Option<Instant>,
}

impl Supervisor {
    /// Takes the socket and gets ready. Programs will be children of the calling thread, which must be the
    /// one that calls [`Supervisor::run`].
    ///
    /// # Errors
    /// [`SupervisorError`].
    pub fn bind(config: &Config) -> Result<Self, SupervisorError> {
        // Programs' numbers first: whatever is opened later gets others.
        let groups = config.cgroup.as_deref().map(Groups::open).transpose();
        let groups = groups.map_err(system("the cgroup"))?;
        let programs = Programs::new(groups).map_err(system("getting ready"))?;
        raise_descriptor_limit();
        // Those whose parents end before them come to us.
        set_child_subreaper(Some(getpid())).map_err(system("subreaper"))?;
        let lock = lock(&config.socket)?;
        let listener = listen(&config.socket)
            .map_err(|source| SupervisorError::Socket { path: config.socket.clone(), source })?;
        let mut supervisor = Self {
            socket_path: config.socket.clone(),
            listener,
            _lock: lock,
            child: on_signals(&[SIGCHLD]).map_err(system("signals"))?,
            end: on_signals(&[SIGTERM, SIGINT]).map_err(system("signals"))?,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("epoll"))?,
            sources: HashMap::new(),
            outputs: BTreeMap::new(),
            next_source: 0,
            clients: HashMap::new(),
            programs,
            ending: None,
        };
        for source in [Source::Listener, Source::Child, Source::End] {
            supervisor.poll(source, EventFlags::IN).map_err(system("epoll"))?;
        }
        Ok(supervisor)
    }

    /// Serves until SIGTERM or SIGINT; then ends all programs.
    ///
    /// # Errors
    /// [`SupervisorError::System`].
    pub fn run(mut self) -> Result<(), SupervisorError> {
        let mut events = Vec::with_capacity(EVENT_COUNT);
        loop {
            self.poll_outputs();
            let timeout = self
                .next()
                .map(|at| socket::timespec(at.saturating_duration_since(Instant::now())));
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(system("epoll")(error)),
            }
            for event in &events {
                if let Some(source) = self.sources.get(&event.data.u64()).cloned() {
                    self.handle(source, event.flags);
                }
            }
            let now = Instant::now();
            self.programs.turn(now);
            self.tell();
            self.drop_late(now);
            if let Some(since) = self.ending
                && (self.programs.is_empty() || now >= since + END_TIMEOUT)
            {
                break;
            }
        }
        // Somebody else may listen there from now on.
        let _ = fs::remove_file(&self.socket_path);
        Ok(())
    }

    fn handle(&mut self, source: Source, flags: EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Child => {
                drain(&self.child);
                self.programs.reap();
            }
            Source::End => {
                drain(&self.end);
                self.end();
            }
            Source::Client(id) => {
                if let Err(error) = self.serve(id, flags) {
                    tracing::debug!(%error, "a client is dropped");
                    self.forget(id);
                }
            }
            Source::Output(name) => self.programs.read_output(&name),
        }
    }

    fn end(&mut self) {
        if self.ending.is_none() {
            tracing::info!("ending");
            self.ending = Some(Instant::now());
        }
        for name in self.programs.names() {
            self.programs.stop(&name, END_GRACE);
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // One at a time: the others wait their turn.
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => {
                tracing::error!(%error, "no client can be let in");
                // The client stays in the queue: without a pause, the loop would spin.
                std::thread::sleep(ACCEPT_PAUSE);
                return;
            }
        };
        let is_ours = sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == geteuid());
        if !is_ours || self.clients.len() >= CLIENT_COUNT_MAX {
            tracing::warn!(is_ours, count = self.clients.len(), "a client is not let in");
            return;
        }
        let id = self.next_source;
        self.clients.insert(id, Connection::new(socket));
        if self.poll(Source::Client(id), EventFlags::IN | EventFlags::RDHUP).is_err() {
            self.clients.remove(&id);
        }
    }

    /// Does what a client's socket is ready for, and answers what it has asked meanwhile.
    fn serve(&mut self, id: u64, flags: EventFlags) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        // Who waits is not read from: that it left shows in this alone.
        let has_left =
            flags.contains(EventFlags::RDHUP) && !client.interest.contains(EventFlags::IN);
        if flags.contains(EventFlags::OUT) {
            client.flush()?;
        }
        let is_open = if flags.contains(EventFlags::IN) { client.fill()? } else { true };
        while let Some((line, descriptors)) = self.next_request(id)? {
            self.answer(id, &line, descriptors)?;
        }
        if !is_open || has_left || flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.repoll(id)
    }

    fn next_request(&mut self, id: u64) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.clients.get_mut(&id).map_or(Ok(None), Connection::next)
    }

    fn answer(&mut self, id: u64, line: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let request = serde_json::from_slice(line);
        let (reply, stage) = match request {
            Ok(request) => self.act(request, descriptors),
            Err(error) => {
                let reply = Reply::Error(refusal(RefusalKind::Invalid, error.to_string()));
                (Some(reply), Stage::Asking)
            }
        };
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        client.stage = stage;
        match reply {
            Some(reply) => client.send(&reply),
            None => Ok(()),
        }
    }

    /// The reply, unless it comes later, and what the client then waits for.
    fn act(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> (Option<Reply>, Stage) {
        let reply = match request {
            Request::Start { program, descriptors: count } => {
                let started = if self.ending.is_some() {
                    Err(refusal(RefusalKind::Full, "the supervisor is about to end".to_owned()))
                } else if count == descriptors.len() {
                    self.programs.start(*program, descriptors)
                } else {
                    let text =
                        format!("{count} descriptors were announced, {} came", descriptors.len());
                    Err(refusal(RefusalKind::Invalid, text))
                };
                started.map_or_else(Reply::Error, |status| Reply::Status(Box::new(status)))
            }
            Request::Stop { name, grace_ms } => {
                if self.programs.stop(&name, Duration::from_millis(grace_ms)) {
                    return (None, Stage::Stop(name));
                }
                Reply::Stopped(None)
            }
            Request::List {} => Reply::Statuses(self.programs.statuses()),
            Request::Wait { name } => match self.programs.find(&name) {
                Some(status) if status.state.is_over() => Reply::Status(Box::new(status)),
                Some(_) => return (None, Stage::Wait(name)),
                None => Reply::Error(absent(&name)),
            },
            Request::Watch {} => {
                return (Some(Reply::Statuses(self.programs.statuses())), Stage::Watch);
            }
        };
        (Some(reply), Stage::Asking)
    }

    /// Passes news on to who waits for them; what they ask next may make more.
    fn tell(&mut self) {
        loop {
            let news = self.programs.take_news();
            if news.is_empty() {
                return;
            }
            news.into_iter().for_each(|one| self.tell_one(one));
        }
    }

    fn tell_one(&mut self, news: News) {
        let (reply, awaited) = match news {
            News::Told(reply) => (reply, Stage::Watch),
            News::Over(name, reply) => (reply, Stage::Wait(name)),
            News::Stopped(name, reply) => (reply, Stage::Stop(name)),
        };
        let waiting = self.clients.iter_mut().filter(|(_, client)| client.stage == awaited);
        let mut told: Vec<(u64, io::Result<()>)> = Vec::new();
        for (id, client) in waiting {
            if awaited != Stage::Watch {
                client.stage = Stage::Asking;
            }
            told.push((*id, client.send(&reply)));
        }
        for (id, sent) in told {
            if sent.and_then(|()| self.serve(id, EventFlags::empty())).is_err() {
                self.forget(id);
            }
        }
    }

    fn drop_late(&mut self, now: Instant) {
        let is_late = |client: &Connection| client.deadline().is_some_and(|at| at <= now);
        let late = self.clients.iter().filter(|(_, client)| is_late(client));
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.forget(id));
    }

    /// When something is due.
    fn next(&self) -> Option<Instant> {
        let late = self.clients.values().filter_map(Connection::deadline).min();
        let end = self.ending.map(|since| since + END_TIMEOUT);
        [self.programs.next(), late, end].into_iter().flatten().min()
    }

    /// Polls the pipes of those programs that have one now. A pipe that was closed has left by itself.
    fn poll_outputs(&mut self) {
        if !self.programs.take_output_changes() {
            return;
        }
        let outputs = self.programs.outputs();
        let now: BTreeMap<String, OutputId> =
            outputs.map(|(name, output, _)| (name.to_owned(), output)).collect();
        let is_gone =
            |name: &String, (_, output): &mut (u64, OutputId)| now.get(name) != Some(output);
        for (_, (id, _)) in self.outputs.extract_if(.., is_gone) {
            self.sources.remove(&id);
        }
        for (name, output) in now {
            if self.outputs.contains_key(&name) {
                continue;
            }
            let id = self.next_source;
            match self.poll(Source::Output(name.clone()), EventFlags::IN) {
                Ok(()) => drop(self.outputs.insert(name, (id, output))),
                Err(error) => tracing::warn!(name, %error, "its output is not read"),
            }
        }
    }

    fn poll(&mut self, source: Source, flags: EventFlags) -> io::Result<()> {
        let id = self.next_source;
        self.next_source += 1;
        let data = EventData::new_u64(id);
        match &source {
            Source::Listener => epoll::add(&self.epoll, &self.listener, data, flags)?,
            Source::Child => epoll::add(&self.epoll, &self.child, data, flags)?,
            Source::End => epoll::add(&self.epoll, &self.end, data, flags)?,
            Source::Client(id) => {
                let Some(client) = self.clients.get(id) else { return Ok(()) };
                epoll::add(&self.epoll, client.socket(), data, flags)?;
            }
            Source::Output(name) => {
                let mut outputs = self.programs.outputs();
                let Some((_, _, pipe)) = outputs.find(|(other, ..)| other == name) else {
                    return Ok(());
                };
                epoll::add(&self.epoll, pipe, data, flags)?;
            }
        }
        self.sources.insert(id, source);
        Ok(())
    }

    fn repoll(&mut self, id: u64) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        let wanted = client.wanted();
        if wanted != client.interest {
            client.interest = wanted;
            epoll::modify(&self.epoll, client.socket(), EventData::new_u64(id), wanted)?;
        }
        Ok(())
    }

    fn forget(&mut self, id: u64) {
        self.clients.remove(&id);
        self.sources.remove(&id);
    }
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SupervisorError {
    move |source| SupervisorError::System { what, source: source.into() }
}

/// Each program may hold some: as many as the system allows.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

/// A socket that can be read when one of the signals came.
fn on_signals(signals: &[i32]) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, theirs.try_clone()?)?;
    }
    Ok(ours)
}

fn drain(mut signals: &UnixStream) {
    let mut buffer = [0; 256];
    while signals.read(&mut buffer).is_ok_and(|count| count == buffer.len()) {}
}

/// Only one supervisor may listen at a path: the lock goes with its process, however that ends.
fn lock(socket: &Path) -> Result<File, SupervisorError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let failed = |source: io::Error| SupervisorError::Socket { path: socket.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(failed)?;
    match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SupervisorError::Running(socket.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Of one that is no more.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // From its first moment on it is ours alone.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(path)?);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
