//! Writes index entries a moment after their blocks, many at a time.
//!
//! An entry is a tenth of a small block's system calls, and nobody needs it at once: this process has
//! its own table. Others see it within [`FLUSH_INTERVAL`], about as often as they look. A process that
//! is killed loses the entries of that moment, which costs a fetch each.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::Writing;

/// From the first entry that the index lacks to its writing.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

/// The thread that writes entries. It ends when this is dropped.
pub(super) struct Flusher {
    wake: SyncSender<()>,
}

impl Flusher {
    /// Starts the thread.
    pub(super) fn start(writing: Weak<Mutex<Writing>>) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let thread = thread::Builder::new().name("cache-index".to_owned());
        thread.spawn(move || flush_when_woken(&writing, &woken))?;
        Ok(Self { wake })
    }

    /// Has the entries written soon.
    pub(super) fn wake(&self) {
        // Awake already is as good.
        let _ = self.wake.try_send(());
    }
}

fn flush_when_woken(writing: &Weak<Mutex<Writing>>, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        thread::sleep(FLUSH_INTERVAL);
        let Some(writing) = writing.upgrade() else { return };
        writing.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}
