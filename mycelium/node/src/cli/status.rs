//! `mycelium status`: a running node, its peers and its routes; once, or again and again.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::http::Client;
use crate::cli::node::{Output, new_table, route_table, text};

/// Show a running node, its peers and its routes
#[derive(Args)]
pub(crate) struct StatusArguments {
    /// Show it again each so many seconds (1 if not said), with what passes in a second, until Ctrl-C
    ///
    /// With --json, one line of JSON each time.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// What is said between two looks: the screen is cleared and written from its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(crate) fn run(arguments: &StatusArguments, client: &Client) -> anyhow::Result<()> {
    let mut before = None;
    loop {
        let now = Look::take(client)?;
        let rates = before.as_ref().map(|before| now.rates(before));
        let mut out = std::io::stdout().lock();
        match (arguments.output.json, arguments.watch) {
            (true, None) => writeln!(out, "{}", serde_json::to_string_pretty(&now.status)?)?,
            (true, Some(_)) => writeln!(out, "{}", now.status)?,
            (false, None) => writeln!(out, "{}", shown(&now.status, None))?,
            (false, Some(_)) => {
                let clear = if out.is_terminal() { CLEAR } else { "" };
                let rates = rates.unwrap_or_default();
                writeln!(out, "{clear}{}", shown(&now.status, Some(&rates)))?;
            }
        }
        out.flush()?;
        let Some(seconds) = arguments.watch else { return Ok(()) };
        before = Some(now);
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

/// What was seen, and when.
struct Look {
    status: Value,
    at: Instant,
}

/// Bytes sent and received in a second, by peer.
type Rates = HashMap<String, (f64, f64)>;

impl Look {
    fn take(client: &Client) -> anyhow::Result<Self> {
        let mut status = client.get("/admin/status")?;
        let at = Instant::now();
        status["routes"] = client.get("/admin/routes/selected")?;
        Ok(Self { status, at })
    }

    fn rates(&self, before: &Self) -> Rates {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
        let old: HashMap<&str, (u64, u64)> = peers(&before.status).map(totals).collect();
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let rates = peers(&self.status).map(totals).map(|(peer, (sent, received))| {
            let (old_sent, old_received) = old.get(peer).copied().unwrap_or((sent, received));
            (peer.to_owned(), (rate(sent, old_sent), rate(received, old_received)))
        });
        rates.collect()
    }
}

fn peers(status: &Value) -> impl Iterator<Item = &Value> {
    status["peers"].as_array().into_iter().flatten()
}

fn totals(peer: &Value) -> (&str, (u64, u64)) {
    let count = |name: &str| peer[name].as_u64().unwrap_or(0);
    (peer["endpoint"].as_str().unwrap_or_default(), (count("txBytes"), count("rxBytes")))
}

/// For people.
fn shown(status: &Value, rates: Option<&Rates>) -> String {
    let at = |pointer: &str| text(status.pointer(pointer));
    let count = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let mut lines = vec![
        format!("Address:    {}", at("/node/nodeIp")),
        format!("Public key: {}", at("/node/nodePubkey")),
        format!("Running:    {}, version {}", time(count("/uptimeSeconds")), at("/version")),
        format!(
            "Routes:     {} in use, {} more, {} asked for",
            at("/routeCounts/selected"),
            at("/routeCounts/fallback"),
            at("/routeCounts/queried"),
        ),
        format!(
            "Packets:    {} sent, {} received, {} passed on, {} without a route, {} forged",
            at("/packets/sent"),
            at("/packets/received"),
            at("/packets/forwarded"),
            at("/packets/withoutRoute"),
            at("/packets/forged"),
        ),
        String::new(),
        peer_table(status, rates),
    ];
    let troubles: Vec<String> = peers(status).filter_map(trouble).collect();
    if !troubles.is_empty() {
        lines.push(String::new());
        lines.extend(troubles);
    }
    lines.extend([String::new(), route_table(&status["routes"])]);
    if status["sessions"].as_array().is_some_and(|sessions| !sessions.is_empty()) {
        lines.extend([String::new(), session_table(&status["sessions"])]);
    }
    lines.join("\n")
}

fn peer_table(status: &Value, rates: Option<&Rates>) -> String {
    let mut titles =
        vec!["PEER", "TYPE", "STATE", "ROUND TRIP", "LOST", "ROUTES", "SENT", "RECEIVED"];
    if rates.is_some() {
        titles.extend(["SENT/S", "RECEIVED/S"]);
    }
    let mut table = new_table(&titles);
    for peer in peers(status) {
        let (endpoint, (sent, received)) = totals(peer);
        let round_trip = peer["roundTripUs"].as_u64().map_or_else(|| "-".to_owned(), milliseconds);
        let lost =
            peer["lostHellos"].as_u64().map_or_else(|| "-".to_owned(), |n| format!("{n}/16"));
        let mut row = vec![
            endpoint.to_owned(),
            text(peer.get("type")),
            text(peer.get("connectionState")),
            round_trip,
            lost,
            text(peer.get("routes")),
            size(sent as f64),
            size(received as f64),
        ];
        if let Some(rates) = rates {
            let (sent, received) = rates.get(endpoint).copied().unwrap_or_default();
            row.extend([size(sent), size(received)]);
        }
        table.add_row(row);
    }
    table.to_string()
}

/// Who is talked to, and how it is sealed from end to end.
fn session_table(sessions: &Value) -> String {
    let mut table = new_table(&["NODE", "END TO END", "CIPHER", "SINCE"]);
    for session in sessions.as_array().into_iter().flatten() {
        let how = match session["state"].as_str() {
            Some("forwardSecret") => "forward secret",
            Some("old") => "static keys",
            Some("asking") => "being agreed upon",
            Some("unanswered") => "static keys: it does not answer",
            Some("refused") => "nothing: it had a session before, and does not answer",
            _ => "-",
        };
        let since = session["age"].as_u64().map_or_else(|| "-".to_owned(), time);
        table.add_row([
            text(session.get("address")),
            how.to_owned(),
            text(session.get("cipher")),
            since,
        ]);
    }
    table.to_string()
}

/// Why there is no link.
fn trouble(peer: &Value) -> Option<String> {
    let is_alive = peer["connectionState"] == json!("alive");
    let why = peer["trouble"].as_str().filter(|_| !is_alive)?;
    Some(format!("{}: {why}", text(peer.get("endpoint"))))
}

fn milliseconds(microseconds: u64) -> String {
    format!("{:.1} ms", microseconds as f64 / 1000.0)
}

/// Bytes in a unit that fits.
fn size(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Days, hours and so on.
fn time(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(sent: u64) -> Value {
        json!({
            "version": "1", "uptimeSeconds": 3700, "routes": [],
            "node": { "nodeIp": "400::1", "nodePubkey": "00" },
            "routeCounts": { "selected": 1, "fallback": 2, "queried": 0 },
            "packets": {},
            "sessions": [
                { "address": "400::2", "state": "forwardSecret", "cipher": "AES", "age": 61 },
                { "address": "400::3", "state": "old" },
            ],
            "peers": [
                { "endpoint": "tcp://192.0.2.1:9651", "type": "static", "connectionState": "alive",
                  "roundTripUs": 1250, "lostHellos": 0, "routes": 3, "txBytes": sent,
                  "rxBytes": 0, "trouble": "old" },
                { "endpoint": "tcp://192.0.2.2:9651", "type": "static", "connectionState": "dead",
                  "txBytes": 0, "rxBytes": 0, "trouble": "refused" },
            ],
        })
    }

    #[test]
    fn a_table_has_all_peers_and_what_troubles_those_without_a_link() {
        let shown = shown(&status(2048), None);
        for part in [
            "400::1",
            "1 h 1 min",
            "1.2 ms",
            "0/16",
            "2.0 KiB",
            "2:9651: refused",
            "forward secret",
            "1 min 1 s",
            "static",
        ] {
            assert!(shown.contains(part), "{part}:\n{shown}");
        }
        assert!(!shown.contains("old") && !shown.contains("SENT/S"));
    }

    #[test]
    fn rates_are_what_was_added_between_two_looks() {
        let at = Instant::now();
        let before = Look { status: status(1000), at };
        let now = Look { status: status(5000), at: at + Duration::from_secs(2) };
        let rates = now.rates(&before);
        assert!((rates["tcp://192.0.2.1:9651"].0 - 2000.0).abs() < 1.0, "{rates:?}");
        assert!(shown(&now.status, Some(&rates)).contains("RECEIVED/S"));
    }
}
