//! `grid console`: a terminal on a machine's console, from wherever its owner is.
//!
//! ```text
//!   grid ──zos.vm.console──► node: addresses, and a ticket that is good for a minute
//!     └──── websocket, over mycelium or in the machine's own network ────► the console
//! ```
//!
//! The address on mycelium is tried first, for which this computer must be part of mycelium; then the
//! private one, which works from inside the machine's network. Mycelium encrypts what passes.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use crate::machine::{MachineArguments, find};
use crate::session::Session;
use crate::terminal;

/// How long an address may take to answer.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Most addresses that are tried.
const ADDRESS_COUNT_MAX: usize = 4;

/// A machine's console
///
/// Every key goes to the machine, but Ctrl-]: Ctrl-] d leaves, Ctrl-] Ctrl-] sends one Ctrl-]. Others may
/// look and type at the same time. With standard input from a pipe, all of it goes to the machine, and
/// what the machine says is printed until the connection ends.
///
/// The console is in the machine's own network. From anywhere else it is reached over mycelium, which must
/// run on this computer.
#[derive(Args)]
pub(crate) struct ConsoleArguments {
    #[command(flatten)]
    machine: MachineArguments,
    /// Print the address of a page with the console, for a browser. It is good for one minute and one
    /// connection
    #[arg(long)]
    url: bool,
}

/// What a node says of a console.
#[derive(Deserialize)]
struct Console {
    addresses: Vec<SocketAddr>,
    ticket: String,
}

pub(crate) async fn run(
    session: &Session,
    arguments: ConsoleArguments,
    json: bool,
) -> anyhow::Result<()> {
    let bus = session.bus().await?;
    let found = find(session, &bus, &arguments.machine).await?;
    let node = found.node;
    let answer = bus.ask(node, "zos.vm.console", &found.question()).await?;
    let console: Console = serde_json::from_slice(&answer)
        .map_err(|_| anyhow::anyhow!("node {node} says nothing that makes sense of its console"))?;
    anyhow::ensure!(
        console.ticket.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "node {node} gives a ticket that is none"
    );
    if arguments.url || json {
        let ticket = &console.ticket;
        let urls =
            console.addresses.iter().map(|address| format!("http://{address}/?ticket={ticket}"));
        let urls: Vec<_> = urls.collect();
        match json {
            true => println!("{}", serde_json::to_string_pretty(&json!({"urls": urls}))?),
            false => urls.iter().for_each(|url| println!("{url}")),
        }
        return Ok(());
    }
    // All of it waits for descriptors, and for nothing else.
    tokio::task::spawn_blocking(move || attend(&console)).await?
}

fn attend(console: &Console) -> anyhow::Result<()> {
    let signals = terminal::signals()?;
    let socket = connect(console)?;
    terminal::run(socket, &signals)
}

/// Connects to the first address that answers.
fn connect(console: &Console) -> anyhow::Result<terminal::Socket> {
    let mut reasons = Vec::new();
    for address in console.addresses.iter().take(ADDRESS_COUNT_MAX) {
        match open(*address, &console.ticket) {
            Ok(socket) => return Ok(socket),
            Err(error) => reasons.push(format!("{address}: {error:#}")),
        }
    }
    let reasons = reasons.join("; ");
    anyhow::bail!(
        "the console can't be reached ({reasons}): run mycelium on this computer, or this command on one \
         in the machine's network"
    )
}

fn open(address: SocketAddr, ticket: &str) -> anyhow::Result<terminal::Socket> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIME_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CONNECT_TIME_MAX))?;
    let url = format!("ws://{address}/ws?ticket={ticket}");
    let config = Some(terminal::config());
    // What goes wrong with a handshake could show the ticket.
    let shaken = tungstenite::client::client_with_config(url, stream, config);
    let (socket, _) = shaken.map_err(|error| match error {
        tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer)) => {
            anyhow::anyhow!("it answers {}", answer.status())
        }
        _ => anyhow::anyhow!("whoever listens there serves no console"),
    })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_address_that_serves_a_console_is_taken_and_the_others_explained() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut asked = String::new();
            #[expect(clippy::result_large_err, reason = "the library's own type")]
            let note = |request: &tungstenite::handshake::server::Request, answer| {
                asked = request.uri().to_string();
                Ok(answer)
            };
            tungstenite::accept_hdr(listener.accept().unwrap().0, note).unwrap();
            asked
        });
        let console = Console { addresses: vec![nobody, good], ticket: "abc123".to_owned() };
        connect(&console).unwrap();
        assert_eq!(serving.join().unwrap(), "/ws?ticket=abc123");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mute = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let console = Console { addresses: vec![nobody, mute], ticket: "abc123".to_owned() };
        let error = connect(&console).err().unwrap().to_string();
        serving.join().unwrap();
        assert!(error.contains(&format!("{nobody}: ")) && error.contains("mycelium"), "{error}");
        assert!(error.contains("serves no console") && !error.contains("abc123"), "{error}");
    }
}
