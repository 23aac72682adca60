//! `flist`: pack, unpack, mount, convert, verify and serve flist images.

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Pack, unpack, mount, convert, verify and serve flist images
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Boot(cli::boot::BootArguments),
    Cached(cli::cached::CachedArguments),
    Clone(cli::clone::CloneArguments),
    Fetch(cli::fetch::FetchArguments),
    FromOci(cli::from_oci::FromOciArguments),
    Index(cli::index::IndexArguments),
    Inspect(cli::inspect::InspectArguments),
    Mount(cli::mount::MountArguments),
    Pack(cli::pack::PackArguments),
    Push(cli::push::PushArguments),
    Unpack(cli::unpack::UnpackArguments),
    Verify(cli::verify::VerifyArguments),
    WriteDisk(cli::write_disk::WriteDiskArguments),
}

fn main() -> ExitCode {
    cli::allocator::tune();
    let filter = EnvFilter::try_from_env("FLIST_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // https://no-color.org: any value but an empty one.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::exit::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Boot(arguments) => cli::boot::run(&arguments),
        Command::Cached(arguments) => cli::cached::run(&arguments),
        Command::Clone(arguments) => cli::clone::run(&arguments),
        Command::Fetch(arguments) => cli::fetch::run(&arguments),
        Command::FromOci(arguments) => cli::from_oci::run(&arguments),
        Command::Index(arguments) => cli::index::run(&arguments),
        Command::Inspect(arguments) => cli::inspect::run(&arguments),
        Command::Mount(arguments) => cli::mount::run(&arguments),
        Command::Pack(arguments) => cli::pack::run(&arguments),
        Command::Push(arguments) => cli::push::run(&arguments),
        Command::Unpack(arguments) => cli::unpack::run(&arguments),
        Command::Verify(arguments) => cli::verify::run(&arguments),
        Command::WriteDisk(arguments) => cli::write_disk::run(&arguments),
    }
}
