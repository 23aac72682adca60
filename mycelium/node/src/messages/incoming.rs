//! Messages on their way in: parts that came, until all of them have.
//!
//! ```text
//!  INIT ──> Pending ──chunks──> Pending ──DONE, all there──> Message, and its key is remembered
//!              └── 300 s of silence, ABORTED, or idle while others need the room ──> gone
//! ```
//!
//! A message is known by its sender's key and its id, so that nobody touches another's. Nothing is
//! allocated for what an INIT promises: each part costs what it is plus [`PART_OVERHEAD`], and counts
//! against all. Against its source alone a promise counts as if it were kept, so that the messages of
//! one sender can't each have a part of the room and wait for the rest. What finds no room is not
//! acknowledged, and comes again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv6Addr;
use std::time::Instant;

use mycelium_wire::identity::PublicKey;
use mycelium_wire::message::MessageId;

use super::limits::{
    COMPLETED_COUNT_MAX, MESSAGE_SIZE_MAX, PART_OVERHEAD, PENDING_COUNT_MAX, PENDING_IDLE_TIME,
    PENDING_PER_SOURCE_MAX, PENDING_SIZE_MAX, PENDING_SIZE_PER_SOURCE_MAX, TRY_TIME,
};
use super::{Message, Peer};

/// Smallest part of a message, but for its last one (`reference: mycelium 1.10`).
const PART_SIZE_MIN: usize = 250;

/// A message and who it comes from.
pub(super) type Key = (PublicKey, MessageId);

/// All messages on their way in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pending: BTreeMap<Key, Pending>,
    /// By the time of their last part: the ones that make room.
    idle: BTreeSet<(Instant, Key)>,
    sources: BTreeMap<PublicKey, Usage>,
    size: usize,
    completed: BTreeSet<Key>,
    /// In the order of their completion.
    completed_order: VecDeque<Key>,
}

/// What an INIT says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) source: Peer,
    pub(super) destination: Ipv6Addr,
    pub(super) is_reply: bool,
    pub(super) length: u64,
    pub(super) topic: Vec<u8>,
}

/// A part of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) index: u64,
    pub(super) offset: u64,
    pub(super) data: &'a [u8],
}

#[derive(Debug)]
struct Pending {
    offer: Offer,
    /// Offset and bytes by index.
    parts: BTreeMap<u64, (u64, Box<[u8]>)>,
    /// Bytes in all parts.
    received: usize,
    last_heard: Instant,
}

/// What one source's pending messages may take.
#[derive(Debug, Default)]
struct Usage {
    count: usize,
    /// Bytes that they will have.
    promised: u64,
}

impl Pending {
    fn size(&self) -> usize {
        self.received + self.parts.len() * PART_OVERHEAD
    }
}

impl Incoming {
    /// A message is offered; whether it may come. One that is coming already goes on, unless it is
    /// another by now.
    pub(super) fn offered(&mut self, id: MessageId, offer: Offer, now: Instant) -> bool {
        let key = (offer.source.key, id);
        if self.completed.contains(&key) || offer.length > MESSAGE_SIZE_MAX as u64 {
            return false;
        }
        match self.pending.get(&key) {
            Some(pending) if pending.offer == offer => {
                self.touch(key, now);
                return true;
            }
            Some(_) => self.forget(key),
            None => {}
        }
        if !self.has_room_for_promise(&key.0, offer.length) {
            return false;
        }
        if self.pending.len() >= PENDING_COUNT_MAX && !self.forget_idle(key, now) {
            return false;
        }
        let usage = self.sources.entry(key.0).or_default();
        usage.count += 1;
        usage.promised += offer.length;
        self.idle.insert((now, key));
        let pending = Pending { offer, parts: BTreeMap::new(), received: 0, last_heard: now };
        self.pending.insert(key, pending);
        true
    }

    /// A part came; whether it is kept, or was before.
    pub(super) fn part(&mut self, key: Key, part: Part<'_>, now: Instant) -> bool {
        let Some(pending) = self.pending.get(&key) else {
            // A late one of a message that is whole.
            return self.completed.contains(&key);
        };
        if pending.parts.contains_key(&part.index) {
            self.touch(key, now);
            return true;
        }
        if !pending.accepts(part) || !self.make_room(key, part.data.len() + PART_OVERHEAD, now) {
            return false;
        }
        let Some(pending) = self.pending.get_mut(&key) else { return false };
        pending.parts.insert(part.index, (part.offset, part.data.into()));
        pending.received += part.data.len();
        self.size += part.data.len() + PART_OVERHEAD;
        self.touch(key, now);
        true
    }

    /// Whether a message became whole earlier.
    pub(super) fn is_completed(&self, key: Key) -> bool {
        self.completed.contains(&key)
    }

    /// What was offered, of a message that is coming.
    pub(super) fn offer(&self, key: Key) -> Option<&Offer> {
        self.pending.get(&key).map(|pending| &pending.offer)
    }

    /// The message, if all its parts are here and this is their hash. One that can't become right any
    /// more is given up.
    pub(super) fn complete(
        &mut self,
        key: Key,
        chunk_count: u64,
        checksum: &[u8; 32],
    ) -> Option<Message> {
        let pending = self.pending.get(&key)?;
        let is_whole = pending.received as u64 == pending.offer.length
            && pending.parts.len() as u64 == chunk_count;
        if !is_whole {
            return None;
        }
        let payload = pending.payload();
        let pending = self.forget_pending(key)?;
        let payload = payload.filter(|payload| blake3::hash(payload).as_bytes() == checksum)?;
        self.remember(key);
        Some(Message {
            id: key.1,
            source: pending.offer.source,
            destination: pending.offer.destination,
            is_reply: pending.offer.is_reply,
            topic: pending.offer.topic,
            payload: payload.into(),
        })
    }

    /// A message is not coming any more.
    pub(super) fn forget(&mut self, key: Key) {
        self.forget_pending(key);
    }

    /// When [`Self::expire`] is to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.idle.first().map(|(last_heard, _)| *last_heard + TRY_TIME)
    }

    /// Gives up messages whose sender has given up by now.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(last_heard, key)) = self.idle.first()
            && now >= last_heard + TRY_TIME
        {
            self.forget(key);
        }
    }

    /// Whether this source may begin one more message.
    fn has_room_for_promise(&self, source: &PublicKey, length: u64) -> bool {
        self.sources.get(source).is_none_or(|usage| {
            usage.count < PENDING_PER_SOURCE_MAX
                && usage.promised + length <= PENDING_SIZE_PER_SOURCE_MAX as u64
        })
    }

    /// Whether `key` may take this much more; idle messages, but not this one, make room for it.
    fn make_room(&mut self, key: Key, cost: usize, now: Instant) -> bool {
        while self.size + cost > PENDING_SIZE_MAX {
            if !self.forget_idle(key, now) {
                return false;
            }
        }
        true
    }

    /// Gives up the message that is idle longest, if that is long enough; whether there was one.
    fn forget_idle(&mut self, but: Key, now: Instant) -> bool {
        let mut longest = self.idle.iter().filter(|(_, key)| *key != but);
        let Some(&(last_heard, key)) = longest.next() else { return false };
        if now < last_heard + PENDING_IDLE_TIME {
            return false;
        }
        self.forget(key);
        true
    }

    fn forget_pending(&mut self, key: Key) -> Option<Pending> {
        let pending = self.pending.remove(&key)?;
        self.idle.remove(&(pending.last_heard, key));
        self.size -= pending.size();
        if let Some(usage) = self.sources.get_mut(&key.0) {
            usage.count -= 1;
            usage.promised -= pending.offer.length;
            if usage.count == 0 {
                self.sources.remove(&key.0);
            }
        }
        Some(pending)
    }

    fn touch(&mut self, key: Key, now: Instant) {
        let Some(pending) = self.pending.get_mut(&key) else { return };
        self.idle.remove(&(pending.last_heard, key));
        pending.last_heard = now;
        self.idle.insert((now, key));
    }

    fn remember(&mut self, key: Key) {
        if self.completed_order.len() >= COMPLETED_COUNT_MAX
            && let Some(oldest) = self.completed_order.pop_front()
        {
            self.completed.remove(&oldest);
        }
        if self.completed.insert(key) {
            self.completed_order.push_back(key);
        }
    }
}

impl Pending {
    /// Whether a part can be one of this message (`reference: mycelium 1.10`).
    fn accepts(&self, part: Part<'_>) -> bool {
        let length = self.offer.length;
        let size = part.data.len() as u64;
        let last_index = length.div_ceil(PART_SIZE_MIN as u64).checked_sub(1);
        let is_inside = part.offset.checked_add(size).is_some_and(|end| end <= length);
        is_inside
            && last_index.is_some_and(|last_index| part.index <= last_index)
            && (part.data.len() >= PART_SIZE_MIN || part.offset + size == length)
            && self.received as u64 + size <= length
    }

    /// All parts in order, if each begins where the one before it ends.
    fn payload(&self) -> Option<Vec<u8>> {
        let mut payload = Vec::with_capacity(self.received);
        for (offset, data) in self.parts.values() {
            if *offset != payload.len() as u64 {
                return None;
            }
            payload.extend_from_slice(data);
        }
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ID: MessageId = MessageId([1; 8]);

    fn source(number: u16) -> Peer {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let key = PublicKey::from_bytes(key);
        Peer { address: key.address(), key }
    }

    fn offer(number: u16, length: u64) -> Offer {
        let destination = "400::1".parse().unwrap();
        Offer { source: source(number), destination, is_reply: false, length, topic: Vec::new() }
    }

    fn key(number: u16) -> Key {
        (source(number).key, ID)
    }

    fn part(index: u64, offset: u64, data: &[u8]) -> Part<'_> {
        Part { index, offset, data }
    }

    #[test]
    fn parts_in_any_order_become_a_message_once() {
        let now = Instant::now();
        let mut incoming = Incoming::default();
        assert!(incoming.offered(ID, offer(1, 700), now));
        let data: Vec<u8> = (0..700_u16).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let checksum = *blake3::hash(&data).as_bytes();
        for (index, range) in [(2, 600..700), (0, 0..300), (2, 600..700)] {
            let offset = range.start as u64;
            assert!(incoming.part(key(1), part(index, offset, &data[range]), now));
            assert_eq!(incoming.complete(key(1), 3, &checksum), None);
            // A late INIT takes nothing away.
            assert!(incoming.offered(ID, offer(1, 700), now));
        }
        assert!(incoming.part(key(1), part(1, 300, &data[300..600]), now));
        assert_eq!(incoming.complete(key(1), 4, &checksum), None);
        let message = incoming.complete(key(1), 3, &checksum).unwrap();
        assert_eq!((message.id, &*message.payload), (ID, &data[..]));
        assert!(incoming.is_completed(key(1)) && !incoming.is_completed(key(2)));
        assert!(!incoming.offered(ID, offer(1, 700), now), "it came already");
        assert!(incoming.part(key(1), part(1, 300, &data[300..600]), now), "late, but here");
        assert_eq!(incoming.size, 0);
        assert!(incoming.sources.is_empty() && incoming.idle.is_empty());
    }

    #[test]
    fn a_message_without_bytes_has_no_parts() {
        let now = Instant::now();
        let mut incoming = Incoming::default();
        assert!(incoming.offered(ID, offer(1, 0), now));
        assert!(!incoming.part(key(1), part(0, 0, b""), now));
        let checksum = *blake3::hash(b"").as_bytes();
        assert!(incoming.complete(key(1), 0, &checksum).is_some());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let now = Instant::now();
        let mut incoming = Incoming::default();
        assert!(!incoming.part(key(1), part(0, 0, &[0; 300]), now), "never offered");
        assert!(incoming.offered(ID, offer(1, 1000), now));
        let mut refuses = |index, offset, size: usize| {
            assert!(!incoming.part(key(1), part(index, offset, &vec![0; size]), now));
        };
        refuses(0, 701, 300);
        refuses(0, u64::MAX, 300);
        refuses(4, 0, 300);
        refuses(u64::MAX, 0, 300);
        refuses(0, 0, 249);
        // All that was promised came, and more.
        assert!(incoming.part(key(1), part(0, 0, &[0; 750]), now));
        assert!(!incoming.part(key(1), part(1, 0, &[0; 251]), now));
        assert!(incoming.part(key(1), part(1, 0, &[0; 250]), now));
        let checksum = *blake3::hash(&[0; 1000]).as_bytes();
        assert_eq!(incoming.complete(key(1), 2, &checksum), None, "they overlap");
        assert_eq!(incoming.offer(key(1)), None);
        assert_eq!(incoming.size, 0);
    }

    #[test]
    fn a_promise_costs_nothing() {
        let now = Instant::now();
        let mut incoming = Incoming::default();
        assert!(!incoming.offered(ID, offer(1, u64::MAX), now));
        assert!(!incoming.offered(ID, offer(1, MESSAGE_SIZE_MAX as u64 + 1), now));
        assert!(incoming.offered(ID, offer(1, MESSAGE_SIZE_MAX as u64), now));
        assert_eq!(incoming.size, 0);
        // Another with the same id replaces it; another's with the same id does not.
        assert!(incoming.offered(ID, offer(2, 5), now));
        assert!(incoming.offered(ID, offer(1, 5), now));
        assert_eq!(incoming.pending.len(), 2);
        incoming.forget(key(2));
        assert_eq!(incoming.offer(key(1)).unwrap().length, 5);
    }

    #[test]
    fn pending_messages_are_bounded_per_source_and_in_all() {
        let now = Instant::now();
        let mut incoming = Incoming::default();
        let id = |number: usize| MessageId(number.to_be_bytes());
        for number in 0..PENDING_PER_SOURCE_MAX {
            assert!(incoming.offered(id(number), offer(0, 10), now));
        }
        assert!(!incoming.offered(id(PENDING_PER_SOURCE_MAX), offer(0, 10), now));
        for number in PENDING_PER_SOURCE_MAX..PENDING_COUNT_MAX {
            let source = u16::try_from(number / PENDING_PER_SOURCE_MAX).unwrap();
            assert!(incoming.offered(id(number), offer(source, 10), now));
        }
        let (soon, later) = (now + Duration::from_secs(1), now + PENDING_IDLE_TIME);
        assert!(!incoming.offered(ID, offer(999, 10), soon));
        assert!(incoming.offered(ID, offer(999, 10), later), "an idle one makes room");
        assert_eq!(incoming.pending.len(), PENDING_COUNT_MAX);
        incoming.expire(now + TRY_TIME);
        assert_eq!(incoming.pending.len(), 1);
        assert_eq!(incoming.deadline(), Some(later + TRY_TIME));
        incoming.expire(later + TRY_TIME);
        assert!(incoming.sources.is_empty() && incoming.deadline().is_none());
    }

    #[test]
    fn bytes_are_bounded_per_source_and_in_all() {
        let now = Instant::now();
        let mut incoming = Incoming::default();
        let data = vec![0; 60_000];
        let mut fill = |number: u16, now| {
            let mut count = 0;
            for id in 0..10_u8 {
                let offer = offer(number, MESSAGE_SIZE_MAX as u64);
                let key = (offer.source.key, MessageId([id; 8]));
                incoming.offered(key.1, offer, now);
                let parts = 0..MESSAGE_SIZE_MAX as u64 / 60_000;
                count += parts
                    .filter(|index| incoming.part(key, part(*index, index * 60_000, &data), now))
                    .count();
            }
            assert!(incoming.size <= PENDING_SIZE_MAX);
            count
        };
        assert_eq!(fill(1, now), 2 * (MESSAGE_SIZE_MAX / data.len()), "two of the ten");
        assert!(fill(2, now) > 500);
        assert!(fill(3, now) <= 2, "all room is taken");
        assert!(fill(4, now + PENDING_IDLE_TIME) > 500, "idle ones make room");
    }
}
