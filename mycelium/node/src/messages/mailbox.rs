//! The machine with a clock, a lock, and those who wait: what the API and the data plane share.
//!
//! [`Mailbox::run`] is the one task that sends packets when they are due. Packets that arrive go in by
//! [`Mailbox::received`]; whoever waits for a message or a reply is woken from there. A message for a
//! socket is carried there by a task of its own: the bytes are written, and what the handler writes
//! until it closes is the reply.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycelium_wire::message::MessageId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep_until, timeout, timeout_at};

use super::limits::MESSAGE_SIZE_MAX;
use super::{Event, Message, Messages, Outbound, Peer, PushError, Status, Topics};

/// Longest time that a client may wait for a message or a reply.
pub const WAIT_TIME_MAX: Duration = Duration::from_secs(3600);
/// How long a handler may take to accept a message.
const FORWARD_WRITE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a handler may take to answer.
const FORWARD_READ_TIME_MAX: Duration = Duration::from_secs(300);
/// Packets that are sent before other tasks have a turn.
const BURST_COUNT_MAX: usize = 64;

/// A node's messages, shared.
#[derive(Debug)]
pub struct Mailbox {
    own: Peer,
    state: Mutex<State>,
    /// There is something to send, or a nearer deadline.
    wake: Notify,
    /// There is something in the inbox.
    arrived: Notify,
}

#[derive(Debug)]
struct State {
    messages: Messages,
    waiting: HashMap<MessageId, oneshot::Sender<Message>>,
}

/// What became of a message that asked for a reply.
#[derive(Debug)]
pub enum Answer {
    /// The reply.
    Reply(Message),
    /// None came in time; the message is tried on.
    None(MessageId),
}

impl Mailbox {
    /// The messages of the node with this address and key, under these rules.
    #[must_use]
    pub fn new(own: Peer, topics: Topics) -> Arc<Self> {
        let state = State { messages: Messages::new(topics), waiting: HashMap::new() };
        let (wake, arrived) = (Notify::new(), Notify::new());
        Arc::new(Self { own, state: Mutex::new(state), wake, arrived })
    }

    /// This node.
    #[must_use]
    pub const fn own(&self) -> Peer {
        self.own
    }

    /// Sends what is due, for ever. `send` gets the destination and the payload of an inner packet of
    /// the type for messages; it must not wait, and may lose packets.
    pub async fn run(&self, mut send: impl FnMut(Ipv6Addr, &[u8])) {
        let mut packet = Vec::new();
        loop {
            for _ in 0..BURST_COUNT_MAX {
                packet.clear();
                let polled = self.lock().messages.poll_packet(Instant::now(), &mut packet);
                let Some(destination) = polled else { break };
                send(destination, &packet);
            }
            let deadline = self.lock().messages.deadline();
            let time = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = time => {}
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes a packet that `source` sealed for `destination`. Must be called within a tokio runtime.
    pub fn received(self: &Arc<Self>, source: Peer, destination: Ipv6Addr, payload: &[u8]) {
        let mut state = self.lock();
        state.messages.received(source, destination, payload, Instant::now());
        while let Some(event) = state.messages.poll_event() {
            match event {
                Event::Arrived => self.arrived.notify_waiters(),
                Event::Reply(message) => state.give_reply(message),
                Event::Forward(path, message) => {
                    tokio::spawn(Arc::clone(self).forward(path, message));
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Begins to send a message.
    ///
    /// # Errors
    /// See [`Messages::push`].
    pub fn push(&self, message: Outbound) -> Result<MessageId, PushError> {
        let id = self.lock().messages.push(message, false, Instant::now())?;
        self.wake.notify_one();
        Ok(id)
    }

    /// Sends a message, and waits for its reply, at most [`WAIT_TIME_MAX`].
    ///
    /// # Errors
    /// See [`Messages::push`].
    pub async fn ask(&self, message: Outbound, wait: Duration) -> Result<Answer, PushError> {
        let (sender, mut receiver) = oneshot::channel();
        let id = {
            let mut state = self.lock();
            let id = state.messages.push(message, true, Instant::now())?;
            state.waiting.insert(id, sender);
            id
        };
        self.wake.notify_one();
        let waiting = Waiting { mailbox: self, id };
        let reply = timeout(wait.min(WAIT_TIME_MAX), &mut receiver).await;
        drop(waiting);
        // It may have come between the end of the wait and now.
        let reply = reply.ok().and_then(Result::ok).or_else(|| receiver.try_recv().ok());
        Ok(reply.map_or(Answer::None(id), Answer::Reply))
    }

    /// Answers the message with this id.
    ///
    /// # Errors
    /// See [`Messages::reply`].
    pub fn reply(&self, id: MessageId, message: Outbound) -> Result<(), PushError> {
        self.lock().messages.reply(id, message, Instant::now())?;
        self.wake.notify_one();
        Ok(())
    }

    /// The oldest message, of this topic if one is given, as soon as there is one; none after `wait`,
    /// which is at most [`WAIT_TIME_MAX`]. It stays in the inbox if `is_peek`.
    pub async fn pop(
        &self,
        topic: Option<&[u8]>,
        is_peek: bool,
        wait: Duration,
    ) -> Option<Message> {
        let end = tokio::time::Instant::now() + wait.min(WAIT_TIME_MAX);
        loop {
            let mut arrival = std::pin::pin!(self.arrived.notified());
            // From here on, an arrival is noticed.
            arrival.as_mut().enable();
            let found = if is_peek {
                self.lock().messages.peek(topic).cloned()
            } else {
                self.lock().messages.pop(topic)
            };
            if found.is_some() {
                self.wake.notify_one();
                return found;
            }
            timeout_at(end, arrival).await.ok()?;
        }
    }

    /// How far a message is.
    #[must_use]
    pub fn status(&self, id: MessageId) -> Option<Status> {
        self.lock().messages.status(id)
    }

    /// Looks at the rules of topics, or changes them.
    pub fn with_topics<T>(&self, change: impl FnOnce(&mut Topics) -> T) -> T {
        change(self.lock().messages.topics_mut())
    }

    /// Gives a message to the handler of its topic, and its answer back to the sender.
    async fn forward(self: Arc<Self>, path: PathBuf, message: Message) {
        let exchanged = exchange(&path, &message.payload).await;
        if let Err(error) = &exchanged {
            tracing::warn!(path = %path.display(), id = %message.id, %error, "message not forwarded");
        }
        self.lock().messages.handed_over(&message, exchanged.is_ok());
        if let Ok(payload) = exchanged
            && !payload.is_empty()
        {
            let destination = message.source.address;
            let answer = Outbound { destination, topic: Vec::new(), payload };
            if let Err(error) = self.reply(message.id, answer) {
                tracing::warn!(id = %message.id, %error, "a handler's answer is not sent");
            }
        }
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_reply(&mut self, message: Message) {
        let waiting = self.waiting.remove(&message.id);
        let was_taken = waiting.is_some_and(|waiting| waiting.send(message.clone()).is_ok());
        self.messages.handed_over(&message, was_taken);
    }
}

/// Someone waits for a reply, until this is dropped: a client may hang up at any time.
struct Waiting<'a> {
    mailbox: &'a Mailbox,
    id: MessageId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.mailbox.lock();
        state.waiting.remove(&self.id);
        state.messages.stop_waiting(self.id);
    }
}

/// Why a handler did not get a message, or gave no answer.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("the handler's socket failed")]
    Socket(#[from] std::io::Error),
    #[error("the handler took longer than {0:?}")]
    Slow(Duration),
    #[error("the handler's answer is larger than {MESSAGE_SIZE_MAX} bytes")]
    TooLarge,
}

/// Writes a message to a handler's socket; what it answers.
async fn exchange(path: &Path, payload: &[u8]) -> Result<Vec<u8>, ForwardError> {
    let write = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(payload).await?;
        Ok::<_, std::io::Error>(stream)
    };
    let slow = |_| ForwardError::Slow(FORWARD_WRITE_TIME_MAX);
    let stream = timeout(FORWARD_WRITE_TIME_MAX, write).await.map_err(slow)??;
    let mut answer = Vec::new();
    let mut stream = stream.take(MESSAGE_SIZE_MAX as u64 + 1);
    let slow = |_| ForwardError::Slow(FORWARD_READ_TIME_MAX);
    timeout(FORWARD_READ_TIME_MAX, stream.read_to_end(&mut answer)).await.map_err(slow)??;
    if answer.len() > MESSAGE_SIZE_MAX {
        return Err(ForwardError::TooLarge);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mycelium_wire::identity::{PublicKey, Subnet};

    fn peer(number: u8) -> Peer {
        let key = PublicKey::from_bytes([number; 32]);
        Peer { address: key.address(), key }
    }

    /// Two mailboxes whose packets reach each other.
    fn pair() -> [Arc<Mailbox>; 2] {
        let boxes = [1, 2].map(|number| Mailbox::new(peer(number), Topics::default()));
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (Arc::clone(&boxes[from]), Arc::clone(&boxes[to]));
            tokio::spawn(async move {
                from.run(|destination, payload| to.received(from.own(), destination, payload))
                    .await;
            });
        }
        boxes
    }

    fn outbound(to: &Mailbox, topic: &[u8], payload: &[u8]) -> Outbound {
        let (topic, payload) = (topic.to_vec(), payload.to_vec());
        Outbound { destination: to.own().address, topic, payload }
    }

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_question_is_answered() {
        let [a, b] = pair();
        let question = outbound(&b, b"q", b"who?");
        let asker = tokio::spawn({
            let a = Arc::clone(&a);
            async move { a.ask(question, SOON).await.unwrap() }
        });
        let message = b.pop(Some(b"q"), true, SOON).await.unwrap();
        assert_eq!(b.pop(Some(b"q"), false, SOON).await.unwrap(), message);
        b.reply(message.id, outbound(&a, b"", b"me")).unwrap();
        let Answer::Reply(reply) = asker.await.unwrap() else { panic!("no reply") };
        assert_eq!(&*reply.payload, b"me");
        assert_eq!(b.pop(None, false, Duration::ZERO).await, None);
    }

    #[tokio::test]
    async fn who_waits_no_longer_is_forgotten() {
        let [a, b] = pair();
        let answer = a.ask(outbound(&b, b"", b"?"), Duration::from_millis(10)).await.unwrap();
        let Answer::None(id) = answer else { panic!("{answer:?}") };
        assert!(a.lock().waiting.is_empty());
        // A late reply is in the inbox.
        let message = b.pop(None, false, SOON).await.unwrap();
        assert_eq!(message.id, id);
        b.reply(id, outbound(&a, b"", b"late")).unwrap();
        assert_eq!(&*a.pop(None, false, SOON).await.unwrap().payload, b"late");
    }

    #[tokio::test]
    async fn a_handler_answers_for_its_topic() {
        let [a, b] = pair();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handler");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        b.with_topics(|topics| {
            topics.add(b"work".to_vec())?;
            topics.add_source(b"work", Subnet::of(a.own().address))?;
            topics.set_forward(b"work", Some(path))
        })
        .unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&request.repeat(1000)).await.unwrap();
        });
        let answer = a.ask(outbound(&b, b"work", b"abcd"), SOON).await.unwrap();
        let Answer::Reply(reply) = answer else { panic!("no reply") };
        assert_eq!(*reply.payload, b"abcd".repeat(1000));
        // Nobody accepts the next one.
        let id = a.push(outbound(&b, b"work", b"abcd")).unwrap();
        while a.status(id).unwrap().state != super::super::State::Received {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while b.lock().messages.handed_over_count > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(b.pop(None, false, Duration::ZERO).await, None);
    }
}
