//! `zdb`: the server, and what people need around it.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use zdb_server::config::Settings;

/// Serve namespaces of keys and values over the Redis protocol, durably
///
/// Without a subcommand it serves, with the flags of the existing 0-db and some more.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  zdb --data /srv/zdb/data --index /srv/zdb/index
  zdb --protect --admin SECRET --socket /run/zdb.sock --dualnet --metrics-listen 127.0.0.1:9910
  zdb client NSLIST
  zdb backup default default.zdb
  zdb backup --socket /run/zdb.sock default default.zdb
  zdb key --socket /run/zdb.sock --passphrase-file secret.txt private

Signals: SIGTERM and SIGINT end it well: what was acknowledged is durable anyway, the rest is written.
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again."
)]
struct Arguments {
    /// File with settings, in TOML: the flags' names without dashes in front; flags override it
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Show the settings that result, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Client(cli::client::ClientArguments),
    Key(cli::key::KeyArguments),
    Backup(cli::backup::BackupArguments),
    Restore(cli::backup::RestoreArguments),
    Verify(cli::backup::VerifyArguments),
    Import(cli::import::ImportArguments),
    Follow(cli::follow::FollowArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        None => serve(arguments),
        Some(Command::Client(arguments)) => cli::client::run(arguments),
        Some(Command::Key(arguments)) => cli::key::run(arguments),
        Some(Command::Backup(arguments)) => cli::backup::backup(arguments),
        Some(Command::Restore(arguments)) => cli::backup::restore(arguments),
        Some(Command::Verify(arguments)) => cli::backup::verify(arguments),
        Some(Command::Import(arguments)) => cli::import::run(arguments),
        Some(Command::Follow(arguments)) => cli::follow::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::exit::report(&error),
    }
}

fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let settings = match &arguments.config {
        Some(path) => arguments.settings.or(Settings::read(path)?),
        None => arguments.settings,
    };
    if arguments.print_config {
        settings.check()?;
        print!("{}", settings.to_toml()?);
        return Ok(());
    }
    cli::serve::run(&settings)
}
