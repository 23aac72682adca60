//! What a relay counts, as Prometheus reads it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::State;

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) received: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) dropped: Counter,
    pub(crate) refused: Counter,
    pub(crate) limited: Counter,
    pub(crate) evicted: Counter,
    pub(crate) unauthorized: Counter,
    pub(crate) federated: Counter,
    pub(crate) federation_failed: Counter,
    pub(crate) federation_received: Counter,
    pub(crate) federation_refused: Counter,
}

/// The text of `/metrics`.
pub(crate) fn text(state: &State) -> String {
    let metrics = &state.metrics;
    let counters = [
        ("messages_received", "Envelopes from sessions", &metrics.received),
        ("bytes_received", "Bytes of envelopes from sessions", &metrics.received_bytes),
        ("messages_sent", "Envelopes to sessions", &metrics.sent),
        ("bytes_sent", "Bytes of envelopes to sessions", &metrics.sent_bytes),
        ("messages_dropped", "Envelopes that waited in vain", &metrics.dropped),
        ("messages_refused", "Envelopes that could not be passed on", &metrics.refused),
        ("messages_limited", "Envelopes beyond a twin's rate", &metrics.limited),
        ("sessions_evicted", "Connections that a newer one replaced", &metrics.evicted),
        ("sessions_unauthorized", "Connections with a bad token", &metrics.unauthorized),
        ("federation_sent", "Envelopes that another relay took", &metrics.federated),
        ("federation_failed", "Envelopes that no relay took", &metrics.federation_failed),
        ("federation_received", "Envelopes from relays", &metrics.federation_received),
        ("federation_refused", "Bad envelopes from relays", &metrics.federation_refused),
    ];
    let (waiting, waiting_bytes) = state.mailboxes.waiting();
    let gauges = [
        ("sessions", "Sessions that are connected", state.mailboxes.session_count()),
        ("messages_waiting", "Envelopes in mailboxes", waiting),
        ("bytes_waiting", "Bytes in mailboxes", waiting_bytes),
    ];
    let mut text = String::new();
    for (name, help, counter) in counters {
        let value = counter.get();
        let _ = writeln!(text, "# HELP relay_{name}_total {help}");
        let _ = writeln!(text, "# TYPE relay_{name}_total counter\nrelay_{name}_total {value}");
    }
    for (name, help, value) in gauges {
        let _ = writeln!(text, "# HELP relay_{name} {help}");
        let _ = writeln!(text, "# TYPE relay_{name} gauge\nrelay_{name} {value}");
    }
    text
}
