//! The jail: what stands between a guest that has broken out of its VM and the host.
//!
//! A guest talks to device models, and code has bugs. Whoever takes a thread of the VMM over finds
//! itself behind walls, each of which would do:
//!
//! ```text
//!   a thread's system calls (seccomp)      a list with reasons, per thread; a forbidden call ends the VM
//!   what can be named (namespaces, root)   an empty directory, no network, no other process
//!   what may be opened (Landlock)          nothing but below shared directories
//!   who it is (user, capabilities)         nobody, with no rights; or rights over shared files alone
//!   how much (cgroup, limits)              what the description says
//! ```
//!
//! Everything that has a name on the host is opened before, by whoever started the VMM, with its
//! rights. Then [`enter`] copies the process, which still has one thread:
//!
//! ```text
//!   open files, taps, sockets ──► enter ──┬─► Side::Inside    machine, threads, guest   (jailed)
//!                                         └─► Side::Outside   the warden, until the end (warden.rs)
//! ```
//!
//! Filters are the last wall: each thread gets its own when it starts, from [`Inside::threads`], before
//! it does anything. What would have to be opened later is opened by the warden ([`Doors`]) or handed
//! in by a client of the API.
//!
//! Namespaces and Landlock depend on the host. Those that cannot be had are named, in a warning and in
//! the API; the VM runs all the same, unless a shared directory would then be behind no wall at all.

mod block_device;
mod cgroup;
mod doors;
mod error;
mod ids;
mod landlock;
mod namespaces;
mod privileges;
mod root;
mod seccomp;
mod sys;
mod warden;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{Signal, getpid, set_parent_process_death_signal};
use rustix::thread::CapabilitySet;
use vmm_spec::Jail;
use vmm_spec::api::Wall;

use self::ids::Ids;
use self::namespaces::{HOST_NAME, MOUNT, OTHERS, PROCESS, USER};
use self::seccomp::{Filters, Kind};
use self::sys::Forked;
use self::warden::{Preparation, message};
use crate::worker::ThreadSetup;

pub use block_device::BlockDevice;
pub use doors::{Door, Doors};
pub use error::JailError;
pub use warden::{Ended, Warden};

/// A directory of the host that a device serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether nothing is ever written there.
    pub is_readonly: bool,
}

/// What a VM keeps of the host behind all walls.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The directories that its devices serve.
    pub shares: &'a [Share],
    /// The sockets that its devices connect to.
    pub doors: &'a Doors,
    /// The block devices that its files are on, where their I/O is limited.
    pub block_devices: &'a [BlockDevice],
    /// Whether it must know which of its pages exist: only snapshots ask.
    pub has_pagemap: bool,
}

/// Which process this is.
pub enum Side {
    /// The one that becomes the VM.
    Inside(Inside),
    /// The one that waits for it. It must not keep what is open for the VM.
    Outside(Warden),
}

/// What the jailed process must know.
pub struct Inside {
    /// Where the shared directories are now, in their order.
    pub shares: Vec<PathBuf>,
    /// All walls, those that the host could not give too.
    pub walls: Vec<Wall>,
    /// The process's id on the host.
    pub pid: u32,
    /// Puts a thread behind its own wall, by its name.
    pub threads: ThreadSetup,
    /// Which of the process's pages exist, if that was needed and the host tells (Linux
    /// `Documentation/admin-guide/mm/pagemap.rst`). There may be no `/proc` any more.
    pub pagemap: Option<fs::File>,
}

impl Inside {
    /// What a process knows that is in no jail.
    #[must_use]
    pub fn nowhere(has_pagemap: bool) -> Self {
        Self {
            shares: Vec::new(),
            walls: Vec::new(),
            pid: std::process::id(),
            threads: Arc::new(|_| Ok(())),
            pagemap: open_pagemap(has_pagemap),
        }
    }
}

/// Of this process, as it is now: a copy's is another.
fn open_pagemap(is_needed: bool) -> Option<fs::File> {
    is_needed.then(|| fs::File::open("/proc/self/pagemap").ok()).flatten()
}

/// Closes what this process inherited and does not know of. To be called before anything is opened;
/// `kept` stays.
///
/// # Errors
/// When the kernel is from before Linux 5.9.
pub fn close_foreign(kept: &[RawFd]) -> Result<(), JailError> {
    sys::close_all_but(kept).map_err(JailError::host("descriptors", "close those of others"))
}

/// Closes the jail around this process, which has one thread and has opened what it needs. Returns
/// twice, in two processes.
///
/// # Errors
/// Which wall cannot be built, and why. Inside, the process must end then.
pub fn enter(jail: &Jail, needs: Needs<'_>) -> Result<Side, JailError> {
    let setup = |what: &'static str| JailError::host("warden", what);
    let ids = Ids::choose(jail, needs.shares)?;
    // A library asks the kernel when it is first called, by a file if need be, and remembers.
    let _ = rustix::param::page_size();
    let flags = SocketFlags::CLOEXEC;
    let (outside, inside) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|error| setup("a socket to it")(error.into()))?;
    let preparation = Preparation::new().map_err(setup("signals"))?;
    match sys::fork().map_err(setup("a process for the VM"))? {
        Forked::Parent(first) => {
            drop(inside);
            let doors = needs.doors.clone();
            Warden::attend(first, outside, preparation, &ids, doors).map(Side::Outside)
        }
        Forked::Child => {
            drop((outside, preparation));
            Closing { jail, needs, ids, socket: inside, walls: Vec::new() }.close()
        }
    }
}

/// What this host has of walls, found by trying, in a process of its own.
///
/// # Errors
/// When it gives no process or pipe.
pub fn offers() -> io::Result<Vec<Wall>> {
    let (read, write) = rustix::pipe::pipe()?;
    let child = match sys::fork()? {
        Forked::Parent(child) => child,
        Forked::Child => {
            let mut walls = Vec::new();
            for (flags, name, detail) in [USER, MOUNT, PROCESS].into_iter().chain(OTHERS) {
                note(&mut walls, name, namespaces::enter(flags).map(|()| detail.to_owned()));
            }
            let text = serde_json::to_vec(&walls).unwrap_or_default();
            let written = rustix::io::write(&write, &text);
            sys::exit_now(i32::from(written.is_err()));
        }
    };
    drop(write);
    let mut text = Vec::new();
    io::Read::read_to_end(&mut fs::File::from(read), &mut text)?;
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    let mut walls: Vec<Wall> = serde_json::from_slice(&text)?;
    let landlock = sys::landlock_version();
    let landlock = landlock.map_err(|error| landlock::absent(&error).to_owned());
    note(&mut walls, LANDLOCK, landlock.map(|version| format!("version {version}")));
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let has_filters = actions.split_whitespace().any(|action| action == "trap");
    let seccomp =
        if has_filters { Ok("filters".to_owned()) } else { Err("the kernel has none".to_owned()) };
    note(&mut walls, SECCOMP, seccomp);
    Ok(walls)
}

const LANDLOCK: &str = "landlock";
const SECCOMP: &str = "seccomp";

fn note(walls: &mut Vec<Wall>, name: &str, result: Result<String, String>) {
    let stands = result.is_ok();
    let detail = result.unwrap_or_else(|why| why);
    walls.push(Wall { name: name.to_owned(), stands, detail });
}

/// A jail on its way to be closed, in the process that will be in it.
struct Closing<'a> {
    jail: &'a Jail,
    needs: Needs<'a>,
    ids: Ids,
    socket: OwnedFd,
    walls: Vec<Wall>,
}

impl Closing<'_> {
    fn close(mut self) -> Result<Side, JailError> {
        if let Some(cgroup) = &self.jail.cgroup {
            let detail = cgroup::join(cgroup, self.needs.block_devices)?;
            self.note("cgroup", Ok(detail));
        }
        let has_user = self.enter_user_namespace()?;
        let is_capable = has_user || self.ids.must_change;
        let has_mounts = self.enter_other_namespaces();
        // The host's list of processes still tells.
        let pid = host_pid();
        let pagemap = open_pagemap(self.needs.has_pagemap);
        let places = self.enter_root(has_mounts)?;
        privileges::no_new()?;
        let landlock = landlock::restrict(self.needs.shares, &places)?;
        self.check_that_files_are_out_of_reach(has_mounts, landlock.as_ref().err())?;
        self.note(LANDLOCK, landlock.map(|version| format!("version {version}")));
        privileges::give_up(self.ids.capabilities, is_capable)?;
        self.note("capabilities", Ok(describe(self.ids.capabilities, is_capable)));
        self.note("user", Ok(format!("{}:{}", self.ids.uid, self.ids.gid)));
        self.die_with_the_warden()?;
        sys::clear_environment();
        sys::settle_arenas();
        seccomp::trap::install().map_err(JailError::host(SECCOMP, "the handler"))?;
        self.note(SECCOMP, Ok("a filter of its own for each thread".to_owned()));
        for wall in self.walls.iter().filter(|wall| !wall.stands) {
            tracing::warn!(wall = wall.name, why = wall.detail, "the jail has a wall less");
        }
        let threads = threads(Filters { has_shares: !self.needs.shares.is_empty() });
        self.needs.doors.go_through(self.socket);
        Ok(Side::Inside(Inside { shares: places, walls: self.walls, pid, threads, pagemap }))
    }

    fn note(&mut self, name: &str, result: Result<String, String>) {
        note(&mut self.walls, name, result);
    }

    /// Whether there is one.
    fn enter_user_namespace(&mut self) -> Result<bool, JailError> {
        let (flags, name, detail) = USER;
        let entered = namespaces::enter(flags);
        let has_user = entered.is_ok();
        if has_user {
            self.send(&[message::MAP])?;
            let mut errno = [0; 4];
            self.receive(&mut errno)?;
            if let errno @ 1.. = i32::from_le_bytes(errno) {
                let what = format!("map ids: {}", self.ids.uid_map.trim_end().replace('\n', ", "));
                return Err(JailError::host(USER.1, &what)(io::Error::from_raw_os_error(errno)));
            }
        }
        self.note(name, entered.map(|()| detail.to_owned()));
        if self.ids.must_change {
            privileges::change_ids(&self.ids)?;
        }
        Ok(has_user)
    }

    /// Whether there is one of mounts. What follows is done by the first process of the new namespace
    /// of processes, if there is one.
    fn enter_other_namespaces(&mut self) -> bool {
        let mounts = namespaces::enter(MOUNT.0);
        let has_mounts = mounts.is_ok();
        self.note(MOUNT.1, mounts.map(|()| MOUNT.2.to_owned()));
        for (flags, name, detail) in OTHERS {
            let entered = namespaces::enter(flags);
            if flags == rustix::thread::UnshareFlags::NEWUTS && entered.is_ok() {
                // It is of no use to anybody, and so is an error.
                let _ = rustix::system::sethostname(HOST_NAME);
            }
            self.note(name, entered.map(|()| detail.to_owned()));
        }
        let process = self.enter_process_namespace();
        self.note(PROCESS.1, process.map(|()| PROCESS.2.to_owned()));
        has_mounts
    }

    fn enter_process_namespace(&self) -> Result<(), String> {
        let entered = namespaces::enter(PROCESS.0);
        if entered.is_err() {
            // The warden waits to hear which process the VM is.
            self.send(&[message::STAYS]).map_err(|error| error.to_string())?;
            return entered;
        }
        match sys::fork() {
            Ok(Forked::Child) => {
                let mut go = [0; 2];
                self.receive(&mut go).map_err(|error| error.to_string())?;
                seccomp::trap::let_abort_end().map_err(|error| error.to_string())
            }
            Ok(Forked::Parent(vm)) => {
                let [a, b, c, d] = vm.as_raw_nonzero().get().to_le_bytes();
                let told = self.send(&[message::PROCESS, a, b, c, d]);
                sys::exit_now(i32::from(told.is_err()));
            }
            // Nothing could ever be started here. The warden hears that by our end.
            Err(error) => {
                eprintln!("vmm: the jail's process namespace: {error}");
                sys::exit_now(i32::from(vmm_spec::Exit::HostFailure.code()));
            }
        }
    }

    fn enter_root(&mut self, has_mounts: bool) -> Result<Vec<PathBuf>, JailError> {
        if !has_mounts {
            self.note("root directory", Err("it takes a mount namespace".to_owned()));
            return Ok(self.needs.shares.iter().map(|share| share.path.clone()).collect());
        }
        let places = root::enter(self.needs.shares)?;
        let detail = if places.is_empty() {
            "empty, read-only".to_owned()
        } else {
            format!("empty, read-only, but for {} shared directories", places.len())
        };
        self.note("root directory", Ok(detail));
        Ok(places)
    }

    fn check_that_files_are_out_of_reach(
        &self,
        has_mounts: bool,
        landlock: Option<&String>,
    ) -> Result<(), JailError> {
        match landlock {
            Some(landlock) if !has_mounts && !self.needs.shares.is_empty() => {
                let missing = self.walls.iter().find(|wall| wall.name == MOUNT.1);
                let namespace = missing.map(|wall| wall.detail.clone()).unwrap_or_default();
                Err(JailError::NoWalls { namespace, landlock: landlock.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Nobody would pass signals on, or open doors.
    fn die_with_the_warden(&self) -> Result<(), JailError> {
        let failed = |error: Errno| JailError::host("warden", "end with it")(error.into());
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
        // It may have ended before.
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).map_err(failed)?;
        if polled[0].revents().contains(PollFlags::HUP) {
            return Err(JailError::Warden("it is gone".to_owned()));
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), JailError> {
        let sent = send(self.socket.as_fd(), bytes, SendFlags::NOSIGNAL);
        sent.map(drop).map_err(|error| JailError::Warden(error.to_string()))
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<(), JailError> {
        loop {
            return match recv(self.socket.as_fd(), &mut *bytes, RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                Ok((0, _)) => Err(JailError::Warden("it is gone".to_owned())),
                Ok(_) => Ok(()),
                Err(error) => Err(JailError::Warden(error.to_string())),
            };
        }
    }
}

/// Our id outside, as the host's `/proc` has it; it is still there.
fn host_pid() -> u32 {
    let link = fs::read_link("/proc/self").ok();
    let number = link.and_then(|link| link.to_str().and_then(|text| text.parse().ok()));
    number.unwrap_or_else(|| getpid().as_raw_nonzero().get().unsigned_abs())
}

fn describe(kept: CapabilitySet, is_capable: bool) -> String {
    if kept.is_empty() || !is_capable {
        return "none".to_owned();
    }
    let names: Vec<String> = kept.iter_names().map(|(name, _)| name.to_lowercase()).collect();
    format!("none, but {} for file systems", names.join(", "))
}

/// What each thread does first.
fn threads(filters: Filters) -> ThreadSetup {
    Arc::new(move |name| {
        let kind = Kind::of(name)
            .ok_or_else(|| io::Error::other(format!("no filter for a thread called {name:?}")))?;
        if kind != Kind::Fs {
            privileges::give_up_all()?;
        }
        filters.apply(kind)
    })
}
