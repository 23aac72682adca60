//! How a node's duties go: what was done when, and what keeps the rest.
//!
//! Each duty says so itself, in [`Health::note`]; whoever wants to know reads it, over the message bus
//! or on the machine.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::engine::now;
use crate::host::Module;

/// Something that a node does again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// The chain knows the node as it is.
    Registration,
    /// The chain knows that the node is there.
    Uptime,
    /// The chain's events are followed.
    Events,
    /// Deployments, contracts and the machine are compared.
    Comparison,
    /// The chain knows what contracts have sent.
    Traffic,
    /// The chain knows whether the node runs.
    Power,
    /// The chain answers.
    Chain,
    /// Messages reach the node: it is connected to a relay.
    Relay,
    /// The clock is that of the chain.
    Clock,
    /// The node's own disk takes what it has to.
    Health,
    /// A machine that nobody reserved runs.
    Rehearsal,
}

impl Duty {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Registration,
        Self::Uptime,
        Self::Events,
        Self::Comparison,
        Self::Traffic,
        Self::Power,
        Self::Chain,
        Self::Relay,
        Self::Clock,
        Self::Health,
        Self::Rehearsal,
    ];

    /// Its name, also in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registration => "registration",
            Self::Uptime => "uptime",
            Self::Events => "events",
            Self::Comparison => "comparison",
            Self::Traffic => "traffic",
            Self::Power => "power",
            Self::Chain => "chain",
            Self::Relay => "relay",
            Self::Clock => "clock",
            Self::Health => "health",
            Self::Rehearsal => "rehearsal",
        }
    }
}

/// How a duty goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// When it was last done, in seconds since 1970.
    pub done_at: Option<i64>,
    /// Why the last try failed; none if it did not.
    pub error: Option<String>,
    /// When the first of the tries that failed since then did, in seconds since 1970; none if the last did
    /// not.
    pub failing_since: Option<i64>,
    /// How often it failed.
    pub failure_count: u64,
}

/// How all duties go.
#[derive(Debug, Default)]
pub struct Health {
    duties: Mutex<BTreeMap<Duty, Progress>>,
}

impl Health {
    /// A duty was done, or not.
    pub fn note<E: std::fmt::Display>(&self, duty: Duty, done: &Result<(), E>) {
        let mut duties = self.duties();
        let progress = duties.entry(duty).or_default();
        match done {
            Ok(()) => {
                progress.done_at = Some(now());
                progress.error = None;
                progress.failing_since = None;
            }
            Err(error) => {
                progress.error = Some(error.to_string());
                progress.failing_since.get_or_insert_with(now);
                progress.failure_count += 1;
            }
        }
    }

    /// How each duty goes that was tried.
    pub fn progress(&self) -> BTreeMap<Duty, Progress> {
        self.duties().clone()
    }

    /// The same as parts of the node.
    pub(crate) fn modules(&self) -> BTreeMap<String, Module> {
        let described = |(duty, progress): (Duty, Progress)| {
            let mut status = match progress.done_at {
                Some(at) => format!("done at {at}"),
                None => "not done yet".to_owned(),
            };
            if let Some(since) = progress.failing_since {
                status.push_str(&format!(", failing since {since}"));
            }
            (duty.name().to_owned(), Module { status, error: progress.error.unwrap_or_default() })
        };
        self.progress().into_iter().map(described).collect()
    }

    fn duties(&self) -> MutexGuard<'_, BTreeMap<Duty, Progress>> {
        self.duties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_clears_what_failed() {
        let health = Health::default();
        health.note(Duty::Uptime, &Err("nobody listens"));
        let since = health.progress()[&Duty::Uptime].failing_since.unwrap();
        health.note(Duty::Uptime, &Err("nobody listens"));
        assert_eq!(health.progress()[&Duty::Uptime].failing_since, Some(since));
        let module = health.modules().remove("uptime").unwrap();
        assert_eq!(module.status, format!("not done yet, failing since {since}"));
        assert_eq!(module.error, "nobody listens");
        health.note(Duty::Uptime, &Ok::<(), String>(()));
        let progress = &health.progress()[&Duty::Uptime];
        assert_eq!((progress.error.as_ref(), progress.failure_count), (None, 2));
        assert_eq!(progress.failing_since, None);
        assert!(progress.done_at.is_some());
        assert_eq!(health.progress().len(), 1);
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = Duty::ALL.map(Duty::name).into();
        assert_eq!(names.len(), Duty::ALL.len());
    }
}
