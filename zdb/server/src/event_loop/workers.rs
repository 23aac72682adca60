//! Threads that wait for the disk, so that the loop doesn't.
//!
//! There are three groups of them: one for syncs that clients wait for, one for those that only upkeep
//! waits for, and one for tasks that make, change and remove namespaces. Each namespace has a few jobs
//! under way at most, so the queues are bounded by the number of namespaces. A few threads suffice: what
//! one disk does at the same time shares its journal.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::poll::Waker;

/// Threads with a queue: what goes to them and comes back.
#[derive(Debug)]
pub(super) struct Workers<Job, Done> {
    queue: Arc<Queue<Job>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

/// Jobs that no thread has yet. One that is pushed wakes one thread, and no other.
#[derive(Debug)]
struct Queue<Job> {
    state: Mutex<State<Job>>,
    pushed: Condvar,
}

#[derive(Debug)]
struct State<Job> {
    jobs: VecDeque<Job>,
    /// Whether there will be no more.
    is_ended: bool,
}

impl<Job> Queue<Job> {
    fn new() -> Self {
        let state = State { jobs: VecDeque::new(), is_ended: false };
        Self { state: Mutex::new(state), pushed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<Job>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job; `None` when there will be no more.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.is_ended {
                return None;
            }
            state = self.pushed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<Job: Send + 'static, Done: Send + 'static> Workers<Job, Done> {
    /// Starts `count` threads of that name; each job's end wakes the loop.
    pub(super) fn start(
        waker: &Arc<Waker>,
        name: &str,
        count: usize,
        run: fn(Job) -> Done,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::new());
        let (results, done) = channel();
        let threads = (0..count).map(|number| {
            let (queue, results, waker) = (Arc::clone(&queue), results.clone(), Arc::clone(waker));
            let work = move || {
                while let Some(job) = queue.next() {
                    if results.send(run(job)).is_err() {
                        // The server is gone.
                        return;
                    }
                    waker.wake();
                }
            };
            std::thread::Builder::new().name(format!("zdb-{name}-{number}")).spawn(work)
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { queue, done, threads })
    }

    /// Has a job run.
    pub(super) fn push(&self, job: Job) {
        let mut state = self.queue.lock();
        assert!(!state.is_ended, "the threads have ended");
        state.jobs.push_back(job);
        drop(state);
        self.queue.pushed.notify_one();
    }

    /// What was run since the last call.
    pub(super) fn take_done(&self) -> impl Iterator<Item = Done> {
        self.done.try_iter()
    }

    /// Waits for all jobs. No more can be pushed.
    pub(super) fn finish(&mut self) {
        self.queue.lock().is_ended = true;
        self.queue.pushed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there is a bug of the engine's; the loop still ends well.
            if thread.join().is_err() {
                tracing::error!("a thread that waits for the disk has failed");
            }
        }
    }
}

impl<Job, Done> Drop for Workers<Job, Done> {
    fn drop(&mut self) {
        // Threads that nobody waits for end by themselves.
        self.queue.lock().is_ended = true;
        self.queue.pushed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once_before_the_end() {
        let waker = Arc::new(Waker::new().unwrap());
        let mut workers = Workers::start(&waker, "test", 3, |job: u32| job * 2).unwrap();
        (0..100).for_each(|job| workers.push(job));
        workers.finish();
        let mut done: Vec<u32> = workers.take_done().collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).map(|job| job * 2).collect::<Vec<_>>());
    }
}
