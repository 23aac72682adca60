//! Answers to our calls, and what relays say instead.

use tracing::debug;

use super::pending::Answer;
use super::{Event, Shared, lock};
use crate::envelope::{Body, Envelope, SCHEMA_JSON, unix_now};

impl Shared {
    /// A relay says that there will be no answer.
    pub(super) fn relay_error(&self, uid: &str, message: &str) {
        let answer = Answer::Relay(message.to_owned());
        if !lock(&self.pending).answer(uid, None, answer) {
            self.counters.add(Event::Unasked);
        }
    }

    /// A twin answers, or so it seems.
    pub(super) async fn answer(&self, envelope: Envelope) {
        let uid = envelope.uid.as_str();
        let Some(id) = envelope.source_twin() else {
            return self.counters.add(Event::Malformed);
        };
        if !lock(&self.pending).is_awaited(uid, id) {
            return self.counters.add(Event::Unasked);
        }
        if envelope.is_expired(unix_now()) {
            return self.counters.add(Event::Expired);
        }
        let twin = match self.twins.twin(id).await {
            Ok(Some(twin)) => twin,
            Ok(None) => return self.counters.add(Event::UnknownTwin),
            Err(error) => {
                debug!(%error, twin = %id, "an answer is lost");
                return self.counters.add(Event::LookupFailed);
            }
        };
        let opened = match self.desk.open(&envelope, &twin) {
            Ok(opened) => opened,
            Err(error) => {
                debug!(%error, twin = %id, uid, "an answer is not genuine");
                return self.counters.add(super::requests::event_of(&error));
            }
        };
        let answer = match envelope.body {
            Some(Body::Error(error)) => Answer::Failed { code: error.code, message: error.message },
            _ if envelope.schema.as_deref().is_some_and(|schema| schema != SCHEMA_JSON) => {
                return self.counters.add(Event::OtherSchema);
            }
            _ => Answer::Done(opened.payload),
        };
        if !lock(&self.pending).answer(uid, Some(id), answer) {
            self.counters.add(Event::Unasked);
        }
    }
}
