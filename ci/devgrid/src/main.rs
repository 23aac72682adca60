//! A whole grid on one machine, in one command: `devgrid up`.
//!
//! ```text
//!  devgrid up ──┬─ chain     127.0.0.1:9944   JSON-RPC        devchain ──┐ blocks, events
//!               ├─ relay     127.0.0.1:9945   websocket       rmb-relay  │
//!               └─ services  127.0.0.1:9946   HTTP                       ▼
//!                    grid proxy, /graphql ◄──────────────────── feed ─► index ◄─ census ◄─ nodes
//!                    /activation/activate  /kyc  /geoip  /hub  /admin
//! ```
//!
//! Everything is kept in one directory and goes on where it was when it is started again. `up` writes
//! `network.json` there, in the shape of the grid's own environment file; nodes, the `grid` command and
//! tests read it. The other subcommands find a running grid by it, and talk to its `/admin`.

#![forbid(unsafe_code)]

mod admin;
mod browser;
mod census;
mod client;
mod feed;
mod graphql;
mod grid;
mod index;
mod rest;
mod services;
mod tls;
mod twins;
mod up;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

/// Blocks that a running grid is asked for at a time.
const STEP_BLOCKS: u32 = 600;

/// A whole grid on one machine: chain, relay, proxy and all services.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a grid until it is interrupted.
    Up(up::Options),
    /// Say what a running grid has.
    Status(Place),
    /// Begin again at block 0, with the grid still running.
    Reset(Place),
    /// Give an account TFT.
    Fund {
        #[command(flatten)]
        place: Place,
        /// The account, in SS58.
        account: String,
        /// How many TFT, with up to seven decimals.
        tft: String,
    },
    /// Let time pass on the chain, with all bills that fall due.
    FastForward {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        distance: Distance,
    },
}

/// Which grid.
#[derive(Args)]
struct Place {
    /// The directory of the grid.
    #[arg(long, default_value = "devgrid")]
    dir: PathBuf,
}

/// How far, one way or the other.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Distance {
    /// Blocks of six seconds.
    #[arg(long)]
    blocks: Option<u32>,
    /// Seconds of the chain's time.
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("devgrid: no threads can be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(Cli::parse().command));
    // What still runs in the background has nothing to finish: blocks are durable when they are made.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devgrid: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    let answer = match command {
        Command::Up(options) => return up::up(options).await,
        Command::Status(Place { dir }) => client::get(&dir, "/admin/status").await?,
        Command::Reset(Place { dir }) => client::post(&dir, "/admin/reset", &json!({})).await?,
        Command::Fund { place, account, tft } => {
            let body = json!({ "account": account, "tft": tft });
            client::post(&place.dir, "/admin/fund", &body).await?
        }
        Command::FastForward { place, distance } => fast_forward(&place.dir, &distance).await?,
    };
    println!("{answer:#}");
    Ok(())
}

/// Asks for some blocks after others, so that whoever waits sees how far it is.
async fn fast_forward(dir: &Path, distance: &Distance) -> anyhow::Result<Value> {
    let total = match (distance.blocks, distance.seconds) {
        (Some(blocks), _) => blocks,
        (None, seconds) => {
            let blocks = seconds.unwrap_or(0).div_ceil(admin::BLOCK_S);
            u32::try_from(blocks).context("more blocks than a chain has")?
        }
    };
    let is_shown = std::io::stderr().is_terminal();
    let mut made = 0;
    loop {
        let blocks = STEP_BLOCKS.min(total - made);
        let answer = client::post(dir, "/admin/fast-forward", &json!({ "blocks": blocks })).await?;
        made += blocks;
        if is_shown && total > STEP_BLOCKS {
            let end = if made == total { "\n" } else { "" };
            eprint!("\r{made} of {total} blocks{end}");
        }
        if made == total {
            return Ok(answer);
        }
    }
}
