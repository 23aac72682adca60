//! `vmm snapshot`: save a VM to a directory, whole or not at all.

use std::fs::{DirBuilder, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use vmm_spec::api::{SnapshotRequest, SnapshotThen, State, VmInfo};
use vmm_spec::restore::{MEMORY_FILE, STATE_FILE};

use crate::client::Client;

/// Save a VM to a directory, from which `vmm restore` starts
///
/// The VM is paused meanwhile. The directory appears when the snapshot is complete and on disk, and not at
/// all if that fails; the VM is then as before. Its files are made here and handed over, so the VM needs no
/// right to make them. They hold all that the guest has in memory, its secrets too: only you can read them.
///
/// The VM's disks are not part of it, and change as soon as it goes on. With `--then pause` there is time to
/// copy them before `vmm resume`; with `--then stop` the VM ends, and nothing changes any more.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct SnapshotArguments {
    /// The VM's API socket
    socket: PathBuf,
    /// A directory that does not exist yet
    directory: PathBuf,
    /// What becomes of the VM when the snapshot is complete
    #[arg(long, value_enum, value_name = "WHAT", default_value = "continue")]
    then: Then,
}

const AFTER_HELP: &str = "\
Examples:
  vmm snapshot /run/vm/a.sock /srv/snapshots/a
  vmm snapshot /run/vm/a.sock /srv/snapshots/a --then stop && vmm restore /srv/snapshots/a";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    /// It goes on, unless it was paused before
    Continue,
    /// It stays paused
    Pause,
    /// It ends
    Stop,
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
    // It takes as long as the memory takes.
    let client = Client::new(&arguments.socket).with_timeout(None);
    let then = arguments.then;
    let saved = was_paused(&client, then).and_then(|was_paused| {
        let published = save(&client, then, &directory, &partial)
            .and_then(|()| publish(&partial, &directory).with_context(named));
        if published.is_err() && then != Then::Continue && !was_paused {
            // As before, if it stands at all.
            let _ = client.put("/vm/resume");
        }
        published
    });
    if saved.is_err() {
        // What is left of it is of no use to anybody.
        let _ = std::fs::remove_dir_all(&partial);
    }
    saved?;
    if then == Then::Stop {
        client.put("/vm/stop")?;
    }
    Ok(())
}

/// Whether the VM was paused before; only asked where it matters.
fn was_paused(client: &Client, then: Then) -> anyhow::Result<bool> {
    Ok(then != Then::Continue && client.get::<VmInfo>("/vm")?.state == State::Paused)
}

/// Gives the directory its name, for good.
fn publish(partial: &Path, directory: &Path) -> std::io::Result<()> {
    std::fs::rename(partial, directory)?;
    let parent = directory.parent().unwrap_or_else(|| Path::new("/"));
    File::open(parent).and_then(|parent| parent.sync_all())
}

/// Lets the VM fill two new files. One that is to end stays paused until they are where they belong.
fn save(client: &Client, then: Then, directory: &Path, partial: &Path) -> anyhow::Result<()> {
    let create = |name: &str| {
        let path = partial.join(name);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).with_context(|| path.display().to_string())
    };
    let (state, memory) = (create(STATE_FILE)?, create(MEMORY_FILE)?);
    let then = match then {
        Then::Continue => SnapshotThen::Continue,
        Then::Pause | Then::Stop => SnapshotThen::Pause,
    };
    let request = SnapshotRequest { path: directory.to_owned(), then };
    client.send("PUT", "/snapshot", &request, &[state.as_fd(), memory.as_fd()])?;
    for file in [&state, &memory] {
        file.sync_all().context("the snapshot's files")?;
    }
    File::open(partial).and_then(|folder| folder.sync_all()).context("the snapshot's directory")
}
