//! What repeats: bytes, memory, syncs, system calls. These have hard limits.

use std::path::Path;

use anyhow::Context;

use super::peers::{Peer, load};
use super::{MIB, figure, push};
use crate::process::{Traced, raise_descriptor_limit};
use crate::table::{Goal, Table};

/// Keys of the counted namespace.
const KEY_COUNT: u64 = 200_000;
/// Idle connections.
const IDLE_COUNT: usize = 4000;

/// All counted rows.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let mut table = Table::default();
    let idle_count = IDLE_COUNT.min(raise_descriptor_limit());
    let server = Peer::zdb(&["--durability", "none"])?;
    let (_, folder) = server.arguments();
    let empty = size_of_folder(&folder)?;
    push(
        &mut table,
        "empty server: disk, KiB (1 MiB of it the reserve)",
        empty / 1024.0,
        Goal::AtMost(1100.0),
    );
    load(&server, KEY_COUNT, 64)?;
    let keys = figure(KEY_COUNT);
    let memory = server.info("index_memory_bytes")? / keys;
    push(&mut table, "index memory, bytes per key", memory, Goal::AtMost(40.0));
    let disk = server.info("data_size_bytes")? + server.info("index_size_bytes")?;
    push(&mut table, "disk, bytes per 64 B entry", disk / keys, Goal::AtMost(112.0));
    let before = server.memory_mib()?;
    let crowd = server.crowd(idle_count)?;
    server.client()?.ping()?;
    let grown = (server.memory_mib()? - before) * MIB / figure(idle_count as u64);
    push(&mut table, "idle connection: bytes of memory", grown, Goal::AtMost(1536.0));
    drop(crowd);
    syncs(&mut table)?;
    calls(&mut table)?;
    Ok(table)
}

/// One client, every reply durable: one sync a write.
fn syncs(table: &mut Table) -> anyhow::Result<()> {
    const COUNT: u64 = 200;
    let server = Peer::zdb(&["--sync"])?;
    let mut client = server.client()?;
    let before = server.info("syncs")?;
    for key in 0..COUNT {
        client.set(&key.to_le_bytes(), b"value")?;
    }
    let syncs = (server.info("syncs")? - before) / figure(COUNT);
    push(table, "1 client, durable: syncs per write", syncs, Goal::AtMost(1.05));
    Ok(())
}

/// System calls of pipelined requests, from what a run with twice as many costs more.
fn calls(table: &mut Table) -> anyhow::Result<()> {
    const COUNT: u64 = 6400;
    let one = traced(COUNT)?;
    let two = traced(2 * COUNT)?;
    let calls = (two - one) / figure(COUNT);
    push(table, "SET, pipeline 64: system calls per request", calls, Goal::AtMost(0.1));
    Ok(())
}

fn traced(count: u64) -> anyhow::Result<f64> {
    // Its own server is not used, but its port and folders are.
    let mut peer = Peer::zdb(&["--durability", "none", "--test-commands"])?;
    peer.stop();
    let (arguments, _) = peer.arguments();
    let ready = || peer.client().and_then(|mut client| Ok(client.ping()?)).is_ok();
    let traced = Traced::start(arguments, ready)?;
    load(&peer, count, 64)?;
    peer.client()?.call(&[b"STOP"]).context("STOP")?;
    traced.system_calls()
}

/// Bytes that the files of a folder take on the disk.
fn size_of_folder(folder: &Path) -> anyhow::Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut size = 0.0;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                size += figure(metadata.blocks() * 512);
            }
        }
    }
    Ok(size)
}
