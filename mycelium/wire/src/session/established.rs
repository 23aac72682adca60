//! One session: keys of both directions that a handshake gave, used by many threads at once.
//!
//! Whoever carries packets seals and opens with `&self`. Counters are taken one at a time from an atomic;
//! the window of what came has a lock that is held for some nanoseconds. Besides, a session notes when it
//! was used and whether its other end answers, which is what [`super::Machine`] goes by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::cipher::{COUNTER_END, Opener, SealError, Sealer, Suite, TAG_SIZE};
use super::time::Time;
use super::{DATA_HEADER_SIZE, DATA_OVERHEAD, REJECT_AFTER};
use crate::identity::PublicKey;
use crate::noise::Keys;
use crate::reader::Reader;

/// Keys of two nodes for a while.
#[derive(Debug)]
pub struct Session {
    peer: PublicKey,
    suite: Suite,
    sealer: Sealer,
    opener: Opener,
    index: u32,
    peer_index: u32,
    is_initiator: bool,
    established: Time,
    next_counter: AtomicU64,
    /// The other end has shown that it has the keys.
    is_confirmed: AtomicBool,
    activity: Arc<Activity>,
}

/// What passed between two nodes lately, in whichever of their sessions: when both ends have begun one,
/// each sends with its own. All are marks of time.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// The first packet sent since one came.
    unanswered: AtomicU64,
    /// The first that came since one was sent.
    unacknowledged: AtomicU64,
    /// The last one that was more than a sign of life.
    used: AtomicU64,
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) peer: PublicKey,
    pub(super) suite: Suite,
    pub(super) keys: Keys,
    pub(super) index: u32,
    pub(super) peer_index: u32,
    pub(super) is_initiator: bool,
    pub(super) activity: Arc<Activity>,
}

impl Session {
    pub(super) fn new(parts: &Parts, now: Time) -> Self {
        Self {
            peer: parts.peer,
            suite: parts.suite,
            sealer: Sealer::new(parts.suite, &parts.keys.send),
            opener: Opener::new(parts.suite, &parts.keys.receive),
            index: parts.index,
            peer_index: parts.peer_index,
            is_initiator: parts.is_initiator,
            established: now,
            next_counter: AtomicU64::new(0),
            // Its response proved it.
            is_confirmed: AtomicBool::new(parts.is_initiator),
            activity: Arc::clone(&parts.activity),
        }
    }

    /// Who has the other end.
    #[must_use]
    pub const fn peer(&self) -> PublicKey {
        self.peer
    }

    /// The cipher.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// What packets to this end begin with.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// When its handshake was done.
    #[must_use]
    pub const fn established(&self) -> Time {
        self.established
    }

    /// Whether this end began the handshake.
    #[must_use]
    pub const fn is_initiator(&self) -> bool {
        self.is_initiator
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now: Time) -> bool {
        now.since(self.established) >= REJECT_AFTER
    }

    /// Whether the other end has shown that it has the keys; until then nothing is sent.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.is_confirmed.load(Ordering::Acquire)
    }

    /// Seals `body`: [`DATA_HEADER_SIZE`] bytes of room, plaintext, [`TAG_SIZE`] bytes of room. The
    /// plaintext is empty, for a sign of life, or a kind and a payload.
    ///
    /// # Errors
    /// When the session is over.
    ///
    /// # Panics
    /// When there is no room.
    pub fn seal(&self, aad: &[u8], body: &mut [u8], now: Time) -> Result<(), SealError> {
        assert!(body.len() >= DATA_OVERHEAD, "room for a header and a tag");
        let counter = self.next_counter.fetch_add(1, Ordering::Relaxed);
        if counter >= COUNTER_END || self.is_over(now) {
            return Err(SealError::Over);
        }
        let (header, rest) = body.split_at_mut(DATA_HEADER_SIZE);
        let (index, counter_room) = header.split_at_mut(4);
        index.copy_from_slice(&self.peer_index.to_be_bytes());
        counter_room.copy_from_slice(&counter.to_be_bytes());
        let is_data = rest.len() > TAG_SIZE;
        self.sealer.seal_in_place(counter, aad, rest);
        clear(&self.activity.unacknowledged);
        if is_data {
            begin(&self.activity.unanswered, now);
            set(&self.activity.used, now);
        }
        Ok(())
    }

    /// Opens `body` and gives its plaintext. True with it when this is the first one, which makes an
    /// answering end's session ready for sending: [`super::Machine::tick`] should be called soon.
    ///
    /// # Errors
    /// When the other end has not sealed it, it came before, or the session is over.
    pub fn open<'a>(
        &self,
        aad: &[u8],
        body: &'a mut [u8],
        now: Time,
    ) -> Result<(&'a mut [u8], bool), SealError> {
        if self.is_over(now) {
            return Err(SealError::Over);
        }
        let (counter, sealed) = split(body)?;
        let plaintext = self.opener.open_in_place(counter, aad, sealed)?;
        clear(&self.activity.unanswered);
        if !plaintext.is_empty() {
            begin(&self.activity.unacknowledged, now);
            set(&self.activity.used, now);
        }
        let is_first = !self.is_confirmed() && !self.is_confirmed.swap(true, Ordering::AcqRel);
        Ok((plaintext, is_first))
    }

    /// What packets to the other end begin with.
    pub(super) const fn peer_index(&self) -> u32 {
        self.peer_index
    }

    /// Opens what this end sealed.
    pub(super) fn reopen<'a>(
        &self,
        aad: &[u8],
        body: &'a mut [u8],
    ) -> Result<&'a mut [u8], SealError> {
        let (counter, sealed) = split(body)?;
        self.sealer.reopen_in_place(counter, aad, sealed)
    }

    /// Packets sealed.
    #[must_use]
    pub fn sealed_count(&self) -> u64 {
        self.next_counter.load(Ordering::Relaxed)
    }
}

impl Activity {
    /// The other end said something outside of sessions.
    pub(super) fn heard(&self) {
        clear(&self.unanswered);
    }

    /// For how long packets were sent and none came.
    pub(super) fn unanswered_for(&self, now: Time) -> Option<Duration> {
        elapsed(&self.unanswered, now)
    }

    /// For how long packets came and none was sent.
    pub(super) fn unacknowledged_for(&self, now: Time) -> Option<Duration> {
        elapsed(&self.unacknowledged, now)
    }

    /// How long ago something was said.
    pub(super) fn unused_for(&self, now: Time) -> Option<Duration> {
        elapsed(&self.used, now)
    }
}

fn elapsed(mark: &AtomicU64, now: Time) -> Option<Duration> {
    Time::of_mark(mark.load(Ordering::Relaxed)).map(|since| now.since(since))
}

/// The index that a body of a session begins with.
#[must_use]
pub fn index(body: &[u8]) -> Option<u32> {
    body.first_chunk().copied().map(u32::from_be_bytes)
}

fn split(body: &mut [u8]) -> Result<(u64, &mut [u8]), SealError> {
    let size = body.len();
    let mut reader = Reader::new(body);
    let counter = reader.array::<4>().and_then(|_index| reader.u64());
    match (counter, body.split_at_mut_checked(DATA_HEADER_SIZE)) {
        (Some(counter), Some((_, sealed))) if sealed.len() >= TAG_SIZE => Ok((counter, sealed)),
        _ => Err(SealError::Short(size)),
    }
}

/// Marks are written when they change and else only read: threads share them.
fn clear(mark: &AtomicU64) {
    if mark.load(Ordering::Relaxed) != 0 {
        mark.store(0, Ordering::Relaxed);
    }
}

fn begin(mark: &AtomicU64, now: Time) {
    if mark.load(Ordering::Relaxed) == 0 {
        mark.store(now.mark(), Ordering::Relaxed);
    }
}

fn set(mark: &AtomicU64, now: Time) {
    if mark.load(Ordering::Relaxed) != now.mark() {
        mark.store(now.mark(), Ordering::Relaxed);
    }
}
