//! The `vmm` command: runs one virtual machine, and talks to running ones.
//!
//! `vmm run` and `vmm restore` become the machine; everything else is a client of the socket that a
//! running one listens on, or looks at this host.

#![forbid(unsafe_code)]

mod balloon;
mod check;
mod client;
mod console;
mod control;
mod disk;
mod exit;
mod net;
mod output;
mod ps;
mod restore;
mod run;
mod snapshot;
mod start;
mod status;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

/// Run micro-VMs, one process each, and control running ones
///
/// A VM that was started with `--api-socket PATH` listens there; the commands that control it take that
/// PATH. Results are printed on standard output, everything else on standard error.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  vmm check                                       can this host run VMs?
  vmm run --kernel vmlinux --initramfs init.cpio --console stdio
  vmm run --kernel vmlinux --memory 1G --disk root.img --api-socket /run/vm/a.sock
  vmm ps /run/vm
  vmm console /run/vm/a.sock

Exit codes:
  0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again
  run and restore: 0 the guest is off, 10 reset refused, 11 crashed, 12 heartbeat stopped,
  13 a forbidden system call

Environment:
  VMM_LOG   what is logged on standard error: error, warn (the default), info, debug, trace
  NO_COLOR  if set, nothing is coloured";

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it lives as long as the process")]
enum Command {
    Run(run::RunArguments),
    Restore(restore::RestoreArguments),
    Check(check::CheckArguments),
    Ps(ps::PsArguments),
    Status(status::StatusArguments),
    Console(console::ConsoleArguments),
    Pause(control::PauseArguments),
    Resume(control::ResumeArguments),
    Shutdown(control::ShutdownArguments),
    Reboot(control::RebootArguments),
    Stop(control::StopArguments),
    Balloon(balloon::BalloonArguments),
    Disk(disk::DiskArguments),
    Net(net::NetArguments),
    Snapshot(snapshot::SnapshotArguments),
    Metrics(control::MetricsArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    match run(&arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let becomes_vm = matches!(arguments.command, Command::Run(_) | Command::Restore(_));
            exit::report(&error, becomes_vm)
        }
    }
}

/// Does what is asked, and says with which code to end.
fn run(command: &Command) -> anyhow::Result<u8> {
    match command {
        Command::Run(arguments) => return run::run(arguments),
        Command::Restore(arguments) => return restore::run(arguments),
        Command::Check(arguments) => return check::run(arguments),
        Command::Ps(arguments) => ps::run(arguments)?,
        Command::Status(arguments) => status::run(arguments)?,
        Command::Console(arguments) => console::run(arguments)?,
        Command::Pause(arguments) => control::pause(arguments)?,
        Command::Resume(arguments) => control::resume(arguments)?,
        Command::Shutdown(arguments) => control::shutdown(arguments)?,
        Command::Reboot(arguments) => control::reboot(arguments)?,
        Command::Stop(arguments) => control::stop(arguments)?,
        Command::Balloon(arguments) => balloon::run(arguments)?,
        Command::Disk(arguments) => disk::run(arguments)?,
        Command::Net(arguments) => net::run(arguments)?,
        Command::Snapshot(arguments) => snapshot::run(arguments)?,
        Command::Metrics(arguments) => control::metrics(arguments)?,
    }
    Ok(0)
}

fn start_log() {
    let given = std::env::var("VMM_LOG").ok();
    let level = given.as_deref().map(str::parse::<LevelFilter>);
    let level_or_default = level.clone().and_then(Result::ok).unwrap_or(LevelFilter::WARN);
    tracing_subscriber::fmt()
        .with_max_level(level_or_default)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && output::colour_is_wanted())
        .init();
    if let (Some(Err(_)), Some(given)) = (level, given) {
        tracing::warn!(given, "VMM_LOG is none of off, error, warn, info, debug, trace");
    }
}
