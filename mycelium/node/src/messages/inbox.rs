//! Messages that wait for a reader, oldest first, bounded in all and per source.

use std::collections::{BTreeMap, VecDeque};

use mycelium_wire::identity::PublicKey;

use super::Message;
use super::limits::{INBOX_SIZE_MAX, INBOX_SIZE_PER_SOURCE_MAX, MESSAGE_OVERHEAD};

/// Messages that wait for a reader.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    messages: VecDeque<Message>,
    size: usize,
    sources: BTreeMap<PublicKey, usize>,
}

impl Inbox {
    /// Whether a message with `size` bytes of payload from this source may be added.
    pub(super) fn has_room(&self, source: &PublicKey, size: usize) -> bool {
        let cost = size + MESSAGE_OVERHEAD;
        let used = self.sources.get(source).copied().unwrap_or(0);
        self.size + cost <= INBOX_SIZE_MAX && used + cost <= INBOX_SIZE_PER_SOURCE_MAX
    }

    /// Adds a message, for which there is room.
    pub(super) fn add(&mut self, message: Message) {
        let cost = message.payload.len() + MESSAGE_OVERHEAD;
        self.size += cost;
        *self.sources.entry(message.source.key).or_default() += cost;
        self.messages.push_back(message);
    }

    /// The oldest message, of this topic if one is given.
    pub(super) fn peek(&self, topic: Option<&[u8]>) -> Option<&Message> {
        self.messages.iter().find(|message| is_about(message, topic))
    }

    /// Takes that message.
    pub(super) fn pop(&mut self, topic: Option<&[u8]>) -> Option<Message> {
        let place = self.messages.iter().position(|message| is_about(message, topic))?;
        let message = self.messages.remove(place)?;
        let cost = message.payload.len() + MESSAGE_OVERHEAD;
        self.size -= cost;
        if let Some(used) = self.sources.get_mut(&message.source.key) {
            *used -= cost;
            if *used == 0 {
                self.sources.remove(&message.source.key);
            }
        }
        Some(message)
    }
}

fn is_about(message: &Message, topic: Option<&[u8]>) -> bool {
    topic.is_none_or(|topic| message.topic == topic)
}

#[cfg(test)]
mod tests {
    use super::super::Peer;
    use super::*;
    use mycelium_wire::message::MessageId;

    fn message(source: u8, topic: &[u8], size: usize) -> Message {
        let key = PublicKey::from_bytes([source; 32]);
        Message {
            id: MessageId([0; 8]),
            source: Peer { address: key.address(), key },
            destination: "400::1".parse().unwrap(),
            is_reply: false,
            topic: topic.to_vec(),
            payload: vec![0; size].into(),
        }
    }

    #[test]
    fn messages_are_read_in_order_and_by_topic() {
        let mut inbox = Inbox::default();
        for (size, topic) in [(1, &b"a"[..]), (2, b"b"), (3, b"a"), (4, b"")] {
            inbox.add(message(1, topic, size));
        }
        assert_eq!(inbox.peek(Some(b"b")).unwrap().payload.len(), 2);
        assert_eq!(inbox.pop(Some(b"b")).unwrap().payload.len(), 2);
        assert_eq!(inbox.pop(Some(b"b")), None);
        assert_eq!(inbox.pop(Some(b"")).unwrap().payload.len(), 4);
        assert_eq!(inbox.pop(None).unwrap().payload.len(), 1);
        assert_eq!(inbox.pop(None).unwrap().payload.len(), 3);
        assert_eq!((inbox.pop(None), inbox.size), (None, 0));
        assert!(inbox.sources.is_empty());
    }

    #[test]
    fn room_is_bounded_per_source_and_in_all() {
        let mut inbox = Inbox::default();
        let size = 1_000_000;
        for source in 0..3 {
            let key = PublicKey::from_bytes([source; 32]);
            while inbox.has_room(&key, size) {
                inbox.add(message(source, b"", size));
            }
            let used = inbox.sources.get(&key).copied().unwrap_or(0);
            assert!(used <= INBOX_SIZE_PER_SOURCE_MAX && inbox.size <= INBOX_SIZE_MAX);
        }
        assert!(inbox.messages.len() >= 64 && inbox.messages.len() <= 67);
        inbox.pop(None);
        assert!(inbox.has_room(&PublicKey::from_bytes([3; 32]), size));
    }
}
