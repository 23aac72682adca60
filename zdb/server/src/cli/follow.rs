//! `zdb follow`: keeps a copy of namespaces on another server.
//!
//! ```text
//!  source ──REPL name after──> writes, as they become durable ──> REPL APPLY ──> copy
//!     ▲                                                                           │
//!     └──────────────────────────── REPL ACK ◄── durable there ◄──────────────────┘
//! ```
//!
//! It holds no state: what the copy has is asked of the copy. Whatever breaks, it connects again and
//! goes on where the copy is. The copy's namespace is locked, so that its clients only read.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use zdb_client::{Client, Endpoint, Timeouts, Value};

use super::server_address::{ServerAddress, read_password};

/// Writes that are applied at once.
const BATCH_COUNT_MAX: usize = 64;
/// How long a quiet source is listened to before it is told what the copy has.
const QUIET: Duration = Duration::from_secs(1);
/// Pause before connecting again.
const PAUSE: Duration = Duration::from_secs(2);

/// Keep a read-only copy of a namespace on another server, write by write
#[derive(Args)]
pub(crate) struct FollowArguments {
    #[command(flatten)]
    source: ServerAddress,
    /// Host and port of the server with the copy
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// File with that server's administrator's password
    #[arg(long, value_name = "PATH")]
    to_admin_file: Option<std::path::PathBuf>,
    /// End when the copy has all that the source has now
    #[arg(long)]
    once: bool,
    /// The namespace, of the same name on both
    name: String,
}

/// Follows until it is stopped; or, with `--once`, until nothing is missing.
pub(crate) fn run(arguments: &FollowArguments) -> anyhow::Result<()> {
    loop {
        match follow(arguments) {
            Ok(()) => return Ok(()),
            Err(error) if arguments.once => return Err(error),
            Err(error) => {
                let is_final = error
                    .downcast_ref::<zdb_client::ClientError>()
                    .is_some_and(zdb_client::ClientError::is_refusal);
                if is_final {
                    return Err(error);
                }
                eprintln!("zdb: {error:#}; trying again");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn follow(arguments: &FollowArguments) -> anyhow::Result<()> {
    let name = arguments.name.as_bytes();
    let mut source = arguments.source.connect()?;
    let mut copy = connect_copy(arguments)?;
    prepare(&mut copy, name)?;
    let mut has = newest(&mut copy, name)?;
    let goal = newest(&mut source, name)?;
    source.call(&[b"REPL", name, has.to_string().as_bytes()])?;
    loop {
        if arguments.once && has >= goal {
            println!("{}: the copy has {has} of {goal}", arguments.name);
            return Ok(());
        }
        let Some(first) = source.next_push(QUIET)? else {
            source.tell(&[b"REPL", b"ACK", has.to_string().as_bytes()])?;
            continue;
        };
        let mut batch = Vec::new();
        let mut upto = take(first, name, &mut batch)?;
        while batch.len() < BATCH_COUNT_MAX && source.has_push() {
            let Some(next) = source.next_push(QUIET)? else { break };
            upto = take(next, name, &mut batch)?;
        }
        copy.call_batch(&batch).context("the copy")?;
        has = upto;
        source.tell(&[b"REPL", b"ACK", has.to_string().as_bytes()])?;
    }
}

fn connect_copy(arguments: &FollowArguments) -> anyhow::Result<Client> {
    let (host, port) = arguments.to.rsplit_once(':').context("--to: HOST:PORT")?;
    let port = port.parse().context("--to: HOST:PORT")?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut client = Client::connect(&Endpoint::Tcp(host, port), &Timeouts::default())?;
    if let Some(path) = &arguments.to_admin_file {
        client.auth_secure(&read_password(path)?)?;
    }
    Ok(client)
}

/// Makes the copy's namespace if there is none, and locks it.
fn prepare(copy: &mut Client, name: &[u8]) -> anyhow::Result<()> {
    let names = copy.call(&[b"NSLIST"])?;
    let Value::Array(names) = names else { bail!("the copy's NSLIST is no list") };
    if !names.contains(&Value::Bulk(name.to_vec())) {
        copy.call(&[b"NSNEW", name])?;
    }
    copy.call(&[b"NSSET", name, b"lock", b"1"])?;
    Ok(())
}

fn newest(client: &mut Client, name: &[u8]) -> anyhow::Result<i64> {
    match client.call(&[b"REPL", name])? {
        Value::Integer(number) => Ok(number),
        other => bail!("the number of the newest write is {other:?}"),
    }
}

/// Turns what the source sent into a command for the copy; gives its number.
fn take(push: Value, name: &[u8], batch: &mut Vec<Vec<Vec<u8>>>) -> anyhow::Result<i64> {
    let Value::Array(fields) = push else { bail!("the source sent {push:?}, no write") };
    let Some(Value::Integer(seq)) = fields.first() else { bail!("a write without a number") };
    let seq = *seq;
    if fields.get(1) == Some(&Value::Bulk(b"AT".to_vec())) {
        return Ok(seq);
    }
    let mut words = vec![b"REPL".to_vec(), b"APPLY".to_vec(), name.to_vec()];
    for field in fields {
        words.push(match field {
            Value::Integer(number) => number.to_string().into_bytes(),
            Value::Bulk(bytes) => bytes,
            other => bail!("a write with {other:?} in it"),
        });
    }
    batch.push(words);
    Ok(seq)
}
