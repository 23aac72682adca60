//! Disks that are files or block devices of the host, as they are: sector n of the guest is sector
//! n of the file.
//!
//! | file | lane |
//! |---|---|
//! | on a disk | `ring`: io_uring, so that requests overlap and the thread never waits |
//! | in memory (tmpfs, ramfs, hugetlbfs) | `blocking`: a read is a copy, there is nothing to wait for; a ring would hand each to a worker thread where the file system cannot promise not to wait |
//! | any, without io_uring (forbidden, or Linux before 5.19) | `blocking` |
//!
//! The page cache of the host is used, unless the options say `direct`. It helps guests that share
//! an image or read more than they remember; it hurts when a guest caches the same again, or when
//! its writes crowd out what others have cached. Direct transfers need aligned buffers, offsets and
//! sizes: the guest learns the block size, a request of less is an error, and buffers that are
//! aligned otherwise are copied (`bounce`).
//!
//! A file is locked as long as it is open, shared by readers, else exclusive, so that no two
//! machines write one disk. The lock is `flock(2)`: it belongs to the open file description,
//! whoever inherits that has it too, it ends with the last holder, and on a block device it keeps
//! udev's probes away. It is advice: only those who ask are kept out.

mod blocking;
mod bounce;
mod job;
mod raw;
mod ring;
mod rings;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use self::blocking::BlockingLane;
use self::job::{Job, Means, Work};
use self::raw::Scatter;
use self::ring::RingLane;
use self::rings::Rings;
use super::storage::{Lane, Operation, Storage, Traits};
use crate::Segment;
use crate::memory::SharedMemory;

/// A file or block device that serves as a disk.
#[derive(Debug)]
pub struct FileDisk {
    file: Arc<File>,
    traits: Traits,
    alignment: Option<Alignment>,
    is_block_device: bool,
    engine: Engine,
    rings: Rings,
}

/// How a file is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Nothing is written; others may read at the same time.
    pub is_read_only: bool,
    /// Past the page cache (`O_DIRECT`).
    pub is_direct: bool,
    /// How system calls are made.
    pub engine: Engine,
}

/// How system calls are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// As suits the file and the host.
    #[default]
    Auto,
    /// By io_uring, or not at all.
    Ring,
    /// One after the other, each waited for.
    Blocking,
}

/// Why a file cannot serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The host does not let us.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// Neither a regular file nor a block device.
    #[error("it is neither a file nor a block device")]
    Kind,
    /// Somebody has it open as a disk; at least one of us wants to write.
    #[error("another virtual machine uses it")]
    InUse,
    /// The file system or device gives no terms for direct transfers.
    #[error("its file system has no O_DIRECT, or does not say how to align it")]
    Direct,
    /// The host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// What direct transfers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    /// Of addresses.
    memory: usize,
    /// Of offsets and sizes.
    block: usize,
}

/// The largest block that a guest is told of, and that memory is aligned to: drivers refuse more.
const BLOCK_SIZE_MAX: u32 = 4096;

/// How often a lock is tried, and the time between: half a second in all.
const LOCK_ATTEMPTS_MAX: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

impl FileDisk {
    /// Opens and locks the disk at `path`.
    ///
    /// # Errors
    /// When it cannot be opened, is locked, or is no disk.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self, FileError> {
        let mut open = OpenOptions::new();
        open.read(true).write(!options.is_read_only);
        // A FIFO would keep us waiting.
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
        open.custom_flags(flags.cast_signed());
        Self::new(open.open(path).map_err(FileError::Open)?, options)
    }

    /// Locks a file that is open already, with the access that the options ask for.
    ///
    /// # Errors
    /// When it is locked, or is no disk.
    pub fn new(file: File, options: FileOptions) -> Result<Self, FileError> {
        let kind = file.metadata().map_err(host("examine it"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(FileError::Kind);
        }
        lock(&file, options.is_read_only)?;
        let alignment = if options.is_direct { Some(make_direct(&file)?) } else { None };
        let block_size = alignment.map_or(512, |alignment| alignment.block);
        let block_size = u32::try_from(block_size).map_err(|_| FileError::Direct)?;
        let is_block_device = kind.is_block_device();
        let traits = Traits {
            is_read_only: options.is_read_only,
            block_size,
            physical_block_size: physical_block_size(&file, is_block_device)?.max(block_size),
            has_discard: !options.is_read_only,
        };
        let engine = match options.engine {
            Engine::Auto if !is_block_device && is_in_memory(&file)? => Engine::Blocking,
            engine => engine,
        };
        let (file, rings) = (Arc::new(file), Rings::default());
        Ok(Self { file, traits, alignment, is_block_device, engine, rings })
    }
}

impl Storage for FileDisk {
    fn size(&self) -> io::Result<u64> {
        // Metadata does not tell the size of a block device. Nothing else uses the position.
        Ok(rustix::fs::seek(&*self.file, SeekFrom::End(0))?)
    }

    fn traits(&self) -> Traits {
        self.traits
    }

    fn prepare(&self, memory: &SharedMemory, lane_count: u16, depth: u16) -> io::Result<()> {
        if self.engine == Engine::Blocking {
            return Ok(());
        }
        match self.rings.prepare(&self.file, memory, lane_count, depth) {
            Err(error) if self.engine == Engine::Auto => {
                tracing::warn!(%error, "no io_uring: disk requests are served one at a time");
                Ok(())
            }
            result => result,
        }
    }

    fn open_lane(&self, memory: &SharedMemory, depth: u16) -> io::Result<Box<dyn Lane>> {
        let means = Means { can_punch: true, can_zero_range: true, can_trim: self.is_block_device };
        let (file, alignment) = (Arc::clone(&self.file), self.alignment);
        if self.engine != Engine::Blocking {
            match self.rings.take(&file, memory, depth) {
                Ok(Some(ring)) => {
                    let lane = RingLane::new(file, alignment, means, memory, ring, depth);
                    return Ok(Box::new(lane));
                }
                // That was said when they were to be prepared.
                Ok(None) => {}
                Err(error) if self.engine == Engine::Ring => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "no io_uring: disk requests are served one at a time");
                }
            }
        }
        Ok(Box::new(BlockingLane::new(file, alignment, means, memory)))
    }
}

/// Turns an operation into a job with its buffers in `scatter`. Nothing, if it is over: what the
/// device cannot reach has been copied.
fn begin(
    file: &File,
    memory: &SharedMemory,
    alignment: Option<Alignment>,
    operation: Operation<'_>,
    scatter: &mut Scatter,
) -> io::Result<Option<Job>> {
    let (work, offset, segments) = match operation {
        Operation::Read { offset, into } => (Work::Read, offset, into),
        Operation::Write { offset, from } => (Work::Write, offset, from),
        Operation::Flush => return Ok(Some(Job::new(Work::Flush, 0, 0))),
        Operation::Discard { offset, size } => {
            return Ok(Some(Job::new(Work::Discard, offset, size)));
        }
        Operation::WriteZeroes { offset, size, may_unmap } => {
            return Ok(Some(Job::new(Work::WriteZeroes { may_unmap }, offset, size)));
        }
    };
    scatter.fill(segments)?;
    if alignment.is_some_and(|needed| !scatter.is_aligned(needed.memory, needed.block)) {
        bounce::transfer(file, memory, work == Work::Read, offset, segments)?;
        return Ok(None);
    }
    let size = segments.iter().map(|segment: &Segment| u64::from(segment.size)).sum();
    Ok(Some(Job::new(work, offset, size)))
}

/// Locks the file. When a machine was killed, the kernel may hold its files a little longer than
/// its process lives, because a ring is taken apart later; hence the patience.
fn lock(file: &File, is_shared: bool) -> Result<(), FileError> {
    let operation = if is_shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    for attempt in 1.. {
        match rustix::fs::flock(file, operation) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if attempt < LOCK_ATTEMPTS_MAX => thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(FileError::InUse),
            Err(error) => return Err(host("lock it")(error.into())),
        }
    }
    Ok(())
}

/// Sets `O_DIRECT`, and returns the terms (`STATX_DIOALIGN`, since Linux 6.1).
fn make_direct(file: &File) -> Result<Alignment, FileError> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(|e| host("read its flags")(e.into()))?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).map_err(|_| FileError::Direct)?;
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .map_err(|e| host("examine it")(e.into()))?;
    let (memory, block) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
    let is_told = found.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let is_fit = |size: u32| size.is_power_of_two() && size <= BLOCK_SIZE_MAX;
    if !is_told || !is_fit(memory) || !is_fit(block) {
        return Err(FileError::Direct);
    }
    let size = |value: u32| usize::try_from(value).map_err(|_| FileError::Direct);
    Ok(Alignment { memory: size(memory)?, block: size(block)?.max(512) })
}

fn physical_block_size(file: &File, is_block_device: bool) -> Result<u32, FileError> {
    let size = if is_block_device {
        rustix::fs::ioctl_blkpbszget(file).map(u64::from)
    } else {
        rustix::fs::fstat(file).map(|found| u64::try_from(found.st_blksize).unwrap_or(0))
    };
    let size = size.map_err(|error| host("examine it")(error.into()))?;
    let size = u32::try_from(size).unwrap_or(BLOCK_SIZE_MAX).min(BLOCK_SIZE_MAX);
    Ok(if size.is_power_of_two() { size.max(512) } else { 512 })
}

/// Whether the file's pages are all there is of it.
fn is_in_memory(file: &File) -> Result<bool, FileError> {
    /// tmpfs, ramfs, hugetlbfs: `statfs(2)`.
    const IN_MEMORY: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];
    let found = rustix::fs::fstatfs(file).map_err(|e| host("examine its file system")(e.into()))?;
    Ok(IN_MEMORY.contains(&found.f_type))
}

fn host(what: &'static str) -> impl Fn(io::Error) -> FileError {
    move |source| FileError::Host { what, source }
}
