//! `mycelium peers`, `routes`, `stats` and `status`: what a running node says of itself.

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
    },
    /// Remove peers, and end their links
    Remove {
        /// As `list` shows them
        #[arg(required = true)]
        peers: Vec<String>,
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

/// Show a running node, its peers and its routes
#[derive(Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
struct Output {
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn peers(arguments: &PeersArguments, client: Client) -> anyhow::Result<()> {
    match &arguments.command {
        PeersCommand::List(output) => show(&client.get("/admin/peers")?, output, peer_table),
        PeersCommand::Add { peers } => {
            for peer in peers {
                let body = json!({ "endpoint": peer });
                client
                    .ask("POST", "/admin/peers", Some(&body), std::time::Duration::ZERO)?
                    .check()?;
            }
            Ok(())
        }
        PeersCommand::Remove { peers } => {
            for peer in peers {
                let path = format!("/admin/peers/{}", encode(peer));
                client.ask("DELETE", &path, None, std::time::Duration::ZERO)?.check()?;
            }
            Ok(())
        }
    }
}

pub(crate) fn routes(arguments: &RoutesArguments, client: Client) -> anyhow::Result<()> {
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

pub(crate) fn stats(arguments: &StatsArguments, client: Client) -> anyhow::Result<()> {
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

pub(crate) fn status(arguments: &StatusArguments, client: Client) -> anyhow::Result<()> {
    let all = json!({
        "node": client.get("/admin")?,
        "peers": client.get("/admin/peers")?,
        "routes": client.get("/admin/routes/selected")?,
    });
    show(&all, &arguments.output, |all| {
        format!(
            "Address:    {}\nPublic key: {}\n\n{}\n\n{}",
            text(all.pointer("/node/nodeIp")),
            text(all.pointer("/node/nodePubkey")),
            peer_table(&all["peers"]),
            route_table(&all["routes"]),
        )
    })
}

fn show(
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

fn route_table(routes: &Value) -> String {
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

fn new_table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(titles.iter().copied());
    table
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
