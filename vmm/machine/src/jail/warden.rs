//! The warden: the process outside.
//!
//! A process cannot move into a namespace of processes; only its children can. So the process that
//! was started stays outside, as the VM's warden, and has four things to do:
//!
//! - it waits for the VM and ends as that ended, whoever supervises it seeing no difference;
//! - it passes on the signals that others send it (the terminal's reach both by themselves);
//! - it opens the doors that the description names ([`Doors`]);
//! - it cleans up after a VM that was killed: the terminal's modes here, sockets' files in its caller.
//!
//! ```text
//!   warden ──fork──► first: namespaces ──fork──► the VM, process 1 of its namespace
//!      │   ◄── namespace: map my ids     │              │
//!      │   ── done ──►                   │              │
//!      │   ◄── process id of the VM      └─ ends        │
//!      │   ── go ──────────────────────────────────────►│ closes the rest of the jail, runs
//!      └── doors, signals, its end                      ▼
//! ```
//!
//! It keeps its starter's rights, and a filter under which it can do nothing else. If it dies, the VM
//! is killed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm_spec::Exit;

use super::doors::Doors;
use super::ids::Ids;
use super::seccomp::{Filters, Kind};
use super::{JailError, sys};

/// What others may send to end a VM.
pub(super) const PASSED_ON: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// From here on, an exit status tells of a signal, as in shells.
const SIGNALLED: i32 = 128;

/// What the process that is being jailed tells its warden.
pub(super) mod message {
    /// It has a user namespace, whose ids are to be mapped.
    pub(in crate::jail) const MAP: u8 = b'm';
    /// The VM is the process whose id follows; the sender ends.
    pub(in crate::jail) const PROCESS: u8 = b'p';
    /// The VM is the sender.
    pub(in crate::jail) const STAYS: u8 = b's';
}

/// The process outside, while the VM runs.
#[derive(Debug)]
pub struct Warden {
    vm: Pid,
    socket: OwnedFd,
    signals: OwnedFd,
    doors: Doors,
    /// The terminal as it was.
    terminal: Option<Termios>,
}

/// How the VM's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(End);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exited(Exit),
    Signalled(i32),
}

/// What is there before the process is copied.
pub(super) struct Preparation {
    signals: OwnedFd,
    terminal: Option<Termios>,
}

impl Preparation {
    /// Blocks signals, in both processes: the VM lets them in when it is ready for them.
    pub(super) fn new() -> io::Result<Self> {
        let mut all = PASSED_ON.to_vec();
        all.push(libc::SIGCHLD);
        for signal in &all {
            use vmm_sys_util::signal::{Error, block_signal};
            match block_signal(*signal) {
                Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        // Whoever is the VM in the end is our child, not the host's.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let signals = sys::signal_descriptor(&all)?;
        Ok(Self { signals, terminal: tcgetattr(rustix::stdio::stdin()).ok() })
    }
}

impl Warden {
    /// Sees the process `first` into its namespaces.
    pub(super) fn attend(
        first: Pid,
        socket: OwnedFd,
        preparation: Preparation,
        ids: &Ids,
        doors: Doors,
    ) -> Result<Self, JailError> {
        let Preparation { signals, terminal } = preparation;
        let vm = loop {
            let mut bytes = [0; 5];
            let (size, _) = match recv(&socket, &mut bytes, RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                result => result.map_err(|error| failed(&error))?,
            };
            match bytes[..size] {
                [message::MAP] => {
                    let errno = map_ids(first, ids)
                        .err()
                        .map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
                    tell(&socket, &errno.to_le_bytes())?;
                }
                [message::PROCESS, a, b, c, d] => {
                    let vm = Pid::from_raw(i32::from_le_bytes([a, b, c, d]));
                    let vm = vm.ok_or_else(|| JailError::Warden("process 0".to_owned()))?;
                    // Then it is our child.
                    waitpid(Some(first), WaitOptions::empty()).map_err(|error| failed(&error))?;
                    tell(&socket, b"go")?;
                    break vm;
                }
                // Without a namespace of processes; or it gave up, and has said why.
                _ => break first,
            }
        };
        Ok(Self { vm, socket, signals, doors, terminal })
    }

    /// Does a warden's work until the VM has ended.
    ///
    /// # Errors
    /// When the host fails it. The VM is killed then.
    pub fn watch(self) -> Result<Ended, JailError> {
        let result = self.watch_until_the_end();
        if result.is_err() {
            let _ = kill_process(self.vm, Signal::KILL);
        }
        result
    }

    fn watch_until_the_end(&self) -> Result<Ended, JailError> {
        let handler = super::seccomp::trap::install();
        handler
            .and_then(|()| Filters { has_shares: false }.apply(Kind::Warden))
            .map_err(JailError::host("seccomp", "the warden's filter"))?;
        let mut is_heard = true;
        loop {
            if let Some(status) = self.reap()? {
                return Ok(self.end(status));
            }
            let wanted = if is_heard { PollFlags::IN } else { PollFlags::empty() };
            let mut polled =
                [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.socket, wanted)];
            // Once the VM has closed its end, only its own end is waited for.
            let count = if is_heard { 2 } else { 1 };
            match poll(&mut polled[..count], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(&error)),
            }
            let is_asked = is_heard && !polled[1].revents().is_empty();
            if is_asked {
                is_heard = self.doors.answer(self.socket.as_fd());
            }
            self.pass_signals_on()?;
        }
    }

    fn reap(&self) -> Result<Option<WaitStatus>, JailError> {
        match waitpid(Some(self.vm), WaitOptions::NOHANG) {
            Ok(Some((_, status))) if status.exited() || status.signaled() => Ok(Some(status)),
            Ok(_) | Err(Errno::INTR) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    fn pass_signals_on(&self) -> Result<(), JailError> {
        let host = JailError::host("warden", "read signals");
        let Some((signal, is_sent)) = sys::read_signal(self.signals.as_fd()).map_err(host)? else {
            return Ok(());
        };
        // What the terminal sends reaches the VM's process too.
        if is_sent
            && PASSED_ON.contains(&signal)
            && let Some(signal) = Signal::from_named_raw(signal)
        {
            // It may have ended just now.
            let _ = kill_process(self.vm, signal);
        }
        Ok(())
    }

    fn end(&self, status: WaitStatus) -> Ended {
        let end = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) if code > SIGNALLED => End::Signalled(code - SIGNALLED),
            (Some(code), _) => {
                let exit = u8::try_from(code).ok().and_then(Exit::from_code);
                End::Exited(exit.unwrap_or(Exit::HostFailure))
            }
            (None, signal) => End::Signalled(signal.unwrap_or(libc::SIGKILL)),
        };
        let was_orderly = !matches!(end, End::Signalled(_) | End::Exited(Exit::Forbidden));
        if let Some(terminal) = self.terminal.as_ref().filter(|_| !was_orderly) {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, terminal);
        }
        Ended(end)
    }
}

impl Ended {
    /// How the VM ended. If by a signal, this process ends by it too, here.
    #[must_use]
    pub fn finish(self) -> Exit {
        match self.0 {
            End::Exited(exit) => exit,
            End::Signalled(signal) => {
                sys::die_by(signal);
                Exit::HostFailure
            }
        }
    }
}

/// Says which ids there are in the namespace of process `first`.
fn map_ids(first: Pid, ids: &Ids) -> io::Result<()> {
    let write = |file: &str, text: &str| {
        fs::write(format!("/proc/{}/{file}", first.as_raw_nonzero()), text)
    };
    if !ids.must_change {
        // Without privilege, a group may only be mapped once nobody can drop any.
        write("setgroups", "deny")?;
    }
    write("uid_map", &ids.uid_map)?;
    write("gid_map", &ids.gid_map)
}

fn tell(socket: &OwnedFd, bytes: &[u8]) -> Result<(), JailError> {
    send(socket, bytes, SendFlags::NOSIGNAL).map(drop).map_err(|error| failed(&error))
}

fn failed(error: &Errno) -> JailError {
    JailError::Warden(error.to_string())
}
