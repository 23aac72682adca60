//! What carrying packets needs to know of one peer, read without locks: its sessions, and what becomes of
//! packets while there is none.
//!
//! ```text
//!                    says that it can, or did before?
//!                       │ no               │ yes
//!                       v                  v
//!                      Old        session? ──yes──> Session
//!                                          │ no: the keeper is asked for one
//!                                          v
//!                            Park ── nobody answers ──> Old, or Refuse if it did before
//! ```

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use mycelium_wire::identity::PublicKey;
use mycelium_wire::session::{Kind, Ring, Session, Time};

use crate::data::lock;

/// A peer that sessions are possible with.
#[derive(Debug)]
pub(crate) struct Channel {
    peer: PublicKey,
    ring: ArcSwap<Ring>,
    is_proved: AtomicBool,
    /// Nobody answered the last handshake.
    is_unanswered: AtomicBool,
    /// When the keeper was last asked, in milliseconds and one more.
    asked: AtomicU64,
    parked: Mutex<Parked>,
}

/// Which way a packet for a peer goes.
#[derive(Debug)]
pub(crate) enum Way {
    /// Sealed with a session.
    Session(Arc<Session>),
    /// Sealed with the key that both nodes have for ever.
    Old,
    /// It waits for the handshake.
    Park,
    /// Nowhere: the peer had a session before, and does not answer.
    Refuse,
}

/// A packet for a peer, not sealed yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Parcel {
    pub(crate) kind: Kind,
    pub(crate) hop_limit: u8,
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) payload: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Parked {
    parcels: VecDeque<Parcel>,
    size: usize,
}

/// Packets that wait for one handshake.
const PARKED_COUNT_MAX: usize = 256;
/// Their bytes.
const PARKED_SIZE_MAX: usize = 256 << 10;
/// Bytes that wait for all handshakes.
const PARKED_TOTAL_MAX: usize = 8 << 20;
/// What a packet costs besides its bytes.
const PARCEL_COST: usize = 96;
/// The keeper is asked this often while packets come.
const ASK_INTERVAL: Duration = Duration::from_millis(250);

impl Channel {
    pub(crate) fn new(peer: PublicKey, is_proved: bool) -> Self {
        Self {
            peer,
            ring: ArcSwap::default(),
            is_proved: AtomicBool::new(is_proved),
            is_unanswered: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            parked: Mutex::default(),
        }
    }

    /// Who it is.
    pub(crate) fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Its sessions, for as long as the guard is held.
    pub(crate) fn ring(&self) -> arc_swap::Guard<Arc<Ring>> {
        self.ring.load()
    }

    /// Whether the peer ever had a session with this node.
    pub(crate) fn is_proved(&self) -> bool {
        self.is_proved.load(Ordering::Relaxed)
    }

    /// Whether nobody answered the last handshake.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.is_unanswered.load(Ordering::Relaxed)
    }

    /// Which way packets go now. `is_announced`: whether the peer says that it speaks sessions.
    pub(crate) fn way(&self, is_announced: bool, now: Time) -> Way {
        let ring = self.ring.load();
        if let Some(session) = ring.current().filter(|session| !session.is_over(now)) {
            return Way::Session(Arc::clone(session));
        }
        match (is_announced, self.is_proved(), self.is_unanswered()) {
            (false, false, _) | (true, false, true) => Way::Old,
            (_, true, true) => Way::Refuse,
            (true, _, false) | (_, true, false) => Way::Park,
        }
    }

    /// Whether the keeper should be asked for a session now.
    pub(crate) fn asks(&self, now: Time) -> bool {
        let millis = u64::try_from(now.0.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let before = self.asked.load(Ordering::Relaxed);
        let interval = u64::try_from(ASK_INTERVAL.as_millis()).unwrap_or(u64::MAX);
        let is_due = before == 0 || millis.saturating_sub(before) >= interval;
        is_due
            && self
                .asked
                .compare_exchange(before, millis, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Lets the next packet ask at once.
    pub(crate) fn listen(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Takes the sessions that the peer has from now on.
    pub(super) fn set_ring(&self, ring: Ring) {
        if ring.current().is_some() {
            self.is_unanswered.store(false, Ordering::Relaxed);
        }
        self.ring.store(Arc::new(ring));
    }

    pub(super) fn set_unanswered(&self) {
        self.is_unanswered.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_proved(&self, is_proved: bool) {
        self.is_proved.store(is_proved, Ordering::Relaxed);
    }

    /// Keeps a packet until the handshake is done. False when there is no room; `total` counts the bytes
    /// of all peers.
    pub(super) fn park(&self, parcel: Parcel, total: &AtomicUsize) -> bool {
        let cost = parcel.payload.len() + PARCEL_COST;
        let mut parked = lock(&self.parked);
        let has_room = parked.parcels.len() < PARKED_COUNT_MAX
            && parked.size + cost <= PARKED_SIZE_MAX
            && total.load(Ordering::Relaxed) + cost <= PARKED_TOTAL_MAX;
        if has_room {
            parked.size += cost;
            total.fetch_add(cost, Ordering::Relaxed);
            parked.parcels.push_back(parcel);
        }
        has_room
    }

    /// Takes out what waits, in order.
    pub(super) fn unpark(&self, total: &AtomicUsize) -> VecDeque<Parcel> {
        let parked = std::mem::take(&mut *lock(&self.parked));
        total.fetch_sub(parked.size, Ordering::Relaxed);
        parked.parcels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(size: usize) -> Parcel {
        let address = Ipv6Addr::LOCALHOST;
        let payload = vec![0; size].into_boxed_slice();
        Parcel { kind: Kind::PACKET, hop_limit: 1, source: address, destination: address, payload }
    }

    #[test]
    fn a_peer_that_proved_itself_never_gets_less() {
        let now = Time::default();
        for (announced, proved, unanswered, expected) in [
            (false, false, false, "Old"),
            (true, false, false, "Park"),
            (true, false, true, "Old"),
            (false, true, false, "Park"),
            (true, true, false, "Park"),
            (false, true, true, "Refuse"),
            (true, true, true, "Refuse"),
        ] {
            let channel = Channel::new(PublicKey::from_bytes([1; 32]), proved);
            if unanswered {
                channel.set_unanswered();
            }
            let way = format!("{:?}", channel.way(announced, now));
            assert_eq!(way, expected, "{announced} {proved} {unanswered}");
        }
    }

    #[test]
    fn waiting_packets_are_bounded_and_keep_their_order() {
        let (channel, total) =
            (Channel::new(PublicKey::from_bytes([1; 32]), false), AtomicUsize::new(0));
        let taken = (0..1000).filter(|size| channel.park(parcel(*size), &total)).count();
        assert_eq!(taken, PARKED_COUNT_MAX);
        let sizes: Vec<_> =
            channel.unpark(&total).iter().map(|parcel| parcel.payload.len()).collect();
        assert_eq!(sizes, (0..PARKED_COUNT_MAX).collect::<Vec<_>>());
        assert_eq!(total.load(Ordering::Relaxed), 0);
        let taken = (0..1000).filter(|_| channel.park(parcel(1400), &total)).count();
        assert!(taken * 1400 <= PARKED_SIZE_MAX);
        let others: Vec<_> =
            (0..100).map(|n| Channel::new(PublicKey::from_bytes([n; 32]), false)).collect();
        for other in &others {
            for _ in 0..200 {
                other.park(parcel(1400), &total);
            }
        }
        assert!(total.load(Ordering::Relaxed) <= PARKED_TOTAL_MAX);
    }

    #[test]
    fn the_keeper_is_asked_now_and_then() {
        let channel = Channel::new(PublicKey::from_bytes([1; 32]), false);
        let asked = |millis| channel.asks(Time(Duration::from_millis(millis)));
        assert_eq!([0, 0, 100, 250, 251].map(asked), [true, false, false, true, false]);
        channel.listen();
        assert!(channel.asks(Time(Duration::from_millis(252))));
    }
}
