//! What becomes of a disk: a decision about what is on it, and nothing else.
//!
//! ```text
//!                       ┌────────────── blank ──────────────┐
//!                       ▼                                   │
//!   table of ours, type MAKING ──► mkfs ──► type POOL ──► a pool, for ever
//!                       ▲                                   │
//!                       └── free space, a blank partition ──┘      all else: left alone
//! ```
//!
//! The disk itself says how far it is, so that who comes after a pulled plug goes on there. Each step is
//! safe to do again up to the type `POOL`, behind which somebody's data may be. So disks are used by tables
//! of GPT alone: in an MBR, there is no place to say it.

use std::io;

use super::Block;
use super::contents::{Contents, Ends, TABLE};
use super::found::Device;
use super::gpt::{self, Copies, Geometry, LINUX, MAKING, POOL, Table};
use super::guid::Guid;

/// Bytes that a disk has at least.
pub(super) const DISK_SIZE_MIN: u64 = 1 << 30;
/// Bytes that free space and partitions have at least (`reference: zero-os 4.4`).
pub(super) const PART_SIZE_MIN: u64 = 5 << 30;
/// Where ext4 has its superblock, and in it its mark and when it was last mounted.
const SUPERBLOCK_AT: u64 = 1024;
const EXT4_MAGIC: (usize, [u8; 2]) = (0x38, [0x53, 0xef]);
const EXT4_MOUNT_TIME: usize = 0x2c;

/// Why a disk with an MBR is left alone, and what its farmer can do. Such a table has one byte for what a
/// partition is, and no number for it: a pool that is begun there could not be told from what somebody
/// else began, nor a pool from another.
const MBR: &str = "it has an MBR, where nothing says whose a partition is; once that is a GPT \
    (`sgdisk --mbrtogpt`), what is free of it is used";

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has a pool: this one, in the partition at this index.
    Pool { id: Guid, index: usize },
    /// It is to have this table.
    Write(Table),
    /// The partition at this index of this table is to have a file system, and then to be a pool.
    Format { table: Table, index: usize },
    /// It is left alone, for this reason.
    Leave(String),
}

/// Judges a disk. `new` is the number that it gets if it is to get one.
pub(super) fn judge(device: &Device, disk: &impl Block, new: Guid) -> io::Result<Verdict> {
    let leave = |reason: &str| Ok(Verdict::Leave(reason.to_owned()));
    if let Some(reason) = device.refusal {
        return leave(reason);
    }
    let Some(geometry) = Geometry::new(device.size, device.sector) else {
        return leave("it is too small, or has sectors of another size");
    };
    let copies = Copies::read(disk, geometry)?;
    if let Some(verdict) = pool(device, &copies) {
        return Ok(verdict);
    }
    if let Some(user) = &device.user {
        return leave(user);
    }
    if device.size < DISK_SIZE_MIN {
        return leave("it is too small");
    }
    let ends = Ends::read(disk, 0, device.size)?;
    if let Some(array) = ends.member() {
        return Ok(Verdict::Leave(format!("it holds {array}")));
    }
    if copies.primary.is_none() || copies.backup.is_none() {
        return Ok(without_table(&ends, geometry, new));
    }
    let Some(table) = copies.agreed() else {
        return leave("the copies of its partition table differ");
    };
    if !table.is_sound() {
        return leave("its partitions overlap");
    }
    let mut first = vec![0; 512];
    disk.read_at(&mut first, 0)?;
    if !gpt::is_protective(&first) {
        // The last sector that is written to a blank disk is its first.
        let is_ours = table.entries.iter().all(|entry| !entry.is_used() || entry.kind() == MAKING);
        let is_blank = first.iter().all(|byte| *byte == 0);
        return match is_ours && is_blank {
            true => Ok(Verdict::Write(table.clone())),
            false => leave("it has partitions of two kinds"),
        };
    }
    match table.find(MAKING) {
        Some((index, _)) => going_on(disk, geometry, &copies, table, index),
        None => taking(disk, geometry, table, new),
    }
}

/// The pool that a disk has, or the table that says so everywhere.
fn pool(device: &Device, copies: &Copies) -> Option<Verdict> {
    if let Some(table) = copies.primary()
        && let Some((index, entry)) = table.find(POOL)
    {
        let is_told = copies.backup() == Some(table);
        // Else the backup would say later what is over.
        let is_to_tell = !is_told && device.user.is_none() && copies.agreed().is_some();
        return Some(match is_to_tell {
            true => Verdict::Write(table.clone()),
            false => Verdict::Pool { id: entry.id(), index },
        });
    }
    let table = copies.backup().filter(|table| table.find(POOL).is_some())?;
    copies.agreed()?;
    Some(Verdict::Write(table.clone()))
}

fn without_table(ends: &Ends, geometry: Geometry, new: Guid) -> Verdict {
    if let Some(id) = gpt::half_written(ends.parts(), geometry) {
        return Verdict::Write(Table::of_our_own(id, geometry));
    }
    let [(head, _), _] = ends.parts();
    match ends.contents() {
        Contents::Known(TABLE) if gpt::is_mbr(head) => Verdict::Leave(MBR.to_owned()),
        Contents::Blank => Verdict::Write(Table::of_our_own(new, geometry)),
        Contents::Known(name) => Verdict::Leave(format!("it holds {name}")),
        Contents::Unknown => Verdict::Leave(
            "it holds something; zeros at its begin and end would free it".to_owned(),
        ),
    }
}

/// What comes next for a partition that was begun.
fn going_on(
    disk: &impl Block,
    geometry: Geometry,
    copies: &Copies,
    table: &Table,
    index: usize,
) -> io::Result<Verdict> {
    if copies.primary() != Some(table) || copies.backup() != Some(table) {
        return Ok(Verdict::Write(table.clone()));
    }
    let start = table.entries[index].first() * geometry.sector();
    let mut superblock = [0; 512];
    disk.read_at(&mut superblock, start + SUPERBLOCK_AT)?;
    let (at, magic) = EXT4_MAGIC;
    let is_ext4 = superblock[at..].starts_with(&magic);
    let was_mounted = superblock[EXT4_MOUNT_TIME..][..4] != [0; 4];
    // Only pools are ever mounted: a disk that forgets what it was told to keep has lost its type.
    Ok(match is_ext4 && was_mounted {
        true => Verdict::Write(table.with_kind(index, POOL)),
        false => Verdict::Format { table: table.clone(), index },
    })
}

/// What of others' disks is nobody's: the largest piece of it becomes ours.
fn taking(disk: &impl Block, geometry: Geometry, table: &Table, new: Guid) -> io::Result<Verdict> {
    let size_of = |(first, last): (u64, u64)| (last - first + 1) * geometry.sector();
    let mut best: Option<(u64, Table)> = None;
    let mut offer = |size: u64, table: Option<Table>| {
        let is_better = best.as_ref().is_none_or(|(most, _)| size > *most);
        if size >= PART_SIZE_MIN && is_better {
            best = table.map(|table| (size, table)).or_else(|| best.take());
        }
    };
    for piece in table.free(geometry) {
        offer(size_of(piece), table.with_new(new, piece));
    }
    for (index, entry) in table.entries.iter().enumerate() {
        if entry.kind() != LINUX {
            continue;
        }
        let (start, size) =
            (entry.first() * geometry.sector(), size_of((entry.first(), entry.last())));
        if size >= PART_SIZE_MIN && Ends::read(disk, start, size)?.contents() == Contents::Blank {
            offer(size, Some(table.with_kind(index, MAKING)));
        }
    }
    Ok(match best {
        Some((_, table)) => Verdict::Write(table),
        None => Verdict::Leave(format!(
            "others have partitions on it, and no {} GiB are free",
            PART_SIZE_MIN >> 30
        )),
    })
}
