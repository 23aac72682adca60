//! Calls that wait for an answer, by the id of their envelope.
//!
//! An answer is only worth the work of checking it if somebody waits for it, and only from the twin
//! that was asked. Each id is answered once.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::twins::TwinId;

/// Most envelopes that wait for an answer.
pub(super) const PENDING_COUNT_MAX: usize = 4096;

/// What a call is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The command's result.
    Done(Bytes),
    /// The other twin says why there is none.
    Failed { code: u32, message: String },
    /// A relay says why there will be none. Anybody between us and the other twin may have said it.
    Relay(String),
}

/// Who waits for what.
#[derive(Default)]
pub(super) struct Pending(HashMap<String, Waiting>);

struct Waiting {
    twin: TwinId,
    answers: mpsc::Sender<Answer>,
}

impl Pending {
    /// Waits for an answer of `twin` to `uid`; says whether there is room for that.
    pub(super) fn add(&mut self, uid: &str, twin: TwinId, answers: mpsc::Sender<Answer>) -> bool {
        let has_room = self.0.len() < PENDING_COUNT_MAX;
        if has_room {
            self.0.insert(uid.to_owned(), Waiting { twin, answers });
        }
        has_room
    }

    /// Whether somebody waits for that twin's answer to `uid`.
    pub(super) fn is_awaited(&self, uid: &str, twin: TwinId) -> bool {
        self.0.get(uid).is_some_and(|waiting| waiting.twin == twin)
    }

    /// Gives an answer to who waits for it; says whether anybody did. `twin` is who answers, nobody
    /// for a relay.
    pub(super) fn answer(&mut self, uid: &str, twin: Option<TwinId>, answer: Answer) -> bool {
        let is_awaited = match twin {
            Some(twin) => self.is_awaited(uid, twin),
            None => self.0.contains_key(uid),
        };
        let waiting = if is_awaited { self.0.remove(uid) } else { None };
        // There is room for one answer to each envelope of a call.
        waiting.is_some_and(|waiting| waiting.answers.try_send(answer).is_ok())
    }

    /// Nobody waits any more.
    pub(super) fn remove(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_who_asked_that_twin_and_once() {
        let [seven, eight] = [7, 8].map(|number| TwinId::new(number).unwrap());
        let done = || Answer::Done("1".into());
        let (sender, mut receiver) = mpsc::channel(1);
        let mut pending = Pending::default();
        assert!(pending.add("a", seven, sender));
        assert!(!pending.is_awaited("a", eight) && !pending.is_awaited("b", seven));
        assert!(!pending.answer("a", Some(eight), done()));
        assert!(!pending.answer("b", Some(seven), done()));
        assert!(pending.answer("a", Some(seven), done()));
        assert!(!pending.answer("a", Some(seven), done()));
        assert_eq!(receiver.try_recv(), Ok(done()));
    }

    #[test]
    fn relays_may_end_any_call() {
        let seven = TwinId::new(7).unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let mut pending = Pending::default();
        pending.add("a", seven, sender);
        assert!(pending.answer("a", None, Answer::Relay("destination offline".into())));
        assert!(receiver.try_recv().is_ok());
    }

    #[test]
    fn so_many_may_wait() {
        let seven = TwinId::new(7).unwrap();
        let (sender, _receiver) = mpsc::channel(1);
        let mut pending = Pending::default();
        for number in 0..PENDING_COUNT_MAX {
            assert!(pending.add(&number.to_string(), seven, sender.clone()));
        }
        assert!(!pending.add("more", seven, sender.clone()));
        pending.remove("0");
        assert!(pending.add("more", seven, sender));
    }
}
