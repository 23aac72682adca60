//! `guestio`: what a machine says and is told, carried between its VMM and its owner.
//!
//! ```text
//!   browser, `grid console` ◄──► guestio console ◄──► the VMM's socket      in the owner's network
//!   redis, websocket server ◄─── guestio logs    ◄─── the console's log     likewise
//! ```
//!
//! One process a machine or a log, started in the namespace of the machine's network by whoever starts
//! a node's programs, so that one user's terminals and servers are never another's trouble. Both sides
//! are hostile: who connects, who is connected to, and the guest. So each process closes its jail
//! ([`jail`]) before it hears the first of them, all that they can make it keep is bounded, and none of
//! them can hold up another: a guest's output is taken and dropped for whoever does not read it.
//!
//! It keeps nothing: when it ends it is started again, and begins with what the VMM or the log still
//! have.

#![forbid(unsafe_code)]

mod console;
mod jail;
mod logs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Carries what a machine says and is told
#[derive(Parser)]
#[command(name = "guestio", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Console(console::ConsoleArguments),
    Logs(logs::LogsArguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Console(arguments) => console::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
