//! `hostd run`: the node itself, until it is told to end.

use std::sync::Arc;

use anyhow::Context as _;
use hostd_daemon::{Config, Daemon};
use hostd_exec::machine::{self, Machine};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// Runs a node as the configuration says. What it started on this machine goes on when it ends.
pub(crate) fn run(mut config: Config) -> anyhow::Result<()> {
    let settings: machine::Config =
        config.machine.clone().try_into().context("[machine] of the configuration")?;
    // Before the runtime, since it waits for other programs.
    let machine = Machine::open(settings).context("this machine")?;
    // Who this node is must survive each of its disks.
    config.seed_mirrors.extend(machine.pool_folders());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let [terminated, interrupted] = &mut ends;
        let daemon = Daemon::start(config, Arc::new(machine)).await?;
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        info!("ending; what runs on this machine goes on");
        daemon.stop().await;
        Ok(())
    })
}
