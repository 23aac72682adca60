//! Requests that were done, on disk, so that none is done twice however a node ends.
//!
//! A file begins with a whole window of them ([`hostd_rmb::server::replay`]), and every request that
//! changes something is appended before it is done. Those that come together are synchronized together.
//! From time to time, and at a start, the file is written anew without what has expired.
//!
//! While the disk takes nothing, nothing is done that has to be written down.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hostd_rmb::RandomError;
use hostd_rmb::server::replay::{ENTRY_SIZE, ReplayWindow};
use hostd_rmb::server::{Journal, Recording};
use tracing::warn;

use crate::engine::{blocking, lock};
use crate::files::write_durably;

/// Bytes that are read of a file: more than a whole window, and what comes between two of them.
const FILE_SIZE_MAX: u64 = 64 << 20;
/// Requests that are appended before the file is to be written anew.
const APPENDED_COUNT_MAX: usize = 64 * 1024;

/// Bytes of requests that wait: more than a peer has under way at a time.
const WAITING_SIZE_MAX: usize = 4096 * ENTRY_SIZE;

/// The file. Clones share it.
#[derive(Clone)]
pub(crate) struct Seen {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    waiting: Mutex<Waiting>,
    file: Mutex<Open>,
}

/// Requests that no thread writes yet.
#[derive(Default)]
struct Waiting {
    entries: Vec<u8>,
    /// How many have ever waited.
    count: u64,
}

/// The file as it is written.
struct Open {
    /// None if it could not be written when it should have been.
    file: Option<File>,
    /// Bytes that are good.
    size: u64,
    /// Entries behind the window.
    appended_count: usize,
    /// How many of all that ever waited are there.
    done_count: u64,
}

impl Seen {
    /// What was done before, as bytes for a peer, and the file to go on with. A disk that takes nothing is no
    /// error yet.
    ///
    /// # Errors
    ///
    /// There is no randomness for a new window.
    pub(crate) fn open(path: &Path) -> Result<(Vec<u8>, Self), RandomError> {
        let found = read(path).and_then(|bytes| ReplayWindow::from_bytes(&bytes));
        let bytes = match found {
            Some(window) => window,
            None => ReplayWindow::new()?,
        }
        .to_bytes();
        let open = Open { file: None, size: 0, appended_count: 0, done_count: 0 };
        let (path, waiting) = (path.to_owned(), Mutex::default());
        let inner = Arc::new(Inner { path, waiting, file: Mutex::new(open) });
        if let Err(error) = inner.rewrite(|| bytes.clone()) {
            warn!(%error, "requests can't be written down");
        }
        Ok((bytes, Self { inner }))
    }

    /// Writes the file anew, with `window` as it is when nothing is appended.
    ///
    /// # Errors
    ///
    /// The disk does not take it. What is there stays.
    pub(crate) async fn rewrite(
        &self,
        window: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.rewrite(window)).await
    }

    /// Whether it has grown so much that it should be written anew soon.
    pub(crate) fn is_long(&self) -> bool {
        let open = lock(&self.inner.file);
        open.file.is_none() || open.appended_count >= APPENDED_COUNT_MAX
    }
}

impl Journal for Seen {
    fn record(&self, entry: [u8; ENTRY_SIZE]) -> Recording<'_> {
        let inner = Arc::clone(&self.inner);
        Box::pin(blocking(move || inner.append(entry)))
    }
}

impl Inner {
    fn rewrite(&self, window: impl FnOnce() -> Vec<u8>) -> io::Result<()> {
        // Whoever appends waits; what waits was seen already, so that it is in the window.
        let mut open = lock(&self.file);
        let bytes = window();
        let written = write_durably(&self.path, &bytes)
            .and_then(|()| File::options().write(true).open(&self.path));
        match written {
            Ok(file) => {
                let size = bytes.len() as u64;
                *open = Open { file: Some(file), size, appended_count: 0, ..*open };
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Appends an entry with all others that wait, and returns when it is on disk.
    fn append(&self, entry: [u8; ENTRY_SIZE]) -> io::Result<()> {
        let ticket = {
            let mut waiting = lock(&self.waiting);
            waiting.entries.extend(entry);
            waiting.count += 1;
            waiting.count
        };
        let mut open = lock(&self.file);
        if open.done_count >= ticket {
            return Ok(());
        }
        let mut waiting = lock(&self.waiting);
        let (entries, count) = (std::mem::take(&mut waiting.entries), waiting.count);
        drop(waiting);
        let written = match &open.file {
            // A part that was written before an error is written over.
            Some(file) => file.write_all_at(&entries, open.size).and_then(|()| file.sync_data()),
            None => Err(io::Error::other("there is no file of requests")),
        };
        match written {
            Ok(()) => {
                open.size += entries.len() as u64;
                open.appended_count += entries.len() / ENTRY_SIZE;
                open.done_count = count;
                Ok(())
            }
            Err(error) => {
                // Others wait for theirs.
                let mut waiting = lock(&self.waiting);
                let later = std::mem::replace(&mut waiting.entries, entries);
                waiting.entries.extend(later);
                // No more than can wait at a time: the oldest were refused long ago.
                let surplus = waiting.entries.len().saturating_sub(WAITING_SIZE_MAX);
                waiting.entries.drain(..surplus);
                Err(error)
            }
        }
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_SIZE_MAX).read_to_end(&mut bytes)) {
        Ok(_) => Some(bytes),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(%error, "which requests were done is not known");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use hostd_rmb::server::replay::Verdict;
    use hostd_rmb::twins::TwinId;
    use tokio::task::JoinSet;

    use super::*;

    const LATE: u64 = 2_000;

    fn twin() -> TwinId {
        TwinId::new(7).unwrap()
    }

    fn window(bytes: &[u8]) -> ReplayWindow {
        ReplayWindow::from_bytes(bytes).unwrap()
    }

    #[tokio::test]
    async fn what_was_recorded_is_known_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen");
        let (bytes, seen) = Seen::open(&path).unwrap();
        let mut first = window(&bytes);
        let seen = Arc::new(seen);
        let mut recording = JoinSet::new();
        for number in 0..100 {
            let uid = number.to_string();
            assert_eq!(first.check(twin(), &uid, LATE, 1), Verdict::New);
            let (entry, seen) = (first.entry(twin(), &uid, LATE), Arc::clone(&seen));
            recording.spawn(async move { seen.record(entry).await.unwrap() });
        }
        recording.join_all().await;
        // Nothing is done to end well, and the last write was torn.
        drop(seen);
        let file = File::options().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut &file, &[1, 2, 3]).unwrap();

        let (bytes, seen) = Seen::open(&path).unwrap();
        let mut second = window(&bytes);
        for number in 0..100 {
            assert_eq!(second.check(twin(), &number.to_string(), LATE, 1), Verdict::Seen);
        }
        // What expired goes when it is written anew, and what comes later is appended to that.
        assert_eq!(second.check(twin(), "new", LATE + 9, LATE), Verdict::New);
        let (entry, whole) = (second.entry(twin(), "newer", LATE + 9), second.to_bytes());
        seen.rewrite(move || whole).await.unwrap();
        seen.record(entry).await.unwrap();
        drop(seen);
        let mut third = window(&Seen::open(&path).unwrap().0);
        for uid in ["new", "newer"] {
            assert_eq!(third.check(twin(), uid, LATE + 9, LATE), Verdict::Seen);
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 150);
    }

    #[tokio::test]
    async fn what_is_damaged_begins_anew_and_what_cannot_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen");
        std::fs::write(&path, "nonsense").unwrap();
        let (bytes, seen) = Seen::open(&path).unwrap();
        assert!(!seen.is_long());
        seen.record(window(&bytes).entry(twin(), "a", LATE)).await.unwrap();

        let absent = folder.path().join("absent/seen");
        let (bytes, seen) = Seen::open(&absent).unwrap();
        let entry = window(&bytes).entry(twin(), "a", LATE);
        assert!(seen.is_long());
        assert!(seen.record(entry).await.is_err());
        // The disk is back: what waited in vain is there too, and does no harm.
        std::fs::create_dir(absent.parent().unwrap()).unwrap();
        seen.rewrite(move || bytes).await.unwrap();
        seen.record(window(&read(&absent).unwrap()).entry(twin(), "b", LATE)).await.unwrap();
        let mut window = window(&read(&absent).unwrap());
        assert_eq!(window.check(twin(), "b", LATE, 1), Verdict::Seen);
    }
}
