//! Threads that wait for the disk, so that the loop doesn't.
//!
//! There are two groups of them: one that syncs, one for tasks that make, change and remove namespaces,
//! which take longer. Each namespace has at most one sync and one task under way, so the queues are
//! bounded by the number of namespaces. A few threads suffice: what one disk does at the same time shares
//! its journal.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::poll::Waker;

/// Threads with a queue: what goes to them and comes back.
#[derive(Debug)]
pub(super) struct Workers<Job, Done> {
    todo: Option<Sender<Job>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

impl<Job: Send + 'static, Done: Send + 'static> Workers<Job, Done> {
    /// Starts `count` threads of that name; each job's end wakes the loop.
    pub(super) fn start(
        waker: &Arc<Waker>,
        name: &str,
        count: usize,
        run: fn(Job) -> Done,
    ) -> io::Result<Self> {
        let (todo, queue) = channel::<Job>();
        let (results, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..count).map(|number| {
            let (queue, results, waker) = (Arc::clone(&queue), results.clone(), Arc::clone(waker));
            let work = move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    // The other ends are gone when the server ends.
                    let Ok(job) = next else { return };
                    if results.send(run(job)).is_err() {
                        return;
                    }
                    waker.wake();
                }
            };
            std::thread::Builder::new().name(format!("zdb-{name}-{number}")).spawn(work)
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { todo: Some(todo), done, threads })
    }

    /// Has a job run.
    pub(super) fn push(&self, job: Job) {
        if let Some(todo) = &self.todo {
            let is_queued = todo.send(job).is_ok();
            assert!(is_queued, "threads wait while there is a queue");
        }
    }

    /// What was run since the last call.
    pub(super) fn take_done(&self) -> Vec<Done> {
        self.done.try_iter().collect()
    }

    /// Waits for all jobs. No more can be pushed.
    pub(super) fn finish(&mut self) {
        self.todo = None;
        for thread in self.threads.drain(..) {
            // A panic there is a bug of the engine's; the loop still ends well.
            if thread.join().is_err() {
                tracing::error!("a thread that waits for the disk has failed");
            }
        }
    }
}
