//! One connected session: its websocket, read and written side by side.
//!
//! It ends when the websocket does, when a newer connection of the same twin and session takes over,
//! when the relay ends, or when nothing comes for a while although we ping: a browser can't ping, but
//! it answers. What was taken out of the mailbox and not flushed goes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hostd_rmb::twins::TwinId;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tracing::debug;

use crate::State;
use crate::mailbox::Connection;
use crate::switch::{self, Origin};

/// Time between pings.
const PING_TIME: Duration = Duration::from_secs(30);
/// A connection that brings nothing for so long, not even an answer to a ping, is none.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(90);
/// Nor is one that takes nothing for so long.
const WRITE_TIME_MAX: Duration = Duration::from_secs(60);
/// How long saying good-bye may take.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the peer closed the connection")]
    Closed,
    #[error("a newer connection took over")]
    TakenOver,
    #[error("the relay ends")]
    Relay,
    #[error("nothing came for {SILENCE_TIME_MAX:?}")]
    Silent,
    #[error("nothing could be sent for {WRITE_TIME_MAX:?}")]
    Stuck,
    #[error("the peer sent a frame of text")]
    Text,
    #[error("the peer sent something else than an envelope: {0}")]
    Malformed(#[from] hostd_rmb::envelope::EnvelopeError),
    #[error("{0}")]
    Socket(#[from] axum::Error),
}

/// Serves a session until it ends.
pub(crate) async fn run(state: Arc<State>, socket: WebSocket, twin: TwinId, session: String) {
    let connection = match state.mailboxes.connect(twin, &session) {
        Ok(connection) => connection,
        Err(error) => return debug!(%twin, session, %error, "no mailbox"),
    };
    let origin = Origin { twin, session };
    let (mut sink, stream) = socket.split();
    let mut relay_end = state.end.clone();
    let end = tokio::select! {
        // Who was replaced takes nothing more out of the mailbox.
        biased;
        _ = relay_end.changed() => End::Relay,
        () = connection.taken_over() => End::TakenOver,
        end = write(&state, &mut sink, &connection) => end,
        end = read(&state, stream, &origin) => end,
    };
    if matches!(end, End::TakenOver) {
        state.metrics.evicted.add(1);
    }
    debug!(%twin, session = origin.session, reason = %end, "session ended");
    let code = match end {
        End::Malformed(_) | End::Text => close_code::UNSUPPORTED,
        End::TakenOver => close_code::POLICY,
        End::Relay => close_code::AWAY,
        End::Closed | End::Silent | End::Stuck | End::Socket(_) => return,
    };
    let frame =
        CloseFrame { code, reason: end.to_string().chars().take(40).collect::<String>().into() };
    let _ = timeout(CLOSE_TIME_MAX, sink.send(Message::Close(Some(frame)))).await;
}

async fn read(state: &State, mut stream: SplitStream<WebSocket>, origin: &Origin) -> End {
    loop {
        let message = match timeout(SILENCE_TIME_MAX, stream.next()).await {
            Err(_) => return End::Silent,
            Ok(None) => return End::Closed,
            Ok(Some(Err(error))) => return error.into(),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(bytes) => {
                if let Err(error) = switch::route(state, origin, bytes).await {
                    return error.into();
                }
            }
            Message::Text(_) => return End::Text,
            Message::Close(_) => return End::Closed,
            // Pings are answered below us.
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

/// What was taken out of the mailbox; goes back unless it was sent.
struct Batch<'a> {
    connection: &'a Connection<'a>,
    messages: Vec<(Instant, Bytes)>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.messages.is_empty() {
            self.connection.put_back(std::mem::take(&mut self.messages));
        }
    }
}

async fn write(
    state: &State,
    sink: &mut SplitSink<WebSocket, Message>,
    connection: &Connection<'_>,
) -> End {
    let mut pings = interval_at(tokio::time::Instant::now() + PING_TIME, PING_TIME);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut batch = Batch { connection, messages: Vec::new() };
        tokio::select! {
            messages = connection.take() => batch.messages = messages,
            _ = pings.tick() => {}
        }
        match timeout(WRITE_TIME_MAX, write_batch(sink, &batch.messages)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return End::Stuck,
        }
        let sent = std::mem::take(&mut batch.messages);
        state.metrics.sent.add(u64::try_from(sent.len()).unwrap_or(u64::MAX));
        let size: usize = sent.iter().map(|(_, bytes)| bytes.len()).sum();
        state.metrics.sent_bytes.add(u64::try_from(size).unwrap_or(u64::MAX));
    }
}

/// Sends a batch; an empty one is a ping.
async fn write_batch(
    sink: &mut SplitSink<WebSocket, Message>,
    messages: &[(Instant, Bytes)],
) -> Result<(), axum::Error> {
    if messages.is_empty() {
        sink.feed(Message::Ping(Bytes::new())).await?;
    }
    for (_, bytes) in messages {
        sink.feed(Message::Binary(bytes.clone())).await?;
    }
    sink.flush().await
}
