//! How much a guest may store, where the host's file system does not count.
//!
//! A volume should be a directory with a project quota (ext4, XFS): then `statfs` shows the quota, the
//! host refuses what exceeds it, and this module has nothing to do. Elsewhere the VMM counts: all there
//! is when it starts, and from then on what each change adds or frees, in the host's own units of
//! allocation, plus a little for each inode, so that empty files cannot be made without end.
//!
//! Counting makes writes one at a time and costs two calls of `stat` each. A file that was removed counts
//! until the guest has forgotten it. Nothing is given back that was not counted before, else the limit
//! could be moved: a directory is always the same, however many names it has or had. Its extended
//! attributes count as they are set, and are given back when all is counted again.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flist_view::filesystem::{Attributes, Errno, Statistics};
use rustix::fs::SeekFrom;

use super::xattr::ATTRIBUTE_BLOCK_SIZE;
use super::{HostDirectory, is_directory, names, sys};

/// Unit of [`Attributes::sector_count`].
const SECTOR_SIZE: u64 = 512;
/// What an inode is counted as, besides its contents; and each of its names but the first.
const INODE_SIZE: u64 = 256;
/// What a directory is counted as, besides that.
const DIRECTORY_SIZE: u64 = 4096;
/// Unit of `statfs`.
const BLOCK_SIZE: u64 = 4096;

/// A limit that is counted here.
pub(super) struct Quota {
    limit: u64,
    used: Mutex<u64>,
    /// Held while names come and go, so that how many an inode has stays as it was seen.
    naming: Mutex<()>,
}

impl Quota {
    /// A quota of `limit` bytes for the directory `root`, unless its file system has one as strict.
    pub(super) fn new(root: &Arc<OwnedFd>, limit: u64) -> Result<Option<Self>, Errno> {
        let statvfs = rustix::fs::fstatvfs(&**root)?;
        if statvfs.f_blocks.saturating_mul(statvfs.f_frsize) <= limit {
            return Ok(None);
        }
        Ok(Some(Self { limit, used: Mutex::new(scan(root)?), naming: Mutex::new(()) }))
    }

    pub(super) fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The quota's view of the file system.
    pub(super) fn limit(&self, host: Statistics) -> Statistics {
        let free = self.limit.saturating_sub(*self.used()) / BLOCK_SIZE;
        let host_free =
            host.block_count_free.saturating_mul(u64::from(host.block_size)) / BLOCK_SIZE;
        Statistics {
            block_size: u32::try_from(BLOCK_SIZE).unwrap_or(u32::MAX),
            block_count: self.limit / BLOCK_SIZE,
            block_count_free: free.min(host_free),
            ..host
        }
    }
}

impl HostDirectory {
    /// Refuses another inode when the quota is used up.
    pub(super) fn charge_inode(&self) -> Result<(), Errno> {
        let Some(quota) = &self.quota else { return Ok(()) };
        let mut used = quota.used();
        if used.saturating_add(INODE_SIZE) > quota.limit {
            return Err(Errno::NOSPC);
        }
        *used = used.saturating_add(INODE_SIZE);
        Ok(())
    }

    /// Counts the rest of what an inode takes that was made, or gives it back if it was not.
    pub(super) fn settle_inode(
        &self,
        made: Result<Attributes, Errno>,
    ) -> Result<Attributes, Errno> {
        if let Some(quota) = &self.quota {
            let mut used = quota.used();
            *used = used.saturating_sub(INODE_SIZE);
            *used = used.saturating_add(made.as_ref().map_or(0, cost));
        }
        made
    }

    /// Counts an inode that is there already.
    pub(super) fn count_inode(&self) {
        if let Some(quota) = &self.quota {
            let mut used = quota.used();
            *used = used.saturating_add(INODE_SIZE);
        }
    }

    /// Gives back an inode, or a name, that had nothing else.
    pub(super) fn refund_inode(&self) {
        if let Some(quota) = &self.quota {
            let mut used = quota.used();
            *used = used.saturating_sub(INODE_SIZE);
        }
    }

    /// Keeps other names from coming and going, if they are counted.
    pub(super) fn naming(&self) -> Option<MutexGuard<'_, ()>> {
        let quota = self.quota.as_ref()?;
        Some(quota.naming.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does what adds up to `size` bytes to `file`, up to the offset `end`, within the quota.
    pub(in crate::fs) fn charged<T>(
        &self,
        file: BorrowedFd<'_>,
        end: u64,
        size: u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = &self.quota else { return change() };
        // Held throughout, so that no other change is counted here as well.
        let mut used = quota.used();
        let before = sys::stat(file)?.attributes;
        let is_directory = is_directory(before.mode);
        let fits = size == 0 || used.saturating_add(size) <= quota.limit;
        if !fits && (is_directory || !is_in_place(file, before.size, end, size)) {
            return Err(Errno::NOSPC);
        }
        let result = change();
        let after = sys::stat(file)?.attributes;
        if is_directory {
            let blocks = after.sector_count.saturating_sub(before.sector_count);
            let value_size = size.saturating_sub(ATTRIBUTE_BLOCK_SIZE);
            if result.is_ok() {
                *used = used.saturating_add(value_size.max(blocks.saturating_mul(SECTOR_SIZE)));
            }
            return result;
        }
        let (before, after) = (before.sector_count, after.sector_count);
        *used = used
            .saturating_add(after.saturating_sub(before).saturating_mul(SECTOR_SIZE))
            .saturating_sub(before.saturating_sub(after).saturating_mul(SECTOR_SIZE));
        result
    }

    /// Gives back what something took that is gone now.
    pub(super) fn refund(&self, gone: &Attributes) {
        if let Some(quota) = &self.quota {
            let mut used = quota.used();
            *used = used.saturating_sub(cost(gone));
        }
    }

    /// Gives back what files took that had no names, and are not remembered any more.
    pub(super) fn refund_forgotten(&self, forgotten: &[Arc<OwnedFd>]) {
        if self.quota.is_none() || forgotten.is_empty() {
            return;
        }
        // Else one of them might get a name just now.
        let _naming = self.naming();
        for path in forgotten {
            if let Ok(stat) = sys::stat(path.as_fd())
                && stat.attributes.nlink == 0
            {
                self.refund(&stat.attributes);
            }
        }
    }
}

/// Whether the last `size` bytes before `end` are contents of `file` already, so that writing them
/// again takes nothing. How many blocks it has does not tell: they may be beyond its end. What was only
/// allocated counts as a hole to the host, so that a file which is full can be written, and one that
/// was made room for only while the quota is not used up.
fn is_in_place(file: BorrowedFd<'_>, file_size: u64, end: u64, size: u64) -> bool {
    end <= file_size
        && end.checked_sub(size).is_some_and(|start| {
            // Nobody uses the descriptor's own offset.
            rustix::fs::seek(file, SeekFrom::Hole(start)).is_ok_and(|hole| hole >= end)
        })
}

const fn cost(attributes: &Attributes) -> u64 {
    if is_directory(attributes.mode) {
        return DIRECTORY_SIZE + INODE_SIZE;
    }
    attributes.sector_count.saturating_mul(SECTOR_SIZE).saturating_add(INODE_SIZE)
}

/// What all below `root` takes. The contents of a file with several names count once.
pub(super) fn scan(root: &Arc<OwnedFd>) -> Result<u64, Errno> {
    let mut used: u64 = 0;
    let mut linked = HashSet::new();
    // Directories by their parent's descriptor, which is closed when the last of them is done.
    let mut todo: Vec<(Arc<OwnedFd>, Box<[u8]>)> = Vec::new();
    let mut next = Some(Arc::clone(root));
    while let Some(path) = next {
        let directory = Arc::new(sys::open_directory(path.as_fd())?);
        let mut offset = 0;
        loop {
            let names = names(&directory, offset)?;
            let Some(last) = names.last() else { break };
            offset = last.next_offset;
            for name in names.iter().filter(|name| !name.is_dots()) {
                let found = sys::stat_at(directory.as_fd(), &name.bytes)?.attributes;
                if found.nlink > 1 && !is_directory(found.mode) && !linked.insert(found.ino) {
                    used = used.saturating_add(INODE_SIZE);
                    continue;
                }
                used = used.saturating_add(cost(&found));
                if is_directory(found.mode) {
                    todo.push((Arc::clone(&directory), name.bytes.clone()));
                }
            }
        }
        next = next_directory(&mut todo)?;
    }
    Ok(used)
}

/// Opens the next directory to look at.
fn next_directory(
    todo: &mut Vec<(Arc<OwnedFd>, Box<[u8]>)>,
) -> Result<Option<Arc<OwnedFd>>, Errno> {
    while let Some((parent, name)) = todo.pop() {
        match sys::open_path(parent.as_fd(), &name) {
            Ok(path) => return Ok(Some(Arc::new(path))),
            // Another file system is not this one's affair.
            Err(Errno::XDEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
