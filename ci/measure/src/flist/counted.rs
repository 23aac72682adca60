//! What can be counted about flist images, on a tree that is the same on every machine.
//!
//! Limits stand a tenth to a fifth above what was measured when they were set: room for another
//! compiler or C library, none for another algorithm.

use std::path::Path;

use super::{Bench, path, tree, workload};
use crate::process::{self, Daemon};
use crate::table::{Goal, Row, Table};

/// Folders and files in each of the tree that is counted on.
const FOLDER_COUNT: u32 = 300;
const FILE_COUNT: u32 = 99;

/// Bytes, memory, system calls and instructions, each with a limit.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let folder = tempfile::Builder::new().prefix("bench-flist-").tempdir()?;
    let bench =
        Bench::on(folder.path(), |target| tree::synthetic(target, FOLDER_COUNT, FILE_COUNT))?;
    let mut table = Table::default();
    let mut row = |what: &str, ours: f64, most: f64| {
        table.push(Row { what: what.into(), ours, peer: None, goal: Goal::AtMost(most) });
    };
    packing(&bench, &mut row)?;
    reading(&bench, &mut row)?;
    instructions(folder.path(), &mut row)?;
    Ok(table)
}

fn packing(bench: &Bench, row: &mut impl FnMut(&str, f64, f64)) -> anyhow::Result<()> {
    let cost = process::run(&bench.pack_command()?)?;
    row("pack: MiB of memory", cost.memory_mib, 36.0);
    let image = std::fs::metadata(&bench.image)?.len() as f64;
    row("pack: bytes of image per inode", image / bench.inode_count, 190.0);
    let blocks = tree::apparent_bytes(&bench.blocks)?;
    row("pack: bytes stored per byte of tree", blocks / bench.tree_bytes, 0.70);
    std::fs::remove_dir_all(&bench.blocks)?;
    let calls = process::system_calls(&bench.pack_command()?)?;
    row("pack: system calls per inode", calls / bench.inode_count, 10.5);
    Ok(())
}

fn reading(bench: &Bench, row: &mut impl FnMut(&str, f64, f64)) -> anyhow::Result<()> {
    let at = &bench.mount_ours;
    let command = bench.mount_command()?;
    let mut daemon = Daemon::start(&command, || process::is_mounted(at))?;
    let mut files = Vec::new();
    workload::walk(at, Some(&mut files))?;
    row("mount: MiB of memory after a walk", daemon.memory_mib()?, 21.0);
    workload::read_all(&files)?;
    row("mount: MiB of memory after reading all", daemon.memory_mib()?, 25.0);
    daemon.stop();
    std::fs::remove_dir_all(&bench.cache)?;

    let (walk, _) = traced(bench, |files| workload::walk(at, Some(files)))?;
    row("mount: system calls to walk and lstat, per inode", walk / bench.inode_count, 0.19);
    let (read, files) = traced(bench, |files| {
        workload::walk(at, Some(files))?;
        workload::read_all(files)
    })?;
    row("mount: system calls to read a file, cold", (read - walk) / files, 11.5);
    Ok(())
}

/// System calls of a mount process, from start to end, around `work`; and how many files there are.
fn traced(
    bench: &Bench,
    work: impl FnOnce(&mut Vec<workload::FileOfSize>) -> anyhow::Result<()>,
) -> anyhow::Result<(f64, f64)> {
    // An empty cache each time: what is counted is a first read.
    let _ = std::fs::remove_dir_all(&bench.cache);
    let at = &bench.mount_ours;
    let traced = process::Traced::start(&bench.mount_command()?, || process::is_mounted(at))?;
    let mut files = Vec::new();
    work(&mut files)?;
    rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty())?;
    Ok((traced.system_calls()?, f64::from(u32::try_from(files.len())?)))
}

/// Instructions on the recorded sample image, which is small enough for valgrind.
fn instructions(folder: &Path, row: &mut impl FnMut(&str, f64, f64)) -> anyhow::Result<()> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors/flist").canonicalize()?;
    let (image, blocks) = (vectors.join("sample.fl"), vectors.join("sample-store"));
    let store = format!("dir://{}", path(&blocks)?);
    let command = ["flist", "verify", path(&image)?, "--store", &store];
    row("verify the sample: million instructions", process::instructions(&command)? / 1e6, 105.0);
    let tree = folder.join("sample");
    process::run(&["flist", "unpack", path(&image)?, "--store", &store, path(&tree)?])?;
    let packed = folder.join("sample.fl");
    let store = format!("dir://{}", path(&folder.join("again"))?);
    let command = ["flist", "pack", path(&tree)?, "-o", path(&packed)?, "--store", &store];
    row("pack the sample: million instructions", process::instructions(&command)? / 1e6, 142.0);
    Ok(())
}
