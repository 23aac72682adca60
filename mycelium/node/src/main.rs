//! The `mycelium` program: a node, and what people need around it.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cli::http::{Client, Target};
use mycelium_node::config::{ConfigError, Settings};

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
  mycelium --instances instances.toml
  mycelium inspect --json --key-file node.key
  mycelium status --watch
  mycelium ping 4a2:3c81::
  mycelium doctor
  mycelium message send 4a2:3c81:: 'hello'

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again."
)]
struct Arguments {
    /// File with settings, in TOML: the flags' names with _ for -; flags override it
    ///
    /// Default: $HOME/.config/mycelium/mycelium.toml
    #[arg(short = 'c', long, value_name = "PATH", global = true)]
    config_file: Option<PathBuf>,
    /// Run several nodes in this process, those of a TOML file: see `mycelium instances --help`
    #[arg(long, value_name = "FILE", conflicts_with = "config_file")]
    instances: Option<PathBuf>,
    /// Show the settings that result, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    log: cli::log::LogArguments,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Inspect(cli::keys::InspectArguments),
    GenerateKeys(cli::keys::GenerateArguments),
    Status(cli::status::StatusArguments),
    Ping(cli::ping::PingArguments),
    Doctor(cli::doctor::DoctorArguments),
    Peers(cli::node::PeersArguments),
    Routes(cli::node::RoutesArguments),
    Stats(cli::node::StatsArguments),
    Message(cli::message::MessageArguments),
    Instances(cli::instances::InstancesArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = &arguments.settings;
    let client = &Client::of_node(&arguments.target, settings.api_addr);
    let result = match &arguments.command {
        None => serve(arguments),
        Some(Command::Status(status)) => cli::status::run(status, client),
        Some(Command::Ping(ping)) => cli::ping::run(ping, client),
        Some(Command::Doctor(doctor)) => {
            cli::doctor::run(doctor, settings, arguments.config_file.as_deref(), client)
        }
        Some(Command::Peers(peers)) => cli::node::peers(peers, client),
        Some(Command::Routes(routes)) => cli::node::routes(routes, client),
        Some(Command::Stats(stats)) => cli::node::stats(stats, client),
        Some(Command::Message(message)) => cli::message::run(message, client),
        Some(Command::Instances(instances)) => {
            cli::instances::run(instances, &Client::of_process(&arguments.target))
        }
        Some(Command::Inspect(inspect)) => cli::keys::inspect(inspect, settings),
        Some(Command::GenerateKeys(generate)) => cli::keys::generate(generate, settings),
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
    if let Some(file) = arguments.instances {
        if arguments.settings != Settings::default() {
            return Err(ConfigError::FlagsWithInstances.into());
        }
        cli::log::start(&arguments.log);
        return mycelium_node::instances::run(&file, arguments.target.control_socket);
    }
    cli::log::start(&arguments.log);
    mycelium_node::daemon::run(arguments.settings, arguments.config_file)
}
