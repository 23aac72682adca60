//! `guestio logs`: a machine's log, sent to a server of its owner's as it grows.
//!
//! ```text
//!   console.log, console.log.1 ──► Tail ──piece──► gzip ──► redis: PUBLISH channel
//!        (the one queue)            ▲ taken                 websocket: a binary message
//!                                   └──────────────────────────┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`tail`] | following a file that is rotated |
//! | [`target`] | where to, as a URL, and what must not be reached by it |
//! | [`names`] | names to addresses, by the servers that the network's machines ask |
//! | [`sink`] | connections |
//!
//! Each piece is compressed by itself with gzip and sent once; a log begins with its last 8 KiB. Receivers of
//! existing nodes' logs expect both (`tailstream -o URL LOG`). A piece is taken from the log when
//! the server has it: what a server does not take in time waits in the log, whose size is bounded, and what
//! is rotated away meanwhile is said to be missing. A server that fails is tried again, after a pause that
//! doubles up to a minute.
//!
//! The URL may hold a password, so it comes in a file, and is in no argument and no message.

mod names;
mod sink;
mod tail;
mod target;

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;

use sink::{Sink, SinkError};
use tail::Tail;
use target::Target;

/// How long to wait before a log that has not grown is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Pauses after a server failed.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A server that worked for so long has not failed at once.
const STEADY: Duration = Duration::from_secs(30);
/// A connection on which nothing was sent is tried after so long.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of a configuration.
const CONFIG_SIZE_MAX: u64 = 64 << 10;
/// Most name servers.
const NAME_SERVER_COUNT_MAX: usize = 8;

/// Send a machine's log somewhere
#[derive(Args)]
pub(crate) struct LogsArguments {
    /// A JSON file: `log`, the log's path; `output`, where to; `name_servers`, addresses
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only look whether logs can be sent there, as far as the file says
    #[arg(long)]
    check: bool,
}

/// What the file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The log. All of its folder can be read by this process.
    log: PathBuf,
    /// `redis://…`, `ws://…` or `wss://…`; secret.
    output: String,
    /// Who knows names, as seen from here.
    #[serde(default)]
    name_servers: Vec<IpAddr>,
}

impl Config {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::open(path)?;
        ensure!(
            file.metadata()?.len() <= CONFIG_SIZE_MAX,
            "it has more than {CONFIG_SIZE_MAX} bytes"
        );
        // What is wrong with it may be part of a secret.
        let config = serde_json::from_reader(io::BufReader::new(file));
        let config: Self = config.map_err(|error| {
            anyhow::anyhow!("line {}, column {}: not as expected", error.line(), error.column())
        })?;
        let count = config.name_servers.len();
        ensure!(count <= NAME_SERVER_COUNT_MAX, "{count} name servers, at most 8 are asked");
        Ok(config)
    }
}

pub(crate) fn run(arguments: &LogsArguments) -> anyhow::Result<()> {
    let shown = || arguments.config.display().to_string();
    let Config { log, output, name_servers } =
        Config::read(&arguments.config).with_context(shown)?;
    let target = Target::parse(&output)?;
    if arguments.check {
        return Ok(());
    }
    drop(output);
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else {
        anyhow::bail!("{}: {} is no file", shown(), log.display());
    };
    let tls = sink::tls()?;
    crate::jail::close(folder).context("the jail can't be closed")?;
    let tail = Tail::new(Path::new("/").join(name));
    let connect = || Sink::connect(&target, &name_servers, &tls);
    Sender { tail, connect, sink: None, pause: PAUSE_MIN }.run()
}

/// The loop from the log to the server.
struct Sender<F> {
    tail: Tail,
    connect: F,
    sink: Option<Live>,
    pause: Duration,
}

/// A connection that works.
struct Live {
    sink: Sink,
    since: Instant,
    used: Instant,
}

impl<F: Fn() -> Result<Sink, SinkError>> Sender<F> {
    /// Ends when the log's folder is no more.
    fn run(mut self) -> anyhow::Result<()> {
        loop {
            let pause = self.turn()?;
            std::thread::sleep(pause);
        }
    }

    /// Sends one piece, if there is one, and says how long to wait.
    fn turn(&mut self) -> anyhow::Result<Duration> {
        let piece = self.tail.read().context("the log")?;
        let now = Instant::now();
        let is_idle = |live: &Live| now.duration_since(live.used) >= IDLE_TIME_MAX;
        if piece.is_empty() && !self.sink.as_ref().is_some_and(is_idle) {
            return Ok(LOOK_INTERVAL);
        }
        match self.pass_on(&piece, now) {
            Ok(()) => {
                self.tail.taken();
                Ok(if piece.is_empty() { LOOK_INTERVAL } else { Duration::ZERO })
            }
            Err(error) => {
                let was_steady =
                    self.sink.take().is_some_and(|live| live.since.elapsed() >= STEADY);
                if was_steady {
                    self.pause = PAUSE_MIN;
                }
                let pause = self.pause;
                self.pause = (pause * 2).min(PAUSE_MAX);
                eprintln!("the log is not taken: {error}; again in {} s", pause.as_secs());
                Ok(pause)
            }
        }
    }

    fn pass_on(&mut self, piece: &[u8], now: Instant) -> Result<(), SinkError> {
        if self.sink.is_none() {
            self.sink = Some(Live { sink: (self.connect)()?, since: now, used: now });
        }
        let Some(live) = &mut self.sink else { return Ok(()) };
        if piece.is_empty() {
            live.sink.ask()?;
        } else {
            live.sink.send(&compressed(piece)?)?;
        }
        live.used = now;
        if live.since.elapsed() >= STEADY {
            self.pause = PAUSE_MIN;
        }
        Ok(())
    }
}

fn compressed(piece: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(piece)?;
    encoder.finish()
}

#[cfg(test)]
mod tests;
