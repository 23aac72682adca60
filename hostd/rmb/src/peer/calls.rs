//! Calls to other twins.
//!
//! A call has one deadline for everything: finding out who the other twin is, a connection, the
//! answer. What never left is no reason to worry; what left may have been done even if no answer
//! came, and nodes of the grid do not know a request that they have seen before. So a call is made once
//! only, unless the caller says that it only reads ([`Retry::Reads`]): then, if nothing comes for a
//! while, it is asked again in a new envelope, perhaps through another relay, and the first answer to
//! any of them counts.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::pending::{Answer, PENDING_COUNT_MAX};
use super::{Event, Shared, lock};
use crate::envelope::{
    Address, Body, EXPIRATION_DEFAULT, EXPIRATION_MAX, Envelope, FAIL_FAST, Payload, Request,
    SCHEMA_JSON, unix_now,
};
use crate::random::{self, RandomError};
use crate::relay::SendError;
use crate::seal::{CloseError, Privacy};
use crate::twins::{TwinId, TwinsError};

/// How long the first attempt of a call that only reads waits; each further one twice as long.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);
/// Most envelopes that one call sends.
const ATTEMPT_COUNT_MAX: usize = 4;

/// Whether a call may be made more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// It may not: it changes something.
    #[default]
    Never,
    /// It may: it only reads.
    Reads,
}

/// What to ask of whom.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which twin.
    destination: TwinId,
    connection: Option<String>,
    command: String,
    payload: Bytes,
    time_max: Duration,
    retry: Retry,
    privacy: Privacy,
    fail_fast: bool,
}

impl Call {
    /// Asks `destination` for `command` with `payload`, which is JSON; nothing is `null`. It waits
    /// for five minutes, asks once, and encrypts if the other twin published a key.
    pub fn new(destination: TwinId, command: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            destination,
            connection: None,
            command: command.into(),
            payload: payload.into(),
            time_max: Duration::from_secs(EXPIRATION_DEFAULT),
            retry: Retry::default(),
            privacy: Privacy::default(),
            fail_fast: false,
        }
    }

    /// How long to wait for an answer, half an hour at most.
    #[must_use]
    pub fn time_max(self, time_max: Duration) -> Self {
        Self { time_max: time_max.min(Duration::from_secs(EXPIRATION_MAX)), ..self }
    }

    /// Whether it may be asked more than once.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// Whether it may be sent readable, if it can't be encrypted.
    #[must_use]
    pub fn privacy(self, privacy: Privacy) -> Self {
        Self { privacy, ..self }
    }

    /// Whether the relay is to say so at once if the other twin is not connected, instead of keeping
    /// the request for when it is.
    #[must_use]
    pub fn fail_fast(self, fail_fast: bool) -> Self {
        Self { fail_fast, ..self }
    }

    /// Which of the other twin's sessions to ask; the nameless one if nothing is said.
    #[must_use]
    pub fn connection(self, connection: Option<String>) -> Self {
        Self { connection, ..self }
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error, PartialEq, Clone)]
pub enum CallError {
    /// The other twin says why, in these words.
    #[error("{message}")]
    Failed {
        /// 0 for a command's own error; otherwise see [`super::fault`].
        code: u32,
        /// What it says.
        message: String,
    },
    /// A relay says why.
    #[error("the relay says: {0}")]
    Relay(String),
    /// There is no such twin.
    #[error("there is no twin {0}")]
    UnknownTwin(TwinId),
    /// It could not be found out who the other twin is.
    #[error("looking up the twin: {0}")]
    Twins(#[from] TwinsError),
    /// It could not be encrypted, or is too large.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// It was not sent.
    #[error("not sent: {0}")]
    NotSent(#[from] SendError),
    /// It was sent, and whether it was done is not known.
    #[error("twin {twin} did not answer {command} in {time:?}")]
    NoAnswer {
        /// Who.
        twin: TwinId,
        /// To what.
        command: String,
        /// For how long was waited.
        time: Duration,
    },
    /// Too much is going on here.
    #[error("{PENDING_COUNT_MAX} calls are waiting already")]
    TooMany,
    /// No randomness for an id.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Envelopes of a call that wait for an answer, until it is over.
struct Asked<'a> {
    shared: &'a Shared,
    uids: Vec<String>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut pending = lock(&self.shared.pending);
        for uid in &self.uids {
            pending.remove(uid);
        }
    }
}

impl Shared {
    pub(super) async fn call(&self, call: Call) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + call.time_max;
        let (answers, mut answered) = mpsc::channel(ATTEMPT_COUNT_MAX);
        let mut asked = Asked { shared: self, uids: Vec::new() };
        let mut attempt_time = ATTEMPT_TIME;
        loop {
            let attempt = self.ask(&call, &mut asked, answers.clone(), deadline);
            match (timeout_at(deadline, attempt).await, asked.uids.len()) {
                (Ok(result), 1) => result?,
                // Whatever is wrong now, an earlier envelope may still be answered.
                (Ok(Err(error)), _) => debug!(%error, command = call.command, "not asked again"),
                (Ok(Ok(())), _) => {}
                (Err(_), _) => return Err(call.no_answer()),
            }
            let until = match call.retry {
                Retry::Reads if asked.uids.len() < ATTEMPT_COUNT_MAX => {
                    deadline.min(Instant::now() + attempt_time)
                }
                Retry::Reads | Retry::Never => deadline,
            };
            match timeout_at(until, answered.recv()).await {
                Ok(Some(Answer::Done(payload))) => return Ok(payload),
                Ok(Some(Answer::Failed { code, message })) => {
                    return Err(CallError::Failed { code, message });
                }
                Ok(Some(Answer::Relay(message))) => return Err(CallError::Relay(message)),
                Ok(None) => return Err(call.no_answer()),
                Err(_) if until >= deadline => return Err(call.no_answer()),
                Err(_) => attempt_time *= 2,
            }
        }
    }

    /// Sends one envelope.
    async fn ask(
        &self,
        call: &Call,
        asked: &mut Asked<'_>,
        answers: mpsc::Sender<Answer>,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let uid = random::uuid()?;
        asked.uids.push(uid.clone());
        let twin = self.twins.twin(call.destination).await?;
        let twin = twin.ok_or(CallError::UnknownTwin(call.destination))?;
        self.relays.wait_connected(deadline).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let payload = if call.payload.is_empty() {
            Bytes::from_static(crate::server::NULL)
        } else {
            call.payload.clone()
        };
        let envelope = Envelope {
            uid: uid.clone(),
            tags: call.fail_fast.then(|| FAIL_FAST.to_owned()),
            expiration: left.as_secs().saturating_add(1).min(EXPIRATION_MAX),
            destination: Some(Address::new(call.destination, call.connection.as_deref())),
            body: Some(Body::Request(Request { command: call.command.clone() })),
            schema: Some(SCHEMA_JSON.into()),
            payload: Some(Payload::Plain(payload)),
            ..Envelope::default()
        };
        let bytes = self.desk.close(envelope, &twin, call.privacy, unix_now())?;
        if !lock(&self.pending).add(&uid, call.destination, answers) {
            return Err(CallError::TooMany);
        }
        self.relays.send(bytes, &twin.relays, None, deadline).await?;
        self.counters.add(Event::Called);
        Ok(())
    }
}

impl Call {
    fn no_answer(&self) -> CallError {
        CallError::NoAnswer {
            twin: self.destination,
            command: self.command.clone(),
            time: self.time_max,
        }
    }
}
