//! Threads that run units.
//!
//! A worker is a thread around one epoll (rust-vmm's `event-manager`). It waits for kicks, for the
//! descriptors that units watch, and for the nearest deadline, and calls the unit in question:
//!
//! ```text
//!   vCPU ──ioeventfd──► kick ──┐                        ┌──► Unit::kicked
//!   host descriptors ──────────┼──► epoll_wait ─────────┼──► Unit::ready
//!   nearest deadline ──────────┘    (its time limit)    └──► Unit::expired
//!   start, stop ──► channel ───────► between two calls
//! ```
//!
//! Devices that must not wait for one another get workers of their own; those with little to do
//! share one ([`Placement`]). Threads are there before the guest is, and stay: a guest that resets
//! its devices all day starts none, and their seccomp filter is in place before any unit runs.
//!
//! **What a kick costs**: one `epoll_wait`. The eventfd is watched edge-triggered, so that it need
//! not be read: each write to it is an edge, and its count means nothing. Nothing is allocated.
//!
//! **Deadlines** are the time limit of `epoll_wait`, rounded up to its milliseconds, and not a
//! timerfd: those who set deadlines are rate limiters and timeouts, for which a millisecond is
//! exact, and a timerfd would cost a system call for each new deadline.
//!
//! **Stopping** is asked for, and waited for as long as the caller likes: a unit may have requests
//! in flight. Until it stops, its device keeps it.
//!
//! A unit that panics takes the process with it, as everywhere in the VMM: what it did to the guest's
//! memory or its disk would be anybody's guess.

mod running;
mod spawn;
#[cfg(test)]
mod tests;
mod thread;
mod units;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_virtio::Unit;
use vmm_virtio::pci::{Executor, Failure, Running};

use running::RunningUnits;
use thread::Thread;

pub(crate) use spawn::spawn;

/// The most threads that one device may have of its own.
pub const THREAD_COUNT_MAX: usize = 64;

/// Where a device's units run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On threads of its own, between which its units are dealt out.
    Own {
        /// How many; 1 to [`THREAD_COUNT_MAX`].
        thread_count: usize,
    },
    /// On the thread that all such devices share.
    Shared,
}

/// Called on each new thread, with its name, before it does anything: for its seccomp filter.
pub type ThreadSetup = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// All workers of a machine.
pub struct Workers {
    setup: ThreadSetup,
    shared: Mutex<Option<Arc<Group>>>,
}

/// Threads between which units are dealt out.
struct Group {
    threads: Vec<Arc<Thread>>,
}

impl Workers {
    /// No threads yet.
    #[must_use]
    pub fn new(setup: ThreadSetup) -> Self {
        Self { setup, shared: Mutex::default() }
    }

    /// Where the units of device `name` will run. Threads of its own end with it.
    ///
    /// # Errors
    /// When a thread cannot be started or set up.
    pub fn executor(&self, name: &str, placement: Placement) -> io::Result<Arc<dyn Executor>> {
        match placement {
            Placement::Own { thread_count } => {
                let thread_count = thread_count.clamp(1, THREAD_COUNT_MAX);
                Ok(Arc::new(Group::new(name, thread_count, &self.setup)?))
            }
            Placement::Shared => {
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(group) = &*shared {
                    return Ok(Arc::clone(group) as Arc<dyn Executor>);
                }
                let group = Arc::new(Group::new("devices", 1, &self.setup)?);
                *shared = Some(Arc::clone(&group));
                Ok(group)
            }
        }
    }
}

impl Group {
    fn new(name: &str, thread_count: usize, setup: &ThreadSetup) -> io::Result<Self> {
        let thread = |index: usize| {
            let name = if thread_count == 1 { name.to_owned() } else { format!("{name}.{index}") };
            Thread::spawn(&name, setup).map(Arc::new)
        };
        let threads = (0..thread_count).map(thread).collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }
}

impl Executor for Group {
    fn start(
        &self,
        units: Vec<Box<dyn Unit>>,
        failure: Arc<dyn Failure>,
    ) -> io::Result<Box<dyn Running>> {
        let mut running = RunningUnits::default();
        for (unit, thread) in units.into_iter().zip(self.threads.iter().cycle()) {
            let id = thread.start(unit, Arc::clone(&failure))?;
            running.add(Arc::clone(thread), id);
        }
        Ok(Box::new(running))
    }
}
