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

    /// Watches a client's socket, and tells of changes only.
    pub(super) fn add_client(&self, socket: impl AsFd, client: ClientId) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, Token::Client(client).to_data(), flags)?)
    }

    /// Waits for events, for `timeout` at most.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<Vec<Ready>> {
        let timeout = Timespec::try_from(timeout).ok();
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let ready = self.events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                token: Token::from_data(event.data),
                is_readable: flags.contains(EventFlags::IN),
                is_writable: flags.contains(EventFlags::OUT),
                has_ended: flags.intersects(ended),
            }
        });
        Ok(ready.collect())
    }
}

/// Wakes the loop from other threads.
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
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.counter, &1_u64.to_le_bytes());
    }

    /// Takes note that it was woken.
    pub(super) fn clear(&self) {
        // It may have been cleared already.
        let _ = rustix::io::read(&self.counter, &mut [0; 8]);
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
    fn a_waker_wakes_until_it_is_cleared() {
        let mut poll = Poll::new().unwrap();
        let waker = Waker::new().unwrap();
        poll.add_level(waker.descriptor(), Token::WAKER).unwrap();
        assert!(poll.wait(Duration::ZERO).unwrap().is_empty());
        waker.wake();
        waker.wake();
        assert_eq!(poll.wait(Duration::from_secs(5)).unwrap().len(), 1);
        waker.clear();
        assert!(poll.wait(Duration::ZERO).unwrap().is_empty());
    }
}
