//! Begins to write a folder's new files to the disk while more of them are made.
//!
//! Thousands of small files cost a disk about as long as they cost a processor. A sync at the end
//! alone lets one wait for the other; here a thread syncs the file system after each
//! [`BATCH_SIZE`] bytes, so that little is left for the last sync, which everyone waits for.
//!
//! An error of the disk is told once to each open file description. All syncs go through one, and
//! what the thread met is kept for the last sync to return.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

/// Bytes written between two syncs on the way.
const BATCH_SIZE: u64 = 16 << 20;

/// The syncs of one folder's file system.
pub(super) struct Writeback {
    shared: Arc<Shared>,
    unsynced: AtomicU64,
    /// Wakes the thread; none if it could not be started, which costs time alone.
    wake: Option<SyncSender<()>>,
}

struct Shared {
    folder: OwnedFd,
    met: Mutex<Option<Errno>>,
}

impl Writeback {
    /// For the file system that the folder `root` is on; begun before anything is written.
    pub(super) fn new(root: &OwnedFd) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = fs::openat(root, ".", flags, Mode::empty())?;
        let shared = Arc::new(Shared { folder, met: Mutex::new(None) });
        let (wake, woken) = sync_channel(1);
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("writeback".to_owned());
        let started = thread.spawn(move || theirs.sync_when_woken(&woken));
        Ok(Self { shared, unsynced: AtomicU64::new(0), wake: started.is_ok().then_some(wake) })
    }

    /// Takes note of `size` bytes more.
    pub(super) fn add(&self, size: usize) {
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        let before = self.unsynced.fetch_add(size, Ordering::Relaxed);
        if before.saturating_add(size) / BATCH_SIZE > before / BATCH_SIZE
            && let Some(wake) = &self.wake
        {
            // One that is still at work sees these files too, or the next call wakes it again.
            let _ = wake.try_send(());
        }
    }

    /// Returns when all that was written is on the disk.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        fs::syncfs(&self.shared.folder)?;
        let met = self.shared.met.lock().unwrap_or_else(PoisonError::into_inner).take();
        met.map_or(Ok(()), Err)
    }
}

impl Shared {
    fn sync_when_woken(&self, woken: &Receiver<()>) {
        while woken.recv().is_ok() {
            if let Err(errno) = fs::syncfs(&self.folder) {
                *self.met.lock().unwrap_or_else(PoisonError::into_inner) = Some(errno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writeback(folder: &std::path::Path) -> Writeback {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Writeback::new(&fs::open(folder, flags, Mode::empty()).unwrap()).unwrap()
    }

    #[test]
    fn a_batch_wakes_the_thread_and_less_does_not() {
        let (wake, woken) = sync_channel(1);
        let folder = tempfile::tempdir().unwrap();
        let writeback = Writeback { wake: Some(wake), ..writeback(folder.path()) };
        let batch = usize::try_from(BATCH_SIZE).unwrap();
        writeback.add(batch - 1);
        assert!(woken.try_recv().is_err());
        writeback.add(1);
        assert!(woken.try_recv().is_ok());
        // Whether or not someone listens, nobody is held up.
        writeback.add(batch);
        writeback.add(batch);
        assert!(woken.try_recv().is_ok());
    }

    #[test]
    fn an_error_met_on_the_way_is_the_last_syncs_error_once() {
        let folder = tempfile::tempdir().unwrap();
        let writeback = writeback(folder.path());
        *writeback.shared.met.lock().unwrap() = Some(Errno::IO);
        assert_eq!(writeback.sync(), Err(Errno::IO));
        assert_eq!(writeback.sync(), Ok(()));
    }
}
