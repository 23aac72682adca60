//! Messages between nodes: the state machine, without a socket or a clock.
//!
//! A message is some bytes for a node, with a topic, and perhaps a reply. It is cut into chunks, each
//! acknowledged, and checked as a whole (`reference: mycelium 1.10`). Its packets are the payload of
//! data packets of inner type 1 (`mycelium_wire::message`); whoever owns this machine seals and routes
//! them, and tells it which key a packet was opened with, so that sources are true.
//!
//! ```text
//!  API ── push, reply, pop, status ──>┌──────────┐── poll_packet ──> sealed, to a node
//!                                     │ Messages │
//!  opened packet ── received ────────>└──────────┘── poll_event ──> reply, arrival, socket
//!                                          └─ deadline ──> when to poll again
//! ```
//!
//! [`mailbox`] is the machine with a clock and a lock, as the rest of the node sees it.
//!
//! Where an arrived message goes: to whoever waits for it as a reply, else to the socket of its topic,
//! else to the inbox. It is acknowledged only when there is room for it there, so that its sender tries
//! again when there is not.
//!
//! Nothing is kept on disk. All that others can make a node keep is bounded by [`limits`].

mod inbox;
mod incoming;
pub mod limits;
pub mod mailbox;
mod outgoing;
#[cfg(test)]
mod tests;
mod topic;
mod window;

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mycelium_wire::identity::{OVERLAY, PublicKey};
use mycelium_wire::message::{MessageId, MessageKind, MessagePacket, TOPIC_SIZE_MAX};
use mycelium_wire::{RandomError, random_bytes};

use inbox::Inbox;
use incoming::{Incoming, Offer, Part};
use limits::{ACK_COUNT_MAX, HANDED_OVER_COUNT_MAX, MESSAGE_SIZE_MAX};
use outgoing::Outgoing;
pub use topic::{TopicError, Topics};

/// A node, by the key that its packets were opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address that it sent from, in its subnet.
    pub address: Ipv6Addr,
    /// Its key.
    pub key: PublicKey,
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The node that it is for.
    pub destination: Ipv6Addr,
    /// What it is about; empty for nothing. A reply has none.
    pub topic: Vec<u8>,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id; a reply has that of what it answers.
    pub id: MessageId,
    /// Who sent it.
    pub source: Peer,
    /// Where it was sent to: an address of this node.
    pub destination: Ipv6Addr,
    /// Whether it answers a message that this node sent.
    pub is_reply: bool,
    /// What it is about; empty for nothing.
    pub topic: Vec<u8>,
    /// Its bytes.
    pub payload: Arc<[u8]>,
}

/// How far a message is that this node sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The node that it is for.
    pub destination: Ipv6Addr,
    /// How far it is.
    pub state: State,
    /// When it was handed over.
    pub created: Instant,
    /// Until when it is tried.
    pub deadline: Instant,
    /// Its size, in bytes.
    pub length: usize,
}

/// How far a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The receiver has not answered.
    Pending,
    /// It is being sent.
    Sending {
        /// Chunks that wait to be sent.
        pending: u64,
        /// Chunks under way.
        sent: u64,
        /// Chunks that the receiver has.
        acked: u64,
    },
    /// The receiver has it.
    Received,
    /// A user of the receiver has it.
    Read,
    /// It was given up.
    Aborted,
}

/// Something for the owner of this machine to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is a message in the inbox.
    Arrived,
    /// A reply came that someone waits for. When they have it, call [`Messages::handed_over`].
    Reply(Message),
    /// A message is for a socket: write it, read the answer to its end, send it with
    /// [`Messages::reply`]. When it is written, or can't be, call [`Messages::handed_over`].
    Forward(PathBuf, Message),
}

/// Why a message is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Nobody lives there.
    #[error("{0} is not in the overlay, {OVERLAY}")]
    Destination(Ipv6Addr),
    /// The topic is no topic.
    #[error("a topic has at most {TOPIC_SIZE_MAX} bytes, not {0}")]
    TopicTooLong(usize),
    /// The message is too large.
    #[error("a message has at most {MESSAGE_SIZE_MAX} bytes, not {0}")]
    TooLarge(usize),
    /// A reply with this id is on its way.
    #[error("message {0} is being answered already")]
    Busy(MessageId),
    /// Too many messages are on their way.
    #[error("{} messages are on their way already", limits::OUTGOING_COUNT_MAX)]
    TooMany,
    /// Too many bytes are on their way.
    #[error("{0} bytes of messages are on their way; {max} may be", max = limits::OUTGOING_SIZE_MAX)]
    TooManyBytes(usize),
    /// No id for the message.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// All messages of a node.
#[derive(Debug)]
pub struct Messages {
    topics: Topics,
    outgoing: Outgoing,
    incoming: Incoming,
    inbox: Inbox,
    acks: VecDeque<(Ipv6Addr, Vec<u8>)>,
    events: VecDeque<Event>,
    /// Replies and forwarded messages that were not yet taken.
    handed_over_count: usize,
}

impl Messages {
    /// A node's messages: none, under these rules.
    #[must_use]
    pub fn new(topics: Topics) -> Self {
        Self {
            topics,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            inbox: Inbox::default(),
            acks: VecDeque::new(),
            events: VecDeque::new(),
            handed_over_count: 0,
        }
    }

    /// Who may send what.
    #[must_use]
    pub const fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The same, to be changed. It is asked when a message is offered, not again when it comes.
    pub const fn topics_mut(&mut self) -> &mut Topics {
        &mut self.topics
    }

    /// Begins to send a message. With `awaits_reply`, its reply comes as [`Event::Reply`].
    ///
    /// # Errors
    /// When it can't be sent, or there are too many.
    pub fn push(
        &mut self,
        message: Outbound,
        awaits_reply: bool,
        now: Instant,
    ) -> Result<MessageId, PushError> {
        check(&message)?;
        let id = MessageId(random_bytes()?);
        self.outgoing.push(id, message, false, awaits_reply, now)?;
        Ok(id)
    }

    /// Begins to send the answer to the message with this id.
    ///
    /// # Errors
    /// When it can't be sent, or there are too many.
    pub fn reply(
        &mut self,
        id: MessageId,
        message: Outbound,
        now: Instant,
    ) -> Result<(), PushError> {
        check(&message)?;
        self.outgoing.push(id, message, true, false, now)
    }

    /// Nobody waits for the reply to this message any more: it goes where all messages go.
    pub fn stop_waiting(&mut self, id: MessageId) {
        self.outgoing.stop_waiting(id);
    }

    /// How far a message is; none when it is unknown or was forgotten.
    #[must_use]
    pub fn status(&self, id: MessageId) -> Option<Status> {
        self.outgoing.status(id)
    }

    /// The oldest message in the inbox, of this topic if one is given.
    #[must_use]
    pub fn peek(&self, topic: Option<&[u8]>) -> Option<&Message> {
        self.inbox.peek(topic)
    }

    /// Takes that message, and tells its sender that it was read.
    pub fn pop(&mut self, topic: Option<&[u8]>) -> Option<Message> {
        let message = self.inbox.pop(topic)?;
        self.tell_read(&message);
        Some(message)
    }

    /// What [`Event::Reply`] or [`Event::Forward`] gave was taken, so that its sender may know; or it
    /// was not, and is lost.
    pub fn handed_over(&mut self, message: &Message, was_taken: bool) {
        self.handed_over_count = self.handed_over_count.saturating_sub(1);
        if was_taken {
            self.tell_read(message);
        }
    }

    /// Takes a packet that `source` sealed for `destination`, an address of this node. What makes no
    /// sense is ignored.
    pub fn received(&mut self, source: Peer, destination: Ipv6Addr, payload: &[u8], now: Instant) {
        let Ok(packet) = MessagePacket::parse(payload) else { return };
        let MessagePacket { id, is_reply, kind } = packet;
        let key = (source.key, id);
        let answer = match kind {
            MessageKind::Init { length, topic } => {
                let is_reply = is_reply && self.outgoing.was_sent(id, source.address);
                if !is_reply && !self.topics.accepts(topic, source.address) {
                    return;
                }
                let offer = Offer { source, destination, is_reply, length, topic: topic.to_vec() };
                // A topic has at most 255 bytes: it was read behind a length of one byte.
                let topic_length = u8::try_from(topic.len()).unwrap_or(u8::MAX);
                let may_come = self.incoming.offered(id, offer, now);
                may_come.then_some(MessageKind::InitAck { length, topic_length })
            }
            MessageKind::Chunk { index, offset, data } => {
                let is_kept = self.incoming.part(key, Part { index, offset, data }, now);
                let size = data.len() as u64;
                is_kept.then_some(MessageKind::ChunkAck { index, offset, size })
            }
            MessageKind::Done { chunk_count, checksum } => {
                let is_here = self.done(key, chunk_count, &checksum);
                is_here.then_some(MessageKind::DoneAck { chunk_count, checksum })
            }
            MessageKind::Aborted => {
                self.incoming.forget(key);
                None
            }
            kind => {
                self.outgoing.received(id, source.address, kind, now);
                None
            }
        };
        if let Some(kind) = answer {
            self.answer(source.address, MessagePacket { id, is_reply, kind });
        }
    }

    /// Appends the next packet's payload to `out`, and tells which node it is for; none when there is
    /// nothing to send now. Packets that are lost are sent again; the others must not be held back.
    pub fn poll_packet(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Ipv6Addr> {
        self.incoming.expire(now);
        if let Some((destination, packet)) = self.acks.pop_front() {
            out.extend_from_slice(&packet);
            return Some(destination);
        }
        self.outgoing.poll(now, out)
    }

    /// The next thing to do, if there is one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Self::poll_packet`] again, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        [self.outgoing.deadline(), self.incoming.deadline()].into_iter().flatten().min()
    }

    /// All parts of a message were sent; whether it is here, and has found its place.
    fn done(&mut self, key: incoming::Key, chunk_count: u64, checksum: &[u8; 32]) -> bool {
        if self.incoming.is_completed(key) {
            return true;
        }
        let Some(offer) = self.incoming.offer(key) else { return false };
        let source = offer.source.address;
        let is_awaited = offer.is_reply && self.outgoing.awaits_reply(key.1, source);
        let socket = self.topics.forward(&offer.topic).ok().flatten();
        let socket = socket.filter(|_| !is_awaited).map(PathBuf::from);
        let has_room = if is_awaited || socket.is_some() {
            self.handed_over_count < HANDED_OVER_COUNT_MAX
        } else {
            let size = usize::try_from(offer.length).unwrap_or(usize::MAX);
            self.inbox.has_room(&key.0, size)
        };
        if !has_room {
            return false;
        }
        let Some(message) = self.incoming.complete(key, chunk_count, checksum) else {
            return false;
        };
        if is_awaited {
            self.outgoing.take_awaits_reply(key.1, source);
            self.handed_over_count += 1;
            self.events.push_back(Event::Reply(message));
        } else if let Some(path) = socket {
            self.handed_over_count += 1;
            self.events.push_back(Event::Forward(path, message));
        } else {
            self.inbox.add(message);
            if !self.events.contains(&Event::Arrived) {
                self.events.push_back(Event::Arrived);
            }
        }
        true
    }

    fn tell_read(&mut self, message: &Message) {
        let packet = MessagePacket { id: message.id, is_reply: false, kind: MessageKind::Read };
        self.answer(message.source.address, packet);
    }

    /// Queues a short packet, unless there are too many.
    fn answer(&mut self, destination: Ipv6Addr, packet: MessagePacket<'_>) {
        if self.acks.len() < ACK_COUNT_MAX {
            let mut bytes = Vec::new();
            packet.encode(&mut bytes);
            self.acks.push_back((destination, bytes));
        }
    }
}

fn check(message: &Outbound) -> Result<(), PushError> {
    if !OVERLAY.contains(message.destination) {
        return Err(PushError::Destination(message.destination));
    }
    if message.topic.len() > TOPIC_SIZE_MAX {
        return Err(PushError::TopicTooLong(message.topic.len()));
    }
    Ok(())
}
