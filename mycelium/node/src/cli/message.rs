//! `mycelium message`: messages to other nodes, and from them. What is printed is JSON as the API has it.

use std::io::{Read, Write};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use mycelium_wire::identity::PublicKey;
use serde_json::{Value, json};

use crate::cli::http::{Client, encode};

/// Send messages to other nodes, and receive those that came
#[derive(Args)]
pub(crate) struct MessageArguments {
    #[command(subcommand)]
    command: MessageCommand,
}

#[derive(Subcommand)]
enum MessageCommand {
    Send(SendArguments),
    Receive(ReceiveArguments),
}

/// Send a message
#[derive(Args)]
struct SendArguments {
    /// Wait for the reply and print it
    #[arg(short, long)]
    wait: bool,
    /// Seconds to wait for the reply
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// What the message is about
    #[arg(short, long)]
    topic: Option<String>,
    /// File with the message
    #[arg(long, value_name = "PATH", conflicts_with = "message")]
    msg_path: Option<PathBuf>,
    /// Id of the message that this one answers
    #[arg(long, value_name = "ID", conflicts_with_all = ["wait", "topic"])]
    reply_to: Option<String>,
    /// Print JSON, as is done anyway
    #[arg(long)]
    json: bool,
    /// Address or public key of the receiver
    destination: String,
    /// The message; without it and --msg-path, standard input
    message: Option<String>,
}

/// Wait for a message and print it
#[derive(Args)]
struct ReceiveArguments {
    /// Seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Only a message with this topic
    #[arg(short, long)]
    topic: Option<String>,
    /// File to write the message to
    #[arg(long, value_name = "PATH")]
    msg_path: Option<PathBuf>,
    /// Print the message alone
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print JSON, as is done anyway
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &MessageArguments, client: &Client) -> anyhow::Result<()> {
    match &arguments.command {
        MessageCommand::Send(arguments) => send(arguments, client),
        MessageCommand::Receive(arguments) => receive(arguments, client),
    }
}

fn send(arguments: &SendArguments, client: &Client) -> anyhow::Result<()> {
    let destination = if arguments.destination.parse::<Ipv6Addr>().is_ok() {
        json!({ "ip": arguments.destination })
    } else if arguments.destination.parse::<PublicKey>().is_ok() {
        json!({ "pk": arguments.destination })
    } else {
        bail!("{:?} is neither an address nor a public key", arguments.destination);
    };
    let mut body = json!({ "dst": destination, "payload": STANDARD.encode(payload(arguments)?) });
    if let Some(topic) = &arguments.topic {
        body["topic"] = STANDARD.encode(topic).into();
    }
    let wait = Duration::from_secs(if arguments.wait { arguments.timeout } else { 0 });
    let path = match &arguments.reply_to {
        Some(id) => format!("/messages/reply/{}", encode(id)),
        None if arguments.wait => format!("/messages?reply_timeout={}", arguments.timeout),
        None => "/messages".to_owned(),
    };
    let answer = client.ask("POST", &path, Some(&body), wait)?;
    if answer.status == 408 {
        bail!("no reply in {} s", arguments.timeout);
    }
    let answer = answer.check()?;
    if !answer.body.is_empty() {
        let shown: Value = serde_json::from_slice(&answer.body)?;
        println!("{}", serde_json::to_string_pretty(&shown)?);
    }
    Ok(())
}

fn payload(arguments: &SendArguments) -> anyhow::Result<Vec<u8>> {
    if let Some(message) = &arguments.message {
        return Ok(message.clone().into_bytes());
    }
    if let Some(path) = &arguments.msg_path {
        return std::fs::read(path).with_context(|| path.display().to_string());
    }
    let mut payload = Vec::new();
    std::io::stdin().read_to_end(&mut payload).context("standard input")?;
    Ok(payload)
}

fn receive(arguments: &ReceiveArguments, client: &Client) -> anyhow::Result<()> {
    let mut path = format!("/messages?timeout={}", arguments.timeout);
    if let Some(topic) = &arguments.topic {
        path.push_str(&format!("&topic={}", encode(&STANDARD.encode(topic))));
    }
    let wait = Duration::from_secs(arguments.timeout);
    let answer = client.ask("GET", &path, None, wait)?.check()?;
    if answer.status == 204 {
        bail!("no message in {} s", arguments.timeout);
    }
    let message: Value = serde_json::from_slice(&answer.body)?;
    let payload = message["payload"].as_str().context("the message has no payload")?;
    let payload = STANDARD.decode(payload)?;
    if let Some(path) = &arguments.msg_path {
        std::fs::write(path, payload).with_context(|| path.display().to_string())?;
    } else if arguments.raw {
        std::io::stdout().write_all(&payload)?;
    } else {
        println!("{}", serde_json::to_string_pretty(&message)?);
    }
    Ok(())
}
