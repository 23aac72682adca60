//! The `hostd` command: a node of the grid on this machine.
//!
//! | command | what |
//! |---|---|
//! | `run` | the node itself |
//! | `check` | whether a configuration is one, and what comes of it |
//! | `status` | how the node that runs here is |
//! | `disks` | what the machine's disks are to the node |
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2
//! wrong usage.

#![forbid(unsafe_code)]

mod disks;
mod look;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use hostd_daemon::Config;
use hostd_daemon::network::load_file;
use hostd_grid::run_mode::RunMode;

/// Where the configuration is if nothing is said.
const CONFIG: &str = "/etc/hostd/hostd.toml";

/// A node of the grid on this machine
#[derive(Parser)]
#[command(name = "hostd", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node, until SIGTERM or Ctrl-C
    Run(Overrides),
    /// Say whether a configuration is one, and what comes of it
    Check {
        /// The file
        #[arg(default_value = CONFIG)]
        config: PathBuf,
    },
    Status(look::StatusArguments),
    Disks(disks::DisksArguments),
}

/// What flags say of the configuration
#[derive(Args)]
struct Overrides {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// The folder of everything that must survive
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Path or address of network.json, or dev, qa, test, prod
    #[arg(long, value_name = "PATH|URL|MODE")]
    network: Option<String>,
    /// The farm's number
    #[arg(long, value_name = "NUMBER")]
    farm: Option<u32>,
    /// The socket that tells how the node is
    #[arg(long, value_name = "PATH")]
    status: Option<PathBuf>,
}

impl Overrides {
    /// The configuration: flags override the file, and the file what is usual.
    fn config(self) -> anyhow::Result<Config> {
        let mut config = Config::read(&self.config)?;
        if let Some(state) = self.state {
            config.state = state;
        }
        if let Some(network) = self.network {
            config.network = network;
        }
        if let Some(farm) = self.farm {
            config.farm = farm;
        }
        config.status = self.status.or(config.status);
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let done = match Arguments::parse().command {
        Command::Run(overrides) => overrides.config().and_then(run::run),
        Command::Check { config } => check(config),
        Command::Status(arguments) => look::status(arguments),
        Command::Disks(arguments) => disks::disks(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads everything that a start would read, and changes nothing.
fn check(path: PathBuf) -> anyhow::Result<()> {
    let nothing = Overrides { config: path, state: None, network: None, farm: None, status: None };
    let config = nothing.config()?;
    let is_url = config.network.starts_with("http://") || config.network.starts_with("https://");
    if !is_url && RunMode::of_name(&config.network).is_none() {
        load_file(config.network.as_ref()).context("network")?;
    }
    let _: hostd_exec::machine::Config = config.machine.clone().try_into().context("[machine]")?;
    print!("{}", toml::to_string(&config)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
