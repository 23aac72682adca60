//! Who is meant by an index: links, dialers, and handshakes that wait for their end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::link::udp::UdpLink;
use crate::link::udp::handshake::Pending;
use crate::link::udp::packet::{COOKIE_SIZE, split_sealed};

/// What a dialer is told.
#[derive(Debug)]
pub(crate) enum Reply {
    Response { from: SocketAddr, sender: u32, noise: Vec<u8> },
    Cookie { from: SocketAddr, cookie: [u8; COOKIE_SIZE] },
}

/// Who is meant by an index.
#[derive(Debug)]
pub(crate) enum Entry {
    Link(Arc<UdpLink>),
    Dialing(mpsc::Sender<Reply>),
    Pending(Box<Pending>),
}

/// All indices of a node.
#[derive(Debug, Default)]
pub(crate) struct Entries(pub(crate) HashMap<u32, Entry>);

/// Handshakes that a listener remembers, and how many of one address.
const PENDING_COUNT_MAX: usize = 256;
const PENDING_PER_ADDRESS_COUNT_MAX: usize = 16;
/// For how long.
const PENDING_AGE_MAX: Duration = Duration::from_secs(5);

impl Entries {
    /// The response to an init that came before.
    pub(crate) fn response(&self, from: SocketAddr, sender: u32) -> Option<Vec<u8>> {
        self.0.values().find_map(|entry| match entry {
            Entry::Pending(pending) if (pending.from, pending.sender) == (from, sender) => {
                Some(pending.response.clone())
            }
            _ => None,
        })
    }

    /// Takes out a handshake that a sealed datagram or a finish has brought to its end.
    pub(crate) fn take_pending(&mut self, index: u32) -> Option<Pending> {
        match self.0.remove(&index) {
            Some(Entry::Pending(pending)) => Some(*pending),
            _ => None,
        }
    }

    /// Whether one more handshake can be remembered; old ones are forgotten.
    pub(crate) fn has_room(&mut self, from: SocketAddr, now: Instant) -> bool {
        let (mut count, mut count_from) = (0, 0);
        self.0.retain(|_, entry| {
            let Entry::Pending(pending) = entry else { return true };
            let is_young = now.saturating_duration_since(pending.since) < PENDING_AGE_MAX;
            count += usize::from(is_young);
            count_from += usize::from(is_young && pending.from.ip() == from.ip());
            is_young
        });
        count < PENDING_COUNT_MAX && count_from < PENDING_PER_ADDRESS_COUNT_MAX
    }

    /// A random index that nobody has.
    pub(crate) fn free_index(&self) -> Option<u32> {
        let candidates = (0..4).filter_map(|_| mycelium_wire::random_bytes().ok());
        candidates.map(u32::from_be_bytes).find(|index| !self.0.contains_key(index))
    }
}

/// Whether a sealed datagram proves that IK's dialer is there.
pub(crate) fn is_proof(pending: &Pending, datagram: &mut [u8]) -> bool {
    let proof = split_sealed(datagram);
    proof.is_some_and(|(counter, sealed)| pending.is_proved_by(counter, sealed))
}
