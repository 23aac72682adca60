//! What to fetch before anyone asks: the recorded first boot, or a guess.

use std::collections::HashSet;
use std::path::Path;

use flist_view::filesystem::{Ino, ROOT};
use flist_view::index::{FileType, Index, Inode};

use super::trace;

/// Most blocks that a guess names.
const GUESS_COUNT_MAX: usize = 1024;
/// Most entries of one directory that a guess looks at.
const ENTRY_COUNT_MAX: u32 = 256;
/// Links followed while a path is resolved.
const LINK_COUNT_MAX: u32 = 16;
/// What every boot reads, in this order. Directories stand for the files in them.
const BOOT_PATHS: [&[u8]; 12] = [
    b"boot/vmlinuz",
    b"boot/initrd.img",
    b"boot",
    b"sbin/init",
    b"init",
    b"lib64/ld-linux-x86-64.so.2",
    b"lib/ld-musl-x86_64.so.1",
    b"lib/x86_64-linux-gnu/libc.so.6",
    b"lib64/libc.so.6",
    b"bin/sh",
    b"usr/bin/env",
    b".startup.toml",
];

/// Positions to fetch ahead, most urgent first.
pub(super) fn positions(index: &Index, directory: &Path, image_hash: &[u8; 32]) -> Vec<u32> {
    let count = index.block_count();
    trace::load(directory, image_hash).map_or_else(
        || guess(index),
        |trace| trace.into_iter().filter(|position| *position < count).collect(),
    )
}

fn guess(index: &Index) -> Vec<u32> {
    let mut seen = HashSet::new();
    let mut positions = Vec::new();
    for path in BOOT_PATHS {
        let Some(inode) = resolve(index, path).and_then(|ino| index.inode(ino).ok()) else {
            continue;
        };
        for file in files(index, &inode) {
            let blocks = index.blocks(&file).unwrap_or(0..0);
            let room = GUESS_COUNT_MAX - positions.len();
            positions.extend(blocks.take(room).filter(|position| seen.insert(*position)));
        }
    }
    positions
}

/// The file itself, or the regular files in the directory.
fn files(index: &Index, inode: &Inode) -> Vec<Inode> {
    if inode.file_type() == Some(FileType::File) {
        return vec![*inode];
    }
    let Ok(entries) = index.entries(inode) else { return Vec::new() };
    (0..entries.count().min(ENTRY_COUNT_MAX))
        .filter_map(|number| index.inode(entries.get(number).ok()??.1).ok())
        .filter(|inode| inode.file_type() == Some(FileType::File))
        .collect()
}

/// Follows a path from the root, through links, never out of the image.
fn resolve(index: &Index, path: &[u8]) -> Option<Ino> {
    let mut pending: Vec<Vec<u8>> = components(path);
    let mut trail = vec![ROOT];
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == b".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let directory = index.inode(*trail.last()?).ok()?;
        let ino = index.entries(&directory).ok()?.find(&name).ok()??;
        let inode = index.inode(ino).ok()?;
        if inode.file_type() != Some(FileType::Symlink) {
            trail.push(ino);
            continue;
        }
        links += 1;
        if links > LINK_COUNT_MAX {
            return None;
        }
        let target = index.target(&inode).ok()?;
        if target.starts_with(b"/") {
            trail.truncate(1);
        }
        pending.extend(components(target));
    }
    trail.pop()
}

/// Names of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}
