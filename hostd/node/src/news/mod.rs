//! Owners hear what becomes of their deployments, without asking again and again.
//!
//! Whoever has a deployment here may subscribe. From then on the node calls `zos.event.workload` of the
//! owner's twin whenever a workload reaches a state, until the subscription ends: by its time, by the
//! owner's word, or when nobody answers a few times in a row. A client that wants to go on subscribes
//! again.
//!
//! ```text
//!  engine ─ changes ─> one queue a subscription ─ one call at a time ─> the owner's twin
//!                      full: the oldest go, and the next event says how many
//! ```
//!
//! Events are hints, not a log: they are numbered, so that a client notices a gap, and asks
//! `zos.deployment.changes` for what it missed. They hold states and words, and nothing of what is in a
//! workload. Subscriptions are remembered, events are not.

mod courier;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use hostd_grid::{Name, TwinId, WorkloadType};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::{debug, info};

use crate::engine::{Change, lock, now};
use crate::state::{StateStore, recall, remember};

pub(crate) use courier::Courier;

/// The command that an owner's twin is called with.
pub const COMMAND: &str = "zos.event.workload";

/// Subscriptions of a node.
const COUNT_MAX: usize = 1024;
/// Subscriptions of one twin: its sessions.
const COUNT_PER_TWIN_MAX: usize = 4;
/// Bytes of a session's name.
const SESSION_SIZE_MAX: usize = 64;
/// How long a subscription lasts if nothing is said, in seconds.
const TIME_DEFAULT: i64 = 3600;
/// How long it may last.
const TIME_MAX: i64 = 24 * 3600;
/// Events that wait for one subscriber.
const QUEUE_COUNT_MAX: usize = 64;
/// Calls in a row that nobody answers until a subscription ends.
const FAILURE_COUNT_MAX: u32 = 3;
/// What subscriptions are remembered as.
const SUBSCRIPTIONS: &str = "subscriptions";

/// A workload reached a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    contract_id: u64,
    name: Name,
    #[serde(rename = "type")]
    kind: WorkloadType,
    version: u32,
    state: &'static str,
    message: String,
    /// Since when, in seconds since 1970.
    created: i64,
    /// 1 for the first of a subscription, and one more for each.
    sequence: u64,
    /// Events before this one that found no room.
    lost: u64,
}

/// Why nobody is told anything. The texts reach who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum SubscribeError {
    #[error("twin {0} has no deployments here")]
    Stranger(TwinId),
    #[error("a session's name has at most {SESSION_SIZE_MAX} bytes, and this one {0}")]
    Session(usize),
    #[error("a subscription lasts 1 to {TIME_MAX} seconds, not {0}")]
    Time(i64),
    #[error("twin {0} has {COUNT_PER_TWIN_MAX} subscriptions here already")]
    TooManyOfTwin(TwinId),
    #[error("this node has {COUNT_MAX} subscriptions already")]
    TooMany,
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subscriber {
    pub(crate) twin: u32,
    /// Which of the twin's sessions; empty for the nameless one.
    pub(crate) session: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Subscription {
    subscriber: Subscriber,
    /// When it ends, in seconds since 1970.
    until: i64,
    #[serde(skip)]
    queue: VecDeque<Event>,
    #[serde(skip)]
    sequence: u64,
    #[serde(skip)]
    lost: u64,
    #[serde(skip)]
    failure_count: u32,
    /// A call is under way.
    #[serde(skip)]
    is_busy: bool,
}

/// All subscriptions.
pub struct News {
    state: Arc<dyn StateStore>,
    subscriptions: Mutex<Vec<Subscription>>,
    changed: Notify,
}

impl News {
    /// With the subscriptions that are remembered.
    pub(crate) fn new(state: Arc<dyn StateStore>) -> Self {
        let mut subscriptions: Vec<Subscription> =
            recall(&*state, SUBSCRIPTIONS).unwrap_or_default();
        subscriptions.truncate(COUNT_MAX);
        Self { state, subscriptions: Mutex::new(subscriptions), changed: Notify::new() }
    }

    /// Tells that session of a twin from now on, for so many seconds. Says when that ends. The caller
    /// knows that the twin has a deployment.
    pub(crate) fn subscribe(
        &self,
        twin: TwinId,
        session: &str,
        seconds: Option<i64>,
    ) -> Result<i64, SubscribeError> {
        let seconds = seconds.unwrap_or(TIME_DEFAULT);
        if !(1..=TIME_MAX).contains(&seconds) {
            return Err(SubscribeError::Time(seconds));
        }
        if session.len() > SESSION_SIZE_MAX {
            return Err(SubscribeError::Session(session.len()));
        }
        let now = now();
        let until = now.saturating_add(seconds);
        let subscriber = Subscriber { twin: twin.0, session: session.to_owned() };
        let mut subscriptions = self.subscriptions();
        subscriptions.retain(|subscription| subscription.until > now);
        let mut known = subscriptions.iter_mut();
        if let Some(known) = known.find(|known| known.subscriber == subscriber) {
            known.until = until;
            known.failure_count = 0;
        } else {
            let of_twin = subscriptions.iter().filter(|other| other.subscriber.twin == twin.0);
            if of_twin.count() >= COUNT_PER_TWIN_MAX {
                return Err(SubscribeError::TooManyOfTwin(twin));
            }
            if subscriptions.len() >= COUNT_MAX {
                return Err(SubscribeError::TooMany);
            }
            subscriptions.push(Subscription::new(subscriber, until));
            info!(twin = twin.0, until, "an owner wants to hear of changes");
        }
        self.remember(&subscriptions);
        Ok(until)
    }

    /// Tells that session nothing any more.
    pub(crate) fn unsubscribe(&self, twin: TwinId, session: &str) {
        let mut subscriptions = self.subscriptions();
        subscriptions.retain(|subscription| {
            let Subscriber { twin: other, session: name } = &subscription.subscriber;
            *other != twin.0 || name != session
        });
        self.remember(&subscriptions);
    }

    /// Tells all that there is to tell, for ever.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut changes: Receiver<Change>,
        courier: Arc<dyn Courier>,
    ) {
        let mut calls = JoinSet::new();
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => self.publish(&change),
                    Err(RecvError::Lagged(count)) => self.miss(count),
                    Err(RecvError::Closed) => return,
                },
                Some(done) = calls.join_next(), if !calls.is_empty() => {
                    // A call that panicked has not reached anybody.
                    if let Ok((subscriber, is_delivered)) = done {
                        self.settle(&subscriber, is_delivered);
                    }
                }
                () = self.changed.notified() => {}
            }
            for (subscriber, event) in self.due() {
                let courier = Arc::clone(&courier);
                calls.spawn(async move {
                    let is_delivered = courier.deliver(&subscriber, &event).await;
                    (subscriber, is_delivered)
                });
            }
        }
    }

    /// Has a change told to all subscribers whom it concerns.
    fn publish(&self, change: &Change) {
        let now = now();
        let mut subscriptions = self.subscriptions();
        for subscription in subscriptions.iter_mut() {
            if subscription.subscriber.twin == change.twin_id.0 && subscription.until > now {
                subscription.push(change);
            }
        }
    }

    /// So many changes were not seen, and nobody knows whose they were.
    fn miss(&self, count: u64) {
        for subscription in self.subscriptions().iter_mut() {
            subscription.lost = subscription.lost.saturating_add(count);
        }
    }

    /// What is to be told now, one event for each subscriber who is not being told something.
    fn due(&self) -> Vec<(Subscriber, Event)> {
        let mut due = Vec::new();
        for subscription in self.subscriptions().iter_mut().filter(|it| !it.is_busy) {
            if let Some(event) = subscription.queue.pop_front() {
                subscription.is_busy = true;
                due.push((subscription.subscriber.clone(), event));
            }
        }
        due
    }

    /// A call came to its end.
    fn settle(&self, subscriber: &Subscriber, is_delivered: bool) {
        let mut subscriptions = self.subscriptions();
        let mut known = subscriptions.iter_mut();
        let Some(known) = known.find(|known| known.subscriber == *subscriber) else { return };
        known.is_busy = false;
        known.failure_count = if is_delivered { 0 } else { known.failure_count + 1 };
        if !is_delivered {
            known.lost = known.lost.saturating_add(1);
        }
        if known.failure_count >= FAILURE_COUNT_MAX {
            debug!(?subscriber, "nobody answers: the subscription ends");
            subscriptions.retain(|other| other.subscriber != *subscriber);
            self.remember(&subscriptions);
        }
    }

    fn remember(&self, subscriptions: &[Subscription]) {
        remember(&*self.state, SUBSCRIPTIONS, &subscriptions);
        self.changed.notify_one();
    }

    fn subscriptions(&self) -> MutexGuard<'_, Vec<Subscription>> {
        lock(&self.subscriptions)
    }
}

impl Subscription {
    fn new(subscriber: Subscriber, until: i64) -> Self {
        Self {
            subscriber,
            until,
            queue: VecDeque::new(),
            sequence: 0,
            lost: 0,
            failure_count: 0,
            is_busy: false,
        }
    }

    fn push(&mut self, change: &Change) {
        self.sequence += 1;
        let Change { contract_id, name, kind, version, state, message, created, .. } = change;
        if self.queue.len() >= QUEUE_COUNT_MAX {
            self.queue.pop_front();
            self.lost = self.lost.saturating_add(1);
        }
        self.queue.push_back(Event {
            contract_id: contract_id.0,
            name: name.clone(),
            kind: *kind,
            version: *version,
            state: state.name(),
            message: message.clone(),
            created: *created,
            sequence: self.sequence,
            lost: std::mem::take(&mut self.lost),
        });
    }
}

#[cfg(test)]
mod tests;
