//! What stays of us when the image's own init has begun: a process that shows the host that the guest
//! lives, and that a restored guest is told entropy and time by.
//!
//! ```text
//!   guest-init (1) ── spawn ──► @guest-agent ── beats ──► host, port 990
//!        │ exec                     ▲
//!        ▼                          └── entropy, time ◄── host, to port 991
//!   the image's init (1)
//! ```
//!
//! The bytes are in `vmm/virtio/src/vsock/FORMAT.md`. It is started only in a guest with a socket device,
//! beside everything else, and wakes up every five seconds. The image's init finds it as a child that
//! it did not start, as it finds orphans. A shutdown must not be taken for death, nor wait for us: our
//! name begins with `@`, which systemd leaves alone at the end, and other inits' signals but the last
//! are not listened to.
//!
//! Only the host is listened to: whoever could connect from within would set the guest's clock.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_settime};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::heart::Heart;
use crate::reseed::{MESSAGE_SIZE, Message};
use crate::sys::{random, vsock};

/// How the process is called.
const NAME: &str = "@guest-agent";
/// The host's port that beats go to.
const HEARTBEAT_PORT: u32 = 990;
/// Our port that entropy and time come to.
const RESEED_PORT: u32 = 991;
/// What is sent as a beat: any byte is one.
const BEAT: &[u8] = b"\n";
/// How long the host may take for a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A clock that is off by less is left alone: the message was on its way, too.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(100);

/// Answers to a message.
const DONE: u8 = 0;
const NOT_UNDERSTOOD: u8 = 1;
const NO_ENTROPY: u8 = 2;
const NO_CLOCK: u8 = 3;

/// Starts the process. Called when the root is `/`, and `/proc` is there.
pub(crate) fn start() -> Result<()> {
    let nowhere = Stdio::null;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).env_clear().stdin(nowhere()).stdout(nowhere()).stderr(nowhere());
    // It is nobody's to wait for: the next init reaps what ends.
    command.spawn().map(drop).context("starting the agent")
}

/// Whether this process is to be the agent.
#[must_use]
pub fn is_called() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Is the agent. Ends only if there is no socket device after all.
#[must_use]
pub fn run() -> std::process::ExitCode {
    match Agent::new().and_then(Agent::serve) {
        Ok(never) => match never {},
        // There is nobody to tell.
        Err(_) => std::process::ExitCode::FAILURE,
    }
}

struct Agent {
    listener: OwnedFd,
    heart: Heart,
    /// The way that beats go.
    host: Option<OwnedFd>,
}

impl Agent {
    fn new() -> Result<Self> {
        let _ = rustix::process::setsid();
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        // A guest out of memory is better off with its host knowing that it lives.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        Ok(Self {
            listener: vsock::listen(RESEED_PORT)?,
            heart: Heart::new(Instant::now()),
            host: None,
        })
    }

    fn serve(mut self) -> Result<std::convert::Infallible> {
        loop {
            self.beat();
            let (is_called, is_lost) = self.wait()?;
            if is_lost {
                self.host = None;
                self.heart.lost(Instant::now());
            }
            if is_called {
                // One who does not behave is gone; the host tries again.
                let _ = answer(&self.listener);
            }
        }
    }

    /// Connects or beats, if it is time.
    fn beat(&mut self) {
        if !self.heart.is_due(Instant::now()) {
            return;
        }
        let sent = match &self.host {
            Some(host) => vsock::send(host, BEAT),
            None => vsock::connect(HEARTBEAT_PORT).and_then(|host| {
                let sent = vsock::send(&host, BEAT);
                self.host = Some(host);
                sent
            }),
        };
        let now = Instant::now();
        match sent {
            Ok(()) => self.heart.has_beaten(now),
            Err(_) if self.host.take().is_some() => self.heart.lost(now),
            Err(_) => self.heart.refused(now),
        }
    }

    /// Waits for the host to call, to hang up, or for the next beat.
    fn wait(&self) -> Result<(bool, bool)> {
        let mut events = vec![PollFd::new(&self.listener, PollFlags::IN)];
        if let Some(host) = &self.host {
            // It says nothing, so whatever there is to be heard is its end.
            events.push(PollFd::new(host, PollFlags::IN | PollFlags::RDHUP));
        }
        let left = self.heart.next().saturating_duration_since(Instant::now());
        match poll(&mut events, Timespec::try_from(left).ok().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((false, false)),
            Err(error) => return Err(error.into()),
        }
        let mut ready = events.iter().map(|event| !event.revents().is_empty());
        Ok((ready.next().unwrap_or_default(), ready.next().unwrap_or_default()))
    }
}

/// Takes a message from the host, and does as it says.
fn answer(listener: &OwnedFd) -> Result<()> {
    let host = vsock::accept_from_host(listener, MESSAGE_TIMEOUT)?;
    let mut bytes = [0; MESSAGE_SIZE];
    vsock::receive_exact(&host, &mut bytes)?;
    let result = Message::decode(&bytes).map_or(NOT_UNDERSTOOD, |message| obey(&message));
    Ok(vsock::send(&host, &[result])?)
}

fn obey(message: &Message) -> u8 {
    let pool = File::open("/dev/urandom").map_err(anyhow::Error::from);
    if pool.and_then(|pool| Ok(random::stir(pool.as_fd(), &message.entropy)?)).is_err() {
        return NO_ENTROPY;
    }
    let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if own.abs_diff(message.wall_clock) <= CLOCK_TOLERANCE {
        return DONE;
    }
    let time = Timespec::try_from(message.wall_clock).map_err(|_| Errno::INVAL);
    match time.and_then(|time| clock_settime(ClockId::Realtime, time)) {
        Ok(()) => DONE,
        Err(_) => NO_CLOCK,
    }
}
