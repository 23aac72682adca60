//! The `mycelium` program: a node, and what people need around it.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cli::http::{Client, default_address};
use mycelium_node::config::Settings;

/// Join the Mycelium overlay: an IPv6 network between nodes, encrypted end to end
///
/// Without a subcommand it runs a node until SIGTERM or SIGINT; SIGHUP reads the configuration's
/// peers again.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  mycelium --peers tcp://192.0.2.1:9651
  mycelium --key-file node.key --tun-name my0 --peers tcp://192.0.2.1:9651 tcp://[2001:db8::1]:9651
  mycelium inspect --json --key-file node.key
  mycelium status
  mycelium message send 4a2:3c81:: 'hello'

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again."
)]
struct Arguments {
    /// File with settings, in TOML: the flags' names with _ for -; flags override it
    ///
    /// Default: $HOME/.config/mycelium/mycelium.toml
    #[arg(short = 'c', long, value_name = "PATH")]
    config_file: Option<PathBuf>,
    /// Show the settings that result, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    log: cli::log::LogArguments,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Inspect(cli::keys::InspectArguments),
    GenerateKeys(cli::keys::GenerateArguments),
    Status(cli::node::StatusArguments),
    Peers(cli::node::PeersArguments),
    Routes(cli::node::RoutesArguments),
    Stats(cli::node::StatsArguments),
    Message(cli::message::MessageArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let client = Client(arguments.settings.api_addr.unwrap_or_else(default_address));
    let result = match &arguments.command {
        None => serve(arguments),
        Some(Command::Status(status)) => cli::node::status(status, client),
        Some(Command::Peers(peers)) => cli::node::peers(peers, client),
        Some(Command::Routes(routes)) => cli::node::routes(routes, client),
        Some(Command::Stats(stats)) => cli::node::stats(stats, client),
        Some(Command::Message(message)) => cli::message::run(message, client),
        Some(Command::Inspect(inspect)) => cli::keys::inspect(inspect, &arguments.settings),
        Some(Command::GenerateKeys(generate)) => cli::keys::generate(generate, &arguments.settings),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::exit::report(&error),
    }
}

fn serve(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.print_config {
        let file = Settings::read_file(arguments.config_file.as_deref())?;
        let settings = arguments.settings.or(file);
        settings.check()?;
        print!("{}", toml::to_string(&settings)?);
        return Ok(());
    }
    cli::log::start(&arguments.log);
    mycelium_node::daemon::run(arguments.settings, arguments.config_file)
}
