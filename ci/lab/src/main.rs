//! `lab`: one machine for one command, for people and scripts.

#![forbid(unsafe_code)]

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lab::{Flavour, Lab, LabError, Machine, Outcome, Output};

/// How often what a command writes is shown.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);
/// What a machine may take beside its command.
const AFTERWARDS: Duration = Duration::from_secs(600);
/// How long a machine lives in which somebody looks around.
const VISIT: Duration = Duration::from_secs(24 * 3600);

/// The farm lab: real kernels and nested KVM in QEMU.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this host offers
    Check,
    /// Boot a machine, run a command in it, and exit with its status
    Boot(BootArgs),
}

#[derive(Debug, Args)]
struct BootArgs {
    /// `cloud` boots faster, `full` has the drivers of real machines
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// Main memory in MiB
    #[arg(long, default_value_t = 512)]
    memory_mib: u32,
    /// CPUs; 2 unless told otherwise, or 1 with an emulated /dev/kvm
    #[arg(long)]
    cpus: Option<u32>,
    /// Count instructions: deterministic, one CPU; the count goes to stderr
    #[arg(long)]
    icount: bool,
    /// Make /dev/kvm work inside
    #[arg(long)]
    kvm: bool,
    /// A module to load; may be repeated
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A program of this host, with its libraries; may be repeated
    #[arg(long = "program", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// A file of this host and its place in the machine; may be repeated
    #[arg(long = "file", value_name = "SOURCE:PATH")]
    files: Vec<String>,
    /// A folder of this host and its place in the machine, with all files below; may be repeated
    #[arg(long = "folder", value_name = "SOURCE:PATH")]
    folders: Vec<String>,
    /// A blank disk of that many MiB; may be repeated
    #[arg(long = "disk", value_name = "MIB")]
    disks: Vec<u64>,
    /// The command's time limit in seconds
    #[arg(long, default_value_t = 60)]
    timeout_s: u64,
    /// Keep the logs
    #[arg(long)]
    keep_logs: bool,
    /// Show the console on stderr when the command has ended
    #[arg(long)]
    console: bool,
    /// When the command has succeeded, run this program in the machine with each line of standard input
    /// as its argument, until there are no more
    #[arg(long, value_name = "PROGRAM")]
    then: Option<String>,
    /// The command; `/init TOOL` is the agent's own tools, see `/init help`
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => Ok(check()),
        Command::Boot(args) => boot(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        if let Some(hint) = error.downcast_ref::<LabError>().and_then(LabError::hint) {
            eprintln!("hint: {hint}");
        }
        ExitCode::FAILURE
    })
}

fn check() -> ExitCode {
    for (name, found) in lab::host_report() {
        println!("{name:<20}{found}");
    }
    ExitCode::SUCCESS
}

fn boot(args: &BootArgs) -> Result<ExitCode> {
    let lab = Lab::new("boot")?;
    if args.keep_logs {
        lab.keep_logs();
    }
    let timeout = Duration::from_secs(args.timeout_s);
    let modules: Vec<&str> = args.modules.iter().map(String::as_str).collect();
    let mut machine = lab
        .machine("machine")
        .kernel(args.flavour)
        .memory_mib(args.memory_mib)
        .modules(&modules)
        .life(timeout.saturating_add(if args.then.is_some() { VISIT } else { AFTERWARDS }));
    if let Some(cpus) = args.cpus {
        machine = machine.cpus(cpus);
    }
    if args.icount {
        machine = machine.count_instructions();
    }
    if args.kvm {
        machine = machine.nested_kvm();
    }
    for program in &args.programs {
        machine = machine.program(program);
    }
    for file in &args.files {
        let (source, path) = source_and_path("--file", file)?;
        machine = machine.host_file(path, 0o755, source.as_ref());
    }
    for folder in &args.folders {
        let (source, path) = source_and_path("--folder", folder)?;
        machine = machine.host_folder(path, source.as_ref())?;
    }
    for (index, size_mib) in args.disks.iter().enumerate() {
        machine = machine.disk(&lab.disk(&format!("disk{index}"), *size_mib)?);
    }
    let machine = machine.boot()?;
    let argv: Vec<&str> = args.argv.iter().map(String::as_str).collect();
    let output = show(&machine, &argv, timeout)?;
    if args.console {
        eprintln!("{}", machine.console());
    }
    if args.icount {
        eprintln!("boot: {} instructions", machine.boot_tsc());
        eprintln!("command: {} instructions", output.instructions());
    }
    if let (Some(program), Outcome::Exited(0)) = (&args.then, output.outcome) {
        talk(&machine, program, timeout)?;
    }
    Ok(match output.outcome {
        Outcome::Exited(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Outcome::Killed(signal) => {
            eprintln!("lab: the command was killed by signal {signal}");
            ExitCode::FAILURE
        }
        Outcome::TimedOut => {
            eprintln!("lab: the command took longer than {} s", args.timeout_s);
            ExitCode::FAILURE
        }
    })
}

/// Runs a command, and shows what it writes as it comes.
fn show(machine: &Machine, argv: &[&str], timeout: Duration) -> Result<Output> {
    let running = machine.command(argv).timeout(timeout).spawn()?;
    loop {
        let is_over = running.has_ended(SHOW_INTERVAL)?;
        let (stdout, stderr) = running.take_output()?;
        std::io::stdout().write_all(&stdout)?;
        std::io::stdout().flush()?;
        std::io::stderr().write_all(&stderr)?;
        if is_over {
            return Ok(running.wait()?);
        }
    }
}

/// Runs a program with each line that somebody types.
fn talk(machine: &Machine, program: &str, timeout: Duration) -> Result<()> {
    let stdin = std::io::stdin();
    loop {
        if stdin.is_terminal() {
            eprint!("machine> ");
        }
        let mut line = String::new();
        if stdin.lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            // What it came to is seen; the next line may do better.
            show(machine, &[program, line.trim()], timeout)?;
        }
    }
}

fn source_and_path<'a>(flag: &str, value: &'a str) -> Result<(&'a str, &'a str)> {
    value.rsplit_once(':').with_context(|| format!("{flag} {value}: no SOURCE:PATH"))
}
