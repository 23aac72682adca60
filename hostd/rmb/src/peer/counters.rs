//! What happened how often, for metrics and for whoever wonders.

use std::sync::atomic::{AtomicU64, Ordering};

/// Things that happen to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A relay brought something.
    Received,
    /// It was no envelope, or one of a kind that is for relays.
    Malformed,
    /// It was for another twin, or another session.
    Misdirected,
    /// A request that had expired.
    Expired,
    /// An envelope of a twin that does not exist.
    UnknownTwin,
    /// An envelope that its source did not sign.
    Forged,
    /// An envelope that can't be decrypted.
    Unreadable,
    /// A request that had come before.
    Replayed,
    /// A request that is not JSON.
    OtherSchema,
    /// An answer that nobody waits for.
    Unasked,
    /// A request beyond what may be asked for.
    Refused,
    /// A twin could not be looked up.
    LookupFailed,
    /// A command that was run.
    Run,
    /// An answer that was handed to a relay.
    Answered,
    /// An answer that could not be sent.
    Unanswered,
    /// A call that was handed to a relay.
    Called,
}

impl Event {
    const ALL: [Self; 16] = [
        Self::Received,
        Self::Malformed,
        Self::Misdirected,
        Self::Expired,
        Self::UnknownTwin,
        Self::Forged,
        Self::Unreadable,
        Self::Replayed,
        Self::OtherSchema,
        Self::Unasked,
        Self::Refused,
        Self::LookupFailed,
        Self::Run,
        Self::Answered,
        Self::Unanswered,
        Self::Called,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Malformed => "malformed",
            Self::Misdirected => "misdirected",
            Self::Expired => "expired",
            Self::UnknownTwin => "unknown_twin",
            Self::Forged => "forged",
            Self::Unreadable => "unreadable",
            Self::Replayed => "replayed",
            Self::OtherSchema => "other_schema",
            Self::Unasked => "unasked",
            Self::Refused => "refused",
            Self::LookupFailed => "lookup_failed",
            Self::Run => "run",
            Self::Answered => "answered",
            Self::Unanswered => "unanswered",
            Self::Called => "called",
        }
    }
}

/// How often each has happened.
#[derive(Default)]
pub(super) struct Counters([AtomicU64; Event::ALL.len()]);

impl Counters {
    pub(super) fn add(&self, event: Event) {
        if let Some(counter) = self.0.get(event as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count(&self, event: Event) -> u64 {
        self.0.get(event as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Event::ALL.into_iter().map(|event| (event.name(), self.count(event)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_its_own_counter_and_name() {
        let counters = Counters::default();
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
            (0..=index).for_each(|_| counters.add(event));
        }
        let names: std::collections::HashSet<_> = counters.counts().map(|(name, _)| name).collect();
        assert_eq!(names.len(), Event::ALL.len());
        let counts: Vec<u64> = counters.counts().map(|(_, count)| count).collect();
        assert_eq!(counts, (1..=16).collect::<Vec<_>>());
    }
}
