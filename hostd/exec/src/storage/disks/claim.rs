//! What is done to a disk until it has a pool, one step after the other.
//!
//! Each step looks at the disk anew. What changes it is done with the disk held, so that nobody mounts it
//! meanwhile, and decided while it is held.

use std::io;

use super::Block;
use super::found::Device;
use super::gpt::POOL;
use super::guid::Guid;
use super::judge::{Verdict, judge};

/// Steps from a blank disk to a pool, with some to spare.
const STEP_COUNT_MAX: usize = 8;

/// What a machine can do to its disks.
pub(super) trait Kernel {
    /// A disk that is open.
    type Disk: Block;

    /// How a disk is now; none if it is gone.
    fn device(&self, name: &str) -> io::Result<Option<Device>>;
    /// Opens it to be read.
    fn open(&self, name: &str) -> io::Result<Self::Disk>;
    /// Opens it to be changed. Nobody else mounts or changes it until it is dropped.
    fn hold(&self, name: &str) -> io::Result<Self::Disk>;
    /// Has its partition table read anew.
    fn reread(&self, disk: &Self::Disk, name: &str) -> io::Result<()>;
    /// Makes a file system in the partition of this number, which begins at a byte and has a size. Returns
    /// when it is durable.
    fn format(&self, name: &str, place: Place, id: Guid) -> io::Result<()>;
    /// A number that nobody has.
    fn new_id(&self) -> io::Result<Guid>;
}

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its number, from 1.
    pub(super) number: usize,
    /// Where it begins, in bytes.
    pub(super) start: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// What came of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has this pool, in the partition of this number.
    Pool(Guid, usize),
    /// It is left alone, for this reason.
    Left(String),
}

/// Prepares a disk as far as it can be.
pub(super) fn prepare(kernel: &impl Kernel, name: &str) -> io::Result<Outcome> {
    for _ in 0..STEP_COUNT_MAX {
        let Some(device) = kernel.device(name)? else {
            return Ok(Outcome::Left("it is gone".to_owned()));
        };
        // What is left alone is not even held.
        match judge(&device, &kernel.open(name)?, kernel.new_id()?)? {
            Verdict::Pool { id, index } => return Ok(Outcome::Pool(id, index + 1)),
            Verdict::Leave(reason) => return Ok(Outcome::Left(reason)),
            Verdict::Write(_) | Verdict::Format { .. } => step(kernel, &device)?,
        }
    }
    Err(io::Error::other("it does not become what it was made"))
}

fn step(kernel: &impl Kernel, device: &Device) -> io::Result<()> {
    let name = device.name.as_str();
    let held = kernel.hold(name)?;
    match judge(device, &held, kernel.new_id()?)? {
        Verdict::Write(table) => {
            let geometry = geometry(device)?;
            tracing::info!(disk = name, "its partition table is written");
            table.write(&held, geometry)?;
            kernel.reread(&held, name)
        }
        Verdict::Format { table, index } => {
            let (geometry, entry) = (geometry(device)?, table.entries[index]);
            let place = Place {
                number: index + 1,
                start: entry.first() * geometry.sector(),
                size: (entry.last() - entry.first() + 1) * geometry.sector(),
            };
            // Who makes the file system holds the partition.
            kernel.reread(&held, name)?;
            drop(held);
            tracing::info!(disk = name, number = place.number, "its file system is made");
            kernel.format(name, place, entry.id())?;
            let held = kernel.hold(name)?;
            let expected = Verdict::Format { table: table.clone(), index };
            if judge(device, &held, entry.id())? != expected {
                return Err(io::Error::other("its partition table changed meanwhile"));
            }
            table.with_kind(index, POOL).write(&held, geometry)?;
            kernel.reread(&held, name)
        }
        Verdict::Pool { .. } | Verdict::Leave(_) => Ok(()),
    }
}

fn geometry(device: &Device) -> io::Result<super::gpt::Geometry> {
    super::gpt::Geometry::new(device.size, device.sector)
        .ok_or_else(|| io::Error::other("it changed meanwhile"))
}
