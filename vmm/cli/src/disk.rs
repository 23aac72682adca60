//! `vmm disk`: plug disks in and out, and make them larger.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use rustix::fs::OFlags;
use vmm_spec::api::{DiskResize, VmInfo};
use vmm_spec::{DiskSpec, Size};

use crate::client::{Client, ClientError, device_path};
use crate::output;

/// How long a guest may take to let go of a device.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);
const REMOVE_INTERVAL: Duration = Duration::from_millis(50);

/// Plug a VM's disks in and out, and make them larger
#[derive(Args)]
pub(crate) struct DiskArguments {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Subcommand)]
enum DiskCommand {
    /// Plug a disk in, and print its id
    ///
    /// The file is opened here and handed over, so the VM needs no right to open it.
    #[command(after_help = "Example:\n  vmm disk add /run/vm/a.sock data.img,readonly,id=data")]
    Add {
        /// The VM's API socket
        socket: PathBuf,
        /// As for `vmm run --disk`: `PATH[,readonly][,serial=][,rate=][,direct][,queues=][,id=]`
        #[arg(value_name = "PATH[,OPTIONS]")]
        disk: String,
    },
    /// Unplug a disk, and wait until the guest has let go of it
    Remove {
        /// The VM's API socket
        socket: PathBuf,
        /// The disk's id; `vmm status` lists them
        id: String,
        /// Ask the guest, and don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Tell the guest that a disk is larger
    Resize {
        /// The VM's API socket
        socket: PathBuf,
        /// The disk's id; `vmm status` lists them
        id: String,
        /// Make the file this large; without it, its size is taken as it is by now
        size: Option<Size>,
    },
}

pub(crate) fn run(arguments: &DiskArguments) -> anyhow::Result<()> {
    match &arguments.command {
        DiskCommand::Add { socket, disk } => add(socket, disk),
        DiskCommand::Remove { socket, id, no_wait } => {
            let is_it = |disk: &DiskSpec| disk.id.as_ref() == Some(id);
            let gone = |info: &VmInfo| !info.spec.disks.iter().any(is_it);
            remove(socket, &device_path("disks", id)?, *no_wait, gone)
        }
        DiskCommand::Resize { socket, id, size } => {
            let path = device_path("disks", id)?;
            Client::new(socket).send("PUT", &path, &DiskResize { size: *size }, &[])?;
            Ok(())
        }
    }
}

fn add(socket: &Path, options: &str) -> anyhow::Result<()> {
    let mut disk = DiskSpec::parse("DISK", options)?;
    let file = open(&disk)?;
    // What is written down must mean the same to whoever reads it elsewhere.
    disk.path = std::path::absolute(&disk.path)?;
    let id = Client::new(socket).add("/disks", &disk, &[file.as_fd()])?;
    Ok(output::print(&format!("{}\n", output::clean(&id)))?)
}

fn open(disk: &DiskSpec) -> anyhow::Result<File> {
    let direct = if disk.direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = i32::try_from(direct.bits()).context("O_DIRECT")?;
    let file =
        OpenOptions::new().read(true).write(!disk.readonly).custom_flags(flags).open(&disk.path);
    file.with_context(|| disk.path.display().to_string())
}

/// Asks for a device's removal, and waits until it is `gone`.
pub(crate) fn remove(
    socket: &Path,
    path: &str,
    no_wait: bool,
    gone: impl Fn(&VmInfo) -> bool,
) -> anyhow::Result<()> {
    let client = Client::new(socket);
    client.remove(path)?;
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    while !no_wait && !gone(&client.info()?) {
        if Instant::now() >= deadline {
            return Err(ClientError::Silent(socket.to_owned()))
                .context("the guest was asked, and has not let go of it");
        }
        std::thread::sleep(REMOVE_INTERVAL);
    }
    Ok(())
}
