//! What the halves of a card share: the device, its units on their threads, and its handle.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::{Backend, wire};
use crate::{ConfigSpace, Counter, UnitError};

/// State of one card.
pub(super) struct Shared {
    pub(super) config: ConfigSpace,
    pub(super) received: Direction,
    pub(super) sent: Direction,
    pairs: Vec<Pair>,
    /// Pairs in use, from the first one on.
    active_count: AtomicU16,
    /// Whether packets pass; the driver sees the same in the configuration space.
    is_up: AtomicBool,
    link: Mutex<Link>,
}

/// What belongs to one queue pair as long as the card exists.
struct Pair {
    backend: Arc<dyn Backend>,
    /// Tells its unit that the pair is in use now.
    wake: EventFd,
}

/// Why the link is up or down.
struct Link {
    is_wanted: bool,
    is_lost: bool,
}

/// Counts of one direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) packets: Counter,
    /// Without headers of ours.
    pub(super) bytes: Counter,
    pub(super) drops: Counter,
    /// Times that the rate limiter made a packet wait.
    pub(super) throttled: Counter,
}

impl Direction {
    pub(super) fn count(&self, bytes: u32) {
        self.packets.increment();
        self.bytes.add(u64::from(bytes));
    }
}

/// What an error of a read or write means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// This packet cannot be taken; the next one may.
    Packet,
    /// The back end is no more.
    Gone,
}

/// What `errno` of a back end means.
pub(super) const fn classify(errno: Errno) -> Failure {
    match errno {
        Errno::BADFD
        | Errno::BADF
        | Errno::NXIO
        | Errno::NODEV
        | Errno::PIPE
        | Errno::CONNRESET
        | Errno::NOTCONN => Failure::Gone,
        _ => Failure::Packet,
    }
}

impl Shared {
    pub(super) fn new(config: ConfigSpace, backends: Vec<Arc<dyn Backend>>) -> io::Result<Self> {
        let pair = |backend| {
            let wake = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK)?;
            Ok(Pair { backend, wake })
        };
        Ok(Self {
            config,
            received: Direction::default(),
            sent: Direction::default(),
            pairs: backends.into_iter().map(pair).collect::<io::Result<_>>()?,
            active_count: AtomicU16::new(1),
            is_up: AtomicBool::new(true),
            link: Mutex::new(Link { is_wanted: true, is_lost: false }),
        })
    }

    /// Queue pairs that there are.
    pub(super) fn pair_count(&self) -> u16 {
        u16::try_from(self.pairs.len()).unwrap_or(u16::MAX)
    }

    /// The back end of a pair, which there must be.
    pub(super) fn backend(&self, pair: u16) -> &dyn Backend {
        &*self.pairs[usize::from(pair)].backend
    }

    /// Becomes readable when the pair is put in use.
    pub(super) fn wake(&self, pair: u16) -> &EventFd {
        &self.pairs[usize::from(pair)].wake
    }

    pub(super) fn active_count(&self) -> u16 {
        self.active_count.load(Ordering::SeqCst)
    }

    pub(super) fn is_active(&self, pair: u16) -> bool {
        pair < self.active_count()
    }

    /// Puts the first `count` pairs in use, the others out of it, and wakes them.
    pub(super) fn set_active(&self, count: u16) -> io::Result<()> {
        // Units see first that a pair is out of use, then that it gives errors; and the other way.
        let shrunk = self.active_count().min(count);
        self.active_count.store(shrunk, Ordering::SeqCst);
        if self.pairs.len() > 1 {
            for (index, pair) in (0_u16..).zip(&self.pairs) {
                pair.backend.set_attached(index < count)?;
            }
        }
        self.active_count.store(count, Ordering::SeqCst);
        for pair in &self.pairs[1..] {
            pair.wake.write(1)?;
        }
        Ok(())
    }

    pub(super) fn is_link_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Plugs the cable in or out. A lost back end stays unplugged.
    pub(super) fn set_link(&self, is_wanted: bool) {
        self.change_link(|link| link.is_wanted = is_wanted);
    }

    /// The back end is gone: the link goes down, and the unit stops with what is returned.
    pub(super) fn lost(&self, what: &str, source: io::Error) -> UnitError {
        self.change_link(|link| link.is_lost = true);
        UnitError::Host { what: format!("{what}: the back end is gone"), source }
    }

    /// A back end that answers is not lost.
    pub(super) fn found(&self) {
        self.change_link(|link| link.is_lost = false);
    }

    fn change_link(&self, change: impl FnOnce(&mut Link)) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut link);
        let is_up = link.is_wanted && !link.is_lost;
        if self.is_up.swap(is_up, Ordering::Relaxed) != is_up {
            self.config.update(|bytes| wire::set_link(bytes, is_up));
        }
    }
}
