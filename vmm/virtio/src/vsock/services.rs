//! Ends of connections that are not sockets but parts of the device: whoever listens for beats,
//! and whoever tells a restored guest the time.

use std::collections::BTreeSet;
use std::time::Instant;

use vm_memory::VolatileSlice;

use super::heartbeat::{self, Heartbeat};
use super::mux::{ConnectionId, Read};
use super::reseed::{self, Message, Reseed};
use super::{Event, EventSink};

/// The device's own ends of connections.
pub(super) struct Services {
    heartbeat: Option<Heartbeat>,
    /// The connections that beats come by.
    agents: BTreeSet<ConnectionId>,
    reseed: Option<Reseed>,
    /// The connection of the attempt that is under way.
    reseeding: Option<ConnectionId>,
    on_event: EventSink,
}

impl Services {
    /// The services that are there.
    pub(super) fn new(
        heartbeat: Option<Heartbeat>,
        reseed: Option<Reseed>,
        on_event: EventSink,
    ) -> Self {
        Self { heartbeat, agents: BTreeSet::new(), reseed, reseeding: None, on_event }
    }

    /// Whether `port` of the host is ours.
    pub(super) const fn has_port(&self, port: u32) -> bool {
        port == heartbeat::PORT && self.heartbeat.is_some()
    }

    /// The guest was connected to a port of ours.
    pub(super) fn connected(&mut self, id: ConnectionId) {
        self.agents.insert(id);
    }

    /// Whether the host's end of this connection is ours.
    pub(super) fn owns(&self, id: ConnectionId) -> bool {
        self.reseeding == Some(id) || self.agents.contains(&id)
    }

    /// Whether beats are expected.
    pub(super) fn expects_beats(&self) -> bool {
        self.heartbeat.as_ref().is_some_and(Heartbeat::is_expected)
    }

    /// The guest has not run until now.
    pub(super) fn resume(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.resume(heartbeat.is_expected(), now);
        }
    }

    /// Whether to connect to the guest now, to [`reseed::PORT`]: answered by
    /// [`reseed_begun`](Self::reseed_begun) or [`reseed_lost`](Self::reseed_lost).
    pub(super) fn reseeds(&mut self, now: Instant) -> bool {
        self.reseed.as_mut().is_some_and(|reseed| reseed.connects(now))
    }

    /// The connection is asked for.
    pub(super) const fn reseed_begun(&mut self, id: ConnectionId) {
        self.reseeding = Some(id);
    }

    /// The attempt has failed.
    pub(super) fn reseed_lost(&mut self, now: Instant) {
        self.reseeding = None;
        if let Some(event) = self.reseed.as_mut().and_then(|reseed| reseed.lost(now)) {
            self.finish_reseed(event);
        }
    }

    /// The guest has accepted. False if there is nothing to tell it.
    pub(super) fn established(&mut self) -> bool {
        let Some(reseed) = &mut self.reseed else { return false };
        match Message::now() {
            Ok(message) => {
                reseed.established(&message);
                true
            }
            Err(error) => {
                tracing::error!(%error, "vsock: no entropy for a restored guest");
                false
            }
        }
    }

    /// The guest sent something, which begins with `byte`. True if we have nothing more to say.
    pub(super) fn received(&mut self, id: ConnectionId, byte: u8, now: Instant) -> bool {
        if self.reseeding == Some(id) {
            let answer = self.reseed.as_ref().and_then(|reseed| reseed.answered(byte));
            return answer.map(|event| self.finish_reseed(event)).is_some();
        }
        let event = self.heartbeat.as_mut().and_then(|heartbeat| heartbeat.beat(now));
        if let Some(event) = event {
            (self.on_event)(Event::Heartbeat(event));
        }
        false
    }

    /// Puts what is to be told into the guest's memory.
    pub(super) fn read<'a>(
        &mut self,
        id: ConnectionId,
        pieces: impl Iterator<Item = VolatileSlice<'a>>,
        now: Instant,
    ) -> Read {
        let Some(reseed) = self.reseed.as_mut().filter(|_| self.reseeding == Some(id)) else {
            return Read::End;
        };
        let unsent = reseed.unsent();
        let mut size = 0;
        for piece in pieces {
            let end = unsent.len().min(size + piece.len());
            piece.copy_from(&unsent[size..end]);
            size = end;
        }
        reseed.sent(size, now);
        if size == 0 { Read::Blocked } else { Read::Bytes(u32::try_from(size).unwrap_or(0)) }
    }

    /// A connection is over.
    pub(super) fn closed(&mut self, id: ConnectionId, now: Instant) {
        self.agents.remove(&id);
        if self.reseeding == Some(id) {
            self.reseed_lost(now);
        }
    }

    /// When [`expire`](Self::expire) or [`reseeds`](Self::reseeds) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let heartbeat = self.heartbeat.as_ref().and_then(Heartbeat::deadline);
        let reseed = self.reseed.as_ref().and_then(Reseed::deadline);
        heartbeat.into_iter().chain(reseed).min()
    }

    /// Looks what took too long; the connection returned is to be given up.
    pub(super) fn expire(&mut self, now: Instant) -> Option<ConnectionId> {
        let event = self.heartbeat.as_mut().and_then(|heartbeat| heartbeat.expire(now));
        if let Some(event) = event {
            (self.on_event)(Event::Heartbeat(event));
        }
        let is_late = self.reseed.as_ref().is_some_and(|reseed| reseed.is_late(now));
        self.reseeding.filter(|_| is_late)
    }

    fn finish_reseed(&mut self, event: reseed::Event) {
        self.reseed = None;
        (self.on_event)(Event::Reseed(event));
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services")
            .field("heartbeat", &self.heartbeat)
            .field("agents", &self.agents)
            .field("reseed", &self.reseed)
            .field("reseeding", &self.reseeding)
            .finish_non_exhaustive()
    }
}
