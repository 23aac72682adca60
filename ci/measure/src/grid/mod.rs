//! A grid on one machine, and what its clients cost.
//!
//! devgrid is measured as a program; what needs a client in its language is measured by an example of the
//! crate in question, which prints a line a figure: a name, a tab, a value.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Daemon, raise_descriptor_limit};
use crate::table::{Goal, Row, Table};

/// Blocks of history.
const BLOCKS: &str = "10000";
/// Sessions that do nothing, where so many may be open: each has two ends here.
const SESSION_COUNT: usize = 10_000;
/// What each may take: 200 MiB are for ten thousand.
const SESSION_KIB_MAX: f64 = 200.0 * 1024.0 / 10_000.0;

/// What repeats: memory.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let mut table = Table::default();
    let mut grid = Grid::new()?;
    grid.client(&mut table, |what| what.contains("MiB"))?;
    grid.history(&mut table, false)?;
    relay(&mut table, &["--idle"])?;
    Ok(table)
}

/// All rows.
pub(crate) fn timed() -> anyhow::Result<Table> {
    let mut table = Table::default();
    let mut grid = Grid::new()?;
    grid.transactions(&mut table)?;
    grid.client(&mut table, |_| true)?;
    grid.history(&mut table, true)?;
    relay(&mut table, &[])?;
    verify(&mut table)?;
    Ok(table)
}

/// A devgrid with a folder of its own.
struct Grid {
    daemon: Daemon,
    dir: TempDir,
}

impl Grid {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        Ok(Self { daemon: start(dir.path())?, dir })
    }

    fn network(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.dir.path().join("network.json"))?)?)
    }

    fn url(&self, key: &str) -> anyhow::Result<String> {
        let network = self.network()?;
        Ok(network[key][0].as_str().with_context(|| format!("no {key}"))?.to_owned())
    }

    /// Transactions of accounts that have made none yet: the first thing to do on a new chain.
    fn transactions(&self, table: &mut Table) -> anyhow::Result<()> {
        let chain = self.url("substrate_urls")?;
        let address = chain.trim_start_matches("ws://").trim_end_matches('/');
        let network = self.network()?;
        let genesis = network["genesis_hash"].as_str().context("no genesis_hash")?;
        figures(table, "transactions", &[address, genesis], |what| match what {
            "transactions accepted a second" => Some(Goal::AtLeast(1000.0)),
            _ => Some(Goal::None),
        })
    }

    /// A client of the chain, of which some rows are wanted.
    fn client(&self, table: &mut Table, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let (chain, activation) = (self.url("substrate_urls")?, self.url("activation_urls")?);
        figures(table, "idle", &[&chain, &activation], |what| {
            let goal = match what {
                "a signed call, finalized, p50: ms" => Goal::AtMost(50.0),
                "hostd's share of subxt: MiB" => Goal::AtMost(60.0),
                _ => Goal::None,
            };
            is_wanted(what).then_some(goal)
        })
    }

    /// Many blocks, and a start on top of them.
    fn history(&mut self, table: &mut Table, is_timed: bool) -> anyhow::Result<()> {
        let dir = self.dir.path().to_owned();
        let begin = Instant::now();
        let arguments = ["fast-forward", "--blocks", BLOCKS, "--dir"];
        output(Command::new("devgrid").args(arguments).arg(&dir))?;
        let made = begin.elapsed().as_secs_f64();
        self.daemon.stop();
        let begin = Instant::now();
        self.daemon = start(&dir)?;
        let started = begin.elapsed().as_secs_f64();
        if is_timed {
            push(table, &format!("devgrid: making {BLOCKS} blocks, s"), made, Goal::None);
            let what = format!("devgrid: cold start with {BLOCKS} blocks, s");
            push(table, &what, started, Goal::AtMost(1.0));
        }
        let memory = self.daemon.memory_mib()?;
        push(table, &format!("devgrid with {BLOCKS} blocks: MiB"), memory, Goal::AtMost(100.0));
        Ok(())
    }
}

/// Starts devgrid, and waits until it says where everything is.
fn start(dir: &Path) -> anyhow::Result<Daemon> {
    let network = dir.join("network.json");
    let _ = std::fs::remove_file(&network);
    let dir = dir.to_str().context("a folder's name")?;
    let words = ["devgrid", "up", "--port", "0", "--block-time-ms", "0", "--dir", dir];
    Daemon::start(&words, || network.exists())
}

/// What the relay carries and holds.
fn relay(table: &mut Table, more: &[&str]) -> anyhow::Result<()> {
    let count = SESSION_COUNT.min(raise_descriptor_limit() / 2).to_string();
    let arguments = [&["--sessions", count.as_str()], more].concat();
    figures(table, "throughput", &arguments, |what| match what {
        "one way, 100 B: messages/s" => Some(Goal::AtLeast(20_000.0)),
        "one way, 64 KiB: MiB/s" => Some(Goal::AtLeast(200.0)),
        "round trip, 1000 a second, p99: ms" => Some(Goal::AtMost(5.0)),
        "idle session: KiB" => Some(Goal::AtMost(SESSION_KIB_MAX)),
        _ if what.contains("warm-up") => None,
        _ => Some(Goal::None),
    })
}

/// Believing a deployment: each line has a name, and its third column is the time of all of it.
fn verify(table: &mut Table) -> anyhow::Result<()> {
    let text = output(&mut Command::new("verify"))?;
    for line in text.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        let &[name, _, all, ..] = &*columns else { bail!("not a line of figures: {line:?}") };
        let what = format!("verify a deployment, {name}: us");
        push(table, &what, all.parse()?, Goal::AtMost(200.0));
    }
    Ok(())
}

/// Runs an example, and pushes the rows that have a goal, or none but are wanted.
fn figures(
    table: &mut Table,
    example: &str,
    arguments: &[&str],
    goal: impl Fn(&str) -> Option<Goal>,
) -> anyhow::Result<()> {
    let text = output(Command::new(example).args(arguments))?;
    for line in text.lines() {
        let (what, value) = line.split_once('\t').with_context(|| format!("{example}: {line}"))?;
        if let Some(goal) = goal(what) {
            push(table, what, value.parse()?, goal);
        }
    }
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| shown.clone())?;
    if !output.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn push(table: &mut Table, what: &str, ours: f64, goal: Goal) {
    table.push(Row { what: what.to_owned(), ours, peer: None, goal });
}
