//! Envelopes for twins of other relays.
//!
//! Each is posted to one of the relays that its destination names, the most reliable first
//! ([`crate::rank`]). A relay that does not answer, or is in trouble, is passed over; after three
//! rounds through all of them the source is told. A relay that says that it will not take the
//! envelope ends it at once. So many wait, and so many are posted at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use crate::State;
use crate::post::{Outcome, Poster};
use crate::rank::Ranks;
use crate::switch::{Origin, RouteError, send_error};

/// Envelopes that wait to be posted.
const WAITING_COUNT_MAX: usize = 1024;
/// Envelopes that are posted at a time.
const POSTING_COUNT_MAX: usize = 64;
/// Relays of one twin that are tried.
const RELAY_COUNT_MAX: usize = 8;
/// Waits between the rounds through all relays.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(200)];

/// An envelope for a twin of other relays.
pub(crate) struct Foreign {
    /// Who is told if it can't be delivered; nobody if it is no request.
    pub(crate) origin: Option<Origin>,
    pub(crate) uid: String,
    pub(crate) relays: Vec<String>,
    pub(crate) bytes: Bytes,
}

/// Why an envelope does not even wait.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("too many messages for other relays are waiting")]
pub(crate) struct QueueError;

/// Where envelopes for other relays are left.
pub(crate) struct Federation(mpsc::Sender<Foreign>);

impl Federation {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Foreign>) {
        let (sender, receiver) = mpsc::channel(WAITING_COUNT_MAX);
        (Self(sender), receiver)
    }

    pub(crate) fn send(&self, foreign: Foreign) -> Result<(), QueueError> {
        self.0.try_send(foreign).map_err(|_| QueueError)
    }
}

/// Posts what is left, for ever.
pub(crate) async fn run(state: Arc<State>, poster: Poster, mut waiting: mpsc::Receiver<Foreign>) {
    let poster = Arc::new(poster);
    let ranks = Arc::new(Ranks::default());
    let posting = Arc::new(Semaphore::new(POSTING_COUNT_MAX));
    let mut tasks = JoinSet::new();
    while let Some(foreign) = waiting.recv().await {
        let Ok(permit) = Arc::clone(&posting).acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        let (state, poster, ranks) = (Arc::clone(&state), Arc::clone(&poster), Arc::clone(&ranks));
        tasks.spawn(async move {
            let _permit = permit;
            post(&state, &poster, &ranks, foreign).await;
        });
    }
}

async fn post(state: &State, poster: &Poster, ranks: &Ranks, foreign: Foreign) {
    let Foreign { origin, uid, mut relays, bytes } = foreign;
    relays.truncate(RELAY_COUNT_MAX);
    ranks.sort(&mut relays, Instant::now());
    let reason = match try_all(poster, ranks, &relays, &bytes).await {
        Ok(()) => return state.metrics.federated.add(1),
        Err(reason) => reason,
    };
    debug!(uid, ?relays, reason, "not delivered");
    state.metrics.federation_failed.add(1);
    if let Some(origin) = origin {
        send_error(state, &origin, &uid, &reason).await;
    }
}

/// Posts to one relay after the other, or says why none took it.
async fn try_all(
    poster: &Poster,
    ranks: &Ranks,
    relays: &[String],
    bytes: &Bytes,
) -> Result<(), String> {
    let mut pauses = PAUSES.into_iter();
    loop {
        for relay in relays {
            let outcome = poster.post(relay, bytes.clone()).await;
            ranks.note(relay, !matches!(outcome, Outcome::Failed(_)), Instant::now());
            match outcome {
                Outcome::Accepted => return Ok(()),
                Outcome::Refused(status) => {
                    debug!(relay, status, "another relay refuses");
                    return Err(RouteError::Offline.to_string());
                }
                Outcome::Failed(error) => debug!(relay, %error, "another relay fails"),
            }
        }
        let Some(pause) = pauses.next() else { break };
        sleep(pause).await;
    }
    Err(format!("relays {relays:?} were not reachable in time"))
}
