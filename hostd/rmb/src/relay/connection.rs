//! One relay: connect, carry, and begin again when it breaks.
//!
//! ```text
//!   ┌──> dialling ── fails ──> waiting ─┐        stalls: nothing came for 40 s,
//!   │        │ opens              ▲     │                or nothing went for 40 s
//!   │        ▼                    │     │
//!   │    carrying ── breaks ──────┘     │
//!   └───────────────────────────────────┘
//! ```
//!
//! Reading and writing do not wait for each other. Reading waits for room in the queue of what came,
//! and that wait is not held against the relay. What was taken from the queue of what is to be sent is
//! kept until it was written, and goes out again on the next connection; a relay may so get it twice,
//! and the twin that it is for knows it by its id.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::dial::{Socket, dial};
use super::{Credentials, Incoming, RelayAddress, times};

/// Most envelopes that are written before the socket is flushed.
const BATCH_COUNT_MAX: usize = 64;

/// A connection to one relay, and what it needs to come back.
pub(super) struct Connection {
    pub(super) relay: usize,
    pub(super) address: RelayAddress,
    pub(super) credentials: Arc<Credentials>,
    pub(super) tls: Arc<ClientConfig>,
    /// What is to be sent.
    pub(super) waiting: mpsc::Receiver<Bytes>,
    /// What was taken of it and may not have been sent.
    pub(super) unsent: Vec<Bytes>,
    /// What came.
    pub(super) inbound: mpsc::Sender<Incoming>,
    /// Of all connections, whether they are.
    pub(super) connected: Arc<watch::Sender<Vec<bool>>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum EndError {
    #[error("the relay closed the connection")]
    Closed,
    #[error("nothing came for {:?}", times::STALL)]
    Silent,
    #[error("nothing could be sent for {:?}", times::WRITE)]
    Stuck,
    #[error("the relay sent a frame of text")]
    Text,
    #[error("{0}")]
    Socket(#[from] tungstenite::Error),
    /// Nobody wants to hear or say anything any more.
    #[error("shut down")]
    ShutDown,
}

impl Connection {
    /// Goes on until the peer is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let begin = Instant::now();
            match timeout(times::DIAL, dial(&self.address, &self.credentials, self.tls.clone()))
                .await
            {
                Ok(Ok(socket)) => {
                    info!(relay = %self.address, "connected");
                    self.set_connected(true);
                    let end = self.carry(socket).await;
                    self.set_connected(false);
                    if matches!(end, EndError::ShutDown) {
                        return;
                    }
                    warn!(relay = %self.address, reason = %end, "connection lost");
                }
                Ok(Err(error)) => warn!(relay = %self.address, %error, "no connection"),
                Err(_) => warn!(relay = %self.address, "no connection in {:?}", times::DIAL),
            }
            let wait = backoff.after(begin.elapsed());
            debug!(relay = %self.address, ?wait, "will connect again");
            sleep(wait).await;
        }
    }

    fn set_connected(&self, connected: bool) {
        self.connected.send_modify(|all| {
            if let Some(ours) = all.get_mut(self.relay) {
                *ours = connected;
            }
        });
    }

    /// Reads and writes until something is wrong.
    async fn carry(&mut self, socket: Socket) -> EndError {
        let (sink, stream) = socket.split();
        let reading = read(stream, &self.inbound, self.relay);
        let writing = write(sink, &mut self.waiting, &mut self.unsent);
        tokio::select! {
            end = reading => end,
            end = writing => end,
        }
    }
}

async fn read(
    mut stream: SplitStream<Socket>,
    inbound: &mpsc::Sender<Incoming>,
    relay: usize,
) -> EndError {
    loop {
        // First room, then something to put there: what can't be kept is not read.
        let Ok(room) = inbound.reserve().await else { return EndError::ShutDown };
        loop {
            let message = match timeout(times::STALL, stream.next()).await {
                Err(_) => return EndError::Silent,
                Ok(None) => return EndError::Closed,
                Ok(Some(Err(error))) => return error.into(),
                Ok(Some(Ok(message))) => message,
            };
            match message {
                Message::Binary(bytes) => {
                    room.send(Incoming { relay, bytes });
                    break;
                }
                Message::Text(_) => return EndError::Text,
                Message::Close(_) => return EndError::Closed,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

async fn write(
    mut sink: SplitSink<Socket, Message>,
    waiting: &mut mpsc::Receiver<Bytes>,
    unsent: &mut Vec<Bytes>,
) -> EndError {
    let mut pings = interval_at(Instant::now() + times::PING, times::PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut is_ping_due = false;
        if unsent.is_empty() {
            tokio::select! {
                // Takes nothing from the queue unless it completes.
                count = waiting.recv_many(unsent, BATCH_COUNT_MAX) => {
                    if count == 0 {
                        return EndError::ShutDown;
                    }
                }
                _ = pings.tick() => is_ping_due = true,
            }
        }
        match timeout(times::WRITE, write_batch(&mut sink, unsent, is_ping_due)).await {
            Ok(Ok(())) => unsent.clear(),
            Ok(Err(error)) => return error.into(),
            Err(_) => return EndError::Stuck,
        }
    }
}

async fn write_batch(
    sink: &mut SplitSink<Socket, Message>,
    batch: &[Bytes],
    is_ping_due: bool,
) -> Result<(), tungstenite::Error> {
    for bytes in batch {
        sink.feed(Message::Binary(bytes.clone())).await?;
    }
    if is_ping_due {
        sink.feed(Message::Ping(Bytes::new())).await?;
    }
    sink.flush().await
}
