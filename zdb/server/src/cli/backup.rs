//! `zdb backup`, `zdb restore`, `zdb verify`: a namespace as one file.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use zdb_engine::backup::{self, Summary};
use zdb_engine::{Name, Namespace};

use super::folders::{Folders, parse_name};
use super::snapshot::Snapshot;

/// Bytes read or written at once.
const BUFFER_SIZE: usize = 1024 * 1024;

/// Write a namespace, with its properties and history, to one file
///
/// Encrypted namespaces are written decrypted: keep the file where only you can read it. With --socket,
/// the server that runs there makes an instant snapshot, which is read while it goes on serving; without,
/// no server may run on the folders.
#[derive(Args)]
pub(crate) struct BackupArguments {
    #[command(flatten)]
    folders: Folders,
    /// Unix socket of a running server, whose folders are taken instead of --data and --index
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// File with that server's administrator's password
    #[arg(long, value_name = "PATH", requires = "socket")]
    admin_file: Option<PathBuf>,
    /// The namespace
    #[arg(value_parser = parse_name)]
    name: Name,
    /// The file; it appears when it is complete
    file: PathBuf,
}

/// Make a namespace of a backup
#[derive(Args)]
pub(crate) struct RestoreArguments {
    #[command(flatten)]
    folders: Folders,
    /// The new namespace's name
    #[arg(value_parser = parse_name)]
    name: Name,
    /// The backup
    file: PathBuf,
}

/// Check a backup, or the namespaces of a server that is not running
#[derive(Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    folders: Folders,
    /// The backup; without one, all namespaces in the folders
    file: Option<PathBuf>,
}

/// Writes the backup beside its place and renames it when it is durable.
pub(crate) fn backup(arguments: &BackupArguments) -> anyhow::Result<()> {
    let admin = arguments.admin_file.as_deref();
    // Lives longer than what reads it.
    let snapshot = match &arguments.socket {
        Some(socket) => Some(Snapshot::take(socket, admin, &arguments.name)?),
        None => None,
    };
    let opened = match &snapshot {
        Some(snapshot) => arguments.folders.open_in(&snapshot.data, &snapshot.index)?,
        None => arguments.folders.open()?,
    };
    let mut namespace = opened.load(&arguments.name)?;
    let path = &arguments.file;
    let mut partial = path.clone().into_os_string();
    partial.push(".part");
    let partial = PathBuf::from(partial);
    let written = write_backup(&mut namespace, &partial);
    let summary = written.with_context(|| partial.display().to_string()).inspect_err(|_| {
        // What is half written is of no use; if it stays, it still says so by its name.
        let _ = std::fs::remove_file(&partial);
    })?;
    std::fs::rename(&partial, path).with_context(|| path.display().to_string())?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| folder.display().to_string())?;
    show(&arguments.name.to_string(), &summary);
    Ok(())
}

fn write_backup(namespace: &mut Namespace, path: &Path) -> anyhow::Result<Summary> {
    use std::os::unix::fs::OpenOptionsExt;
    // Owner only: passwords are in it.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut stream = BufWriter::with_capacity(BUFFER_SIZE, file);
    let summary = backup::export(namespace, &mut stream)?;
    stream.flush()?;
    stream.get_ref().sync_all()?;
    Ok(summary)
}

/// Makes the namespace; it is there whole or not at all.
pub(crate) fn restore(arguments: &RestoreArguments) -> anyhow::Result<()> {
    let opened = arguments.folders.open()?;
    let mut stream = open(&arguments.file)?;
    let (namespace, summary) = backup::restore(&opened.engine, &arguments.name, &mut stream)
        .with_context(|| arguments.file.display().to_string())?;
    namespace.close().context("closing the namespace")?;
    show(&arguments.name.to_string(), &summary);
    Ok(())
}

/// Reads everything, and believes nothing.
pub(crate) fn verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    if let Some(path) = &arguments.file {
        let summary =
            backup::verify(&mut open(path)?).with_context(|| path.display().to_string())?;
        show(&path.display().to_string(), &summary);
        return Ok(());
    }
    let opened = arguments.folders.open()?;
    let mut damaged = 0;
    for name in opened.engine.names()? {
        let mut namespace = opened.load(&name)?;
        let count = scrub(&mut namespace).with_context(|| format!("namespace {name}"))?;
        println!("{name}: {} entries, {count} damaged records", namespace.len());
        damaged += count;
    }
    anyhow::ensure!(damaged == 0, "{damaged} records are damaged");
    Ok(())
}

fn scrub(namespace: &mut Namespace) -> Result<u64, zdb_engine::Error> {
    const STEP_SIZE: u64 = 8 * 1024 * 1024;
    loop {
        match namespace.scrub_step(STEP_SIZE)? {
            zdb_engine::Scrub::Working => {}
            zdb_engine::Scrub::Finished { damaged_count } => return Ok(damaged_count),
        }
    }
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    Ok(BufReader::with_capacity(BUFFER_SIZE, file))
}

fn show(what: &str, summary: &Summary) {
    println!("{what}: {} records, the newest is number {}", summary.record_count, summary.last.0);
}
