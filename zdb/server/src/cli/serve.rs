//! Serving: from settings to the loop.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::filter::LevelFilter;
use zdb_engine::storage::Disk;
use zdb_engine::{Engine, Options};
use zdb_server::announce_crashes;
use zdb_server::config::{Config, Settings};
use zdb_server::core::Core;
use zdb_server::event_loop::{Listener, Server};

/// Tells a process that it is the one in the background.
const BACKGROUND: &str = "ZDB_BACKGROUND";

/// Serves until a signal.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut config = settings.check()?;
    let is_background = std::env::var_os(BACKGROUND).is_some();
    if settings.background && !is_background {
        return start_in_background();
    }
    if is_background {
        // Leading a session already is as good.
        let _ = rustix::process::setsid();
    }
    start_log(settings)?;
    let (stop, signals) = UnixStream::pair().context("socket pair")?;
    for signal in [SIGTERM, SIGINT] {
        let stop = stop.try_clone()?;
        signal_hook::low_level::pipe::register(signal, stop).context("signal handler")?;
    }
    // Folders first: a second server must not take clients from the first.
    let options = Options { defers: true, ..config.engine.clone() };
    let engine = Engine::open(Arc::new(Disk), options).context("the server's folders")?;
    // Then sockets: clients can connect while namespaces are loaded, and wait.
    let listeners: Vec<Listener> =
        config.addresses.iter().map(Listener::bind).collect::<Result<_, _>>()?;
    let metrics = bind_metrics(&config)?;
    if let Some(address) = listeners.first().and_then(Listener::tcp_address) {
        config.policy.instance = format!("tcp://{address}");
    }
    if let Some(hook) = &config.policy.hook {
        announce_crashes(hook.clone(), config.policy.instance.clone());
    }
    let mut core = Core::open(engine, config.policy)?;
    core.announce_start()?;
    let server = Server::new(core, listeners, metrics, signals).context("the event loop")?;
    for address in &config.addresses {
        tracing::info!(%address, "serving");
    }
    if is_background {
        // Whoever started us waits for this line.
        println!("serving");
        std::io::stdout().flush()?;
    }
    server.run().context("the event loop")?;
    tracing::info!("ended well");
    Ok(())
}

fn bind_metrics(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = config.metrics else { return Ok(None) };
    let listener = TcpListener::bind(address)
        .with_context(|| format!("--metrics-listen {address}: cannot listen"))?;
    Ok(Some(listener))
}

/// Logs to a file or standard error.
fn start_log(settings: &Settings) -> anyhow::Result<()> {
    let level = if settings.verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let log = tracing_subscriber::fmt().with_max_level(level);
    match &settings.logfile {
        Some(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file.with_context(|| format!("--logfile {}", path.display()))?;
            log.with_ansi(false).with_writer(Arc::new(file)).init();
        }
        None => {
            // https://no-color.org: any value but an empty one.
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let is_colored = std::io::stderr().is_terminal() && !no_color;
            log.with_ansi(is_colored).with_writer(std::io::stderr).init();
        }
    }
    Ok(())
}

/// Starts another process with the same arguments, and returns when it serves.
fn start_in_background() -> anyhow::Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the process in the background")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    anyhow::ensure!(line.trim_end() == "serving", "the process in the background did not start");
    println!("{}", child.id());
    Ok(())
}
