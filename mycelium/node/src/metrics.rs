//! Counts for Prometheus, in its text form, under the names of existing nodes
//! (`reference: mycelium 1.14`).

use std::fmt::{self, Write};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use mycelium_router::Counters;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::api::guard;
use crate::data::DataPlane;
use crate::data::session::State as Talk;
use crate::data::table::Table;
use crate::peers::Peers;
use crate::routing::{Input, ask};

/// What metrics are made of.
pub(crate) struct Metrics {
    pub(crate) peers: Arc<Peers>,
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) table: Arc<Table>,
}

/// Form of the text.
const FORM: &str = "text/plain; version=0.0.4";

/// Listens at `address`. Must be called inside a runtime.
pub(crate) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves `/metrics` until the listener fails.
pub(crate) async fn serve(metrics: Metrics, listener: TcpListener) -> io::Result<()> {
    let routes = axum::Router::new().route("/metrics", get(show)).with_state(Arc::new(metrics));
    guard::serve(listener, routes).await
}

async fn show(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    let counters = ask(&metrics.inputs, |view| *view.router.counters()).await;
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = metrics.write(&counters.unwrap_or_default(), &mut text);
    ([(CONTENT_TYPE, FORM)], text)
}

impl Metrics {
    fn write(&self, counters: &Counters, out: &mut impl Write) -> fmt::Result {
        let tlvs = [
            ("hello", counters.hellos),
            ("ihu", counters.ihus),
            ("update", counters.updates),
            ("route_request", counters.route_requests),
            ("seqno_request", counters.seqno_requests),
        ];
        family(out, "mycelium_router_processed_tlvs", "counter", "tlv_type", &tlvs)?;
        for (name, count) in [
            ("peer_added", counters.links_added),
            ("peer_removed", counters.links_removed),
            ("peer_died", counters.links_died),
            ("route_selections", counters.route_selections),
            ("source_key_expired", counters.expired_sources),
            ("expired_routes", counters.expired_routes),
            ("triggered_updates", counters.updates_sent),
            ("avoided_routes", counters.avoided_routes),
            ("tlv_discarded", counters.paced),
            ("update_denied", counters.denied_updates),
        ] {
            single(out, &format!("mycelium_router_{name}"), "counter", count)?;
        }
        let proofs = [
            ("checked", counters.checked_proofs),
            ("forged", counters.forged_proofs),
            ("unchecked", counters.unchecked_proofs),
        ];
        family(out, "mycelium_router_proofs", "counter", "verdict", &proofs)?;
        let plane = self.plane.counters();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let verdicts = [
            ("sent", load(&plane.sent)),
            ("received", load(&plane.received)),
            ("forwarded", load(&plane.forwarded)),
            ("no_route", load(&plane.without_route)),
            ("ttl_expired", load(&plane.expired)),
            ("too_big", load(&plane.too_big)),
            ("forged", load(&plane.forged)),
        ];
        family(out, "mycelium_router_packets_routed", "counter", "verdict", &verdicts)?;
        self.write_sessions(out)?;
        let (attempts, added) = self.peers.counts();
        let known = self.peers.list();
        let dropped = known.iter().map(|peer| peer.dropped_count).sum();
        single(out, "mycelium_router_outbound_packets_dropped", "gauge", dropped)?;
        let overflowed = self.peers.connector().udp.as_ref().map_or(0, |udp| udp.overflowed());
        single(out, "mycelium_udp_datagrams_dropped", "counter", overflowed)?;
        single(out, "mycelium_peer_manager_connection_attempts", "counter", attempts)?;
        single(out, "mycelium_peer_manager_peers_added", "counter", added)?;
        single(out, "mycelium_peer_manager_known_peers", "gauge", known.len() as u64)?;
        single(out, "process_resident_memory_bytes", "gauge", resident_size())
    }

    /// Of sessions, which existing nodes don't have: under names of our own.
    fn write_sessions(&self, out: &mut impl Write) -> fmt::Result {
        let (sessions, now) = (self.plane.sessions(), Instant::now());
        let states: Vec<_> =
            self.table.all().filter_map(|known| sessions.state(&known, now)).collect();
        let count = |is: fn(&Talk) -> bool| states.iter().filter(|state| is(state)).count() as u64;
        let by_state = [
            ("old", count(|state| *state == Talk::Old)),
            ("asking", count(|state| *state == Talk::Asking)),
            ("forward_secret", count(|state| matches!(state, Talk::ForwardSecret { .. }))),
            ("unanswered", count(|state| *state == Talk::Unanswered)),
            ("refused", count(|state| *state == Talk::Refused)),
        ];
        family(out, "mycelium_session_peers", "gauge", "state", &by_state)?;
        let handshakes = sessions.handshakes();
        let by_verdict = [
            ("begun", handshakes.begun),
            ("answered", handshakes.answered),
            ("established", handshakes.established),
            ("unanswered", handshakes.unanswered),
            ("challenged", handshakes.challenged),
            ("refused", handshakes.refused),
            ("forged", handshakes.forged),
        ];
        family(out, "mycelium_session_handshakes", "counter", "verdict", &by_verdict)?;
        let counters = sessions.counters();
        let dropped = [
            ("old_form", counters.refused.load(Ordering::Relaxed)),
            ("unsent", counters.unsent.load(Ordering::Relaxed)),
            ("missed", counters.missed.load(Ordering::Relaxed)),
        ];
        family(out, "mycelium_session_packets_dropped", "counter", "reason", &dropped)?;
        single(out, "mycelium_session_waiting_bytes", "gauge", sessions.parked_size() as u64)
    }
}

fn family(
    out: &mut impl Write,
    name: &str,
    kind: &str,
    label: &str,
    values: &[(&str, u64)],
) -> fmt::Result {
    writeln!(out, "# TYPE {name} {kind}")?;
    values
        .iter()
        .try_for_each(|(value, count)| writeln!(out, "{name}{{{label}=\"{value}\"}} {count}"))
}

fn single(out: &mut impl Write, name: &str, kind: &str, count: u64) -> fmt::Result {
    writeln!(out, "# TYPE {name} {kind}\n{name} {count}")
}

/// Memory of this process, in bytes: the second field of `/proc/self/statm`, in pages.
fn resident_size() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_a_line_for_each_label() {
        let mut text = String::new();
        family(&mut text, "x_total", "counter", "kind", &[("a", 1), ("b", 2)]).unwrap();
        single(&mut text, "y", "gauge", 3).unwrap();
        assert_eq!(
            text,
            "# TYPE x_total counter\nx_total{kind=\"a\"} 1\nx_total{kind=\"b\"} 2\n# TYPE y gauge\ny 3\n"
        );
    }

    #[test]
    fn a_process_has_memory() {
        assert!(resident_size() > 100_000);
    }
}
