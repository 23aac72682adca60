//! epoll(7) and an eventfd(2), with tokens instead of numbers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::core::ClientId;

/// Events taken from the system at once.
const EVENT_COUNT: usize = 1024;
/// The generation that marks what is no client.
const SPECIAL: u32 = u32::MAX;
const WAKER_PLACE: u32 = u32::MAX;
const SIGNALS_PLACE: u32 = u32::MAX - 1;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Waker,
    Signals,
    Listener(usize),
    Client(ClientId),
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
    /// Whether the other side sends nothing more, or the connection failed.
    pub(super) has_ended: bool,
}

impl Token {
    pub(super) const WAKER: Self = Self::Waker;
    pub(super) const SIGNALS: Self = Self::Signals;

    pub(super) fn listener(index: usize) -> Self {
        Self::Listener(index)
    }

    fn to_data(self) -> EventData {
        let (place, generation) = match self {
            Self::Waker => (WAKER_PLACE, SPECIAL),
            Self::Signals => (SIGNALS_PLACE, SPECIAL),
            // A handful of listeners.
            Self::Listener(index) => (u32::try_from(index).unwrap_or(0), SPECIAL),
            Self::Client(client) => (client.place, client.generation),
        };
        EventData::new_u64((u64::from(generation) << 32) | u64::from(place))
    }

    fn from_data(data: EventData) -> Self {
        let [a, b, c, d, e, f, g, h] = data.u64().to_le_bytes();
        let place = u32::from_le_bytes([a, b, c, d]);
        match (place, u32::from_le_bytes([e, f, g, h])) {
            (WAKER_PLACE, SPECIAL) => Self::Waker,
            (SIGNALS_PLACE, SPECIAL) => Self::Signals,
            (index, SPECIAL) => Self::Listener(index as usize),
            (place, generation) => Self::Client(ClientId { place, generation }),
        }
    }
}

/// An epoll instance.
pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl std::fmt::Debug for Poll {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Poll").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENT_COUNT) })
    }

    /// Watches something that is looked at as long as it is readable.
    pub(super) fn add_level(&self, source: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, token.to_data(), EventFlags::IN)?)
    }

    /// Watches something that is told of each time that it becomes readable, and need not be read.
    pub(super) fn add_edge(&self, source: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, token.to_data(), EventFlags::IN | EventFlags::ET)?)
    }

    /// Watches a client's socket, and tells of changes only.
    pub(super) fn add_client(&self, socket: impl AsFd, client: ClientId) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, Token::Client(client).to_data(), flags)?)
    }

    /// Waits for events, for `timeout` at most, and puts them in place of those in `ready`.
    pub(super) fn wait(&mut self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).ok();
        self.events.clear();
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        ready.extend(self.events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                token: Token::from_data(event.data),
                is_readable: flags.contains(EventFlags::IN),
                is_writable: flags.contains(EventFlags::OUT),
                has_ended: flags.intersects(ended),
            }
        }));
        Ok(())
    }
}

/// Wakes the loop from other threads. It is watched by its edge, so nobody reads the counter, which would
/// be full after some hundred years.
#[derive(Debug)]
pub(crate) struct Waker {
    counter: OwnedFd,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { counter: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.counter
    }

    /// Wakes the loop, now or when it waits next.
    pub(crate) fn wake(&self) {
        // There is nothing to be done if it can't.
        let _ = rustix::io::write(&self.counter, &1_u64.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lead_back() {
        let client = ClientId { place: 7, generation: 9 };
        for token in [Token::Waker, Token::Signals, Token::Listener(3), Token::Client(client)] {
            assert_eq!(Token::from_data(token.to_data()), token);
        }
    }

    #[test]
    fn a_waker_wakes_each_time_and_no_more() {
        let (mut poll, mut ready) = (Poll::new().unwrap(), Vec::new());
        let waker = Waker::new().unwrap();
        poll.add_edge(waker.descriptor(), Token::WAKER).unwrap();
        for _ in 0..3 {
            poll.wait(Duration::ZERO, &mut ready).unwrap();
            assert!(ready.is_empty());
            waker.wake();
            waker.wake();
            poll.wait(Duration::from_secs(5), &mut ready).unwrap();
            assert_eq!(ready.len(), 1);
        }
    }
}
