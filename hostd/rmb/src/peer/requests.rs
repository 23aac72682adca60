//! Requests: from an envelope that claims to be one, to an answer on its way back.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::fault::Fault;
use super::{Event, Shared, lock};
use crate::envelope::{
    Body, EXPIRATION_DEFAULT, Envelope, ErrorReply, Payload, Response, SCHEMA_JSON, unix_now,
};
use crate::seal::{CloseError, OpenError, Privacy};
use crate::server::replay::{ENTRY_SIZE, Verdict};
use crate::server::{Command, CommandError, NOT_FOUND, NULL, Outcome, Request};
use crate::twins::{Twin, TwinId};

/// What a caller sees when its command took too long, as Go's nodes say it.
const TIMED_OUT: &str = "context deadline exceeded";
/// How long an answer waits for a relay to take it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// A request that is genuine, fresh and new.
struct Accepted {
    source: Arc<Twin>,
    request: Request,
    /// What is written down of it.
    entry: [u8; ENTRY_SIZE],
}

/// Why there is nothing to run.
enum Rejected {
    /// Nobody is told.
    Silently(Event),
    /// The source is told, if it is known.
    With(Fault, Option<Arc<Twin>>),
}

/// What happened, when an envelope could not be opened.
pub(super) fn event_of(error: &OpenError) -> Event {
    match error {
        OpenError::Signature(_) => Event::Forged,
        OpenError::NoKey | OpenError::Cipher(_) => Event::Unreadable,
    }
}

impl Shared {
    /// Checks a request, runs its command and sends the answer.
    pub(super) async fn request(
        &self,
        envelope: Envelope,
        relay: usize,
        looking: OwnedSemaphorePermit,
    ) {
        match self.accept(&envelope).await {
            Ok(Accepted { source, request, entry }) => {
                // What runs now is limited by who asks.
                drop(looking);
                let privacy = match request.is_encrypted {
                    true => Privacy::Required,
                    false => Privacy::Preferred,
                };
                let outcome = self.run(request, entry).await;
                self.send_outcome(&envelope, &source, relay, outcome, privacy).await;
            }
            Err(Rejected::Silently(event)) => {
                debug!(uid = envelope.uid, source = ?envelope.source, ?event, "request dropped");
                self.counters.add(event);
            }
            Err(Rejected::With(fault, source)) => {
                debug!(uid = envelope.uid, source = ?envelope.source, %fault, "bad request");
                let Some(source) = source else { return };
                if lock(&self.faults).take(Instant::now()) {
                    self.send_fault(&envelope, &source, relay, &fault).await;
                }
            }
        }
    }

    /// Checks all that there is to check, the cheap things first.
    async fn accept(&self, envelope: &Envelope) -> Result<Accepted, Rejected> {
        let id = envelope.source_twin().ok_or(Rejected::Silently(Event::Malformed))?;
        let Some(Body::Request(asked)) = &envelope.body else {
            return Err(Rejected::Silently(Event::Malformed));
        };
        let source = self.source(id).await?;
        let with = |fault| Rejected::With(fault, Some(Arc::clone(&source)));
        let (now, expires_at) = (unix_now(), envelope.expires_at());
        if envelope.is_expired(now) {
            self.counters.add(Event::Expired);
            return Err(with(Fault::Expired { expires_at, now }));
        }
        let opened = self.desk.open(envelope, &source).map_err(|error| {
            self.counters.add(event_of(&error));
            with(error.into())
        })?;
        if envelope.schema.as_deref() != Some(SCHEMA_JSON) {
            return Err(Rejected::Silently(Event::OtherSchema));
        }
        let (verdict, entry) = {
            let mut replay = lock(&self.replay);
            let entry = replay.entry(id, &envelope.uid, expires_at);
            (replay.check(id, &envelope.uid, expires_at, now), entry)
        };
        match verdict {
            Verdict::New => {}
            Verdict::Seen => return Err(Rejected::Silently(Event::Replayed)),
            Verdict::Expired => return Err(with(Fault::Expired { expires_at, now })),
            Verdict::NoRoom => {
                self.counters.add(Event::Refused);
                let text = "too many requests: there is no room to remember this one";
                return Err(with(Fault::Other(text.into())));
            }
        }
        let request = Request {
            source: id,
            command: asked.command.clone(),
            payload: opened.payload,
            is_encrypted: opened.is_encrypted,
        };
        Ok(Accepted { source, request, entry })
    }

    /// Whoever claims to ask.
    async fn source(&self, id: TwinId) -> Result<Arc<Twin>, Rejected> {
        match self.twins.twin(id).await {
            Ok(Some(twin)) => Ok(twin),
            Ok(None) => {
                self.counters.add(Event::UnknownTwin);
                Err(Rejected::With(Fault::UnknownTwin(id), None))
            }
            Err(error) => {
                self.counters.add(Event::LookupFailed);
                warn!(%error, twin = %id, "a request is lost");
                Err(Rejected::With(Fault::Other(error.to_string()), None))
            }
        }
    }

    /// Runs a command, if there is one and this twin may ask for it now.
    async fn run(&self, request: Request, entry: [u8; ENTRY_SIZE]) -> Outcome {
        let source = request.source;
        if let Err(refusal) = lock(&self.admission).enter(source, Instant::now()) {
            self.counters.add(Event::Refused);
            return Err(CommandError::new(refusal));
        }
        // Leaves also when the peer is dropped while the command runs.
        let _inside = Inside(self, source);
        let command = self.commands.find(&request.command);
        let command = command.ok_or_else(|| CommandError::new(NOT_FOUND))?;
        let (size, max) = (request.payload.len(), command.payload_size_max);
        if size > max {
            let text = format!("{} takes at most {max} bytes, not {size}", request.command);
            return Err(CommandError::new(text));
        }
        if command.is_once
            && let Some(journal) = &self.journal
            && let Err(error) = journal.record(entry).await
        {
            warn!(%error, command = request.command, "a request can't be written down");
            self.counters.add(Event::Refused);
            return Err(CommandError::new("the node can't write down requests now"));
        }
        self.counters.add(Event::Run);
        finished(command, request).await
    }

    /// Sends a command's result or error.
    async fn send_outcome(
        &self,
        question: &Envelope,
        source: &Twin,
        relay: usize,
        outcome: Outcome,
        privacy: Privacy,
    ) {
        let (body, payload) = match outcome {
            Ok(payload) if payload.is_empty() => (Body::Response(Response {}), NULL.into()),
            Ok(payload) => (Body::Response(Response {}), payload),
            Err(error) => {
                let message = error.to_string();
                (Body::Error(ErrorReply { code: 0, message }), Bytes::from_static(NULL))
            }
        };
        let envelope = Envelope {
            schema: Some(SCHEMA_JSON.into()),
            payload: Some(Payload::Plain(payload)),
            ..answer_to(question, body)
        };
        match self.desk.close(envelope, source, privacy, unix_now()) {
            Ok(bytes) => self.send_answer(bytes, source, relay).await,
            Err(error) => {
                warn!(%error, twin = %source.id, uid = question.uid, "no answer");
                let fault = match error {
                    CloseError::Cipher(error) => Fault::Cipher(error),
                    CloseError::NoKey(_) => Fault::NoKey,
                    CloseError::Envelope(error) => Fault::Other(error.to_string()),
                    CloseError::Expired => return self.counters.add(Event::Unanswered),
                };
                self.send_fault(question, source, relay, &fault).await;
            }
        }
    }

    /// Sends what is wrong with a request, readable: there may be no other way.
    async fn send_fault(&self, question: &Envelope, source: &Twin, relay: usize, fault: &Fault) {
        let error = ErrorReply { code: fault.code(), message: fault.to_string() };
        let envelope = answer_to(question, Body::Error(error));
        match self.desk.close_readable(envelope, source, unix_now()) {
            Ok(bytes) => self.send_answer(bytes, source, relay).await,
            Err(error) => {
                warn!(%error, twin = %source.id, uid = question.uid, "no answer");
                self.counters.add(Event::Unanswered);
            }
        }
    }

    async fn send_answer(&self, bytes: Bytes, source: &Twin, relay: usize) {
        let deadline = tokio::time::Instant::now() + ANSWER_TIME_MAX;
        match self.relays.send(bytes, &source.relays, Some(relay), deadline).await {
            Ok(()) => self.counters.add(Event::Answered),
            Err(error) => {
                warn!(%error, twin = %source.id, "no answer");
                self.counters.add(Event::Unanswered);
            }
        }
    }
}

/// An answer's envelope, without what it says.
fn answer_to(question: &Envelope, body: Body) -> Envelope {
    Envelope {
        uid: question.uid.clone(),
        expiration: EXPIRATION_DEFAULT,
        destination: question.source.clone(),
        body: Some(body),
        ..Envelope::default()
    }
}

/// A request that was let in.
struct Inside<'a>(&'a Shared, TwinId);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        lock(&self.0.admission).leave(self.1);
    }
}

/// Aborts a task when dropped.
struct Aborted(AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a handler to its end or to the end of its time. It has a task of its own: where panics
/// unwind, one of a handler ends there.
async fn finished(command: &Command, request: Request) -> Outcome {
    let name = request.command.clone();
    let running = tokio::spawn((command.handler)(request));
    let _aborted = Aborted(running.abort_handle());
    match timeout(command.time_max, running).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            let text = match error.try_into_panic() {
                Ok(panic) => format!("handler panicked with: {}", panic_text(&*panic)),
                Err(error) => format!("{name}: {error}"),
            };
            warn!(command = name, error = text, "a command did not end well");
            Err(CommandError::new(text))
        }
        Err(_) => Err(CommandError::new(TIMED_OUT)),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn outcome(command: Command) -> String {
        let request = Request {
            source: TwinId::new(1).unwrap(),
            command: "c".into(),
            payload: Bytes::new(),
            is_encrypted: false,
        };
        finished(&command, request).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn handlers_that_panic_are_answered_for() {
        let text = outcome(Command::new(|_| async { panic!("no disk") })).await;
        assert_eq!(text, "handler panicked with: no disk");
        let number = 5;
        let text = outcome(Command::new(move |_| async move { panic!("{number} disks") })).await;
        assert_eq!(text, "handler panicked with: 5 disks");
    }

    #[tokio::test(start_paused = true)]
    async fn handlers_that_hang_are_ended() {
        let command = Command::new(|_| std::future::pending::<Outcome>());
        let text = outcome(command.time_max(Duration::from_secs(5))).await;
        assert_eq!(text, TIMED_OUT);
    }
}
