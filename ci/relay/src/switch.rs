//! Where an envelope goes.
//!
//! ```text
//!  from a session ─> within its rate? ─> its own source? ─┬─ ping ─> back to it, as a pong
//!                                                         ├─ destination connected here ─> mailbox
//!                                                         ├─ destination names us ───────> mailbox
//!                                                         └─ it names others ────────────> federation
//! ```
//!
//! Requests that can't be passed on are answered with an error that has no source and no signature;
//! other envelopes are dropped.

use std::time::Instant;

use bytes::Bytes;
use hostd_rmb::envelope::{
    Address, Body, EXPIRATION_DEFAULT, Envelope, EnvelopeError, ErrorReply, FAIL_FAST, Payload,
    Pong, unix_now,
};
use hostd_rmb::twins::{TwinId, TwinsError};
use tracing::debug;

use crate::State;
use crate::federation::{Foreign, QueueError};
use crate::mailbox::FullError;

/// What an envelope's ping is answered with.
const PONG: &[u8] = b"hello world";

/// A session, as the source of envelopes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) twin: TwinId,
    pub(crate) session: String,
}

/// Why an envelope is not passed on. The texts are those of the grid's relays, where those have one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RouteError {
    #[error("exceeded rate limits, dropping message")]
    Rate,
    #[error("message wrong source")]
    Source,
    #[error("message with missing destination")]
    NoDestination,
    #[error("unknown twin destination")]
    UnknownTwin,
    #[error("relay info is not set for this twin")]
    NoRelay,
    #[error("destination offline")]
    Offline,
    #[error("failed to get twin: {0}")]
    Twins(#[from] TwinsError),
    #[error("{0}")]
    Full(#[from] FullError),
    #[error("{0}")]
    Federation(#[from] QueueError),
}

/// What becomes of an envelope.
enum Way {
    Mailbox,
    Federation { relays: Vec<String> },
}

/// Passes on what a session sent. What is no envelope ends the session.
pub(crate) async fn route(
    state: &State,
    origin: &Origin,
    bytes: Bytes,
) -> Result<(), EnvelopeError> {
    let envelope = Envelope::parse(bytes.clone())?;
    state.metrics.received.add(1);
    state.metrics.received_bytes.add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    if let Err(error) = pass_on(state, origin, &envelope, bytes).await {
        debug!(twin = %origin.twin, uid = envelope.uid, %error, "not passed on");
        let counter = match error {
            RouteError::Rate => &state.metrics.limited,
            _ => &state.metrics.refused,
        };
        counter.add(1);
        if matches!(envelope.body, Some(Body::Request(_))) {
            send_error(state, origin, &envelope.uid, &error.to_string()).await;
        }
    }
    Ok(())
}

async fn pass_on(
    state: &State,
    origin: &Origin,
    envelope: &Envelope,
    bytes: Bytes,
) -> Result<(), RouteError> {
    if let Some(rates) = &state.rates
        && !rates.measure(origin.twin, bytes.len(), Instant::now())
    {
        return Err(RouteError::Rate);
    }
    let source = envelope.source.as_ref().ok_or(RouteError::Source)?;
    if source.twin_id() != Some(origin.twin) || session(source) != origin.session {
        return Err(RouteError::Source);
    }
    if matches!(envelope.body, Some(Body::Ping(_))) {
        return match pong(envelope).to_bytes() {
            Ok(pong) => deliver(state, origin.twin, &origin.session, &pong).await,
            // A ping that can't grow by a word is not worth an answer.
            Err(_) => Ok(()),
        };
    }
    let destination = envelope.destination.as_ref().ok_or(RouteError::NoDestination)?;
    let twin = destination.twin_id().ok_or(RouteError::NoDestination)?;
    match way(state, envelope, twin, session(destination)).await? {
        Way::Mailbox => deliver(state, twin, session(destination), &bytes).await,
        Way::Federation { relays } => {
            let is_request = matches!(envelope.body, Some(Body::Request(_)));
            let uid = envelope.uid.clone();
            let origin = is_request.then(|| origin.clone());
            Ok(state.federation.send(Foreign { origin, uid, relays, bytes })?)
        }
    }
}

/// The way to a twin's session.
async fn way(
    state: &State,
    envelope: &Envelope,
    twin: TwinId,
    session: &str,
) -> Result<Way, RouteError> {
    if state.mailboxes.is_connected(twin, session) {
        return Ok(Way::Mailbox);
    }
    let found = state.twins.twin(twin).await?.ok_or(RouteError::UnknownTwin)?;
    if found.relays.is_empty() {
        return Err(RouteError::NoRelay);
    }
    if !found.relays.iter().any(|name| state.domains.contains(name)) {
        return Ok(Way::Federation { relays: found.relays.clone() });
    }
    if envelope.has_tag(FAIL_FAST) {
        return Err(RouteError::Offline);
    }
    Ok(Way::Mailbox)
}

/// Takes an envelope that another relay passed on, for a twin of ours.
pub(crate) async fn accept_foreign(
    state: &State,
    envelope: &Envelope,
    bytes: &Bytes,
) -> Result<(), RouteError> {
    let destination = envelope.destination.as_ref().ok_or(RouteError::NoDestination)?;
    let twin = destination.twin_id().ok_or(RouteError::NoDestination)?;
    match way(state, envelope, twin, session(destination)).await? {
        Way::Mailbox => deliver(state, twin, session(destination), bytes).await,
        // It was passed on once already.
        Way::Federation { .. } => Err(RouteError::Offline),
    }
}

/// Tells a session that its request was not passed on.
pub(crate) async fn send_error(state: &State, origin: &Origin, uid: &str, message: &str) {
    let envelope = Envelope {
        uid: uid.to_owned(),
        timestamp: unix_now(),
        expiration: EXPIRATION_DEFAULT,
        destination: Some(Address::new(origin.twin, Some(&origin.session))),
        body: Some(Body::Error(ErrorReply { code: 0, message: message.to_owned() })),
        ..Envelope::default()
    };
    let sent = match envelope.to_bytes() {
        Ok(bytes) => deliver(state, origin.twin, &origin.session, &bytes).await,
        Err(error) => return debug!(%error, "no error for a session"),
    };
    if let Err(error) = sent {
        debug!(twin = %origin.twin, %error, "no error for a session");
    }
}

async fn deliver(
    state: &State,
    twin: TwinId,
    session: &str,
    bytes: &Bytes,
) -> Result<(), RouteError> {
    let gone = state.mailboxes.put(twin, session, bytes).await?;
    state.metrics.dropped.add(gone);
    Ok(())
}

/// A ping, turned round: whoever sent it gets it back.
fn pong(ping: &Envelope) -> Envelope {
    Envelope {
        source: ping.destination.clone(),
        destination: ping.source.clone(),
        body: Some(Body::Pong(Pong {})),
        payload: Some(Payload::Plain(Bytes::from_static(PONG))),
        ..ping.clone()
    }
}

/// A session's name as mailboxes have it: none is the empty one.
fn session(address: &Address) -> &str {
    address.session().unwrap_or_default()
}
