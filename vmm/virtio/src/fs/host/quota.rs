//! How much a guest may store, where the host's file system does not count.
//!
//! A volume should be a directory with a project quota (ext4, XFS): then `statfs` shows the quota, the
//! host refuses what exceeds it, and this module has nothing to do. Elsewhere the VMM counts: all there
//! is when it starts, and from then on what each change adds or frees.
//!
//! **What counts** is, for each inode, directories too:
//!
//! - the blocks that the host's file system says it has;
//! - [`INODE_SIZE`] for itself, and again for each name but the first, so that neither empty files nor
//!   names can be made without end;
//! - names and values of extended attributes that a guest may set, on file systems whose blocks do not
//!   show them.
//!
//! Of the served directory itself only blocks and attributes count. A file that was removed counts until the guest
//! has forgotten it. `statfs` tells the limit, and what is left of it.
//!
//! **How**: what a change may need is set aside first, then the change is made, measured, and settled.
//! Changes of one file, and those of names, are made one at a time, since what two add together cannot
//! be told apart; different files change side by side. What the host does later on its own (it may
//! give a file blocks for its own lists, or take some back that it had reserved) is seen by counting all
//! anew: after so much was given back that it might matter, and before a refusal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use flist_view::filesystem::{Attributes, Errno, Ino, Statistics};
use rustix::fs::SeekFrom;

use super::scan::{Measure, scan};
use super::{HostDirectory, extents, sys};

/// What an inode is counted as, besides its contents; and each of its names but the first.
pub(super) const INODE_SIZE: u64 = 256;
/// Unit of `statfs`.
const BLOCK_SIZE: u64 = 4096;
/// Files that change side by side, if they do not happen to share a lock.
const FILE_LOCK_COUNT: usize = 32;
/// All is counted anew when this part of the limit was given back.
const GIVEN_BACK_SHARE: u64 = 8;
/// And before a refusal, if the last time is so long ago, and so many times what it took.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
const COUNT_TIMES: u32 = 50;

/// A limit that is counted here.
pub(super) struct Quota {
    limit: u64,
    pub(super) measure: Measure,
    used: Mutex<Used>,
    /// Held while names come and go, so that how many an inode has, and how large directories are,
    /// stays as it was seen.
    naming: Mutex<()>,
    /// Held while a file changes, by its number.
    files: [Mutex<()>; FILE_LOCK_COUNT],
    /// Shared by changes under way; whoever counts all is alone.
    changes: RwLock<()>,
}

/// What is used, and how well that is known.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) bytes: u64,
    /// What was given back since all was counted.
    given_back: u64,
    pub(super) counted_at: Instant,
    counting_took: Duration,
}

/// Bytes set aside for a change under way.
struct Reservation<'a> {
    quota: &'a Quota,
    size: u64,
}

impl Quota {
    /// A quota of `limit` bytes for the directory `root`, unless its file system has one as strict.
    pub(super) fn new(root: &Arc<OwnedFd>, limit: u64) -> Result<Option<Self>, Errno> {
        let statvfs = rustix::fs::fstatvfs(&**root)?;
        if statvfs.f_blocks.saturating_mul(statvfs.f_frsize) <= limit {
            return Ok(None);
        }
        let measure = Measure::of(root)?;
        let start = Instant::now();
        let bytes = scan(root, &measure)?;
        let (counted_at, counting_took) = (Instant::now(), start.elapsed());
        let used = Used { bytes, given_back: 0, counted_at, counting_took };
        Ok(Some(Self {
            limit,
            measure,
            used: Mutex::new(used),
            naming: Mutex::new(()),
            files: [const { Mutex::new(()) }; FILE_LOCK_COUNT],
            changes: RwLock::new(()),
        }))
    }

    pub(super) fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The quota's view of the file system.
    pub(super) fn limit(&self, host: Statistics) -> Statistics {
        let free = self.limit.saturating_sub(self.used().bytes) / BLOCK_SIZE;
        let host_free =
            host.block_count_free.saturating_mul(u64::from(host.block_size)) / BLOCK_SIZE;
        Statistics {
            block_size: u32::try_from(BLOCK_SIZE).unwrap_or(u32::MAX),
            block_count: self.limit / BLOCK_SIZE,
            block_count_free: free.min(host_free),
            ..host
        }
    }

    /// Keeps whoever would count all from doing so.
    fn change(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_file(&self, ino: Ino) -> MutexGuard<'_, ()> {
        let index = usize::try_from(ino % FILE_LOCK_COUNT as u64).unwrap_or(0);
        self.files[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `size` bytes aside, if there are as many.
    fn reserve(&self, size: u64) -> Result<Reservation<'_>, Errno> {
        let mut used = self.used();
        if size > 0 && used.bytes.saturating_add(size) > self.limit {
            return Err(Errno::NOSPC);
        }
        used.bytes = used.bytes.saturating_add(size);
        Ok(Reservation { quota: self, size })
    }

    /// What took `before` takes `after`.
    fn settle(&self, before: u64, after: u64) {
        self.used().settle(before, after);
    }
}

impl Used {
    fn settle(&mut self, before: u64, after: u64) {
        self.bytes = self.bytes.saturating_add(after.saturating_sub(before));
        let given_back = before.saturating_sub(after);
        self.bytes = self.bytes.saturating_sub(given_back);
        self.given_back = self.given_back.saturating_add(given_back);
    }
}

impl Reservation<'_> {
    /// What took `before` takes `after`, and no more than that.
    fn settle(mut self, before: u64, after: u64) {
        let mut used = self.quota.used();
        used.bytes = used.bytes.saturating_sub(std::mem::take(&mut self.size));
        used.settle(before, after);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.size > 0 {
            let mut used = self.quota.used();
            used.bytes = used.bytes.saturating_sub(self.size);
        }
    }
}

impl HostDirectory {
    /// Makes an inode by `make`, if the quota is not used up. [`naming`](Self::naming) is under way
    /// if it gets a name.
    pub(super) fn counting_inode(
        &self,
        make: impl FnOnce() -> Result<Attributes, Errno>,
    ) -> Result<Attributes, Errno> {
        let Some(quota) = &self.quota else { return make() };
        let reservation = quota.reserve(INODE_SIZE)?;
        let made = make()?;
        reservation.settle(0, cost(&made));
        Ok(made)
    }

    /// Counts an inode, or a name, that is there already.
    pub(super) fn count_inode(&self) {
        if let Some(quota) = &self.quota {
            quota.settle(0, INODE_SIZE);
        }
    }

    /// Gives back an inode, or a name, that had nothing else.
    pub(super) fn refund_inode(&self) {
        if let Some(quota) = &self.quota {
            quota.settle(INODE_SIZE, 0);
        }
    }

    /// Lets names come and go in `directories`, and no others meanwhile, and counts what that adds to
    /// the directories.
    pub(super) fn naming<T>(
        &self,
        directories: &[&OwnedFd],
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = &self.quota else { return change() };
        let is_refusing = quota.used().bytes.saturating_add(INODE_SIZE) > quota.limit;
        self.count_if_due(is_refusing);
        let _change = quota.change();
        let _naming = quota.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let before = blocks_of(directories)?;
        let result = change();
        // What cannot be measured now is seen when all is counted.
        quota.settle(before, blocks_of(directories).unwrap_or(before));
        result
    }

    /// Refuses another name when there is no room for it; [`naming`](Self::naming) is under way.
    pub(super) fn check_room_for_name(&self) -> Result<(), Errno> {
        self.quota.as_ref().map_or(Ok(()), |quota| quota.reserve(INODE_SIZE).map(drop))
    }

    /// Does what adds up to `size` bytes to `file`, which is `ino`, up to the offset `end`, within the
    /// quota.
    pub(super) fn charged<T>(
        &self,
        (ino, file): (Ino, BorrowedFd<'_>),
        end: u64,
        size: u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = &self.quota else { return change() };
        let _file = quota.lock_file(ino);
        self.charged_alone(file, end, size, change)
    }

    /// The same for a file that nobody else changes: nobody waits for it.
    pub(in crate::fs) fn charged_alone<T>(
        &self,
        file: BorrowedFd<'_>,
        end: u64,
        size: u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let blocks = || Ok(sys::size_of_blocks(&sys::stat(file)?.attributes));
        self.settled(|| is_in_place(file, end, size), size, blocks, change)
    }

    /// Does what adds up to `size` bytes to the extended attributes of `file`, which is `ino`.
    pub(super) fn charged_attributes<T>(
        &self,
        (ino, file): (Ino, BorrowedFd<'_>),
        size: u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = &self.quota else { return change() };
        let _file = quota.lock_file(ino);
        self.settled(|| false, size, || quota.measure.take(file), change)
    }

    /// Sets `size` bytes aside, unless the change takes none, and settles for what `measure` finds
    /// that it took.
    fn settled<T>(
        &self,
        takes_none: impl FnOnce() -> bool,
        size: u64,
        measure: impl Fn() -> Result<u64, Errno>,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = &self.quota else { return change() };
        self.count_if_due(false);
        let (_change, reservation) = {
            let change = quota.change();
            match quota.reserve(size) {
                Ok(reservation) => (change, reservation),
                Err(_) if takes_none() => (change, quota.reserve(0)?),
                Err(_) => {
                    drop(change);
                    self.count_if_due(true);
                    (quota.change(), quota.reserve(size)?)
                }
            }
        };
        let before = measure()?;
        let result = change();
        // What cannot be measured is taken to be what was set aside, until all is counted.
        reservation.settle(before, measure().unwrap_or_else(|_| before.saturating_add(size)));
        result
    }

    /// Gives back what something took that is gone now.
    pub(super) fn refund(&self, cost: u64) {
        if let Some(quota) = &self.quota {
            quota.settle(cost, 0);
        }
    }

    /// What the inode with these attributes counts as, which `path` stands for.
    pub(super) fn cost_of(&self, attributes: &Attributes, path: BorrowedFd<'_>) -> u64 {
        let Some(quota) = &self.quota else { return 0 };
        let extended = quota.measure.extended_attributes_of(attributes, || {
            // It may have no name any more; but it is a file or directory, as has been seen.
            self.descriptors.reopen(path, rustix::fs::OFlags::RDONLY)
        });
        // If they cannot be read, they stay counted until all is.
        cost(attributes).saturating_add(extended.unwrap_or(0))
    }

    /// Gives back what files took that had no names, and are not remembered any more.
    pub(super) fn refund_forgotten(&self, forgotten: &[Arc<OwnedFd>]) {
        let Some(quota) = &self.quota else { return };
        if forgotten.is_empty() {
            return;
        }
        let _change = quota.change();
        // Else one of them might get a name just now.
        let _naming = quota.naming.lock().unwrap_or_else(PoisonError::into_inner);
        for path in forgotten {
            self.refund(self.unnamed_cost(path));
        }
    }

    /// What a file counts as that has no name any more; nothing if it has one.
    fn unnamed_cost(&self, path: &OwnedFd) -> u64 {
        match sys::stat(path.as_fd()) {
            Ok(stat) if stat.attributes.nlink == 0 || super::is_directory(stat.attributes.mode) => {
                self.cost_of(&stat.attributes, path.as_fd())
            }
            _ => 0,
        }
    }

    /// Counts all anew if that is due, or may be of use before a refusal; not while changes are under
    /// way.
    pub(super) fn count_if_due(&self, is_refusing: bool) {
        let Some(quota) = &self.quota else { return };
        let is_due = {
            let used = quota.used();
            let interval = COUNT_INTERVAL.max(used.counting_took * COUNT_TIMES);
            used.given_back > quota.limit / GIVEN_BACK_SHARE
                || (is_refusing && used.counted_at.elapsed() > interval)
        };
        if !is_due {
            return;
        }
        let Ok(_alone) = quota.changes.try_write() else { return };
        let start = Instant::now();
        match scan(&self.root, &quota.measure) {
            Ok(bytes) => {
                let pinned = self.nodes().pinned_paths();
                let unnamed: u64 = pinned.iter().map(|path| self.unnamed_cost(path)).sum();
                let mut used = quota.used();
                used.bytes = bytes.saturating_add(unnamed);
                used.given_back = 0;
                (used.counted_at, used.counting_took) = (Instant::now(), start.elapsed());
            }
            Err(error) => {
                tracing::warn!(%error, "what a directory holds cannot be counted anew");
                let mut used = quota.used();
                used.given_back = 0;
                used.counted_at = Instant::now();
            }
        }
    }
}

/// Whether the last `size` bytes before `end` are contents of the file already, so that writing them
/// again takes nothing. How many blocks it has does not tell: they may be beyond its end.
fn is_in_place(file: BorrowedFd<'_>, end: u64, size: u64) -> bool {
    let file_size = sys::stat(file).map_or(0, |stat| stat.attributes.size);
    let Some(start) = end.checked_sub(size).filter(|_| end <= file_size) else { return false };
    extents::are_allocated(file, start, end).unwrap_or_else(|_| {
        // A host that does not say takes what was only allocated for a hole. Nobody uses the
        // descriptor's own offset.
        rustix::fs::seek(file, SeekFrom::Hole(start)).is_ok_and(|hole| hole >= end)
    })
}

/// What an inode counts as, but for extended attributes.
pub(super) const fn cost(attributes: &Attributes) -> u64 {
    sys::size_of_blocks(attributes).saturating_add(INODE_SIZE)
}

/// Blocks of these directories together.
fn blocks_of(directories: &[&OwnedFd]) -> Result<u64, Errno> {
    let mut sum: u64 = 0;
    let mut seen = None;
    for directory in directories {
        let attributes = sys::stat(directory.as_fd())?.attributes;
        if seen != Some(attributes.ino) {
            sum = sum.saturating_add(sys::size_of_blocks(&attributes));
        }
        seen = Some(attributes.ino);
    }
    Ok(sum)
}
