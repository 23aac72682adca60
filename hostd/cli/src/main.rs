//! `grid`: what a deployer types.
//!
//! | command | what |
//! |---|---|
//! | `login` | who you are, and on which grid |
//! | `node`, `farm` | what there is |
//! | `deploy` | makes things as flags or a file say, and changes what differs |
//! | `update` | changes one thing about something that is there |
//! | `ls`, `show`, `logs`, `wait` | what became of them |
//! | `console` | a terminal on a machine |
//! | `start`, `stop`, `restart` | a machine's power |
//! | `cancel` | ends contracts, and with them what they paid for |
//!
//! Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2
//! wrong usage, 3 not found, 4 refused by the chain or a node, 75 try again.

#![forbid(unsafe_code)]

mod apply;
mod build;
mod choose;
mod console;
mod exit;
mod login;
mod look;
mod machine;
mod plan;
mod proxy;
mod session;
mod size;
mod terminal;
mod update;
mod yaml;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use exit::Usage;
use machine::Switch;
use plan::{DiskPlan, NetworkPlan, Plan, VmPlan, VolumePlan, ZdbPlan};
use session::{Login, Session};

/// What is made by flags alone belongs to this project.
const DEFAULT_PROJECT: &str = "default";

/// Reserve and run things on the grid
#[derive(Parser)]
#[command(name = "grid", version)]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Login(login::LoginArguments),
    /// Nodes
    #[command(subcommand)]
    Node(look::NodeCommand),
    /// Farms
    #[command(subcommand)]
    Farm(look::FarmCommand),
    Deploy(DeployArguments),
    Update(update::UpdateArguments),
    Ls(look::ListArguments),
    Show(look::ContractArguments),
    /// What happened to a deployment, in order
    Logs(look::ContractArguments),
    /// Wait until a deployment has settled
    Wait(look::ContractArguments),
    Console(console::ConsoleArguments),
    /// Start a machine that was stopped
    Start(machine::MachineArguments),
    /// Stop a machine. It stays reserved and paid for, and stays stopped when its node starts again
    Stop(machine::MachineArguments),
    /// Stop a machine, and start it
    Restart(machine::MachineArguments),
    Cancel(CancelArguments),
}

/// Make things as flags or a file say, and change what differs
#[derive(clap::Args)]
struct DeployArguments {
    /// The file; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long, global = true)]
    dry_run: bool,
    /// Choose nodes of this farm, by name or number, for what names none
    #[arg(long, global = true, value_name = "FARM")]
    farm: Option<String>,
    #[command(subcommand)]
    what: Option<DeployWhat>,
}

#[derive(Subcommand)]
enum DeployWhat {
    /// A private network
    Network(NetworkPlan),
    /// A virtual machine
    Vm {
        #[command(flatten)]
        vm: Box<VmPlan>,
        /// Environment; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        env: Vec<String>,
        /// A disk; may be repeated
        #[arg(long, value_name = "NAME:SIZE:PATH")]
        disk: Vec<String>,
        /// A volume, which is a folder of the node; may be repeated
        #[arg(long, value_name = "NAME:SIZE:PATH")]
        volume: Vec<String>,
    },
    /// A namespace of keys and values
    Zdb {
        #[command(flatten)]
        zdb: ZdbPlan,
        /// File with what clients authenticate with; a random password if absent
        #[arg(long, value_name = "PATH")]
        password_file: Option<PathBuf>,
    },
    /// A volume
    Volume(VolumePlan),
}

/// End contracts, and with them everything that they paid for
#[derive(clap::Args)]
struct CancelArguments {
    /// Numbers of contracts
    #[arg(required = true)]
    contracts: Vec<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { json, command } = Arguments::parse();
    match run(command, json).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            exit::code(&error)
        }
    }
}

async fn run(command: Command, json: bool) -> anyhow::Result<()> {
    if let Command::Login(arguments) = command {
        return login::run(arguments, json).await;
    }
    let session = Session::open(&Login::read()?).await?;
    match command {
        Command::Login(_) => Ok(()),
        Command::Node(command) => look::node(&session, command, json).await,
        Command::Farm(command) => look::farm(&session, command, json).await,
        Command::Deploy(arguments) => deploy(&session, arguments, json).await,
        Command::Update(arguments) => update::run(&session, arguments, json).await,
        Command::Ls(arguments) => look::list(&session, arguments, json).await,
        Command::Show(arguments) => look::show(&session, arguments, json).await,
        Command::Logs(arguments) => look::logs(&session, arguments, json).await,
        Command::Wait(arguments) => look::wait(&session, arguments).await,
        Command::Console(arguments) => console::run(&session, arguments, json).await,
        Command::Start(arguments) => machine::switch(&session, arguments, Switch::Start).await,
        Command::Stop(arguments) => machine::switch(&session, arguments, Switch::Stop).await,
        Command::Restart(arguments) => machine::switch(&session, arguments, Switch::Restart).await,
        Command::Cancel(arguments) => {
            session.chain.cancel_contracts(&arguments.contracts).await?;
            eprintln!("cancelled; nodes take down what the contracts paid for");
            Ok(())
        }
    }
}

async fn deploy(session: &Session, arguments: DeployArguments, json: bool) -> anyhow::Result<()> {
    let DeployArguments { file, dry_run, farm, what } = arguments;
    let plan = match (file, what) {
        (Some(path), None) => {
            let shown = path.display().to_string();
            let parsed = Plan::parse(&read(&path)?);
            parsed.map_err(|error| Usage(format!("{shown}: {error:#}")))?
        }
        (None, Some(what)) => what.plan()?,
        _ => {
            let text = "name a file with -f, or what to deploy: see `grid deploy --help`";
            return Err(Usage(text.to_owned()).into());
        }
    };
    let farm = match farm {
        Some(farm) => Some(look::farm_id(session, &farm).await?),
        None => None,
    };
    let items = choose::place(session, plan, farm).await?.items();
    let items = items.map_err(|error| Usage(format!("{error:#}")))?;
    let outcomes = apply::apply(session, items, dry_run).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
        return Ok(());
    }
    for outcome in outcomes {
        let contract = outcome.contract_id.map(|id| format!(", contract {id}")).unwrap_or_default();
        let changed = match outcome.workloads.is_empty() {
            true => String::new(),
            false => format!(" ({})", outcome.workloads.join(", ")),
        };
        let action = apply::told(outcome.action, dry_run);
        let (kind, name) = (outcome.kind, outcome.name);
        println!("{action}: {kind} {name} on node {}{contract}{changed}", outcome.node);
    }
    Ok(())
}

/// Reads a file, or standard input, up to the size of a plan.
fn read(path: &std::path::Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let limit = yaml::TEXT_SIZE_MAX as u64 + 1;
    if path.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_string(&mut text)?;
    } else {
        let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        file.take(limit).read_to_string(&mut text).with_context(|| path.display().to_string())?;
    }
    Ok(text)
}

/// Reads a file with a password.
fn read_password(path: &std::path::Path) -> anyhow::Result<String> {
    let password = read(path)?.trim_end_matches(['\r', '\n']).to_owned();
    ensure!(!password.is_empty(), "{} is empty", path.display());
    Ok(password)
}

impl DeployWhat {
    /// The plan that says the same.
    fn plan(self) -> anyhow::Result<Plan> {
        let project = DEFAULT_PROJECT.to_owned();
        let (networks, vms, zdbs, volumes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let nothing = Plan { project, networks, vms, zdbs, volumes };
        Ok(match self {
            Self::Network(network) => Plan { networks: vec![network], ..nothing },
            Self::Vm { mut vm, env, disk, volume } => {
                for pair in env {
                    let (key, value) = pair.split_once('=').context("--env takes KEY=VALUE")?;
                    vm.env.insert(key.to_owned(), value.to_owned());
                }
                for text in disk {
                    vm.disks.push(parse_disk("--disk", &text)?);
                }
                for text in volume {
                    vm.volumes.push(parse_disk("--volume", &text)?);
                }
                Plan { vms: vec![*vm], ..nothing }
            }
            Self::Zdb { mut zdb, password_file } => {
                zdb.password = password_file.as_deref().map(read_password).transpose()?;
                Plan { zdbs: vec![zdb], ..nothing }
            }
            Self::Volume(volume) => Plan { volumes: vec![volume], ..nothing },
        })
    }
}

fn parse_disk(flag: &str, text: &str) -> anyhow::Result<DiskPlan> {
    let mut parts = text.splitn(3, ':');
    let (name, size, mount) = (parts.next(), parts.next(), parts.next());
    let (Some(name), Some(size), Some(mount)) = (name, size, mount) else {
        anyhow::bail!("{flag} takes NAME:SIZE:PATH, not {text:?}");
    };
    let size = size.parse().map_err(anyhow::Error::msg)?;
    Ok(DiskPlan { name: name.to_owned(), size, mount: mount.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn disks_are_read() {
        let disk = parse_disk("--disk", "data:10G:/srv/a:b").unwrap();
        assert_eq!((&*disk.name, disk.size.0, &*disk.mount), ("data", 10 << 30, "/srv/a:b"));
        let error = parse_disk("--volume", "data:10G").unwrap_err().to_string();
        assert!(error.starts_with("--volume takes"), "{error}");
    }
}
