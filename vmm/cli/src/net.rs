//! `vmm net`: plug network cards in and out.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vmm_machine::vm;
use vmm_spec::NetSpec;
use vmm_spec::api::VmInfo;

use crate::client::{Client, device_path};
use crate::exit::Usage;
use crate::{disk, output};

/// Plug a VM's network cards in and out
#[derive(Args)]
pub(crate) struct NetArguments {
    #[command(subcommand)]
    command: NetCommand,
}

#[derive(Subcommand)]
enum NetCommand {
    /// Plug a network card in, and print its id
    ///
    /// The tap is opened here and handed over, so the VM needs no right to open it. With fd=, that are
    /// descriptors of its queues that this command inherits, and tap= is the name that the VM shows.
    #[command(after_help = "Example:\n  vmm net add /run/vm/a.sock tap1,mac=52:54:00:12:34:56")]
    Add {
        /// The VM's API socket
        socket: PathBuf,
        /// As for `vmm run --net`: `TAP[,mac=][,queues=][,mtu=][,rate=][,id=][,fd=]`
        #[arg(value_name = "TAP[,OPTIONS]")]
        net: String,
    },
    /// Unplug a network card, and wait until the guest has let go of it
    Remove {
        /// The VM's API socket
        socket: PathBuf,
        /// The card's id; `vmm status` lists them
        id: String,
        /// Ask the guest, and don't wait
        #[arg(long)]
        no_wait: bool,
    },
}

pub(crate) fn run(arguments: &NetArguments) -> anyhow::Result<()> {
    match &arguments.command {
        NetCommand::Add { socket, net } => add(socket, net),
        NetCommand::Remove { socket, id, no_wait } => {
            let is_it = |net: &NetSpec| net.id.as_ref() == Some(id);
            let gone = |info: &VmInfo| !info.spec.nets.iter().any(is_it);
            disk::remove(socket, &device_path("nets", id)?, *no_wait, gone)
        }
    }
}

fn add(socket: &Path, options: &str) -> anyhow::Result<()> {
    let mut net = NetSpec::parse("NET", options)?;
    let fds = std::mem::take(&mut net.fds);
    if net.tap.is_none() {
        return Err(Usage("NET tap=… is missing: the name that the VM shows".to_owned()).into());
    }
    let own: Vec<OwnedFd> = match &net.tap {
        Some(tap) if fds.is_empty() => vm::open_tap(tap, net.queues)?,
        _ => fds.into_iter().map(inherited).collect::<Result<_, _>>()?,
    };
    let descriptors: Vec<_> = own.iter().map(AsFd::as_fd).collect();
    let id = Client::new(socket).add("/nets", &net, &descriptors)?;
    Ok(output::print(&format!("{}\n", output::clean(&id)))?)
}

/// A descriptor that whoever started us left open.
fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty()).context("our own process")?;
    pidfd_getfd(&ourselves, number, PidfdGetfdFlags::empty())
        .with_context(|| format!("fd={number}"))
}
