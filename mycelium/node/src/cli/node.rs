//! `mycelium peers`, `routes` and `stats`: what a running node says of itself, in the API's own terms.

use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};

use crate::cli::http::{Client, encode};

/// See and change a running node's peers
#[derive(Args)]
pub(crate) struct PeersArguments {
    #[command(subcommand)]
    command: PeersCommand,
}

#[derive(Subcommand)]
enum PeersCommand {
    /// Show all peers
    List(Output),
    /// Add peers, which are dialed from now on
    Add {
        /// Where they are: tcp://HOST:PORT and so on
        #[arg(required = true)]
        peers: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Remove peers, and end their links
    Remove {
        /// As `list` shows them
        #[arg(required = true)]
        peers: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
}

/// See a running node's routes
#[derive(Args)]
pub(crate) struct RoutesArguments {
    #[command(subcommand)]
    command: RoutesCommand,
}

#[derive(Subcommand)]
enum RoutesCommand {
    /// Routes in use
    Selected(Output),
    /// Routes that could be used
    Fallback(Output),
    /// Subnets that are being asked for
    Queried(Output),
}

/// See how much a running node carried
#[derive(Args)]
pub(crate) struct StatsArguments {
    #[command(subcommand)]
    command: StatsCommand,
}

#[derive(Subcommand)]
enum StatsCommand {
    /// By source and destination
    Packets(Output),
}

#[derive(Args)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn peers(arguments: &PeersArguments, client: &Client) -> anyhow::Result<()> {
    match &arguments.command {
        PeersCommand::List(output) => show(&client.get("/admin/peers")?, output, peer_table),
        PeersCommand::Add { peers, output } => {
            for peer in peers {
                let body = json!({ "endpoint": peer });
                client.ask("POST", "/admin/peers", Some(&body), Duration::ZERO)?.check()?;
            }
            changed(&json!({ "added": peers }), output)
        }
        PeersCommand::Remove { peers, output } => {
            for peer in peers {
                let path = format!("/admin/peers/{}", encode(peer));
                client.ask("DELETE", &path, None, Duration::ZERO)?.check()?;
            }
            changed(&json!({ "removed": peers }), output)
        }
    }
}

/// People know what they asked for; programs are told.
fn changed(what: &Value, output: &Output) -> anyhow::Result<()> {
    if output.json {
        println!("{}", serde_json::to_string_pretty(what)?);
    }
    Ok(())
}

pub(crate) fn routes(arguments: &RoutesArguments, client: &Client) -> anyhow::Result<()> {
    match &arguments.command {
        RoutesCommand::Selected(output) => {
            show(&client.get("/admin/routes/selected")?, output, route_table)
        }
        RoutesCommand::Fallback(output) => {
            show(&client.get("/admin/routes/fallback")?, output, route_table)
        }
        RoutesCommand::Queried(output) => {
            show(&client.get("/admin/routes/queried")?, output, |queried| {
                table(queried, &[("SUBNET", "/subnet"), ("SECONDS LEFT", "/expiration")])
            })
        }
    }
}

pub(crate) fn stats(arguments: &StatsArguments, client: &Client) -> anyhow::Result<()> {
    let StatsCommand::Packets(output) = &arguments.command;
    show(&client.get("/admin/stats/packets")?, output, |stats| {
        let columns =
            |first| [(first, "/ip"), ("PACKETS", "/packetCount"), ("BYTES", "/byteCount")];
        format!(
            "{}\n\n{}",
            table(&stats["bySource"], &columns("SOURCE")),
            table(&stats["byDestination"], &columns("DESTINATION")),
        )
    })
}

/// Prints JSON, or what people make of it.
pub(crate) fn show(
    value: &Value,
    output: &Output,
    people: impl FnOnce(&Value) -> String,
) -> anyhow::Result<()> {
    if output.json {
        println!("{}", serde_json::to_string_pretty(value)?);
    } else {
        println!("{}", people(value));
    }
    Ok(())
}

fn peer_table(peers: &Value) -> String {
    let mut shown = new_table(&["PEER", "TYPE", "STATE", "SENT", "RECEIVED"]);
    for peer in peers.as_array().into_iter().flatten() {
        let address = match peer.pointer("/endpoint/addr/vsock") {
            Some(vsock) => format!("{}:{}", text(vsock.get("cid")), text(vsock.get("port"))),
            None => text(peer.pointer("/endpoint/addr/socket")),
        };
        shown.add_row([
            format!("{}://{address}", text(peer.pointer("/endpoint/proto"))),
            text(peer.get("type")),
            text(peer.get("connectionState")),
            text(peer.get("txBytes")),
            text(peer.get("rxBytes")),
        ]);
    }
    shown.to_string()
}

/// Routes, one a line.
pub(crate) fn route_table(routes: &Value) -> String {
    let columns = [
        ("SUBNET", "/subnet"),
        ("NEXT HOP", "/nextHop"),
        ("METRIC", "/metric"),
        ("SEQNO", "/seqno"),
    ];
    table(routes, &columns)
}

/// A row for each element, a column for each title and pointer.
fn table(rows: &Value, columns: &[(&str, &str)]) -> String {
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let mut shown = new_table(&titles);
    for row in rows.as_array().into_iter().flatten() {
        shown.add_row(columns.iter().map(|(_, pointer)| text(row.pointer(pointer))));
    }
    shown.to_string()
}

/// An empty table with these titles.
pub(crate) fn new_table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(titles.iter().copied());
    table
}

/// A value as people read it; a dash where there is none.
pub(crate) fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
