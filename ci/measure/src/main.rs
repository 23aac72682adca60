//! What `ci/bench` runs: each part of the house against its peers, on one machine, in one run.
//!
//! Seconds lie on shared machines, so there are two kinds of rows. *Timed* rows are ratios between
//! runs that alternate (A B A B); the table shows them beside their goal and nothing fails when one
//! is missed. *Counted* rows (bytes, memory, system calls, instructions) repeat, have hard limits,
//! and `--check` runs only those and exits 1 when one is missed.

mod disk;
mod flist;
mod grid;
mod mycelium;
mod node;
mod process;
mod table;
mod vmm;
mod zdb;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measure a part of the house against its peers
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Packing, mounting and reading flist images, against squashfs and erofs
    Flist {
        /// Only counted limits; exit 1 when one is missed
        #[arg(long)]
        check: bool,
        /// Rounds of every timed row
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,
    },
    /// Serving keys and values, against Redis
    Zdb {
        /// Only counted limits; exit 1 when one is missed
        #[arg(long)]
        check: bool,
        /// Rounds of every timed row
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,
    },
    /// Carrying packets between nodes, against userspace WireGuard
    Mycelium {
        /// Only counted limits; exit 1 when one is missed
        #[arg(long)]
        check: bool,
        /// Rounds of every timed row
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,
    },
    /// A grid on one machine: its chain, its relay, and what clients of both cost
    Grid {
        /// Only counted limits; exit 1 when one is missed
        #[arg(long)]
        check: bool,
    },
    /// A node with machines that sleep: what deploying costs, and what it costs to be there
    Node {
        /// Only counted limits; exit 1 when one is missed
        #[arg(long)]
        check: bool,
    },
    /// Booting a VM, against QEMU's microvm, in instructions
    Vmm {
        /// Only counted limits of ours; exit 1 when one is missed
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let (check, table) = match Arguments::parse().part {
        Part::Flist { check: true, .. } => (true, flist::counted()?),
        Part::Flist { check: false, rounds } => (false, flist::timed(rounds)?),
        Part::Zdb { check: true, .. } => (true, zdb::counted()?),
        Part::Zdb { check: false, rounds } => (false, zdb::timed(rounds)?),
        Part::Mycelium { check: true, .. } => (true, mycelium::counted()?),
        Part::Mycelium { check: false, rounds } => (false, mycelium::timed(rounds)?),
        Part::Grid { check: true } => (true, grid::counted()?),
        Part::Grid { check: false } => (false, grid::timed()?),
        Part::Node { check: true } => (true, node::counted()?),
        Part::Node { check: false } => (false, node::timed()?),
        Part::Vmm { check: true } => (true, vmm::counted()?),
        Part::Vmm { check: false } => (false, vmm::compared()?),
    };
    table.print();
    Ok(if check && table.has_missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
