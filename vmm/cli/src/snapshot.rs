//! `vmm snapshot`: save a VM to a directory, whole or not at all.

use std::fs::{DirBuilder, File};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use vmm_spec::api::SnapshotRequest;
use vmm_spec::restore::{MEMORY_FILE, STATE_FILE};

use crate::client::Client;

/// Save a VM to a directory, from which `vmm restore` starts
///
/// The VM is paused meanwhile. The directory appears when the snapshot is complete and on disk; its files
/// are made here and handed over, so the VM needs no right to make them. Its disks are not part of it.
#[derive(Args)]
#[command(after_help = "Example:\n  vmm snapshot /run/vm/a.sock /srv/snapshots/a")]
pub(crate) struct SnapshotArguments {
    /// The VM's API socket
    socket: PathBuf,
    /// A directory that does not exist yet
    directory: PathBuf,
}

pub(crate) fn run(arguments: &SnapshotArguments) -> anyhow::Result<()> {
    let directory = std::path::absolute(&arguments.directory)?;
    let named = || directory.display().to_string();
    if directory.symlink_metadata().is_ok() {
        bail!("{}: it is there already", directory.display());
    }
    let partial = directory.with_added_extension("partial");
    DirBuilder::new()
        .mode(0o700)
        .create(&partial)
        .with_context(|| partial.display().to_string())?;
    let saved = save(&arguments.socket, &directory, &partial);
    if saved.is_err() {
        // What is left of it is of no use to anybody.
        let _ = std::fs::remove_dir_all(&partial);
    }
    saved?;
    std::fs::rename(&partial, &directory).with_context(named)?;
    let parent = directory.parent().unwrap_or_else(|| Path::new("/"));
    File::open(parent).and_then(|parent| parent.sync_all()).with_context(named)
}

fn save(socket: &Path, directory: &Path, partial: &Path) -> anyhow::Result<()> {
    let create = |name: &str| {
        let path = partial.join(name);
        let created = File::options().read(true).write(true).create_new(true).open(&path);
        created.with_context(|| path.display().to_string())
    };
    let (state, memory) = (create(STATE_FILE)?, create(MEMORY_FILE)?);
    let request = SnapshotRequest { path: directory.to_owned() };
    // It takes as long as the memory takes.
    let client = Client::new(socket).with_timeout(None);
    client.send("PUT", "/snapshot", &request, &[state.as_fd(), memory.as_fd()])?;
    for file in [&state, &memory] {
        file.sync_all().context("the snapshot's files")?;
    }
    File::open(partial).and_then(|folder| folder.sync_all()).context("the snapshot's directory")
}
