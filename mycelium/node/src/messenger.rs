//! The messages of a node, wired: the state machine of [`crate::messages`] between the data plane and
//! whoever sends and reads messages.
//!
//! One task moves packets and events; users call [`Messenger`] from anywhere. The state machine is behind
//! a lock that nobody holds while waiting.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycelium_wire::inner::InnerType;
use mycelium_wire::message::{MESSAGE_PACKET_SIZE_MAX, MessageId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use crate::data::{DataPlane, MessagePacket};
use crate::messages::limits::MESSAGE_SIZE_MAX;
use crate::messages::{Event, Message, Messages, Outbound, Peer, PushError, Status, Topics};

/// How long the program at a topic's socket may take to read a message.
const FORWARD_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const FORWARD_ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Packets that are sent before others have their turn.
const PACKET_COUNT_MAX: usize = 256;

/// Sends and receives messages.
pub(crate) struct Messenger {
    messages: Mutex<Messages>,
    plane: Arc<DataPlane>,
    /// There may be something to send.
    wake: Notify,
    /// There is something in the inbox.
    arrived: Notify,
    waiters: Mutex<HashMap<MessageId, oneshot::Sender<Message>>>,
}

/// What came of waiting for a reply.
pub(crate) enum Replied {
    /// It is here.
    Reply(Message),
    /// It did not come in time.
    Late(MessageId),
}

impl Messenger {
    pub(crate) fn new(topics: Topics, plane: Arc<DataPlane>) -> Self {
        Self {
            messages: Mutex::new(Messages::new(topics)),
            plane,
            wake: Notify::new(),
            arrived: Notify::new(),
            waiters: Mutex::default(),
        }
    }

    /// Begins to send a message.
    pub(crate) fn push(&self, message: Outbound) -> Result<MessageId, PushError> {
        let pushed = self.messages().push(message, false, Instant::now());
        self.wake.notify_one();
        pushed
    }

    /// Sends a message and waits for its reply.
    pub(crate) async fn push_and_wait(
        &self,
        message: Outbound,
        patience: Duration,
    ) -> Result<Replied, PushError> {
        let (waiter, reply) = oneshot::channel();
        // The reply can't be looked for before its waiter is there: both locks are held.
        let id = {
            let mut waiters = lock(&self.waiters);
            let id = self.messages().push(message, true, Instant::now())?;
            waiters.insert(id, waiter);
            id
        };
        self.wake.notify_one();
        let guard = Waiter { messenger: self, id };
        let reply = timeout(patience, reply).await;
        drop(guard);
        match reply {
            Ok(Ok(message)) => Ok(Replied::Reply(message)),
            _ => Ok(Replied::Late(id)),
        }
    }

    /// Begins to send the answer to a message.
    pub(crate) fn reply(&self, id: MessageId, message: Outbound) -> Result<(), PushError> {
        let replied = self.messages().reply(id, message, Instant::now());
        self.wake.notify_one();
        replied
    }

    /// The oldest message in the inbox, taken out unless `peeks`; waits for one for a while.
    pub(crate) async fn take(
        &self,
        topic: Option<&[u8]>,
        peeks: bool,
        patience: Duration,
    ) -> Option<Message> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            // From here on no arrival is missed.
            arrived.as_mut().enable();
            let found = {
                let mut messages = self.messages();
                if peeks { messages.peek(topic).cloned() } else { messages.pop(topic) }
            };
            if found.is_some() {
                self.wake.notify_one();
                return found;
            }
            tokio::select! {
                () = arrived => {}
                () = sleep_until(deadline) => return None,
            }
        }
    }

    /// How far a message is.
    pub(crate) fn status(&self, id: MessageId) -> Option<Status> {
        self.messages().status(id)
    }

    /// Looks at or changes who may send what.
    pub(crate) fn topics<T>(&self, work: impl FnOnce(&mut Topics) -> T) -> T {
        work(self.messages().topics_mut())
    }

    /// Moves packets and events for as long as the node runs.
    pub(crate) async fn run(
        self: Arc<Self>,
        address: Ipv6Addr,
        mut packets: mpsc::Receiver<MessagePacket>,
    ) {
        let mut has_more = false;
        loop {
            let deadline = self.messages().deadline().filter(|_| !has_more);
            let time = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None if has_more => tokio::task::yield_now().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                packet = packets.recv() => {
                    let Some(packet) = packet else { return };
                    self.received(&packet);
                    while let Ok(packet) = packets.try_recv() {
                        self.received(&packet);
                    }
                }
                () = self.wake.notified() => {}
                () = time => {}
            }
            has_more = self.send(address);
            self.events();
        }
    }

    fn received(&self, packet: &MessagePacket) {
        let source = Peer { address: packet.source, key: packet.public_key };
        self.messages().received(source, packet.destination, &packet.payload, Instant::now());
    }

    /// Sends what is due. True when there is more.
    fn send(&self, address: Ipv6Addr) -> bool {
        let mut payload = Vec::with_capacity(MESSAGE_PACKET_SIZE_MAX);
        for _ in 0..PACKET_COUNT_MAX {
            payload.clear();
            let destination = self.messages().poll_packet(Instant::now(), &mut payload);
            let Some(destination) = destination else { return false };
            self.plane.send(InnerType::Message, address, destination, &payload);
        }
        true
    }

    fn events(self: &Arc<Self>) {
        loop {
            let Some(event) = self.messages().poll_event() else { return };
            match event {
                Event::Arrived => self.arrived.notify_waiters(),
                Event::Reply(message) => {
                    let waiter = lock(&self.waiters).remove(&message.id);
                    let was_taken =
                        waiter.is_some_and(|waiter| waiter.send(message.clone()).is_ok());
                    self.messages().handed_over(&message, was_taken);
                    self.wake.notify_one();
                }
                Event::Forward(path, message) => {
                    tokio::spawn(Arc::clone(self).forward(path, message));
                }
            }
        }
    }

    /// Gives a message to the program at a topic's socket, and sends its answer.
    async fn forward(self: Arc<Self>, path: std::path::PathBuf, message: Message) {
        let written = timeout(FORWARD_WRITE_TIMEOUT, write_to(&path, &message.payload)).await;
        let stream = written.ok().and_then(Result::ok);
        self.messages().handed_over(&message, stream.is_some());
        self.wake.notify_one();
        let Some(stream) = stream else {
            tracing::warn!(path = %path.display(), "the topic's socket takes no message");
            return;
        };
        let mut payload = Vec::new();
        let limit = MESSAGE_SIZE_MAX as u64;
        let mut answer = stream.take(limit);
        let read = timeout(FORWARD_ANSWER_TIMEOUT, answer.read_to_end(&mut payload)).await;
        if !matches!(read, Ok(Ok(_))) || payload.is_empty() {
            return;
        }
        let reply = Outbound { destination: message.source.address, topic: Vec::new(), payload };
        if let Err(error) = self.reply(message.id, reply) {
            tracing::warn!(id = %message.id, %error, "the answer of a topic's socket is not sent");
        }
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        lock(&self.messages)
    }
}

async fn write_to(path: &Path, payload: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(payload).await?;
    stream.shutdown().await?;
    Ok(stream)
}

/// Ends the waiting for a reply, however it ends.
struct Waiter<'a> {
    messenger: &'a Messenger,
    id: MessageId,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // Taken out already, if the reply came.
        if lock(&self.messenger.waiters).remove(&self.id).is_some() {
            self.messenger.messages().stop_waiting(self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
