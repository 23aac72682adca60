//! Threads that wait for the disk, so that the loop doesn't.
//!
//! Each namespace has at most one sync under way, so the queues are bounded by the number of
//! namespaces. A few threads suffice: syncs of one disk that run at the same time share its journal.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::poll::Waker;
use crate::core::{Sync, Synced};

/// Syncs that run at the same time.
const THREAD_COUNT: usize = 4;

/// The threads, and what goes to them and comes back.
#[derive(Debug)]
pub(super) struct Syncer {
    todo: Option<Sender<Sync>>,
    done: Receiver<Synced>,
    threads: Vec<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the threads; each sync's end wakes the loop.
    pub(super) fn start(waker: &Arc<Waker>) -> io::Result<Self> {
        let (todo, queue) = channel::<Sync>();
        let (results, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..THREAD_COUNT).map(|number| {
            let (queue, results, waker) = (Arc::clone(&queue), results.clone(), Arc::clone(waker));
            let work = move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    // The other ends are gone when the server ends.
                    let Ok(sync) = next else { return };
                    if results.send(sync.run()).is_err() {
                        return;
                    }
                    waker.wake();
                }
            };
            std::thread::Builder::new().name(format!("zdb-sync-{number}")).spawn(work)
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { todo: Some(todo), done, threads })
    }

    /// Has a sync run.
    pub(super) fn push(&self, sync: Sync) {
        if let Some(todo) = &self.todo {
            todo.send(sync).expect("threads wait while there is a queue");
        }
    }

    /// Syncs that were run since the last call.
    pub(super) fn take_done(&self) -> Vec<Synced> {
        self.done.try_iter().collect()
    }

    /// Waits for all syncs. No more can be pushed.
    pub(super) fn finish(&mut self) {
        self.todo = None;
        for thread in self.threads.drain(..) {
            // A panic there is a bug of the engine's; the loop still ends well.
            if thread.join().is_err() {
                tracing::error!("a thread that syncs has failed");
            }
        }
    }
}
