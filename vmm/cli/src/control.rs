//! The commands that have nothing to say but which VM: pause, resume, shutdown, reboot, stop,
//! metrics.

use std::path::PathBuf;

use clap::Args;

use crate::client::Client;
use crate::output;

/// Stop a VM's processors and devices, until `vmm resume`
#[derive(Args)]
pub(crate) struct PauseArguments {
    /// The VM's API socket
    socket: PathBuf,
}

/// Let a paused VM go on
#[derive(Args)]
pub(crate) struct ResumeArguments {
    /// The VM's API socket
    socket: PathBuf,
}

/// Press a VM's power button: the guest is asked to switch itself off
///
/// Returns at once. A guest that doesn't listen to its power button goes on; `vmm stop` ends it.
#[derive(Args)]
pub(crate) struct ShutdownArguments {
    /// The VM's API socket
    socket: PathBuf,
}

/// Press a VM's reset button: the guest is not asked
#[derive(Args)]
pub(crate) struct RebootArguments {
    /// The VM's API socket
    socket: PathBuf,
}

/// End a VM at once: the guest is not asked, and loses what it has not written
#[derive(Args)]
pub(crate) struct StopArguments {
    /// The VM's API socket
    socket: PathBuf,
}

/// Print a VM's metrics, in Prometheus' text format
#[derive(Args)]
pub(crate) struct MetricsArguments {
    /// The VM's API socket
    socket: PathBuf,
}

pub(crate) fn pause(arguments: &PauseArguments) -> anyhow::Result<()> {
    Ok(Client::new(&arguments.socket).put("/vm/pause")?)
}

pub(crate) fn resume(arguments: &ResumeArguments) -> anyhow::Result<()> {
    Ok(Client::new(&arguments.socket).put("/vm/resume")?)
}

pub(crate) fn shutdown(arguments: &ShutdownArguments) -> anyhow::Result<()> {
    Ok(Client::new(&arguments.socket).put("/vm/shutdown")?)
}

pub(crate) fn reboot(arguments: &RebootArguments) -> anyhow::Result<()> {
    Ok(Client::new(&arguments.socket).put("/vm/reboot")?)
}

pub(crate) fn stop(arguments: &StopArguments) -> anyhow::Result<()> {
    Ok(Client::new(&arguments.socket).put("/vm/stop")?)
}

pub(crate) fn metrics(arguments: &MetricsArguments) -> anyhow::Result<()> {
    Ok(output::print(&Client::new(&arguments.socket).get_text("/metrics")?)?)
}
