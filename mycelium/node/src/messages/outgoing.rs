//! Messages on their way out: what is sent next, and how far each one is.
//!
//! ```text
//!            ┌─INIT again─┐      ┌─chunks─┐           ┌─DONE again─┐
//!  push ──> Offered ──ack──> Sending ──all acked──> Finishing ──ack──> Received ──READ──> Read
//!               └─────────────────┴── 300 s ──> Aborted (said once)
//!                                               all: forgotten 300 s later
//! ```
//!
//! Packets are made when they are asked for ([`Outgoing::poll`]), so that a busy link slows senders
//! down, and by turns, so that a large message does not hold up a small one. A message is known by its
//! id and the subnet that it goes to: what other nodes say about it is not heard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use mycelium_wire::identity::Subnet;
use mycelium_wire::message::{CHUNK_SIZE, MessageId, MessageKind, MessagePacket};

use super::limits::{
    MESSAGE_SIZE_MAX, OUTGOING_COUNT_MAX, OUTGOING_SIZE_MAX, RECORD_TIME, TRY_TIME,
};
use super::window::Window;
use super::{Outbound, PushError, State, Status};

/// First wait for the answer to an INIT or DONE; each further one is twice as long.
const RETRY_START: Duration = Duration::from_millis(100);
/// Longest wait for the answer to an INIT or DONE.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A message and who it goes to.
pub(super) type Key = (MessageId, Subnet);

/// All messages on their way out, and those whose status is remembered.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    records: BTreeMap<Key, Record>,
    /// When each record wants to be polled; among those that are due, whose turn it is.
    agenda: BTreeSet<(Instant, u64, Key)>,
    next_turn: u64,
    /// Bytes of unfinished messages.
    size: usize,
    /// Finished records, oldest first: the ones that make room.
    finished: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Record {
    destination: Ipv6Addr,
    is_reply: bool,
    topic: Vec<u8>,
    /// Empty when the message is finished.
    payload: Vec<u8>,
    length: usize,
    checksum: [u8; 32],
    created: Instant,
    phase: Phase,
    awaits_reply: bool,
    /// Its entry in the agenda.
    entry: (Instant, u64),
}

#[derive(Debug)]
enum Phase {
    Offered(Retry),
    Sending(Window),
    Finishing(Retry),
    Received,
    Read,
    /// And whether the receiver is still to be told.
    Aborted(bool),
}

/// A packet that is sent until it is answered.
#[derive(Debug)]
struct Retry {
    first_sent: Option<Instant>,
    due: Instant,
    interval: Duration,
}

impl Retry {
    const fn new(now: Instant) -> Self {
        Self { first_sent: None, due: now, interval: RETRY_START }
    }

    /// Whether it is to be sent now; if so, it was.
    fn is_due(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.first_sent.get_or_insert(now);
        self.due = now + self.interval;
        self.interval = (2 * self.interval).min(RETRY_MAX);
        true
    }

    /// The time between packet and answer, if it was sent once.
    fn round_trip(&self, now: Instant) -> Option<Duration> {
        let first_sent = self.first_sent?;
        (self.due == first_sent + RETRY_START).then(|| now.saturating_duration_since(first_sent))
    }
}

impl Phase {
    const fn is_finished(&self) -> bool {
        matches!(self, Self::Received | Self::Read | Self::Aborted(_))
    }
}

impl Outgoing {
    /// Begins to send a message. With `is_reply` it answers the one with the same id.
    pub(super) fn push(
        &mut self,
        id: MessageId,
        message: Outbound,
        is_reply: bool,
        awaits_reply: bool,
        now: Instant,
    ) -> Result<(), PushError> {
        let key = (id, Subnet::of(message.destination));
        self.make_room(key, message.payload.len())?;
        let checksum = *blake3::hash(&message.payload).as_bytes();
        let length = message.payload.len();
        let entry = (now, self.turn());
        let record = Record {
            destination: message.destination,
            is_reply,
            topic: if is_reply { Vec::new() } else { message.topic },
            payload: message.payload,
            length,
            checksum,
            created: now,
            phase: Phase::Offered(Retry::new(now)),
            awaits_reply,
            entry,
        };
        self.size += length;
        self.agenda.insert((entry.0, entry.1, key));
        self.records.insert(key, record);
        Ok(())
    }

    /// Appends the next packet to `out` and tells to whom it goes; none when nobody has anything to
    /// send now.
    pub(super) fn poll(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Ipv6Addr> {
        loop {
            let &(due, turn, key) = self.agenda.first()?;
            if now < due {
                return None;
            }
            self.agenda.remove(&(due, turn, key));
            let Some(record) = self.records.get_mut(&key) else { continue };
            if now >= record.created + RECORD_TIME {
                self.forget(key);
                continue;
            }
            if now >= record.created + TRY_TIME && !record.phase.is_finished() {
                record.phase = Phase::Aborted(true);
                self.finish(key);
            }
            let sent = self.records.get_mut(&key).and_then(|record| record.poll(key.0, now, out));
            self.reschedule(key, now);
            if sent.is_some() {
                return sent;
            }
        }
    }

    /// When [`Self::poll`] is to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.agenda.first().map(|(due, _, _)| *due)
    }

    /// An acknowledgement or READ from `source`.
    pub(super) fn received(
        &mut self,
        id: MessageId,
        source: Ipv6Addr,
        kind: MessageKind<'_>,
        now: Instant,
    ) {
        let key = (id, Subnet::of(source));
        let Some(record) = self.records.get_mut(&key) else { return };
        let was_finished = record.phase.is_finished();
        record.heard(kind, now);
        if record.phase.is_finished() && !was_finished {
            self.finish(key);
        }
        self.reschedule(key, now);
    }

    /// Whether a message to the subnet of `source` with this id was sent.
    pub(super) fn was_sent(&self, id: MessageId, source: Ipv6Addr) -> bool {
        self.records.contains_key(&(id, Subnet::of(source)))
    }

    /// Whether someone waits for the reply; from now on nobody does.
    pub(super) fn take_awaits_reply(&mut self, id: MessageId, source: Ipv6Addr) -> bool {
        let record = self.records.get_mut(&(id, Subnet::of(source)));
        record.is_some_and(|record| std::mem::take(&mut record.awaits_reply))
    }

    /// Whether someone waits for the reply.
    pub(super) fn awaits_reply(&self, id: MessageId, source: Ipv6Addr) -> bool {
        self.records.get(&(id, Subnet::of(source))).is_some_and(|record| record.awaits_reply)
    }

    /// Nobody waits for a reply to this message any more.
    pub(super) fn stop_waiting(&mut self, id: MessageId) {
        for (_, record) in self.records_of_mut(id) {
            record.awaits_reply = false;
        }
    }

    /// How far a message is. When there are two with this id, a question and an answer, the question.
    pub(super) fn status(&self, id: MessageId) -> Option<Status> {
        let bounds = bounds(id);
        let all = self.records.range(bounds.0..=bounds.1);
        let (_, record) = all.min_by_key(|(_, record)| record.is_reply)?;
        Some(record.status())
    }

    fn records_of_mut(&mut self, id: MessageId) -> impl Iterator<Item = (&Key, &mut Record)> {
        let bounds = bounds(id);
        self.records.range_mut(bounds.0..=bounds.1)
    }

    fn turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    /// Sees to it that one more message may be kept.
    fn make_room(&mut self, key: Key, size: usize) -> Result<(), PushError> {
        if size > MESSAGE_SIZE_MAX {
            return Err(PushError::TooLarge(size));
        }
        match self.records.get(&key) {
            Some(record) if !record.phase.is_finished() => return Err(PushError::Busy(key.0)),
            Some(_) => self.forget(key),
            None => {}
        }
        if self.size + size > OUTGOING_SIZE_MAX {
            return Err(PushError::TooManyBytes(self.size));
        }
        if self.records.len() >= OUTGOING_COUNT_MAX {
            let (_, oldest) = *self.finished.first().ok_or(PushError::TooMany)?;
            self.forget(oldest);
        }
        Ok(())
    }

    /// A message's bytes are no longer needed.
    fn finish(&mut self, key: Key) {
        let Some(record) = self.records.get_mut(&key) else { return };
        self.size -= record.payload.len();
        record.payload = Vec::new();
        self.finished.insert((record.created, key));
    }

    fn forget(&mut self, key: Key) {
        let Some(record) = self.records.remove(&key) else { return };
        self.size -= record.payload.len();
        self.finished.remove(&(record.created, key));
        self.agenda.remove(&(record.entry.0, record.entry.1, key));
    }

    /// Notes when a record wants to be polled next, behind all others that want it at that time.
    fn reschedule(&mut self, key: Key, now: Instant) {
        let turn = self.turn();
        let Some(record) = self.records.get_mut(&key) else { return };
        self.agenda.remove(&(record.entry.0, record.entry.1, key));
        let end = if record.phase.is_finished() { RECORD_TIME } else { TRY_TIME };
        let due = record.due(now).map_or(record.created + end, |due| due.min(record.created + end));
        record.entry = (due, turn);
        self.agenda.insert((due, turn, key));
    }
}

/// Keys that a message with this id may have.
fn bounds(id: MessageId) -> (Key, Key) {
    let subnet = |bits: u128| Subnet::of(Ipv6Addr::from_bits(bits));
    ((id, subnet(0)), (id, subnet(u128::MAX)))
}

impl Record {
    /// When there is something to send; none when only the clock can change that.
    fn due(&self, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Offered(retry) | Phase::Finishing(retry) => Some(retry.due),
            Phase::Sending(window) if window.may_send() => Some(now),
            Phase::Sending(window) => window.timeout_at(),
            Phase::Aborted(true) => Some(now),
            Phase::Aborted(false) | Phase::Received | Phase::Read => None,
        }
    }

    fn poll(&mut self, id: MessageId, now: Instant, out: &mut Vec<u8>) -> Option<Ipv6Addr> {
        let kind = match &mut self.phase {
            Phase::Offered(retry) => retry
                .is_due(now)
                .then_some(MessageKind::Init { length: self.length as u64, topic: &self.topic })?,
            Phase::Sending(window) => {
                window.check_timeout(now);
                let index = window.send(now)?;
                chunk(&self.payload, index)?
            }
            Phase::Finishing(retry) => retry.is_due(now).then_some(MessageKind::Done {
                chunk_count: chunk_count(self.length),
                checksum: self.checksum,
            })?,
            Phase::Aborted(is_untold) => {
                std::mem::take(is_untold).then_some(MessageKind::Aborted)?
            }
            Phase::Received | Phase::Read => return None,
        };
        let is_reply = self.is_reply && matches!(kind, MessageKind::Init { .. });
        MessagePacket { id, is_reply, kind }.encode(out);
        Some(self.destination)
    }

    /// The receiver answered.
    fn heard(&mut self, kind: MessageKind<'_>, now: Instant) {
        match (&mut self.phase, kind) {
            (Phase::Offered(retry), MessageKind::InitAck { .. }) => {
                let sample = retry.round_trip(now);
                self.phase = Phase::Sending(Window::new(chunk_count(self.length), sample));
            }
            (Phase::Sending(window), MessageKind::ChunkAck { index, .. }) => {
                window.acked(index, now);
            }
            (Phase::Finishing(_), MessageKind::DoneAck { chunk_count: count, checksum })
                if count == chunk_count(self.length) && checksum == self.checksum =>
            {
                self.phase = Phase::Received;
            }
            // Whoever read it has received it, even if the acknowledgement was lost.
            (Phase::Finishing(_) | Phase::Received, MessageKind::Read) => self.phase = Phase::Read,
            _ => {}
        }
        if let Phase::Sending(window) = &self.phase
            && window.is_complete()
        {
            self.phase = Phase::Finishing(Retry::new(now));
        }
    }

    fn status(&self) -> Status {
        let state = match &self.phase {
            Phase::Offered(_) => State::Pending,
            Phase::Sending(window) => {
                let (pending, sent, acked) = window.progress();
                State::Sending { pending, sent, acked }
            }
            Phase::Finishing(_) => {
                State::Sending { pending: 0, sent: 0, acked: chunk_count(self.length) }
            }
            Phase::Received => State::Received,
            Phase::Read => State::Read,
            Phase::Aborted(_) => State::Aborted,
        };
        Status {
            destination: self.destination,
            state,
            created: self.created,
            deadline: self.created + TRY_TIME,
            length: self.length,
        }
    }
}

fn chunk_count(length: usize) -> u64 {
    length.div_ceil(CHUNK_SIZE) as u64
}

fn chunk(payload: &[u8], index: u64) -> Option<MessageKind<'_>> {
    let begin = usize::try_from(index).ok()?.checked_mul(CHUNK_SIZE)?;
    let rest = payload.get(begin..)?;
    let data = rest.get(..CHUNK_SIZE).unwrap_or(rest);
    Some(MessageKind::Chunk { index, offset: begin as u64, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId([7; 8]);

    fn destination() -> Ipv6Addr {
        "400:1::1".parse().unwrap()
    }

    fn outbound(size: usize) -> Outbound {
        Outbound { destination: destination(), topic: Vec::new(), payload: vec![1; size] }
    }

    fn pushed(size: usize, now: Instant) -> Outgoing {
        let mut outgoing = Outgoing::default();
        outgoing.push(ID, outbound(size), false, false, now).unwrap();
        outgoing
    }

    /// The flags of all packets that are sent now.
    fn sent(outgoing: &mut Outgoing, now: Instant) -> Vec<u16> {
        let mut flags = Vec::new();
        let mut packet = Vec::new();
        while outgoing.poll(now, &mut packet).is_some() {
            flags.push(u16::from_be_bytes([packet[8], packet[9]]));
            packet.clear();
        }
        flags
    }

    #[test]
    fn an_init_is_repeated_until_it_is_answered_or_time_is_up() {
        let start = Instant::now();
        let mut outgoing = pushed(10, start);
        assert_eq!(sent(&mut outgoing, start), [0x8000]);
        let mut inits = 1;
        let mut now = start;
        while now < start + TRY_TIME - RETRY_MAX {
            now = outgoing.deadline().unwrap();
            assert_eq!(sent(&mut outgoing, now), [0x8000]);
            inits += 1;
        }
        assert!((150..160).contains(&inits), "{inits}");
        assert_eq!(sent(&mut outgoing, start + TRY_TIME), [0x2000]);
        assert_eq!(outgoing.status(ID).unwrap().state, State::Aborted);
        assert_eq!(outgoing.size, 0);
        assert_eq!(outgoing.deadline(), Some(start + RECORD_TIME));
        assert_eq!(sent(&mut outgoing, start + RECORD_TIME), [0; 0]);
        assert_eq!(outgoing.status(ID), None);
        assert!(outgoing.agenda.is_empty() && outgoing.finished.is_empty());
    }

    #[test]
    fn a_message_goes_from_phase_to_phase() {
        let now = Instant::now();
        let mut outgoing = pushed(1301, now);
        let hear = |outgoing: &mut Outgoing, kind| outgoing.received(ID, destination(), kind, now);
        assert_eq!(outgoing.status(ID).unwrap().state, State::Pending);
        assert_eq!(sent(&mut outgoing, now), [0x8000]);
        hear(&mut outgoing, MessageKind::InitAck { length: 1301, topic_length: 0 });
        assert_eq!(sent(&mut outgoing, now), [0x1000, 0x1000]);
        let state = outgoing.status(ID).unwrap().state;
        assert_eq!(state, State::Sending { pending: 0, sent: 2, acked: 0 });
        for index in [1, 0] {
            hear(&mut outgoing, MessageKind::ChunkAck { index, offset: 0, size: 0 });
        }
        assert_eq!(sent(&mut outgoing, now), [0x4000]);
        // Not ours.
        hear(&mut outgoing, MessageKind::DoneAck { chunk_count: 2, checksum: [0; 32] });
        assert_eq!(sent(&mut outgoing, now + RETRY_START), [0x4000]);
        let checksum = *blake3::hash(&[1; 1301]).as_bytes();
        hear(&mut outgoing, MessageKind::DoneAck { chunk_count: 2, checksum });
        assert_eq!(outgoing.status(ID).unwrap().state, State::Received);
        assert_eq!(outgoing.size, 0);
        hear(&mut outgoing, MessageKind::Read);
        assert_eq!(outgoing.status(ID).unwrap().state, State::Read);
        assert_eq!(sent(&mut outgoing, now + TRY_TIME), [0; 0]);
    }

    #[test]
    fn others_are_not_heard() {
        let now = Instant::now();
        let mut outgoing = pushed(1, now);
        let other = "400:2::1".parse().unwrap();
        outgoing.received(ID, other, MessageKind::InitAck { length: 1, topic_length: 0 }, now);
        assert_eq!(outgoing.status(ID).unwrap().state, State::Pending);
        assert!(outgoing.was_sent(ID, destination()) && !outgoing.was_sent(ID, other));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let now = Instant::now();
        let mut outgoing = Outgoing::default();
        let push = |outgoing: &mut Outgoing, number: u64, size| {
            let id = MessageId(number.to_be_bytes());
            outgoing.push(id, outbound(size), false, false, now)
        };
        let too_large = MESSAGE_SIZE_MAX + 1;
        assert_eq!(push(&mut outgoing, 0, too_large), Err(PushError::TooLarge(too_large)));
        for number in 0..OUTGOING_COUNT_MAX as u64 {
            push(&mut outgoing, number, 0).unwrap();
        }
        assert_eq!(push(&mut outgoing, 9, 0), Err(PushError::Busy(MessageId(9_u64.to_be_bytes()))));
        assert_eq!(push(&mut outgoing, u64::MAX, 0), Err(PushError::TooMany));
        // A finished one makes room.
        let id = MessageId(9_u64.to_be_bytes());
        let checksum = *blake3::hash(b"").as_bytes();
        for kind in [
            MessageKind::InitAck { length: 0, topic_length: 0 },
            MessageKind::DoneAck { chunk_count: 0, checksum },
        ] {
            outgoing.received(id, destination(), kind, now);
        }
        push(&mut outgoing, u64::MAX, 0).unwrap();
        assert_eq!(outgoing.status(id), None);
        assert_eq!(outgoing.records.len(), OUTGOING_COUNT_MAX);
    }

    #[test]
    fn messages_take_turns() {
        let now = Instant::now();
        let mut outgoing = Outgoing::default();
        let ids = [0, 1, 2].map(|number| MessageId([number; 8]));
        for id in ids {
            outgoing.push(id, outbound(100_000), false, false, now).unwrap();
        }
        sent(&mut outgoing, now);
        for id in ids {
            let kind = MessageKind::InitAck { length: 100_000, topic_length: 0 };
            outgoing.received(id, destination(), kind, now);
        }
        let mut order = Vec::new();
        for _ in 0..9 {
            let mut packet = Vec::new();
            outgoing.poll(now, &mut packet).unwrap();
            order.push(packet[0]);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }
}
