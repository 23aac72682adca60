//! `cargo xtask`: house rules that no lint knows.
//!
//! `tidy` reads the source as text and as syntax, without compiling it, and prints one line for each
//! broken rule. It takes a second or two, so it runs on each push and by hand as often as one likes.

mod source;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// House rules that no lint knows
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check module stories, the crate graph, function lengths and dead files
    Tidy,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { command: Command::Tidy } = Arguments::parse();
    // This crate stands at ci/xtask.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let broken = tidy::check(&root)?;
    for line in &broken {
        println!("{line}");
    }
    println!("tidy: {} rules broken", broken.len());
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
