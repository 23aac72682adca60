//! The `supervise` command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use supervise::{Config, Supervisor};

/// Starts a node's programs, keeps them running, and outlives who asked for them
///
/// Serves requests, lines of JSON, on a unix socket that only its own user may use. Its programs end with
/// it.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  supervise --socket /run/supervise.sock
  supervise --socket /run/supervise.sock --cgroup /sys/fs/cgroup/zos
  echo '{\"do\":\"list\"}' | socat - UNIX-CONNECT:/run/supervise.sock

Signals: SIGTERM and SIGINT end all programs, then it."
)]
struct Arguments {
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Folder of a cgroup (version 2) of its own, for limits and for sure ends
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

#[expect(
    unsafe_code,
    reason = "nothing but the first lines of a process may close what it inherited"
)]
fn main() -> ExitCode {
    // SAFETY: these are the process's first lines: there is one thread, and nothing has been opened.
    let closed = unsafe { supervise::supervisor::close_inherited() };
    match closed.context("inherited descriptors").and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("supervise: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let Arguments { socket, cgroup } = Arguments::parse();
    let supervisor = Supervisor::bind(&Config { socket: socket.clone(), cgroup })?;
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    tracing::info!(socket = %socket.display(), "serving");
    Ok(supervisor.run()?)
}
